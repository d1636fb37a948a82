//! headwise: a paged KV-cache block manager in which **every attention head has its own page
//! table**, with its own length (whole pages are evicted head by head) and its own page format.

pub mod attend;
pub mod base;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod evict;
pub mod format;
pub mod plan;
pub mod store;
