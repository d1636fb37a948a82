//! The command as its users meet it.

#[cfg(feature = "measure")]
#[path = "common/skipped.rs"]
mod skipped;
#[path = "common/tiny_llama.rs"]
mod tiny_llama;

mod cli {
    mod bench;
    #[cfg(feature = "measure")]
    mod cuda;
    mod flags;
    mod inputs;
    #[cfg(unix)]
    mod outputs;
    mod refusals;
    mod results;
}
