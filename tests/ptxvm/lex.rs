//! PTX text to tokens, each with its line.

use super::error::Error;

#[derive(Clone, Debug, PartialEq)]
pub enum Tok {
    /// A word: an opcode with its suffixes, a directive, a name, a label. Numbers are not words.
    Word(String),
    Int(i128),
    F32(u32),
    F64(u64),
    Punct(char),
    Str(String),
}

#[derive(Clone, Debug)]
pub struct Token {
    pub tok: Tok,
    pub line: u32,
}

/// Splits `src` into tokens and drops comments.
pub fn lex(src: &str) -> Result<Vec<Token>, Error> {
    let b = src.as_bytes();
    let (mut i, mut line) = (0, 1);
    let mut out = Vec::new();
    while i < b.len() {
        let c = b[i];
        if c == b'\n' {
            line += 1;
            i += 1;
        } else if c.is_ascii_whitespace() || c == 0 {
            i += 1;
        } else if b[i..].starts_with(b"//") {
            while i < b.len() && b[i] != b'\n' {
                i += 1;
            }
        } else if b[i..].starts_with(b"/*") {
            while i < b.len() && !b[i..].starts_with(b"*/") {
                line += u32::from(b[i] == b'\n');
                i += 1;
            }
            i += 2;
        } else if c == b'"' {
            let end = src[i + 1..].find('"').map_or(b.len(), |n| i + 1 + n);
            out.push(Token { tok: Tok::Str(src[i + 1..end].into()), line });
            i = end + 1;
        } else if is_word(c) {
            let start = i;
            while i < b.len() && (is_word(b[i]) || b[i..].starts_with(b"::")) {
                i += if b[i] == b':' { 2 } else { 1 };
            }
            let word = &src[start..i];
            let tok = if c.is_ascii_digit() { number(word, line)? } else { Tok::Word(word.into()) };
            out.push(Token { tok, line });
        } else {
            out.push(Token { tok: Tok::Punct(c as char), line });
            i += 1;
        }
    }
    Ok(out)
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

fn number(word: &str, line: u32) -> Result<Tok, Error> {
    let bad = || Error::Parse { line, text: word.into(), what: "not a number".into() };
    let radix = |digits: &str, r| i128::from_str_radix(digits, r).map(Tok::Int).map_err(|_| bad());
    let lower = word.to_ascii_lowercase();
    if let Some(h) = lower.strip_prefix("0f") {
        return u32::from_str_radix(h, 16).map(Tok::F32).map_err(|_| bad());
    }
    if let Some(h) = lower.strip_prefix("0d") {
        return u64::from_str_radix(h, 16).map(Tok::F64).map_err(|_| bad());
    }
    let int = lower.strip_suffix('u').unwrap_or(&lower);
    if let Some(h) = int.strip_prefix("0x") {
        radix(h, 16)
    } else if let Some(h) = int.strip_prefix("0b") {
        radix(h, 2)
    } else if lower.contains('.') || (lower.contains('e') && !lower.starts_with('0')) {
        lower.parse::<f64>().map(|v| Tok::F64(v.to_bits())).map_err(|_| bad())
    } else if int.len() > 1 && int.starts_with('0') {
        radix(int, 8)
    } else {
        radix(int, 10)
    }
}

/// A token as text.
pub fn show(t: &Tok) -> String {
    match t {
        Tok::Word(w) => w.clone(),
        Tok::Int(v) => v.to_string(),
        Tok::F32(v) => format!("0f{v:08X}"),
        Tok::F64(v) => format!("0d{v:016X}"),
        Tok::Punct(c) => c.to_string(),
        Tok::Str(s) => format!("{s:?}"),
    }
}

/// Tokens as one line of text, spaced as PTX is usually written.
pub fn text_of(toks: &[Token]) -> String {
    let mut out = String::new();
    for t in toks {
        let s = show(&t.tok);
        let word = s.len() > 1 || s.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        if out.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ',')
            && (word || out.ends_with(','))
            || s == "["
            || s == "{"
        {
            out.push(' ');
        }
        out.push_str(&s);
    }
    out
}
