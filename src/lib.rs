//! headwise: a paged KV-cache block manager in which **every attention head has its own page
//! table**, with its own length (whole pages are evicted head by head) and its own page format.

pub mod attend;
pub mod base;
pub mod cache;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
pub mod device;
#[cfg(feature = "engine")]
pub mod engine;
pub mod evict;
#[cfg(feature = "fetch")]
pub mod fetch;
pub mod format;
#[cfg(feature = "measure")]
pub mod measure;
pub mod plan;
pub mod report;
pub mod store;

/// The README's example, compiled and run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
