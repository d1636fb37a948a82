//! Launches that an engine makes on its own, their real PTX in the interpreter.

use headwise::format::{PageFormat, SlotFormat};

use super::whole::device;
use crate::launch_cases::{gathered_rows_are_the_hosts, sums_become_scores_at_rest};

#[test]
fn sums_of_a_prompt_become_scores_at_rest() {
    device(90, |_, _, kernels| sums_become_scores_at_rest(kernels));
}

#[test]
fn gathered_rows_are_what_the_host_reads() {
    device(80, |_, _, kernels| {
        let format = PageFormat { k: SlotFormat::I8, v: SlotFormat::F16 };
        gathered_rows_are_the_hosts(kernels, format);
    });
}
