//! Decoded instructions: registers are indices, types are closures, labels are positions.

use super::types::Ty;

/// A destination register; values are cut to its declared width.
#[derive(Clone, Copy, Debug)]
pub struct Dst {
    pub reg: u32,
    pub mask: u64,
}

/// A source operand.
#[derive(Clone, Copy, Debug)]
pub enum Src {
    Reg(u32),
    Imm(u64),
}

/// A predicate source.
#[derive(Clone, Copy, Debug)]
pub enum PSrc {
    Reg { reg: u32, negated: bool },
    Const(bool),
}

/// `[base + off]`.
#[derive(Clone, Copy, Debug)]
pub struct Addr {
    pub base: Src,
    pub off: u64,
}

/// State spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Const,
    Param,
}

impl Space {
    pub fn name(self) -> &'static str {
        match self {
            Space::Generic => "generic",
            Space::Global => "global",
            Space::Shared => "shared",
            Space::Local => "local",
            Space::Const => "const",
            Space::Param => "param",
        }
    }
}

pub type F1 = Box<dyn Fn(u64) -> u64>;
pub type F2 = Box<dyn Fn(u64, u64) -> u64>;
pub type F3 = Box<dyn Fn(u64, u64, u64) -> u64>;
pub type F4 = Box<dyn Fn(u64, u64, u64, u64) -> u64>;
pub type Compare = Box<dyn Fn(u64, u64) -> bool>;

/// What one lane computes from its own registers.
pub enum Alu {
    One(F1, Src),
    Two(F2, [Src; 2]),
    Three(F3, [Src; 3]),
    Four(F4, [Src; 4]),
}

/// How two predicates combine.
#[derive(Clone, Copy, Debug)]
pub enum Logic {
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, Debug)]
pub enum ShflMode {
    Idx,
    Up,
    Down,
    Bfly,
}

#[derive(Clone, Copy, Debug)]
pub enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

/// An operation that the lanes of a member mask execute together.
pub enum WarpOp {
    Bar,
    Shfl { mode: ShflMode, dst: Dst, valid: Option<u32>, value: Src, b: Src, c: Src },
    Vote { mode: VoteMode, dst: Option<Dst>, pred_dst: Option<u32>, value: PSrc },
    MatchAny { dst: Dst, value: Src, bits: u32 },
    MatchAll { dst: Dst, pred: Option<u32>, value: Src, bits: u32 },
    Redux { dst: Dst, value: Src, f: F2 },
    Elect { dst: Option<Dst>, pred: u32 },
    Ldmatrix { dst: Vec<Dst>, addr: Addr, space: Space, trans: bool },
    Stmatrix { src: Vec<Src>, addr: Addr, space: Space, trans: bool },
    Mma(Box<Mma>),
}

/// Element types of an `mma.sync` A or B fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmaKind {
    F16,
    Bf16,
    Tf32,
    E4m3,
    /// Signedness of A and of B.
    Int8 {
        a: bool,
        b: bool,
    },
}

/// `mma.sync.aligned.m16n8kK.row.col`.
pub struct Mma {
    pub kind: MmaKind,
    pub k: usize,
    /// Accumulate and return f16 pairs in place of f32.
    pub half: bool,
    pub satfinite: bool,
    pub d: Vec<Dst>,
    pub a: Vec<Src>,
    pub b: Vec<Src>,
    pub c: Vec<Src>,
}

/// Read-modify-write: from (old, operand, compare) to the new value.
pub struct Atomic {
    pub space: Space,
    pub bytes: usize,
    pub dst: Option<Dst>,
    pub addr: Addr,
    pub value: Vec<Src>,
    pub compare: Option<Src>,
    pub f: F3,
}

pub enum MbarOp {
    Init {
        count: Src,
    },
    Inval,
    Arrive {
        state: Option<Dst>,
        count: Src,
        expect: Option<Src>,
        drop: bool,
    },
    ExpectTx {
        bytes: Src,
    },
    CompleteTx {
        bytes: Src,
    },
    /// Waits on the parity of a phase, or on the state word of an arrive.
    Test {
        done: u32,
        phase: Src,
        parity: bool,
    },
}

pub enum Op {
    Alu {
        dst: Dst,
        alu: Alu,
    },
    Setp {
        p: Option<u32>,
        q: Option<u32>,
        a: Src,
        b: Src,
        cmp: Compare,
        combine: Option<(Logic, PSrc)>,
    },
    /// `set` and `slct`-like forms that turn a comparison into a value.
    Set {
        dst: Dst,
        a: Src,
        b: Src,
        cmp: Compare,
        truth: u64,
        combine: Option<(Logic, PSrc)>,
    },
    Selp {
        dst: Dst,
        a: Src,
        b: Src,
        p: PSrc,
    },
    PredLogic {
        dst: u32,
        a: PSrc,
        b: PSrc,
        logic: Logic,
    },
    PredMov {
        dst: u32,
        a: PSrc,
    },
    Pack {
        dst: Dst,
        parts: Vec<Src>,
        bits: u32,
    },
    Unpack {
        dst: Vec<Option<Dst>>,
        a: Src,
        bits: u32,
    },
    Load {
        space: Space,
        ty: Ty,
        dst: Vec<Option<Dst>>,
        addr: Addr,
    },
    Store {
        space: Space,
        bytes: usize,
        src: Vec<Src>,
        addr: Addr,
    },
    Atomic(Box<Atomic>),
    Branch {
        target: u32,
    },
    BranchIndexed {
        index: Src,
        targets: Vec<u32>,
    },
    Exit,
    Trap,
    /// Ordering and hints without effect on values.
    Nop,
    /// Orders what is known of shared memory before bulk copies to it.
    FenceProxy,
    Nanosleep,
    Clock {
        dst: Dst,
    },
    ActiveMask {
        dst: Dst,
    },
    Isspacep {
        dst: u32,
        space: Space,
        a: Src,
    },
    /// `members`: the member mask operand; `None` where the whole warp is meant.
    Warp {
        op: WarpOp,
        members: Option<Src>,
    },
    Barrier(Box<BarrierOp>),
    CpAsync(Box<CpAsync>),
    CpAsyncCommit,
    CpAsyncWait {
        keep: u32,
        all: bool,
    },
    CpAsyncArrive {
        mbar: Addr,
        noinc: bool,
    },
    CpBulk {
        dst: Addr,
        src: Addr,
        bytes: Src,
        mbar: Addr,
    },
    Mbarrier {
        op: MbarOp,
        addr: Addr,
    },
}

/// `barrier.sync`, `barrier.arrive` and `barrier.red`.
pub struct BarrierOp {
    pub id: Src,
    /// Threads expected; all of the block where absent.
    pub count: Option<Src>,
    pub aligned: bool,
    pub waits: bool,
    pub reduce: Option<BarrierReduce>,
}

/// `cp.async`.
pub struct CpAsync {
    pub dst: Addr,
    pub src: Addr,
    pub bytes: usize,
    /// Bytes to read; the rest of `bytes` is zero.
    pub src_bytes: Option<Src>,
    /// Read nothing where this holds.
    pub ignore: Option<PSrc>,
}

/// `barrier.red`: what the barrier computes over the threads' predicates.
pub struct BarrierReduce {
    pub kind: ReduceKind,
    pub value: PSrc,
}

#[derive(Clone, Copy, Debug)]
pub enum ReduceKind {
    Popc(Dst),
    And(u32),
    Or(u32),
}

/// One instruction ready to run.
pub struct Inst {
    pub line: u32,
    pub text: String,
    /// Index into the kernel's opcode names.
    pub opcode: u32,
    pub guard: Option<PSrc>,
    pub op: Op,
}

/// Special registers that are constant for a thread; each is kept in an ordinary register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    Lane,
    Warp,
    Nwarp,
    MaskEq,
    MaskLt,
    MaskLe,
    MaskGt,
    MaskGe,
    DynamicShared,
    TotalShared,
    Zero,
    One,
}

/// A kernel ready to run.
pub struct Kernel {
    pub name: String,
    pub code: Vec<Inst>,
    pub opcodes: Vec<String>,
    pub registers: usize,
    pub predicates: usize,
    pub specials: Vec<(Special, u32)>,
    /// Offset, size of each parameter.
    pub params: Vec<(usize, usize)>,
    pub param_bytes: usize,
    /// Bytes of statically declared shared memory; dynamic memory follows, aligned.
    pub static_shared: usize,
    pub dynamic_shared_at: usize,
    pub local_bytes: usize,
}
