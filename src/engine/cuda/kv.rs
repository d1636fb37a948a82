//! The seam between a device's forward pass and whoever keeps K and V there.

use crate::{
    cuda::{DeviceRows, DeviceRowsMut, driver::Stream},
    engine::error::EngineError,
};

/// Whoever keeps K and V of the running step on the device.
pub trait DeviceKv {
    /// Queues, in `stream`, that `k` and `v` of `layer` are stored and that attention over them is written to
    /// `out`: token j of a span sees what the layer's [shape](crate::base::LayerShape) says of what its
    /// sequence holds up to and including itself.
    ///
    /// Rows are tokens, the step's spans one after another. `q` and `out` have `query_heads · head_dim` columns
    /// and one stride, `k` and `v` have `kv_heads · head_dim` and another one; queries and keys are turned, not
    /// scaled. All four have one type, [`DeviceModel::attention`](super::DeviceModel::attention). What `out`
    /// holds before is undefined. Layers are asked for in order, each once per step. The memory is there for
    /// what is queued in `stream` before this returns, and is used again behind it; work in another stream has to
    /// be waited for in this one.
    ///
    /// # Errors
    /// An error ends the step where it happens.
    fn attend(
        &mut self,
        layer: usize,
        q: DeviceRows<'_>,
        k: DeviceRows<'_>,
        v: DeviceRows<'_>,
        out: DeviceRowsMut<'_>,
        stream: &Stream,
    ) -> Result<(), EngineError>;
}
