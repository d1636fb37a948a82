//! `headwise eval`: quality by fixed protocols.

mod continuation;
mod perplexity;

use clap::{Args, Subcommand};

use super::{error::CliError, given::Given};

/// Measure quality.
#[derive(Args)]
pub(super) struct Eval {
    #[command(subcommand)]
    protocol: Protocol,
}

#[derive(Subcommand)]
enum Protocol {
    /// Perplexity of a text in windows, without eviction.
    Perplexity(perplexity::Perplexity),
    /// What a compressed context still predicts, against the full cache.
    Continuation(continuation::Continuation),
}

impl Eval {
    pub fn run(self, given: &Given) -> Result<(), CliError> {
        match self.protocol {
            Protocol::Perplexity(perplexity) => perplexity.run(),
            Protocol::Continuation(continuation) => continuation.run(given),
        }
    }
}
