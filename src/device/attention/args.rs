//! What the kernels read, word for word: see the heads of `kernels/*.cu` and `kernels/work.cuh`.

use bytemuck::{Pod, Zeroable};

/// A range of the pages of one (sequence, KV head), for `headwise_decode`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct WorkItem {
    /// First of the group's rows in queries, outputs and log-sum-exps.
    pub query: u32,
    /// Index in the page ids of the range's first page.
    pub pages: u32,
    /// Slots in use, from slot 0 of that page; may be 0.
    pub slots: u32,
    /// Which partial result to write; all ones writes the output itself.
    pub partial: u32,
    /// Index in the logits of the range's first slot.
    pub logits: u32,
    /// Zero.
    pub reserved: u32,
}

/// Where a work item lies in its table, for `headwise_decode` with windows.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ItemPlace {
    /// Slots of the table before the item.
    pub first: u32,
    /// The item that holds the table's end.
    pub last: u32,
}

/// A query group with partial results, for `headwise_merge`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct MergeItem {
    /// First of the group's rows; all ones does nothing.
    pub query: u32,
    /// First partial result; the others follow.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl MergeItem {
    /// Pads a launch of fixed size.
    pub const NONE: Self = Self { query: u32::MAX, first: 0, count: 0 };
}

/// Rows of a chunk of one (sequence, KV head), for `headwise_prefill`. Row `r` is token `r / group`
/// and query head `r % group`; token `t` sees the first `before + t + 1` slots.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct PrefillItem {
    /// Row of token 0's first query head of this KV head.
    pub query: u32,
    /// Index in the page ids of the table's first page.
    pub pages: u32,
    /// Slots in use, the chunk's included.
    pub slots: u32,
    /// Slots before the chunk's token 0.
    pub before: u32,
    /// The item's first row.
    pub first_row: u32,
    /// How many it has.
    pub rows: u32,
}

/// A range of a table whose slots are scored, for `headwise_score`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ScoreItem {
    /// Row of the window's first token, first query head of this KV head.
    pub query: u32,
    /// Index in the page ids of the range's first page.
    pub pages: u32,
    /// Slots of the range, from slot 0 of that page.
    pub slots: u32,
    /// Slots of the table before the range.
    pub first_slot: u32,
    /// Slots of the table before the window's first token.
    pub before: u32,
    /// Query tokens.
    pub window: u32,
    /// Where the range's first slot stands in the sums.
    pub sums: u32,
    /// Newest slots that a query sees and that do not count: `before` is short of them.
    pub skip: u32,
}

/// The 32-bit fields of a struct in a kernel's source, in order.
#[cfg(test)]
pub(in crate::device) fn fields(source: &str, name: &str) -> Vec<String> {
    let start = source.find(&format!("{name} {{")).unwrap_or_else(|| panic!("{name}"));
    let body = source[start..].split_once('{').unwrap().1.split_once('}').unwrap().0;
    body.lines()
        .filter_map(|line| line.trim().strip_prefix("u32 "))
        .flat_map(|line| line.split_once(';').unwrap().0.split(','))
        .map(|field| field.trim().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::kernels::KernelFile;

    #[test]
    fn structs_are_those_of_the_kernels() {
        let work = include_str!("../../../kernels/work.cuh");
        let expected = ["query", "pages", "slots", "partial", "logits", "reserved"];
        assert_eq!(fields(work, "WorkItem"), expected);
        assert_eq!((size_of::<WorkItem>(), align_of::<WorkItem>()), (24, 8));
        assert_eq!(fields(work, "ItemPlace"), ["first", "last"]);
        assert_eq!((size_of::<ItemPlace>(), align_of::<ItemPlace>()), (8, 8));
        let merge = KernelFile::Merge.source().text;
        assert_eq!(fields(merge, "struct Merge"), ["query", "first", "count"]);
        assert_eq!(size_of::<MergeItem>(), 12);
        let prefill = KernelFile::Prefill.source().text;
        let expected = ["query", "pages", "slots", "before", "first_row", "rows"];
        assert_eq!(fields(prefill, "PrefillItem"), expected);
        assert_eq!(size_of::<PrefillItem>(), 24);
        let score = KernelFile::Score.source().text;
        let expected =
            ["query", "pages", "slots", "first_slot", "before", "window", "sums", "skip"];
        assert_eq!(fields(score, "__align__(8) Item"), expected);
        assert_eq!(size_of::<ScoreItem>(), 32);
        for (text, word) in [(work, "NO_PARTIAL"), (merge, "NO_QUERY")] {
            assert!(text.contains(&format!("u32 {word} = 0xffffffffu")), "{word}");
        }
    }
}
