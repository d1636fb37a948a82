//! The header of one GGUF file, read in one pass.
//!
//! The layout is that of <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. The reader
//! cannot seek, so each byte is read once however many strings the header has; every length is held
//! against what is left of the file before it sizes an allocation.

use std::{
    collections::HashSet,
    io::{self, BufReader, Read},
};

use super::{
    layout::TensorEntry,
    metadata::{Array, Metadata, Scalar, ScalarKind, Scalars, Texts, Value},
};

/// What a header holds.
#[derive(Debug)]
pub(super) struct Header {
    pub metadata: Metadata,
    /// In the order of the file.
    pub tensors: Vec<TensorEntry>,
    /// Where the tensors' bytes begin.
    pub data_offset: u64,
    /// What tensors' offsets are multiples of.
    pub alignment: u64,
}

/// What the reading found.
#[derive(Debug)]
pub(super) enum HeaderError {
    Io(io::Error),
    NotGguf,
    Truncated,
    Malformed(String),
    /// Two entries of one name: the kind of entry, and the name.
    Twice(&'static str, String),
    /// A tensor, and the name of a type that cannot be decoded.
    TensorType(String, String),
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
const ALIGNMENT_KEY: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u64 = 32;
/// More than any vocabulary with its scores, types and merges comes to.
const MAX_ARRAY_ELEMENTS: u64 = 1 << 23;
/// Keys are dotted words; the specification allows 65,535 bytes. Names of tensors have 64.
const MAX_NAME_BYTES: u64 = u16::MAX as u64;
/// Texts are chat templates and, at the most, whole `tokenizer.json` files.
const MAX_TEXT_BYTES: u64 = 1 << 28;
const MAX_ARRAY_DEPTH: usize = 4;
const MAX_DIMENSIONS: u32 = 4;
/// Bytes asked of the file at a time.
const BUFFER: usize = 256 << 10;

const TYPE_U32: u32 = 4;
const TYPE_STRING: u32 = 8;
const TYPE_ARRAY: u32 = 9;

/// Reads a header from the beginning of `source`, a file of `bytes` bytes.
pub(super) fn read(source: impl Read, bytes: u64) -> Result<Header, HeaderError> {
    let reader = BufReader::with_capacity(BUFFER, source);
    let mut walk = Walk { reader, position: 0, bytes, wide: true, elements: 0 };
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
    let tensors = walk.length()?;
    let entries = walk.length()?;
    let mut alignment = DEFAULT_ALIGNMENT;
    let mut metadata = Metadata::default();
    for _ in 0..entries {
        let (key, value) = walk.entry()?;
        if let (ALIGNMENT_KEY, Value::Scalar(Scalar::Unsigned(value))) = (key.as_str(), &value) {
            alignment = *value;
        }
        if !metadata.insert(key.clone(), value) {
            return Err(HeaderError::Twice("metadata key", key));
        }
    }
    let tensors = walk.directory(tensors)?;
    let data_offset = walk.position.next_multiple_of(alignment);
    Ok(Header { metadata, tensors, data_offset, alignment })
}

struct Walk<R> {
    reader: BufReader<R>,
    position: u64,
    bytes: u64,
    /// Lengths are 64 bits from version 2 on.
    wide: bool,
    elements: u64,
}

impl<R: Read> Walk<R> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], HeaderError> {
        let mut raw = [0; N];
        self.reader.read_exact(&mut raw)?;
        self.position += N as u64;
        Ok(raw)
    }

    fn u32(&mut self) -> Result<u32, HeaderError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, HeaderError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn length(&mut self) -> Result<u64, HeaderError> {
        if self.wide { self.u64() } else { Ok(self.u32()?.into()) }
    }

    /// The next `count` bytes, into `into`, which loses what it held.
    fn take(&mut self, count: u64, into: &mut Vec<u8>) -> Result<(), HeaderError> {
        if count > self.bytes.saturating_sub(self.position) {
            return Err(HeaderError::Truncated);
        }
        into.clear();
        into.resize(count as usize, 0);
        self.reader.read_exact(into)?;
        self.position += count;
        Ok(())
    }

    /// A text with its length before it. Some writers count a C string's zeros; some vocabularies
    /// are not UTF-8.
    fn text(&mut self, most: u64, raw: &mut Vec<u8>) -> Result<(), HeaderError> {
        let bytes = self.length()?;
        if bytes > most {
            return Err(HeaderError::Malformed(format!(
                "a text of {bytes} bytes at byte {}, more than {most}",
                self.position
            )));
        }
        self.take(bytes, raw)?;
        while raw.last() == Some(&0) {
            raw.pop();
        }
        Ok(())
    }

    fn name(&mut self) -> Result<String, HeaderError> {
        let mut raw = Vec::new();
        self.text(MAX_NAME_BYTES, &mut raw)?;
        Ok(String::from_utf8_lossy(&raw).into_owned())
    }

    fn entry(&mut self) -> Result<(String, Value), HeaderError> {
        let key = self.name()?;
        let kind = self.u32()?;
        let malformed = |reason: String| HeaderError::Malformed(format!("{key} {reason}"));
        if key == ALIGNMENT_KEY && kind != TYPE_U32 {
            return Err(malformed(format!("has type {kind}, not u32")));
        }
        let value = match kind {
            TYPE_STRING => {
                let mut raw = Vec::new();
                self.text(MAX_TEXT_BYTES, &mut raw)?;
                Value::Text(String::from_utf8_lossy(&raw).into_owned())
            }
            TYPE_ARRAY => Value::Array(self.list(&key, 0)?),
            _ => {
                let unknown = || malformed(format!("has the unknown value type {kind}"));
                let kind = ScalarKind::of(kind).ok_or_else(unknown)?;
                let mut raw = Vec::new();
                self.take(kind.bytes() as u64, &mut raw)?;
                let flag = || malformed(format!("is the flag {}, neither 0 nor 1", raw[0]));
                Value::Scalar(kind.read(&raw).ok_or_else(flag)?)
            }
        };
        if let (ALIGNMENT_KEY, Value::Scalar(Scalar::Unsigned(value))) = (key.as_str(), &value)
            && !(value.is_power_of_two() && *value >= 8)
        {
            return Err(malformed(format!("is {value}, not a power of two from 8")));
        }
        Ok((key, value))
    }

    fn list(&mut self, key: &str, depth: usize) -> Result<Array, HeaderError> {
        let malformed = |reason: String| HeaderError::Malformed(format!("{key} {reason}"));
        if depth == MAX_ARRAY_DEPTH {
            return Err(malformed(format!("nests arrays deeper than {MAX_ARRAY_DEPTH}")));
        }
        let kind = self.u32()?;
        let count = self.length()?;
        self.elements = self.elements.saturating_add(count);
        if self.elements > MAX_ARRAY_ELEMENTS {
            return Err(malformed(format!(
                "makes arrays of {} elements in all, more than {MAX_ARRAY_ELEMENTS}",
                self.elements
            )));
        }
        match (kind, ScalarKind::of(kind)) {
            (_, Some(kind)) => {
                let mut raw = Vec::new();
                self.take(count * kind.bytes() as u64, &mut raw)?;
                Ok(Array::Scalars(Scalars { kind, raw }))
            }
            (TYPE_STRING, _) => {
                let (mut texts, mut raw) = (Texts::default(), Vec::new());
                for _ in 0..count {
                    self.text(MAX_TEXT_BYTES, &mut raw)?;
                    texts.push(&String::from_utf8_lossy(&raw));
                }
                Ok(Array::Texts(texts))
            }
            (TYPE_ARRAY, _) => {
                let lists = (0..count).map(|_| self.list(key, depth + 1));
                Ok(Array::Nested(lists.collect::<Result<_, _>>()?))
            }
            _ => Err(malformed(format!("has elements of the unknown value type {kind}"))),
        }
    }

    /// What follows the metadata: names, shapes, types and places of `count` tensors.
    fn directory(&mut self, count: u64) -> Result<Vec<TensorEntry>, HeaderError> {
        let mut tensors = Vec::new();
        let mut names = HashSet::new();
        for _ in 0..count {
            let name = self.name()?;
            if !names.insert(name.clone()) {
                return Err(HeaderError::Twice("tensor", name));
            }
            let dimensions = self.u32()?;
            if dimensions > MAX_DIMENSIONS {
                return Err(HeaderError::Malformed(format!(
                    "tensor {name} has {dimensions} dimensions, more than {MAX_DIMENSIONS}"
                )));
            }
            let mut shape =
                (0..dimensions).map(|_| self.length()).collect::<Result<Vec<_>, _>>()?;
            // The file has the shortest stride first.
            shape.reverse();
            let dtype = super::dtype::dtype(self.u32()?);
            let dtype = dtype.map_err(|kind| HeaderError::TensorType(name.clone(), kind))?;
            let offset = self.u64()?;
            let entry = TensorEntry::new(name, dtype, &shape, offset);
            tensors.push(entry.map_err(HeaderError::Malformed)?);
        }
        Ok(tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header as a writer makes it.
    #[derive(Default)]
    struct Writer {
        entries: u64,
        bytes: Vec<u8>,
    }

    impl Writer {
        fn text(&mut self, text: &[u8]) -> &mut Self {
            self.bytes.extend((text.len() as u64).to_le_bytes());
            self.bytes.extend(text);
            self
        }

        fn entry(&mut self, key: &str, kind: u32, value: &[u8]) -> &mut Self {
            self.entries += 1;
            self.text(key.as_bytes());
            self.bytes.extend(kind.to_le_bytes());
            self.bytes.extend(value);
            self
        }

        fn texts(&mut self, key: &str, texts: impl ExactSizeIterator<Item = String>) {
            self.entry(key, TYPE_ARRAY, &TYPE_STRING.to_le_bytes());
            self.bytes.extend((texts.len() as u64).to_le_bytes());
            texts.for_each(|text| {
                self.text(text.as_bytes());
            });
        }

        fn file(&self) -> Vec<u8> {
            let head = [b"GGUF".as_slice(), &3u32.to_le_bytes(), &[0; 8]].concat();
            [head, self.entries.to_le_bytes().to_vec(), self.bytes.clone()].concat()
        }
    }

    /// Counts what is asked of a file.
    struct Counting<R> {
        inner: R,
        bytes: usize,
        calls: usize,
    }

    impl<R: Read> Read for Counting<R> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let bytes = self.inner.read(into)?;
            self.bytes += bytes;
            self.calls += 1;
            Ok(bytes)
        }
    }

    /// `read` takes no `Seek`, so that what is counted here is all that it can ask for.
    #[test]
    fn each_byte_is_read_once_however_many_strings_there_are() {
        let mut asked = Vec::new();
        for tokens in [1_000u32, 10_000, 100_000] {
            let mut writer = Writer::default();
            writer.texts("tokenizer.ggml.tokens", (0..tokens).map(|id| format!("token {id}")));
            let header = writer.file();
            // Weights follow, that opening has no business with.
            let file = [header.clone(), vec![0; 8 << 20]].concat();
            let mut source = Counting { inner: &file[..], bytes: 0, calls: 0 };
            let read = read(&mut source, file.len() as u64).unwrap();
            let texts = read.metadata.texts("tokenizer.ggml.tokens").unwrap().unwrap();
            assert_eq!((texts.len(), texts[999]), (tokens as usize, "token 999"));
            assert!(source.bytes <= header.len() + BUFFER, "{} bytes", source.bytes);
            assert!(source.calls <= header.len() / BUFFER + 2, "{} reads", source.calls);
            asked.push(source.bytes);
        }
        assert!(asked[2] < 100 * asked[0].max(BUFFER / 10), "{asked:?}");
    }

    #[test]
    fn a_key_that_stands_twice_is_refused() {
        for (again, value) in [("a.key", 1u32), ("a.key", 2), ("a.key\0\0", 1)] {
            let mut writer = Writer::default();
            writer.entry("a.key", TYPE_U32, &1u32.to_le_bytes());
            writer.entry("another", TYPE_U32, &1u32.to_le_bytes());
            writer.entry(again, TYPE_U32, &value.to_le_bytes());
            let file = writer.file();
            let error = read(&file[..], file.len() as u64).unwrap_err();
            assert!(
                matches!(&error, HeaderError::Twice("metadata key", key) if key == "a.key"),
                "{error:?}"
            );
        }
    }

    #[test]
    fn lengths_beyond_the_file_allocate_nothing() {
        let huge = |length: u64| {
            let mut writer = Writer::default();
            writer.entry("a.text", TYPE_STRING, &length.to_le_bytes());
            let file = writer.file();
            read(&file[..], file.len() as u64).unwrap_err()
        };
        assert!(matches!(huge(u64::MAX), HeaderError::Malformed(_)));
        assert!(matches!(huge(MAX_TEXT_BYTES), HeaderError::Truncated));
        let mut writer = Writer::default();
        let nested = [TYPE_ARRAY, 1, 0].map(u32::to_le_bytes).concat();
        writer.entry("a.list", TYPE_ARRAY, &nested.repeat(MAX_ARRAY_DEPTH + 1));
        let file = writer.file();
        let error = read(&file[..], file.len() as u64).unwrap_err();
        assert!(matches!(error, HeaderError::Malformed(reason) if reason.contains("a.list nests")));
    }
}
