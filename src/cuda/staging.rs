//! Pinned memory between the host's bytes and the device's.

use std::ops::Range;

use super::{
    CudaError,
    driver::{Context, DeviceBuffer, Event, PinnedBuffer, Stream},
};

/// Bytes that copies are aligned to in the staging memory.
const ALIGN: usize = 16;

/// A ring of pinned slots. A slot is written again only after the copies out of it are done, so
/// uploads return as soon as their bytes are in a slot, and a large copy overlaps with filling the
/// next slot.
#[derive(Debug)]
pub struct Staging {
    context: Context,
    slots: Vec<Slot>,
    bytes: usize,
    next: usize,
}

#[derive(Debug)]
struct Slot {
    memory: PinnedBuffer,
    done: Event,
    /// Whether copies of this slot may still run: they are behind `done`.
    busy: bool,
}

impl Slot {
    fn settle(&mut self) -> Result<(), CudaError> {
        if self.busy {
            self.done.synchronize()?;
            self.busy = false;
        }
        Ok(())
    }
}

impl Staging {
    /// A ring of `slots` slots (at least two) of `bytes` bytes each.
    pub fn new(context: &Context, slots: usize, bytes: usize) -> Result<Self, CudaError> {
        let bytes = bytes.max(ALIGN).next_multiple_of(ALIGN);
        let slot = |_| -> Result<Slot, CudaError> {
            let memory = PinnedBuffer::new(context, bytes)?;
            Ok(Slot { memory, done: Event::new(context)?, busy: false })
        };
        let slots = (0..slots.max(2)).map(slot).collect::<Result<_, _>>()?;
        Ok(Self { context: context.clone(), slots, bytes, next: 0 })
    }

    /// The context that it copies in.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Queues copies of `pieces` to the bytes of `to` they name. The pieces may be reused when the
    /// call returns.
    pub fn upload<'a>(
        &mut self,
        stream: &Stream,
        to: &mut DeviceBuffer,
        pieces: impl IntoIterator<Item = (usize, &'a [u8])>,
    ) -> Result<(), CudaError> {
        let mut used = self.bytes;
        let mut slot = self.next;
        for (at, piece) in pieces {
            let end = at.saturating_add(piece.len());
            if end > to.bytes() {
                return Err(CudaError::OutOfBounds { start: at, end, len: to.bytes() });
            }
            let mut copied = 0;
            while copied < piece.len() {
                if used == self.bytes {
                    slot = self.advance()?;
                    used = 0;
                }
                let len = (piece.len() - copied).min(self.bytes - used);
                let Slot { memory, done, busy } = &mut self.slots[slot];
                memory.as_mut_slice()[used..used + len]
                    .copy_from_slice(&piece[copied..copied + len]);
                // Even a copy that was queued in part, or whose mark failed, keeps the slot busy.
                *busy = true;
                // SAFETY: the slot's memory stays, and is not written before `done` is reached.
                unsafe { to.upload(at + copied, memory, used..used + len, stream) }?;
                done.record(stream)?;
                copied += len;
                used = (used + len).next_multiple_of(ALIGN);
            }
        }
        Ok(())
    }

    /// Copies the bytes of `from` that `ranges` name into `to`, one after another, and waits for them.
    /// `to` is as long as the ranges together.
    pub fn download(
        &mut self,
        stream: &Stream,
        from: &DeviceBuffer,
        ranges: &[Range<usize>],
        to: &mut [u8],
    ) -> Result<(), CudaError> {
        debug_assert_eq!(ranges.iter().map(Range::len).sum::<usize>(), to.len());
        let mut parts = ranges
            .iter()
            .flat_map(|range| {
                range
                    .clone()
                    .step_by(self.bytes)
                    .map(|start| start..range.end.min(start + self.bytes))
            })
            .collect::<Vec<_>>()
            .into_iter()
            .peekable();
        let mut filled: Option<(usize, Range<usize>)> = None;
        let mut asked = 0;
        while parts.peek().is_some() || filled.is_some() {
            let mut started = None;
            if parts.peek().is_some() {
                let slot = self.advance()?;
                let Slot { memory, done, busy } = &mut self.slots[slot];
                let (mut used, bytes) = (0, self.bytes);
                while let Some(part) = parts.next_if(|part| used + part.len() <= bytes) {
                    *busy = true;
                    // SAFETY: the slot's memory stays, and is not used before `done` is reached.
                    unsafe { from.download(part.clone(), memory, used, stream) }?;
                    used += part.len();
                }
                done.record(stream)?;
                started = Some((slot, asked..asked + used));
                asked += used;
            }
            // The slot before is emptied while the device fills this one.
            if let Some((slot, part)) = std::mem::replace(&mut filled, started) {
                self.slots[slot].settle()?;
                let len = part.len();
                to[part].copy_from_slice(&self.slots[slot].memory.as_slice()[..len]);
            }
        }
        Ok(())
    }

    /// The next slot, when it is no longer in use.
    fn advance(&mut self) -> Result<usize, CudaError> {
        let slot = self.next;
        self.next = (self.next + 1) % self.slots.len();
        self.slots[slot].settle()?;
        Ok(slot)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        for slot in &mut self.slots {
            // Nothing can be done about a device that has failed; its copies do not run any more.
            let _ = slot.settle();
        }
    }
}
