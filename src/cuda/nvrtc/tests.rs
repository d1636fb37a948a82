//! The compiler where there is one, and what is said where there is none.

use std::{env, fs};

use crate::cuda::nvrtc::*;

const KERNEL: &str = r#"
#include "scale.cuh"
extern "C" __global__ void headwise_probe(float* x, int n) {
    __shared__ float tile[256];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    tile[threadIdx.x] = i < n ? x[i] : 0.0f;
    __syncthreads();
    if (i < n) x[i] = tile[255 - threadIdx.x] * SCALE * FACTOR;
}
"#;

fn source(text: &str) -> Source<'_> {
    Source { name: "probe.cu", text, headers: &[("scale.cuh", "#define SCALE 2.0f\n")] }
}

/// The library, fetched where this machine has none. `None`, loudly, where that is impossible; under CI
/// it is a failure.
pub fn nvrtc() -> Option<Nvrtc> {
    match Nvrtc::open_or_fetch(&mut |_| ()) {
        Ok(nvrtc) => Some(nvrtc),
        Err(error) if env::var_os("CI").is_none() => {
            eprintln!("SKIPPED: this test compiles CUDA C++, and {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn compiles_to_ptx_with_headers_and_macros() {
    let Some(nvrtc) = nvrtc() else { return };
    let options = ["-DFACTOR=3.0f".to_owned()];
    for arch in Arch::TESTED {
        let compiled = nvrtc.compile(&source(KERNEL), &options, arch).unwrap();
        assert!(compiled.ptx.contains(".visible .entry headwise_probe("), "{}", compiled.ptx);
        assert!(compiled.ptx.contains(&format!(".target {arch}")), "{}", compiled.ptx);
        assert!(!compiled.ptx.contains('\0'));
    }
}

#[test]
fn reports_what_machine_code_needs() {
    let Some(nvrtc) = nvrtc() else { return };
    let options = ["-DFACTOR=3.0f".to_owned()];
    let cubin = nvrtc.cubin(&source(KERNEL), &options, "sm_90".parse().unwrap()).unwrap();
    assert_eq!(&cubin.image[..4], b"\x7fELF");
    assert_eq!(cubin.usage.len(), 1, "{}", cubin.log);
    let usage = &cubin.usage[0];
    assert_eq!(usage.kernel, "headwise_probe");
    assert!((1..64).contains(&usage.registers), "{}", cubin.log);
    assert_eq!(usage.shared_bytes, 1024, "{}", cubin.log);
    assert_eq!((usage.spill_stores, usage.spill_loads, usage.barriers), (0, 0, 1));
}

#[test]
fn refusals_carry_the_compilers_words() {
    let Some(nvrtc) = nvrtc() else { return };
    let arch = "sm_90".parse().unwrap();
    let error = nvrtc.compile(&source(KERNEL), &[], arch).unwrap_err().to_string();
    assert!(error.starts_with("probe.cu does not compile for sm_90:\n"), "{error}");
    assert!(error.contains("identifier \"FACTOR\" is undefined"), "{error}");
    let options = ["--no-such-option".to_owned()];
    let error = nvrtc.compile(&source(KERNEL), &options, arch).unwrap_err().to_string();
    assert!(error.contains("no-such-option"), "{error}");
    let unknown = "sm_11".parse().unwrap();
    let error = nvrtc.compile(&source(KERNEL), &[], unknown).unwrap_err().to_string();
    assert!(error.contains("sm_11") && error.contains("gpu-architecture"), "{error}");
    let error = nvrtc.compile(&source("int x;\0"), &[], arch).unwrap_err();
    assert_eq!(error.to_string(), "the source contains a zero byte");
}

#[test]
fn a_folder_without_the_library_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let folders = Folders { explicit: Some(folder.path().into()), cache: None };
    let error = Nvrtc::open(&folders).unwrap_err();
    assert!(matches!(&error, CudaError::NvrtcMissing { .. }));
    let text = error.to_string();
    assert!(text.contains(&folder.path().display().to_string()), "{text}");
    assert!(text.contains("headwise fetch nvrtc") && text.contains(ENV_FOLDER), "{text}");
}

#[cfg(not(windows))]
#[test]
fn a_file_that_is_no_library_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().canonicalize().unwrap().join("libnvrtc.so.13");
    fs::write(&path, "not a library").unwrap();
    let folders = Folders { explicit: Some(folder.path().into()), cache: None };
    let error = Nvrtc::open(&folders).unwrap_err();
    assert!(matches!(&error, CudaError::NvrtcUnusable { path: p, .. } if *p == path), "{error}");
    assert!(error.to_string().starts_with(&format!("cannot use {} as NVRTC: ", path.display())));
}
