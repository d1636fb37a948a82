//! The commands of the feature `cuda`, with and without a device.

use std::process::Command;

use super::bench::{Bench, json};
use crate::skipped;

/// All kernels of one format, with no device and whichever NVRTC is there or can be fetched.
#[test]
fn kernels_are_compiled_and_reported() {
    let bench = Bench::new();
    let arguments = ["kernels", "--arch", "sm_80", "--head-dim", "64", "--group", "3"];
    let more = ["--format", "i8", "--window", "--sink-logits", "--json", "k.json"];
    let run = || bench.run(&[&arguments[..], &more].concat());
    let output = run();
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("no NVRTC library found") && std::env::var_os("CI").is_none() {
        return skipped::skipped(format_args!("this test compiles kernels, and {stderr}"));
    }
    assert!(output.status.success(), "{stderr}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.ends_with("0 bytes spilled at most\n"), "{text}");
    let report = json(&bench.path("k.json"));
    assert_eq!(report["arch"], "sm_80");
    let terms = &report["shape"]["terms"];
    assert_eq!((&terms["window"], &terms["softcap"]), (&true.into(), &false.into()));
    assert!(text.contains("f16 queries, windows, sink logits\n"), "{text}");
    let kernels = report["kernels"].as_array().unwrap();
    let decode = kernels.iter().find(|k| k["kernel"] == "headwise_decode").unwrap();
    assert!(decode["registers"].as_u64().unwrap() > 32, "{decode}");
    assert!(kernels.iter().all(|k| k["format"]["v"] == "i8" && k["spill_stores"] == 0));
    let devices = report["devices"].as_array().unwrap();
    assert_eq!(devices.is_empty(), report["no_devices"].is_string(), "{report}");
}

#[test]
fn kernels_refuses_what_it_cannot_compile() {
    let bench = Bench::new();
    bench.refuses(&["kernels", "--head-dim", "40"], "--head-dim 40 is no multiple of 16 up to 256");
    bench.refuses(
        &["kernels", "--head-dim", "512"],
        "--head-dim 512 is no multiple of 16 up to 256",
    );
    bench.refuses(&["kernels", "--group", "0"], "--group 0 is not from 1 to 128");
    bench.refuses(&["kernels", "--arch", "sm_75"], "the kernels need sm_80 or newer, not sm_75");
    let missing = Command::new(env!("CARGO_BIN_EXE_headwise"))
        .arg("kernels")
        .env("HEADWISE_NVRTC", bench.folder.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&missing.stderr);
    assert_eq!(missing.status.code(), Some(2), "{stderr}");
    assert!(stderr.starts_with("headwise: no NVRTC library found, tried "), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
}

#[test]
fn bench_serving_refuses_what_it_cannot_measure() {
    let bench = Bench::new();
    let refuses = |arguments: &[&str], what: &str| {
        bench.refuses(&[&["bench-serving"], arguments].concat(), what);
    };
    refuses(&["--layers", "0"], "--layers 0 leaves nothing to measure");
    refuses(&["--rates", "1,0.5"], "a compression rate of 0.5 is not from 1 up");
    refuses(&["--rates", "inf"], "a compression rate of inf is not from 1 up");
    refuses(&["--kv-gib", "0"], "--kv-gib 0 is no size of memory");
    refuses(&["--json", "no/such/folder/out.json"], "cannot write no/such/folder/out.json");
    // Without a device, what is missing; with one, the smallest run.
    let arguments = ["bench-serving", "--layers", "1", "--kv-gib", "1", "--steps", "16"];
    let output = bench.run(&[&arguments[..], &["--rates", "2", "--json", "s.json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        let report = json(&bench.path("s.json"));
        assert_eq!(report["runs"].as_array().unwrap().len(), 4, "{report}");
        return;
    }
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.starts_with("headwise: "), "{stderr}");
    assert!(["CUDA", "NVRTC", "cuBLAS"].iter().any(|name| stderr.contains(name)), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
}

#[test]
fn bench_gpu_refuses_what_it_cannot_measure() {
    let bench = Bench::new();
    let refuses = |arguments: &[&str], what: &str| {
        bench.refuses(&[&["bench-gpu"], arguments].concat(), what);
    };
    refuses(&["--lengths", "1024,0"], "there is nothing to measure: no length");
    refuses(&["--batches", "0"], "there is nothing to measure: no batch");
    refuses(&["--head-dim", "40"], "head_dim 40");
    refuses(&["--kv-heads", "0"], "at least one of each");
    refuses(&["--block-tokens", "0"], "a page of 0 slots");
    refuses(&["--json", "no/such/folder/out.json"], "cannot write no/such/folder/out.json");
    // Without a device, what is missing; with one, the smallest grid.
    let arguments = ["bench-gpu", "--lengths", "1024", "--batches", "1", "--memory", "1"];
    let output = bench.run(&[&arguments[..], &["--format", "f16", "--json", "g.json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        let report = json(&bench.path("g.json"));
        assert!(report["copy_gbps"].as_f64().unwrap() > 0.0, "{report}");
        assert!(!report["decode"].as_array().unwrap().is_empty(), "{report}");
        return;
    }
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.starts_with("headwise: "), "{stderr}");
    assert!(["CUDA", "NVRTC"].iter().any(|name| stderr.contains(name)), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
}
