//! From arguments to a loaded model.

use std::path::{Path, PathBuf};
#[cfg(feature = "cuda")]
use std::sync::Arc;

use super::{args::ModelArgs, error::CliError, output::Input, progress};
#[cfg(feature = "cuda")]
use crate::{
    cuda::{
        Element, KernelCache,
        cublas::CuBlas,
        driver::{Context, Driver, Stream},
        nvrtc::Nvrtc,
    },
    device::Kernels,
    engine::cuda::{DeviceModel, DeviceSetup, OnDevice},
};
use crate::{
    engine::{GgufFile, Model, Tokenizer},
    fetch::{Artifact, CacheDir, MODELS, NamedModel},
};

/// A model with its tokenizer.
pub(super) struct Loaded<R = Model> {
    pub model: R,
    pub tokenizer: Tokenizer,
    pub path: PathBuf,
}

impl<R> Loaded<R> {
    /// Name for tables and reports: the file's name without its ending.
    pub fn name(&self) -> String {
        self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// An artefact's files in the cache folder, there or yet to come, which no result must replace.
pub(super) fn artifact_inputs(
    what: &'static str,
    artifact: &Artifact<'_>,
) -> Result<Vec<Input>, CliError> {
    let cache = CacheDir::from_env()?;
    let paths = artifact.members.iter().map(|member| artifact.member_path(&cache, member));
    Ok(paths.map(|path| Input::fetched(what, &path)).collect())
}

/// The same for a model's file.
pub(super) fn model_inputs(what: &'static str, model: &NamedModel) -> Result<Vec<Input>, CliError> {
    Ok(vec![Input::fetched(what, &model.path(&CacheDir::from_env()?))])
}

impl ModelArgs {
    /// The files that will be read, for the comparison with those that will be written.
    pub fn inputs(&self) -> Result<Vec<Input>, CliError> {
        match (&self.model, self.named()) {
            (Some(path), None) => {
                let paths = GgufFile::paths_by_name(path);
                Ok(paths.iter().map(|path| Input::file("the model of --model", path)).collect())
            }
            (Some(_), Some(model)) => model_inputs("the model of --model", model),
            (None, _) => model_inputs("the default model", &MODELS[0]),
        }
    }

    /// The model that `--model` names, if it names one.
    fn named(&self) -> Option<&'static NamedModel> {
        self.model.as_deref().and_then(Path::to_str).and_then(NamedModel::named)
    }

    /// Loads the model to host memory, fetching the default one when it is missing.
    pub fn load(&self) -> Result<Loaded, CliError> {
        let (file, tokenizer, path) = self.open()?;
        let model = decoding(&file, |decoded| Model::load_with(&file, decoded))?;
        Ok(Loaded { model, tokenizer, path })
    }

    /// Loads the model to the CUDA device of this number, in f16 but for activations that go from layer to
    /// layer.
    #[cfg(feature = "cuda")]
    pub fn load_on(&self, number: usize) -> Result<Loaded<OnDevice>, CliError> {
        // The device and cuBLAS first: without them, nothing needs to be fetched.
        let context = Driver::open().and_then(|driver| Context::new(&driver, number))?;
        let gemm = Box::new(CuBlas::open(&context)?);
        let nvrtc = progress::fetching(Nvrtc::open_or_fetch)?;
        let cache = KernelCache::within(&CacheDir::from_env()?);
        let kernels = Arc::new(Kernels::new(&context, nvrtc, Some(cache)));
        let stream = Arc::new(Stream::new(&context)?);
        let (file, tokenizer, path) = self.open()?;
        let (weights, attention) = (Element::F16, Element::F32);
        let model = decoding(&file, |progress| {
            let setup =
                DeviceSetup { kernels: &kernels, gemm, stream, weights, attention, progress };
            DeviceModel::load(&file, setup)
        })?;
        Ok(Loaded { model: OnDevice::new(model, kernels), tokenizer, path })
    }

    /// The model's file and its vocabulary.
    fn open(&self) -> Result<(GgufFile, Tokenizer, PathBuf), CliError> {
        let found = |model: &NamedModel| {
            let cache = CacheDir::from_env()?;
            progress::fetching(|progress| model.open(&cache, progress))
        };
        let path = match (&self.model, self.named()) {
            (Some(path), None) => path.clone(),
            (Some(_), Some(model)) => found(model)?,
            (None, _) => found(&MODELS[0])?,
        };
        let spinner = progress::spinner(format!("opening {}", path.display()));
        let file = GgufFile::open(&path)?;
        let tokenizer = Tokenizer::from_gguf(&file)?;
        spinner.finish_and_clear();
        Ok((file, tokenizer, path))
    }
}

/// Shows how many tensors are decoded meanwhile.
fn decoding<T, E>(
    file: &GgufFile,
    load: impl FnOnce(&(dyn Fn(usize) + Sync)) -> Result<T, E>,
) -> Result<T, E> {
    let bar = progress::bar("decoding weights", "tensors", file.tensor_names().len());
    let model = load(&|decoded| {
        bar.update(|bar| {
            bar.set_pos(bar.pos().max(decoded as u64));
        })
    })?;
    bar.finish_and_clear();
    Ok(model)
}
