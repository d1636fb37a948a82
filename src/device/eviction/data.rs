//! Scores and positions of all slots of a pool, on the device.

use std::ops::Range;

use crate::{
    cuda::{
        Staging,
        driver::{Context, DeviceBuffer, Stream},
    },
    device::error::DeviceError,
    evict::Score,
};

/// The score at rest and the position of every slot of every page: the datum of slot `s` of page `p`
/// is at `p * stride + s`. Six bytes a slot, 1.2 % of f16 pages at 128 channels.
#[derive(Debug)]
pub struct SlotData {
    scores: DeviceBuffer,
    positions: DeviceBuffer,
    stride: u32,
}

/// Addresses of [`SlotData`], as kernels take them. Null leaves that part out.
#[derive(Clone, Copy, Debug, Default)]
pub struct SlotAddresses {
    /// Scores at rest, u16.
    pub scores: u64,
    /// Positions, u32; where they are null, slot `i` holds position `i`.
    pub positions: u64,
    /// Data from one page to the next.
    pub stride: u32,
}

impl SlotAddresses {
    /// Of heads without scores and positions: slot `i` holds position `i`.
    pub const NONE: Self = Self { scores: 0, positions: 0, stride: 0 };
}

impl SlotData {
    /// For `pages` pages of at most `page_slots` slots. Not initialised: a slot's data are written with
    /// the slot, by [`Appender`](crate::device::attention::Appender) and
    /// [`StepAppender`](crate::device::attention::StepAppender). What is done to whole pages is done to
    /// their data beside: [`copy_pages`](Self::copy_pages), [`read`](Self::read) and
    /// [`write`](Self::write).
    pub fn new(context: &Context, pages: usize, page_slots: usize) -> Result<Self, DeviceError> {
        let slots = pages * page_slots;
        Ok(Self {
            scores: DeviceBuffer::new(context, slots * size_of::<Score>())?,
            positions: DeviceBuffer::new(context, slots * size_of::<u32>())?,
            stride: page_slots as u32,
        })
    }

    /// Where they are.
    pub fn addresses(&self) -> SlotAddresses {
        let [scores, positions] = [&self.scores, &self.positions].map(DeviceBuffer::address);
        SlotAddresses { scores, positions, stride: self.stride }
    }

    /// Queues copies of the data of whole pages within the pool, as `CudaStore::copy_pages` copies their
    /// bytes: the private copies of a [step](crate::plan::Step::copies) or a
    /// [rewrite](crate::plan::Pass::copies).
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`](crate::cuda::CudaError::OutOfBounds) for pages that are not there.
    pub fn copy_pages(
        &mut self,
        copies: &[(u32, u32)],
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let stride = self.stride as usize;
        for (buffer, size) in
            [(&mut self.scores, size_of::<Score>()), (&mut self.positions, size_of::<u32>())]
        {
            for &(from, to) in copies {
                let at = |page: u32| page as usize * stride * size;
                buffer.copy_within(at(from), at(to), stride * size, stream)?;
            }
        }
        Ok(())
    }

    /// Copies the data of whole pages to the host (swapping out), page after page, and waits: `scores`
    /// (their bits) and `positions` are [`stride`](SlotAddresses::stride) values a page, of which those
    /// of free slots mean nothing.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`](crate::cuda::CudaError::OutOfBounds) for pages that are not there, [`DeviceError::WrongLength`] for slices of
    /// another length.
    pub fn read(
        &self,
        pages: &[u32],
        scores: &mut [u16],
        positions: &mut [u32],
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let bytes = bytemuck::cast_slice_mut(scores);
        staging.download(stream, &self.scores, &self.spans(pages, size_of::<Score>()), bytes)?;
        let bytes = bytemuck::cast_slice_mut(positions);
        staging.download(stream, &self.positions, &self.spans(pages, size_of::<u32>()), bytes)?;
        Ok(())
    }

    /// Queues copies of the data of whole pages from the host (swapping in), as [`read`](Self::read)
    /// gave them; both may be reused at once.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write(
        &mut self,
        pages: &[u32],
        scores: &[u16],
        positions: &[u32],
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let stride = self.stride as usize;
        let expected = pages.len() * stride;
        for (what, got) in [("scores", scores.len()), ("positions", positions.len())] {
            if got != expected {
                return Err(DeviceError::WrongLength { what, got, expected });
            }
        }
        let codes: &[u8] = bytemuck::cast_slice(scores);
        let places: &[u8] = bytemuck::cast_slice(positions);
        for (size, bytes, buffer) in [
            (size_of::<Score>(), codes, &mut self.scores),
            (size_of::<u32>(), places, &mut self.positions),
        ] {
            let starts = pages.iter().map(|&page| page as usize * stride * size);
            let pieces = starts.zip(bytes.chunks_exact((stride * size).max(1)));
            staging.upload(stream, buffer, pieces)?;
        }
        Ok(())
    }

    /// The bytes of whole pages in a buffer of values of `size` bytes.
    fn spans(&self, pages: &[u32], size: usize) -> Vec<Range<usize>> {
        let bytes = self.stride as usize * size;
        pages.iter().map(|&page| page as usize * bytes..(page as usize + 1) * bytes).collect()
    }

    /// Queues copies of all scores, page after page, and positions.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`](crate::cuda::CudaError::OutOfBounds) for more than there are.
    pub fn upload(
        &mut self,
        scores: &[u16],
        positions: &[u32],
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        staging.upload(stream, &mut self.scores, [(0, bytemuck::cast_slice(scores))])?;
        staging.upload(stream, &mut self.positions, [(0, bytemuck::cast_slice(positions))])?;
        Ok(())
    }

    /// The scores and positions of the first `slots` slots of a table whose pages have `page_slots`,
    /// waiting for them.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`](crate::cuda::CudaError::OutOfBounds) for pages that are not there, [`DeviceError::WrongLength`] for pages that
    /// have fewer slots, or more than the pool's.
    pub fn download(
        &self,
        pages: &[u32],
        page_slots: usize,
        slots: usize,
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<(Vec<Score>, Vec<u32>), DeviceError> {
        if page_slots > self.stride as usize {
            let (got, expected) = (page_slots, self.stride as usize);
            return Err(DeviceError::WrongLength { what: "slots of a page", got, expected });
        }
        let held = pages.len().saturating_mul(page_slots);
        if held < slots {
            return Err(DeviceError::WrongLength {
                what: "slots of pages",
                got: held,
                expected: slots,
            });
        }
        let spans = |size: usize| -> Vec<Range<usize>> {
            let of_page = |(i, &page): (usize, &u32)| {
                let start = page as usize * self.stride as usize * size;
                start..start + page_slots.min(slots.saturating_sub(i * page_slots)) * size
            };
            pages.iter().enumerate().map(of_page).filter(|span| !span.is_empty()).collect()
        };
        let (mut codes, mut positions) = (vec![0u16; slots], vec![0u32; slots]);
        let bytes = bytemuck::cast_slice_mut(&mut codes);
        staging.download(stream, &self.scores, &spans(size_of::<u16>()), bytes)?;
        let bytes = bytemuck::cast_slice_mut(&mut positions);
        staging.download(stream, &self.positions, &spans(size_of::<u32>()), bytes)?;
        Ok((codes.into_iter().map(Score::from_bits).collect(), positions))
    }
}
