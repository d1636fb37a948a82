//! Texts that commands read.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use super::error::CliError;

/// No text is longer than this, in bytes: a device without end is no text.
const MOST_BYTES: u64 = 1 << 28;

/// The text of a file or a pipe, as [`decode`] has it.
pub(super) fn read_text(path: &Path) -> Result<String, CliError> {
    let file = File::open(path);
    let file = file.map_err(|source| CliError::Read { path: path.to_owned(), source })?;
    read_all(path, file)
}

/// The text on standard input, as [`decode`] has it.
pub(super) fn read_stdin() -> Result<String, CliError> {
    read_all(Path::new("standard input"), io::stdin().lock())
}

fn read_all(path: &Path, reader: impl Read) -> Result<String, CliError> {
    let mut bytes = Vec::new();
    let read = reader.take(MOST_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|source| CliError::Read { path: path.to_owned(), source })?;
    decode(bytes).map_err(|reason| CliError::NotText { path: path.to_owned(), reason })
}

/// UTF-8 without a byte order mark, and with the line ends of Windows as `\n`: neither is part of what
/// was written. Errors complete the sentence that the name of the text begins.
fn decode(bytes: Vec<u8>) -> Result<String, String> {
    // The longer marks first: one of UTF-32 begins as one of UTF-16.
    const OTHER_MARKS: [(&[u8], &str); 4] = [
        (b"\xff\xfe\0\0", "UTF-32"),
        (b"\0\0\xfe\xff", "UTF-32"),
        (b"\xff\xfe", "UTF-16"),
        (b"\xfe\xff", "UTF-16"),
    ];
    if bytes.len() as u64 > MOST_BYTES {
        return Err(format!("has more than {MOST_BYTES} bytes"));
    }
    if let Some((_, name)) = OTHER_MARKS.iter().find(|(mark, _)| bytes.starts_with(mark)) {
        return Err(format!("is {name}, by its byte order mark; UTF-8 is read"));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        format!("is not UTF-8 text: invalid byte at offset {}", error.utf8_error().valid_up_to())
    })?;
    if let Some(offset) = text.find('\0') {
        return Err(format!("is not UTF-8 text: zero byte at offset {offset}"));
    }
    let written = text.strip_prefix('\u{feff}').unwrap_or(&text);
    if written.is_empty() {
        return Err("is empty".to_owned());
    }
    if written.contains("\r\n") {
        return Ok(written.replace("\r\n", "\n"));
    }
    Ok(written.to_owned())
}

/// The first `chars` characters of a text.
pub(super) fn first_chars(text: &str, chars: usize) -> &str {
    text.char_indices().nth(chars).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_and_line_ends_are_no_text() {
        for (bytes, text) in [
            (&b"caf\xc3\xa9\n"[..], "café\n"),
            (b"\xef\xbb\xbfthe", "the"),
            (b"\xef\xbb\xbf\xef\xbb\xbfthe", "\u{feff}the"),
            (b"the\xef\xbb\xbf", "the\u{feff}"),
            (b"one\r\ntwo\r\n", "one\ntwo\n"),
            (b"one\rtwo\n\r", "one\rtwo\n\r"),
        ] {
            assert_eq!(decode(bytes.to_vec()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn what_is_no_text_says_why() {
        for (bytes, reason) in [
            (&b""[..], "is empty"),
            (b"\xef\xbb\xbf", "is empty"),
            (b"\xff\xfet\0h\0", "is UTF-16, by its byte order mark; UTF-8 is read"),
            (b"\xfe\xff\0t\0h", "is UTF-16, by its byte order mark; UTF-8 is read"),
            (b"\xff\xfe\0\0t\0\0\0", "is UTF-32, by its byte order mark; UTF-8 is read"),
            (b"\0\0\xfe\xff\0\0\0t", "is UTF-32, by its byte order mark; UTF-8 is read"),
            (b"caf\xe9 and", "is not UTF-8 text: invalid byte at offset 3"),
            (b"\xef\xbb\xbfcaf\xe9", "is not UTF-8 text: invalid byte at offset 6"),
            (b"cut \xc3", "is not UTF-8 text: invalid byte at offset 4"),
            (b"t\0h\0e\0", "is not UTF-8 text: zero byte at offset 1"),
        ] {
            assert_eq!(decode(bytes.to_vec()), Err(reason.to_owned()));
        }
    }
}
