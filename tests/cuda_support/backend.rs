//! The kernels as a backend of the suite that all attention backends pass.

use std::sync::Arc;

use headwise::{
    attend::SlotScores,
    cuda::driver::Stream,
    device::{CudaAttention, CudaStore, Kernels},
    format::PageFormat,
    measure::verify::tolerance,
    store::PageStore,
};

use crate::conformance::{Backend, Effort, Results, Stored};

/// [`CudaAttention`] with kernels compiled for a context.
pub struct Device<'a>(pub &'a Arc<Kernels>);

impl Backend for Device<'_> {
    fn attend(&self, stored: &Stored, scores: SlotScores) -> Results {
        let (pages, page_bytes) = (stored.host.pages(), stored.host.page_bytes());
        let stream = Arc::new(Stream::new(self.0.context()).unwrap());
        let mut store = CudaStore::new(stream, pages, page_bytes).unwrap();
        let all: Vec<u32> = (0..pages as u32).collect();
        store.write_pages(&all, stored.host.bytes()).unwrap();
        let attention = CudaAttention::new(Arc::clone(self.0)).unwrap();
        Results::of(&attention, &store, stored, scores)
    }

    fn tolerance(&self, formats: &[PageFormat]) -> f32 {
        tolerance(formats)
    }

    fn effort(&self) -> Effort {
        const SHAPES: &[(usize, usize)] = &[(3, 64)];
        const LONG: &[((usize, usize), usize)] = &[(SHAPES[0], 1100)];
        Effort { decode: SHAPES, prefill: SHAPES, single: SHAPES, long: LONG, seeds: 3 }
    }
}
