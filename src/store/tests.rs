//! The host store against plain vectors.

use proptest::prelude::*;

use super::*;
use crate::format::{OutOfRange, Overflow, PageFormat, Side, SlotFormat};

const HEAD_DIM: usize = 32;

fn rows(seed: usize, count: usize) -> Vec<f32> {
    (0..count * HEAD_DIM)
        .map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 500.0 - 2.0)
        .collect()
}

fn dense(values: &[f32]) -> Rows<'_> {
    Rows::dense(values, HEAD_DIM)
}

fn layout(format: PageFormat) -> PageLayout {
    PageLayout::new(format, HEAD_DIM, 1024).unwrap()
}

fn read(store: &HostStore, table: TablePages<'_>, slots: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut k, mut v) = (vec![0.0; slots * HEAD_DIM], vec![0.0; slots * HEAD_DIM]);
    store.read(table, 0, &mut k, &mut v).unwrap();
    let mut keys = vec![0.0; slots * HEAD_DIM];
    store.read_keys(table, 0, &mut keys).unwrap();
    assert_eq!(
        keys.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
        k.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    );
    (k, v)
}

proptest! {
    /// Tables of every pair of formats side by side in one store: appends in pieces read back as the
    /// same appends made at once, and moves carry slots bit for bit.
    #[test]
    fn tables_of_all_formats_share_one_store(
        lengths in prop::collection::vec(0usize..40, 16),
        cut in 0usize..40,
    ) {
        let formats: Vec<PageFormat> = SlotFormat::ALL
            .iter()
            .flat_map(|&k| SlotFormat::ALL.iter().map(move |&v| PageFormat { k, v }))
            .collect();
        let mut store = HostStore::new(512, 1024).unwrap();
        // Interleaved page ids, so that a wrong stride would reach into a neighbour.
        let pages_of = |i: usize, slots: usize, layout: &PageLayout| -> Vec<u32> {
            (0..slots.div_ceil(layout.slots)).map(|p| (p * 16 + i) as u32).collect()
        };
        let mut expected = Vec::new();
        for (i, (&format, &len)) in formats.iter().zip(&lengths).enumerate() {
            let layout = layout(format);
            let pages = pages_of(i, len, &layout);
            let table = TablePages { pages: &pages, layout: &layout };
            let (k, v) = (rows(i, len), rows(i + 100, len));
            let first = cut.min(len) * HEAD_DIM;
            store.append(table, 0, dense(&k[..first]), dense(&v[..first])).unwrap();
            store.append(table, cut.min(len), dense(&k[first..]), dense(&v[first..])).unwrap();
            expected.push((pages.clone(), layout, read(&store, table, len)));
        }
        for (i, (pages, layout, (k, v))) in expected.iter().enumerate() {
            let table = TablePages { pages, layout };
            let len = lengths[i];
            let now = read(&store, table, len);
            prop_assert_eq!((&now.0, &now.1), (k, v));
            for (got, want) in now.0.iter().zip(rows(i, len)) {
                prop_assert!((got - want).abs() < 0.02, "{} {}", got, want);
            }
            if len >= 2 {
                store
                    .move_slots(table, &[SlotMove { from: len as u32 - 1, to: 0 }])
                    .unwrap();
                let moved = read(&store, table, len);
                prop_assert_eq!(&moved.0[..HEAD_DIM], &k[(len - 1) * HEAD_DIM..]);
                prop_assert_eq!(&moved.1[..HEAD_DIM], &v[(len - 1) * HEAD_DIM..]);
                prop_assert_eq!(&moved.0[HEAD_DIM..], &k[HEAD_DIM..]);
            }
        }
    }
}

#[test]
fn copies_and_poison_touch_their_pages_alone() {
    let layout = layout(PageFormat::both(SlotFormat::I8));
    let mut store = HostStore::new(3, 1024).unwrap();
    let (k, v) = (rows(1, layout.slots), rows(2, layout.slots));
    store.append(TablePages { pages: &[0], layout: &layout }, 0, dense(&k), dense(&v)).unwrap();
    store.copy_pages(&[(0, 2)]).unwrap();
    store.poison(&[0]).unwrap();
    let copied = read(&store, TablePages { pages: &[2], layout: &layout }, layout.slots);
    assert!(copied.0.iter().all(|x| x.is_finite()));
    let (dead_k, dead_v) = read(&store, TablePages { pages: &[0], layout: &layout }, layout.slots);
    assert!(dead_k.iter().chain(&dead_v).all(|x| x.is_nan()));
    assert!(store.page(1).unwrap().iter().all(|&b| b == 0));
}

#[test]
fn refusals_write_nothing() {
    let layout = layout(PageFormat::default());
    let mut store = HostStore::new(2, 1024).unwrap();
    let row = vec![1.0; HEAD_DIM];
    let beyond = TablePages { pages: &[2], layout: &layout };
    let short = TablePages { pages: &[0], layout: &layout };
    assert!(matches!(
        store.append(beyond, 0, dense(&row), dense(&row)),
        Err(StoreError::NoSuchPage { .. })
    ));
    assert!(matches!(
        store.append(short, layout.slots, dense(&row), dense(&row)),
        Err(StoreError::NoSuchSlot { .. })
    ));
    assert!(matches!(
        store.append(short, 0, dense(&row[1..]), dense(&row)),
        Err(StoreError::WrongLength { .. })
    ));
    assert!(matches!(
        store.append(short, 0, dense(&row), dense(&[])),
        Err(StoreError::WrongLength { .. })
    ));
    let mv = SlotMove { from: 0, to: layout.slots as u32 };
    assert!(matches!(store.move_slots(short, &[mv]), Err(StoreError::NoSuchSlot { .. })));
    assert!(matches!(store.copy_pages(&[(0, 2)]), Err(StoreError::NoSuchPage { .. })));
    assert!(matches!(store.poison(&[0, 9]), Err(StoreError::NoSuchPage { .. })));
    let other = PageLayout::new(PageFormat::default(), HEAD_DIM, 2048).unwrap();
    let wrong = TablePages { pages: &[0], layout: &other };
    assert!(matches!(
        store.append(wrong, 0, dense(&row), dense(&row)),
        Err(StoreError::WrongLayout { .. })
    ));
    for first in [usize::MAX, usize::MAX / HEAD_DIM] {
        assert!(matches!(
            store.append(short, first, dense(&row), dense(&row)),
            Err(StoreError::NoSuchSlot { .. })
        ));
        let (mut k, mut v) = (row.clone(), row.clone());
        let read = store.read(short, first, &mut k, &mut v);
        assert!(matches!(read, Err(StoreError::NoSuchSlot { .. })));
    }
    assert!(matches!(
        store.append(short, 0, Rows::dense(&[], 0), Rows::dense(&[], 0)),
        Err(StoreError::WrongLength { .. })
    ));
    assert!(store.bytes().iter().all(|&b| b == 0));
    assert!(matches!(HostStore::new(0, 1024), Err(StoreError::BadSize { .. })));
    assert!(matches!(HostStore::new(1, 100), Err(StoreError::BadSize { .. })));
    assert!(matches!(HostStore::new(usize::MAX, 1024), Err(StoreError::BadSize { .. })));
    assert!(matches!(
        HostStore::new(u32::MAX as usize, 1 << 40),
        Err(StoreError::OutOfMemory { .. } | StoreError::BadSize { .. })
    ));
}

/// The fields of a layout are public: one that points beyond its page must not reach the neighbour.
#[test]
fn layouts_that_nobody_made_are_refused() {
    let mut store = HostStore::new(3, 1024).unwrap();
    let row = vec![1.0; HEAD_DIM];
    let layout = layout(PageFormat::default());
    store.append(TablePages { pages: &[1], layout: &layout }, 0, dense(&row), dense(&row)).unwrap();
    let before = store.bytes().to_vec();
    for forge in [
        (|l| l.slots = 0) as fn(&mut PageLayout),
        |l| l.slots += 1,
        |l| l.channels.k = 0,
        |l| l.channels.v = 64,
        |l| l.channels.v_in_k = true,
        |l| l.k.payload += 1024,
        |l| l.v.scales = usize::MAX,
        |l| l.v.payload_stride *= 2,
    ] {
        let mut layout = layout;
        forge(&mut layout);
        let table = TablePages { pages: &[0, 1], layout: &layout };
        let (mut k, mut v) = (row.clone(), row.clone());
        let moved = store.move_slots(table, &[SlotMove { from: 1, to: 0 }]);
        assert_eq!(moved, Err(StoreError::ForgedLayout), "{layout:?}");
        assert!(store.read(table, 0, &mut k, &mut v).is_err(), "{layout:?}");
        assert!(store.read(table, 0, &mut [], &mut []).is_err(), "{layout:?}");
        assert!(store.append(table, 0, dense(&row), dense(&row)).is_err(), "{layout:?}");
    }
    assert_eq!(store.bytes(), before);
}

/// What a format cannot hold is refused with its place, and other slots keep their bytes; or it is stored
/// as the row is that holds its largest value there.
#[test]
fn values_beyond_a_format_are_refused_or_saturated() {
    for &format in SlotFormat::ALL {
        for (side, beyond) in [
            (Side::Key, 7e4f32),
            (Side::Value, -3.4e38),
            (Side::Key, f32::NEG_INFINITY),
            (Side::Value, f32::NAN),
        ] {
            let layout = layout(PageFormat::both(format));
            let table = TablePages { pages: &[2, 0], layout: &layout };
            let mut store = HostStore::new(3, 1024).unwrap();
            let (first, all) = (rows(1, 2), rows(2, 5));
            store.append(table, 0, dense(&first), dense(&first)).unwrap();
            let before = read(&store, table, 2);
            let mut bad = all.clone();
            bad[3 * HEAD_DIM + 9] = beyond;
            let (k, v) = match side {
                Side::Key => (&bad, &all),
                Side::Value => (&all, &bad),
            };
            let refused = store.append(table, 2, dense(k), dense(v));
            if format.holds(beyond) {
                assert_eq!(refused, Ok(()));
                continue;
            }
            let cause = OutOfRange { side, channel: 9, value: beyond, format };
            assert_eq!(refused, Err(StoreError::OutOfRange { row: 3, cause }));
            assert_eq!(read(&store, table, 2), before);
            assert!(store.page(1).unwrap().iter().all(|&byte| byte == 0));

            let stored = store.append_with(table, 2, dense(k), dense(v), Overflow::Saturate);
            assert_eq!(stored, Ok(1));
            let bytes = store.bytes().to_vec();
            let group = &all[3 * HEAD_DIM..][..HEAD_DIM];
            let others = group.iter().enumerate().filter(|&(i, _)| i != 9).map(|(_, x)| x.abs());
            let largest = if format == SlotFormat::I8 {
                others.fold(0.0, f32::max)
            } else {
                format.largest()
            };
            let clean = if beyond.is_nan() { 0.0 } else { largest.copysign(beyond) };
            bad[3 * HEAD_DIM + 9] = clean;
            let (k, v) = match side {
                Side::Key => (&bad, &all),
                Side::Value => (&all, &bad),
            };
            store.append(table, 2, dense(k), dense(v)).unwrap();
            assert_eq!(store.bytes(), bytes, "{format}: {beyond}");
        }
    }
}
