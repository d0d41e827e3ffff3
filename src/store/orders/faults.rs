//! Faults that are planted, to see that the scenarios notice.

use fencegate_filters::explore::find;
use fencegate_filters::fault::{Fault, plant};

use super::*;

/// Plants a fault, and has it found.
fn notices(fault: Fault, scenario: fn()) {
    let _planted = plant(fault);
    assert!(find(scenario).is_some(), "{} goes unnoticed", fault.name());
}

#[test]
fn lose_replies() {
    notices(Fault::LoseReplies, the_committer_panics);
}

#[test]
fn drop_notify() {
    notices(Fault::DropNotify, a_queue_is_handed_over);
}

#[test]
fn ignore_sync_result() {
    notices(Fault::IgnoreSyncResult, a_sync_fails);
}
