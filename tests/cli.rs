//! The command as its users meet it.

#[cfg(feature = "cuda")]
#[path = "common/skipped.rs"]
mod skipped;
#[path = "common/tiny_llama.rs"]
mod tiny_llama;

mod cli {
    mod bench;
    #[cfg(feature = "cuda")]
    mod cuda;
    mod flags;
    mod inputs;
    #[cfg(unix)]
    mod outputs;
    mod refusals;
    mod results;
}
