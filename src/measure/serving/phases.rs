//! Where the device's time in a step goes.

use std::collections::BTreeMap;

use super::error::ServingError;
use crate::cuda::driver::{Context, Event, Stream};

/// A part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Products of matrices.
    Products,
    /// Norms, rotary embedding, SiLU, residuals, embedding, argmax.
    Glue,
    /// New rows into pages.
    Append,
    /// Decode attention and its merge.
    Attention,
    /// Scores of slots.
    Score,
}

/// Marks between the phases of one step; off, it does nothing.
#[derive(Debug, Default)]
pub struct Phases {
    spare: Vec<Event>,
    marks: Vec<(Option<Phase>, Event)>,
}

impl Phases {
    /// Takes the time at up to `marks` marks.
    pub fn on(context: &Context, marks: usize) -> Result<Self, ServingError> {
        // Made beforehand: the host must not fall behind the device while it is measured.
        let spare = (0..marks).map(|_| Event::timed(context)).collect::<Result<_, _>>()?;
        Ok(Self { spare, marks: Vec::with_capacity(marks) })
    }

    /// What follows in the stream is of `phase`.
    pub fn mark(&mut self, phase: Phase, stream: &Stream) -> Result<(), ServingError> {
        self.record(Some(phase), stream)
    }

    /// What follows is of no phase.
    pub fn end(&mut self, stream: &Stream) -> Result<(), ServingError> {
        self.record(None, stream)
    }

    fn record(&mut self, phase: Option<Phase>, stream: &Stream) -> Result<(), ServingError> {
        if let Some(event) = self.spare.pop() {
            event.record(stream)?;
            self.marks.push((phase, event));
        }
        Ok(())
    }

    /// Milliseconds of each phase, when the stream is done.
    pub fn milliseconds(&self) -> Result<BTreeMap<Phase, f64>, ServingError> {
        let mut sums = BTreeMap::new();
        for pair in self.marks.windows(2) {
            if let Some(phase) = pair[0].0 {
                let spent = pair[1].1.since(&pair[0].1)?;
                *sums.entry(phase).or_insert(0.0) += spent.as_secs_f64() * 1e3;
            }
        }
        Ok(sums)
    }
}
