//! Eviction against a model that sorts everything.

mod appended;
mod budget;
mod cases;
mod oracle;
mod plan;
mod prices;
mod schedule;
mod score;
mod scorers;
