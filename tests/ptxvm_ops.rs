//! The PTX interpreter's own semantics, opcode by opcode, and the faults that it must report.

mod ptxvm;

mod ptxvm_ops {
    mod block;
    mod compare;
    mod convert;
    mod copy;
    mod count;
    mod float;
    mod harness;
    mod integer;
    mod matrix;
    mod mbarrier;
    mod memory;
    mod samples;
    mod text;
    mod warp;
}
