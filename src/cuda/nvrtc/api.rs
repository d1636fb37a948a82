//! NVRTC's functions, bound one by one.
//!
//! cudarc binds them too, but only from a library that the system's loader finds by name, and it
//! panics where one is missing.

use std::{
    ffi::{CStr, CString, OsStr, c_char, c_int},
    path::{Path, PathBuf},
    ptr,
};

use cudarc::nvrtc::sys::nvrtcProgram;
use libloading::Library;

use super::source::Source;
use crate::cuda::error::{CudaError, CudaVersion};

/// Result codes are plain integers here: a newer library may return codes that an enum lacks.
type Code = c_int;

type Create = unsafe extern "C" fn(
    *mut nvrtcProgram,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> Code;
type Destroy = unsafe extern "C" fn(*mut nvrtcProgram) -> Code;
type Compile = unsafe extern "C" fn(nvrtcProgram, c_int, *const *const c_char) -> Code;
type Size = unsafe extern "C" fn(nvrtcProgram, *mut usize) -> Code;
type Text = unsafe extern "C" fn(nvrtcProgram, *mut c_char) -> Code;
type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> Code;
type ErrorString = unsafe extern "C" fn(Code) -> *const c_char;

/// The functions of one open library, and its handles.
#[derive(Debug)]
pub struct Api {
    create: Create,
    destroy: Destroy,
    compile: Compile,
    ptx: (Size, Text),
    cubin: (Size, Text),
    log: (Size, Text),
    error_string: ErrorString,
    version: CudaVersion,
    path: PathBuf,
    _handles: Vec<Library>,
}

impl Api {
    /// Opens `file` after the libraries it will look for by name, which it then finds loaded.
    pub fn open(file: &OsStr, before: &[PathBuf]) -> Result<Self, CudaError> {
        let path = Path::new(file);
        let unusable = |e: libloading::Error| CudaError::NvrtcUnusable {
            path: path.into(),
            reason: clean(&e),
        };
        let mut handles = Vec::new();
        for needed in before {
            // SAFETY: NVIDIA's libraries run only their own registration on load.
            handles.push(unsafe { Library::new(needed) }.map_err(unusable)?);
        }
        // SAFETY: as above.
        let library = unsafe { Library::new(file) }.map_err(unusable)?;
        // SAFETY: the type parameters are the prototypes of `nvrtc.h`, unchanged since CUDA 11.1.
        let api = unsafe {
            Self {
                create: *library.get::<Create>(b"nvrtcCreateProgram").map_err(unusable)?,
                destroy: *library.get::<Destroy>(b"nvrtcDestroyProgram").map_err(unusable)?,
                compile: *library.get::<Compile>(b"nvrtcCompileProgram").map_err(unusable)?,
                ptx: (
                    *library.get::<Size>(b"nvrtcGetPTXSize").map_err(unusable)?,
                    *library.get::<Text>(b"nvrtcGetPTX").map_err(unusable)?,
                ),
                cubin: (
                    *library.get::<Size>(b"nvrtcGetCUBINSize").map_err(unusable)?,
                    *library.get::<Text>(b"nvrtcGetCUBIN").map_err(unusable)?,
                ),
                log: (
                    *library.get::<Size>(b"nvrtcGetProgramLogSize").map_err(unusable)?,
                    *library.get::<Text>(b"nvrtcGetProgramLog").map_err(unusable)?,
                ),
                error_string: *library.get(b"nvrtcGetErrorString").map_err(unusable)?,
                version: CudaVersion::OLDEST,
                path: path.into(),
                _handles: Vec::new(),
            }
        };
        // SAFETY: the prototype is that of `nvrtc.h`.
        let version = unsafe { *library.get::<Version>(b"nvrtcVersion").map_err(unusable)? };
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are to live integers.
        api.check("nvrtcVersion", unsafe { version(&mut major, &mut minor) })?;
        handles.push(library);
        let version = CudaVersion { major: major.unsigned_abs(), minor: minor.unsigned_abs() };
        if version < CudaVersion::OLDEST {
            return Err(CudaError::NvrtcTooOld { found: version, needed: CudaVersion::OLDEST });
        }
        Ok(Self { version, _handles: handles, ..api })
    }

    pub fn version(&self) -> CudaVersion {
        self.version
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn check(&self, call: &'static str, code: Code) -> Result<(), CudaError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: takes any integer, and returns a static string.
        let text = unsafe { (self.error_string)(code) };
        let text = if text.is_null() {
            "unknown".to_owned()
        } else {
            // SAFETY: a non-null result is a zero-terminated static string.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        Err(CudaError::Nvrtc { call, code, text })
    }
}

/// The loader's message on one line.
fn clean(error: &libloading::Error) -> String {
    let source = std::error::Error::source(error).map(|s| s.to_string());
    source.unwrap_or_else(|| error.to_string()).replace('\n', " ")
}

/// A program being compiled.
pub struct Program {
    api: &'static Api,
    handle: nvrtcProgram,
}

impl Program {
    pub fn new(api: &'static Api, source: &Source<'_>) -> Result<Self, CudaError> {
        let text = c_string("the source", source.text)?;
        let name = c_string("the source's name", source.name)?;
        let headers = c_strings("a header", source.headers.iter().map(|h| h.1))?;
        let names = c_strings("a header's name", source.headers.iter().map(|h| h.0))?;
        let (header_ptrs, name_ptrs) = (pointers(&headers), pointers(&names));
        let mut handle = ptr::null_mut();
        // SAFETY: all pointers are to zero-terminated strings and arrays of `len` of them that
        // outlive the call; NVRTC copies them.
        let code = unsafe {
            (api.create)(
                &mut handle,
                text.as_ptr(),
                name.as_ptr(),
                count(header_ptrs.len()),
                header_ptrs.as_ptr(),
                name_ptrs.as_ptr(),
            )
        };
        api.check("nvrtcCreateProgram", code)?;
        Ok(Self { api, handle })
    }

    pub fn compile(&self, options: &[&str]) -> Result<(), CudaError> {
        let options = c_strings("an option", options.iter().copied())?;
        let option_ptrs = pointers(&options);
        // SAFETY: the handle is live, the array holds `len` zero-terminated strings.
        let code = unsafe {
            (self.api.compile)(self.handle, count(option_ptrs.len()), option_ptrs.as_ptr())
        };
        self.api.check("nvrtcCompileProgram", code)
    }

    pub fn ptx(&self) -> Result<String, CudaError> {
        Ok(text_of(self.bytes("nvrtcGetPTX", self.api.ptx)?))
    }

    pub fn log(&self) -> Result<String, CudaError> {
        Ok(text_of(self.bytes("nvrtcGetProgramLog", self.api.log)?))
    }

    pub fn cubin(&self) -> Result<Vec<u8>, CudaError> {
        self.bytes("nvrtcGetCUBIN", self.api.cubin)
    }

    fn bytes(&self, call: &'static str, (size, get): (Size, Text)) -> Result<Vec<u8>, CudaError> {
        let mut len = 0;
        // SAFETY: the handle is live and `len` a live integer.
        self.api.check(call, unsafe { size(self.handle, &mut len) })?;
        let mut bytes = vec![0u8; len];
        // SAFETY: the buffer holds the `len` bytes that the size call announced.
        self.api.check(call, unsafe { get(self.handle, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the handle came from the create call and is not used again.
        unsafe { (self.api.destroy)(&mut self.handle) };
    }
}

/// The text before its terminating zero.
fn text_of(mut bytes: Vec<u8>) -> String {
    bytes.truncate(bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len()));
    String::from_utf8_lossy(&bytes).into_owned()
}

fn c_string(what: &'static str, text: &str) -> Result<CString, CudaError> {
    CString::new(text).map_err(|_| CudaError::ZeroByte(what))
}

fn c_strings<'a>(
    what: &'static str,
    texts: impl Iterator<Item = &'a str>,
) -> Result<Vec<CString>, CudaError> {
    texts.map(|text| c_string(what, text)).collect()
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).collect()
}

/// A length as NVRTC takes it. Lists that long cannot be built from the few headers and options.
fn count(len: usize) -> c_int {
    c_int::try_from(len).unwrap_or(c_int::MAX)
}
