//! The host's side: modules, buffers, launches.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    counters::{OpCount, Stats},
    decode,
    error::Error,
    exec::{self, Launch},
    inst::Kernel,
    memory::{global::Global, local::Plain},
    parse,
    rng::Rng,
};

/// Most shared memory that a block may have (sm_90 and sm_100).
const MAX_SHARED: usize = 227 * 1024;

/// Addresses of module-level variables: below every buffer, apart for each module.
static NEXT_MODULE: AtomicU64 = AtomicU64::new(0x6000_0000_0000);

/// Parsed PTX: kernels and module-level variables.
pub struct Module {
    kernels: Vec<Kernel>,
    /// Address and content of each `.global` variable.
    globals: Vec<(String, u64, Vec<u8>, bool)>,
    consts: Vec<u8>,
}

impl Module {
    /// Parses and decodes PTX text.
    ///
    /// # Errors
    /// [`Error::Parse`] names the line of anything malformed or unsupported.
    pub fn parse(ptx: &str) -> Result<Module, Error> {
        let file = parse::parse(ptx)?;
        let base = NEXT_MODULE.fetch_add(1 << 32, Ordering::Relaxed);
        let mut addresses = HashMap::new();
        let (mut globals, mut at) = (Vec::new(), base);
        for v in &file.global {
            at = at.next_multiple_of(v.align.max(256) as u64);
            let size = v.size.unwrap_or(0);
            let initialised = !v.init.is_empty();
            let data = if initialised { v.init.clone() } else { vec![0; size] };
            addresses.insert(v.name.clone(), at);
            globals.push((v.name.clone(), at, data, initialised));
            at += (size as u64).max(1) + 4096;
        }
        let (places, size) = decode::layout(&file.constant, 0);
        let mut consts = vec![0; size];
        for (at, v) in places {
            consts[at..at + v.init.len()].copy_from_slice(&v.init);
            addresses.insert(v.name.clone(), at as u64);
        }
        let kernels: Result<Vec<_>, _> =
            file.entries.iter().map(|e| decode::kernel(&file, e, &addresses)).collect();
        Ok(Module { kernels: kernels?, globals, consts })
    }

    /// Names of the kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.kernels.iter().map(|k| k.name.as_str())
    }
}

/// A device address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// The address `bytes` further on.
    pub fn offset(self, bytes: u64) -> DevicePtr {
        DevicePtr(self.0 + bytes)
    }
}

/// One kernel argument as its bytes.
#[derive(Clone, Debug)]
pub struct Arg(Vec<u8>);

impl Arg {
    pub fn ptr(p: DevicePtr) -> Arg {
        Arg(p.0.to_le_bytes().into())
    }

    pub fn u32(v: u32) -> Arg {
        Arg(v.to_le_bytes().into())
    }

    pub fn f32(v: f32) -> Arg {
        Arg(v.to_le_bytes().into())
    }

    /// A value of any other type, or a structure, as the kernel lays it out.
    pub fn bytes(v: &[u8]) -> Arg {
        Arg(v.into())
    }
}

/// A device: global memory and a schedule.
pub struct Machine {
    global: Global,
    rng: Rng,
    budget: u64,
}

impl Machine {
    /// A device whose order of blocks and warps follows from `seed`.
    pub fn new(seed: u64) -> Machine {
        Machine { global: Global::default(), rng: Rng::new(seed), budget: 1 << 30 }
    }

    /// Limits each launch to this many warp-instructions.
    pub fn set_budget(&mut self, warp_instructions: u64) {
        self.budget = warp_instructions;
    }

    /// A buffer with a content, which kernels may overwrite.
    pub fn alloc_init(&mut self, name: &str, bytes: &[u8]) -> DevicePtr {
        DevicePtr(self.global.add(name, bytes.into(), true, false))
    }

    /// A buffer with a content that kernels may only read.
    pub fn alloc_read_only(&mut self, name: &str, bytes: &[u8]) -> DevicePtr {
        DevicePtr(self.global.add(name, bytes.into(), true, true))
    }

    /// A buffer that must be written before it is read, byte by byte.
    pub fn alloc_uninit(&mut self, name: &str, bytes: usize) -> DevicePtr {
        DevicePtr(self.global.add(name, vec![0; bytes], false, false))
    }

    /// Replaces bytes of a buffer, from `offset` on.
    ///
    /// # Errors
    /// [`Error::Launch`] when `p` is no buffer's start or the bytes do not fit.
    pub fn write(&mut self, p: DevicePtr, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        if self.global.fill(p.0, offset, bytes) {
            return Ok(());
        }
        let what = format!("{} bytes at offset {offset} of {:#x} do not fit", bytes.len(), p.0);
        Err(Error::Launch(what))
    }

    /// A buffer's content.
    ///
    /// # Errors
    /// [`Error::Launch`] when `p` is no buffer's start or a byte was never written.
    pub fn read(&self, p: DevicePtr) -> Result<&[u8], Error> {
        if let Some(at) = self.global.first_uninitialised(p.0) {
            return Err(Error::Launch(format!("byte {at} of {:#x} was never written", p.0)));
        }
        self.read_partial(p)
    }

    /// A buffer's content; bytes never written read as zero.
    ///
    /// # Errors
    /// [`Error::Launch`] when `p` is no buffer's start.
    pub fn read_partial(&self, p: DevicePtr) -> Result<&[u8], Error> {
        self.global.bytes(p.0).ok_or_else(|| Error::Launch(format!("no buffer at {:#x}", p.0)))
    }

    /// Runs a kernel to its end.
    ///
    /// # Errors
    /// [`Error::Launch`] when the launch does not fit the kernel, [`Error::Fault`] when the kernel
    /// faults.
    pub fn launch(
        &mut self,
        module: &Module,
        kernel: &str,
        grid: [u32; 3],
        block: [u32; 3],
        dynamic_shared: u32,
        args: &[Arg],
    ) -> Result<Stats, Error> {
        let fail = |what: String| Err(Error::Launch(format!("{kernel}: {what}")));
        let Some(k) = module.kernels.iter().find(|k| k.name == kernel) else {
            return fail("no such kernel".into());
        };
        let threads = block.iter().map(|&n| u64::from(n)).product::<u64>();
        let blocks = grid.iter().map(|&n| u64::from(n)).product::<u64>();
        if !(1..=1024).contains(&threads) || blocks == 0 || blocks > u64::from(u32::MAX) {
            return fail(format!("grid {grid:?} of blocks {block:?} cannot be launched"));
        }
        if args.len() != k.params.len() {
            return fail(format!("{} arguments for {} parameters", args.len(), k.params.len()));
        }
        let mut params = vec![0; k.param_bytes];
        for (i, (arg, &(at, size))) in args.iter().zip(&k.params).enumerate() {
            if arg.0.len() != size {
                return fail(format!("argument {i} has {} bytes, not {size}", arg.0.len()));
            }
            params[at..at + size].copy_from_slice(&arg.0);
        }
        let shared_bytes = match dynamic_shared {
            0 => k.static_shared,
            n => k.dynamic_shared_at + n as usize,
        };
        if shared_bytes > MAX_SHARED {
            return fail(format!("{shared_bytes} bytes of shared memory exceed {MAX_SHARED}"));
        }
        for (name, at, data, initialised) in &module.globals {
            self.global.map(name, *at, data, *initialised);
        }
        self.global.begin_launch();
        let launch = Launch {
            kernel: k,
            consts: &Plain::with("const", module.consts.clone()),
            params: &Plain::with("param", params),
            grid,
            block,
            shared_bytes,
            dynamic_shared,
        };
        let name = |name: &String| OpCount { name: name.clone(), ..OpCount::default() };
        let mut stats = Stats { opcodes: k.opcodes.iter().map(name).collect(), ..Stats::default() };
        let mut order: Vec<u32> = (0..blocks as u32).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, self.rng.below(i + 1));
        }
        let mut budget = self.budget;
        for index in order {
            let rng = &mut self.rng;
            exec::run_block(&launch, index, &mut self.global, &mut stats, rng, &mut budget)?;
        }
        stats.opcodes.retain(|o| o.warps != 0);
        Ok(stats)
    }
}
