//! What is refused before anything is queued, and that it leaves everything as it was.

use std::sync::Arc;

use headwise::{
    base::{Channels, SlotMove},
    cuda::{
        CudaError, Staging,
        driver::{DeviceBuffer, Stream},
    },
    device::{
        CudaStore, DeviceError, Kernels,
        attention::{DecodeHead, DecodePlan, Decoder},
        eviction::SlotData,
        kernels::Specialisation,
    },
    evict::Score,
    format::{PageFormat, PageLayout, Region},
    store::{HostStore, PageStore, Rows, StoreError, TablePages},
};

use super::{context, without_leaks};
use crate::{compiler::nvrtc, fake::Fake};

#[test]
fn bounds_are_checked_before_anything_is_queued() {
    let Some(fake) = Fake::new() else { return };
    without_leaks(&fake, |context| {
        let stream = Stream::new(context).unwrap();
        let mut staging = Staging::new(context, 2, 64).unwrap();
        let mut buffer = DeviceBuffer::new(context, 100).unwrap();
        let error = staging.upload(&stream, &mut buffer, [(90, &[0; 11][..])]).unwrap_err();
        assert_eq!(error.to_string(), "bytes 90..101 are outside a buffer of 100 bytes");
        let out_of = |error| matches!(error, CudaError::OutOfBounds { .. });
        assert!(out_of(buffer.fill(50..101, 0, &stream).unwrap_err()));
        assert!(out_of(buffer.copy_within(0, 99, 2, &stream).unwrap_err()));
        assert!(out_of(buffer.copy_within(usize::MAX, 0, 2, &stream).unwrap_err()));
        let mut to = [0; 2];
        assert!(out_of(
            staging
                .download(&stream, &buffer, std::slice::from_ref(&(99..101)), &mut to)
                .unwrap_err()
        ));
        stream.synchronize().unwrap();
    });
}

/// A download that is refused, or that the driver refuses half way, leaves no copy behind that a later
/// upload's bytes could fall victim to.
#[test]
fn a_refused_download_leaves_the_ring_usable() {
    let Some(fake) = Fake::new() else { return };
    without_leaks(&fake, |context| {
        let stream = Stream::new(context).unwrap();
        let mut staging = Staging::new(context, 2, 64).unwrap();
        let mut buffer = DeviceBuffer::new(context, 100).unwrap();
        staging.upload(&stream, &mut buffer, [(0, &[7; 100][..])]).unwrap();
        let mut to = [0; 43];
        let error = staging.download(&stream, &buffer, &[0..32, 90..101], &mut to).unwrap_err();
        assert_eq!(error.to_string(), "bytes 90..101 are outside a buffer of 100 bytes");
        let error = staging.download(&stream, &buffer, &[0..32, 90..100], &mut to).unwrap_err();
        assert_eq!(error.to_string(), "bytes to copy to: 43, expected 42");
        staging.upload(&stream, &mut buffer, [(0, &[9; 32][..])]).unwrap();
        fake.fail("cuMemcpyDtoHAsync_v2", 700);
        assert!(staging.download(&stream, &buffer, &[0..32, 32..43], &mut to).is_err());
        fake.fail("cuEventRecord", 700);
        assert!(staging.download(&stream, &buffer, &[0..32, 32..43], &mut to).is_err());
        fake.fail("", 0);
        staging.upload(&stream, &mut buffer, [(64, &[5; 32][..])]).unwrap();
        let mut seen = [0; 100];
        staging.download(&stream, &buffer, &[0..32, 32..100], &mut seen).unwrap();
        let expected = [[9u8; 32].as_slice(), &[7; 32], &[5; 32], &[7; 4]].concat();
        assert_eq!(seen.as_slice(), expected);
    });
}

/// Scores and positions go where their pages go, and whoever names too few pages is told.
#[test]
fn slot_data_follow_pages() {
    let Some(fake) = Fake::new() else { return };
    without_leaks(&fake, |context| {
        let stream = Stream::new(context).unwrap();
        let mut staging = Staging::new(context, 2, 64).unwrap();
        let mut data = SlotData::new(context, 6, 5).unwrap();
        let scores: Vec<u16> = (100..110).collect();
        let positions: Vec<u32> = (200..210).collect();
        data.write(&[4, 1], &scores, &positions, &mut staging, &stream).unwrap();
        data.copy_pages(&[(4, 0), (1, 5), (5, 2)], &stream).unwrap();
        let (mut codes, mut places) = (vec![0; 10], vec![0; 10]);
        for pages in [[4, 1], [0, 5], [0, 2]] {
            data.read(&pages, &mut codes, &mut places, &mut staging, &stream).unwrap();
            assert_eq!((&codes, &places), (&scores, &positions), "{pages:?}");
        }
        let (codes, places) = data.download(&[0, 2], 4, 7, &mut staging, &stream).unwrap();
        let codes: Vec<u16> = codes.into_iter().map(Score::to_bits).collect();
        assert_eq!(codes, [100, 101, 102, 103, 105, 106, 107]);
        assert_eq!(places, [200, 201, 202, 203, 205, 206, 207]);
        let mut refused = |pages: &[u32], page_slots, slots| {
            data.download(pages, page_slots, slots, &mut staging, &stream).unwrap_err().to_string()
        };
        assert_eq!(refused(&[0, 2], 4, 9), "slots of pages: 8, expected 9");
        assert_eq!(refused(&[], 4, 1), "slots of pages: 0, expected 1");
        assert_eq!(refused(&[0], 6, 1), "slots of a page: 6, expected 5");
        assert_eq!(refused(&[6], 5, 1), "bytes 60..62 are outside a buffer of 60 bytes");
        let error = data.write(&[0], &[0; 5], &[0; 4], &mut staging, &stream).unwrap_err();
        assert_eq!(error.to_string(), "positions: 4, expected 5");
        let mut short = [0; 4];
        let error = data.read(&[0], &mut short, &mut [0; 5], &mut staging, &stream).unwrap_err();
        assert_eq!(error.to_string(), "bytes to copy to: 8, expected 10");
        assert!(data.copy_pages(&[(0, 6)], &stream).is_err());
        stream.synchronize().unwrap();
    });
}

#[test]
fn refusals_are_those_of_the_host_store() {
    let Some(fake) = Fake::new() else { return };
    let context = context(&fake);
    let stream = Arc::new(Stream::new(&context).unwrap());
    let mut device = CudaStore::new(Arc::clone(&stream), 2, 1024).unwrap();
    let mut host = HostStore::new(2, 1024).unwrap();
    let layout = PageLayout::new(PageFormat::default(), 32, 1024).unwrap();
    let other = PageLayout::new(PageFormat::default(), 32, 2048).unwrap();
    let row = [1.0; 32];
    let tables: [(&[u32], &PageLayout); 3] = [(&[2], &layout), (&[0], &layout), (&[0], &other)];
    for (pages, layout) in tables {
        let table = TablePages { pages, layout };
        for (first, k, v) in [(0, 32, 32), (layout.slots, 32, 32), (0, 31, 32), (0, 32, 0)] {
            let (k, v) = (Rows::dense(&row[..k], 32), Rows::dense(&row[..v], 32));
            if first == 0
                && pages == [0]
                && layout.page_bytes == 1024
                && k.values.len() == v.values.len()
            {
                continue;
            }
            let error = device.append(table, first, k, v).unwrap_err();
            assert_eq!(error, host.append(table, first, k, v).unwrap_err());
        }
    }
    let forged = [
        PageLayout { slots: 1000, ..layout },
        PageLayout { slots: 0, ..layout },
        PageLayout { channels: Channels::from(0), ..layout },
        PageLayout { channels: Channels::from(usize::MAX), ..layout },
        PageLayout { channels: Channels::from(16), ..layout },
        PageLayout { k: Region { payload: 1 << 40, ..layout.k }, ..layout },
        PageLayout { v: Region { scale_stride: 64, ..layout.v }, ..layout },
    ];
    for layout in &forged {
        let table = TablePages { pages: &[0, 1], layout };
        let moves = [SlotMove { from: 1, to: 0 }, SlotMove { from: 3, to: 2 }];
        let dense = Rows { values: &row, stride: 32, count: 0 };
        let (mut k, mut v) = ([0.0; 32], [0.0; 32]);
        for refused in [
            device.append(table, 0, dense, dense),
            device.move_slots(table, &moves),
            device.read(table, 0, &mut k, &mut v),
            device.read_keys(table, 0, &mut k),
        ] {
            let text = refused.unwrap_err().to_string();
            let rows = text.starts_with("K has ") && layout.channels.k > 32;
            assert!(rows || text.contains("a page layout that is not that of f16 pages"), "{text}");
        }
    }
    assert_eq!(device.poison(&[9]).unwrap_err(), host.poison(&[9]).unwrap_err());
    assert_eq!(device.copy_pages(&[(0, 3)]).unwrap_err(), host.copy_pages(&[(0, 3)]).unwrap_err());
    let error = device.read_pages(&[0], &mut [0; 1000]).unwrap_err();
    assert_eq!(error.to_string(), "page bytes has 1000 values, expected 1024");
    for (pages, page_bytes) in [(0, 1024), (1, 100), (usize::MAX, 1024)] {
        let error = CudaStore::new(Arc::clone(&stream), pages, page_bytes).unwrap_err();
        assert_eq!(error, StoreError::BadSize { pages, page_bytes });
    }
    let mut bytes = [1; 2048];
    device.read_pages(&[0, 1], &mut bytes).unwrap();
    assert!(bytes.iter().all(|&b| b == 0));
}

/// A decoder follows no plan that leads its blocks outside its buffers.
#[test]
fn plans_of_other_decoders_are_refused() {
    let Some(fake) = Fake::new() else { return };
    let Some(nvrtc) = nvrtc() else { return };
    without_leaks(&fake, |context| {
        let stream = Stream::new(context).unwrap();
        let kernels = Kernels::new(context, nvrtc, None);
        let layout = PageLayout::new(PageFormat::default(), 64, 8192).unwrap();
        let specialisation = Specialisation::new(layout, 2);
        let mut staging = Staging::new(context, 2, 4096).unwrap();
        let mut decoder = Decoder::new(&kernels, specialisation, 3, &stream).unwrap();
        let blocks = decoder.blocks();
        let heads = [4000, 100, 9].map(|slots| DecodeHead { query: 0, pages: 0, slots, logits: 0 });
        let own = DecodePlan::new(&heads, &specialisation, blocks);
        assert!(own.partials > 1 && own.merges.len() == 1, "{own:?}");
        decoder.upload(own.clone(), &mut staging, &stream).unwrap();
        let merge_blocks = decoder.merge_blocks();
        let with = |change: fn(&mut DecodePlan)| {
            let mut plan = own.clone();
            change(&mut plan);
            plan
        };
        let forged = [
            DecodePlan::new(&heads, &specialisation, blocks / 2),
            DecodePlan::new(&heads, &specialisation, 2 * blocks),
            with(|plan| plan.lists.clear()),
            with(|plan| plan.lists[1] = 1 << 20),
            with(|plan| *plan.lists.last_mut().unwrap() += 1),
            with(|plan| plan.lists[0] = 1),
            with(|plan| plan.partials = 1 << 20),
            with(|plan| plan.partials = 1),
            with(|plan| plan.items[0].partial = 1 << 20),
            with(|plan| plan.merges[0].count = u32::MAX),
            with(|plan| plan.merges = vec![plan.merges[0]; 4]),
        ];
        for plan in forged {
            let error = decoder.upload(plan, &mut staging, &stream).unwrap_err();
            assert!(matches!(error, DeviceError::OtherPlan { .. }), "{error}");
        }
        assert_eq!(decoder.merge_blocks(), merge_blocks, "the last plan stays");
        let error = decoder.plan(&[heads[0]; 4], &mut staging, &stream).unwrap_err();
        assert!(matches!(error, DeviceError::TooManyHeads { heads: 4, most: 3 }), "{error}");
        stream.synchronize().unwrap();
    });
}
