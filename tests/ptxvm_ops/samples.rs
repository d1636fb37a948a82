//! Whole kernels in the shape that NVRTC gives them.

use crate::ptxvm::{Arg, FaultKind, Machine, Module, Stats};

/// `y = softmax(x)` of `n` values by one block: shuffles, one barrier for each reduction.
const SOFTMAX: &str = r#"
.version 9.0
.target sm_80
.address_size 64
.visible .entry softmax(.param .u64 softmax_param_0, .param .u64 softmax_param_1, .param .u32 softmax_param_2)
{
	.reg .pred 	%p<9>;
	.reg .f32 	%f<20>;
	.reg .b32 	%r<20>;
	.reg .b64 	%rd<20>;
	.shared .align 4 .b8 red[256];
	ld.param.u64 	%rd1, [softmax_param_0];
	ld.param.u64 	%rd2, [softmax_param_1];
	ld.param.u32 	%r1, [softmax_param_2];
	cvta.to.global.u64 	%rd1, %rd1;
	cvta.to.global.u64 	%rd2, %rd2;
	mov.u32 	%r2, %tid.x;
	mov.u32 	%r3, %ntid.x;
	shr.u32 	%r4, %r2, 5;
	and.b32  	%r5, %r2, 31;
	setp.ne.s32 	%p1, %r5, 0;
	mov.u32 	%r6, red;
	shl.b32 	%r7, %r4, 2;
	add.s32 	%r8, %r6, %r7;
	mov.f32 	%f1, 0fFF800000;
	mov.u32 	%r9, %r2;
$L__MAX:
	setp.ge.s32 	%p2, %r9, %r1;
	@%p2 bra 	$L__MAX_DONE;
	mul.wide.s32 	%rd3, %r9, 4;
	add.s64 	%rd4, %rd1, %rd3;
	ld.global.nc.f32 	%f2, [%rd4];
	max.f32 	%f1, %f1, %f2;
	add.s32 	%r9, %r9, %r3;
	bra.uni 	$L__MAX;
$L__MAX_DONE:
	mov.u32 	%r10, 16;
$L__MAX_TREE:
	mov.b32 	%r11, %f1;
	shfl.sync.bfly.b32 	%r12|%p3, %r11, %r10, 31, -1;
	mov.b32 	%f3, %r12;
	max.f32 	%f1, %f1, %f3;
	shr.u32 	%r10, %r10, 1;
	setp.ne.s32 	%p4, %r10, 0;
	@%p4 bra 	$L__MAX_TREE;
	@!%p1 st.shared.f32 	[%r8], %f1;
	bar.sync 	0;
	ld.shared.v4.f32 	{%f4, %f5, %f6, %f7}, [red];
	max.f32 	%f4, %f4, %f5;
	max.f32 	%f6, %f6, %f7;
	max.f32 	%f1, %f4, %f6;
	mov.f32 	%f8, 0f00000000;
	mov.u32 	%r9, %r2;
$L__SUM:
	setp.ge.s32 	%p2, %r9, %r1;
	@%p2 bra 	$L__SUM_DONE;
	mul.wide.s32 	%rd3, %r9, 4;
	add.s64 	%rd4, %rd1, %rd3;
	ld.global.nc.f32 	%f2, [%rd4];
	sub.f32 	%f9, %f2, %f1;
	mul.f32 	%f9, %f9, 0f3FB8AA3B;
	ex2.approx.ftz.f32 	%f9, %f9;
	add.f32 	%f8, %f8, %f9;
	add.s64 	%rd5, %rd2, %rd3;
	st.global.f32 	[%rd5], %f9;
	add.s32 	%r9, %r9, %r3;
	bra.uni 	$L__SUM;
$L__SUM_DONE:
	mov.u32 	%r10, 16;
$L__SUM_TREE:
	mov.b32 	%r11, %f8;
	shfl.sync.bfly.b32 	%r12|%p3, %r11, %r10, 31, -1;
	mov.b32 	%f3, %r12;
	add.f32 	%f8, %f8, %f3;
	shr.u32 	%r10, %r10, 1;
	setp.ne.s32 	%p4, %r10, 0;
	@%p4 bra 	$L__SUM_TREE;
	@!%p1 st.shared.f32 	[%r8+128], %f8;
	bar.sync 	0; // second
	ld.shared.v4.f32 	{%f4, %f5, %f6, %f7}, [red+128];
	add.f32 	%f4, %f4, %f5;
	add.f32 	%f6, %f6, %f7;
	add.f32 	%f8, %f4, %f6;
	mov.u32 	%r9, %r2;
$L__OUT:
	setp.ge.s32 	%p2, %r9, %r1;
	@%p2 bra 	$L__OUT_DONE;
	mul.wide.s32 	%rd3, %r9, 4;
	add.s64 	%rd5, %rd2, %rd3;
	ld.global.f32 	%f2, [%rd5];
	div.rn.f32 	%f2, %f2, %f8;
	st.global.f32 	[%rd5], %f2;
	add.s32 	%r9, %r9, %r3;
	bra.uni 	$L__OUT;
$L__OUT_DONE:
	ret;
}
"#;

fn softmax(ptx: &str, n: usize, seed: u64) -> Result<(Vec<f32>, Vec<f64>, Stats), FaultKind> {
    let module = Module::parse(ptx).unwrap_or_else(|e| panic!("{e}"));
    let x: Vec<f32> = (0..n).map(|i| ((i * 7919) % 1000) as f32 / 100.0).collect();
    let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut gpu = Machine::new(seed);
    let (p, q) = (gpu.alloc_read_only("x", &bytes), gpu.alloc_uninit("y", n * 4));
    let args = [Arg::ptr(p), Arg::ptr(q), Arg::u32(n as u32)];
    let stats = gpu
        .launch(&module, "softmax", [1; 3], [128, 1, 1], 0, &args)
        .map_err(|e| e.fault().cloned().unwrap_or_else(|| panic!("{e}")))?;
    let words = gpu.read(q).unwrap_or_else(|e| panic!("{e}")).chunks(4);
    let y = words.map(|c| f32::from_le_bytes(c.try_into().unwrap_or_default())).collect();
    let max = x.iter().copied().fold(f32::MIN, f32::max);
    let e: Vec<f64> = x.iter().map(|v| f64::from(v - max).exp()).collect();
    let sum: f64 = e.iter().sum();
    Ok((y, e.into_iter().map(|v| v / sum).collect(), stats))
}

#[test]
fn softmax_of_ragged_lengths() {
    for (seed, n) in [1, 31, 128, 300].into_iter().enumerate() {
        let (y, want, stats) = softmax(SOFTMAX, n, seed as u64).unwrap_or_else(|k| panic!("{k}"));
        for (y, want) in y.iter().zip(&want) {
            assert!((f64::from(*y) - want).abs() <= want * 2e-6, "{n}: {y} {want}");
        }
        assert_eq!(stats.opcode("ex2").lanes, n as u64);
        assert_eq!(stats.opcode("bar").warps, 8);
    }
}

#[test]
fn planted_faults_in_softmax_are_caught() {
    let planted = |from: &str, to: &str| {
        assert!(SOFTMAX.contains(from), "{from}");
        let ptx = SOFTMAX.replacen(from, to, 1);
        (0..4).map(|seed| softmax(&ptx, 300, seed)).collect::<Vec<_>>()
    };
    let kinds = |from: &str, to: &str| -> Vec<FaultKind> {
        let caught = |r: Result<_, FaultKind>| r.err().unwrap_or_else(|| panic!("{from} missed"));
        planted(from, to).into_iter().map(caught).collect()
    };
    let unordered =
        |k: &FaultKind| matches!(k, FaultKind::Race { .. } | FaultKind::Uninitialised { .. });
    assert!(kinds("bar.sync \t0; // second", "").iter().all(unordered));
    assert!(kinds("bar.sync \t0;\n", "").iter().all(unordered));
    let bounds = |k: &FaultKind| matches!(k, FaultKind::OutOfBounds { .. });
    assert!(kinds("setp.ge.s32 \t%p2, %r9, %r1", "setp.gt.s32 \t%p2, %r9, %r1").iter().all(bounds));
    // A wrong tree gives wrong values.
    for r in planted("add.f32 \t%f8, %f8, %f3;", "add.f32 \t%f8, %f8, %f8;") {
        let (y, want, _) = r.unwrap_or_else(|k| panic!("{k}"));
        assert!(y.iter().zip(&want).any(|(y, w)| (f64::from(*y) - w).abs() > w * 1e-3));
    }
}
