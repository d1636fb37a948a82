//! Arguments that commands share.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{Args, ValueEnum};

use super::{error::CliError, given::Given, output::Results, place::Place};
use crate::{
    base::{CacheShape, Channels},
    cache::{CacheConfig, CacheError, Capacity, Compression, FormatMap},
    engine::serve::CompressionPlan,
    evict::{
        Allocation, Budget, Cost, Policy, Scorer,
        scorer::{KvCompress, ScorerKind},
    },
    format::{Overflow, PageFormat, PageLayout},
};

/// Which model.
#[derive(Args)]
pub(super) struct ModelArgs {
    /// A GGUF file (README, Limits), or the name of a model that `headwise fetch model` has: smollm2-135m
    /// (the default, fetched on first use) or gemma3-270m (fetched only by `fetch model --name`). A file
    /// of such a name is ./NAME.
    #[arg(long, value_name = "PATH|NAME")]
    pub model: Option<PathBuf>,
    /// Where the model and its cache are: cpu, cuda or cuda:N (in builds with the feature `cuda`).
    #[arg(long, default_value_t)]
    pub device: Place,
}

/// How pages look.
#[derive(Args)]
pub(super) struct PageArgs {
    /// Page format: f32, f16, bf16, i8, or k=FORMAT,v=FORMAT.
    #[arg(long, default_value = "f16")]
    pub format: PageFormat,
    /// Accept keys and values that the page format cannot hold, stored as the largest that it can (NaN as
    /// zero), and say how many there were. Without it, the first one ends the request; on a device, which
    /// stores all of them so, the command ends with an error once its work is done.
    #[arg(long)]
    pub saturate: bool,
    /// Tokens of one head that a page holds in f16.
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    pub block_tokens: usize,
}

/// Slots of a page at most: what a table counts in.
pub(super) const MOST_BLOCK_TOKENS: usize = 1 << 16;

impl PageArgs {
    /// Refuses pages that no model can have.
    pub fn check(&self) -> Result<(), CliError> {
        above_zero([("--block-tokens", self.block_tokens)])?;
        at_most(MOST_BLOCK_TOKENS, [("--block-tokens", self.block_tokens)])?;
        let narrowest = Channels::ALIGN;
        PageLayout::page_bytes_for(PageFormat::default(), narrowest, self.block_tokens)
            .map_err(CacheError::from)?;
        Ok(())
    }

    /// What to say of keys and values that were saturated: hosts saturate where it is asked for, devices
    /// always.
    pub fn check_saturated(&self, count: u64, results: &Results) -> Result<(), CliError> {
        match count {
            0 => Ok(()),
            _ if self.saturate => {
                let format = self.format;
                results.note(format!(
                    "{count} keys or values that {format} pages cannot hold were saturated\n"
                ));
                Ok(())
            }
            _ => Err(CliError::Saturated { count, format: self.format }),
        }
    }

    pub fn config(&self, shape: &CacheShape, capacity: Capacity) -> CacheConfig {
        let overflow = if self.saturate { Overflow::Saturate } else { Overflow::Refuse };
        let formats = FormatMap::uniform(self.format).on_overflow(overflow);
        let shape = shape.clone();
        CacheConfig { shape, block_tokens: self.block_tokens, formats, rollback: 0, capacity }
    }
}

const NOTHING_EVICTED: &str = "at a ratio of 1, which evicts nothing";

/// What eviction protects and how it chooses.
#[derive(Args, Clone)]
pub(super) struct PolicyArgs {
    /// First tokens that are never evicted.
    #[arg(long, default_value_t = 4)]
    pub sinks: usize,
    /// Newest tokens that are not evicted.
    #[arg(long, default_value_t = 32)]
    pub window: usize,
    /// Slots that every head keeps at least.
    #[arg(long, value_name = "SLOTS", default_value_t = 0)]
    pub floor: usize,
    /// What freeing a page costs.
    #[arg(long, value_enum, default_value_t = CostArg::Sum)]
    pub cost: CostArg,
    /// Newest prompt queries whose attention kv-compress looks at (the paper: 32).
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    pub queries: usize,
    /// Neighbouring positions that kv-compress pools over; odd, 1 does not pool.
    #[arg(long, value_name = "TOKENS", default_value_t = 7)]
    pub kernel: usize,
    /// Of these queries, attention to this many of the newest tokens each sees does not count (the
    /// paper: 0).
    #[arg(long, value_name = "TOKENS", default_value_t = 32)]
    pub skip_newest: usize,
    /// Whether heads compete for pages or all keep as much; the default is what suits the policy:
    /// heads compete under kv-compress, and keep the same elsewhere.
    #[arg(long, value_enum)]
    pub allocation: Option<AllocationArg>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum CostArg {
    /// The highest score among its victims (KV-Compress).
    Max,
    /// The sum of their scores.
    Sum,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum AllocationArg {
    /// The cheapest pages over all layers and heads.
    Global,
    /// The same number of slots in every head.
    PerHead,
}

impl PolicyArgs {
    const ALL: [&str; 8] = [
        "--sinks",
        "--window",
        "--floor",
        "--cost",
        "--queries",
        "--kernel",
        "--skip-newest",
        "--allocation",
    ];

    /// Refuses flags that do nothing under any of these scorers, or at any of these ratios, if there
    /// are some.
    pub fn all_used(
        &self,
        given: &Given,
        scorers: &[ScorerKind],
        ratios: &[f64],
    ) -> Result<(), CliError> {
        let evicts = ratios.is_empty() || ratios.iter().any(|&ratio| ratio != 1.0);
        let attention = scorers.contains(&ScorerKind::KvCompress);
        let compete = scorers.iter().any(|&scorer| self.heads_compete(scorer));
        let protected = self.sinks.saturating_add(self.window);
        let floor = self.floor == 0 || self.floor > protected;
        let of_attention = ["--queries", "--kernel", "--skip-newest"];
        given.all_used(&[
            (&Self::ALL, evicts, NOTHING_EVICTED),
            (&of_attention, attention, "without the policy kv-compress"),
            (&["--cost"], compete, "where every head keeps as much: it needs --allocation global"),
            (&["--floor"], floor, &format!("up to the {protected} slots of --sinks and --window")),
        ])
    }

    fn heads_compete(&self, scorer: ScorerKind) -> bool {
        match self.allocation {
            Some(AllocationArg::Global) => true,
            Some(AllocationArg::PerHead) => false,
            // Only attention means the same in every head; the other scores rank within one.
            None => scorer == ScorerKind::KvCompress,
        }
    }

    /// The policy for a scorer.
    pub fn policy(&self, scorer: ScorerKind) -> Policy {
        Policy {
            sinks: self.sinks,
            window: self.window,
            floor_slots: self.floor,
            cost: match self.cost {
                CostArg::Max => Cost::MaxVictim,
                CostArg::Sum => Cost::SumVictims,
            },
            allocation: match self.heads_compete(scorer) {
                true => Allocation::Global,
                false => Allocation::PerHead,
            },
        }
    }

    /// The scorer with its settings.
    pub fn scorer(&self, kind: ScorerKind) -> Result<Arc<dyn Scorer>, CliError> {
        Ok(match kind {
            ScorerKind::KvCompress => {
                Arc::new(KvCompress::new(self.queries, self.kernel)?.from_afar(self.skip_newest))
            }
            other => Arc::from(other.build()),
        })
    }

    /// A compression by `kind` to `budget`, which is refused here if no sequence could have it.
    pub fn compression(&self, kind: ScorerKind, budget: Budget) -> Result<Compression, CliError> {
        let policy = self.policy(kind);
        budget.check(&policy)?;
        Ok(Compression { scorer: self.scorer(kind)?, policy, budget })
    }
}

/// Refuses a zero where it would leave nothing to do.
pub(super) fn above_zero<const N: usize>(flags: [(&str, usize); N]) -> Result<(), CliError> {
    match flags.iter().find(|(_, value)| *value == 0) {
        Some((flag, _)) => Err(CliError::Usage(format!("{flag} 0 leaves nothing to do"))),
        None => Ok(()),
    }
}

/// Refuses counts that nothing has.
pub(super) fn at_most<const N: usize>(
    most: usize,
    flags: [(&str, usize); N],
) -> Result<(), CliError> {
    match flags.iter().find(|(_, value)| *value > most) {
        Some((flag, value)) => Err(CliError::Usage(format!("{flag} {value} is more than {most}"))),
        None => Ok(()),
    }
}

/// How much is kept, and when the rest goes.
#[derive(Args)]
pub(super) struct CompressArgs {
    /// Keep one page in this many of the uncompressed cache.
    #[arg(long, value_name = "RATIO", conflicts_with = "keep_tokens", allow_hyphen_values = true)]
    pub compress: Option<f64>,
    /// Keep this many tokens per head on average.
    #[arg(long, value_name = "TOKENS")]
    pub keep_tokens: Option<usize>,
    /// Which slots matter: kv-compress, keydiff, key-norm, sinks-window or random.
    #[arg(long, default_value = "kv-compress")]
    pub policy: ScorerKind,
    /// When the prompt is evicted.
    #[arg(long, value_enum, default_value_t = EvictArg::BetweenChunks)]
    pub evict: EvictArg,
    /// Evict every this many generated tokens.
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    pub every: usize,
    #[command(flatten)]
    pub protect: PolicyArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum EvictArg {
    /// After each prefill chunk: the whole prompt never has to fit.
    BetweenChunks,
    /// Once, when all of it is cached.
    AfterPrefill,
}

impl CompressArgs {
    /// Flags that say how, and do nothing where nothing is evicted.
    const HOW: [&str; 11] = [
        "--policy",
        "--evict",
        "--every",
        "--sinks",
        "--window",
        "--floor",
        "--cost",
        "--queries",
        "--kernel",
        "--skip-newest",
        "--allocation",
    ];

    /// The plan, if compression is asked for.
    pub fn plan(&self, given: &Given) -> Result<Option<CompressionPlan>, CliError> {
        let asked = self.compress.is_some() || self.keep_tokens.is_some();
        given.all_used(&[
            (&Self::HOW, asked, "without --compress or --keep-tokens"),
            (&Self::HOW, self.compress != Some(1.0), NOTHING_EVICTED),
        ])?;
        self.protect.all_used(given, &[self.policy], self.compress.as_slice())?;
        let budget = match (self.compress, self.keep_tokens) {
            (Some(ratio), _) => Budget::Ratio(ratio),
            (None, Some(tokens)) => Budget::TokensPerHead(tokens),
            (None, None) => return Ok(None),
        };
        if self.every == 0 {
            return Err(CliError::Usage("--every 0 would evict after no token".into()));
        }
        Ok(Some(CompressionPlan {
            compression: self.protect.compression(self.policy, budget)?,
            between_chunks: self.evict == EvictArg::BetweenChunks,
            every: Some(self.every),
        }))
    }
}

/// Where the result goes beside the screen.
#[derive(Args)]
pub(super) struct JsonArgs {
    /// Write the result as JSON to this file; `-` is standard output, and text goes to standard error.
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
}

impl JsonArgs {
    /// The path, if one was given.
    pub fn path(&self) -> Option<&Path> {
        self.json.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saturated_values_are_an_error_unless_they_are_accepted() {
        let results = Results::to(None, None, &[]).unwrap();
        let pages =
            |saturate| PageArgs { format: PageFormat::default(), saturate, block_tokens: 16 };
        assert!(pages(false).check_saturated(0, &results).is_ok());
        assert!(pages(true).check_saturated(3, &results).is_ok());
        let error = pages(false).check_saturated(3, &results).unwrap_err().to_string();
        let text = "3 keys or values were more than f16 pages hold, and the results are of saturated \
                    ones; --saturate accepts that";
        assert_eq!(error, text);
    }
}
