//! Small memories without sharing: one thread's local memory, constants, parameters.

use crate::ptxvm::error::FaultKind;

/// Bytes with their initialisation, addressed from zero.
pub struct Plain {
    space: &'static str,
    data: Vec<u8>,
    init: Vec<bool>,
}

impl Plain {
    /// Uninitialised memory.
    pub fn new(space: &'static str, bytes: usize) -> Plain {
        Plain { space, data: vec![0; bytes], init: vec![false; bytes] }
    }

    /// Memory with a content.
    pub fn with(space: &'static str, data: Vec<u8>) -> Plain {
        Plain { space, init: vec![true; data.len()], data }
    }

    fn range(&self, addr: u64, len: usize, align: usize) -> Result<usize, FaultKind> {
        if !addr.is_multiple_of(align as u64) {
            return Err(FaultKind::Misaligned { space: self.space, addr, align });
        }
        match usize::try_from(addr) {
            Ok(at) if at.checked_add(len).is_some_and(|end| end <= self.data.len()) => Ok(at),
            _ => {
                let near = format!("{} bytes exist", self.data.len());
                Err(FaultKind::OutOfBounds { space: self.space, addr, len, near })
            }
        }
    }

    pub fn read(&self, addr: u64, out: &mut [u8]) -> Result<(), FaultKind> {
        let at = self.range(addr, out.len(), out.len().next_power_of_two())?;
        if let Some(i) = self.init[at..at + out.len()].iter().position(|i| !i) {
            let near = format!("{} bytes exist", self.data.len());
            let addr = addr + i as u64;
            return Err(FaultKind::Uninitialised { space: self.space, addr, near });
        }
        out.copy_from_slice(&self.data[at..at + out.len()]);
        Ok(())
    }

    pub fn write(&mut self, addr: u64, bytes: &[u8]) -> Result<(), FaultKind> {
        let at = self.range(addr, bytes.len(), bytes.len())?;
        self.data[at..at + bytes.len()].copy_from_slice(bytes);
        self.init[at..at + bytes.len()].fill(true);
        Ok(())
    }
}
