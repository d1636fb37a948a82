//! What the demo found.

use serde::Serialize;

use super::{rates::Rates, serving::Serving};

/// Everything that the page and the JSON show.
#[derive(Serialize)]
pub(super) struct Outcome {
    pub model: String,
    pub format: String,
    pub rates: Rates,
    pub serving: Serving,
    pub seconds: f64,
}
