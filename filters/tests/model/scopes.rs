//! The scopes that are run, and how each planted fault is to show.

use fencegate_filters::fault::Fault;

use super::scope::{Scope, Wanted};

/// Writes of three holders on `keys`.
fn holders(keys: &[usize]) -> impl Iterator<Item = Wanted> {
    [1, 2, 3]
        .into_iter()
        .map(|token| Wanted::write(token, keys))
}

fn one_key() -> Vec<Wanted> {
    holders(&[0]).collect()
}

/// Three holders, and each may write to one key, to the other, or to both.
fn two_keys() -> Vec<Wanted> {
    let single = holders(&[0]).chain(holders(&[1]));
    single.chain(holders(&[0, 1])).collect()
}

fn two_keys_two_crashes(name: &'static str, requests: u8) -> Scope {
    let mut scope = Scope::new(name, requests, two_keys());
    scope.left.crashes = 2;
    scope
}

fn everything_fails(mut scope: Scope, crashes: u8) -> Scope {
    scope.left.crashes = crashes;
    scope.left.clean_restarts = 1;
    scope.left.failed_commits = 1;
    scope.left.failed_reads = 1;
    scope.left.slow_reads = 1;
    scope.left.unsent = 1;
    scope
}

fn one_key_everything(name: &'static str, requests: u8) -> Scope {
    everything_fails(Scope::new(name, requests, one_key()), 2)
}

/// Writes, reads with a token, and what the store may do to them.
fn lane_one_key(name: &'static str, requests: u8) -> Scope {
    let mut wanted = one_key();
    wanted.push(Wanted::read(2, &[0]));
    wanted.push(Wanted::read(3, &[0]));
    let mut scope = Scope::new(name, requests, wanted);
    scope.left.failed_commits = 2;
    scope.left.unsent = 1;
    scope
}

/// Requests with two keys whose lanes are told in turn, and copies, which only read the source.
fn lane_two_keys(name: &'static str, requests: u8) -> Scope {
    let mut wanted = vec![
        Wanted::write(1, &[0]),
        Wanted::write(2, &[0]),
        Wanted::write(2, &[1]),
    ];
    wanted.extend(holders(&[0, 1]));
    wanted.push(Wanted::copy(1, &[0, 1]));
    wanted.push(Wanted::copy(3, &[0, 1]));
    let mut scope = Scope::new(name, requests, wanted);
    scope.left.failed_commits = 1;
    scope.left.slow_reads = 1;
    scope.in_turn = true;
    scope
}

/// Two holders with one token.
fn lane_bound(name: &'static str, requests: u8) -> Scope {
    let bound = |token, holder| Wanted::write(token, &[0]).by(holder);
    let wanted = vec![
        bound(1, "a"),
        bound(2, "a"),
        bound(2, "b"),
        Wanted::write(2, &[0]),
        bound(3, "b"),
    ];
    let mut scope = Scope::new(name, requests, wanted);
    scope.left.failed_commits = 1;
    scope.left.crashes = 1;
    scope
}

/// A queue for one.
fn lane_short_queue(name: &'static str, requests: u8) -> Scope {
    let mut scope = Scope::new(name, requests, one_key());
    scope.queue = 1;
    scope.left.failed_commits = 1;
    scope.left.slow_reads = 1;
    scope.left.failed_reads = 1;
    scope
}

/// A mark that an administrator lowers in the midst of it all.
fn lane_reset(name: &'static str, requests: u8, resets: u8) -> Scope {
    let mut wanted = one_key();
    wanted.push(Wanted::read(2, &[0]));
    let mut scope = Scope::new(name, requests, wanted);
    scope.marks = [Some((3, false)), None];
    scope.left.resets = resets;
    scope.left.crashes = 1;
    scope.left.failed_commits = 1;
    scope.left.unsent = 1;
    scope
}

/// A life that begins under the hold, on marks that it did not raise.
fn lane_held(name: &'static str, draining: bool, requests: u8) -> Scope {
    let mut wanted = two_keys();
    wanted.retain(|wanted| wanted.asks[0].token >= super::scope::token(2));
    let mut scope = Scope::new(name, requests, wanted);
    scope.marks = [Some((2, draining)), None];
    scope.orphans = [if draining { 1 } else { 2 }, 0];
    scope.left.failed_commits = 1;
    scope.left.crashes = 1;
    scope
}

/// Marks that are forgotten, and records that come late, in the midst of it all.
fn lane_forgets(name: &'static str, requests: u8, forgets: u8, resets: u8) -> Scope {
    let mut wanted = one_key();
    wanted.push(Wanted::write(2, &[1]));
    wanted.push(Wanted::read(2, &[0]));
    let mut scope = Scope::new(name, requests, wanted);
    scope.marks = [Some((1, false)), None];
    scope.left.forgets = forgets;
    scope.left.touches = 1;
    scope.left.resets = resets;
    scope.left.crashes = 1;
    scope.left.slow_reads = 1;
    scope
}

/// Marks of one key that are forgotten, and nothing that comes late.
fn lane_forgets_alone(name: &'static str, requests: u8) -> Scope {
    let mut scope = Scope::new(name, requests, one_key());
    scope.marks = [Some((1, false)), None];
    scope.left.forgets = 2;
    scope.left.crashes = 1;
    scope
}

/// The same without making states equal that differ in numbers: what that could hide shows here.
fn as_numbered(mut scope: Scope) -> Scope {
    scope.renumbers = false;
    scope
}

/// Some seconds without any optimisation.
pub(crate) fn quick() -> Vec<Scope> {
    vec![
        two_keys_two_crashes("2 keys, 3 holders, 2 crashes, 2 requests", 2),
        one_key_everything("1 key, 3 holders, 2 crashes, all failures, 2 requests", 2),
        lane_one_key("lane: 1 key, reads, 3 requests", 3),
        lane_two_keys("lane: 2 keys told in turn, copies, 2 requests", 2),
        lane_bound("lane: bound holders, 2 requests", 2),
        lane_short_queue("lane: a queue for one, 3 requests", 3),
        lane_reset("lane: a reset, 2 requests", 2, 1),
        lane_forgets("lane: marks are forgotten, 2 requests", 2, 1, 0),
        lane_held("lane: held after a crash, 2 requests", false, 2),
        lane_held(
            "lane: held after a crash while draining, 2 requests",
            true,
            2,
        ),
    ]
}

/// The longest come first, since two are run at once.
pub(crate) fn ci() -> Vec<Scope> {
    vec![
        two_keys_two_crashes("2 keys, 3 holders, 2 crashes, 4 requests", 4),
        lane_bound("lane: bound holders, 4 requests", 4),
        lane_two_keys("lane: 2 keys told in turn, copies, 3 requests", 3),
        lane_one_key("lane: 1 key, reads, 4 requests", 4),
        lane_reset("lane: resets, 3 requests", 3, 2),
        lane_forgets("lane: marks are forgotten twice, 2 requests", 2, 2, 0),
        lane_forgets_alone("lane: marks of one key are forgotten, 4 requests", 4),
        lane_held("lane: held after a crash, 3 requests", false, 3),
        lane_held(
            "lane: held after a crash while draining, 3 requests",
            true,
            3,
        ),
        lane_short_queue("lane: a queue for one, 5 requests", 5),
        as_numbered(one_key_everything(
            "not renumbered: 1 key, 2 crashes, all failures, 3 requests",
            3,
        )),
        as_numbered(lane_two_keys(
            "not renumbered: 2 keys told in turn, copies, 2 requests",
            2,
        )),
    ]
}

pub(crate) fn soak() -> Vec<Scope> {
    vec![
        lane_forgets(
            "lane: marks are forgotten twice, a reset, 2 requests",
            2,
            2,
            1,
        ),
        lane_forgets("lane: marks are forgotten, 3 requests", 3, 1, 0),
        two_keys_two_crashes("2 keys, 3 holders, 2 crashes, 5 requests", 5),
        one_key_everything("1 key, 3 holders, 2 crashes, all failures, 4 requests", 4),
        one_key_everything("1 key, 3 holders, 2 crashes, all failures, 5 requests", 5),
        everything_fails(
            Scope::new(
                "2 keys, 3 holders, 2 crashes, all failures, 3 requests",
                3,
                two_keys(),
            ),
            2,
        ),
        lane_two_keys("lane: 2 keys told in turn, copies, 4 requests", 4),
        lane_bound("lane: bound holders, 5 requests", 5),
        lane_one_key("lane: 1 key, reads, 6 requests", 6),
        lane_reset("lane: resets, 4 requests", 4, 2),
        lane_held("lane: held after a crash, 4 requests", false, 4),
        lane_held(
            "lane: held after a crash while draining, 4 requests",
            true,
            4,
        ),
        lane_short_queue("lane: a queue for one, 7 requests", 7),
    ]
}

/// Each fault with the promise that it breaks, and a scope in which it can.
pub(crate) fn faults() -> Vec<(Fault, &'static str, Scope)> {
    let scope = || Scope::new("", 4, one_key());
    let with = |change: fn(&mut Scope)| {
        let mut scope = scope();
        change(&mut scope);
        scope
    };
    let crash = || with(|scope| scope.left.crashes = 1);
    vec![
        (Fault::NoDrain, "G2", scope()),
        (Fault::DrainHeadsOnly, "G2", scope()),
        (Fault::ForwardBeforeSync, "G3", scope()),
        (
            Fault::IgnoreSyncResult,
            "G3",
            with(|scope| scope.left.failed_commits = 1),
        ),
        (Fault::ForgetMarks, "G1", crash()),
        (
            Fault::FloorUnheard,
            "G1",
            with(|scope| scope.left.forgets = 1),
        ),
        (Fault::NoCrashHold, "G2", crash()),
        (Fault::NoDrainingHold, "G2", crash()),
        (Fault::ReleaseOnLeave, "G2", scope()),
        (Fault::PanicCompletes, "G2", scope()),
        (Fault::UnknownCompletes, "G2", scope()),
        (Fault::EarlyAnswerCompletes, "G2", scope()),
        (Fault::UnknownStatusCompletes, "G2", scope()),
        (
            Fault::ResendAfterBytes,
            "G2",
            with(|scope| scope.left.unsent = 1),
        ),
        (Fault::CacheDecides, "G1", scope()),
        (Fault::WaitersOutOfOrder, "G1", scope()),
        (Fault::NoSecondCheck, "G2", scope()),
        (
            Fault::CleanUnsettled,
            "G2",
            with(|scope| scope.left.clean_restarts = 1),
        ),
        (
            Fault::LateReadOverwrites,
            "G1",
            with(|scope| scope.left.slow_reads = 1),
        ),
        (
            Fault::ResetWithoutDrain,
            "G2",
            with(|scope| scope.left.resets = 1),
        ),
        (
            Fault::FailedCommitWedges,
            "liveness",
            with(|scope| scope.left.failed_commits = 1),
        ),
    ]
}
