//! Pinned memory between the host's bytes and the device's.

use std::ops::Range;

use super::{
    driver::{Context, DeviceBuffer, Event, PinnedBuffer, Stream},
    error::CudaError,
};

/// Bytes that copies are aligned to in the staging memory.
const ALIGN: usize = 16;

/// A ring of pinned slots. Uploads follow one another in a slot until it is full; bytes are written again
/// only after the copies out of their slot are done. So an upload returns as soon as its bytes are in the
/// ring, a large one overlaps with filling the next slot, and many small ones may be queued behind long
/// work without waiting for it, as long as the ring holds them all.
#[derive(Debug)]
pub struct Staging {
    context: Context,
    slots: Vec<Slot>,
    bytes: usize,
    /// The slot that is being filled, how far it is, and the stream of its copies: their mark can only be
    /// in one.
    current: usize,
    used: usize,
    stream: Option<u64>,
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

    /// Puts the mark behind the slot's copies. Where that fails, nothing but the stream's end says when
    /// they are done, and it is waited for.
    fn mark(&self, stream: &Stream) -> Result<(), CudaError> {
        self.done.record(stream).inspect_err(|_| {
            // The first error is the one to report.
            let _ = stream.synchronize();
        })
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
        // Full, as it were: the first use begins with a slot of its own.
        Ok(Self { context: context.clone(), slots, bytes, current: 0, used: bytes, stream: None })
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
        for (at, piece) in pieces {
            let end = at.saturating_add(piece.len());
            if end > to.bytes() {
                return Err(CudaError::OutOfBounds { start: at, end, len: to.bytes() });
            }
            let mut copied = 0;
            while copied < piece.len() {
                if self.used == self.bytes || self.stream != Some(stream.id()) {
                    self.advance()?;
                    self.stream = Some(stream.id());
                }
                let len = (piece.len() - copied).min(self.bytes - self.used);
                let from = self.used..self.used + len;
                let slot = &mut self.slots[self.current];
                let bytes = &piece[copied..copied + len];
                slot.memory.as_mut_slice()[from.clone()].copy_from_slice(bytes);
                slot.busy = true;
                self.used = from.end.next_multiple_of(ALIGN);
                // SAFETY: the slot's memory stays, and these bytes are not written before `done`, which
                // moves behind this copy, is reached.
                let queued = unsafe { to.upload(at + copied, &slot.memory, from, stream) };
                slot.mark(stream)?;
                queued?;
                copied += len;
            }
        }
        Ok(())
    }

    /// Copies the bytes of `from` that `ranges` name into `to`, one after another, and waits for them.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`] for a range outside `from`, [`CudaError::WrongLength`] unless `to` is
    /// as long as the ranges together; nothing has been queued then.
    pub fn download(
        &mut self,
        stream: &Stream,
        from: &DeviceBuffer,
        ranges: &[Range<usize>],
        to: &mut [u8],
    ) -> Result<(), CudaError> {
        let mut expected = 0usize;
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            let (start, end, len) = (range.start, range.end, from.bytes());
            if end > len {
                return Err(CudaError::OutOfBounds { start, end, len });
            }
            expected = expected.saturating_add(range.len());
        }
        if to.len() != expected {
            let got = to.len();
            return Err(CudaError::WrongLength { what: "bytes to copy to", got, expected });
        }
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
                self.advance()?;
                let (index, bytes) = (self.current, self.bytes);
                // What comes down has a slot to itself, also if it does not come.
                self.used = bytes;
                let slot = &mut self.slots[index];
                let (mut used, mut queued) = (0, Ok(()));
                while queued.is_ok()
                    && let Some(part) = parts.next_if(|part| used + part.len() <= bytes)
                {
                    slot.busy = true;
                    used += part.len();
                    let at = used - part.len();
                    // SAFETY: the slot's memory stays, and is not used before `done` is reached.
                    queued = unsafe { from.download(part, &mut slot.memory, at, stream) };
                }
                slot.mark(stream)?;
                queued?;
                started = Some((index, asked..asked + used));
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

    /// Begins the next slot, when it is no longer in use.
    fn advance(&mut self) -> Result<(), CudaError> {
        let next = (self.current + 1) % self.slots.len();
        self.slots[next].settle()?;
        (self.current, self.used) = (next, 0);
        Ok(())
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
