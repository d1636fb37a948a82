//! The scorers by name.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{
    Scorer, key_diff::KeyDiff, key_norm::KeyNorm, kv_compress::KvCompress, random::Random,
    sinks_window::SinksWindow,
};
use crate::evict::error::EvictError;

/// The scorers that come with the crate.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum ScorerKind {
    /// [`KvCompress`]
    #[default]
    KvCompress,
    /// [`KeyDiff`]
    #[serde(rename = "keydiff")]
    KeyDiff,
    /// [`KeyNorm`]
    KeyNorm,
    /// [`SinksWindow`]
    SinksWindow,
    /// [`Random`]
    Random,
}

impl ScorerKind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::KvCompress, Self::KeyDiff, Self::KeyNorm, Self::SinksWindow, Self::Random];
    /// Their names, in the same order.
    pub const NAMES: [&'static str; 5] =
        [KvCompress::NAME, KeyDiff::NAME, KeyNorm::NAME, SinksWindow::NAME, Random::NAME];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// The scorer with its defaults.
    pub fn build(self) -> Box<dyn Scorer> {
        match self {
            Self::KvCompress => Box::new(KvCompress::default()),
            Self::KeyDiff => Box::new(KeyDiff),
            Self::KeyNorm => Box::new(KeyNorm),
            Self::SinksWindow => Box::new(SinksWindow),
            Self::Random => Box::new(Random::default()),
        }
    }
}

impl fmt::Display for ScorerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for ScorerKind {
    type Err = EvictError;

    fn from_str(name: &str) -> Result<Self, EvictError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| EvictError::UnknownScorer(name.to_owned()))
    }
}
