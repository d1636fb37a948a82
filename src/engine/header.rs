//! A first walk over a GGUF header, before candle reads it.
//!
//! candle 0.11 checks most lengths against the file, but it divides by `general.alignment` without
//! looking at it, and it turns every element of an array into a 32-byte value: one wrong length in
//! a large file asks for many times the file in memory. This walk refuses both. It follows the
//! layout of <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::io::{self, Read, Seek, SeekFrom};

/// What the walk found.
#[derive(Debug)]
pub(super) enum HeaderError {
    Io(io::Error),
    NotGguf,
    Truncated,
    Malformed(String),
}

impl From<io::Error> for HeaderError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Io(error),
        }
    }
}

const MAGIC: u32 = u32::from_le_bytes(*b"GGUF");
const ALIGNMENT_KEY: &[u8] = b"general.alignment";
/// More than any vocabulary with its scores, types and merges comes to.
const MAX_ARRAY_ELEMENTS: u64 = 1 << 23;
/// Keys are dotted words; the specification allows 65,535 bytes.
const MAX_KEY_BYTES: u64 = u16::MAX as u64;
const MAX_ARRAY_DEPTH: usize = 4;

const TYPE_STRING: u32 = 8;
const TYPE_ARRAY: u32 = 9;

/// Checks magic, version and metadata up to the tensor directory. `bytes` is the file's length.
pub(super) fn check(reader: &mut (impl Read + Seek), bytes: u64) -> Result<(), HeaderError> {
    let mut walk = Walk { reader, bytes, wide: true, elements: 0 };
    let start = walk.u32().and_then(|magic| Ok((magic, walk.u32()?)));
    let (magic, version) = match start {
        Ok(start) => start,
        Err(HeaderError::Truncated) => return Err(HeaderError::NotGguf),
        Err(error) => return Err(error),
    };
    if magic != MAGIC || !(1..=3).contains(&version) {
        return Err(HeaderError::NotGguf);
    }
    walk.wide = version > 1;
    walk.length()?;
    let entries = walk.length()?;
    for _ in 0..entries {
        walk.entry()?;
    }
    Ok(())
}

struct Walk<'a, R> {
    reader: &'a mut R,
    bytes: u64,
    /// Lengths are 64 bits from version 2 on.
    wide: bool,
    elements: u64,
}

impl<R: Read + Seek> Walk<'_, R> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], HeaderError> {
        let mut raw = [0; N];
        self.reader.read_exact(&mut raw)?;
        Ok(raw)
    }

    fn u32(&mut self) -> Result<u32, HeaderError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn length(&mut self) -> Result<u64, HeaderError> {
        if self.wide { Ok(u64::from_le_bytes(self.array()?)) } else { Ok(self.u32()?.into()) }
    }

    fn skip(&mut self, count: u64) -> Result<(), HeaderError> {
        let position = self.reader.stream_position()?;
        if count > self.bytes.saturating_sub(position) {
            return Err(HeaderError::Truncated);
        }
        self.reader.seek(SeekFrom::Start(position + count))?;
        Ok(())
    }

    fn entry(&mut self) -> Result<(), HeaderError> {
        let key_bytes = self.length()?;
        if key_bytes > MAX_KEY_BYTES {
            return Err(HeaderError::Malformed(format!("a key of {key_bytes} bytes")));
        }
        let mut key = vec![0; key_bytes as usize];
        self.reader.read_exact(&mut key)?;
        // candle drops the zeros that end a string, and may find a key under them that it knows.
        while key.last() == Some(&0) {
            key.pop();
        }
        let kind = self.u32()?;
        if key == ALIGNMENT_KEY { self.alignment(kind) } else { self.value(kind, 0) }
    }

    fn alignment(&mut self, kind: u32) -> Result<(), HeaderError> {
        if kind != 4 {
            return Err(HeaderError::Malformed(format!(
                "general.alignment has type {kind}, not u32"
            )));
        }
        let alignment = self.u32()?;
        if !alignment.is_power_of_two() || alignment < 8 {
            return Err(HeaderError::Malformed(format!(
                "general.alignment is {alignment}, not a power of two from 8"
            )));
        }
        Ok(())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<(), HeaderError> {
        match kind {
            TYPE_STRING => {
                let bytes = self.length()?;
                self.skip(bytes)
            }
            TYPE_ARRAY => {
                if depth == MAX_ARRAY_DEPTH {
                    return Err(HeaderError::Malformed("arrays nested too deep".into()));
                }
                let element = self.u32()?;
                let count = self.length()?;
                self.elements = self.elements.saturating_add(count);
                if self.elements > MAX_ARRAY_ELEMENTS {
                    return Err(HeaderError::Malformed(format!(
                        "arrays of {} elements, more than {MAX_ARRAY_ELEMENTS}",
                        self.elements
                    )));
                }
                match scalar_bytes(element) {
                    Some(size) => self.skip(count * size),
                    None => (0..count).try_for_each(|_| self.value(element, depth + 1)),
                }
            }
            _ => match scalar_bytes(kind) {
                Some(size) => self.skip(size),
                None => Err(HeaderError::Malformed(format!("unknown value type {kind}"))),
            },
        }
    }
}

fn scalar_bytes(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}
