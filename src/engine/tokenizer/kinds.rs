//! What a token stands for, as `tokenizer.ggml.token_type` says it.

/// Tokens that are text.
pub(super) const TYPE_NORMAL: i64 = 1;
/// What stands for text that a vocabulary cannot spell.
pub(super) const TYPE_UNKNOWN: i64 = 2;
/// Tokens that stand for something else than text.
pub(super) const TYPE_CONTROL: i64 = 3;
/// Tokens that are matched as a whole before BPE, but are text.
pub(super) const TYPE_USER_DEFINED: i64 = 4;
/// Tokens that stand for nothing: converters pad a vocabulary to the rows of the embedding with them
/// (`[PAD300]`).
pub(super) const TYPE_UNUSED: i64 = 5;
/// Tokens that are one byte, for text that no other token spells: `<0x0A>`.
pub(super) const TYPE_BYTE: i64 = 6;
