//! What a launch executed and moved.

/// Executions of one opcode (with its suffixes).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpCount {
    pub name: String,
    /// Warp-instructions issued.
    pub warps: u64,
    /// Lanes that executed them.
    pub lanes: u64,
    /// Lanes that their guard predicate held back.
    pub predicated_off: u64,
}

/// Counters of one launch.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub opcodes: Vec<OpCount>,
    /// Bytes that lanes asked for from, and stored to, global memory.
    pub global_read_bytes: u64,
    pub global_written_bytes: u64,
    /// 32-byte sectors that the warp requests to global memory touched.
    pub sectors: u64,
    /// Sectors that the same distinct bytes would fill if they lay side by side.
    pub ideal_sectors: u64,
    pub shared_requests: u64,
    /// Passes over the shared banks that the requests took.
    pub shared_ways: u64,
    /// Passes that the same requests would take without bank conflicts.
    pub ideal_shared_ways: u64,
    /// Lanes that executed an atomic, global or shared.
    pub atomics: u64,
}

impl Stats {
    /// Lane-instructions of all opcodes.
    pub fn lane_instructions(&self) -> u64 {
        self.opcodes.iter().map(|o| o.lanes).sum()
    }

    /// Warp-instructions of all opcodes.
    pub fn warp_instructions(&self) -> u64 {
        self.opcodes.iter().map(|o| o.warps).sum()
    }

    /// Sums over the opcodes that are `name` or begin with `name` and a dot.
    pub fn opcode(&self, name: &str) -> OpCount {
        let mut sum = OpCount { name: name.into(), ..OpCount::default() };
        for o in &self.opcodes {
            let rest = o.name.strip_prefix(name);
            if rest.is_some_and(|r| r.is_empty() || r.starts_with('.')) {
                sum.warps += o.warps;
                sum.lanes += o.lanes;
                sum.predicated_off += o.predicated_off;
            }
        }
        sum
    }

    /// Counts one warp request to global memory: each lane's address, and bytes per lane.
    pub fn global_request(&mut self, addrs: &mut [u64], bytes: u64) {
        if !addrs.is_sorted() {
            addrs.sort_unstable();
        }
        // Bytes and sectors below these ends are counted already.
        let (mut byte_end, mut sector_end, mut distinct) = (0, 0, 0);
        for &a in addrs.iter() {
            let end = a + bytes;
            distinct += end.saturating_sub(a.max(byte_end));
            byte_end = byte_end.max(end);
            let (first, last) = ((a / 32).max(sector_end), end.div_ceil(32));
            self.sectors += last.saturating_sub(first);
            sector_end = sector_end.max(last);
        }
        self.ideal_sectors += distinct.div_ceil(32);
    }

    /// Counts one warp request to shared memory. Requests of 8 and 16 bytes a lane go in two and
    /// four parts; each part takes as many passes as its busiest bank has different words.
    pub fn shared_request(&mut self, addrs: &[u64], bytes: usize) {
        self.shared_requests += 1;
        let lanes_per_part = if bytes <= 4 { 32 } else { 128 / bytes };
        for part in addrs.chunks(lanes_per_part) {
            let mut words: Vec<u64> =
                part.iter().flat_map(|a| (a / 4)..(a + bytes as u64).div_ceil(4)).collect();
            words.sort_unstable();
            words.dedup();
            let mut banks = [0u64; 32];
            for w in &words {
                banks[(w % 32) as usize] += 1;
            }
            self.shared_ways += banks.iter().copied().max().unwrap_or(0);
            self.ideal_shared_ways += (words.len() as u64).div_ceil(32);
        }
    }
}
