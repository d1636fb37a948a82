//! The small real models, for tests that need one.

use std::{path::PathBuf, sync::OnceLock};

use headwise::fetch::{CacheDir, NamedModel};

use crate::skipped::skipped;

/// Path of SmolLM2-135M-Instruct, fetched where it is missing.
///
/// Where it cannot be had, a test may skip itself (`None`, said aloud), but not on CI: there a test
/// that silently tests nothing is a failure.
pub fn real_model() -> Option<PathBuf> {
    static MODEL: OnceLock<Option<PathBuf>> = OnceLock::new();
    let fetch = || match headwise::fetch::model(&mut |_| {}) {
        Ok(path) => Some(path),
        Err(error) if std::env::var_os("CI").is_some() => panic!("the model is needed: {error}"),
        Err(error) => {
            skipped(format_args!("no model to test with: {error}"));
            None
        }
    };
    MODEL.get_or_init(fetch).clone()
}

/// Path of Gemma 3 270M, where `headwise fetch model --name gemma3-270m` has fetched it: its terms of use
/// are for a person to accept, so no test fetches it.
pub fn gemma() -> Option<PathBuf> {
    let model = NamedModel::named("gemma3-270m").expect("a name");
    match CacheDir::from_env().and_then(|cache| model.open(&cache, &mut |_| {})) {
        Ok(path) => Some(path),
        Err(error) => {
            skipped(format_args!("no Gemma to test with: {error}"));
            None
        }
    }
}
