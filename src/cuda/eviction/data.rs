//! Scores and positions of all slots of a pool, on the device.

use crate::{
    cuda::{
        CudaError, Staging,
        driver::{Context, DeviceBuffer, Stream},
    },
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

impl SlotData {
    /// For `pages` pages of at most `page_slots` slots. Not initialised: a slot's data are written with
    /// the slot.
    pub fn new(context: &Context, pages: usize, page_slots: usize) -> Result<Self, CudaError> {
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

    /// Queues copies of all scores, page after page, and positions.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`] for more than there are.
    pub fn upload(
        &mut self,
        scores: &[u16],
        positions: &[u32],
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        staging.upload(stream, &mut self.scores, [(0, bytemuck::cast_slice(scores))])?;
        staging.upload(stream, &mut self.positions, [(0, bytemuck::cast_slice(positions))])
    }

    /// The scores and positions of the first `slots` slots of a table, waiting for them.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`] for pages that are not there.
    pub fn download(
        &self,
        pages: &[u32],
        page_slots: usize,
        slots: usize,
        staging: &mut Staging,
        stream: &Stream,
    ) -> Result<(Vec<Score>, Vec<u32>), CudaError> {
        let spans = |size: usize| -> Vec<std::ops::Range<usize>> {
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
