//! The forward pass on an NVIDIA device: weights, products and what stands between them.
//!
//! Products take f16 or bf16, by cuBLAS, with f32 sums; the residual stream, queries, keys, values and logits
//! are f32. Attention, and the K and V that it reads, are someone else's.
//!
//! | part | what it does |
//! |---|---|
//! | [`Embed`], [`Norms`], [`Rotary`], [`Gates`], [`Cast`], [`Greedy`] | launches of the kernels between products |
//! | [`ArithmeticKernel`] | their sources |
//! | [`DeviceModel`], [`Recipe`] | the layers of a model, and what architectures do differently |
//! | [`DeviceKv`] | who attends: a step of a cache in [device memory](crate::cache::DeviceMemory), say |

mod cast;
mod embed;
mod gate;
mod greedy;
mod kv;
mod launcher;
mod layer;
mod model;
mod norm;
mod paged;
mod recipe;
mod rope;
mod runner;
mod scratch;
mod upload;
mod weights;

pub use cast::Cast;
pub use embed::Embed;
pub use gate::{Activation, Gates};
pub use greedy::{Choice, Greedy, token};
pub use kv::DeviceKv;
pub use launcher::ArithmeticKernel;
pub use model::{DeviceModel, DeviceSetup};
pub use norm::{Gain, Growth, Norms};
pub use recipe::Recipe;
pub use rope::{HeadNorms, Heads, Pairing, Projected, Rotary, Turns};
pub use runner::OnDevice;
