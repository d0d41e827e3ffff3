//! Faults that are planted, to see that the scenarios notice.

use super::*;
use crate::explore::find;
use crate::fault::{Fault, plant};

/// Plants a fault, and has it found.
fn notices(fault: Fault, scenario: fn()) {
    let _planted = plant(fault);
    assert!(find(scenario).is_some(), "{} goes unnoticed", fault.name());
}

#[test]
fn no_drain() {
    notices(Fault::NoDrain, tokens_race_on_a_cold_key);
}

#[test]
fn forward_before_sync() {
    notices(Fault::ForwardBeforeSync, tokens_race_on_a_cold_key);
}

#[test]
fn ignore_sync_result() {
    notices(Fault::IgnoreSyncResult, a_commit_fails);
}

#[test]
fn forget_marks() {
    notices(Fault::ForgetMarks, a_read_comes_late);
}

#[test]
fn no_crash_hold() {
    notices(Fault::NoCrashHold, a_hold_ends);
}

#[test]
fn no_draining_hold() {
    notices(Fault::NoDrainingHold, a_hold_ends);
}

#[test]
fn panic_completes() {
    notices(Fault::PanicCompletes, a_panic_drops_a_permit);
}

#[test]
fn unknown_completes() {
    notices(Fault::UnknownCompletes, an_unknown_outcome_settles);
}

#[test]
fn cache_decides() {
    notices(Fault::CacheDecides, tokens_race_on_a_cached_key);
}

#[test]
fn waiters_out_of_order() {
    notices(Fault::WaitersOutOfOrder, tokens_race_on_a_cold_key);
}

#[test]
fn no_second_check() {
    notices(Fault::NoSecondCheck, tokens_race_on_a_cold_key);
}

#[test]
fn late_read_overwrites() {
    notices(Fault::LateReadOverwrites, a_read_comes_late);
}

#[test]
fn failed_commit_wedges() {
    notices(Fault::FailedCommitWedges, a_commit_fails);
}

#[test]
fn drop_wake() {
    notices(Fault::DropWake, tokens_race_on_a_cold_key);
}

#[test]
fn floor_unheard() {
    notices(Fault::FloorUnheard, marks_are_forgotten_meanwhile);
}

#[test]
fn forget_in_use() {
    notices(Fault::ForgetInUse, marks_are_forgotten_meanwhile);
}
