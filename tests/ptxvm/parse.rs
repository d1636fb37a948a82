//! Tokens to declarations and statements.

use super::{
    ast::{Entry, File, Operand, Raw, Scope, Var},
    error::Error,
    lex::{Tok, Token, lex, show, text_of},
    types::Ty,
};

struct Parser {
    toks: Vec<Token>,
    at: usize,
}

/// Parses a PTX file.
pub fn parse(src: &str) -> Result<File, Error> {
    let mut p = Parser { toks: lex(src)?, at: 0 };
    let mut file = File::default();
    while p.at < p.toks.len() {
        p.top_level(&mut file)?;
    }
    Ok(file)
}

impl Parser {
    fn peek(&self) -> Option<&Tok> {
        self.toks.get(self.at).map(|t| &t.tok)
    }

    fn line(&self) -> u32 {
        self.toks.get(self.at).or(self.toks.last()).map_or(0, |t| t.line)
    }

    fn fail<T>(&self, what: &str) -> Result<T, Error> {
        let text = self.toks[self.at.min(self.toks.len())..]
            .iter()
            .take(8)
            .map(|t| show(&t.tok))
            .collect::<Vec<_>>()
            .join(" ");
        Err(Error::Parse { line: self.line(), text, what: what.into() })
    }

    fn is(&self, c: char) -> bool {
        self.peek() == Some(&Tok::Punct(c))
    }

    fn eat(&mut self, c: char) -> bool {
        let hit = self.is(c);
        self.at += usize::from(hit);
        hit
    }

    fn expect(&mut self, c: char) -> Result<(), Error> {
        if self.eat(c) { Ok(()) } else { self.fail(&format!("expected `{c}`")) }
    }

    fn word(&mut self) -> Result<String, Error> {
        match self.peek() {
            Some(Tok::Word(w)) => {
                let w = w.clone();
                self.at += 1;
                Ok(w)
            }
            _ => self.fail("expected a name"),
        }
    }

    fn is_word(&self, w: &str) -> bool {
        matches!(self.peek(), Some(Tok::Word(x)) if x == w)
    }

    fn int(&mut self) -> Result<i128, Error> {
        let minus = self.eat('-');
        match self.peek() {
            Some(&Tok::Int(v)) => {
                self.at += 1;
                Ok(if minus { -v } else { v })
            }
            _ => self.fail("expected an integer"),
        }
    }

    fn skip_line(&mut self) {
        let line = self.line();
        while self.at < self.toks.len() && self.toks[self.at].line == line {
            self.at += 1;
        }
    }

    fn skip_to(&mut self, c: char) {
        while self.at < self.toks.len() && !self.eat(c) {
            self.at += 1;
        }
    }

    fn skip_braces(&mut self) {
        let mut depth = 0;
        while self.at < self.toks.len() {
            if self.is('{') {
                depth += 1;
            } else if self.is('}') {
                depth -= 1;
            }
            self.at += 1;
            if depth == 0 {
                return;
            }
        }
    }

    fn top_level(&mut self, file: &mut File) -> Result<(), Error> {
        let word = self.word()?;
        match word.as_str() {
            ".version" | ".target" | ".address_size" | ".file" => self.skip_line(),
            ".visible" | ".extern" | ".weak" | ".common" => {}
            ".entry" => file.entries.push(self.entry()?),
            ".func" => {
                while self.at < self.toks.len() && !self.is('{') && !self.is(';') {
                    self.at += 1;
                }
                if !self.eat(';') {
                    self.skip_braces();
                }
            }
            ".section" => {
                self.word()?;
                self.skip_braces();
            }
            ".pragma" => self.skip_to(';'),
            ".shared" => file.shared.extend(self.vars()?),
            ".global" => file.global.extend(self.vars()?),
            ".const" => file.constant.extend(self.vars()?),
            _ => {
                self.at -= 1;
                return self.fail("unknown directive");
            }
        }
        Ok(())
    }

    /// `.align 4 .b8 name[16] = {…}, other;` after the state space word.
    fn vars(&mut self) -> Result<Vec<Var>, Error> {
        let mut out = Vec::new();
        let (ty, align) = self.var_type()?;
        loop {
            out.push(self.var_rest(ty, align)?);
            if !self.eat(',') {
                self.expect(';')?;
                return Ok(out);
            }
        }
    }

    fn var_type(&mut self) -> Result<(Ty, usize), Error> {
        let (mut ty, mut align) = (None, 0);
        while let Some(Tok::Word(w)) = self.peek() {
            let Some(suffix) = w.strip_prefix('.') else { break };
            if suffix == "align" {
                self.at += 1;
                align = self.int()? as usize;
            } else if matches!(suffix, "ptr" | "global" | "shared" | "attribute") {
                self.at += 1;
            } else if let Some(t) = Ty::parse(suffix) {
                ty = Some(t);
                self.at += 1;
            } else {
                return self.fail("unknown variable type");
            }
        }
        match ty {
            Some(t) => Ok((t, align.max(t.bytes()))),
            None => self.fail("variable without a type"),
        }
    }

    fn var_rest(&mut self, ty: Ty, align: usize) -> Result<Var, Error> {
        let name = self.word()?;
        let mut size = Some(ty.bytes());
        while self.eat('[') {
            size = if self.is(']') { None } else { Some(size.unwrap_or(1) * self.int()? as usize) };
            self.expect(']')?;
        }
        let mut init = Vec::new();
        if self.eat('=') {
            self.initialiser(ty, &mut init)?;
            init.resize(size.unwrap_or(init.len()).max(init.len()), 0);
        }
        Ok(Var { name, align, size, init })
    }

    fn initialiser(&mut self, ty: Ty, out: &mut Vec<u8>) -> Result<(), Error> {
        if self.eat('{') {
            while !self.eat('}') {
                self.initialiser(ty, out)?;
                self.eat(',');
            }
            return Ok(());
        }
        let bits = match self.peek() {
            Some(&Tok::F32(v)) => u64::from(v),
            Some(&Tok::F64(v)) if ty == Ty::F32 => u64::from((f64::from_bits(v) as f32).to_bits()),
            Some(&Tok::F64(v)) => v,
            Some(Tok::Int(_) | Tok::Punct('-')) => {
                let v = self.int()?;
                self.at -= 1;
                v as u64
            }
            _ => return self.fail("initialiser that is not a number"),
        };
        self.at += 1;
        out.extend(&bits.to_le_bytes()[..ty.bytes()]);
        Ok(())
    }

    fn entry(&mut self) -> Result<Entry, Error> {
        let mut e =
            Entry { name: self.word()?, scopes: vec![Scope::default()], ..Entry::default() };
        if self.eat('(') {
            while !self.eat(')') {
                if !self.is_word(".param") {
                    return self.fail("expected .param");
                }
                self.at += 1;
                let (ty, align) = self.var_type()?;
                e.params.push(self.var_rest(ty, align)?);
                self.eat(',');
            }
        }
        while !self.is('{') {
            if self.at >= self.toks.len() {
                return self.fail("entry without a body");
            }
            self.at += 1;
        }
        self.expect('{')?;
        let mut scopes = vec![0];
        while let Some(&scope) = scopes.last() {
            if self.eat('{') {
                e.scopes.push(Scope { parent: Some(scope), ..Scope::default() });
                scopes.push(e.scopes.len() - 1);
            } else if self.eat('}') {
                scopes.pop();
            } else {
                self.statement(&mut e, scope)?;
            }
        }
        Ok(e)
    }

    fn statement(&mut self, e: &mut Entry, scope: usize) -> Result<(), Error> {
        if self.eat(';') {
            return Ok(());
        }
        let Some(Tok::Word(w)) = self.peek().cloned() else {
            if self.is('@') {
                return self.instruction(e, scope);
            }
            return self.fail("expected a statement");
        };
        if self.toks.get(self.at + 1).is_some_and(|t| t.tok == Tok::Punct(':')) {
            self.at += 2;
            e.scopes[scope].labels.push((w.clone(), e.code.len()));
            if self.is_word(".branchtargets") {
                self.at += 1;
                let mut list = vec![self.word()?];
                while self.eat(',') {
                    list.push(self.word()?);
                }
                self.expect(';')?;
                e.scopes[scope].targets.push((w, list));
            }
            return Ok(());
        }
        match w.as_str() {
            ".reg" => {
                self.at += 1;
                let (ty, _) = self.var_type()?;
                self.registers(ty, &mut e.scopes[scope].regs)
            }
            ".shared" => {
                self.at += 1;
                e.shared.extend(self.vars()?);
                Ok(())
            }
            ".local" => {
                self.at += 1;
                e.local.extend(self.vars()?);
                Ok(())
            }
            ".loc" => {
                self.skip_line();
                Ok(())
            }
            ".pragma" | ".param" => {
                self.skip_to(';');
                Ok(())
            }
            _ if w.starts_with('.') => self.fail("unknown directive in a body"),
            _ => self.instruction(e, scope),
        }
    }

    fn registers(&mut self, ty: Ty, out: &mut Vec<(String, Ty)>) -> Result<(), Error> {
        loop {
            let name = self.word()?;
            if self.eat('<') {
                let n = self.int()?;
                self.expect('>')?;
                out.extend((0..n).map(|i| (format!("{name}{i}"), ty)));
            } else {
                out.push((name, ty));
            }
            if !self.eat(',') {
                return self.expect(';');
            }
        }
    }

    fn instruction(&mut self, e: &mut Entry, scope: usize) -> Result<(), Error> {
        let (start, line) = (self.at, self.line());
        let guard = if self.eat('@') {
            let negated = self.eat('!');
            Some((self.word()?, negated))
        } else {
            None
        };
        let parts = self.word()?.split('.').map(str::to_owned).collect();
        let mut operands = Vec::new();
        while !self.is(';') {
            operands.push(self.operand()?);
            if !self.eat(',') && !self.is(';') {
                return self.fail("expected `,` or `;` after an operand");
            }
        }
        let text = text_of(&self.toks[start..self.at]);
        self.expect(';')?;
        e.code.push(Raw { line, text, guard, parts, operands, scope });
        Ok(())
    }

    fn operand(&mut self) -> Result<Operand, Error> {
        let first = self.single_operand()?;
        if self.eat('|') {
            return Ok(Operand::Pair(Box::new(first), Box::new(self.single_operand()?)));
        }
        Ok(first)
    }

    fn offset(&mut self) -> Result<i64, Error> {
        let mut off = 0i64;
        while self.is('+') || self.is('-') {
            self.eat('+');
            off = off.wrapping_add(self.int()? as i64);
        }
        Ok(off)
    }

    fn single_operand(&mut self) -> Result<Operand, Error> {
        let Some(tok) = self.peek().cloned() else { return self.fail("expected an operand") };
        match tok {
            Tok::Punct('[') => {
                self.at += 1;
                let base = match self.peek() {
                    Some(Tok::Word(_)) => Some(self.word()?),
                    _ => None,
                };
                let off = if base.is_some() { self.offset()? } else { self.int()? as i64 };
                self.expect(']')?;
                Ok(Operand::Mem(base, off))
            }
            Tok::Punct('{') => {
                self.at += 1;
                let mut list = Vec::new();
                while !self.eat('}') {
                    list.push(self.operand()?);
                    self.eat(',');
                }
                Ok(Operand::Vector(list))
            }
            Tok::Punct('!') => {
                self.at += 1;
                Ok(Operand::Not(self.word()?))
            }
            Tok::Punct('(') => self.fail("function calls are not supported"),
            Tok::Punct('-') | Tok::Int(_) => Ok(Operand::Int(self.int()?)),
            Tok::F32(v) => {
                self.at += 1;
                Ok(Operand::F32(v))
            }
            Tok::F64(v) => {
                self.at += 1;
                Ok(Operand::F64(v))
            }
            Tok::Word(w) => {
                self.at += 1;
                if self.is('+') || self.is('-') {
                    return Ok(Operand::Offset(w, self.offset()?));
                }
                Ok(Operand::Name(w))
            }
            _ => self.fail("expected an operand"),
        }
    }
}
