//! What is compiled.

/// A translation unit: everything it includes travels with it, so no file system is involved.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The name that the compiler's messages give it, as `decode.cu`.
    pub name: &'a str,
    /// The CUDA C++ text.
    pub text: &'a str,
    /// (name in `#include "…"`, text) of each header.
    pub headers: &'a [(&'a str, &'a str)],
}
