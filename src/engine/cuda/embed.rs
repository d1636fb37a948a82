//! Rows of an embedding table by token.

use super::launcher::{ArithmeticKernel, Launcher, check, number, size, sizes, wide};
use crate::{
    cuda::{
        DeviceRows, DeviceRowsMut, DeviceWords, Element,
        driver::{Argument, Stream},
    },
    device::{DeviceError, Kernels},
};

/// Looks tokens up in a table.
#[derive(Debug)]
pub struct Embed {
    kernel: Launcher,
    table: Element,
}

impl Embed {
    /// Compiles the kernel for tables of f16 or bf16, and waits for `stream`.
    pub fn new(kernels: &Kernels, table: Element, stream: &Stream) -> Result<Self, DeviceError> {
        let defines = [("FROM", number(table))];
        let kernel = Launcher::load(kernels, ArithmeticKernel::Embed, &defines, stream)?;
        Ok(Self { kernel, table })
    }

    /// Queues `out[i] = scale · table[ids[i]]`. `table` is `[tokens, channels]`, `out` is
    /// `[ids, channels]` in f32. An id that the table does not have gives a row of NaN.
    ///
    /// # Errors
    /// Rows of other shapes or types, or of another context.
    pub fn launch(
        &self,
        ids: DeviceWords<'_>,
        table: DeviceRows<'_>,
        scale: f32,
        out: DeviceRowsMut<'_>,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let out = out.as_rows();
        self.kernel.check_contexts(stream, [ids.context(), table.context(), out.context()])?;
        check("an embedding table", &table, self.table, [table.rows(), table.columns()])?;
        check("embedded rows", &out, Element::F32, [ids.count(), table.columns()])?;
        let rows = size("tokens", ids.count())?;
        let [table_rows, channels, table_stride] = sizes(&table)?;
        let arguments = [
            Argument::U64(ids.address()),
            Argument::U64(table.address()),
            Argument::U32(table_rows),
            Argument::U32(table_stride),
            Argument::U64(out.address()),
            Argument::U32(sizes(&out)?[2]),
            Argument::U32(channels),
            Argument::F32(scale),
            wide([&table, &out]),
        ];
        // SAFETY: the arguments are those of `headwise_embed`; the views cover what it reads and writes, and
        // ids are checked by the kernel.
        unsafe { self.kernel.launch([rows, 1, 1], &arguments, stream) }
    }
}
