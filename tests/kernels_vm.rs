//! The CUDA kernels, without a GPU: compiled by NVRTC, run by the PTX interpreter, compared with
//! plain loops in f64.
//!
//! Needs NVRTC, and fetches it where it is missing. Where that is impossible these tests say so loudly
//! and pass, except under CI, where they fail.

#[cfg(unix)]
#[path = "cuda_support/backend.rs"]
mod backend;
#[cfg(unix)]
#[path = "cuda_support/compiler.rs"]
mod compiler;
#[cfg(unix)]
#[path = "conformance/mod.rs"]
mod conformance;
#[cfg(unix)]
#[path = "cuda_support/engine.rs"]
mod engine;
#[cfg(unix)]
#[path = "cuda_support/fake.rs"]
mod fake;
#[cfg(unix)]
#[path = "cuda_support/launches.rs"]
mod launch_cases;
#[cfg(unix)]
#[path = "cuda_support/lifecycle.rs"]
mod lifecycle;
mod ptxvm;
#[cfg(unix)]
#[path = "cuda_support/serving.rs"]
mod serving_loop;
#[cfg(unix)]
#[path = "common/skipped.rs"]
mod skipped;

mod kernels_vm {
    mod budgets;
    mod compiling;
    #[cfg(unix)]
    mod conformance;
    mod decode;
    mod eviction;
    mod faults;
    #[cfg(unix)]
    mod glue;
    mod harness;
    #[cfg(unix)]
    mod launches;
    mod paged;
    mod prefill;
    mod scores;
    #[cfg(unix)]
    mod serving;
    mod slots;
    #[cfg(unix)]
    mod terms;
    #[cfg(unix)]
    mod whole;
    mod world;
}
