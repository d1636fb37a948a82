//! From arguments to a loaded model.

use std::path::PathBuf;

use super::{args::ModelArgs, error::CliError, output::Input, progress};
use crate::{
    engine::{GgufFile, Model, Tokenizer},
    fetch::{CacheDir, MODEL},
};

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
    /// The file that will be read, for the comparison with those that will be written.
    pub fn input(&self) -> Result<Input, CliError> {
        Ok(match &self.model {
            Some(path) => Input::file("the model of --model", path),
            None => {
                let cached = MODEL.member_path(&CacheDir::from_env()?, &MODEL.members[0]);
                Input::file("the default model", &cached)
            }
        })
    }

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
