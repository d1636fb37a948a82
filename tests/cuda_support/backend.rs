//! The kernels as a backend of the suite that all attention backends pass.

use std::sync::Arc;

use headwise::{
    attend::{AttendError, Attention, Output, SlotScores},
    base::LayerShape,
    cuda::driver::Stream,
    device::{CudaAttention, CudaStore, Kernels},
    format::PageFormat,
    measure::verify::tolerance,
    store::PageStore,
};

use crate::conformance::{Backend, Effort, Results, Stored};

/// [`CudaAttention`] with kernels compiled for a context.
pub struct Device<'a>(pub &'a Arc<Kernels>);

impl Device<'_> {
    fn store(&self, stored: &Stored) -> CudaStore {
        let (pages, page_bytes) = (stored.host.pages(), stored.host.page_bytes());
        let stream = Arc::new(Stream::new(self.0.context()).unwrap());
        let mut store = CudaStore::new(stream, pages, page_bytes).unwrap();
        let all: Vec<u32> = (0..pages as u32).collect();
        store.write_pages(&all, stored.host.bytes()).unwrap();
        store
    }
}

impl Backend for Device<'_> {
    fn attend(&self, stored: &Stored, scores: SlotScores) -> Results {
        let store = self.store(stored);
        let attention = CudaAttention::new(Arc::clone(self.0)).unwrap();
        Results::of(&attention, &store, stored, scores)
    }

    fn refuses(&self, layer: &LayerShape) -> bool {
        layer.channels().alike().is_none()
    }

    fn assert_refuses(&self, stored: &Stored, what: &str) {
        let tokens: usize = stored.tokens.iter().sum();
        let mut out = vec![7.0; tokens * stored.layer.out_row()];
        let mut lse = vec![7.0; tokens * stored.layer.query_heads()];
        let attention = CudaAttention::new(Arc::clone(self.0)).unwrap();
        let store = self.store(stored);
        let refused = stored.with_batch(|batch| {
            attention.attend(&store, batch, Output { out: &mut out, lse: &mut lse, scores: None })
        });
        assert!(matches!(refused, Err(AttendError::Unsupported(_))), "{what}: {refused:?}");
        assert!(out.iter().chain(&lse).all(|&value| value == 7.0), "{what}: output is touched");
    }

    fn tolerance(&self, layer: &LayerShape, formats: &[PageFormat]) -> f32 {
        // Prefill rounds queries, and so each logit in proportion to its size. Over the few slots of a window
        // little of that averages out; where scores are scaled up there is as much more of it.
        let sharp = layer.window().is_some() || layer.softcap().is_some();
        let steep = layer.scale() * (layer.k_dim() as f32).sqrt();
        tolerance(formats) * (steep / 2.0).max(if sharp { 2.0 } else { 1.0 })
    }

    fn effort(&self) -> Effort {
        const SHAPES: &[(usize, usize)] = &[(3, 64)];
        const LONG: &[((usize, usize), usize)] = &[(SHAPES[0], 1100)];
        Effort { decode: SHAPES, prefill: SHAPES, single: SHAPES, long: LONG, seeds: 3 }
    }
}
