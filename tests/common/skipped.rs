//! Skips that are seen.

use std::{
    fmt::Display,
    io::{Write, stderr},
};

/// Says on standard error what a test needs and does not have. libtest hides what a passing test
/// prints with `eprintln!`; what is written to the stream itself it does not.
pub fn skipped(why: impl Display) {
    // One write, so that the lines of two threads do not mix.
    let _ = stderr().write_all(format!("SKIPPED: {why}\n").as_bytes());
}
