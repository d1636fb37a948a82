//! Measuring devices: what kernels cost, whether they are right, how fast they are, and what compression
//! is worth to a server. Engines do not need it.
//!
//! | part | what it does |
//! |---|---|
//! | [`report`] | what each kernel costs on an architecture |
//! | [`verify`] | whether what a device computes is right |
//! | [`mod@bench`] | how fast the kernels are beside a plain copy |
//! | [`serving`] | what compression is worth to a server |

pub mod bench;
pub mod report;
pub mod serving;
pub mod verify;
