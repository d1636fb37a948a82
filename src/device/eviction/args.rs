//! What the kernels of eviction read, word for word: see the heads of `kernels/*.cu`.

use bytemuck::{Pod, Zeroable};

/// A head table whose slots a decode step scored, for `headwise_score_step`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct StepHead {
    /// Index in the page ids of its first page.
    pub pages: u32,
    /// Slots in use, the step's own included.
    pub slots: u32,
    /// Index in the logits of its slot 0.
    pub logits: u32,
    /// First of the group's rows in the log-sum-exps.
    pub row: u32,
    /// Its place among all heads of its sequence.
    pub head: u32,
    /// Index in the tokens.
    pub sequence: u32,
}

/// A head table whose sums become scores, for `headwise_score_pool`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PoolHead {
    /// Index in the page ids of its first page.
    pub pages: u32,
    /// Slots in use.
    pub slots: u32,
    /// Index in the sums and in the order of its slot 0.
    pub sums: u32,
}

/// A head table whose pages are priced, for `headwise_price`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PriceHead {
    /// Index in the page ids of its first page.
    pub pages: u32,
    /// Slots in use.
    pub slots: u32,
    /// First position that may die.
    pub begin: u32,
    /// One past the last.
    pub end: u32,
    /// Pages that may go at most.
    pub most: u32,
}

/// A head table that loses slots, for `headwise_select`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SelectHead {
    /// Index in the page ids of its first page.
    pub pages: u32,
    /// Slots in use.
    pub slots: u32,
    /// First position that may die.
    pub begin: u32,
    /// One past the last.
    pub end: u32,
    /// Slots to give up.
    pub dying: u32,
    /// Index in the moves of its first.
    pub first_move: u32,
}

/// A head table whose slots move, for `headwise_compact`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct CompactHead {
    /// Index in the page ids of its first page as it is read.
    pub read_pages: u32,
    /// The same as it is written.
    pub written_pages: u32,
    /// Index in the moves of its first.
    pub first_move: u32,
}

/// A head table whose slots are decoded, for `headwise_gather`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct GatherTable {
    /// Index in the page ids of its first page.
    pub pages: u32,
    /// Slots in use.
    pub slots: u32,
    /// The row that its slot 0 goes to.
    pub row: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{attention::fields, kernels::KernelFile};

    #[test]
    fn structs_are_those_of_the_kernels() {
        let step = ["pages", "slots", "logits", "row", "head", "sequence"];
        let cases: [(KernelFile, &str, &[&str], usize); 7] = [
            (KernelFile::ScoreStep, "struct Head", &step, size_of::<StepHead>()),
            (KernelFile::AppendStep, "struct ScoreHead", &step, size_of::<StepHead>()),
            (
                KernelFile::ScorePool,
                "struct Head",
                &["pages", "slots", "sums"],
                size_of::<PoolHead>(),
            ),
            (
                KernelFile::Price,
                "struct Head",
                &["pages", "slots", "begin", "end", "most"],
                size_of::<PriceHead>(),
            ),
            (
                KernelFile::Select,
                "struct Head",
                &["pages", "slots", "begin", "end", "dying", "first_move"],
                size_of::<SelectHead>(),
            ),
            (
                KernelFile::Compact,
                "struct Head",
                &["read_pages", "written_pages", "first_move"],
                size_of::<CompactHead>(),
            ),
            (
                KernelFile::Gather,
                "struct Table",
                &["pages", "slots", "row"],
                size_of::<GatherTable>(),
            ),
        ];
        for (file, name, expected, bytes) in cases {
            assert_eq!(fields(file.source().text, name), expected, "{file:?}");
            assert_eq!(bytes, 4 * expected.len(), "{file:?}");
        }
    }
}
