//! Times of the device.

use std::sync::Arc;

use crate::cuda::{
    CudaError,
    driver::{DeviceBuffer, Event, Stream},
};

/// Samples of which the median counts.
const SAMPLES: usize = 7;
/// What a sample should last at least, in seconds: the resolution of events is half a microsecond, and
/// a short burst would measure how fast launches are queued.
const SAMPLE_SECONDS: f64 = 3e-3;
/// The most launches of a sample.
const MOST_LAUNCHES: usize = 512;
/// Bytes of the copy that shares are measured against: far beyond any cache.
const COPY_BYTES: usize = 2 << 30;

/// Measures launches in a stream.
pub struct Clock {
    pub stream: Arc<Stream>,
    start: Event,
    end: Event,
}

impl Clock {
    pub fn new(stream: Stream) -> Result<Self, CudaError> {
        let context = stream.context().clone();
        let (start, end) = (Event::timed(&context)?, Event::timed(&context)?);
        Ok(Self { stream: Arc::new(stream), start, end })
    }

    /// The median time of one `launch`, in seconds; each is told its number, so that it can work on
    /// other memory than the last.
    pub fn median(
        &mut self,
        launch: &mut dyn FnMut(usize, &Stream) -> Result<(), CudaError>,
    ) -> Result<f64, CudaError> {
        let mut next = 0;
        let mut sample = |clock: &Self, launches: usize| -> Result<f64, CudaError> {
            clock.start.record(&clock.stream)?;
            for _ in 0..launches {
                launch(next, &clock.stream)?;
                next += 1;
            }
            clock.end.record(&clock.stream)?;
            clock.end.synchronize()?;
            Ok(clock.end.since(&clock.start)?.as_secs_f64() / launches as f64)
        };
        // The first launches load code and warm what can be warm.
        sample(self, 1)?;
        let estimate = sample(self, 2)?.max(1e-7);
        let launches = ((SAMPLE_SECONDS / estimate) as usize).clamp(1, MOST_LAUNCHES);
        let mut times =
            (0..SAMPLES).map(|_| sample(self, launches)).collect::<Result<Vec<_>, _>>()?;
        times.sort_by(f64::total_cmp);
        Ok(times[SAMPLES / 2])
    }

    /// Bytes read and written per second by a copy on the device, in GB/s.
    pub fn copy_gbps(&mut self) -> Result<f64, CudaError> {
        let mut buffer = DeviceBuffer::new(self.stream.context(), 2 * COPY_BYTES)?;
        buffer.fill(0..2 * COPY_BYTES, 0x5a, &self.stream)?;
        let seconds = self.median(&mut |i, stream| {
            let (from, to) = if i % 2 == 0 { (0, COPY_BYTES) } else { (COPY_BYTES, 0) };
            buffer.copy_within(from, to, COPY_BYTES, stream)
        })?;
        Ok(2.0 * COPY_BYTES as f64 / seconds / 1e9)
    }
}
