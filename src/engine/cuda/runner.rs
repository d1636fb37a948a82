//! A model on a device and its cache there.

use std::sync::Arc;

use parking_lot::Mutex;

use super::model::DeviceModel;
use crate::{
    cache::{CacheConfig, CacheStep, DeviceMemory, KvCache},
    cuda::driver::Stream,
    device::Kernels,
    engine::{
        config::ModelConfig,
        error::EngineError,
        kv::{LogitRows, Span},
        runner::Runner,
    },
};

/// A model on a device, for the same scheduler and protocols as one on the host.
pub struct OnDevice {
    model: Mutex<DeviceModel>,
    config: ModelConfig,
    stream: Arc<Stream>,
    kernels: Arc<Kernels>,
}

impl OnDevice {
    /// `model` with the kernels that it was made with.
    pub fn new(model: DeviceModel, kernels: Arc<Kernels>) -> Self {
        let (config, stream) = (model.config().clone(), Arc::clone(model.stream()));
        Self { model: Mutex::new(model), config, stream, kernels }
    }
}

impl Runner for OnDevice {
    type Memory = DeviceMemory;

    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn cache(&self, config: &CacheConfig) -> Result<KvCache<DeviceMemory>, EngineError> {
        let (kernels, stream) = (Arc::clone(&self.kernels), Arc::clone(&self.stream));
        Ok(KvCache::on_device(config, kernels, stream)?)
    }

    fn run(
        &self,
        spans: &[Span<'_>],
        step: &mut CacheStep<'_, DeviceMemory>,
    ) -> Result<LogitRows, EngineError> {
        self.model.lock().forward(spans, step)
    }
}
