//! What can go wrong: text that does not parse, a launch that does not fit, a kernel that faults.

use std::fmt;

/// Any failure of the interpreter or of the kernel under test.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The PTX text uses something this interpreter does not know, or is malformed.
    #[error("ptx line {line}: {what}: `{text}`")]
    Parse { line: u32, text: String, what: String },
    /// The launch itself is wrong (no such kernel, wrong arguments, too many threads).
    #[error("launch: {0}")]
    Launch(String),
    /// The kernel did something PTX does not define, or an address check failed.
    #[error(transparent)]
    Fault(#[from] Box<Fault>),
}

impl Error {
    /// The fault's kind, when a kernel faulted.
    pub fn fault(&self) -> Option<&FaultKind> {
        match self {
            Error::Fault(f) => Some(&f.kind),
            _ => None,
        }
    }
}

/// A fault with the place it happened at.
#[derive(Debug)]
pub struct Fault {
    pub kernel: String,
    pub line: u32,
    pub text: String,
    pub block: [u32; 3],
    pub warp: usize,
    pub lane: Option<usize>,
    pub kind: FaultKind,
}

impl std::error::Error for Fault {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.block;
        write!(f, "{}: {} at block ({x}, {y}, {z}) warp {}", self.kernel, self.kind, self.warp)?;
        if let Some(lane) = self.lane {
            write!(f, " lane {lane}")?;
        }
        write!(f, ", ptx line {}: `{}`", self.line, self.text)
    }
}

/// Which pair of accesses has no order between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hazard {
    /// A read that no synchronisation orders after the write.
    ReadAfterWrite,
    /// A write that no synchronisation orders after a read.
    WriteAfterRead,
    /// Two writes without an order.
    WriteAfterWrite,
}

/// The kinds of fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    #[error("{len} bytes at {space} address {addr:#x} are out of bounds ({near})")]
    OutOfBounds { space: &'static str, addr: u64, len: usize, near: String },
    #[error("{space} address {addr:#x} is not aligned to {align} bytes")]
    Misaligned { space: &'static str, addr: u64, align: usize },
    #[error("read of an uninitialised byte at {space} address {addr:#x} ({near})")]
    Uninitialised { space: &'static str, addr: u64, near: String },
    #[error("write to read-only memory at {space} address {addr:#x} ({near})")]
    ReadOnly { space: &'static str, addr: u64, near: String },
    #[error("shared address {addr:#x} has an asynchronous copy in flight that nobody waited for")]
    AsyncInFlight { addr: u64 },
    #[error("shared address {addr:#x} was written with no proxy fence before a bulk copy uses it")]
    Proxy { addr: u64 },
    #[error("{space} race, {hazard:?}, at address {addr:#x} with {other}")]
    Race { space: &'static str, hazard: Hazard, addr: u64, other: String },
    #[error("barrier divergence: {0}")]
    BarrierDivergence(String),
    #[error("deadlock: {0}")]
    Deadlock(String),
    #[error("warp synchronisation: {0}")]
    WarpSync(String),
    #[error("mbarrier at shared address {addr:#x}: {what}")]
    Mbarrier { addr: u64, what: String },
    #[error("asynchronous copy: {0}")]
    AsyncCopy(String),
    #[error("instruction budget of {0} warp-instructions spent")]
    Budget(u64),
    #[error("trap executed")]
    Trap,
    #[error("undefined: {0}")]
    Undefined(String),
}

/// A fault before its place is known: the lane and the kind.
#[derive(Debug)]
pub struct Trap {
    pub lane: Option<usize>,
    pub kind: FaultKind,
}

impl From<FaultKind> for Trap {
    fn from(kind: FaultKind) -> Self {
        Trap { lane: None, kind }
    }
}

impl FaultKind {
    /// The same fault, charged to one lane.
    pub fn at(self, lane: usize) -> Trap {
        Trap { lane: Some(lane), kind: self }
    }
}
