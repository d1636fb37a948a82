//! Attention on a device against the f64 reference.

use std::sync::Arc;

use serde::Serialize;

use super::{VerifyError, largest_error, noise::Noise, row_error};
use crate::{
    attend::{Attention, Batch, Head, Output, Reduce, Reference, SlotScores, Span},
    base::LayerShape,
    cuda::driver::Stream,
    device::{CudaStore, Kernels, attention::CudaAttention, kernels::Specialisation},
    format::{LayoutError, PageFormat, PageLayout},
    store::{HostStore, PageStore, Rows, TablePages},
};

const PAGE_BYTES: usize = 8192;

/// What is attended to.
#[derive(Clone, Copy, Debug)]
pub struct AttentionCase<'a> {
    /// The layer.
    pub layer: &'a LayerShape,
    /// Page formats; each head takes one of them.
    pub formats: &'a [PageFormat],
    /// Slots of the longest heads.
    pub longest: usize,
    /// Decides lengths, formats and values.
    pub seed: u64,
}

/// The largest errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct AttentionErrors {
    /// Of the outputs, in units of the largest value of a row.
    pub out: f32,
    /// Of the log-sum-exps, relative or, below 1, absolute.
    pub lse: f32,
    /// Of the slots' scores, in units of the largest score of a head: over many slots all of them are
    /// small. Squared probabilities have twice the relative error of the log-sum-exp that they are
    /// replayed from, and the window adds them up.
    pub scores: f32,
}

impl AttentionErrors {
    /// Whether outputs and log-sum-exps are within `tolerance`, and scores within four times that.
    pub fn within(&self, tolerance: f32) -> bool {
        self.out <= tolerance && self.lse <= tolerance && self.scores <= 4.0 * tolerance
    }

    fn or(self, other: Self) -> Self {
        Self {
            out: self.out.max(other.out),
            lse: self.lse.max(other.lse),
            scores: self.scores.max(other.scores),
        }
    }
}

/// What [`attention_errors`] has the kernels compiled for.
pub fn attention_specialisation(
    format: PageFormat,
    group: usize,
    head_dim: usize,
) -> Result<Specialisation, LayoutError> {
    Ok(Specialisation::new(PageLayout::new(format, head_dim, PAGE_BYTES)?, group))
}

/// Decode, prefill, merge and score over ragged tables: empty heads, one slot, whole and partial
/// pages, long heads, heads that lost slots of the chunk itself, NaN in every slot that is not in use.
pub fn attention_errors(
    kernels: &Arc<Kernels>,
    case: &AttentionCase<'_>,
) -> Result<AttentionErrors, VerifyError> {
    let AttentionCase { layer, formats, longest, seed } = *case;
    let mut noise = Noise::new(seed);
    let dim = layer.k_dim();
    let layout = |&format: &PageFormat| PageLayout::new(format, dim, PAGE_BYTES);
    let layouts: Vec<PageLayout> = formats.iter().map(layout).collect::<Result<_, _>>()?;
    // Query tokens, and slots and layout of each head.
    let lengths = [0, 1, 2, 31, 64, 65, 300, longest];
    let spans: Vec<(usize, Vec<(usize, usize)>)> = [1, 1, 5, 40, 1, 0]
        .into_iter()
        .map(|tokens| {
            let head = |_| (lengths[noise.below(lengths.len())], noise.below(layouts.len()));
            (tokens, (0..layer.kv_heads()).map(head).collect())
        })
        .collect();
    let needed: usize = spans
        .iter()
        .flat_map(|(_, heads)| heads)
        .map(|&(slots, layout)| slots.div_ceil(layouts[layout].slots))
        .sum();
    let mut host = HostStore::new(needed + 1, PAGE_BYTES)?;
    let all: Vec<u32> = (0..=needed as u32).collect();
    let mut free = all.clone();
    host.poison(&free)?;
    let mut tables: Vec<Vec<u32>> = Vec::new();
    for &(slots, layout) in spans.iter().flat_map(|(_, heads)| heads) {
        let layout = &layouts[layout];
        let take = |_| free.swap_remove(noise.below(free.len()));
        let pages: Vec<u32> = (0..slots.div_ceil(layout.slots)).map(take).collect();
        let (k, v) = (noise.values(slots * dim), noise.values(slots * dim));
        let table = TablePages { pages: &pages, layout };
        host.append(table, 0, Rows::dense(&k, dim), Rows::dense(&v, dim))?;
        tables.push(pages);
    }
    let stream = Arc::new(Stream::new(kernels.context())?);
    let mut device = CudaStore::new(stream, needed + 1, PAGE_BYTES)?;
    device.write_pages(&all, host.bytes())?;

    let flat: Vec<Head<'_>> = (spans.iter().flat_map(|(_, heads)| heads).zip(&tables))
        .map(|(&(slots, layout), pages)| Head { pages, slots, layout: &layouts[layout] })
        .collect();
    let heads = flat.chunks_exact(layer.kv_heads());
    let spans: Vec<Span<'_>> = spans
        .iter()
        .zip(heads)
        .map(|((tokens, _), heads)| Span { tokens: *tokens, heads })
        .collect();
    let tokens: usize = spans.iter().map(|span| span.tokens).sum();
    let q = noise.values(tokens * layer.query_heads() * dim).iter().map(|x| 3.0 * x).collect();
    let q: Vec<f32> = q;
    let batch = Batch { layer, spans: &spans, q: &q };
    let attention = CudaAttention::new(Arc::clone(kernels))?;
    let mut worst = AttentionErrors::default();
    for (reduce, skip) in [(Reduce::Group, 0), (Reduce::PerQueryHead, 0), (Reduce::PerQueryHead, 3)]
    {
        let scores = SlotScores::new(4, reduce).skipping(skip);
        let ours = attend(&attention, &device, &batch, scores.clone())?;
        let theirs = attend(&Reference, &host, &batch, scores)?;
        worst = worst.or(ours.against(&theirs, &batch));
    }
    Ok(worst)
}

/// What one attention gave.
struct Results {
    out: Vec<f32>,
    lse: Vec<f32>,
    scores: SlotScores,
}

fn attend<S: PageStore>(
    attention: &impl Attention<S>,
    store: &S,
    batch: &Batch<'_>,
    mut scores: SlotScores,
) -> Result<Results, VerifyError> {
    // What is not written must show.
    let tokens = batch.tokens();
    let mut out = vec![f32::NAN; tokens * batch.layer.out_row()];
    let mut lse = vec![f32::NAN; tokens * batch.layer.query_heads()];
    let output = Output { out: &mut out, lse: &mut lse, scores: Some(&mut scores) };
    attention.attend(store, batch, output)?;
    Ok(Results { out, lse, scores })
}

impl Results {
    fn against(&self, expected: &Results, batch: &Batch<'_>) -> AttentionErrors {
        let spans = batch.spans.iter().enumerate();
        let heads = spans.flat_map(|(s, span)| (0..span.heads.len()).map(move |h| (s, h)));
        let scores = heads.map(|(s, h)| {
            let expected = expected.scores.head(s, h);
            row_error(self.scores.head(s, h), expected, expected.len())
        });
        AttentionErrors {
            out: row_error(&self.out, &expected.out, batch.layer.v_dim()),
            lse: largest_error(&self.lse, &expected.lse),
            scores: scores.fold(0.0, f32::max),
        }
    }
}
