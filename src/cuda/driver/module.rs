//! Loaded code and launches.

use std::{
    ffi::{CString, c_int, c_void},
    ptr,
    sync::Arc,
};

use bytemuck::Pod;
use cudarc::driver::sys as cuda;

use super::{calls::UNSUPPORTED_PTX_VERSION, context::Context, stream::Stream};
use crate::cuda::error::CudaError;

/// Code loaded into a context.
#[derive(Clone, Debug)]
pub struct Module {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    context: Context,
    handle: cuda::CUmodule,
}

// SAFETY: module handles may be used from any thread.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Module {
    /// Loads PTX, which the driver translates for its device.
    ///
    /// # Errors
    /// [`CudaError::PtxTooNew`] if the PTX came from a compiler newer than the driver.
    pub fn new(context: &Context, ptx: &str) -> Result<Self, CudaError> {
        let image = CString::new(ptx).map_err(|_| CudaError::ZeroByte("the PTX"))?;
        let mut handle = ptr::null_mut();
        // SAFETY: the image is a zero-terminated text that outlives the call.
        let loaded = unsafe { context.enter()?.module_load(&mut handle, image.as_ptr().cast()) };
        loaded.map_err(|error| match error {
            CudaError::Driver { code: UNSUPPORTED_PTX_VERSION, .. } => {
                CudaError::PtxTooNew { driver: context.driver_version() }
            }
            other => other,
        })?;
        Ok(Self { inner: Arc::new(Inner { context: context.clone(), handle }) })
    }

    /// A kernel of the module, allowed `shared_bytes` of dynamic shared memory.
    ///
    /// # Errors
    /// A driver error if there is no such kernel, or if the device has less shared memory.
    pub fn kernel(&self, name: &'static str, shared_bytes: u32) -> Result<Kernel, CudaError> {
        let c_name = CString::new(name).map_err(|_| CudaError::ZeroByte("a kernel's name"))?;
        let calls = self.inner.context.enter()?;
        let mut function = ptr::null_mut();
        // SAFETY: module, name and pointer are live.
        unsafe { calls.module_function(&mut function, self.inner.handle, c_name.as_ptr()) }?;
        let kernel = Kernel { module: self.clone(), name, function, shared_bytes };
        // Beyond 48 KiB a kernel asks for its shared memory by name.
        let attribute = cuda::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let value = c_int::try_from(shared_bytes).unwrap_or(c_int::MAX);
        // SAFETY: the function belongs to the live module.
        unsafe { calls.function_set(function, attribute, value) }?;
        Ok(kernel)
    }

    /// The value of a `__device__` constant of the module.
    ///
    /// # Errors
    /// A driver error if there is none of that name; [`CudaError::OutOfBounds`] if it has another
    /// size.
    pub fn global<T: Pod>(&self, name: &str, stream: &Stream) -> Result<T, CudaError> {
        let name = CString::new(name).map_err(|_| CudaError::ZeroByte("a global's name"))?;
        let calls = self.inner.context.enter()?;
        let (mut address, mut bytes) = (0, 0);
        // SAFETY: module, name and pointers are live.
        unsafe { calls.module_global(&mut address, &mut bytes, self.inner.handle, name.as_ptr()) }?;
        if bytes != size_of::<T>() {
            return Err(CudaError::OutOfBounds { start: 0, end: size_of::<T>(), len: bytes });
        }
        let mut value = T::zeroed();
        // SAFETY: the global has the size of `T`, which any bytes make. A copy to pageable memory has
        // left `value` alone when the stream was waited for, or when waiting failed with the context.
        unsafe {
            calls.copy_to_host(ptr::from_mut(&mut value).cast(), address, bytes, stream.handle())
        }?;
        stream.synchronize()?;
        Ok(value)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Ok(calls) = self.context.enter() {
            // SAFETY: loaded by `new` and not used again.
            let _ = unsafe { calls.module_unload(self.handle) };
        }
    }
}

/// A kernel that can be launched.
#[derive(Clone, Debug)]
pub struct Kernel {
    module: Module,
    name: &'static str,
    function: cuda::CUfunction,
    shared_bytes: u32,
}

// SAFETY: function handles may be used from any thread while their module is loaded.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block, along x.
    pub threads: u32,
}

/// One kernel argument, by value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// A device address, or another 64-bit value.
    U64(u64),
    /// A 32-bit value.
    U32(u32),
    /// A single-precision value.
    F32(f32),
}

impl Argument {
    fn address(&self) -> *mut c_void {
        match self {
            Argument::U64(value) => ptr::from_ref(value).cast_mut().cast(),
            Argument::U32(value) => ptr::from_ref(value).cast_mut().cast(),
            Argument::F32(value) => ptr::from_ref(value).cast_mut().cast(),
        }
    }
}

impl Kernel {
    /// The kernel's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Blocks of `threads` threads that run on one multiprocessor at a time.
    pub fn occupancy(&self, threads: u32) -> Result<u32, CudaError> {
        let mut blocks: c_int = 0;
        let threads = c_int::try_from(threads).unwrap_or(c_int::MAX);
        let calls = self.module.inner.context.enter()?;
        let shared = self.shared_bytes as usize;
        // SAFETY: the function is live, the pointer is to a live integer.
        unsafe { calls.occupancy(&mut blocks, self.function, threads, shared) }?;
        Ok(blocks.unsigned_abs())
    }

    /// Queues a launch; an empty grid launches nothing.
    ///
    /// # Errors
    /// What the driver refuses at launch. What fails on the device shows at the next
    /// [synchronisation](Stream::synchronize).
    ///
    /// # Safety
    /// `arguments` are those of the kernel's definition, in order and type, and every address in them
    /// covers what the kernel reads and writes until the stream is done with it.
    pub unsafe fn launch(
        &self,
        stream: &Stream,
        launch: Launch,
        arguments: &[Argument],
    ) -> Result<(), CudaError> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(Argument::address).collect();
        let [x, y, z] = launch.grid;
        let calls = self.module.inner.context.enter()?;
        // SAFETY: the driver copies the arguments during the call; the caller vouches for them.
        unsafe {
            calls.launch(
                self.function,
                x,
                y,
                z,
                launch.threads,
                1,
                1,
                self.shared_bytes,
                stream.handle(),
                pointers.as_mut_ptr(),
                ptr::null_mut(),
            )
        }
    }
}
