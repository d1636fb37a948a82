//! The suite of all attention backends on the kernels' real PTX, in the interpreter.

use super::whole::device;
use crate::{
    backend::Device,
    conformance::{Backend, conformance},
};

fn interpreter(test: &mut dyn FnMut(&dyn Backend)) {
    device(90, |_, _, kernels| test(&Device(kernels)));
}

conformance!(interpreter: f32, f16, bf16, i8, k8v16);
