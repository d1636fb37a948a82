//! From arguments to a loaded model and its text.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{args::ModelArgs, error::CliError, progress};
use crate::engine::{GgufFile, Model, Tokenizer};

/// A model with its tokenizer.
pub(super) struct Loaded {
    pub model: Model,
    pub tokenizer: Tokenizer,
    pub path: PathBuf,
}

impl Loaded {
    /// Name for tables and reports: the file's name without its ending.
    pub fn name(&self) -> String {
        self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }
}

impl ModelArgs {
    /// Loads the model, fetching the default one when it is missing.
    pub fn load(&self) -> Result<Loaded, CliError> {
        let path = match &self.model {
            Some(path) => path.clone(),
            None => progress::fetching(crate::fetch::model)?,
        };
        let spinner = progress::spinner(format!("opening {}", path.display()));
        let file = GgufFile::open(&path)?;
        let tokenizer = Tokenizer::from_gguf(&file)?;
        spinner.finish_and_clear();
        let bar = progress::bar("decoding weights", "tensors", file.tensor_names().len());
        let model = Model::load_with(&file, &|decoded| {
            bar.update(|bar| {
                bar.set_pos(bar.pos().max(decoded as u64));
            })
        })?;
        bar.finish_and_clear();
        Ok(Loaded { model, tokenizer, path })
    }
}

/// The text of a file, which must be UTF-8.
pub(super) fn read_text(path: &Path) -> Result<String, CliError> {
    let bytes =
        fs::read(path).map_err(|source| CliError::Read { path: path.to_owned(), source })?;
    String::from_utf8(bytes).map_err(|error| CliError::NotText {
        path: path.to_owned(),
        offset: error.utf8_error().valid_up_to(),
    })
}

/// The first `chars` characters of a text.
pub(super) fn first_chars(text: &str, chars: usize) -> &str {
    text.char_indices().nth(chars).map_or(text, |(end, _)| &text[..end])
}
