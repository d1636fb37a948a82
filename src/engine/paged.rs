//! The paged cache as the model's KV backend.

use super::{error::EngineError, kv::KvBackend};
use crate::cache::CacheStep;

impl KvBackend for CacheStep<'_> {
    fn attend(
        &mut self,
        layer: usize,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        out: &mut [f32],
    ) -> Result<(), EngineError> {
        Ok(CacheStep::attend(self, layer, q, k, v, out)?)
    }
}
