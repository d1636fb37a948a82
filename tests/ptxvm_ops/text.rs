//! What is refused when PTX is read, and with which words.

use crate::ptxvm::{Error, Module};

fn refused(body: &str, words: &str) {
    let ptx = format!(
        ".version 9.0\n.target sm_90\n.visible .entry k()\n{{ .reg .b32 %r<9>; .reg .pred %p<3>; .reg .b64 %d<3>;\n{body}\n}}"
    );
    match Module::parse(&ptx) {
        Ok(_) => panic!("accepted {body}"),
        Err(Error::Parse { line, text, what }) => {
            assert_eq!(line, 5, "{body}");
            assert!(format!("{text} {what}").contains(words), "{body}: {what}: {text}");
        }
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn unsupported_and_malformed_text_names_its_line() {
    refused("frobnicate.u32 %r1, %r2;", "unsupported opcode");
    refused("call.uni helper, ();", "function calls");
    refused("wgmma.fence.sync.aligned;", "unsupported opcode");
    refused("add.cc.u32 %r1, %r2, %r3;", "unsupported modifier .cc");
    refused("cvt.rs.f16x2.f32 %r1, %r2, %r3, %r4;", "unsupported modifier .rs");
    refused("add.u32 %r1, %r2, %rx;", "unknown register %rx");
    refused("add.u32 %r1, %r2;", "operand 3 is missing");
    refused("add.u32 %p1, %r2, %r3;", "predicate");
    refused("bra NOWHERE;", "unknown label NOWHERE");
    refused("ld.shared.u32 %r1, %r2;", "not an address");
    refused("st.const.u32 [%d1], %r2;", "read-only");
    refused("cp.async.cg.shared.global [%r1], [%d1], 8;", "copies 16 bytes");
    refused(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile [%r1], [%d1];",
        "unsupported bulk copy",
    );
    refused("shfl.bfly.b32 %r1, %r2, 1, 31;", ".sync");
    refused(
        "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%r1}, {%r2}, {%r3}, {%r4};",
        "mma shape",
    );
    refused(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r1}, {%r2}, {%r3}, {%r4};",
        "registers",
    );
    refused("cvt.s32.f32 %r1, %r2;", "rounding");
    refused("mov.u32 %r1 %r2;", "expected");
    refused("atom.global.frob.u32 %r1, [%d1], 1;", "unsupported modifier .frob");
}

#[test]
fn every_form_of_comment_and_directive_is_skipped() {
    let ptx = "// text\n.version 8.7\n.target sm_100a, debug\n.address_size 64\n/* a\n * b */
        .file 1 \"kernel.cu\"
        .func (.param .b32 r) unused(.param .b32 a) { call.uni nothing, (); ret; }
        .weak .entry k() .maxntid 128, 1, 1 .minnctapersm 2 {
        .loc 1 5 3
        .pragma \"nounroll\";
        .reg .b32 r; // not every name has a percent sign
        mov.u32 r, 0b101; mov.u32 r, 017; mov.u32 r, %tid.x; griddepcontrol.wait;
        fence.acq_rel.gpu; membar.gl; prefetch.global.L2 [0]; nanosleep.u32 20;
        griddepcontrol.launch_dependents; ret; }";
    let module = Module::parse(ptx).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(module.kernels().collect::<Vec<_>>(), ["k"]);
    let mut gpu = crate::ptxvm::Machine::new(0);
    assert!(gpu.launch(&module, "k", [2; 3], [33, 2, 1], 0, &[]).is_ok());
}
