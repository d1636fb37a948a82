//! What is protected, and what a page costs.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// What freeing one page of a head costs. Both are non-decreasing from one page of a head to its
/// next, so that taking the cheapest pages overall takes a prefix of every head's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cost {
    /// The highest score among the slots that die for the page: the choice of KV-Compress.
    MaxVictim,
    /// The sum of their scores: the score lost for the page. The two measure alike
    /// (`docs/benchmarks.md`).
    #[default]
    SumVictims,
}

/// How the pages to free are divided among the heads of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Allocation {
    /// The cheapest pages over all layers and heads: heads that matter more keep more.
    #[default]
    Global,
    /// The fullest heads give first, so that every head keeps as nearly as possible the same
    /// number of slots. Scores choose only inside a head.
    PerHead,
}

/// What eviction may touch, and what it minimises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// The first tokens of the sequence, which never die (attention sinks).
    pub sinks: usize,
    /// The newest tokens of the sequence, which do not die yet.
    pub window: usize,
    /// Slots that every head keeps at least.
    pub floor_slots: usize,
    /// What a page costs.
    pub cost: Cost,
    /// How the pages to free are divided among heads.
    pub allocation: Allocation,
}

impl Default for Policy {
    /// Four sinks (StreamingLLM), a window of 32 (KV-Compress on its largest model), no floor
    /// beyond them, the cheapest pages by the sum of their victims.
    fn default() -> Self {
        Self {
            sinks: 4,
            window: 32,
            floor_slots: 0,
            cost: Cost::default(),
            allocation: Allocation::default(),
        }
    }
}

impl Policy {
    /// The positions that may die in a sequence of `logical_len` tokens.
    pub fn evictable(&self, logical_len: usize) -> Range<usize> {
        let end = logical_len.saturating_sub(self.window);
        self.sinks.min(end)..end
    }

    /// The slots that every head keeps once its sequence is longer than that.
    pub fn floor(&self) -> usize {
        self.sinks.saturating_add(self.window).max(self.floor_slots)
    }
}
