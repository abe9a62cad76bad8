//! Faults at every step, with the eBPF decapsulator, which every kernel has. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

mod faults;
mod lab;

use faults::rounds;

#[test]
fn a_failure_at_any_step_leaves_host_and_journal_as_they_were() {
    faults::failures_of_apply(rounds("ebpf"));
}

#[test]
fn a_failure_at_any_step_of_remove_is_made_up_for_by_the_next() {
    faults::failures_of_remove(rounds("ebpf"));
}

#[test]
fn a_kill_at_any_step_is_undone_by_remove_or_finished_by_apply() {
    faults::kills_of_apply(rounds("ebpf"));
}

#[test]
fn a_kill_at_any_step_of_remove_is_finished_by_the_next_or_made_good_by_apply() {
    faults::kills_of_remove(rounds("ebpf"));
}

/// Also the way in for those that are to be killed.
#[test]
fn a_run_without_a_fault_succeeds() {
    faults::run_without_a_fault("ebpf");
}
