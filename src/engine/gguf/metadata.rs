//! A file's metadata: keys and typed values.

use std::{collections::BTreeMap, fmt};

use crate::engine::error::ModelError;

/// The metadata of one file, by key.
#[derive(Debug, Default)]
pub(in crate::engine) struct Metadata {
    entries: BTreeMap<String, Value>,
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::engine) enum Value {
    Scalar(Scalar),
    Text(String),
    Array(Array),
}

/// A number or a flag. Widths of integers do not matter to any key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::engine) enum Scalar {
    Unsigned(u64),
    Signed(i64),
    F32(f32),
    F64(f64),
    Flag(bool),
}

/// A list, as compact as in the file: a vocabulary has hundreds of thousands of elements.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::engine) enum Array {
    Texts(Texts),
    Scalars(Scalars),
    Nested(Vec<Array>),
}

/// Texts one behind the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::engine) struct Texts {
    text: String,
    /// One past the last byte of each.
    ends: Vec<usize>,
}

/// Scalars of one type, as the file has them.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::engine) struct Scalars {
    pub kind: ScalarKind,
    /// Little-endian, [`ScalarKind::bytes`] each.
    pub raw: Vec<u8>,
}

/// A scalar type of the file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum ScalarKind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    U64,
    I64,
    F64,
}

impl ScalarKind {
    /// The type of this number, unless it is that of texts, of arrays or of nothing.
    pub fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// The value of [`bytes`](Self::bytes) bytes, or `None` for a flag that is neither 0 nor 1.
    pub fn read(self, raw: &[u8]) -> Option<Scalar> {
        let mut wide = [0; 8];
        wide[..self.bytes()].copy_from_slice(raw);
        let bits = u64::from_le_bytes(wide);
        Some(match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => Scalar::Unsigned(bits),
            Self::I8 => Scalar::Signed(i64::from(bits as i8)),
            Self::I16 => Scalar::Signed(i64::from(bits as i16)),
            Self::I32 => Scalar::Signed(i64::from(bits as i32)),
            Self::I64 => Scalar::Signed(bits as i64),
            Self::F32 => Scalar::F32(f32::from_bits(bits as u32)),
            Self::F64 => Scalar::F64(f64::from_bits(bits)),
            Self::Bool if bits < 2 => Scalar::Flag(bits == 1),
            Self::Bool => return None,
        })
    }
}

impl Scalar {
    /// An integer that `i64` holds.
    pub fn integer(self) -> Option<i64> {
        match self {
            Self::Unsigned(value) => value.try_into().ok(),
            Self::Signed(value) => Some(value),
            _ => None,
        }
    }

    /// The value as a number; a flag is none.
    pub fn number(self) -> Option<f64> {
        match self {
            Self::Unsigned(value) => Some(value as f64),
            Self::Signed(value) => Some(value as f64),
            Self::F32(value) => Some(f64::from(value)),
            Self::F64(value) => Some(value),
            Self::Flag(_) => None,
        }
    }
}

impl Texts {
    /// Appends one.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    /// Each of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |&end| &self.text[std::mem::replace(&mut start, end)..end])
    }
}

impl Scalars {
    /// Elements.
    pub fn len(&self) -> usize {
        self.raw.len() / self.kind.bytes()
    }

    /// Each of them; `None` stands for a flag that is neither 0 nor 1.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Option<Scalar>> {
        self.raw.chunks_exact(self.kind.bytes()).map(|raw| self.kind.read(raw))
    }
}

impl Array {
    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.ends.len(),
            Self::Scalars(scalars) => scalars.len(),
            Self::Nested(arrays) => arrays.len(),
        }
    }
}

/// In few words: arrays can be megabytes.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scalar(Scalar::Unsigned(value)) => write!(f, "{value}"),
            Self::Scalar(Scalar::Signed(value)) => write!(f, "{value}"),
            Self::Scalar(Scalar::F32(value)) => write!(f, "{value}"),
            Self::Scalar(Scalar::F64(value)) => write!(f, "{value}"),
            Self::Scalar(Scalar::Flag(value)) => write!(f, "{value}"),
            Self::Text(text) => write!(f, "{:?}", text.chars().take(40).collect::<String>()),
            Self::Array(array) => write!(f, "a list of {}", array.len()),
        }
    }
}

impl Metadata {
    /// Adds an entry. `false`: the key is there already, and keeps its value.
    pub fn insert(&mut self, key: String, value: Value) -> bool {
        match self.entries.entry(key) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(value);
                true
            }
            std::collections::btree_map::Entry::Occupied(_) => false,
        }
    }

    /// All entries, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// One value.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }

    /// A count up to 2³² − 1.
    pub fn count(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.get(key, "a count below 2^32", |value| match value {
            Value::Scalar(scalar) => u32::try_from(scalar.integer()?).ok().map(|v| v as usize),
            _ => None,
        })
    }

    /// A finite number with a point.
    pub fn float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.get(key, "a finite number", |value| match value {
            Value::Scalar(scalar @ (Scalar::F32(_) | Scalar::F64(_))) => {
                scalar.number().filter(|number| number.is_finite())
            }
            _ => None,
        })
    }

    /// A flag.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.get(key, "a flag", |value| match value {
            Value::Scalar(Scalar::Flag(value)) => Some(*value),
            _ => None,
        })
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.get(key, "a text", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A list of texts. An empty list is one whatever its elements would be.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, ModelError> {
        self.get(key, "a list of texts", |value| match value {
            Value::Array(Array::Texts(texts)) => Some(texts.iter().collect()),
            Value::Array(array) if array.len() == 0 => Some(Vec::new()),
            _ => None,
        })
    }

    /// A list of integers.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, ModelError> {
        self.get(key, "a list of integers", |value| match value {
            Value::Array(Array::Scalars(scalars)) => {
                scalars.iter().map(|scalar| scalar?.integer()).collect()
            }
            Value::Array(array) if array.len() == 0 => Some(Vec::new()),
            _ => None,
        })
    }

    /// A list of finite numbers with a point, in f32.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, ModelError> {
        let float = |scalar| match scalar {
            Scalar::F32(value) => Some(value),
            Scalar::F64(value) => Some(value as f32),
            _ => None,
        };
        self.get(key, "a list of finite numbers", |value| match value {
            Value::Array(Array::Scalars(scalars)) => {
                scalars.iter().map(|scalar| float(scalar?).filter(|v| v.is_finite())).collect()
            }
            Value::Array(array) if array.len() == 0 => Some(Vec::new()),
            _ => None,
        })
    }

    fn get<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.entries.get(key) else { return Ok(None) };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(ModelError::BadValue {
                key: key.to_owned(),
                expected,
                found: value.to_string(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_of_every_width_keep_their_value() {
        for (kind, raw, value) in [
            (ScalarKind::U8, &[0xff][..], Scalar::Unsigned(255)),
            (ScalarKind::I8, &[0xff], Scalar::Signed(-1)),
            (ScalarKind::U16, &[1, 2], Scalar::Unsigned(513)),
            (ScalarKind::I16, &[0, 0x80], Scalar::Signed(-32768)),
            (ScalarKind::U32, &[0xff; 4], Scalar::Unsigned(u64::from(u32::MAX))),
            (ScalarKind::I32, &[0xfe, 0xff, 0xff, 0xff], Scalar::Signed(-2)),
            (ScalarKind::F32, &1.5f32.to_le_bytes(), Scalar::F32(1.5)),
            (ScalarKind::Bool, &[1], Scalar::Flag(true)),
            (ScalarKind::U64, &[0xff; 8], Scalar::Unsigned(u64::MAX)),
            (ScalarKind::I64, &[0xff; 8], Scalar::Signed(-1)),
            (ScalarKind::F64, &(-2.5f64).to_le_bytes(), Scalar::F64(-2.5)),
        ] {
            assert_eq!(kind.read(raw), Some(value));
        }
        assert_eq!(ScalarKind::Bool.read(&[2]), None);
        assert_eq!(Scalar::Unsigned(u64::MAX).integer(), None);
    }

    #[test]
    fn texts_come_back_in_order() {
        let mut texts = Texts::default();
        for text in ["a", "", "東京", "b"] {
            texts.push(text);
        }
        assert_eq!(texts.iter().collect::<Vec<_>>(), ["a", "", "東京", "b"]);
    }
}
