//! Driver libraries that are absent, incomplete, or stubs.

use std::{env, fs, path::Path, process::Command};

use crate::cuda::{device::DeviceInfo, driver::*};

/// Builds a library in which every function but `omitted` is a stub; `None`, loudly, where there is
/// no C compiler.
fn stub(to: &Path, omitted: &str) -> Option<()> {
    let source = to.with_extension("c");
    let functions = Calls::SYMBOLS.iter().filter(|symbol| **symbol != omitted);
    // 34 is CUDA_ERROR_STUB_LIBRARY, which is what the toolkit's stub returns from everything.
    let text: String = functions.map(|s| format!("int {s}(void) {{ return 34; }}\n")).collect();
    fs::write(&source, text).unwrap();
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let built = Command::new(&compiler)
        .args(["-shared", "-fPIC", "-nostdlib", "-o"])
        .args([to, &source])
        .output();
    match built {
        Ok(output) if output.status.success() => Some(()),
        Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => {
            eprintln!("SKIPPED: this test builds a stub library, and {compiler}: {error}");
            None
        }
    }
}

fn open(path: &Path) -> Result<Driver, CudaError> {
    // SAFETY: the stub's functions ignore their arguments, as the C calling convention allows.
    unsafe { Driver::open_at(path) }
}

#[test]
fn every_function_that_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for symbol in Calls::SYMBOLS {
        let path = folder.path().join(format!("{symbol}.so"));
        let Some(()) = stub(&path, symbol) else { return };
        let error = open(&path).unwrap_err();
        assert!(matches!(error, CudaError::DriverIncomplete { symbol: s, .. } if s == *symbol));
        let text = format!(
            "the CUDA driver library has no {symbol}: it is a stub, or older than CUDA 12.0"
        );
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn a_whole_stub_is_called_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stub.so");
    let Some(()) = stub(&path, "") else { return };
    let error = open(&path).unwrap_err();
    assert_eq!(error, CudaError::DriverStub);
    assert_eq!(
        error.to_string(),
        "the CUDA driver library is a stub for linking; the NVIDIA driver itself is not visible here"
    );
}

/// The loader finds libraries by name once per process, so children look: one with a stub in its
/// path, one with an incomplete stub, one with a file that is no library.
#[cfg(target_os = "linux")]
#[test]
fn what_the_loader_finds_by_name_is_an_error_too() {
    const CHILD: &str = "HEADWISE_TEST_OPENS_DRIVER";
    const NAME: &str = "cuda::driver::tests::what_the_loader_finds_by_name_is_an_error_too";
    if env::var_os(CHILD).is_some() {
        println!("[{}]", Driver::open().map_or_else(|error| error.to_string(), |_| "open".into()));
        return;
    }
    let says = |folder: &Path| {
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(CHILD, "1")
            .env("LD_LIBRARY_PATH", folder)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        text
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libcuda.so");
    let Some(()) = stub(&path, "") else { return };
    assert!(says(folder.path()).contains("[the CUDA driver library is a stub for linking"));
    let Some(()) = stub(&path, "cuLaunchKernel") else { return };
    assert!(says(folder.path()).contains("[the CUDA driver library has no cuLaunchKernel"));
    fs::write(&path, "not a library").unwrap();
    let says = says(folder.path());
    // A machine with a driver falls back on it: the file that is no library is passed over.
    let system = ["[no CUDA driver library found", "[open]", "[the CUDA driver"];
    assert!(system.iter().any(|start| says.contains(start)), "{says}");
}

/// On any machine: devices, or the reason why there are none, on one line.
#[test]
fn this_machine_has_devices_or_a_reason() {
    match DeviceInfo::all() {
        Ok(devices) => assert!(!devices.is_empty()),
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("CUDA") && !text.contains('\n'), "{text}");
            assert_eq!(Driver::open().map(|driver| driver.version()), Err(error));
        }
    }
}
