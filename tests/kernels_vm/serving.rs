//! The serving benchmark's decode loop on the driver in host memory, its kernels' real PTX in the
//! interpreter.

use std::slice;

use half::f16;
use headwise::{
    cuda::{
        CudaError,
        cublas::{Gemm, Product},
        driver::Stream,
    },
    format::{PageFormat, SlotFormat},
    measure::serving::{CurveConfig, Tables, curve},
};

use super::whole::{device, ran};
use crate::serving_loop::{SHAPE, decode_loop, evicting_loop};

/// Products by plain loops: device memory is host memory.
struct HostGemm;

impl Gemm for HostGemm {
    unsafe fn multiply(
        &self,
        product: &Product,
        [w, x, y]: [u64; 3],
        stream: &Stream,
    ) -> Result<(), CudaError> {
        stream.synchronize()?;
        let Product { rows, outputs, inputs, stride } = *product;
        // SAFETY: the driver's device memory is host memory, and nothing is queued.
        let (w, x, y) = unsafe {
            (
                slice::from_raw_parts(w as *const f16, outputs * inputs),
                slice::from_raw_parts(x as *const f16, (rows - 1) * stride + inputs),
                slice::from_raw_parts_mut(y as *mut f16, rows * outputs),
            )
        };
        for (row, out) in y.chunks_mut(outputs).enumerate() {
            let x = &x[row * stride..row * stride + inputs];
            for (w, out) in w.chunks(inputs).zip(out) {
                let sum: f32 = w.iter().zip(x).map(|(a, b)| a.to_f32() * b.to_f32()).sum();
                *out = f16::from_f32(sum);
            }
        }
        Ok(())
    }
}

#[test]
fn a_decode_loop_that_scores_and_evicts_is_the_hosts() {
    device(90, |_, _, kernels| {
        for format in [PageFormat::default(), PageFormat { k: SlotFormat::I8, v: SlotFormat::F16 }]
        {
            decode_loop(kernels, format, Tables::PerHead { scores: Some(1) }, [70, 33]);
        }
    });
}

/// Heads that are cut grow in their last part, and their scores come from all parts.
#[test]
fn long_heads_are_cut_and_grow() {
    device(90, |_, _, kernels| {
        let format = PageFormat::default();
        decode_loop(kernels, format, Tables::PerHead { scores: Some(1) }, [1500, 40]);
        decode_loop(kernels, format, Tables::Shared, [700, 40]);
        assert!(ran().contains(&"headwise_merge".to_owned()), "no head was cut");
    });
}

/// However much has grown since the last eviction: heads give up most of some fifty pages.
#[test]
fn a_late_eviction_is_the_hosts() {
    device(90, |_, _, kernels| {
        let scored = Tables::PerHead { scores: Some(1) };
        let format = PageFormat::default();
        evicting_loop(kernels, format, scored, [400, 300], [1.0, 8.0], &[2]);
    });
}

#[test]
fn a_decode_loop_without_scores_is_the_hosts() {
    device(80, |_, _, kernels| {
        for tables in [Tables::PerHead { scores: None }, Tables::Shared] {
            decode_loop(kernels, PageFormat::default(), tables, [70, 33]);
        }
    });
}

#[test]
fn the_whole_curve_runs() {
    device(90, |_, _, kernels| {
        let stream = Stream::new(kernels.context()).unwrap();
        let config = CurveConfig {
            model: SHAPE,
            distinct_layers: 1,
            format: PageFormat::default(),
            page_slots: 16,
            kv_bytes: 160 * 16 * 32 * 4,
            batch_cap: 4,
            prompt: 90,
            steps: 32,
            evict_every: 16,
            score_every: 4,
            rates: vec![1.0, 2.0],
        };
        let mut said = Vec::new();
        let mut progress = |what: &str| said.push(what.to_owned());
        let report = curve(&config, kernels, &HostGemm, &stream, &mut progress).unwrap();
        let names: Vec<&str> = report.runs.iter().map(|run| run.name.as_str()).collect();
        let every = ["per head, scores", "per head, scores 1/4", "per head, scores 1/4"];
        assert_eq!(names, [&["shared table", "per head"][..], &every].concat());
        assert_eq!(said.len(), 6);
        assert!(report.runs.iter().all(|run| run.tokens_per_second > 0.0 && run.steps == 32));
        let evicting = &report.runs[4];
        assert!(evicting.evictions == 2 && evicting.pages_freed > 0, "{evicting:?}");
        assert!(evicting.held_bytes < report.runs[2].held_bytes, "{evicting:?}");
        assert!(report.runs.iter().all(|run| run.peak_bytes <= report.kv_bytes), "{report:?}");
        assert!(report.runs.iter().all(|run| run.saturated == 0), "{report:?}");
        assert_eq!(report.overhead_percent.len(), 3);
        let error = curve(
            &CurveConfig { kv_bytes: 1 << 12, ..config },
            kernels,
            &HostGemm,
            &stream,
            &mut |_| (),
        );
        let text = error.unwrap_err().to_string();
        assert!(text.starts_with("4096 bytes of KV memory hold no sequence at 1x"), "{text}");
    });
}
