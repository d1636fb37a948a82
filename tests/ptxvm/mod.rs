//! An interpreter of the PTX that NVRTC emits, which checks what a GPU does not: every access
//! against bounds, alignment and initialisation, every pair of accesses to shared memory for an
//! order between them, every asynchronous copy for its wait.
//!
//! Blocks run one after the other in an order that the seed picks; so do turns of the warps in a
//! block. Lanes run in lock step by least program counter. Where PTX leaves a choice the machine
//! takes the one that a wrong kernel notices: copies land as late as they may, and lock step orders
//! nothing.

mod ast;
mod counters;
mod decode;
mod error;
mod exec;
mod float;
mod inst;
mod lex;
mod machine;
mod memory;
mod parse;
mod rng;
mod types;
mod warp;

pub use counters::Stats;
pub use error::{Error, FaultKind, Hazard};
pub use machine::{Arg, DevicePtr, Machine, Module};
