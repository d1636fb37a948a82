//! When a step's kernels are done.

use std::collections::VecDeque;

use crate::{
    cuda::{
        CudaError,
        driver::{Context, Event, Stream},
    },
    plan::StepId,
};

/// Marks the end of each step in its stream, and says which steps have retired, so that the pages
/// freed in them can be taken again ([`BlockManager::retire`](crate::plan::BlockManager::retire)).
#[derive(Debug)]
pub struct StepFence {
    context: Context,
    running: VecDeque<(StepId, Event)>,
    spare: Vec<Event>,
}

impl StepFence {
    /// A fence without steps.
    pub fn new(context: &Context) -> Self {
        Self { context: context.clone(), running: VecDeque::new(), spare: Vec::new() }
    }

    /// Marks the end of `step` behind all work that `stream` has now.
    pub fn record(&mut self, step: StepId, stream: &Stream) -> Result<(), CudaError> {
        let event = match self.spare.pop() {
            Some(event) => event,
            None => Event::new(&self.context)?,
        };
        event.record(stream)?;
        self.running.push_back((step, event));
        Ok(())
    }

    /// Steps whose end was not seen yet.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// The newest step that is done, together with all before it; does not wait.
    pub fn poll(&mut self) -> Result<Option<StepId>, CudaError> {
        let mut newest = None;
        while let Some((_, event)) = self.running.front()
            && event.done()?
        {
            newest = self.pop();
        }
        Ok(newest)
    }

    /// Waits for all steps; the newest one, if there was any.
    pub fn wait(&mut self) -> Result<Option<StepId>, CudaError> {
        let mut newest = None;
        while let Some((_, event)) = self.running.front() {
            event.synchronize()?;
            newest = self.pop();
        }
        Ok(newest)
    }

    fn pop(&mut self) -> Option<StepId> {
        let (step, event) = self.running.pop_front()?;
        self.spare.push(event);
        Some(step)
    }
}
