//! Tensors of a file, rounded on the host and copied to a device piece by piece.

use std::ops::Range;

use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use super::weights::{Part, Planned, Tensor, Weights};
use crate::{
    cuda::{
        CudaError, Element, Staging,
        driver::{DeviceBuffer, Stream},
    },
    engine::{
        error::{EngineError, ModelError},
        gguf::GgufFile,
    },
};

/// Weights that one thread decodes at a time (16 MiB of f32).
const CHUNK: usize = 4 << 20;

/// Brings planned tensors to a device.
///
/// # Errors
/// [`EngineError::DeviceMemory`] before anything is allocated if they are more than the device has free, and
/// where it grants less than it said; [`EngineError::Weight`] for a weight that the type cannot hold.
pub(super) fn upload(
    plan: Weights<Planned>,
    file: &GgufFile,
    staging: &mut Staging,
    stream: &Stream,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Weights<Tensor>, EngineError> {
    let needed = plan.iter().map(Planned::bytes).fold(0, usize::saturating_add);
    let (free, _) = stream.context().memory()?;
    if needed > free {
        return Err(EngineError::DeviceMemory { needed, free });
    }
    let mut done = 0;
    let weights = plan.try_map(&mut |planned| {
        let tensor = tensor(&planned, file, staging, stream).map_err(|error| match error {
            Failure::Cuda(CudaError::OutOfMemory { .. }) => {
                EngineError::DeviceMemory { needed, free }
            }
            Failure::Cuda(error) => error.into(),
            Failure::Engine(error) => error,
        })?;
        done += planned.parts.len();
        progress(done);
        Ok(tensor)
    })?;
    // An error of a copy is one of loading.
    stream.synchronize()?;
    Ok(weights)
}

enum Failure {
    Cuda(CudaError),
    Engine(EngineError),
}

impl From<CudaError> for Failure {
    fn from(error: CudaError) -> Self {
        Self::Cuda(error)
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

fn tensor(
    planned: &Planned,
    file: &GgufFile,
    staging: &mut Staging,
    stream: &Stream,
) -> Result<Tensor, Failure> {
    let &Planned { ref parts, columns, element } = planned;
    let mut buffer = DeviceBuffer::new(stream.context(), planned.bytes())?;
    let mut at = 0;
    for part in parts {
        let chunks = chunks(part.rows, columns);
        // As many at a time as there are threads: what the host holds is bounded.
        for chunks in chunks.chunks(rayon::current_num_threads()) {
            let rounded = chunks.par_iter().map(|rows| {
                let values = read(file, part, columns, rows.clone())?;
                round(&part.name, &values, element)
            });
            for bytes in rounded.collect::<Result<Vec<Vec<u8>>, EngineError>>()? {
                staging.upload(stream, &mut buffer, [(at, &*bytes)])?;
                at += bytes.len();
            }
        }
    }
    Ok(Tensor { buffer, element, shape: [planned.rows(), columns] })
}

/// Whole rows that are decoded at a time, of `rows` rows.
fn chunks(rows: usize, columns: usize) -> Vec<Range<usize>> {
    let step = (CHUNK / columns.max(1)).max(1);
    (0..rows).step_by(step).map(|start| start..rows.min(start.saturating_add(step))).collect()
}

fn read(
    file: &GgufFile,
    part: &Part,
    columns: usize,
    rows: Range<usize>,
) -> Result<Vec<f32>, ModelError> {
    match part.in_file {
        Some(all) => file.tensor_rows(&part.name, [all, columns], rows),
        None => file.tensor(&part.name, &[columns]),
    }
}

/// The bytes of `values` as the device stores them.
fn round(tensor: &str, values: &[f32], element: Element) -> Result<Vec<u8>, EngineError> {
    fn bytes<T: bytemuck::Pod>(
        tensor: &str,
        values: &[f32],
        element: Element,
        rounded: &[T],
        finite: impl Fn(T) -> bool,
    ) -> Result<Vec<u8>, EngineError> {
        let lost = |&(&value, &rounded): &(&f32, &T)| value.is_finite() && !finite(rounded);
        match values.iter().zip(rounded).find(lost) {
            Some((&value, _)) => Err(EngineError::Weight {
                tensor: tensor.to_owned(),
                value,
                element: element.name(),
            }),
            None => Ok(bytemuck::cast_slice(rounded).to_vec()),
        }
    }
    match element {
        Element::F32 => Ok(bytemuck::cast_slice(values).to_vec()),
        Element::F16 => {
            let mut rounded = vec![f16::ZERO; values.len()];
            rounded.convert_from_f32_slice(values);
            bytes(tensor, values, element, &rounded, f16::is_finite)
        }
        Element::Bf16 => {
            let mut rounded = vec![bf16::ZERO; values.len()];
            rounded.convert_from_f32_slice(values);
            bytes(tensor, values, element, &rounded, bf16::is_finite)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_every_row_once() {
        for (rows, columns) in [(0, 5), (1, 1), (10, CHUNK / 3), (3, 2 * CHUNK), (1 << 20, 640)] {
            let chunks = chunks(rows, columns);
            let all: usize = chunks.iter().map(Range::len).sum();
            assert_eq!(all, rows);
            assert!(chunks.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(chunks.iter().all(|c| c.len() == 1 || c.len() * columns <= CHUNK));
        }
        assert_eq!(chunks(10, CHUNK / 3), [0..3, 3..6, 6..9, 9..10]);
    }

    #[test]
    fn weights_are_rounded_or_refused() {
        let values = [1.0, -0.1, 65_504.0, f32::INFINITY, 1e-9];
        let bytes = round("w", &values, Element::F16).unwrap();
        let halves: Vec<f16> =
            bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
        assert_eq!(halves, values.map(f16::from_f32));
        let text = round("w", &[1.0, -70_000.0], Element::F16).unwrap_err().to_string();
        assert_eq!(text, "tensor w has a weight of -70000, which f16 cannot hold");
        assert!(round("w", &[70_000.0], Element::Bf16).is_ok());
        assert!(round("w", &[f32::MAX], Element::Bf16).is_err());
        assert_eq!(round("w", &[0.5], Element::F32).unwrap(), 0.5f32.to_le_bytes());
    }
}
