//! Launches of what stands between products and attention.

use crate::{
    cuda::{
        driver::{Argument, Kernel, Launch, Stream},
        nvrtc::Source,
    },
    device::{DeviceError, Kernels, kernels::HEADERS},
};

const SOURCE: Source<'static> =
    Source { name: "glue.cu", text: include_str!("glue.cu"), headers: HEADERS };

/// What is added to a mean square before its root.
const EPSILON: f32 = 1e-5;

/// The kernels of `glue.cu`.
#[derive(Debug)]
pub struct Glue {
    embed: Kernel,
    add_norm: Kernel,
    rope: Kernel,
    silu: Kernel,
    argmax: Kernel,
    threads: u32,
}

impl Glue {
    /// Compiles the kernels.
    pub fn new(kernels: &Kernels, stream: &Stream) -> Result<Self, DeviceError> {
        let module = kernels.module(&SOURCE, &["--std=c++17".to_owned()])?;
        let kernel = |name| module.kernel(name, 0);
        Ok(Self {
            embed: kernel("serving_embed")?,
            add_norm: kernel("serving_add_norm")?,
            rope: kernel("serving_rope")?,
            silu: kernel("serving_silu")?,
            argmax: kernel("serving_argmax")?,
            threads: module.global("serving_threads", stream)?,
        })
    }

    /// Counts a token in each of `rows` sequences, looks up its row and norms it:
    /// `[ids, tokens, table, x, h, weight]`.
    ///
    /// # Safety
    /// The addresses cover rows of `hidden` values, until the stream is done.
    pub unsafe fn embed(
        &self,
        rows: usize,
        hidden: usize,
        addresses: [u64; 6],
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let sizes = [Argument::U32(hidden as u32), Argument::F32(EPSILON)];
        // SAFETY: the arguments are those of the kernel; the caller vouches for the memory.
        unsafe { self.launch(&self.embed, [rows as u32, 1, 1], &addresses, &sizes, stream) }
    }

    /// x += y and h = norm(x): `[x, y, h, weight]`.
    ///
    /// # Safety
    /// As [`embed`](Self::embed).
    pub unsafe fn add_norm(
        &self,
        rows: usize,
        hidden: usize,
        addresses: [u64; 4],
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let sizes = [Argument::U32(hidden as u32), Argument::F32(EPSILON)];
        // SAFETY: the arguments are those of the kernel; the caller vouches for the memory.
        unsafe { self.launch(&self.add_norm, [rows as u32, 1, 1], &addresses, &sizes, stream) }
    }

    /// Rotary embedding of the first `heads` heads of each row, rows `stride` values apart:
    /// `[qkv, tokens, turns]`.
    ///
    /// # Safety
    /// As [`embed`](Self::embed), and `turns` covers every position.
    pub unsafe fn rope(
        &self,
        rows: usize,
        [heads, head_dim, stride]: [usize; 3],
        addresses: [u64; 3],
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let sizes = [heads, head_dim, stride].map(|size| Argument::U32(size as u32));
        // SAFETY: the arguments are those of the kernel; the caller vouches for the memory.
        unsafe { self.launch(&self.rope, [rows as u32, 1, 1], &addresses, &sizes, stream) }
    }

    /// act = silu(gate) · up, rows of `mlp` values: `[gate_up, act]`.
    ///
    /// # Safety
    /// As [`embed`](Self::embed).
    pub unsafe fn silu(
        &self,
        rows: usize,
        mlp: usize,
        addresses: [u64; 2],
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let blocks = (mlp as u32).div_ceil(4 * self.threads).max(1);
        let sizes = [Argument::U32(mlp as u32)];
        // SAFETY: the arguments are those of the kernel; the caller vouches for the memory.
        unsafe { self.launch(&self.silu, [blocks, rows as u32, 1], &addresses, &sizes, stream) }
    }

    /// The place of the largest of `vocab` logits of each row: `[logits, ids]`.
    ///
    /// # Safety
    /// As [`embed`](Self::embed).
    pub unsafe fn argmax(
        &self,
        rows: usize,
        vocab: usize,
        addresses: [u64; 2],
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let sizes = [Argument::U32(vocab as u32)];
        // SAFETY: the arguments are those of the kernel; the caller vouches for the memory.
        unsafe { self.launch(&self.argmax, [rows as u32, 1, 1], &addresses, &sizes, stream) }
    }

    /// Queues a kernel whose addresses come before its sizes.
    ///
    /// # Safety
    /// As [`Kernel::launch`].
    unsafe fn launch(
        &self,
        kernel: &Kernel,
        grid: [u32; 3],
        addresses: &[u64],
        sizes: &[Argument],
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let mut arguments: Vec<Argument> = Vec::with_capacity(addresses.len() + sizes.len());
        arguments.extend(addresses.iter().copied().map(Argument::U64));
        arguments.extend_from_slice(sizes);
        let launch = Launch { grid, threads: self.threads };
        // SAFETY: the caller vouches for the arguments.
        unsafe { kernel.launch(stream, launch, &arguments) }?;
        Ok(())
    }
}
