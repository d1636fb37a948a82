//! Which head stores its slots in which format.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::error::CacheError;
use crate::{
    base::{CacheShape, Channels, LayerShape, Window},
    format::{Overflow, PageFormat, PageLayout},
    plan::TablePlan,
};

/// The page format of every head: one for all, and exceptions; and what becomes of values that a format
/// cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FormatMap {
    default: PageFormat,
    /// By index among all heads ([`CacheShape::head_index`]).
    exceptions: BTreeMap<usize, PageFormat>,
    #[serde(default)]
    overflow: Overflow,
}

impl FormatMap {
    /// The same format for every head.
    pub fn uniform(format: PageFormat) -> Self {
        Self { default: format, exceptions: BTreeMap::new(), overflow: Overflow::Refuse }
    }

    /// Gives one head (an index among all heads) a format of its own.
    pub fn with(mut self, head: usize, format: PageFormat) -> Self {
        self.exceptions.insert(head, format);
        self
    }

    /// What a step does with values that a head's format cannot hold: [`Overflow::Refuse`] unless said
    /// otherwise here.
    pub fn on_overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// What a step does with values that a head's format cannot hold.
    pub fn overflow(&self) -> Overflow {
        self.overflow
    }

    /// The format of a head.
    pub fn of(&self, head: usize) -> PageFormat {
        self.exceptions.get(&head).copied().unwrap_or(self.default)
    }
}

/// The layouts of all heads' pages, made from a [`FormatMap`].
#[derive(Debug)]
pub struct HeadLayouts {
    formats: FormatMap,
    layouts: Vec<PageLayout>,
    /// For each head its index in `layouts`, which are few.
    of_head: Vec<u16>,
    /// For each layer its KV heads, their channels and their window.
    layers: Vec<(usize, Channels, Option<Window>)>,
    page_bytes: usize,
    rollback: usize,
    plan: Arc<TablePlan>,
}

impl HeadLayouts {
    /// Lays out the pages of every head of `shape` in `page_bytes` bytes. `rollback` is the margin of heads
    /// with a window.
    pub fn new(
        shape: &CacheShape,
        formats: &FormatMap,
        page_bytes: usize,
        rollback: usize,
    ) -> Result<Self, CacheError> {
        let heads = shape.heads();
        if let Some((&head, _)) = formats.exceptions.range(heads..).next() {
            return Err(CacheError::NoSuchHead { head, heads });
        }
        let mut layouts: Vec<PageLayout> = Vec::new();
        let mut of_head = Vec::with_capacity(heads);
        for (head, layer) in shape.layer_of_heads().enumerate() {
            let (format, channels) = (formats.of(head), layer.channels());
            let like = |layout: &PageLayout| (layout.format, layout.channels) == (format, channels);
            let index = match layouts.iter().position(like) {
                Some(index) => index,
                None => {
                    layouts.push(PageLayout::new(format, channels, page_bytes)?);
                    layouts.len() - 1
                }
            };
            of_head.push(index as u16);
        }
        let slots = of_head.iter().map(|&index| layouts[index as usize].slots);
        let windows = shape.layer_of_heads().map(LayerShape::window);
        let plan = Arc::new(TablePlan::new(slots)?.with_windows(windows, rollback)?);
        let layers = shape.iter().map(|layer| (layer.kv_heads(), layer.channels(), layer.window()));
        let layers = layers.collect();
        Ok(Self { formats: formats.clone(), layouts, of_head, layers, page_bytes, rollback, plan })
    }

    /// Whether tables of these layouts can live where those of `other` do, whatever the formats: pages of
    /// one size, and layers of the same heads, channels and windows.
    pub(super) fn fit(&self, other: &Self) -> bool {
        let fixed = |of: &Self| (of.page_bytes, of.rollback);
        fixed(self) == fixed(other) && self.layers == other.layers
    }

    /// The layout of a head's pages.
    pub fn of(&self, head: usize) -> &PageLayout {
        &self.layouts[self.of_head[head] as usize]
    }

    /// The formats that these layouts came from.
    pub fn formats(&self) -> &FormatMap {
        &self.formats
    }

    /// The slots per page of each head.
    pub fn plan(&self) -> &Arc<TablePlan> {
        &self.plan
    }
}
