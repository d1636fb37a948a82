//! The compiler that tests use.

use std::env;

use headwise::cuda::nvrtc::Nvrtc;

use crate::skipped::skipped;

/// NVRTC, fetched where this machine has none. `None`, loudly, where that is impossible; under CI it
/// is a failure.
pub fn nvrtc() -> Option<Nvrtc> {
    match Nvrtc::open_or_fetch(&mut |_| ()) {
        Ok(nvrtc) => Some(nvrtc),
        Err(error) if env::var_os("CI").is_none() => {
            skipped(format_args!("this test compiles CUDA C++, and {error}"));
            None
        }
        Err(error) => panic!("{error}"),
    }
}
