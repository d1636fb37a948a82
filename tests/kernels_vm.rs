//! The CUDA kernels, without a GPU: compiled by NVRTC, run by the PTX interpreter, compared with
//! plain loops in f64.
//!
//! Needs NVRTC, and fetches it where it is missing. Where that is impossible these tests say so loudly
//! and pass, except under CI, where they fail.

#[cfg(all(unix, feature = "engine"))]
#[path = "cuda_support/arithmetic.rs"]
mod arithmetic;
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
#[path = "cuda_support/door.rs"]
mod door;
#[path = "cuda_support/engine.rs"]
mod engine;
#[cfg(unix)]
#[path = "cuda_support/fake.rs"]
mod fake;
#[cfg(all(unix, feature = "engine"))]
#[path = "cuda_support/forward.rs"]
mod forward;
#[cfg(unix)]
#[path = "cuda_support/gemm.rs"]
mod gemm;
#[cfg(unix)]
#[path = "cuda_support/launches.rs"]
mod launch_cases;
#[cfg(unix)]
#[path = "cuda_support/lifecycle.rs"]
mod lifecycle;
#[cfg(all(unix, feature = "engine"))]
#[path = "cuda_support/matrix.rs"]
mod matrix;
mod ptxvm;
#[cfg(unix)]
#[path = "cuda_support/serving.rs"]
mod serving_loop;
#[cfg(unix)]
#[path = "common/skipped.rs"]
mod skipped;
#[cfg(all(unix, feature = "engine"))]
#[path = "common/tiny_llama.rs"]
mod tiny_llama;

mod kernels_vm {
    #[cfg(all(unix, feature = "engine"))]
    mod arithmetic;
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
    #[cfg(all(unix, feature = "engine"))]
    mod model;
    mod paged;
    mod prefill;
    #[cfg(all(unix, feature = "engine"))]
    mod recipe;
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
