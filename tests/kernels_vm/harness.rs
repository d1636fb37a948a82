//! From a kernel's file to its PTX in the interpreter.

use headwise::{
    cuda::{
        Arch,
        nvrtc::{Nvrtc, Source},
    },
    device::kernels::{KernelFile, Specialisation},
    format::{PageFormat, PageLayout, SlotFormat},
};

pub use crate::compiler::nvrtc;
use crate::ptxvm::{Arg, Error, Machine, Module, Stats};

pub fn arch(name: &str) -> Arch {
    name.parse().unwrap()
}

/// K formats and V formats, page slots: each format alone and one mixed pair.
pub const FORMATS: [PageFormat; 5] = [
    PageFormat::both(SlotFormat::F32),
    PageFormat::both(SlotFormat::F16),
    PageFormat::both(SlotFormat::Bf16),
    PageFormat::both(SlotFormat::I8),
    PageFormat { k: SlotFormat::I8, v: SlotFormat::F16 },
];

/// A specialisation for the smallest pages that hold `slots` slots.
pub fn spec(format: PageFormat, head_dim: usize, group: usize, slots: usize) -> Specialisation {
    let bytes = PageLayout::page_bytes_for(format, head_dim, slots).unwrap();
    Specialisation::new(PageLayout::new(format, head_dim, bytes).unwrap(), group)
}

/// One text to replace in a kernel's source or in what it includes.
#[derive(Clone, Copy, Debug)]
pub struct Edit {
    pub from: &'static str,
    pub to: &'static str,
}

/// A kernel in the interpreter, with the launch it asks for.
pub struct Kernel {
    module: Module,
    entry: &'static str,
    pub threads: u32,
    pub shared: u32,
    /// Most rows of an item, for prefill.
    pub rows: Option<u32>,
}

/// Compiles a kernel.
pub fn kernel(nvrtc: Nvrtc, file: KernelFile, spec: &Specialisation, arch: Arch) -> Kernel {
    build(nvrtc, file, spec, arch, &[], &[])
}

/// Compiles decode with the copy engine's loads, for sm_90 and later.
pub fn bulk_decode(nvrtc: Nvrtc, spec: &Specialisation, arch: Arch, edits: &[Edit]) -> Kernel {
    build(nvrtc, KernelFile::Decode, spec, arch, edits, &[BULK])
}

/// The option that makes decode load tiles by the copy engine.
const BULK: &str = "-DHEADWISE_BULK";

/// Compiles a kernel with its text changed.
pub fn mutant(
    nvrtc: Nvrtc,
    file: KernelFile,
    spec: &Specialisation,
    arch: Arch,
    edits: &[Edit],
) -> Kernel {
    build(nvrtc, file, spec, arch, edits, &[])
}

fn build(
    nvrtc: Nvrtc,
    file: KernelFile,
    spec: &Specialisation,
    arch: Arch,
    edits: &[Edit],
    options: &[&str],
) -> Kernel {
    let source = file.source();
    let mut texts: Vec<(&str, String)> = vec![(source.name, source.text.to_owned())];
    texts.extend(source.headers.iter().map(|&(name, text)| (name, text.to_owned())));
    for edit in edits {
        let found: usize = texts.iter().map(|(_, text)| text.matches(edit.from).count()).sum();
        assert_eq!(found, 1, "{:?} is in the sources once", edit.from);
        texts.iter_mut().for_each(|(_, text)| *text = text.replace(edit.from, edit.to));
    }
    let headers: Vec<(&str, &str)> =
        texts[1..].iter().map(|(name, text)| (*name, text.as_str())).collect();
    let source = Source { name: source.name, text: &texts[0].1, headers: &headers };
    let mut defines = spec.defines();
    defines.extend(options.iter().map(|&option| option.to_owned()));
    let compiled = nvrtc.compile(&source, &defines, arch).unwrap();
    let constant = |name: &str| {
        let (_, value) = compiled.ptx.split_once(&format!("{name} = "))?;
        value.split(';').next()?.parse::<u32>().ok()
    };
    let module = Module::parse(&compiled.ptx).unwrap();
    assert!(
        module.kernels().any(|name| name == file.entry()),
        "{} in {}",
        file.entry(),
        source.name
    );
    Kernel {
        module,
        entry: file.entry(),
        threads: constant(file.threads_constant()).unwrap(),
        // A constant of zero has no initial value in PTX.
        shared: constant(file.shared_constant()).unwrap_or(0),
        rows: file.rows_constant().and_then(constant),
    }
}

impl Kernel {
    /// Runs the kernel named after its file.
    pub fn run(&self, vm: &mut Machine, grid: [u32; 3], args: &[Arg]) -> Result<Stats, Error> {
        let block = [self.threads, 1, 1];
        vm.launch(&self.module, self.entry, grid, block, self.shared, args)
    }
}

/// The little-endian bytes of 32-bit words.
pub fn words(values: impl IntoIterator<Item = u32>) -> Vec<u8> {
    values.into_iter().flat_map(u32::to_le_bytes).collect()
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

pub fn integers(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Uniform numbers, the same on every run (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// From −1 up to 1.
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.float() * scale).collect()
    }
}
