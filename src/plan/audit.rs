//! Accounting for every page.

use serde::Serialize;
use thiserror::Error;

use super::{PagePool, PoolStats, Sequence};

/// A pool and its sequences agree on every page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// How the pages are used: `free + held + fenced == total`.
    pub pool: PoolStats,
    /// Sequences seen.
    pub sequences: usize,
    /// Table entries over all heads of all sequences.
    pub references: usize,
}

/// A page that is not accounted for: a defect of the planner, never of its user.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AuditError {
    /// References and table entries differ.
    #[error("page {page} has {references} references and stands in {entries} table entries")]
    References {
        /// The page.
        page: u32,
        /// What the pool counts.
        references: u32,
        /// What the tables hold.
        entries: u32,
    },
    /// A page is free and held at once, or neither, or twice free.
    #[error("page {page} with {references} references is {free} times free, {fenced} times fenced")]
    State {
        /// The page.
        page: u32,
        /// What the pool counts.
        references: u32,
        /// Mentions among the free pages.
        free: u32,
        /// Mentions in the fence.
        fenced: u32,
    },
    /// A table entry of an earlier life of its page.
    #[error("a table holds a stale claim on page {0}")]
    Stale(u32),
    /// A head whose slots, pages and positions do not fit together.
    #[error(
        "head {head} has {slots} slots in {pages} pages with {positions} positions listed, {tokens} tokens"
    )]
    Table {
        /// The head.
        head: usize,
        /// Slots in use.
        slots: usize,
        /// Pages of its table.
        pages: usize,
        /// Positions listed; those of the slots after them are a run.
        positions: usize,
        /// Tokens of the sequence.
        tokens: usize,
    },
}

pub(super) fn audit(pool: &PagePool, sequences: &[&Sequence]) -> Result<Audit, AuditError> {
    let survey = pool.survey();
    let mut entries = vec![0u32; survey.len()];
    for sequence in sequences {
        tables_fit(sequence)?;
        for page in sequence.tables.all() {
            if survey[page.id as usize].generation != page.generation {
                return Err(AuditError::Stale(page.id));
            }
            entries[page.id as usize] += 1;
        }
    }
    for (page, (state, &entries)) in survey.iter().zip(&entries).enumerate() {
        let (page, references) = (page as u32, state.refs);
        if references != entries {
            return Err(AuditError::References { page, references, entries });
        }
        if u32::from(references > 0) + state.free + state.fenced != 1 {
            let (free, fenced) = (state.free, state.fenced);
            return Err(AuditError::State { page, references, free, fenced });
        }
    }
    let references = entries.iter().map(|&n| n as usize).sum();
    Ok(Audit { pool: pool.stats(), sequences: sequences.len(), references })
}

fn tables_fit(sequence: &Sequence) -> Result<(), AuditError> {
    for (head, state) in sequence.heads.iter().enumerate() {
        let (tokens, pages) = (sequence.tokens(), sequence.tables.len(head));
        let slots = tokens.saturating_sub(state.lost as usize);
        let positions = state.listed.len();
        let held = slots.div_ceil(sequence.plan.slots_per_page(head));
        if pages != held || positions > slots || state.lost > sequence.tokens {
            return Err(AuditError::Table { head, slots, pages, positions, tokens });
        }
    }
    Ok(())
}
