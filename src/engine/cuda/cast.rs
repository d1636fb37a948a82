//! f32 rows as the type that products read.

use super::launcher::{ArithmeticKernel, Launcher, blocks, check, number, sizes, wide};
use crate::{
    cuda::{
        DeviceRows, DeviceRowsMut, Element,
        driver::{Argument, Stream},
    },
    device::{DeviceError, Kernels},
};

/// Rounds rows to f16 or bf16.
#[derive(Debug)]
pub struct Cast {
    kernel: Launcher,
    to: Element,
}

impl Cast {
    /// Compiles the kernel for results of type `to`, and waits for `stream`.
    pub fn new(kernels: &Kernels, to: Element, stream: &Stream) -> Result<Self, DeviceError> {
        let defines = [("TO", number(to))];
        let kernel = Launcher::load(kernels, ArithmeticKernel::Cast, &defines, stream)?;
        Ok(Self { kernel, to })
    }

    /// Queues `out = x`, rounded to nearest even; `x` is f32.
    ///
    /// # Errors
    /// Rows of other shapes or types, or of another context.
    pub fn launch(
        &self,
        x: DeviceRows<'_>,
        out: DeviceRowsMut<'_>,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let out = out.as_rows();
        self.kernel.check_contexts(stream, [x.context(), out.context()])?;
        let shape = [x.rows(), x.columns()];
        check("rows to round", &x, Element::F32, shape)?;
        check("rounded rows", &out, self.to, shape)?;
        let [rows, columns, stride] = sizes(&x)?;
        let arguments = [
            Argument::U64(x.address()),
            Argument::U32(stride),
            Argument::U64(out.address()),
            Argument::U32(sizes(&out)?[2]),
            Argument::U32(columns),
            wide([&x, &out]),
        ];
        let grid = [rows, blocks(columns, self.kernel.threads()), 1];
        // SAFETY: the arguments are those of `headwise_cast`; the views cover what it reads and writes.
        unsafe { self.kernel.launch(grid, &arguments, stream) }
    }
}
