//! Rotary embedding, and what else happens to queries and keys on their way to attention.

use std::f64::consts::TAU;

use super::launcher::{ArithmeticKernel, Launcher, check, number, size, sizes};
use crate::{
    cuda::{
        CudaError, DeviceRows, DeviceRowsMut, DeviceWords, Element, Staging,
        driver::{Argument, DeviceBuffer, Stream},
    },
    device::{DeviceError, Kernels},
};

/// Which channels of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// 2i and 2i + 1, as GGUF files order the rows of `llama`.
    Interleaved,
    /// i and i + half of the channels that turn.
    Halves,
}

/// How far a position turns each pair of channels, on a device.
///
/// A pair's turn is a part of a whole turn, times 2⁶⁴: multiplied by a position in 64 bits, whole turns fall
/// off the top, and what is left is exact to 2⁻⁶⁴ turns times the position.
#[derive(Debug)]
pub struct Turns {
    buffer: DeviceBuffer,
    pairs: usize,
}

impl Turns {
    /// The turns of pairs that turn by these angles, in radians per position.
    pub fn new(
        frequencies: &[f64],
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<Self, DeviceError> {
        let parts: Vec<u64> =
            frequencies.iter().map(|&frequency| part_of_turn(frequency)).collect();
        let bytes: &[u8] = bytemuck::cast_slice(&parts);
        let mut buffer = DeviceBuffer::new(stream.context(), bytes.len())?;
        staging.upload(stream, &mut buffer, [(0, bytes)])?;
        Ok(Self { buffer, pairs: parts.len() })
    }
}

/// An angle as a part of a whole turn, times 2⁶⁴.
fn part_of_turn(radians: f64) -> u64 {
    let turns = radians / TAU;
    // What rounds up to a whole turn is none.
    ((turns - turns.floor()) * 2f64.powi(64)) as u128 as u64
}

/// Heads of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// KV heads.
    pub kv: usize,
    /// Channels of a head.
    pub dim: usize,
}

impl Heads {
    /// Values of a token's queries.
    pub fn queries(self) -> usize {
        self.query * self.dim
    }

    /// Values of a token's queries, keys and values.
    pub fn fused(self) -> usize {
        (self.query + 2 * self.kv) * self.dim
    }
}

/// Norms of heads, before they turn: weights are `[1, dim]` in f32.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorms<'a> {
    /// Of queries.
    pub q: DeviceRows<'a>,
    /// Of keys.
    pub k: DeviceRows<'a>,
    /// Added to mean squares before their roots.
    pub epsilon: f32,
}

/// Where queries, keys and values of a step come from and go to: rows of tokens.
#[derive(Debug)]
pub struct Projected<'a> {
    /// `[tokens, fused]` in f32: heads of q, then of k, then of v.
    pub product: DeviceRowsMut<'a>,
    /// `[tokens, query · dim]`.
    pub q: DeviceRowsMut<'a>,
    /// `[tokens, kv · dim]` of keys and of values. Without it keys turn where they are, and values stay: for
    /// results in f32.
    pub kv: Option<[DeviceRowsMut<'a>; 2]>,
}

/// Turns queries and keys by their positions.
#[derive(Debug)]
pub struct Rotary {
    kernel: Launcher,
    to: Element,
}

impl Rotary {
    /// Compiles the kernel for results of type `to`, and waits for `stream`.
    pub fn new(
        kernels: &Kernels,
        pairing: Pairing,
        to: Element,
        stream: &Stream,
    ) -> Result<Self, DeviceError> {
        let pairing = match pairing {
            Pairing::Interleaved => 0,
            Pairing::Halves => 1,
        };
        let defines = [("TO", number(to)), ("PAIRING", pairing)];
        let kernel = Launcher::load(kernels, ArithmeticKernel::Rope, &defines, stream)?;
        Ok(Self { kernel, to })
    }

    /// Queues the turn of every token's heads by its position.
    ///
    /// # Errors
    /// Rows of other shapes or types, or of another context; more pairs than heads have channels for.
    pub fn launch(
        &self,
        heads: Heads,
        positions: DeviceWords<'_>,
        turns: &Turns,
        norms: Option<HeadNorms<'_>>,
        rows: Projected<'_>,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let Heads { query, kv, dim } = heads;
        let Projected { product, q, kv: moved } = rows;
        let (from, q, tokens) = (product.as_rows(), q.as_rows(), positions.count());
        check("the product of a layer", &from, Element::F32, [tokens, heads.fused()])?;
        check("queries", &q, self.to, [tokens, query * dim])?;
        let moved = moved.as_ref().map(|rows| rows.each_ref().map(DeviceRowsMut::as_rows));
        let (k, v) = match moved {
            Some([k, v]) => (k, Some(v)),
            None => (from.slice(query * dim..(query + kv) * dim)?, None),
        };
        check("keys", &k, self.to, [tokens, kv * dim])?;
        if let Some(v) = v {
            check("values", &v, self.to, [tokens, kv * dim])?;
        }
        if 2 * turns.pairs > dim {
            let (what, got) = ("channels that turn", 2 * turns.pairs);
            return Err(CudaError::WrongLength { what, got, expected: dim }.into());
        }
        for weight in norms.iter().flat_map(|norms| [norms.q, norms.k]) {
            check("the weight of a norm of heads", &weight, Element::F32, [1, dim])?;
        }
        let rows = [from, q, k].into_iter().chain(v);
        let rows = rows.chain(norms.iter().flat_map(|norms| [norms.q, norms.k]));
        let contexts = rows.map(|rows| rows.context());
        let others = [positions.context(), turns.buffer.context()];
        self.kernel.check_contexts(stream, contexts.chain(others))?;
        let all = query + kv + v.map_or(0, |_| kv);
        let blocks = size("heads", all)?.div_ceil((self.kernel.threads() / 32).max(1));
        let stride = |rows: DeviceRows<'_>| Ok::<_, DeviceError>(Argument::U32(sizes(&rows)?[2]));
        let arguments = [
            Argument::U64(from.address()),
            stride(from)?,
            Argument::U64(positions.address()),
            Argument::U64(turns.buffer.address()),
            Argument::U32(turns.pairs as u32),
            Argument::U32(size("channels", dim)?),
            Argument::U32(query as u32),
            Argument::U32(kv as u32),
            Argument::U64(norms.map_or(0, |norms| norms.q.address())),
            Argument::U64(norms.map_or(0, |norms| norms.k.address())),
            Argument::F32(norms.map_or(0.0, |norms| norms.epsilon)),
            Argument::U64(q.address()),
            stride(q)?,
            Argument::U64(k.address()),
            stride(k)?,
            Argument::U64(v.map_or(0, |v| v.address())),
            v.map_or(Ok(Argument::U32(0)), stride)?,
        ];
        // SAFETY: the arguments are those of `headwise_rope`; the views and the turns cover what it reads and
        // writes, and what it writes was given to be written.
        unsafe { self.kernel.launch([size("tokens", tokens)?, blocks, 1], &arguments, stream) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_parts_of_a_whole_one() {
        assert_eq!(part_of_turn(0.0), 0);
        assert_eq!(part_of_turn(TAU / 4.0), 1 << 62);
        assert_eq!(part_of_turn(-TAU / 4.0), 3 << 62);
        assert_eq!(part_of_turn(7.0 * TAU), 0);
        // So small below zero that it is no part less than a whole turn.
        assert_eq!(part_of_turn(-1e-300), 0);
        let part = part_of_turn(1.0) as f64 / 2f64.powi(64);
        assert!((part - 1.0 / TAU).abs() < 1e-15);
    }
}
