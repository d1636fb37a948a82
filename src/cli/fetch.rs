//! `headwise fetch`: artefacts into the cache folder.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{
    args::JsonArgs, error::CliError, output::Results, progress::fetching, setup::artifact_inputs,
};
use crate::fetch::{Artifact, MODEL, NVRTC};

/// Fetch an artefact into the cache folder.
#[derive(Args)]
pub(super) struct Fetch {
    /// What to fetch.
    #[arg(value_enum)]
    artifact: What,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// SmolLM2-135M-Instruct, the default model (98 MB).
    Model,
    /// NVIDIA's run-time compiler, for the CUDA kernels (Linux x86-64, 114 MB).
    Nvrtc,
}

#[derive(Serialize)]
struct Fetched {
    path: String,
}

impl Fetch {
    pub fn run(self) -> Result<(), CliError> {
        let artifact: &Artifact<'_> = match self.artifact {
            What::Model => &MODEL,
            What::Nvrtc => &NVRTC,
        };
        let inputs = artifact_inputs("the artefact", artifact)?;
        let results = Results::to(self.json.path(), None, &inputs)?;
        let path = match self.artifact {
            What::Model => fetching(crate::fetch::model)?,
            What::Nvrtc => fetching(crate::fetch::nvrtc)?,
        };
        let path = path.display().to_string();
        results.print(format!("{path}\n"))?;
        results.write_json(&Fetched { path })
    }
}
