//! Launches that an engine makes on its own, their real PTX in the interpreter.

use headwise::format::{PageFormat, SlotFormat};

use super::whole::device;
use crate::{
    launch_cases::{gathered_rows_are_the_hosts, sums_become_scores_at_rest},
    lifecycle::scores_and_positions_follow_slots,
};

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

#[test]
fn a_sequences_scores_and_positions_follow_its_slots() {
    device(90, |_, _, kernels| {
        let mixed = PageFormat { k: SlotFormat::I8, v: SlotFormat::F16 };
        let alike = SlotFormat::ALL.iter().map(|&format| PageFormat::both(format));
        alike.chain([mixed]).for_each(|format| scores_and_positions_follow_slots(kernels, format));
    });
}
