//! The kernels between an engine's products, in the interpreter.

use headwise::device::Kernels;

use super::whole::device;
use crate::arithmetic::arithmetic;

fn interpreted(case: &mut dyn FnMut(&Kernels)) {
    device(90, |_, _, kernels| case(kernels));
}

arithmetic!(interpreted);
