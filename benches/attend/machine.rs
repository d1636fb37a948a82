//! What the machine can do: read memory, multiply and add.

use std::{hint::black_box, time::Instant};

use headwise::base::simd::Simd;

/// Reads all bytes with vectors, a few streams per thread: what a reader of memory can get here.
pub fn read(bytes: &[u8], threads: usize) {
    let part = bytes.len().div_ceil(threads).next_multiple_of(4096);
    rayon::scope(|scope| {
        for part in bytes.chunks(part) {
            scope.spawn(move |_| {
                #[cfg(target_arch = "x86_64")]
                if let Some(simd) = headwise::base::simd::Avx512::detect() {
                    return sum(simd, part);
                } else if let Some(simd) = headwise::base::simd::Avx2::detect() {
                    return sum(simd, part);
                }
                #[cfg(target_arch = "aarch64")]
                if let Some(simd) = headwise::base::simd::Neon::detect() {
                    return sum(simd, part);
                }
                sum(headwise::base::simd::Portable, part);
            });
        }
    });
}

fn sum<S: Simd>(simd: S, bytes: &[u8]) {
    let floats: &[f32] = bytemuck::cast_slice(bytes);
    let total = simd.vectorize(
        #[inline(always)]
        || {
            let mut sums = [simd.splat(0.0); 8];
            for block in floats.chunks_exact(8 * S::LANES) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: the block holds eight vectors.
                    let v = unsafe { simd.load(block.as_ptr().add(i * S::LANES)) };
                    *sum = simd.max(v, *sum);
                }
            }
            sums.into_iter().map(|v| simd.reduce_max(v)).fold(0.0, f32::max)
        },
    );
    black_box(total);
}

/// Fused multiply-adds per second of one core, on registers alone.
pub fn peak() -> f64 {
    fn run<S: Simd>(simd: S) -> f64 {
        const STEPS: usize = 4_000_000;
        let start = Instant::now();
        simd.vectorize(
            #[inline(always)]
            || {
                let x = simd.splat(black_box(0.999));
                let mut acc = [simd.splat(1.0); 10];
                for _ in 0..STEPS {
                    for acc in &mut acc {
                        *acc = simd.mul_add(*acc, x, x);
                    }
                }
                let total: f32 = acc.into_iter().map(|v| simd.reduce_add(v)).sum();
                black_box(total);
            },
        );
        (STEPS * 10 * S::LANES) as f64 / start.elapsed().as_secs_f64()
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = headwise::base::simd::Avx512::detect() {
        return run(simd);
    } else if let Some(simd) = headwise::base::simd::Avx2::detect() {
        return run(simd);
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(simd) = headwise::base::simd::Neon::detect() {
        return run(simd);
    }
    run(headwise::base::simd::Portable)
}
