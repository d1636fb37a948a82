//! A driver in host memory, built from `driver.c` with the system's C compiler.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_long, c_uint},
    fs,
    path::{Path, PathBuf},
    process::Command,
    slice,
    sync::{LazyLock, Mutex},
};

use headwise::cuda::driver::Driver;
use libloading::Library;
use tempfile::TempDir;

/// A launch that runs, as `driver.c` has it.
#[repr(C)]
pub struct RawLaunch {
    name: *const c_char,
    ptx: *const c_char,
    grid: *const c_uint,
    threads: c_uint,
    shared: c_uint,
    arguments: *const u64,
    sizes: *const u8,
    count: c_uint,
}

/// What runs instead of a kernel; anything but 0 fails the stream.
pub type OnLaunch = unsafe extern "C" fn(*const RawLaunch) -> c_int;

/// A launch that runs.
pub struct Launch<'a> {
    pub name: &'a str,
    pub ptx: &'a str,
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared: u32,
    pub arguments: &'a [u64],
    /// Bytes of each argument.
    pub sizes: &'a [u8],
}

impl Launch<'_> {
    /// # Safety
    /// `raw` comes from `driver.c`, and the launch is used only while its callback runs.
    pub unsafe fn new<'a>(raw: *const RawLaunch) -> Launch<'a> {
        // SAFETY: the driver passes zero-terminated texts, three numbers, and `count` arguments.
        unsafe {
            let raw = &*raw;
            let count = raw.count as usize;
            Launch {
                name: CStr::from_ptr(raw.name).to_str().unwrap_or_default(),
                ptx: CStr::from_ptr(raw.ptx).to_str().unwrap_or_default(),
                grid: *raw.grid.cast::<[u32; 3]>(),
                threads: raw.threads,
                shared: raw.shared,
                arguments: slice::from_raw_parts(raw.arguments, count),
                sizes: slice::from_raw_parts(raw.sizes, count),
            }
        }
    }
}

/// One instance of the driver: its own devices, memory and queue.
pub struct Fake {
    pub driver_path: PathBuf,
    library: Library,
    _folder: TempDir,
}

/// Builds a shared library, or says why not.
pub fn build(source: &Path, to: &Path) -> Result<(), String> {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let built = Command::new(&compiler)
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(to)
        .arg(source)
        .output()
        .map_err(|e| format!("{compiler}: {e}"))?;
    if built.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&built.stderr).into()) }
}

impl Fake {
    /// A new instance; `None`, loudly, where there is no C compiler.
    pub fn new() -> Option<Self> {
        static BUILT: LazyLock<Mutex<Option<Vec<u8>>>> = LazyLock::new(Mutex::default);
        let mut built = BUILT.lock().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let driver_path = folder.path().join("libfakecuda.so");
        if built.is_none() {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_support/driver.c");
            if let Err(error) = build(&source, &driver_path) {
                crate::skipped::skipped(format_args!(
                    "this test builds a driver of its own, and {error}"
                ));
                return None;
            }
            *built = Some(fs::read(&driver_path).unwrap());
        } else if let Some(bytes) = &*built {
            // A copy under another name is another instance.
            fs::write(&driver_path, bytes).unwrap();
        }
        // SAFETY: the library was built from `driver.c`, which runs nothing on load.
        let library = unsafe { Library::new(&driver_path) }.unwrap();
        Some(Self { driver_path, library, _folder: folder })
    }

    /// Opens it as the driver.
    pub fn open(&self) -> Result<Driver, headwise::cuda::CudaError> {
        // SAFETY: the functions of `driver.c` have the driver's prototypes.
        unsafe { Driver::open_at(&self.driver_path) }
    }

    /// Sets `version`, `devices`, `arch`, or how many bytes are said to be `free`.
    pub fn set(&self, what: &str, value: c_int) {
        let what = CString::new(what).unwrap();
        // SAFETY: the prototype is that of `driver.c`.
        unsafe {
            let set = self.library.get::<unsafe extern "C" fn(*const c_char, c_int)>(b"fake_set");
            set.unwrap()(what.as_ptr(), value);
        }
    }

    /// Lets a function fail from now on; no function has an empty name.
    pub fn fail(&self, call: &str, code: c_int) {
        let call = CString::new(call).unwrap();
        // SAFETY: the prototype is that of `driver.c`.
        unsafe {
            let fail = self.library.get::<unsafe extern "C" fn(*const c_char, c_int)>(b"fake_fail");
            fail.unwrap()(call.as_ptr(), code);
        }
    }

    /// What launches do when they run.
    pub fn on_launch(&self, callback: OnLaunch) {
        // SAFETY: the prototype is that of `driver.c`.
        unsafe {
            let set = self.library.get::<unsafe extern "C" fn(OnLaunch)>(b"fake_on_launch");
            set.unwrap()(callback);
        }
    }

    /// Handles and allocations that were not given back.
    pub fn live(&self) -> c_long {
        // SAFETY: the prototype is that of `driver.c`.
        unsafe { self.library.get::<unsafe extern "C" fn() -> c_long>(b"fake_live").unwrap()() }
    }

    /// Start and bytes of the device allocation that an address is in.
    pub fn allocation(&self, address: u64) -> Option<(u64, usize)> {
        type Find = unsafe extern "C" fn(u64, *mut u64) -> usize;
        let mut start = 0;
        // SAFETY: the prototype is that of `driver.c`; the pointer is to a live integer.
        let bytes =
            unsafe { self.library.get::<Find>(b"fake_allocation").unwrap()(address, &mut start) };
        (bytes > 0).then_some((start, bytes))
    }
}
