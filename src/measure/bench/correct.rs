//! What must be right before anything is timed.

use std::sync::Arc;

use super::{
    plan::BenchPlan,
    report::{BenchEvent, Check},
};
use crate::{
    base::{CacheShape, LayerShape},
    cuda::driver::Stream,
    device::{Kernels, kernels::KernelFile},
    format::{PageFormat, SlotFormat},
    measure::verify::{
        AttentionCase, VerifyError, append_agrees_with_the_host, attention_errors,
        attention_specialisation, store_agrees_with_the_host, tolerance,
    },
};

/// Slots of the longest heads: enough for several parts and a merge.
const LONGEST: usize = 20_000;
/// Groups of checks, for progress.
pub const PARTS: usize = 3;

/// Every check, in order. A result that is wrong is a failed check; a device that cannot compute one is
/// an error.
pub fn checks(
    kernels: &Arc<Kernels>,
    plan: &BenchPlan,
    shape: &CacheShape,
    progress: &dyn Fn(BenchEvent),
) -> Result<Vec<Check>, VerifyError> {
    prepare(kernels, &attention_cases(plan))?;
    let mut checks = Vec::new();
    for seed in 0..4 {
        let result = store_agrees_with_the_host(kernels.context(), Some(kernels), seed);
        checks.push(exact("copy, compact, swap", format!("all formats, seed {seed}"), result)?);
    }
    progress(BenchEvent::Done);
    for &format in &plan.formats {
        for head_dim in [64, 80, plan.head_dim] {
            let result = append_agrees_with_the_host(kernels, format, head_dim, 1);
            checks.push(exact("append", format!("{format}, head_dim {head_dim}"), result)?);
        }
    }
    progress(BenchEvent::Done);
    for (seed, (formats, group, head_dim)) in attention_cases(plan).iter().enumerate() {
        let (group, head_dim) = (*group, *head_dim);
        let heads = shape.layer(0).kv_heads().min(4);
        let layer = LayerShape::new(heads, heads * group, head_dim)?;
        let case = AttentionCase { layer: &layer, formats, longest: LONGEST, seed: seed as u64 };
        let errors = attention_errors(kernels, &case)?;
        let names: Vec<String> = formats.iter().map(PageFormat::to_string).collect();
        let allowed = tolerance(formats);
        let passed = errors.within(allowed);
        checks.push(Check {
            what: "decode, merge, prefill, score",
            case: format!("{}, group {group}, head_dim {head_dim}", names.join(" + ")),
            passed,
            errors: Some(errors),
            problem: (!passed).then(|| format!("more than {allowed} off")),
        });
    }
    progress(BenchEvent::Done);
    Ok(checks)
}

/// Formats, group and head_dim of each attention check: the plan's formats one by one in its shape, and
/// all together, K and V unlike among them, in others.
fn attention_cases(plan: &BenchPlan) -> Vec<(Vec<PageFormat>, usize, usize)> {
    let own = plan.formats.iter().map(|&format| (vec![format], plan.group, plan.head_dim));
    let k8v16 = PageFormat { k: SlotFormat::I8, v: SlotFormat::F16 };
    let mixed: Vec<PageFormat> = plan.formats.iter().copied().chain([k8v16]).collect();
    let shapes = [(1, 64), (3, 64), (8, 128), (4, 256)];
    own.chain(shapes.map(|(group, dim)| (mixed.clone(), group, dim))).collect()
}

/// Compiles what the attention checks launch, on all cores.
fn prepare(
    kernels: &Kernels,
    cases: &[(Vec<PageFormat>, usize, usize)],
) -> Result<(), VerifyError> {
    use KernelFile::{Decode, Merge, Prefill, Score};
    let mut wanted = Vec::new();
    for (formats, group, head_dim) in cases {
        for &format in formats {
            let specialisation = attention_specialisation(format, *group, *head_dim)?;
            wanted.extend([Decode, Merge, Prefill, Score].map(|file| (file, specialisation)));
        }
    }
    let stream = Stream::new(kernels.context())?;
    Ok(kernels.prepare(&wanted, &stream)?)
}

/// A check of bytes.
fn exact(
    what: &'static str,
    case: String,
    result: Result<(), VerifyError>,
) -> Result<Check, VerifyError> {
    let problem = match result {
        Ok(()) => None,
        Err(error @ VerifyError::Bytes { .. }) => Some(error.to_string()),
        Err(error) => return Err(error),
    };
    Ok(Check { what, case, passed: problem.is_none(), errors: None, problem })
}
