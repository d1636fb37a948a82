//! What can go wrong between a model file and its next token.

use std::path::PathBuf;

use thiserror::Error;

use super::{likelihood::PerplexityError, sampling::SamplingError, serve::StopStringError};
use crate::{
    base::{CacheShape, ShapeError},
    cache::CacheError,
};
#[cfg(feature = "cuda")]
use crate::{cuda::CudaError, device::DeviceError};

/// A model file that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file cannot be opened or read.
    #[error("cannot read the model file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file does not begin with the GGUF magic and a known version.
    #[error("{path} is not a GGUF file of version 1 to 3")]
    NotGguf {
        /// The file.
        path: PathBuf,
    },
    /// The file ends inside its header.
    #[error("{path} is truncated: its header runs past its {bytes} bytes")]
    TruncatedHeader {
        /// The file.
        path: PathBuf,
        /// The file's length.
        bytes: u64,
    },
    /// The header is not what the GGUF specification allows.
    #[error("the GGUF header of {path} is malformed: {reason}")]
    MalformedHeader {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor's bytes are not all in the file.
    #[error("{path} is truncated: tensor {tensor} ends at byte {end}, the file has {bytes}")]
    TruncatedTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// One past the tensor's last byte.
        end: u128,
        /// The file's length.
        bytes: u64,
    },
    /// Two entries of one name, of which one would be lost.
    #[error("{path} has {what} {name} twice")]
    Twice {
        /// The file; of a split model, the later part.
        path: PathBuf,
        /// What kind of entry.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A tensor that lies where none can: not aligned, or inside another one.
    #[error("the layout of {path} cannot be true: tensor {tensor} {reason}")]
    TensorPlace {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where it lies, and where it should.
        reason: String,
    },
    /// A tensor that is stored in a type that is not implemented.
    #[error(
        "tensor {tensor} is stored as {found}, which is not supported: F32, F16, BF16, Q4_0, Q4_1, \
         Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K are"
    )]
    TensorType {
        /// The tensor.
        tensor: String,
        /// Its type by ggml's name.
        found: String,
    },
    /// A part of a split model that is not the first, does not belong to the others, or lacks them.
    #[error("{path} belongs to a split model: {reason}")]
    Split {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// Another architecture than Llama and Gemma 3.
    #[error("model architecture {0:?} is not supported, only \"llama\" and \"gemma3\" are")]
    Architecture(String),
    /// A metadata key that the architecture needs is not there.
    #[error("the model file has no metadata key {0}")]
    MissingKey(String),
    /// A metadata value of another type or range than its key asks for.
    #[error("metadata key {key} is {found}, expected {expected}")]
    BadValue {
        /// The key.
        key: String,
        /// What the key should hold.
        expected: &'static str,
        /// What it holds.
        found: String,
    },
    /// A tensor that the architecture needs is not there.
    #[error("the model file has no tensor {0}")]
    MissingTensor(String),
    /// A tensor that a plain model of its architecture does not have: leaving it out would give wrong
    /// numbers.
    #[error("tensor {0} is not part of a plain model of this architecture")]
    UnexpectedTensor(String),
    /// A tensor with other dimensions than the metadata asks for (rows first).
    #[error("tensor {tensor} has shape {found:?}, expected {expected:?}")]
    TensorShape {
        /// The tensor.
        tensor: String,
        /// Dimensions by the metadata.
        expected: Vec<usize>,
        /// Dimensions in the file.
        found: Vec<usize>,
    },
    /// A tensor whose encoding candle cannot decode.
    #[error("cannot decode tensor {tensor}: {reason}")]
    TensorData {
        /// The tensor.
        tensor: String,
        /// What candle said.
        reason: String,
    },
    /// RoPE with a scaling that is not implemented.
    #[error("RoPE scaling {0:?} is not supported, only none and linear are")]
    RopeScaling(String),
    /// RoPE's base, its scaling and its divisors together turn positions by no finite angle.
    #[error(
        "RoPE turns pair {pair} by {frequency} radians a position: base, scaling factor and divisors \
         give no finite angles"
    )]
    RopeFrequency {
        /// Which pair of channels.
        pair: usize,
        /// Radians per position.
        frequency: f64,
    },
    /// A metadata key of the architecture that changes its mathematics in a way that is not
    /// implemented.
    #[error("metadata key {key} is {found}, which is not supported, only {supported} is")]
    UnsupportedKey {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// The values with which it changes nothing.
        supported: String,
    },
    /// A metadata key of the architecture that may change its mathematics in any way.
    #[error(
        "metadata key {key} (here {found}) is unknown for this architecture, and may change its results"
    )]
    UnknownKey {
        /// The key.
        key: String,
        /// Its value.
        found: String,
    },
    /// A tokenizer with ids that the embedding does not have.
    #[error("the tokenizer has {tokens} tokens, the model's embedding only {vocab}")]
    Vocabulary {
        /// Tokens of the tokenizer.
        tokens: usize,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// A shape that no KV cache can have.
    #[error("the model's attention shape does not fit a KV cache: {0}")]
    Shape(#[from] ShapeError),
    /// The vocabulary is unusable.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// A vocabulary that cannot be used, or ids outside it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// `tokenizer.ggml.model` is neither byte-level BPE nor SentencePiece.
    #[error(
        "tokenizer model {0:?} is not supported, only byte-level BPE (\"gpt2\") and SentencePiece \
         (\"llama\") are"
    )]
    Model(String),
    /// `tokenizer.ggml.pre` names a pre-tokenizer that is not implemented.
    #[error("pre-tokenizer {0:?} is not supported")]
    PreTokenizer(String),
    /// A merge rule that is not two tokens and one space between them.
    #[error("merge rule {index} is not two tokens: {rule:?}")]
    Merge {
        /// Which rule.
        index: usize,
        /// The rule.
        rule: String,
    },
    /// Two ids share one token text.
    #[error("token {token:?} stands twice in the vocabulary, as id {first} and id {second}")]
    Duplicate {
        /// The token.
        token: String,
        /// Its first id.
        first: u32,
        /// Its second id.
        second: u32,
    },
    /// Token types and tokens differ in number, or a special id lies outside the vocabulary.
    #[error("{what} is {found}, the vocabulary has {tokens} tokens")]
    Count {
        /// What was counted.
        what: &'static str,
        /// Its value.
        found: usize,
        /// Tokens in the vocabulary.
        tokens: usize,
    },
    /// A token of the type "byte" whose text names none.
    #[error("token {token:?} should be a byte, as <0x0A> is")]
    Byte {
        /// The token.
        token: String,
    },
    /// A vocabulary with text that it can write in no way.
    #[error("the vocabulary has no token for the byte {byte:#04x}, and none for what is unknown")]
    NoFallback {
        /// The first byte without a token.
        byte: u8,
    },
    /// The BPE library refused the vocabulary, or the text.
    #[error("byte-level BPE: {0}")]
    Bpe(String),
    /// An id that no token has.
    #[error("token id {id} is outside the vocabulary of {tokens}")]
    UnknownId {
        /// The id.
        id: u32,
        /// Tokens in the vocabulary.
        tokens: usize,
    },
}

impl TokenizerError {
    /// What the library that cuts text into tokens said.
    pub(super) fn bpe(error: impl ToString) -> Self {
        Self::Bpe(error.to_string())
    }
}

/// A step that cannot be run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The model file is unusable.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Text or ids that the vocabulary does not hold.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// No next token can be drawn from the logits.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// A span without tokens.
    #[error("span {span} of the step has no tokens")]
    EmptySpan {
        /// Which span of the step.
        span: usize,
    },
    /// A token id that the model's embedding does not have.
    #[error("token id {token} is outside the model's vocabulary of {vocab}")]
    TokenId {
        /// The id.
        token: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// A position that the model was not trained for.
    #[error("{needed} positions are more than the model's context of {context}")]
    ContextExceeded {
        /// Positions that the step would reach.
        needed: usize,
        /// The model's context length.
        context: usize,
    },
    /// Buffers whose lengths do not belong to the step that the backend was prepared for.
    #[error("{what} has {found} values, the step needs {expected}")]
    StepShape {
        /// Which buffer.
        what: &'static str,
        /// Values the step needs.
        expected: usize,
        /// Values there.
        found: usize,
    },
    /// A layer that the cache does not have.
    #[error("layer {layer} is outside a cache of {layers} layers")]
    Layer {
        /// The layer.
        layer: usize,
        /// Layers of the cache.
        layers: usize,
    },
    /// A sequence that the backend does not hold, or holds twice in one step.
    #[error("sequence {0} is unknown to the cache or stands twice in the step")]
    UnknownSequence(usize),
    /// The paged KV cache refused.
    #[error("KV cache: {0}")]
    Cache(#[from] CacheError),
    /// A cache that was made for another model.
    #[error("a cache for {cache:?} does not fit a model of {model:?}")]
    ShapeMismatch {
        /// What the cache holds.
        cache: CacheShape,
        /// What the model has.
        model: CacheShape,
    },
    /// The device, its driver, its compiler or cuBLAS.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A device with less memory than a model's weights need.
    #[cfg(feature = "cuda")]
    #[error("the model's weights need {needed} bytes of device memory, {free} are free")]
    DeviceMemory {
        /// Bytes of all weights.
        needed: usize,
        /// Bytes that were free before the first.
        free: usize,
    },
    /// A weight that the type it should be stored in has no number for.
    #[cfg(feature = "cuda")]
    #[error("tensor {tensor} has a weight of {value}, which {element} cannot hold")]
    Weight {
        /// The tensor.
        tensor: String,
        /// The weight.
        value: f32,
        /// The type's name.
        element: &'static str,
    },
    /// A request without a prompt, or for no token.
    #[error("a request needs at least one prompt token and one token to generate")]
    EmptyRequest,
    /// Stop strings that cannot be looked for.
    #[error(transparent)]
    StopString(#[from] StopStringError),
    /// Stop strings for a scheduler that knows no text.
    #[error("stop strings need a scheduler with a tokenizer")]
    NoTokenizer,
    /// A number from outside that nothing can be done with.
    #[error("{what} is {found}, it must be {expected}")]
    OutOfRange {
        /// Which number.
        what: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A scheduler that runs nothing, and whose oldest request cannot start: others hold the pages.
    #[error(
        "request {request} cannot start and nothing else runs: it needs {needed} pages, {free} of \
         {total} are free, and {others} are held by sequences outside the scheduler"
    )]
    Stalled {
        /// The number of the request ([`RequestId`](super::serve::RequestId)).
        request: u64,
        /// Pages that it needs to start.
        needed: usize,
        /// Pages that are free.
        free: usize,
        /// Pages of the pool.
        total: usize,
        /// Pages that no sequence of the scheduler holds.
        others: usize,
    },
    /// A compression ratio that sinks, window and floor do not allow at any length.
    #[error(
        "a compression ratio of {ratio} is out of reach: sinks, window and floor keep {least} of the \
         {full} pages of a full context of {context} tokens"
    )]
    RatioOutOfReach {
        /// The ratio.
        ratio: f64,
        /// Pages that stay whatever the ratio.
        least: usize,
        /// Pages of the full context, uncompressed.
        full: usize,
        /// The model's context length.
        context: usize,
    },
    /// Text that is too short for what is to be measured.
    #[error("the text has {found} tokens, {needed} are needed")]
    TextTooShort {
        /// Tokens there.
        found: usize,
        /// Tokens needed.
        needed: usize,
    },
    /// Logits that predict nothing.
    #[error(transparent)]
    Perplexity(#[from] PerplexityError),
    /// The KV backend of another engine failed.
    #[error("KV cache: {0}")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl EngineError {
    /// Refuses a number that is not `fine`.
    pub(crate) fn unless(
        fine: bool,
        what: &'static str,
        found: impl ToString,
        expected: &'static str,
    ) -> Result<(), Self> {
        if fine {
            Ok(())
        } else {
            Err(Self::OutOfRange { what, found: found.to_string(), expected })
        }
    }
}

#[cfg(feature = "cuda")]
impl From<CudaError> for EngineError {
    fn from(error: CudaError) -> Self {
        DeviceError::from(error).into()
    }
}
