//! Times of the device.

use std::sync::Arc;

use crate::{
    cuda::driver::{DeviceBuffer, Event, Stream},
    device::DeviceError,
};

/// Samples of which the median counts.
const SAMPLES: usize = 7;
/// What a sample should last at least, in seconds: the resolution of events is half a microsecond, and
/// a short burst would measure how fast launches are queued.
const SAMPLE_SECONDS: f64 = 3e-3;
/// The most launches of a sample.
const MOST_LAUNCHES: usize = 512;
/// Bytes of the copy that shares are measured against: far beyond any cache. A small device copies less.
const COPY_BYTES: usize = 2 << 30;

/// Queues the launch of that number.
pub type Launch<'a> = dyn FnMut(usize, &Stream) -> Result<(), DeviceError> + 'a;

/// Measures launches in a stream.
pub struct Clock {
    pub stream: Arc<Stream>,
    start: Event,
    end: Event,
}

impl Clock {
    pub fn new(stream: Stream) -> Result<Self, DeviceError> {
        let context = stream.context().clone();
        let (start, end) = (Event::timed(&context)?, Event::timed(&context)?);
        Ok(Self { stream: Arc::new(stream), start, end })
    }

    /// The median time of one `launch`, in seconds; each is told its number, so that it can work on
    /// other memory than the last.
    pub fn median(&mut self, launch: &mut Launch<'_>) -> Result<f64, DeviceError> {
        Ok(self.medians(&mut [launch])?[0])
    }

    /// The median times of several launches, whose samples take turns: a device that grows hot and slow
    /// does so for all of them.
    pub fn medians(&mut self, launches: &mut [&mut Launch<'_>]) -> Result<Vec<f64>, DeviceError> {
        let mut turn = 0;
        let mut sample = |launch: &mut Launch<'_>, count: usize| -> Result<f64, DeviceError> {
            self.start.record(&self.stream)?;
            for _ in 0..count {
                launch(turn, &self.stream)?;
                turn += 1;
            }
            self.end.record(&self.stream)?;
            self.end.synchronize()?;
            Ok(self.end.since(&self.start)?.as_secs_f64() / count as f64)
        };
        let mut counts = Vec::with_capacity(launches.len());
        for launch in &mut *launches {
            // The first launches load code and warm what can be warm.
            sample(launch, 1)?;
            let estimate = sample(launch, 2)?.max(1e-7);
            counts.push(((SAMPLE_SECONDS / estimate) as usize).clamp(1, MOST_LAUNCHES));
        }
        let mut times = vec![Vec::with_capacity(SAMPLES); launches.len()];
        for _ in 0..SAMPLES {
            for ((launch, &count), times) in launches.iter_mut().zip(&counts).zip(&mut times) {
                times.push(sample(launch, count)?);
            }
        }
        let median = |mut times: Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[SAMPLES / 2]
        };
        Ok(times.into_iter().map(median).collect())
    }

    /// Bytes read and written per second by a copy on the device, in GB/s.
    pub fn copy_gbps(&mut self) -> Result<f64, DeviceError> {
        let context = self.stream.context();
        let bytes = COPY_BYTES.min(context.memory()?.0 / 4);
        let mut buffer = DeviceBuffer::new(context, 2 * bytes)?;
        buffer.fill(0..2 * bytes, 0x5a, &self.stream)?;
        let seconds = self.median(&mut |i, stream| {
            let (from, to) = if i % 2 == 0 { (0, bytes) } else { (bytes, 0) };
            Ok(buffer.copy_within(from, to, bytes, stream)?)
        })?;
        Ok(2.0 * bytes as f64 / seconds / 1e9)
    }
}
