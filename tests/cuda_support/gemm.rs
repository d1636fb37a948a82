//! Products by plain loops, on the driver whose device memory is host memory.

use std::slice;

use half::{bf16, f16};
use headwise::cuda::{
    CudaError, Element,
    cublas::{Gemm, Product},
    driver::Stream,
};

/// Multiplies on the host, with sums in f64.
pub struct HostGemm;

/// Numbers of an element, from its bytes and back.
fn read(element: Element, at: u64, number: usize) -> f64 {
    let bytes = element.bytes();
    // SAFETY: the driver's device memory is host memory, and nothing is queued.
    let bytes = unsafe { slice::from_raw_parts((at as *const u8).add(number * bytes), bytes) };
    match element {
        Element::F32 => f32::from_le_bytes(bytes.try_into().unwrap()).into(),
        Element::F16 => f16::from_le_bytes(bytes.try_into().unwrap()).into(),
        Element::Bf16 => bf16::from_le_bytes(bytes.try_into().unwrap()).into(),
    }
}

fn write(element: Element, at: u64, number: usize, value: f64) {
    let size = element.bytes();
    // SAFETY: as above.
    let to = unsafe { slice::from_raw_parts_mut((at as *mut u8).add(number * size), size) };
    match element {
        Element::F32 => to.copy_from_slice(&(value as f32).to_le_bytes()),
        Element::F16 => to.copy_from_slice(&f16::from_f64(value).to_le_bytes()),
        Element::Bf16 => to.copy_from_slice(&bf16::from_f64(value).to_le_bytes()),
    }
}

impl Gemm for HostGemm {
    unsafe fn multiply(
        &self,
        product: &Product,
        [w, x, y]: [u64; 3],
        stream: &Stream,
    ) -> Result<(), CudaError> {
        stream.synchronize()?;
        let Product { rows, outputs, inputs, input, output, stride, output_stride, .. } = *product;
        let weights: Vec<f64> = (0..outputs * inputs).map(|i| read(input, w, i)).collect();
        for row in 0..rows {
            let x: Vec<f64> = (0..inputs).map(|i| read(input, x, row * stride + i)).collect();
            for (column, weights) in weights.chunks(inputs).enumerate() {
                let sum: f64 = weights.iter().zip(&x).map(|(w, x)| w * x).sum();
                let at = row * output_stride + column;
                let held = if product.accumulate { read(output, y, at) } else { 0.0 };
                write(output, y, at, f64::from(product.scale) * sum + held);
            }
        }
        Ok(())
    }
}
