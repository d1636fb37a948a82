//! What `headwise kernels` shows: the devices, and what each kernel costs on an architecture.

mod occupancy;
mod table;

use rayon::prelude::*;
use serde::Serialize;

use self::occupancy::{most_shared_bytes, occupancy};
use crate::{
    cuda::{
        Arch, CudaError, CudaVersion, DeviceInfo, KernelCache, Origin,
        driver::Driver,
        nvrtc::{KernelUsage, Nvrtc},
    },
    device::kernels::{KernelFile, Specialisation, Terms},
    format::{LayoutError, PageFormat, PageLayout, SlotFormat},
};

pub use occupancy::Bound;

/// What the kernels are compiled for in a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReportShape {
    /// Page formats.
    pub formats: Vec<PageFormat>,
    /// Channels of a head.
    pub head_dim: usize,
    /// Query heads that read a KV head.
    pub group: usize,
    /// Slots of a page.
    pub page_slots: usize,
    /// How queries and outputs are stored.
    pub io: SlotFormat,
    /// What layers do beside plain attention.
    pub terms: Terms,
}

impl Default for ReportShape {
    /// The formats with K and V alike, for heads as in Llama 3: 128 channels, four query heads.
    fn default() -> Self {
        Self {
            formats: SlotFormat::ALL.iter().map(|&format| PageFormat::both(format)).collect(),
            head_dim: 128,
            group: 4,
            page_slots: 16,
            io: SlotFormat::F16,
            terms: Terms::NONE,
        }
    }
}

/// Devices and kernels.
#[derive(Clone, Debug, Serialize)]
pub struct KernelsReport {
    /// The architecture compiled for.
    pub arch: Arch,
    /// The compiler's version.
    pub nvrtc: CudaVersion,
    /// The newest CUDA version that the driver supports, where there is one.
    pub driver: Option<CudaVersion>,
    /// The devices of this machine.
    pub devices: Vec<DeviceInfo>,
    /// Why there are none.
    pub no_devices: Option<String>,
    /// What the kernels were compiled for.
    pub shape: ReportShape,
    /// Shared memory that a block can have on the architecture, static and dynamic, in bytes.
    pub most_shared_bytes: u32,
    /// A row per kernel and format.
    pub kernels: Vec<KernelReport>,
}

/// One kernel in one specialisation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelReport {
    /// The kernel's name in the module.
    pub kernel: String,
    /// The page format.
    pub format: PageFormat,
    /// Threads of a block.
    pub threads: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory of a block, in bytes.
    pub static_shared_bytes: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub dynamic_shared_bytes: u32,
    /// Stack of a thread, in bytes.
    pub stack_bytes: u32,
    /// Bytes that a thread stores to spill registers.
    pub spill_stores: u32,
    /// Bytes that a thread loads to restore them.
    pub spill_loads: u32,
    /// Blocks that a multiprocessor of the architecture runs at a time.
    pub blocks_per_multiprocessor: u32,
    /// What bounds that number.
    pub bound_by: Bound,
    /// Size of the file's PTX, in bytes.
    pub ptx_bytes: usize,
    /// How long the compiler took for the file's PTX and machine code, in milliseconds.
    pub compile_ms: f64,
    /// Whether both came from the cache.
    pub cached: bool,
}

/// How far a report is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportEvent {
    /// There are so many files to compile.
    Files(usize),
    /// One of them is compiled.
    Compiled,
}

/// A report that cannot be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ReportError {
    /// The compiler is missing, or refused a kernel.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// A page that cannot be laid out.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// Compiles every kernel in every format of `shape` for `arch`, and lists the devices. `progress` hears
/// how many files there are and, as each is compiled, from any thread, that one is done.
///
/// # Errors
/// A missing device is part of the report, not an error; a missing compiler is one.
pub fn kernels_report(
    arch: Arch,
    shape: &ReportShape,
    nvrtc: &Nvrtc,
    cache: Option<&KernelCache>,
    progress: &(dyn Fn(ReportEvent) + Sync),
) -> Result<KernelsReport, ReportError> {
    let mut work = Vec::new();
    for &format in &shape.formats {
        let bytes = PageLayout::page_bytes_for(format, shape.head_dim, shape.page_slots)?;
        let layout = PageLayout::new(format, shape.head_dim, bytes)?;
        let plain = Specialisation::new(layout, shape.group);
        let specialisation = Specialisation { io: shape.io, terms: shape.terms, ..plain };
        work.extend(KernelFile::ALL.iter().map(|&file| (file, specialisation)));
    }
    let compile = |&(file, specialisation): &(KernelFile, Specialisation)| {
        let rows = file_report(file, &specialisation, arch, nvrtc, cache);
        progress(ReportEvent::Compiled);
        rows
    };
    progress(ReportEvent::Files(work.len()));
    let rows: Vec<Vec<KernelReport>> = work.par_iter().map(compile).collect::<Result<_, _>>()?;
    let devices = DeviceInfo::all();
    Ok(KernelsReport {
        arch,
        nvrtc: nvrtc.version(),
        driver: Driver::open().ok().map(|driver| driver.version()),
        no_devices: devices.as_ref().err().map(CudaError::to_string),
        devices: devices.unwrap_or_default(),
        shape: shape.clone(),
        most_shared_bytes: most_shared_bytes(arch),
        kernels: rows.into_iter().flatten().collect(),
    })
}

/// Compiles a file, and reports on each kernel in it.
fn file_report(
    file: KernelFile,
    specialisation: &Specialisation,
    arch: Arch,
    nvrtc: &Nvrtc,
    cache: Option<&KernelCache>,
) -> Result<Vec<KernelReport>, CudaError> {
    let (source, options) = (file.source(), specialisation.defines());
    let ((ptx, ptx_origin), (cubin, cubin_origin)) = match cache {
        Some(cache) => (
            cache.ptx(nvrtc, &source, &options, arch)?,
            cache.cubin(nvrtc, &source, &options, arch)?,
        ),
        None => (
            (nvrtc.compile(&source, &options, arch)?, Origin::Compiler),
            (nvrtc.cubin(&source, &options, arch)?, Origin::Compiler),
        ),
    };
    let constant = |name: &str| constant(&ptx.ptx, name).unwrap_or(0);
    let threads = constant(file.threads_constant());
    let row = |usage: &KernelUsage| {
        // Only the file's main kernel has the file's dynamic shared memory.
        let main = usage.kernel == file.entry();
        let dynamic = if main { constant(file.shared_constant()) } else { 0 };
        let (blocks, bound_by) =
            occupancy(arch, threads, usage.registers, usage.shared_bytes + dynamic);
        KernelReport {
            kernel: usage.kernel.clone(),
            format: specialisation.layout.format,
            threads,
            registers: usage.registers,
            static_shared_bytes: usage.shared_bytes,
            dynamic_shared_bytes: dynamic,
            stack_bytes: usage.stack_bytes,
            spill_stores: usage.spill_stores,
            spill_loads: usage.spill_loads,
            blocks_per_multiprocessor: blocks,
            bound_by,
            ptx_bytes: ptx.ptx.len(),
            compile_ms: (ptx.compile_time + cubin.compile_time).as_secs_f64() * 1e3,
            cached: ptx_origin == Origin::Cache && cubin_origin == Origin::Cache,
        }
    };
    // ptxas reports in an order of its own.
    let mut rows: Vec<KernelReport> = cubin.usage.iter().map(row).collect();
    rows.sort_by(|a, b| a.kernel.cmp(&b.kernel));
    Ok(rows)
}

/// The value of an unsigned module constant, from the PTX that defines it: no device is needed. PTX
/// leaves out the value of a constant that is zero.
fn constant(ptx: &str, name: &str) -> Option<u32> {
    let line = ptx.lines().filter(|line| line.contains(".global")).find_map(|line| {
        let (_, rest) = line.split_once(&format!(" {name}"))?;
        rest.starts_with([' ', ';', '=']).then_some(rest)
    })?;
    let value = line.trim_end_matches(';').split_once('=').map_or("0", |(_, value)| value.trim());
    value.parse().ok()
}

impl KernelsReport {
    /// The most bytes that any kernel spills.
    pub fn spilled_bytes(&self) -> u32 {
        self.kernels.iter().map(|k| k.spill_stores.max(k.spill_loads)).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;
    use crate::cuda::nvrtc::tests::nvrtc;

    #[test]
    fn every_kernel_is_in_the_report() {
        let Some(nvrtc) = nvrtc() else { return };
        let folder = tempfile::tempdir().unwrap();
        let cache = KernelCache::new(folder.path());
        let formats = vec![PageFormat { k: SlotFormat::I8, v: SlotFormat::F16 }];
        let shape = ReportShape { formats, head_dim: 64, ..ReportShape::default() };
        let arch: Arch = "sm_90".parse().unwrap();
        let (files, compiled) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let report = kernels_report(arch, &shape, &nvrtc, Some(&cache), &|event| match event {
            ReportEvent::Files(count) => files.store(count, Relaxed),
            ReportEvent::Compiled => _ = compiled.fetch_add(1, Relaxed),
        });
        let report = report.unwrap();
        assert_eq!(
            (files.into_inner(), compiled.into_inner()),
            (KernelFile::ALL.len(), KernelFile::ALL.len())
        );
        let text = report.to_string();
        for &file in KernelFile::ALL {
            let row = report.kernels.iter().find(|k| k.kernel == file.entry()).unwrap();
            assert!((1..=255).contains(&row.registers), "{text}");
            assert!(row.threads.is_multiple_of(32) && row.threads > 0, "{text}");
            assert!(row.ptx_bytes > 500 && row.blocks_per_multiprocessor > 0, "{text}");
            let shared = row.static_shared_bytes + row.dynamic_shared_bytes;
            assert!(shared <= report.most_shared_bytes, "{text}");
            assert!(!row.cached && row.compile_ms > 0.0);
            assert!(text.contains(&format!("{} ", file.entry())), "{text}");
        }
        assert_eq!(report.spilled_bytes(), 0, "{text}");
        let decode = report.kernels.iter().find(|k| k.kernel == "headwise_decode").unwrap();
        assert!(decode.dynamic_shared_bytes > 16 << 10, "{text}");
        assert!(text.ends_with("0 bytes spilled at most"));
        assert_eq!(report.devices.is_empty(), report.no_devices.is_some());

        let again = kernels_report(arch, &shape, &nvrtc, Some(&cache), &|_| ()).unwrap();
        assert!(again.kernels.iter().all(|k| k.cached), "{again}");
        let json = serde_json::to_value(&again).unwrap();
        assert_eq!(json["arch"], "sm_90");
        assert_eq!(json["kernels"][0]["format"]["k"], "i8");
        assert_eq!(json["kernels"].as_array().unwrap().len(), report.kernels.len());
    }

    #[test]
    fn constants_are_read_from_ptx() {
        let ptx = "\
.visible .global .align 4 .u32 headwise_decode_threads = 128;
.visible .global .align 4 .u32 headwise_decode_threads_more = 7;
.visible .global .align 4 .u32 headwise_decode_shared;
";
        assert_eq!(constant(ptx, "headwise_decode_threads"), Some(128));
        assert_eq!(constant(ptx, "headwise_decode_shared"), Some(0));
        assert_eq!(constant(ptx, "headwise_decode"), None);
    }
}
