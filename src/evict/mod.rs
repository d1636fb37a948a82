//! Which slots of which heads die: scores → budget → pages per head → moves.
//!
//! Pure bookkeeping: no tensor, no I/O. A [`Scorer`] says how much each slot matters, a [`Budget`]
//! says how many pages a sequence may hold, [`schedule`] picks the cheapest whole pages over all
//! layers and heads, and [`plan`] adds the moves that empty those pages, in the words of the planner
//! ([`EvictionPlan::rewrites`]). Where no process has all heads, [`PagePrices`] of each are enough to
//! choose the same pages. The method is that of
//! KV-Compress (arXiv 2410.00161); `docs/eviction.md` says where and why this differs.
//!
//! ```
//! use headwise::{
//!     base::Positions,
//!     evict::{Budget, HeadSlots, Policy, Score, plan},
//! };
//!
//! // Two heads of 32 slots, 16 to a page; the second head matters more.
//! let low: Vec<Score> = (0..32).map(|i| Score::try_from(i as f32).unwrap()).collect();
//! let high: Vec<Score> = (0..32).map(|i| Score::try_from(100.0 + i as f32).unwrap()).collect();
//! let heads = [&low, &high]
//!     .map(|scores| HeadSlots { scores, positions: Positions::Identity, slots_per_page: 16 });
//!
//! let policy = Policy { sinks: 2, window: 4, ..Policy::default() };
//! let free = Budget::Pages(3).pages_to_free(&heads.map(|h| h.extent()), 32, &policy)?;
//! let plan = plan(&heads, 32, &policy, free)?;
//! assert_eq!(plan.pages_freed(), 1);
//! assert_eq!(plan.heads()[0].slots_after(), 16);
//! assert!(plan.heads()[1].is_untouched());
//! # Ok::<(), headwise::evict::EvictError>(())
//! ```

mod budget;
mod cost;
mod error;
mod heads;
mod histogram;
mod page_cost;
mod plan;
mod policy;
mod priced;
mod prices;
mod schedule;
mod score;
pub mod scorer;
mod select;
mod uniform;
mod victims;

pub use budget::Budget;
pub use error::EvictError;
pub use heads::{HeadExtent, HeadSlots};
pub use page_cost::PageCost;
pub use plan::{EvictionPlan, HeadPlan, plan, plan_pages};
pub use policy::{Allocation, Cost, Policy};
pub use priced::cheapest_pages;
pub use prices::{HeadPrices, PagePrices};
pub use schedule::{Schedule, schedule};
pub use score::{Score, accumulate, dither, quantize};
pub use scorer::{HeadContext, Needs, Scorer, ScorerKind};

#[cfg(test)]
mod tests;
