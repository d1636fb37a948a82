//! PTX as written: declarations and statements with names still unresolved.

use super::types::Ty;

/// One operand as written.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    Name(String),
    /// `!name`
    Not(String),
    /// `name+off`, outside brackets.
    Offset(String, i64),
    Int(i128),
    F32(u32),
    F64(u64),
    /// `[base+off]`; no base for an absolute address.
    Mem(Option<String>, i64),
    Vector(Vec<Operand>),
    /// `d|p`
    Pair(Box<Operand>, Box<Operand>),
}

/// One instruction as written.
#[derive(Clone, Debug)]
pub struct Raw {
    pub line: u32,
    pub text: String,
    /// Guard predicate and whether it is negated.
    pub guard: Option<(String, bool)>,
    /// The opcode split at its dots.
    pub parts: Vec<String>,
    pub operands: Vec<Operand>,
    /// The scope the names are looked up in.
    pub scope: usize,
}

/// A variable in a state space.
#[derive(Clone, Debug)]
pub struct Var {
    pub name: String,
    pub align: usize,
    /// Size in bytes; `None` for an unsized `.extern .shared` array.
    pub size: Option<usize>,
    pub init: Vec<u8>,
}

/// A `{ … }` scope: what it declares and the statement index each label stands for.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    pub parent: Option<usize>,
    pub regs: Vec<(String, Ty)>,
    pub labels: Vec<(String, usize)>,
    /// `.branchtargets` lists by label.
    pub targets: Vec<(String, Vec<String>)>,
}

/// An `.entry` as written.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    pub name: String,
    pub params: Vec<Var>,
    pub scopes: Vec<Scope>,
    pub code: Vec<Raw>,
    pub shared: Vec<Var>,
    pub local: Vec<Var>,
}

/// A whole PTX file as written.
#[derive(Clone, Debug, Default)]
pub struct File {
    pub entries: Vec<Entry>,
    pub shared: Vec<Var>,
    pub global: Vec<Var>,
    pub constant: Vec<Var>,
}
