//! `headwise fetch`: artefacts into the cache folder.

use clap::{Args, ValueEnum, builder::PossibleValuesParser};
use serde::Serialize;

use super::{
    args::JsonArgs,
    error::CliError,
    output::Results,
    progress::fetching,
    setup::{artifact_inputs, model_inputs},
};
use crate::fetch::{CacheDir, MODELS, NVRTC, NamedModel};

/// Fetch an artefact into the cache folder.
#[derive(Args)]
pub(super) struct Fetch {
    /// What to fetch.
    #[arg(value_enum)]
    artifact: What,
    /// Which model: smollm2-135m, the default (SmolLM2-135M-Instruct, Apache-2.0, 98 MB), or gemma3-270m
    /// (Gemma 3 270M, under the Gemma Terms of Use, 253 MB).
    #[arg(
        long,
        value_name = "NAME",
        hide_possible_values = true,
        value_parser = PossibleValuesParser::new(MODELS.map(|model| model.name)),
    )]
    name: Option<String>,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// A model.
    Model,
    /// NVIDIA's run-time compiler, for the CUDA kernels (Linux x86-64, 114 MB).
    Nvrtc,
}

#[derive(Serialize)]
struct Fetched {
    path: String,
    /// Where the model has terms of use.
    #[serde(skip_serializing_if = "Option::is_none")]
    terms: Option<&'static str>,
}

impl Fetch {
    pub fn run(self) -> Result<(), CliError> {
        if self.artifact == What::Nvrtc && self.name.is_some() {
            return Err(CliError::Usage("--name does nothing beside nvrtc".into()));
        }
        let model = self.name.as_deref().and_then(NamedModel::named).unwrap_or(&MODELS[0]);
        let model = (self.artifact == What::Model).then_some(model);
        let inputs = match model {
            Some(model) => model_inputs("the artefact", model)?,
            None => artifact_inputs("the artefact", &NVRTC)?,
        };
        let results = Results::to(self.json.path(), None, &inputs)?;
        let terms = model.and_then(|model| model.terms);
        if let Some(terms) = terms {
            // Before anything is fetched.
            results.note(format!("{terms}\n"));
        }
        let cache = CacheDir::from_env()?;
        let path = match model {
            Some(model) => fetching(|progress| model.fetch(&cache, progress))?,
            None => fetching(|progress| NVRTC.ensure(&cache, progress))?,
        };
        let path = path.display().to_string();
        results.print(format!("{path}\n"))?;
        results.write_json(&Fetched { path, terms })
    }
}
