//! GGUF files: checked metadata and f32 tensors.

use std::{
    fs::File,
    io::{BufReader, Error, ErrorKind, Seek},
    path::{Path, PathBuf},
};

use candle_core::{
    Device,
    quantized::gguf_file::{Content, Value},
};

use super::{
    error::ModelError,
    header::{self, HeaderError},
};

/// An opened GGUF file: its metadata, and its tensors on demand.
///
/// Opening checks that every tensor's bytes lie inside the file, so a truncated download is refused
/// before anything is allocated for it.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    content: Content,
}

impl GgufFile {
    /// Reads and checks the header of the file at `path`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref().to_path_buf();
        let io = |source| ModelError::Io { path: path.clone(), source };
        // Before it is opened: opening a pipe waits for a writer.
        let found = path.metadata().map_err(io)?;
        if found.is_dir() {
            return Err(io(ErrorKind::IsADirectory.into()));
        }
        if !found.is_file() {
            return Err(io(Error::other("it is not a regular file")));
        }
        let file = File::open(&path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let mut reader = BufReader::with_capacity(1 << 20, file);
        header::check(&mut reader, bytes).map_err(|error| match error {
            HeaderError::Io(source) => io(source),
            HeaderError::NotGguf => ModelError::NotGguf { path: path.clone() },
            HeaderError::Truncated => ModelError::TruncatedHeader { path: path.clone(), bytes },
            HeaderError::Malformed(reason) => {
                ModelError::MalformedHeader { path: path.clone(), reason }
            }
        })?;
        reader.rewind().map_err(io)?;
        let content = Content::read(&mut reader).map_err(|error| {
            if is_eof(&error) {
                ModelError::TruncatedHeader { path: path.clone(), bytes }
            } else {
                ModelError::MalformedHeader { path: path.clone(), reason: first_line(&error) }
            }
        })?;
        let file = Self { path, content };
        file.check_extents(bytes)?;
        Ok(file)
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn check_extents(&self, bytes: u64) -> Result<(), ModelError> {
        for (name, info) in &self.content.tensor_infos {
            let malformed =
                |reason| ModelError::MalformedHeader { path: self.path.clone(), reason };
            let elements = info
                .shape
                .dims()
                .iter()
                .try_fold(1usize, |product, &dim| product.checked_mul(dim))
                .ok_or_else(|| malformed(format!("tensor {name} has too many elements")))?;
            let block = info.ggml_dtype.block_size();
            if !elements.is_multiple_of(block) {
                return Err(malformed(format!(
                    "tensor {name} has {elements} elements, not whole blocks of {block}"
                )));
            }
            let size = (elements / block) as u128 * info.ggml_dtype.type_size() as u128;
            let end = u128::from(self.content.tensor_data_offset) + u128::from(info.offset) + size;
            if end > u128::from(bytes) {
                return Err(ModelError::TruncatedTensor {
                    path: self.path.clone(),
                    tensor: name.clone(),
                    end,
                    bytes,
                });
            }
        }
        Ok(())
    }

    /// Names of all tensors, in no order.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.content.tensor_infos.keys().map(String::as_str)
    }

    /// Dimensions of a tensor, rows first, or `None` when the file has none of that name.
    pub fn tensor_shape(&self, name: &str) -> Option<&[usize]> {
        self.content.tensor_infos.get(name).map(|info| info.shape.dims())
    }

    /// Decodes a tensor of the given dimensions into f32, row by row.
    ///
    /// Opens the file anew, so that several threads can read at once.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let info = self
            .content
            .tensor_infos
            .get(name)
            .ok_or_else(|| ModelError::MissingTensor(name.to_owned()))?;
        if info.shape.dims() != shape {
            return Err(ModelError::TensorShape {
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                found: info.shape.dims().to_vec(),
            });
        }
        let mut file = File::open(&self.path)
            .map_err(|source| ModelError::Io { path: self.path.clone(), source })?;
        info.read(&mut file, self.content.tensor_data_offset, &Device::Cpu)
            .and_then(|tensor| tensor.dequantize(&Device::Cpu))
            .and_then(|tensor| tensor.flatten_all()?.to_vec1())
            .map_err(|error| ModelError::TensorData {
                tensor: name.to_owned(),
                reason: first_line(&error),
            })
    }

    /// A count up to 2³² − 1, or `None` when the file has no such key.
    pub fn count(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let count = self.get(key, "a count below 2^32", |value| match *value {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v),
            Value::U64(v) => v.try_into().ok(),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        })?;
        Ok(count.map(|count: u32| count as usize))
    }

    /// A finite number, or `None` when the file has no such key.
    pub fn float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.get(key, "a finite number", |value| match value {
            Value::F32(v) if v.is_finite() => Some(f64::from(*v)),
            Value::F64(v) if v.is_finite() => Some(*v),
            _ => None,
        })
    }

    /// A flag, or `None` when the file has no such key.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.get(key, "a flag", |value| match value {
            Value::Bool(v) => Some(*v),
            _ => None,
        })
    }

    /// A text, or `None` when the file has no such key.
    pub fn text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.get(key, "a text", |value| match value {
            Value::String(v) => Some(v.as_str()),
            _ => None,
        })
    }

    /// A list of texts, or `None` when the file has no such key.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, ModelError> {
        self.get(key, "a list of texts", |value| match value {
            Value::Array(values) => values
                .iter()
                .map(|value| match value {
                    Value::String(v) => Some(v.as_str()),
                    _ => None,
                })
                .collect(),
            _ => None,
        })
    }

    /// A list of integers, or `None` when the file has no such key.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, ModelError> {
        self.get(key, "a list of integers", |value| match value {
            Value::Array(values) => values
                .iter()
                .map(|value| match value {
                    Value::I32(v) => Some(i64::from(*v)),
                    Value::U32(v) => Some(i64::from(*v)),
                    _ => None,
                })
                .collect(),
            _ => None,
        })
    }

    fn get<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.content.metadata.get(key) else { return Ok(None) };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => {
                Err(ModelError::BadValue { key: key.to_owned(), expected, found: describe(value) })
            }
        }
    }
}

/// A value in few words: arrays can be megabytes.
fn describe(value: &Value) -> String {
    match value {
        Value::Array(values) => format!("a list of {}", values.len()),
        Value::String(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
        other => format!("{other:?}"),
    }
}

fn is_eof(error: &candle_core::Error) -> bool {
    match error {
        candle_core::Error::Io(io) => io.kind() == std::io::ErrorKind::UnexpectedEof,
        candle_core::Error::WithBacktrace { inner, .. } => is_eof(inner),
        candle_core::Error::Context { inner, .. } => is_eof(inner),
        _ => false,
    }
}

/// candle appends a backtrace to its messages.
fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
