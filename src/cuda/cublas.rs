//! Products of matrices by cuBLAS, opened at run time.

use std::{
    env,
    ffi::{CStr, OsStr, c_char, c_int, c_void},
    path::{Path, PathBuf},
    ptr,
};

use libloading::Library;

use super::{
    driver::{Context, Stream},
    error::CudaError,
    rows::{DeviceRows, DeviceRowsMut, Element, unless_element, unless_equal, unless_same_context},
};

/// The environment variable that names the folder of cuBLAS.
pub const ENV_FOLDER: &str = "HEADWISE_CUBLAS";

/// Names of the library, the newest first, and of the one that it opens by name itself.
const NAMES: [(&str, &str); 2] =
    [("libcublas.so.13", "libcublasLt.so.13"), ("libcublas.so.12", "libcublasLt.so.12")];

type Code = c_int;
type Handle = *mut c_void;
type Create = unsafe extern "C" fn(*mut Handle) -> Code;
type Destroy = unsafe extern "C" fn(Handle) -> Code;
type SetStream = unsafe extern "C" fn(Handle, *mut c_void) -> Code;
type StatusString = unsafe extern "C" fn(Code) -> *const c_char;
type GemmEx = unsafe extern "C" fn(
    handle: Handle,
    operation_a: c_int,
    operation_b: c_int,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: *const c_void,
    a: *const c_void,
    type_a: c_int,
    stride_a: c_int,
    b: *const c_void,
    type_b: c_int,
    stride_b: c_int,
    beta: *const c_void,
    c: *mut c_void,
    type_c: c_int,
    stride_c: c_int,
    compute: c_int,
    algorithm: c_int,
) -> Code;

/// `CUBLAS_OP_N` and `CUBLAS_OP_T`.
const PLAIN: c_int = 0;
const TRANSPOSED: c_int = 1;
/// `CUBLAS_COMPUTE_32F`, `CUBLAS_GEMM_DEFAULT`.
const COMPUTE_F32: c_int = 68;
const DEFAULT_ALGORITHM: c_int = -1;

/// The sizes of y = scale · x · wᵀ, row after row: x `[rows, inputs]`, w `[outputs, inputs]`,
/// y `[rows, outputs]`. Sums are f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// Rows of x and y.
    pub rows: usize,
    /// Values of a row of y.
    pub outputs: usize,
    /// Values of a row of x and of w.
    pub inputs: usize,
    /// How x and w are stored.
    pub input: Element,
    /// How y is stored: as x and w, or f32.
    pub output: Element,
    /// Values from one row of x to the next.
    pub stride: usize,
    /// Values from one row of y to the next.
    pub output_stride: usize,
    /// What every sum is multiplied by.
    pub scale: f32,
    /// Whether the result is added to what y holds; otherwise y is not read.
    pub accumulate: bool,
}

impl Product {
    /// y = x · wᵀ, all f16, with y's rows one after another.
    pub fn f16(rows: usize, outputs: usize, inputs: usize, stride: usize) -> Self {
        Self {
            rows,
            outputs,
            inputs,
            input: Element::F16,
            output: Element::F16,
            stride,
            output_stride: outputs,
            scale: 1.0,
            accumulate: false,
        }
    }
}

/// Multiplies matrices on a device.
pub trait Gemm {
    /// Queues y = scale · x · wᵀ, or y += scale · x · wᵀ. No rows are nothing to do.
    ///
    /// # Errors
    /// [`CudaError::ProductTooLarge`]; types that the library does not multiply.
    ///
    /// # Safety
    /// `[w, x, y]` are device addresses that cover what `product` names, until the stream is done.
    unsafe fn multiply(
        &self,
        product: &Product,
        addresses: [u64; 3],
        stream: &Stream,
    ) -> Result<(), CudaError>;
}

/// Queues y = scale · x · wᵀ over checked rows, or y += scale · x · wᵀ. The rows of `w` follow one another.
///
/// # Errors
/// [`CudaError::OtherContext`], [`CudaError::WrongLength`] or [`CudaError::WrongElement`] for rows that do
/// not belong together; what [`Gemm::multiply`] refuses.
pub fn multiply(
    gemm: &dyn Gemm,
    w: DeviceRows<'_>,
    x: DeviceRows<'_>,
    y: DeviceRowsMut<'_>,
    (scale, accumulate): (f32, bool),
    stream: &Stream,
) -> Result<(), CudaError> {
    let y = y.as_rows();
    unless_same_context(stream.context(), [w.context(), x.context(), y.context()])?;
    for (what, got, expected) in [
        ("values of a row to multiply", x.columns(), w.columns()),
        ("values from one row of weights to the next", w.stride(), w.columns()),
        ("rows of a product", y.rows(), x.rows()),
        ("values of a row of a product", y.columns(), w.rows()),
    ] {
        unless_equal(what, got, expected)?;
    }
    unless_element("rows to multiply", x.element(), w.element())?;
    if y.element() != w.element() {
        unless_element("rows of a product", y.element(), Element::F32)?;
    }
    let product = Product {
        rows: x.rows(),
        outputs: w.rows(),
        inputs: w.columns(),
        input: w.element(),
        output: y.element(),
        stride: x.stride(),
        output_stride: y.stride(),
        scale,
        accumulate,
    };
    // SAFETY: the views cover what they name, and the sizes are theirs. Memory is freed only when the work
    // that uses it is done.
    unsafe { gemm.multiply(&product, [w.address(), x.address(), y.address()], stream) }
}

/// cuBLAS, with a handle in one context.
#[derive(Debug)]
pub struct CuBlas {
    handle: Handle,
    context: Context,
    destroy: Destroy,
    set_stream: SetStream,
    gemm: GemmEx,
    status: StatusString,
    // Never unloaded before the handle is gone: fields drop after `drop`.
    _libraries: Vec<Library>,
}

impl CuBlas {
    /// Opens cuBLAS in the folder that `HEADWISE_CUBLAS` names, else by name, and makes a handle.
    ///
    /// # Errors
    /// [`CudaError::CublasMissing`] with the places that were tried; [`CudaError::CublasUnusable`]; a
    /// call that failed.
    pub fn open(context: &Context) -> Result<Self, CudaError> {
        Self::open_in(context, env::var_os(ENV_FOLDER).as_deref())
    }

    fn open_in(context: &Context, folder: Option<&OsStr>) -> Result<Self, CudaError> {
        let (path, libraries) = find(folder)?;
        let unusable = |error: libloading::Error| CudaError::CublasUnusable {
            path: path.clone(),
            reason: reason(&error),
        };
        let library = &libraries[libraries.len() - 1];
        // SAFETY: the types are the prototypes of `cublas_api.h`, the same in versions 12 and 13.
        let (create, mut blas) = unsafe {
            let create = *library.get::<Create>(b"cublasCreate_v2").map_err(unusable)?;
            let blas = Self {
                handle: ptr::null_mut(),
                context: context.clone(),
                destroy: *library.get(b"cublasDestroy_v2").map_err(unusable)?,
                set_stream: *library.get(b"cublasSetStream_v2").map_err(unusable)?,
                gemm: *library.get(b"cublasGemmEx").map_err(unusable)?,
                status: *library.get(b"cublasGetStatusString").map_err(unusable)?,
                _libraries: Vec::new(),
            };
            (create, blas)
        };
        blas._libraries = libraries;
        context.make_current()?;
        let mut handle = ptr::null_mut();
        // SAFETY: the pointer is to a live handle, a context is current.
        let code = unsafe { create(&mut handle) };
        blas.check("cublasCreate_v2", code)?;
        blas.handle = handle;
        Ok(blas)
    }

    fn check(&self, call: &'static str, code: Code) -> Result<(), CudaError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: takes any integer, and returns a static string.
        let text = unsafe { (self.status)(code) };
        let text = if text.is_null() {
            "unknown".to_owned()
        } else {
            // SAFETY: a non-null result is a zero-terminated static string.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        Err(CudaError::Cublas { call, code, text })
    }
}

// SAFETY: a handle may be used from any thread, one at a time; calls make the context current first.
unsafe impl Send for CuBlas {}

/// `CUDA_R_32F`, `CUDA_R_16F` and `CUDA_R_16BF`.
fn number(element: Element) -> c_int {
    match element {
        Element::F32 => 0,
        Element::F16 => 2,
        Element::Bf16 => 14,
    }
}

impl Gemm for CuBlas {
    unsafe fn multiply(
        &self,
        product: &Product,
        [w, x, y]: [u64; 3],
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let Product { rows, outputs, inputs, input, output, stride, output_stride, .. } = *product;
        if rows == 0 || outputs == 0 {
            return Ok(());
        }
        let size = |value: usize| {
            c_int::try_from(value).map_err(|_| CudaError::ProductTooLarge { size: value })
        };
        let [rows, outputs, inputs] = [size(rows)?, size(outputs)?, size(inputs)?];
        let [stride, output_stride] = [size(stride)?, size(output_stride)?];
        let (scale, kept) = (product.scale, if product.accumulate { 1f32 } else { 0f32 });
        self.context.make_current()?;
        // SAFETY: both handles are live.
        self.check("cublasSetStream_v2", unsafe {
            (self.set_stream)(self.handle, stream.as_raw())
        })?;
        // cuBLAS counts by columns: what it sees is yᵀ = (w as [inputs, outputs])ᵀ · xᵀ.
        // SAFETY: the scalars live through the call, which reads them; the caller vouches for the rest.
        let code = unsafe {
            (self.gemm)(
                self.handle,
                TRANSPOSED,
                PLAIN,
                outputs,
                rows,
                inputs,
                ptr::from_ref(&scale).cast(),
                ptr::with_exposed_provenance(w as usize),
                number(input),
                inputs,
                ptr::with_exposed_provenance(x as usize),
                number(input),
                stride,
                ptr::from_ref(&kept).cast(),
                ptr::with_exposed_provenance_mut(y as usize),
                number(output),
                output_stride,
                COMPUTE_F32,
                DEFAULT_ALGORITHM,
            )
        };
        self.check("cublasGemmEx", code)
    }
}

impl Drop for CuBlas {
    fn drop(&mut self) {
        if !self.handle.is_null() && self.context.make_current().is_ok() {
            // SAFETY: made by `open_in` and not used again.
            unsafe { (self.destroy)(self.handle) };
        }
    }
}

/// The library and those it needs, it last, and its path.
fn find(folder: Option<&OsStr>) -> Result<(PathBuf, Vec<Library>), CudaError> {
    let mut tried = Vec::new();
    for (name, needed) in NAMES {
        let path = folder.map_or_else(|| PathBuf::from(name), |f| Path::new(f).join(name));
        let mut libraries = Vec::new();
        if folder.is_some() {
            if !path.is_file() {
                tried.push(path.display().to_string());
                continue;
            }
            // What cuBLAS looks for by name it then finds open.
            // SAFETY: NVIDIA's libraries run only their own registration on load.
            libraries.extend(unsafe { Library::new(path.with_file_name(needed)) });
        }
        // SAFETY: as above.
        match unsafe { Library::new(&path) } {
            Ok(library) => {
                libraries.push(library);
                return Ok((path, libraries));
            }
            Err(error) if folder.is_some() => {
                return Err(CudaError::CublasUnusable { path, reason: reason(&error) });
            }
            Err(_) => tried.push(name.to_owned()),
        }
    }
    Err(CudaError::CublasMissing { tried: tried.join(", ") })
}

/// The loader's message on one line.
fn reason(error: &libloading::Error) -> String {
    let source = std::error::Error::source(error).map(|s| s.to_string());
    source.unwrap_or_else(|| error.to_string()).replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_folder_without_the_library_says_what_was_tried() {
        let folder = tempfile::tempdir().unwrap();
        let error = find(Some(folder.path().as_os_str())).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("no cuBLAS library found, tried "), "{text}");
        assert!(text.contains("libcublas.so.13") && text.contains("libcublas.so.12"), "{text}");
        assert!(text.ends_with("set HEADWISE_CUBLAS to the folder that holds it"), "{text}");
    }

    #[test]
    fn a_file_that_is_no_library_says_why() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("libcublas.so.13"), "not a library").unwrap();
        let text = find(Some(folder.path().as_os_str())).unwrap_err().to_string();
        assert!(text.starts_with("cannot use ") && text.contains(" as cuBLAS: "), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}
