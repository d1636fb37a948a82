//! Norms of the residual stream.

use super::launcher::{ArithmeticKernel, Launcher, check, number, size, sizes, wide};
use crate::{
    cuda::{
        DeviceRows, DeviceRowsMut, DeviceWords, Element,
        driver::{Argument, Stream},
    },
    device::{DeviceError, Kernels},
};

/// The weight of a norm, `[1, channels]` in f32, and what is added to the mean square.
#[derive(Clone, Copy, Debug)]
pub struct Gain<'a> {
    /// What the normed values are multiplied by.
    pub weight: DeviceRows<'a>,
    /// Added to the mean square before its root.
    pub epsilon: f32,
}

/// What the residual stream grows by: rows of f32, or their norm.
#[derive(Clone, Copy, Debug)]
pub struct Growth<'a> {
    /// A row for each of the stream's.
    pub rows: DeviceRows<'a>,
    /// The weight, `[1, channels]` in f32, of the norm that they go through first.
    pub norm: Option<DeviceRows<'a>>,
}

/// Root-mean-square norms: `x / √(mean(x²) + ε) · weight`, row by row.
#[derive(Debug)]
pub struct Norms {
    kernel: Launcher,
    to: Element,
}

impl Norms {
    /// Compiles the kernel for results of type `to`, and waits for `stream`.
    pub fn new(kernels: &Kernels, to: Element, stream: &Stream) -> Result<Self, DeviceError> {
        let defines = [("TO", number(to))];
        let kernel = Launcher::load(kernels, ArithmeticKernel::RmsNorm, &defines, stream)?;
        Ok(Self { kernel, to })
    }

    /// Queues `out = norm(x)`; `x` is f32.
    ///
    /// # Errors
    /// Rows of other shapes or types, or of another context.
    pub fn norm(
        &self,
        x: DeviceRows<'_>,
        gain: Gain<'_>,
        out: DeviceRowsMut<'_>,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let result = Some((gain.weight, out));
        self.queue(Work { x, growth: None, picks: None, epsilon: gain.epsilon, result }, stream)
    }

    /// Queues `out[i] = norm(x[picks[i]])`; `x` is f32. A pick that `x` does not have gives a row of NaN.
    ///
    /// # Errors
    /// As [`norm`](Self::norm).
    pub fn norm_picked(
        &self,
        x: DeviceRows<'_>,
        picks: DeviceWords<'_>,
        gain: Gain<'_>,
        out: DeviceRowsMut<'_>,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let (picks, result) = (Some(picks), Some((gain.weight, out)));
        self.queue(Work { x, growth: None, picks, epsilon: gain.epsilon, result }, stream)
    }

    /// Queues `x += growth`; both are f32.
    ///
    /// # Errors
    /// As [`norm`](Self::norm).
    pub fn add(
        &self,
        growth: Growth<'_>,
        x: DeviceRowsMut<'_>,
        epsilon: f32,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let (x, growth) = (x.as_rows(), Some(growth));
        self.queue(Work { x, growth, picks: None, epsilon, result: None }, stream)
    }

    /// Queues `x += growth`, then `out = norm(x)`.
    ///
    /// # Errors
    /// As [`norm`](Self::norm).
    pub fn add_and_norm(
        &self,
        growth: Growth<'_>,
        x: DeviceRowsMut<'_>,
        gain: Gain<'_>,
        out: DeviceRowsMut<'_>,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let (x, growth, result) = (x.as_rows(), Some(growth), Some((gain.weight, out)));
        self.queue(Work { x, growth, picks: None, epsilon: gain.epsilon, result }, stream)
    }

    /// `x` is written only if it grows: then the caller has it to write.
    fn queue(&self, work: Work<'_>, stream: &Stream) -> Result<(), DeviceError> {
        let Work { x, growth, picks, epsilon, result } = work;
        let (channels, rows) = (x.columns(), picks.map_or(x.rows(), |picks| picks.count()));
        let out = result.as_ref().map(|(weight, out)| (*weight, out.as_rows()));
        check("the residual stream", &x, Element::F32, [x.rows(), channels])?;
        let mut all = vec![x];
        if let Some(Growth { rows: more, norm }) = growth {
            check("what the residual stream grows by", &more, Element::F32, [rows, channels])?;
            all.push(more);
            if let Some(norm) = norm {
                check("the weight of a norm", &norm, Element::F32, [1, channels])?;
                all.push(norm);
            }
        }
        if let Some((weight, out)) = out {
            check("the weight of a norm", &weight, Element::F32, [1, channels])?;
            check("normed rows", &out, self.to, [rows, channels])?;
            all.extend([weight, out]);
        }
        let contexts = all.iter().map(|rows| rows.context());
        self.kernel.check_contexts(stream, contexts.chain(picks.map(|picks| picks.context())))?;
        let [x_rows, columns, x_stride] = sizes(&x)?;
        let address = |rows: Option<DeviceRows<'_>>| rows.map_or(0, |rows| rows.address());
        let stride = |rows: Option<DeviceRows<'_>>| -> Result<u32, DeviceError> {
            rows.map_or(Ok(0), |rows| Ok(sizes(&rows)?[2]))
        };
        let more = growth.map(|growth| growth.rows);
        let to = out.map(|(_, out)| out);
        let arguments = [
            Argument::U64(address(more)),
            Argument::U32(stride(more)?),
            Argument::U64(address(growth.and_then(|growth| growth.norm))),
            Argument::U64(x.address()),
            Argument::U32(x_rows),
            Argument::U32(x_stride),
            Argument::U64(picks.map_or(0, |picks| picks.address())),
            Argument::U64(address(out.map(|(weight, _)| weight))),
            Argument::U64(address(to)),
            Argument::U32(stride(to)?),
            Argument::U32(columns),
            Argument::F32(epsilon),
            wide(&all),
        ];
        // SAFETY: the arguments are those of `headwise_rms_norm`; the views cover what it reads and writes, and
        // picks are checked by the kernel.
        unsafe { self.kernel.launch([size("rows", rows)?, 1, 1], &arguments, stream) }
    }
}

/// One launch: rows of `x`, or those that are picked.
struct Work<'a> {
    x: DeviceRows<'a>,
    growth: Option<Growth<'a>>,
    picks: Option<DeviceWords<'a>>,
    epsilon: f32,
    /// The weight, and where the norms go.
    result: Option<(DeviceRows<'a>, DeviceRowsMut<'a>)>,
}
