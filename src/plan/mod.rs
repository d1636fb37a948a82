//! The planner: which pages there are, who holds them, and what a step needs.
//!
//! Nothing here knows a tensor or does I/O. An engine with K and V of its own can use this floor
//! alone: it gets page ids and slot counts per head, and gives tokens and evictions back.
//!
//! * [`PagePool`] counts pages: take, share, give back, and the step fence.
//! * [`Sequence`] is an owned handle on the head tables of one sequence; dropping it returns its
//!   pages.
//! * [`Step`] is one engine iteration, granted to all of its sequences or to none ([`StepOf`] holds them by
//!   value or behind locks, where it must not borrow them); dropped without
//!   [`commit`](Step::commit) it leaves every sequence as it was, and the pages it had taken go to the
//!   fence.
//! * Heads of windowed layers ([`TablePlan::with_windows`]) give their pages back by themselves, in the
//!   commit of the step after which no query sees them ([`Leaving`]).
//! * [`StepNeeds`] is what a step would take; [`Step::slot_mapping`] and [`Step::entries`] are for
//!   kernels and mirrors of tables.
//! * [`Rewrite`] is an eviction (or a truncation) on its way: pages private to the sequence are
//!   compacted in place, shared ones that are written are copied first. [`Rewrite::begin_moves`] is the
//!   point of no return.
//! * [`BlockManager`] is the door: it hands out sequences and steps, and can account for every page.
//!
//! What holds after every call, and can be asked for as a report ([`BlockManager::audit`]):
//!
//! * every page is free, held or fenced, and `free + held + fenced == total`;
//! * a page's reference count is the number of table entries that name it;
//! * a failed call changed nothing, but for taking back what a forgotten guard left;
//! * a page is not handed out again while a step that may still read it runs;
//! * what a forgotten guard (`mem::forget`) left is taken back by the next verb that changes its
//!   sequence, and refused by those that look at it: nobody takes tokens for there that no commit kept.

mod admission;
mod audit;
mod class;
mod entry;
mod error;
mod fill;
mod forecast;
mod growth;
mod guard;
mod leaving;
mod manager;
mod mapping;
mod member;
mod moves;
mod needs;
mod open;
mod parked;
mod pool;
mod rewrite;
mod sequence;
mod shared;
mod sharing;
mod spare;
mod step;
mod table;
mod table_plan;
mod tails;
mod window;

pub use admission::Admission;
pub use audit::{Audit, AuditError, Defect};
pub use entry::TableEntry;
pub use error::PlanError;
pub use forecast::StepForecast;
pub use leaving::Leaving;
pub use manager::BlockManager;
pub use member::{Member, Refused};
pub use moves::{HeadMoves, Pass};
pub use needs::StepNeeds;
pub use parked::Parked;
pub use pool::{Page, PagePool, PoolError, PoolStats, StepId};
pub use rewrite::{Moving, Rewrite};
pub use sequence::{HeadTable, Sequence};
pub use step::{PageCopy, Step, StepOf};
pub use table_plan::TablePlan;

pub use crate::base::HeadRewrite;

#[cfg(test)]
mod tests;
