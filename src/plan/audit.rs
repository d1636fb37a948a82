//! Accounting for every page.

use std::{collections::HashSet, ptr};

use serde::Serialize;
use thiserror::Error;

use super::{
    error::PlanError,
    pool::{PoolStats, Survey},
    sequence::Sequence,
};

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

/// Why pages are not accounted for: the list of sequences does not allow to tell, or the planner is
/// broken. Only [`Defect`](Self::Defect) is a defect.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AuditError {
    /// A sequence that no page can be counted for: of another manager, listed before, with an open (or
    /// forgotten) step or rewrite, or torn.
    #[error("sequence {index} of the list to audit: {problem}")]
    Listed {
        /// Its place in the list.
        index: usize,
        /// What is wrong with it.
        problem: PlanError,
    },
    /// Sequences that are alive are not in the list, so their pages are held by nobody listed.
    #[error("{listed} sequences are listed to be audited, {live} of the manager are alive")]
    Unlisted {
        /// Sequences in the list.
        listed: usize,
        /// Sequences of the manager that are not dropped.
        live: usize,
    },
    /// A defect of the planner, never of its user.
    #[error("the planner has lost count, which is a defect of it: {0}")]
    Defect(#[from] Defect),
}

/// A page that is not accounted for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Defect {
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

/// Refuses a list that is not of all `live` sequences, each once and with no guard open.
pub(super) fn check_list(
    sequences: &[&Sequence],
    live: usize,
    check_owner: impl Fn(&Sequence) -> Result<(), PlanError>,
) -> Result<(), AuditError> {
    let mut seen = HashSet::with_capacity(sequences.len());
    for (index, &sequence) in sequences.iter().enumerate() {
        let once =
            if seen.insert(ptr::from_ref(sequence)) { Ok(()) } else { Err(PlanError::ListedTwice) };
        let checked = check_owner(sequence).and(once).and_then(|()| sequence.check_closed());
        checked.map_err(|problem| AuditError::Listed { index, problem })?;
    }
    if sequences.len() != live {
        return Err(AuditError::Unlisted { listed: sequences.len(), live });
    }
    Ok(())
}

pub(super) fn audit(
    survey: &[Survey],
    pool: PoolStats,
    sequences: &[&Sequence],
) -> Result<Audit, Defect> {
    let mut entries = vec![0u32; survey.len()];
    for sequence in sequences {
        tables_fit(sequence)?;
        for page in sequence.tables.all() {
            if survey[page.id as usize].generation != page.generation {
                return Err(Defect::Stale(page.id));
            }
            entries[page.id as usize] += 1;
        }
    }
    for (page, (state, &entries)) in survey.iter().zip(&entries).enumerate() {
        let (page, references) = (page as u32, state.refs);
        if references != entries {
            return Err(Defect::References { page, references, entries });
        }
        if u32::from(references > 0) + state.free + state.fenced != 1 {
            let (free, fenced) = (state.free, state.fenced);
            return Err(Defect::State { page, references, free, fenced });
        }
    }
    let references = entries.iter().map(|&n| n as usize).sum();
    Ok(Audit { pool, sequences: sequences.len(), references })
}

fn tables_fit(sequence: &Sequence) -> Result<(), Defect> {
    for (head, state) in sequence.heads.iter().enumerate() {
        let (tokens, pages) = (sequence.tokens(), sequence.tables.len(head));
        let slots = tokens.saturating_sub(state.lost as usize);
        let positions = state.listed.len();
        let held = slots.div_ceil(sequence.plan.slots_per_page(head));
        if pages != held || positions > slots || state.lost > sequence.tokens {
            return Err(Defect::Table { head, slots, pages, positions, tokens });
        }
    }
    Ok(())
}
