//! One block of zeroed, page-aligned memory, on huge pages where the system grants them.

use memmap2::MmapMut;

use super::StoreError;

/// Anonymous memory from the system: zeroed, aligned to at least 4 KiB, given back on drop. Pages
/// that were never written occupy no physical memory.
#[derive(Debug)]
pub struct Arena {
    map: MmapMut,
}

impl Arena {
    /// Asks for `bytes` bytes (more than zero).
    pub fn new(bytes: usize) -> Result<Self, StoreError> {
        let map = MmapMut::map_anon(bytes)
            .map_err(|e| StoreError::OutOfMemory { bytes, reason: e.to_string() })?;
        // Attention streams the whole arena: 2 MiB pages save most of its TLB misses. It is only
        // advice: kernels without transparent huge pages refuse it and lose speed alone.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map })
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// All bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }
}
