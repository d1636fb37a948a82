//! The paged cache as the model's KV backend.

use super::{error::EngineError, kv::KvBackend};
use crate::cache::{CacheRef, HostMemory, KvMember, StepOf};

impl<C: CacheRef<Memory = HostMemory>, S: KvMember> KvBackend for StepOf<C, S> {
    fn attend(
        &mut self,
        layer: usize,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        out: &mut [f32],
    ) -> Result<(), EngineError> {
        Ok(StepOf::attend(self, layer, q, k, v, out)?)
    }
}
