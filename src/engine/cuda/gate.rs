//! The gates of feed-forward layers.

use super::launcher::{ArithmeticKernel, Launcher, blocks, check, number, sizes, wide};
use crate::{
    cuda::{
        DeviceRows, DeviceRowsMut, Element,
        driver::{Argument, Stream},
    },
    device::{DeviceError, Kernels},
};

/// What the gate's values go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x / (1 + e⁻ˣ).
    Silu,
    /// GELU by its tanh: x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).
    GeluTanh,
}

/// Gates: `scale · f(gate) · up`.
#[derive(Debug)]
pub struct Gates {
    kernel: Launcher,
    to: Element,
}

impl Gates {
    /// Compiles the kernel for results of type `to`, and waits for `stream`.
    pub fn new(
        kernels: &Kernels,
        activation: Activation,
        to: Element,
        stream: &Stream,
    ) -> Result<Self, DeviceError> {
        let activation = match activation {
            Activation::Silu => 0,
            Activation::GeluTanh => 1,
        };
        let defines = [("TO", number(to)), ("GATE", activation)];
        let kernel = Launcher::load(kernels, ArithmeticKernel::Gate, &defines, stream)?;
        Ok(Self { kernel, to })
    }

    /// Queues `out = scale · f(gate) · up`. `gate_up` is `[rows, 2 · channels]` in f32, the gates first; `out`
    /// is `[rows, channels]`.
    ///
    /// # Errors
    /// Rows of other shapes or types, or of another context.
    pub fn launch(
        &self,
        gate_up: DeviceRows<'_>,
        scale: f32,
        out: DeviceRowsMut<'_>,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let out = out.as_rows();
        self.kernel.check_contexts(stream, [gate_up.context(), out.context()])?;
        let [rows, channels] = [out.rows(), out.columns()];
        check("gates and what they let through", &gate_up, Element::F32, [rows, 2 * channels])?;
        check("gated rows", &out, self.to, [rows, channels])?;
        let [rows, columns, stride] = sizes(&out)?;
        let up = gate_up.slice(channels..2 * channels)?;
        let arguments = [
            Argument::U64(gate_up.address()),
            Argument::U32(sizes(&gate_up)?[2]),
            Argument::U64(out.address()),
            Argument::U32(stride),
            Argument::U32(columns),
            Argument::F32(scale),
            wide([&gate_up, &up, &out]),
        ];
        let grid = [rows, blocks(columns, self.kernel.threads()), 1];
        // SAFETY: the arguments are those of `headwise_gate`; the views cover what it reads and writes.
        unsafe { self.kernel.launch(grid, &arguments, stream) }
    }
}
