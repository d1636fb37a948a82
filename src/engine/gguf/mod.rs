//! GGUF files: checked metadata and f32 tensors.
//!
//! The header is read here, whole and in one pass; candle decodes what the tensors hold.

mod dtype;
mod header;
mod layout;
pub(in crate::engine) mod metadata;
mod split;

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use candle_core::{Device, Shape, quantized::gguf_file::TensorInfo};

use self::{
    header::{Header, HeaderError},
    layout::{LayoutError, TensorEntry},
    metadata::Metadata,
    split::Split,
};
use super::error::ModelError;

/// An opened GGUF model, in one file or in several: its metadata, and its tensors on demand.
///
/// Opening checks the layout of each file as a whole: every tensor's bytes lie inside it, aligned,
/// and shared with no other tensor. A truncated download is refused before anything is allocated
/// for it.
#[derive(Debug)]
pub struct GgufFile {
    /// The file that was opened, then the other parts of a split model.
    paths: Vec<PathBuf>,
    metadata: Metadata,
    tensors: HashMap<String, Tensor>,
}

/// A tensor of one of the files.
#[derive(Debug)]
struct Tensor {
    /// Which of the paths.
    part: usize,
    /// From the beginning of that file.
    offset: u64,
    entry: TensorEntry,
}

impl GgufFile {
    /// Reads and checks the header of the file at `path`. Of a split model (`…-00001-of-00003.gguf`)
    /// `path` is the first part; the others are found beside it by their names.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref().to_path_buf();
        let first = read(&path)?;
        let split = Split::of(&path, &first.metadata)?;
        let mut file =
            Self { paths: Vec::new(), metadata: Metadata::default(), tensors: HashMap::new() };
        let rest = split.as_ref().map_or(Ok(Vec::new()), |split| split.other_paths(&path))?;
        file.add_tensors(&path, first.tensors, first.data_offset)?;
        file.metadata = first.metadata;
        for path in rest {
            let part = read(&path)?;
            if let Some(split) = &split {
                split.check_part(file.paths.len(), &path, &file.metadata, &part.metadata)?;
            }
            file.add_tensors(&path, part.tensors, part.data_offset)?;
        }
        if let Some(split) = &split {
            split.check_tensors(&file.paths[0], file.tensors.len())?;
        }
        Ok(file)
    }

    fn add_tensors(
        &mut self,
        path: &Path,
        entries: Vec<TensorEntry>,
        data_offset: u64,
    ) -> Result<(), ModelError> {
        let part = self.paths.len();
        self.paths.push(path.to_path_buf());
        for entry in entries {
            let name = entry.name.clone();
            let tensor = Tensor { part, offset: data_offset + entry.offset, entry };
            if self.tensors.insert(name.clone(), tensor).is_some() {
                return Err(ModelError::Twice { path: path.to_path_buf(), what: "tensor", name });
            }
        }
        Ok(())
    }

    /// The files of the model at `path`, as far as names tell: of a split model all its parts, whether
    /// or not they are there. Nothing is read.
    pub fn paths_by_name(path: impl AsRef<Path>) -> Vec<PathBuf> {
        split::parts_by_name(path.as_ref())
    }

    /// The file's path; of a split model, its first part's.
    pub fn path(&self) -> &Path {
        &self.paths[0]
    }

    /// Files that the model is in.
    pub fn parts(&self) -> usize {
        self.paths.len()
    }

    /// Names of all tensors, in no order.
    pub fn tensor_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Dimensions of a tensor, rows first, or `None` when the file has none of that name.
    pub fn tensor_shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| &*tensor.entry.shape)
    }

    /// Decodes a tensor of the given dimensions into f32, row by row.
    ///
    /// Opens the file anew, so that several threads can read at once.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let tensor = self.shaped(name, shape)?;
        self.decode(name, tensor, shape, 0)
    }

    /// Decodes some rows of a matrix of the given dimensions into f32: nothing else of it is read.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`] and [`ModelError::TensorShape`] as [`tensor`](Self::tensor), and for rows
    /// that the matrix does not have.
    pub fn tensor_rows(
        &self,
        name: &str,
        shape: [usize; 2],
        rows: Range<usize>,
    ) -> Result<Vec<f32>, ModelError> {
        let tensor = self.shaped(name, &shape)?;
        let Range { start, end } = rows;
        if start >= end {
            return Ok(Vec::new());
        }
        if end > shape[0] {
            return Err(ModelError::TensorShape {
                tensor: name.to_owned(),
                expected: vec![end, shape[1]],
                found: tensor.entry.shape.clone(),
            });
        }
        // Every row is whole blocks.
        let row_bytes = tensor.entry.bytes / shape[0] as u64;
        self.decode(name, tensor, &[end - start, shape[1]], start as u64 * row_bytes)
    }

    /// A tensor that has the given dimensions.
    fn shaped(&self, name: &str, shape: &[usize]) -> Result<&Tensor, ModelError> {
        let missing = || ModelError::MissingTensor(name.to_owned());
        let tensor = self.tensors.get(name).ok_or_else(missing)?;
        if tensor.entry.shape != shape {
            return Err(ModelError::TensorShape {
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                found: tensor.entry.shape.clone(),
            });
        }
        Ok(tensor)
    }

    /// Decodes values of `shape` that begin `from` bytes behind the tensor's first.
    fn decode(
        &self,
        name: &str,
        tensor: &Tensor,
        shape: &[usize],
        from: u64,
    ) -> Result<Vec<f32>, ModelError> {
        let Tensor { part, offset, entry } = tensor;
        let path = &self.paths[*part];
        let mut file =
            File::open(path).map_err(|source| ModelError::Io { path: path.clone(), source })?;
        let info = TensorInfo {
            ggml_dtype: entry.dtype,
            shape: Shape::from(shape.to_vec()),
            offset: *offset + from,
        };
        info.read(&mut file, 0, &Device::Cpu)
            .and_then(|tensor| tensor.dequantize(&Device::Cpu))
            .and_then(|tensor| tensor.flatten_all()?.to_vec1())
            .map_err(|error| ModelError::TensorData {
                tensor: name.to_owned(),
                reason: first_line(&error),
            })
    }

    /// A count up to 2³² − 1, or `None` when the file has no such key.
    pub fn count(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.metadata.count(key)
    }

    /// A finite number, or `None` when the file has no such key.
    pub fn float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.metadata.float(key)
    }

    /// A flag, or `None` when the file has no such key.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.metadata.flag(key)
    }

    /// A text, or `None` when the file has no such key.
    pub fn text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.metadata.text(key)
    }

    /// A list of texts, or `None` when the file has no such key.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, ModelError> {
        self.metadata.texts(key)
    }

    /// A list of integers, or `None` when the file has no such key.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, ModelError> {
        self.metadata.integers(key)
    }

    /// A list of finite numbers with a point, in f32, or `None` when the file has no such key.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, ModelError> {
        self.metadata.floats(key)
    }

    /// All metadata; of a split model, its first part's.
    pub(in crate::engine) fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

/// Reads one file's header and holds its layout against its length.
fn read(path: &Path) -> Result<Header, ModelError> {
    let path = || path.to_path_buf();
    let io = |source| ModelError::Io { path: path(), source };
    // Before it is opened: opening a pipe waits for a writer.
    let found = fs::metadata(path()).map_err(io)?;
    if found.is_dir() {
        return Err(io(io::ErrorKind::IsADirectory.into()));
    }
    if !found.is_file() {
        return Err(io(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
    }
    let file = File::open(path()).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    let header = header::read(file, bytes).map_err(|error| match error {
        HeaderError::Io(source) => io(source),
        HeaderError::NotGguf => ModelError::NotGguf { path: path() },
        HeaderError::Truncated => ModelError::TruncatedHeader { path: path(), bytes },
        HeaderError::Malformed(reason) => ModelError::MalformedHeader { path: path(), reason },
        HeaderError::Twice(what, name) => ModelError::Twice { path: path(), what, name },
        HeaderError::TensorType(tensor, found) => ModelError::TensorType { tensor, found },
    })?;
    let Header { tensors, data_offset, alignment, .. } = &header;
    layout::check(tensors, *data_offset, *alignment, bytes).map_err(|error| match error {
        LayoutError::Truncated(tensor, end) => {
            ModelError::TruncatedTensor { path: path(), tensor, end, bytes }
        }
        LayoutError::Misplaced(tensor, reason) => {
            ModelError::TensorPlace { path: path(), tensor, reason }
        }
    })?;
    Ok(header)
}

/// candle appends a backtrace to its messages.
fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
