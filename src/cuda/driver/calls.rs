//! The driver's functions, each bound or a typed error.
//!
//! cudarc finds the library and names its types; it would panic at the first missing function, which
//! is what stub libraries in containers and old drivers bring. Result codes stay integers: a newer
//! driver may return codes that an enum lacks.

use std::{
    ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_void},
    ptr,
};

use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUfunction,
    CUfunction_attribute, CUmodule, CUstream,
};
use libloading::Library;

use crate::cuda::error::{CudaError, CudaVersion};

/// `CUDA_ERROR_OUT_OF_MEMORY`.
pub const OUT_OF_MEMORY: c_int = 2;
/// `CUDA_ERROR_STUB_LIBRARY`.
const STUB_LIBRARY: c_int = 34;
/// `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: c_int = 100;
/// `CUDA_ERROR_UNSUPPORTED_PTX_VERSION`.
pub const UNSUPPORTED_PTX_VERSION: c_int = 222;
/// `CUDA_ERROR_NOT_READY`.
pub const NOT_READY: c_int = 600;

macro_rules! calls {
    ($($name:ident = $symbol:literal ($($arg:ident: $ty:ty),* $(,)?);)+) => {
        /// The functions of one driver library.
        pub struct Calls {
            error_name: unsafe extern "system" fn(c_int, *mut *const c_char) -> c_int,
            $($name: unsafe extern "system" fn($($ty),*) -> c_int,)+
        }

        impl Calls {
            /// Every function that is bound.
            #[cfg(all(test, unix))]
            pub const SYMBOLS: &[&str] = &["cuGetErrorName", $($symbol,)+];

            /// Binds all functions, or names the first one that is not there.
            pub fn bind(library: &Library) -> Result<Self, CudaError> {
                let missing = |symbol: &'static str| {
                    move |_| CudaError::DriverIncomplete { symbol, needed: CudaVersion::OLDEST }
                };
                // SAFETY: the types are the prototypes of `cuda.h` for these versioned names.
                unsafe {
                    Ok(Self {
                        error_name: *library
                            .get(b"cuGetErrorName")
                            .map_err(missing("cuGetErrorName"))?,
                        $($name: *library.get($symbol.as_bytes()).map_err(missing($symbol))?,)+
                    })
                }
            }

            $(
                #[doc = concat!("`", $symbol, "`.\n\n# Safety\nAs the driver's manual says.")]
                #[allow(clippy::too_many_arguments, reason = "the driver's prototypes")]
                pub unsafe fn $name(&self, $($arg: $ty),*) -> Result<(), CudaError> {
                    // SAFETY: the caller keeps the contract of the driver's function.
                    self.check($symbol, unsafe { (self.$name)($($arg),*) })
                }
            )+
        }
    };
}

calls! {
    init = "cuInit"(flags: c_uint);
    driver_version = "cuDriverGetVersion"(version: *mut c_int);
    device_count = "cuDeviceGetCount"(count: *mut c_int);
    device_get = "cuDeviceGet"(device: *mut CUdevice, ordinal: c_int);
    device_name = "cuDeviceGetName"(name: *mut c_char, len: c_int, device: CUdevice);
    device_memory = "cuDeviceTotalMem_v2"(bytes: *mut usize, device: CUdevice);
    device_attribute = "cuDeviceGetAttribute"(
        value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice,
    );
    context_retain = "cuDevicePrimaryCtxRetain"(context: *mut CUcontext, device: CUdevice);
    context_release = "cuDevicePrimaryCtxRelease_v2"(device: CUdevice);
    context_set = "cuCtxSetCurrent"(context: CUcontext);
    stream_create = "cuStreamCreate"(stream: *mut CUstream, flags: c_uint);
    stream_destroy = "cuStreamDestroy_v2"(stream: CUstream);
    stream_synchronize = "cuStreamSynchronize"(stream: CUstream);
    stream_wait = "cuStreamWaitEvent"(stream: CUstream, event: CUevent, flags: c_uint);
    event_create = "cuEventCreate"(event: *mut CUevent, flags: c_uint);
    event_destroy = "cuEventDestroy_v2"(event: CUevent);
    event_record = "cuEventRecord"(event: CUevent, stream: CUstream);
    event_query = "cuEventQuery"(event: CUevent);
    event_synchronize = "cuEventSynchronize"(event: CUevent);
    event_elapsed = "cuEventElapsedTime"(milliseconds: *mut f32, from: CUevent, to: CUevent);
    memory_info = "cuMemGetInfo_v2"(free: *mut usize, total: *mut usize);
    memory_alloc = "cuMemAlloc_v2"(memory: *mut CUdeviceptr, bytes: usize);
    memory_free = "cuMemFree_v2"(memory: CUdeviceptr);
    host_alloc = "cuMemHostAlloc"(memory: *mut *mut c_void, bytes: usize, flags: c_uint);
    host_free = "cuMemFreeHost"(memory: *mut c_void);
    copy_to_device = "cuMemcpyHtoDAsync_v2"(
        to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream,
    );
    copy_to_host = "cuMemcpyDtoHAsync_v2"(
        to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream,
    );
    copy_on_device = "cuMemcpyDtoDAsync_v2"(
        to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream,
    );
    fill = "cuMemsetD8Async"(to: CUdeviceptr, byte: c_uchar, bytes: usize, stream: CUstream);
    module_load = "cuModuleLoadData"(module: *mut CUmodule, image: *const c_void);
    module_unload = "cuModuleUnload"(module: CUmodule);
    module_function = "cuModuleGetFunction"(
        function: *mut CUfunction, module: CUmodule, name: *const c_char,
    );
    module_global = "cuModuleGetGlobal_v2"(
        memory: *mut CUdeviceptr, bytes: *mut usize, module: CUmodule, name: *const c_char,
    );
    function_set = "cuFuncSetAttribute"(
        function: CUfunction, attribute: CUfunction_attribute, value: c_int,
    );
    occupancy = "cuOccupancyMaxActiveBlocksPerMultiprocessor"(
        blocks: *mut c_int, function: CUfunction, threads: c_int, shared_bytes: usize,
    );
    launch = "cuLaunchKernel"(
        function: CUfunction,
        grid_x: c_uint, grid_y: c_uint, grid_z: c_uint,
        block_x: c_uint, block_y: c_uint, block_z: c_uint,
        shared_bytes: c_uint, stream: CUstream,
        parameters: *mut *mut c_void, extra: *mut *mut c_void,
    );
}

impl Calls {
    fn check(&self, call: &'static str, code: c_int) -> Result<(), CudaError> {
        match code {
            0 => Ok(()),
            STUB_LIBRARY => Err(CudaError::DriverStub),
            NO_DEVICE => Err(CudaError::NoDevice),
            _ => Err(CudaError::Driver { call, code, name: self.name_of(code) }),
        }
    }

    fn name_of(&self, code: c_int) -> String {
        let mut name = ptr::null();
        // SAFETY: takes any code, and writes a static string or null.
        let known = unsafe { (self.error_name)(code, &mut name) } == 0;
        if !known || name.is_null() {
            return "unknown".to_owned();
        }
        // SAFETY: the driver returned a zero-terminated static string.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    }
}

impl std::fmt::Debug for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Calls").finish_non_exhaustive()
    }
}
