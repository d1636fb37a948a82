//! Launches that an engine makes on its own, on a device, real or not: prompts' scores at rest, slots as rows.

use headwise::{
    cuda::{
        Staging,
        driver::{DeviceBuffer, Stream},
    },
    device::{
        Kernels,
        eviction::{GatherTable, Gatherer, PoolHead, SlotData, pool_scores},
        kernels::Specialisation,
    },
    evict::Score,
    format::{PageFormat, PageLayout},
    measure::verify::Noise,
    store::{HostStore, PageStore, Rows, TablePages},
};

const PAGES: usize = 20;
/// Pages of two tables, and their slots.
const TABLES: [(&[u32], usize); 2] = [(&[7, 3, 19, 0], 30), (&[1, 12], 9)];

/// Page ids one after another, and where each table starts.
fn ids() -> (Vec<u32>, [u32; 2]) {
    (TABLES.iter().flat_map(|(pages, _)| *pages).copied().collect(), [0, TABLES[0].0.len() as u32])
}

/// The sums of a prompt's window become the scores at rest that the host would keep.
pub fn sums_become_scores_at_rest(kernels: &Kernels) {
    let context = kernels.context();
    let group = 3;
    let bytes = PageLayout::page_bytes_for(PageFormat::default(), 32, 8).unwrap();
    let layout = PageLayout::new(PageFormat::default(), 32, bytes).unwrap();
    let specialisation = Specialisation::new(layout, group);
    let stream = Stream::new(context).unwrap();
    let mut staging = Staging::new(context, 2, 1 << 16).unwrap();
    let mut noise = Noise::new(3);
    let sums: Vec<f32> = noise.values(39 * group).iter().map(|v| v.abs()).collect();
    let (ids, starts) = ids();
    let mut put = |bytes: &[u8]| {
        let mut buffer = DeviceBuffer::new(context, bytes.len()).unwrap();
        staging.upload(&stream, &mut buffer, [(0, bytes)]).unwrap();
        buffer
    };
    let ids_at = put(bytemuck::cast_slice(&ids));
    let sums_at = put(bytemuck::cast_slice(&sums));
    let mut buffer = DeviceBuffer::new(context, 64).unwrap();
    let data = SlotData::new(context, PAGES, 8).unwrap();
    let heads = [(starts[0], 30, 0), (starts[1], 9, 30)].map(|(pages, slots, sums)| PoolHead {
        pages,
        slots,
        sums,
    });
    let addresses = [ids_at.address(), sums_at.address(), 0];
    // SAFETY: the buffers hold what the heads name.
    unsafe {
        pool_scores(
            kernels,
            &specialisation,
            &heads,
            addresses,
            data.addresses(),
            &mut buffer,
            &mut staging,
            &stream,
        )
    }
    .unwrap();
    for (table, &(pages, slots)) in TABLES.iter().enumerate() {
        let (scores, _) = data.download(pages, 8, slots, &mut staging, &stream).unwrap();
        for (slot, &score) in scores.iter().enumerate() {
            let near = slot.saturating_sub(3)..(slot + 4).min(slots);
            let first = heads[table].sums as usize;
            let most =
                |g: usize| near.clone().map(|s| sums[(first + s) * group + g]).fold(0.0, f32::max);
            let want = (0..group).map(most).fold(0.0, |sum, v| sum + v);
            assert_eq!(score, Score::try_from(want).unwrap(), "slot {slot}");
        }
    }
}

/// The slots of two tables as rows are what the host's store reads.
pub fn gathered_rows_are_the_hosts(kernels: &Kernels, format: PageFormat) {
    let context = kernels.context();
    let bytes = PageLayout::page_bytes_for(format, 32, 8).unwrap();
    let layout = PageLayout::new(format, 32, bytes).unwrap();
    let specialisation = Specialisation::new(layout, 1);
    let stream = Stream::new(context).unwrap();
    let mut staging = Staging::new(context, 2, 1 << 16).unwrap();
    let mut noise = Noise::new(5);
    let mut host = HostStore::new(PAGES, bytes).unwrap();
    for (pages, slots) in TABLES {
        let (k, v) = (noise.values(slots * 32), noise.values(slots * 32));
        let table = TablePages { pages, layout: &layout };
        host.append(table, 0, Rows::dense(&k, 32), Rows::dense(&v, 32)).unwrap();
    }
    let (ids, starts) = ids();
    let mut put = |bytes: &[u8]| {
        let mut buffer = DeviceBuffer::new(context, bytes.len()).unwrap();
        staging.upload(&stream, &mut buffer, [(0, bytes)]).unwrap();
        buffer
    };
    let (arena, ids_at) = (put(host.bytes()), put(bytemuck::cast_slice(&ids)));
    let rows = [(); 2].map(|()| DeviceBuffer::new(context, 4 * 39 * 32).unwrap());
    let tables = [(starts[0], 30, 0), (starts[1], 9, 30)].map(|(pages, slots, row)| GatherTable {
        pages,
        slots,
        row,
    });
    let mut gatherer = Gatherer::new(kernels, &specialisation, &stream).unwrap();
    let from = [arena.address(), ids_at.address()];
    let to = [rows[0].address(), rows[1].address()];
    // SAFETY: the buffers hold what the tables name, and have a row for each slot.
    unsafe { gatherer.launch(&tables, from, to, &mut staging, &stream) }.unwrap();
    let mut got = [(); 2].map(|()| vec![0f32; 39 * 32]);
    for (buffer, values) in rows.iter().zip(&mut got) {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
        let range = 0..bytes.len();
        staging.download(&stream, buffer, std::slice::from_ref(&range), bytes).unwrap();
    }
    let mut first = 0;
    for (pages, slots) in TABLES {
        let (mut k, mut v) = (vec![0f32; slots * 32], vec![0f32; slots * 32]);
        host.read(TablePages { pages, layout: &layout }, 0, &mut k, &mut v).unwrap();
        assert_eq!(got[0][first..first + slots * 32], k);
        assert_eq!(got[1][first..first + slots * 32], v);
        first += slots * 32;
    }
}
