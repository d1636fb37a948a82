//! Arguments that commands share.

use std::{path::PathBuf, sync::Arc};

use clap::{Args, ValueEnum};

use super::error::CliError;
use crate::{
    base::CacheShape,
    cache::{CacheConfig, Capacity, Compression, FormatMap},
    engine::serve::CompressionPlan,
    evict::{
        Allocation, Budget, Cost, Policy, Scorer,
        scorer::{KvCompress, ScorerKind},
    },
    format::PageFormat,
};

/// Which model.
#[derive(Args)]
pub(super) struct ModelArgs {
    /// A Llama-architecture GGUF file with byte-level BPE (README, Limits); without it
    /// SmolLM2-135M-Instruct, fetched on first use.
    #[arg(long, value_name = "PATH")]
    pub model: Option<PathBuf>,
}

/// How pages look.
#[derive(Args)]
pub(super) struct PageArgs {
    /// Page format: f32, f16, bf16, i8, or k=FORMAT,v=FORMAT.
    #[arg(long, default_value = "f16")]
    pub format: PageFormat,
    /// Tokens of one head that a page holds in f16.
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    pub block_tokens: usize,
}

impl PageArgs {
    pub fn config(&self, shape: CacheShape, capacity: Capacity) -> CacheConfig {
        let formats = FormatMap::uniform(self.format);
        CacheConfig { shape, block_tokens: self.block_tokens, formats, capacity }
    }
}

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
    /// The policy for a scorer.
    pub fn policy(&self, scorer: ScorerKind) -> Policy {
        let compete = match self.allocation {
            Some(AllocationArg::Global) => true,
            Some(AllocationArg::PerHead) => false,
            // Only attention means the same in every head; the other scores rank within one.
            None => scorer == ScorerKind::KvCompress,
        };
        Policy {
            sinks: self.sinks,
            window: self.window,
            floor_slots: self.floor,
            cost: match self.cost {
                CostArg::Max => Cost::MaxVictim,
                CostArg::Sum => Cost::SumVictims,
            },
            allocation: if compete { Allocation::Global } else { Allocation::PerHead },
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
        // No head and no token: only what the budget itself says is looked at.
        budget.target_pages(&[], 0, &policy)?;
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

/// How much is kept, and when the rest goes.
#[derive(Args)]
pub(super) struct CompressArgs {
    /// Keep one page in this many of the uncompressed cache.
    #[arg(long, value_name = "RATIO", conflicts_with = "keep_tokens")]
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
    /// The plan, if compression is asked for.
    pub fn plan(&self) -> Result<Option<CompressionPlan>, CliError> {
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
    /// Write the result as JSON to this file.
    #[arg(long, value_name = "PATH")]
    pub json: Option<PathBuf>,
}
