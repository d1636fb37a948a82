//! The arithmetic's kernels: their sources, and one loaded for launches.

use crate::{
    cuda::{
        CudaError, DeviceRows, Element,
        driver::{Argument, Context, Kernel, Launch, Stream},
        nvrtc::Source,
    },
    device::{DeviceError, Kernels},
};

/// What the kernels include.
const HEADERS: &[(&str, &str)] = &[
    ("intrin.cuh", include_str!("../../../kernels/intrin.cuh")),
    ("rows.cuh", include_str!("../../../kernels/rows.cuh")),
];

/// Most rows, and numbers of a row, of a launch: what a grid counts to.
const MOST: usize = i32::MAX as usize;

/// Makes [`ArithmeticKernel`] out of the list of files.
macro_rules! arithmetic_kernels {
    ($($(#[$doc:meta])* $variant:ident = $name:literal [$($define:literal: $numbers:expr),*],)+) => {
        /// One of the files in `kernels/` that compute what stands between products and attention.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum ArithmeticKernel {
            $($(#[$doc])* $variant,)+
        }

        impl ArithmeticKernel {
            /// Every kernel.
            pub const ALL: &'static [ArithmeticKernel] = &[$(ArithmeticKernel::$variant,)+];

            /// The kernel's name in its module.
            pub const fn entry(self) -> &'static str {
                match self { $(Self::$variant => concat!("headwise_", $name),)+ }
            }

            const fn threads_constant(self) -> &'static str {
                match self { $(Self::$variant => concat!("headwise_", $name, "_threads"),)+ }
            }

            /// The source, with what it includes.
            pub const fn source(self) -> Source<'static> {
                match self {
                    $(Self::$variant => Source {
                        name: concat!($name, ".cu"),
                        text: include_str!(concat!("../../../kernels/", $name, ".cu")),
                        headers: HEADERS,
                    },)+
                }
            }

            /// Its macros, and the numbers that each may have.
            const fn macros(self) -> &'static [(&'static str, &'static [u32])] {
                match self { $(Self::$variant => &[$(($define, $numbers)),*],)+ }
            }
        }
    };
}

arithmetic_kernels! {
    /// Rows of an embedding table by token.
    Embed = "embed" ["FROM": &[1, 2]],
    /// Norms of the residual stream, and what is added to it before.
    RmsNorm = "rms_norm" ["TO": &[0, 1, 2]],
    /// Norms of heads, and rotary embedding.
    Rope = "rope" ["TO": &[0, 1, 2], "PAIRING": &[0, 1]],
    /// SiLU or GELU times what it lets through.
    Gate = "gate" ["TO": &[1, 2], "GATE": &[0, 1]],
    /// f32 rows for a product.
    Cast = "cast" ["TO": &[1, 2]],
    /// The largest logit.
    Argmax = "argmax" [],
}

impl ArithmeticKernel {
    /// The compiler's options of every specialisation that there is.
    pub fn specialisations(self) -> Vec<Vec<String>> {
        self.macros().iter().fold(vec![options(&[])], |all, (name, numbers)| {
            let with =
                |one: &Vec<String>, number| [one.clone(), vec![define(name, number)]].concat();
            all.iter().flat_map(|one| numbers.iter().map(|&number| with(one, number))).collect()
        })
    }
}

fn options(defines: &[(&str, u32)]) -> Vec<String> {
    let standard = ["--std=c++17".to_owned()];
    standard.into_iter().chain(defines.iter().map(|&(name, number)| define(name, number))).collect()
}

fn define(name: &str, number: u32) -> String {
    format!("-DHEADWISE_{name}={number}")
}

/// The number that stands for an element in the kernels.
pub(super) const fn number(element: Element) -> u32 {
    match element {
        Element::F32 => 0,
        Element::F16 => 1,
        Element::Bf16 => 2,
    }
}

/// A loaded kernel.
#[derive(Debug)]
pub(super) struct Launcher {
    context: Context,
    kernel: Kernel,
    threads: u32,
}

impl Launcher {
    /// Compiles and loads a kernel with the macros that it has, and waits for `stream`.
    pub fn load(
        kernels: &Kernels,
        kernel: ArithmeticKernel,
        defines: &[(&str, u32)],
        stream: &Stream,
    ) -> Result<Self, DeviceError> {
        let module = kernels.module(&kernel.source(), &options(defines))?;
        Ok(Self {
            context: kernels.context().clone(),
            threads: module.global(kernel.threads_constant(), stream)?,
            kernel: module.kernel(kernel.entry(), 0)?,
        })
    }

    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// Refuses a stream or memory of another context.
    pub fn check_contexts<'a>(
        &self,
        stream: &Stream,
        memory: impl IntoIterator<Item = &'a Context>,
    ) -> Result<(), DeviceError> {
        let ours = |context: &Context| context.same(&self.context);
        if ours(stream.context()) && memory.into_iter().all(ours) {
            return Ok(());
        }
        Err(CudaError::OtherContext.into())
    }

    /// Queues a launch.
    ///
    /// # Safety
    /// As [`Kernel::launch`].
    pub unsafe fn launch(
        &self,
        grid: [u32; 3],
        arguments: &[Argument],
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        // SAFETY: the caller vouches for the arguments.
        unsafe { self.kernel.launch(stream, Launch { grid, threads: self.threads }, arguments) }?;
        Ok(())
    }
}

/// A size as kernels take it.
pub(super) fn size(what: &'static str, value: usize) -> Result<u32, DeviceError> {
    if value > MOST {
        return Err(CudaError::WrongLength { what, got: value, expected: MOST }.into());
    }
    Ok(value as u32)
}

/// The rows and columns of a view, and the numbers from row to row, as kernels take them.
pub(super) fn sizes(rows: &DeviceRows<'_>) -> Result<[u32; 3], DeviceError> {
    Ok([
        size("rows", rows.rows())?,
        size("numbers of a row", rows.columns())?,
        size("numbers from row to row", rows.stride())?,
    ])
}

/// Refuses rows of another shape or type.
pub(super) fn check(
    what: &'static str,
    rows: &DeviceRows<'_>,
    element: Element,
    shape: [usize; 2],
) -> Result<(), DeviceError> {
    let (got, expected) = (rows.element().name(), element.name());
    if rows.element() != element {
        return Err(CudaError::WrongElement { what, got, expected }.into());
    }
    for (got, expected) in [rows.rows(), rows.columns()].into_iter().zip(shape) {
        if got != expected {
            return Err(DeviceError::WrongLength { what, got, expected });
        }
    }
    Ok(())
}

/// Whether all rows may be read and written four numbers at a time: an argument of the kernels.
pub(super) fn wide<'a>(all: impl IntoIterator<Item = &'a DeviceRows<'a>>) -> Argument {
    let fits = |rows: &DeviceRows<'_>| {
        rows.address().is_multiple_of(4 * rows.element().bytes() as u64)
            && [rows.columns(), rows.stride()].iter().all(|numbers| numbers.is_multiple_of(4))
    };
    Argument::U32(all.into_iter().all(fits).into())
}

/// Blocks along a row of `columns` numbers, four to a thread.
pub(super) fn blocks(columns: u32, threads: u32) -> u32 {
    columns.div_ceil(4 * threads).clamp(1, u16::MAX.into())
}
