//! The lane table in all orders in which its threads may run: who comes, waits, raises, commits,
//! sends, ends, settles and leaves, and the store's answers between any two of them.
//!
//! Every scenario ends with [`World::check`]: nobody waits for ever (the checker itself notices
//! threads that all wait), no lane is left, and no mark is lost. The resource checks each write
//! that reaches it against G1, G2 and G3. Where all orders are explored, scenarios are as small as
//! they can be.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[cfg(feature = "faults")]
mod faults;
mod world;

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use shuttle::future::block_on;
use shuttle::thread;

use self::world::{Cuttable, SETTLE, Start, TIMEOUT, World, claim, k, pause};
use super::*;
use crate::explore::{exhaust, explore};
use crate::refusal::Outcome;
use crate::sync::{advance, now};

fn join(threads: Vec<thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|one| one.join().unwrap());
}

/// Looks once, as a client that leaves soon after.
fn look_and_leave(world: &World, claim: Claim, looks: usize) {
    let mut admit = world.fence.admit(claim);
    for _ in 0..looks {
        let done = block_on(std::future::poll_fn(|cx| {
            Poll::Ready(Pin::new(&mut admit).poll(cx).is_ready())
        }));
        if done {
            return;
        }
        pause(4);
    }
}

// Hand-over on one key.

fn tokens_race_on_a_cold_key() {
    let world = World::new(&Start::default());
    let writers = [2, 1, 3].map(|counter| {
        world.spawn(move |world| {
            let refused = world.write(&claim(&["a"], counter));
            assert!(matches!(refused, None | Some(Reason::StaleToken)));
            assert!(counter < 3 || refused.is_none(), "the newest is let in");
        })
    });
    join(writers.into());
    world.check();
}

#[test]
fn tokens_that_race_on_a_cold_key() {
    explore(tokens_race_on_a_cold_key);
}

fn tokens_race_on_a_cached_key() {
    let world = World::new(&Start::default());
    assert_eq!(world.write(&claim(&["a"], 5)), None);
    let writers = [7, 6, 5].map(|counter| {
        world.spawn(move |world| {
            let refused = world.write(&claim(&["a"], counter));
            assert!(counter < 7 || refused.is_none(), "{refused:?}");
        })
    });
    join(writers.into());
    world.check();
}

#[test]
fn tokens_that_race_on_a_key_whose_mark_is_cached() {
    explore(tokens_race_on_a_cached_key);
}

fn equal_tokens_share_a_commit() {
    let world = World::new(&Start {
        marks: &[("a", 1, false)],
        ..Start::default()
    });
    let writers = [2, 2, 1].map(|counter| {
        world.spawn(move |world| {
            let refused = world.write(&claim(&["a"], counter));
            assert!(counter < 2 || refused.is_none(), "{refused:?}");
        })
    });
    join(writers.into());
    world.check();
}

#[test]
fn equal_tokens_that_share_a_commit() {
    explore(equal_tokens_share_a_commit);
}

// Several keys at once.

fn several_keys_in_any_order() {
    let world = World::new(&Start::default());
    let wants: [(&'static [&'static str], u64); 4] = [
        (&["a", "b"], 2),
        (&["b", "c", "a"], 3),
        (&["b"], 1),
        (&["c"], 4),
    ];
    let writers = wants.map(|(keys, counter)| {
        world.spawn(move |world| {
            world.write_any(&claim(keys, counter));
        })
    });
    join(writers.into());
    world.check();
}

#[test]
fn several_keys_whatever_the_order_of_their_shards() {
    explore(several_keys_in_any_order);
}

// Lanes that are freed, the cache, and reads that come late (C14).

fn a_read_comes_late() {
    let world = World::new(&Start {
        marks: &[("a", 5, false)],
        ..Start::default()
    });
    let leaver = world.spawn(|world| look_and_leave(world, claim(&["a"], 6), 1));
    let forgetter = world.spawn(|world| {
        for _ in 0..2 {
            world.fence.table.forget(&k("a"));
            pause(4);
        }
    });
    let writers = [7, 6].map(|counter| {
        world.spawn(move |world| {
            let refused = world.write(&claim(&["a"], counter));
            assert!(counter < 7 || refused.is_none(), "{refused:?}");
            // Its lane may be gone, and its mark with the cache: still nothing older comes in.
            let older = world.write(&claim(&["a"], counter - 1));
            assert_eq!(older, Some(Reason::StaleToken));
        })
    });
    join(writers.into());
    join(vec![leaver, forgetter]);
    world.check();
}

#[test]
fn a_cold_read_that_comes_late() {
    explore(a_read_comes_late);
}

fn clients_leave_at_any_point() {
    let world = World::new(&Start {
        marks: &[("a", 1, false)],
        ..Start::default()
    });
    let mut threads = Vec::new();
    for (counter, looks) in [(3, 2), (2, 3)] {
        let leaver = move |world: &Arc<World>| look_and_leave(world, claim(&["a"], counter), looks);
        threads.push(world.spawn(leaver));
    }
    for counter in [2, 4] {
        threads.push(world.spawn(move |world| world.write_any(&claim(&["a"], counter))));
    }
    join(threads);
    world.check();
}

#[test]
fn clients_that_leave_at_any_point() {
    explore(clients_leave_at_any_point);
}

fn a_read_of_a_mark_fails() {
    let world = World::new(&Start {
        marks: &[("a", 4, false)],
        failing_reads: &[0],
        ..Start::default()
    });
    let writers = [5, 6].map(|counter| {
        world.spawn(move |world| {
            let refused = world.write(&claim(&["a"], counter));
            assert!(matches!(
                refused,
                None | Some(Reason::StaleToken | Reason::StoreUnavailable)
            ));
        })
    });
    join(writers.into());
    assert_eq!(
        world.write(&claim(&["a"], 7)),
        None,
        "the read is tried again"
    );
    world.check();
}

#[test]
fn a_read_of_a_mark_that_fails() {
    explore(a_read_of_a_mark_fails);
}

// Marks that are forgotten.

fn marks_are_forgotten_meanwhile() {
    let world = World::new(&Start {
        marks: &[("a", 5, false), ("b", 2, false)],
        ..Start::default()
    });
    let forgetter = world.spawn(|world| {
        for period in 1..=3 {
            world.fence.turn(period);
            world.forget("a");
            world.forget("b");
        }
    });
    let writers = [6, 7].map(|counter| {
        world.spawn(move |world| {
            let refused = world.write(&claim(&["a"], counter));
            assert!(matches!(refused, None | Some(Reason::StaleToken)));
            // Whatever was forgotten meanwhile: nothing older comes in.
            let older = world.write(&claim(&["b", "a"], counter - 1));
            assert_eq!(older, Some(Reason::StaleToken));
        })
    });
    let leaver = world.spawn(|world| look_and_leave(world, claim(&["a"], 8), 2));
    join(writers.into());
    join(vec![forgetter, leaver]);
    world.check();
    assert_eq!(world.fence.totals().keys, world.keeper.len());
}

#[test]
fn marks_that_are_forgotten_while_tokens_come() {
    explore(marks_are_forgotten_meanwhile);
}

// Commits that fail (C15).

fn a_commit_fails() {
    let world = World::new(&Start {
        marks: &[("a", 1, false)],
        failing_commits: &[0],
        ..Start::default()
    });
    let writers = [2, 2, 3].map(|counter| {
        world.spawn(move |world| {
            world.write_any(&claim(&["a"], counter));
        })
    });
    join(writers.into());
    // Whatever failed, the same token commits once more, and is let in: the key is not wedged.
    assert_eq!(world.write(&claim(&["a"], 3)), None);
    world.check();
}

#[test]
fn a_commit_that_fails_wedges_nothing() {
    explore(a_commit_fails);
}

// The hold after a crash ends, and walks all lanes.

fn a_hold_ends() {
    let world = World::new(&Start {
        marks: &[("a", 5, true), ("b", 5, false)],
        ..Start::default()
    });
    let until = now() + SETTLE;
    world.hold(until);
    let clock = world.spawn(|_| {
        pause(12);
        advance(SETTLE);
    });
    let wants: [(&'static [&'static str], u64); 4] =
        [(&["a"], 5), (&["b"], 6), (&["c"], 1), (&["b", "a"], 6)];
    let writers = wants.map(|(keys, counter)| {
        world.spawn(move |world| {
            let refused = world.write(&claim(keys, counter));
            assert!(matches!(refused, None | Some(Reason::StaleToken)));
        })
    });
    join(writers.into());
    join(vec![clock]);
    world.check();
}

#[test]
fn a_hold_that_ends_while_lanes_are_made() {
    explore(a_hold_ends);
}

// Outcomes.

fn an_unknown_outcome_settles() {
    let world = World::new(&Start::default());
    let older = world.spawn(|world| {
        let claim = claim(&["a", "b"], 1);
        if let Ok(admission) = world.admit(claim.clone()) {
            let handle: Handle = Arc::new(Cuttable::default());
            if let Ok(permit) = admission.send(&handle) {
                world.begin(&claim);
                pause(4);
                world.end(&claim, true);
                permit.ended(Outcome::Unknown, true);
            }
        }
    });
    let newer = ["a", "b"].map(|key| {
        world.spawn(move |world| {
            let mut claim = claim(&[key], 2);
            claim.drain.timeout = 10 * TIMEOUT;
            assert_eq!(world.write(&claim), None);
        })
    });
    let clock = world.spawn(|_| {
        for _ in 0..2 {
            pause(12);
            advance(SETTLE / 2);
        }
    });
    join(vec![older, clock]);
    pause(24);
    advance(SETTLE);
    join(newer.into());
    world.check();
}

#[test]
fn an_unknown_outcome_holds_newer_tokens_until_it_settles() {
    explore(an_unknown_outcome_settles);
}

fn a_panic_drops_a_permit() {
    let world = World::new(&Start::default());
    let older = world.spawn(|world| {
        let claim = claim(&["a"], 1);
        let Ok(admission) = world.admit(claim.clone()) else {
            return;
        };
        let handle: Handle = Arc::new(Cuttable::default());
        let Ok(permit) = admission.send(&handle) else {
            return;
        };
        world.begin(&claim);
        pause(4);
        world.end(&claim, true);
        let panics = std::panic::AssertUnwindSafe(move || {
            let _dropped_on_the_way = permit;
            std::panic::resume_unwind(Box::new("planned"));
        });
        assert!(std::panic::catch_unwind(panics).is_err());
    });
    let newer = world.spawn(|world| assert_eq!(world.write(&claim(&["a"], 2)), None));
    join(vec![older]);
    // Time enough to be let in too early.
    pause(24);
    advance(SETTLE);
    join(vec![newer]);
    world.check();
}

#[test]
fn a_permit_that_a_panic_drops_is_unknown() {
    explore(a_panic_drops_a_permit);
}

fn a_request_comes_back_unsent() {
    let world = World::new(&Start::default());
    let older = world.spawn(|world| {
        let claim = claim(&["a"], 1);
        let Ok(admission) = world.admit(claim) else {
            return;
        };
        let handle: Handle = Arc::new(Cuttable::default());
        let Ok(permit) = admission.send(&handle) else {
            return;
        };
        // No byte was written; on the next connection it is compared once more.
        pause(4);
        let again = permit.unsent();
        pause(4);
        world.send(again, |permit| permit.ended(Outcome::Completed, false));
    });
    let newer = world.spawn(|world| assert_eq!(world.write(&claim(&["a"], 2)), None));
    join(vec![older, newer]);
    world.check();
}

#[test]
fn a_request_that_comes_back_unsent() {
    explore(a_request_comes_back_unsent);
}

// Time runs out.

fn a_drain_runs_out_of_time(on_timeout: OnTimeout) {
    let world = World::new(&Start::default());
    let older = Arc::new(Cuttable::default());
    let first = claim(&["a"], 1);
    let handle: Handle = Arc::clone(&older) as Handle;
    let permit = world.admit(first.clone()).unwrap().send(&handle).unwrap();
    world.begin(&first);
    older.hold(&world, &first, permit);
    let newer = [2, 3].map(|counter| {
        world.spawn(move |world| {
            let mut claim = claim(&["a"], counter);
            claim.drain.on_timeout = on_timeout;
            let refused = world.write(&claim);
            assert!(matches!(
                refused,
                None | Some(
                    Reason::StaleToken
                        | Reason::Draining
                        | Reason::Settling
                        | Reason::StoreUnavailable
                )
            ));
        })
    });
    let ender = world.spawn(move |_| older.complete());
    let clock = world.spawn(|_| {
        for _ in 0..3 {
            advance(TIMEOUT);
            pause(4);
        }
    });
    join(vec![ender, clock]);
    world.let_time_pass(SETTLE);
    join(newer.into());
    // What was cut last of all settles too.
    advance(SETTLE);
    assert_eq!(world.write(&claim(&["a"], 4)), None);
    world.check();
}

#[test]
fn a_drain_that_runs_out_of_time_is_refused() {
    explore(|| a_drain_runs_out_of_time(OnTimeout::Refuse));
}

#[test]
fn a_drain_that_runs_out_of_time_cuts() {
    explore(|| a_drain_runs_out_of_time(OnTimeout::Cut));
}

// The stop.

fn the_gateway_stops() {
    let world = World::new(&Start::default());
    let writers = [1, 2, 2].map(|counter| {
        world.spawn(move |world| {
            world.write_any(&claim(&["a"], counter));
        })
    });
    let stopper = world.spawn(|world| {
        world.fence.stop();
        let late = world.write(&claim(&["a"], 3));
        assert_eq!(late, Some(Reason::ShuttingDown));
    });
    join(writers.into());
    join(vec![stopper]);
    assert!(world.fence.is_quiet());
    assert_eq!(world.fence.totals().waiting, 0);
}

#[test]
fn a_stop_answers_everybody() {
    explore(the_gateway_stops);
}

// Observing.

fn a_request_is_observed() {
    let world = World::new(&Start {
        marks: &[("a", 2, false)],
        ..Start::default()
    });
    let observed = world.spawn(|world| {
        let admission = world.fence.observe(claim(&["a"], 3));
        let handle: Handle = Arc::new(Cuttable::default());
        let permit = admission.send(&handle).unwrap();
        pause(4);
        permit.ended(Outcome::Completed, false);
    });
    let writers = [4, 2].map(|counter| {
        world.spawn(move |world| {
            world.write_any(&claim(&["a"], counter));
        })
    });
    join(writers.into());
    join(vec![observed]);
    // The look of an observed request may still be on its way.
    while world.fence.totals().waiting > 0 {
        pause(4);
    }
    world.check();
}

#[test]
fn a_request_that_is_only_observed() {
    explore(a_request_is_observed);
}

// The smallest ones, in all orders.

#[test]
fn the_end_of_a_write_and_who_waits_for_it_in_all_orders() {
    exhaust(200_000, || {
        let world = World::new(&Start {
            marks: &[("a", 1, false)],
            at_once: true,
            ..Start::default()
        });
        let older = claim(&["a"], 1);
        let handle: Handle = Arc::new(Cuttable::default());
        let permit = world.admit(older.clone()).unwrap().send(&handle).unwrap();
        world.begin(&older);
        let newer = world.spawn(|world| drop(world.admit(claim(&["a"], 2)).unwrap()));
        world.end(&older, false);
        permit.ended(Outcome::Completed, false);
        join(vec![newer]);
        world.check();
    });
}

#[test]
fn the_end_of_a_hold_and_a_lane_that_is_made_in_all_orders() {
    exhaust(200_000, || {
        let world = World::new(&Start {
            marks: &[("a", 1, true)],
            at_once: true,
            ..Start::default()
        });
        let until = now() + SETTLE;
        world.fence.table.hold("n", until);
        let newer = world.spawn(|world| drop(world.admit(claim(&["a"], 1)).unwrap()));
        world.fence.table.hold_over("n", until);
        join(vec![newer]);
        world.check();
    });
}
