//! Kernels of one device, compiled and loaded when they are first asked for.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use rayon::prelude::*;

use super::{
    error::DeviceError,
    kernels::{KernelFile, Specialisation},
};
use crate::cuda::{
    CudaVersion, KernelCache,
    driver::{Argument, Context, Kernel, Launch, Module, Stream},
    nvrtc::{Nvrtc, Source},
};

/// A kernel on its device, with the launch it was made for.
#[derive(Clone, Debug)]
pub struct Loaded {
    kernel: Kernel,
    threads: u32,
    blocks_per_multiprocessor: u32,
    rows: Option<u32>,
}

impl Loaded {
    /// The most query rows of a work item, for kernels that have such a bound.
    pub fn rows(&self) -> Option<u32> {
        self.rows
    }

    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// Blocks that one multiprocessor runs at a time.
    pub fn blocks_per_multiprocessor(&self) -> u32 {
        self.blocks_per_multiprocessor
    }

    /// Queues a launch of `grid` blocks.
    ///
    /// # Safety
    /// As [`Kernel::launch`].
    pub unsafe fn launch(
        &self,
        stream: &Stream,
        grid: [u32; 3],
        arguments: &[Argument],
    ) -> Result<(), DeviceError> {
        let launch = Launch { grid, threads: self.threads };
        // SAFETY: the caller vouches for the arguments.
        unsafe { self.kernel.launch(stream, launch, arguments) }?;
        Ok(())
    }
}

/// Options of a specialisation, and the file: what a loaded kernel is found by.
type Key = (KernelFile, Vec<String>);

/// The kernels of one device.
#[derive(Debug)]
pub struct Kernels {
    context: Context,
    nvrtc: Nvrtc,
    cache: Option<KernelCache>,
    loaded: Mutex<HashMap<Key, Arc<Loaded>>>,
}

impl Kernels {
    /// Compiles for the context's device; with `cache`, a later process starts faster.
    pub fn new(context: &Context, nvrtc: Nvrtc, cache: Option<KernelCache>) -> Self {
        Self { context: context.clone(), nvrtc, cache, loaded: Mutex::default() }
    }

    /// Multiprocessors of the device.
    pub fn multiprocessors(&self) -> u32 {
        self.context.info().multiprocessors
    }

    /// The version of the compiler.
    pub fn nvrtc(&self) -> CudaVersion {
        self.nvrtc.version()
    }

    /// The context that the kernels are loaded into.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The kernel of that file and specialisation. The first call compiles and loads it, and waits
    /// for `stream`: call it once before a graph is captured.
    pub fn get(
        &self,
        file: KernelFile,
        specialisation: &Specialisation,
        stream: &Stream,
    ) -> Result<Arc<Loaded>, DeviceError> {
        let key = (file, specialisation.defines());
        if let Some(kernel) = self.loaded.lock().get(&key) {
            return Ok(Arc::clone(kernel));
        }
        // Not under the lock: other threads compile other kernels meanwhile. Two that want the same one
        // both make it, and the first is kept.
        let module = self.module(&file.source(), &key.1)?;
        let threads: u32 = module.global(file.threads_constant(), stream)?;
        let shared: u32 = module.global(file.shared_constant(), stream)?;
        let kernel = module.kernel(file.entry(), shared)?;
        let blocks_per_multiprocessor = kernel.occupancy(threads)?.max(1);
        let rows = file.rows_constant().map(|name| module.global(name, stream)).transpose()?;
        let kernel = Arc::new(Loaded { kernel, threads, blocks_per_multiprocessor, rows });
        Ok(Arc::clone(self.loaded.lock().entry(key).or_insert(kernel)))
    }

    /// Compiles and loads many kernels side by side, so that later calls of [`get`](Self::get) find
    /// them.
    pub fn prepare(
        &self,
        wanted: &[(KernelFile, Specialisation)],
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        wanted.par_iter().try_for_each(|(file, specialisation)| {
            self.get(*file, specialisation, stream).map(drop)
        })
    }

    /// Compiles and loads a source, or takes it from the cache on disk.
    pub(crate) fn module(
        &self,
        source: &Source<'_>,
        options: &[String],
    ) -> Result<Module, DeviceError> {
        let arch = self.context.info().arch;
        let compiled = match &self.cache {
            Some(cache) => cache.ptx(&self.nvrtc, source, options, arch)?.0,
            None => self.nvrtc.compile(source, options, arch)?,
        };
        Ok(Module::new(&self.context, &compiled.ptx)?)
    }
}
