//! The seam between a model's forward pass and whoever keeps K and V.

use super::error::EngineError;

/// Whoever keeps K and V for the running step.
pub trait KvBackend {
    /// Stores `k` and `v` of `layer`, then attends causally: token j of a span sees what its sequence
    /// holds up to and including itself, within the layer's window, with the layer's softmax scale.
    ///
    /// `q` is \[tokens\]\[query_heads\]\[head_dim\] (RoPE applied, unscaled), `k` and `v` are
    /// \[tokens\]\[kv_heads\]\[head_dim\] (RoPE applied to `k`), `out` is
    /// \[tokens\]\[query_heads\]\[head_dim\]. Tokens of the step's spans stand one after another in
    /// span order. Layers are asked for in order, each once per step.
    fn attend(
        &mut self,
        layer: usize,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        out: &mut [f32],
    ) -> Result<(), EngineError>;
}

/// One sequence's new tokens in a step.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// The new tokens, at least one.
    pub tokens: &'a [u32],
    /// RoPE position of the first token.
    pub position: usize,
    /// Which of the tokens get logits.
    pub logits: Logits,
}

/// Which tokens of a span get logits. Each row costs a product with the whole output head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// None: a prefill chunk that is not the last.
    None,
    /// The last token's, to draw the next one.
    Last,
    /// Every token's, to score text.
    All,
}

/// Whose logits a row holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogitRow {
    /// Index of the span in the step.
    pub span: usize,
    /// Index of the token in its span.
    pub token: usize,
}

/// Which of a step's tokens get logits, counted over all spans, and whose they are.
pub(super) fn wanted(spans: &[Span<'_>]) -> (Vec<usize>, Vec<LogitRow>) {
    let (mut rows, mut owners, mut first) = (Vec::new(), Vec::new(), 0);
    for (span, &Span { tokens, logits, .. }) in spans.iter().enumerate() {
        let count = tokens.len();
        let tokens = match logits {
            Logits::None => count..count,
            Logits::Last => count - 1..count,
            Logits::All => 0..count,
        };
        rows.extend(tokens.clone().map(|token| first + token));
        owners.extend(tokens.map(|token| LogitRow { span, token }));
        first += count;
    }
    (rows, owners)
}

/// The logits of a step: rows of `vocab` f32, in span order, then in token order.
#[derive(Clone, Debug)]
pub struct LogitRows {
    vocab: usize,
    values: Vec<f32>,
    owners: Vec<LogitRow>,
}

impl LogitRows {
    pub(super) fn new(vocab: usize, values: Vec<f32>, owners: Vec<LogitRow>) -> Self {
        assert_eq!(values.len(), vocab * owners.len());
        Self { vocab, values, owners }
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.owners.len()
    }

    /// Whether no span asked for logits.
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// Logits of one row.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Row `index` with its owner, or `None` past the last.
    pub fn get(&self, index: usize) -> Option<(LogitRow, &[f32])> {
        let owner = *self.owners.get(index)?;
        Some((owner, &self.values[index * self.vocab..][..self.vocab]))
    }

    /// All rows with their owners.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (LogitRow, &[f32])> {
        self.owners.iter().copied().zip(self.values.chunks_exact(self.vocab))
    }

    /// The last row that belongs to `span`, from which its next token is drawn.
    pub fn last_of(&self, span: usize) -> Option<&[f32]> {
        let index = self.owners.iter().rposition(|owner| owner.span == span)?;
        Some(&self.values[index * self.vocab..][..self.vocab])
    }
}
