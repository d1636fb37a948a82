//! Who takes part in a step.

use super::{error::PlanError, sequence::Sequence};

/// A sequence as whoever steps it holds it: borrowed, owned, or behind a lock.
///
/// What both methods return is one and the same sequence, from call to call. A planner that is told
/// otherwise loses count, which an audit finds; no kernel reads outside its pages.
pub trait Member {
    /// The sequence.
    fn tables(&self) -> &Sequence;
    /// The sequence, to be changed.
    fn tables_mut(&mut self) -> &mut Sequence;
}

impl Member for Sequence {
    fn tables(&self) -> &Sequence {
        self
    }

    fn tables_mut(&mut self) -> &mut Sequence {
        self
    }
}

impl<M: Member + ?Sized> Member for &mut M {
    fn tables(&self) -> &Sequence {
        (**self).tables()
    }

    fn tables_mut(&mut self) -> &mut Sequence {
        (**self).tables_mut()
    }
}

impl<M: Member + ?Sized> Member for Box<M> {
    fn tables(&self) -> &Sequence {
        (**self).tables()
    }

    fn tables_mut(&mut self) -> &mut Sequence {
        (**self).tables_mut()
    }
}

/// A step that was not granted, with its members as they were.
#[derive(Debug)]
pub struct Refused<M> {
    /// Why.
    pub error: PlanError,
    /// The members, in the order they were given, each with the tokens that it was to get.
    pub members: Vec<(M, usize)>,
}

impl<M> From<Refused<M>> for PlanError {
    fn from(refused: Refused<M>) -> Self {
        refused.error
    }
}
