//! The planner: against a model, and case by case.

mod accounts;
mod bytes;
mod cases;
mod guards;
mod model;
mod sparing;
mod steps;
mod windows;
