//! What a mirror of head tables is told.

/// An entry of a head table that is new or names another page than before: what a mirror of the tables
/// must be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableEntry {
    /// The head, among all heads of its sequence.
    pub head: usize,
    /// Place in the head's table.
    pub index: usize,
    /// The page that stands there now.
    pub page: u32,
}
