//! The oracle bites: what is broken on purpose is found within a few seeds.

use fencegate_filters::fault::{Fault, plant};

use super::run::{Ran, run, run_over_http2};

/// Breaks one guarantee, and wants it noticed within so many seeds. A fraction of them is enough, and
/// the one that noticed it last is asked first.
fn is_noticed(fault: Fault, seeds: u64, last: u64, run: fn(u64) -> Ran) {
    let _planted = plant(fault);
    let name = fault.name();
    for seed in std::iter::once(last).chain(1..=seeds) {
        if let Some(wrong) = run(seed).wrong.first() {
            println!(
                "{name:24} seed {seed:3}  {}",
                wrong.lines().next().unwrap_or_default()
            );
            return;
        }
    }
    panic!("{name} is not noticed within {seeds} seeds");
}

macro_rules! noticed {
    ($run:ident: $($test:ident: $fault:ident within $seeds:literal by $last:literal,)*) => {
        $(
            #[test]
            fn $test() {
                is_noticed(Fault::$fault, $seeds, $last, $run);
            }
        )*
    };
}

noticed! {
    run:
    no_drain: NoDrain within 20 by 1,
    drain_heads_only: DrainHeadsOnly within 60 by 6,
    forward_before_sync: ForwardBeforeSync within 20 by 7,
    ignore_sync_result: IgnoreSyncResult within 20 by 1,
    forget_marks: ForgetMarks within 20 by 2,
    no_crash_hold: NoCrashHold within 40 by 1,
    no_draining_hold: NoDrainingHold within 80 by 1,
    release_on_leave: ReleaseOnLeave within 60 by 6,
    unknown_completes: UnknownCompletes within 40 by 1,
    early_answer_completes: EarlyAnswerCompletes within 80 by 36,
    unknown_status_completes: UnknownStatusCompletes within 60 by 4,
    resend_after_bytes: ResendAfterBytes within 60 by 3,
    no_second_check: NoSecondCheck within 80 by 2,
    clean_unsettled: CleanUnsettled within 80 by 25,
    cache_decides: CacheDecides within 40 by 2,
    failed_commit_wedges: FailedCommitWedges within 80 by 12,
    floor_unheard: FloorUnheard within 40 by 3,
}

noticed! {
    run_over_http2:
    no_drain_over_http2: NoDrain within 20 by 1,
    drain_heads_only_over_http2: DrainHeadsOnly within 60 by 3,
    release_on_leave_over_http2: ReleaseOnLeave within 60 by 6,
    unknown_completes_over_http2: UnknownCompletes within 40 by 1,
    resend_after_bytes_over_http2: ResendAfterBytes within 60 by 3,
}
