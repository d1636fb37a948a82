//! The PTX interpreter's own semantics.

mod ptxvm;

use ptxvm::{Arg, Machine, Module};

#[test]
fn smoke() {
    let m = Module::parse(".visible .entry k(.param .u64 p){.reg .b64 %rd<3>; .reg .b32 %r<3>; ld.param.u64 %rd1,[p]; mov.u32 %r1,%tid.x; mul.wide.u32 %rd2,%r1,4; add.s64 %rd1,%rd1,%rd2; st.global.u32 [%rd1],%r1; ret;}").unwrap();
    let mut g = Machine::new(1);
    let p = g.alloc_uninit("out", 256);
    let s = g.launch(&m, "k", [1, 1, 1], [64, 1, 1], 0, &[Arg::ptr(p)]).unwrap();
    assert_eq!(g.read(p).unwrap()[252], 63);
    println!("{s:?}");
}
