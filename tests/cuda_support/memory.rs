//! What must hold of memory and its order on every device, real or not.

use headwise::{
    cuda::{
        Staging,
        driver::{Context, DeviceBuffer, Stream},
    },
    device::{StepFence, TableMirror},
    measure::verify::Noise,
    plan::StepId,
};

/// Pieces of any size arrive where they were sent, also when they outgrow the staging memory and
/// when their source is overwritten at once.
pub fn staging_delivers(context: &Context, seed: u64) {
    let mut noise = Noise::new(seed);
    let stream = Stream::new(context).unwrap();
    let mut staging = Staging::new(context, 2, 64).unwrap();
    let mut buffer = DeviceBuffer::new(context, 1000).unwrap();
    buffer.fill(0..1000, 0, &stream).unwrap();
    let mut model = vec![0u8; 1000];
    for _ in 0..20 {
        let mut sources: Vec<(usize, Vec<u8>)> = (0..noise.below(5))
            .map(|_| {
                let (at, len) = (noise.below(800), noise.below(200));
                (at, (0..len).map(|_| noise.below(256) as u8).collect())
            })
            .collect();
        for (at, bytes) in &sources {
            model[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        let pieces = sources.iter().map(|(at, bytes)| (*at, bytes.as_slice()));
        staging.upload(&stream, &mut buffer, pieces).unwrap();
        sources.iter_mut().for_each(|(_, bytes)| bytes.fill(0xee));
    }
    let ranges = [0..0, 10..500, 3..4, 200..1000];
    let mut seen = vec![0; 490 + 1 + 800];
    staging.download(&stream, &buffer, &ranges, &mut seen).unwrap();
    let expected: Vec<u8> = ranges.iter().flat_map(|r| model[r.clone()].to_vec()).collect();
    assert!(seen == expected);
}

/// Two streams that take turns at one ring do not overwrite each other's bytes, however late they are.
pub fn staging_serves_two_streams(context: &Context) {
    let streams = [(); 2].map(|()| Stream::new(context).unwrap());
    let mut staging = Staging::new(context, 3, 256).unwrap();
    let mut buffers = [(); 2].map(|()| DeviceBuffer::new(context, 4096).unwrap());
    let bytes: Vec<u8> = (0..4096).map(|i| (i % 251) as u8).collect();
    for (i, piece) in bytes.chunks(48).enumerate() {
        for (stream, buffer) in streams.iter().zip(&mut buffers) {
            staging.upload(stream, buffer, [(48 * i, piece)]).unwrap();
        }
    }
    for (stream, buffer) in streams.iter().zip(&buffers) {
        let mut seen = vec![0; 4096];
        staging.download(stream, buffer, std::slice::from_ref(&(0..4096)), &mut seen).unwrap();
        assert!(seen == bytes);
    }
}

/// The device's page ids are the host's after each synchronisation.
pub fn mirror_follows(context: &Context, seed: u64) {
    const TABLES: usize = 5;
    let mut noise = Noise::new(seed);
    let stream = Stream::new(context).unwrap();
    let mut staging = Staging::new(context, 2, 128).unwrap();
    let mut mirror = TableMirror::new(context, TABLES, 300).unwrap();
    let address = mirror.address();
    let mut model = vec![Vec::<u32>::new(); TABLES];
    let mut next = 0;
    for _ in 0..30 {
        let table = noise.below(TABLES);
        let keep = noise.below(model[table].len() + 1);
        if noise.below(3) == 0 {
            model[table].truncate(keep);
        }
        for _ in 0..noise.below(10) {
            model[table].push(next);
            next += 1;
        }
        model[table].truncate(60);
        mirror.set(table, &model[table]).unwrap();
        mirror.sync(&mut staging, &stream).unwrap();
        assert_eq!(mirror.sync(&mut staging, &stream).unwrap(), 0, "nothing changed since");
        assert_eq!(mirror.address(), address);
        for (table, pages) in model.iter().enumerate() {
            let extent = mirror.extent(table).unwrap();
            let mut words = vec![0u32; pages.len()];
            // SAFETY: the mirror has that many bytes at its address.
            let view = unsafe { DeviceBuffer::from_raw(context, address, 300 * 4) };
            let start = extent.offset as usize * 4;
            let bytes = bytemuck::cast_slice_mut(&mut words);
            let end = start + bytes.len();
            staging.download(&stream, &view, std::slice::from_ref(&(start..end)), bytes).unwrap();
            assert_eq!(words, *pages);
        }
    }
}

/// Steps retire in order, and only after their work.
pub fn fence_retires_in_order(context: &Context) {
    let stream = Stream::new(context).unwrap();
    let mut fence = StepFence::new(context);
    assert_eq!(fence.poll().unwrap(), None);
    let mut buffer = DeviceBuffer::new(context, 1 << 20).unwrap();
    for step in 0..5 {
        buffer.fill(0..1 << 20, step as u8, &stream).unwrap();
        fence.record(StepId(step), &stream).unwrap();
    }
    assert_eq!(fence.running(), 5);
    let mut newest = None;
    while fence.running() > 2 {
        if let Some(step) = fence.poll().unwrap() {
            assert!(newest < Some(step));
            newest = Some(step);
        }
    }
    if fence.running() > 0 {
        newest = fence.wait().unwrap();
    }
    assert_eq!((newest, fence.running()), (Some(StepId(4)), 0));
    assert_eq!(fence.wait().unwrap(), None);
}
