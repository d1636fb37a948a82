//! A model where its weights are, and the memory that its cache lives in.

use super::{
    config::ModelConfig,
    error::EngineError,
    kv::{LogitRows, Span},
    model::Model,
};
use crate::{
    base::CacheShape,
    cache::{CacheConfig, CacheStep, HostMemory, KvCache, Memory},
};

/// What scheduling, generation and evaluation need of a model: the same code runs it wherever it is.
pub trait Runner {
    /// Where the model's K and V are.
    type Memory: Memory;

    /// The model's numbers.
    fn config(&self) -> &ModelConfig;

    /// The shape of the KV cache that the model needs.
    fn shape(&self) -> &CacheShape {
        &self.config().cache
    }

    /// A cache beside the model.
    fn cache(&self, config: &CacheConfig) -> Result<KvCache<Self::Memory>, EngineError>;

    /// Runs the new tokens of every span, whose sequences are those of `step`; returns the logits asked for.
    ///
    /// # Errors
    /// As [`Model::forward`].
    fn run(
        &self,
        spans: &[Span<'_>],
        step: &mut CacheStep<'_, Self::Memory>,
    ) -> Result<LogitRows, EngineError>;
}

impl Runner for Model {
    type Memory = HostMemory;

    fn config(&self) -> &ModelConfig {
        self.config()
    }

    fn cache(&self, config: &CacheConfig) -> Result<KvCache, EngineError> {
        Ok(KvCache::new(config)?)
    }

    fn run(&self, spans: &[Span<'_>], step: &mut CacheStep<'_>) -> Result<LogitRows, EngineError> {
        self.forward(spans, step)
    }
}
