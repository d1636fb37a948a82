//! The planner: against a model, and case by case.

mod cases;
mod model;
mod steps;
