//! The engine's model half, end to end: files, tokenizer, forward pass.

#[path = "../common/real_model.rs"]
mod real_model;
#[path = "../common/skipped.rs"]
mod skipped;
#[path = "../common/tiny_llama.rs"]
mod tiny_llama;

mod files;
mod forward;
mod gemma;
mod keys;
mod layout;
mod limits;
mod paged;
mod pieces;
mod reference;
mod serving;
mod stop;
mod tiny_gemma;
mod vocabulary;
