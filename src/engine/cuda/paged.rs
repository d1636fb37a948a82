//! The paged cache in device memory as the model's KV backend.

use super::kv::DeviceKv;
use crate::{
    cache::{CacheRef, DeviceMemory, KvMember, StepOf},
    cuda::{CudaError, DeviceRows, DeviceRowsMut, driver::Stream},
    engine::error::EngineError,
};

impl<C: CacheRef<Memory = DeviceMemory>, S: KvMember> DeviceKv for StepOf<C, S> {
    /// # Errors
    /// [`CudaError::OtherStream`] unless model and cache queue their work in one stream.
    fn attend(
        &mut self,
        layer: usize,
        q: DeviceRows<'_>,
        k: DeviceRows<'_>,
        v: DeviceRows<'_>,
        out: DeviceRowsMut<'_>,
        stream: &Stream,
    ) -> Result<(), EngineError> {
        if !self.memory().queues_in(stream) {
            return Err(CudaError::OtherStream.into());
        }
        Ok(StepOf::attend(self, layer, q, k, v, out)?)
    }
}
