//! The fence over a scripted store, with the clock stopped: time passes only where a test waits.

mod forgetting;
mod resets;
pub(super) mod script;
mod threads;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant as Clock;

use self::script::{Script, Write};
use super::*;
use crate::refusal::Outcome;
use crate::store::Raise;

pub(super) const TIMEOUT: Duration = Duration::from_secs(30);
pub(super) const SETTLE: Duration = Duration::from_secs(15);
const CACHE: u64 = 1 << 20;

fn t(counter: u64) -> Token {
    Token::new(0, counter).unwrap()
}

fn k(key: &str) -> Key {
    Key::new("objects", key)
}

pub(super) fn kept(key: &str, counter: u64) -> Raise {
    Raise {
        key: k(key),
        record: Record {
            mark: t(counter),
            holder: Binding::Unbound,
            draining: false,
            resets: 0,
        },
    }
}

fn ask(token: Token) -> Ask {
    Ask {
        token,
        holder: None,
        access: Access::Write,
        max_advance: None,
        new_epochs: true,
    }
}

fn claim_of(keys: &[(&str, u64)]) -> Claim {
    Claim {
        keys: keys.iter().map(|one| k(one.0)).collect(),
        asks: keys
            .iter()
            .map(|one| ask(Token::new(0, one.1).unwrap_or(Token::NONE)))
            .collect(),
        write: true,
        drain: Drain {
            timeout: TIMEOUT,
            on_timeout: OnTimeout::Refuse,
            uploads: Uploads::Cut,
            settle: SETTLE,
            waiting: 8,
        },
    }
}

pub(super) fn claim(counter: u64) -> Claim {
    claim_of(&[("42", counter)])
}

pub(super) fn cutting(counter: u64) -> Claim {
    let mut claim = claim(counter);
    claim.drain.on_timeout = OnTimeout::Cut;
    claim
}

pub(super) fn fence_over(store: &Arc<Script>) -> Fence {
    Fence::new(Arc::clone(store) as Arc<dyn Store>, CACHE)
}

/// Asks for admission, and looks at the mark as well where it is read at once.
pub(super) async fn begin(fence: &Fence, claim: Claim) -> Admit {
    let mut admit = fence.admit(claim);
    for _ in 0..2 {
        assert!(is_pending(&mut admit).await, "it was decided at once");
    }
    admit
}

async fn is_pending(admit: &mut Admit) -> bool {
    std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *admit).poll(cx).is_pending())).await
}

/// Admits and sends a write.
async fn send(fence: &Fence, claim: Claim) -> (Arc<Write>, Permit) {
    let (write, handle) = Write::new();
    let permit = fence.admit(claim).await.unwrap().send(&handle).unwrap();
    (write, permit)
}

fn reason<T>(result: Result<T, Refusal>) -> Reason {
    result.err().expect("a refusal").reason
}

/// Nothing is left over in any lane.
fn assert_all_freed(fence: &Fence) {
    let mut lanes = 0;
    fence.table.each(|_, _| lanes += 1);
    assert_eq!(lanes, 0, "lanes are left");
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_takes_too_long_is_refused_and_the_older_write_runs_on() {
    let fence = fence_over(&Script::new(&[kept("42", 33)]));
    let (older, permit) = send(&fence, claim(33)).await;
    let began = Clock::now();
    let refusal = fence.admit(claim(34)).await.err().unwrap();
    assert_eq!(refusal.reason, Reason::Draining);
    assert_eq!(refusal.outcome, Outcome::NotForwarded);
    assert!(refusal.retry_after.is_some());
    assert_eq!(began.elapsed(), TIMEOUT);
    assert_eq!(older.drained.load(Ordering::SeqCst), 1);
    assert_eq!(older.cut.load(Ordering::SeqCst), 0);
    permit.ended(Outcome::Completed, false);
    assert!(fence.admit(claim(34)).await.is_ok());
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_because_of_a_stop_waits_no_more() {
    let fence = fence_over(&Script::new(&[kept("42", 33)]));
    let (_older, permit) = send(&fence, claim(33)).await;
    let waits = begin(&fence, claim(34)).await;
    assert_eq!(fence.totals().waiting, 1);
    fence.stop();
    assert_eq!(reason(waits.await), Reason::ShuttingDown);
    assert_eq!(fence.totals().waiting, 0);
    permit.ended(Outcome::Completed, false);
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn who_waits_when_the_store_fails_is_told_of_the_store() {
    let fence = fence_over(&Script::new(&[kept("42", 33)]));
    let (_older, permit) = send(&fence, claim(33)).await;
    let waits = begin(&fence, claim(34)).await;
    fence.fail();
    assert_eq!(reason(waits.await), Reason::StoreUnavailable);
    assert_eq!(
        reason(fence.admit(claim(35)).await),
        Reason::StoreUnavailable
    );
    permit.ended(Outcome::Completed, false);
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn a_cut_at_the_timeout_is_waited_for_until_it_has_settled() {
    let fence = fence_over(&Script::new(&[kept("42", 33)]));
    let (older, permit) = send(&fence, claim(33)).await;
    *older.permit.lock().unwrap() = Some(permit);
    let began = Clock::now();
    drop(fence.admit(cutting(34)).await.unwrap());
    assert_eq!(older.cut.load(Ordering::SeqCst), 1);
    assert!(began.elapsed() >= TIMEOUT + SETTLE);
    assert!(began.elapsed() < TIMEOUT + SETTLE + Duration::from_secs(1));
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn a_close_that_takes_a_moment_does_not_cost_the_wait() {
    let fence = fence_over(&Script::new(&[kept("42", 33)]));
    let (older, permit) = send(&fence, claim(33)).await;
    tokio::spawn(async move {
        while older.cut.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        drop(permit);
    });
    assert!(fence.admit(cutting(34)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_cut_that_does_not_end_the_write_is_no_reason_to_wait_for_ever() {
    let fence = fence_over(&Script::new(&[kept("42", 33)]));
    let (_older, _permit) = send(&fence, claim(33)).await;
    let began = Clock::now();
    assert_eq!(reason(fence.admit(cutting(34)).await), Reason::Draining);
    assert!(began.elapsed() <= TIMEOUT + SETTLE + Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_newer_token_does_not_start_the_drains_clock_anew() {
    let fence = fence_over(&Script::new(&[kept("42", 33)]));
    let (older, _permit) = send(&fence, claim(33)).await;
    let began = Clock::now();
    let first = begin(&fence, claim(34)).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let second = begin(&fence, claim(35)).await;
    assert_eq!(reason(first.await), Reason::StaleToken);
    assert_eq!(reason(second.await), Reason::Draining);
    assert_eq!(began.elapsed(), TIMEOUT);
    assert_eq!(older.drained.load(Ordering::SeqCst), 2);
    // That drain is over, and the next has a time of its own.
    assert_eq!(reason(fence.admit(claim(36)).await), Reason::Draining);
    assert_eq!(began.elapsed(), TIMEOUT * 2);
}

#[tokio::test(start_paused = true)]
async fn a_clock_does_not_outlive_a_commit_that_failed() {
    // C15
    let store = Script::new(&[kept("42", 33)]);
    store.ask_before_commits();
    let fence = fence_over(&store);
    let first = begin(&fence, claim(34)).await;
    store.fail_commit();
    assert_eq!(reason(first.await), Reason::StoreUnavailable);
    tokio::time::sleep(TIMEOUT * 2).await;
    let again = begin(&fence, claim(34)).await;
    store.commit_next();
    assert!(again.await.is_ok());
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_is_never_answered_is_refused_in_time() {
    let store = Script::new(&[kept("42", 33)]);
    store.ask_before_commits();
    let fence = fence_over(&store);
    let began = Clock::now();
    assert_eq!(
        reason(fence.admit(claim(34)).await),
        Reason::StoreUnavailable
    );
    assert_eq!(began.elapsed(), TIMEOUT);
    store.drop_commit();
    let again = begin(&fence, claim(34)).await;
    store.commit_next();
    assert!(again.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_admitted_before_its_commit_is_answered() {
    // C4
    let store = Script::new(&[]);
    store.ask_before_commits();
    let fence = fence_over(&store);
    let mut first = begin(&fence, claim(34)).await;
    let mut equal = begin(&fence, claim(34)).await;
    tokio::time::sleep(TIMEOUT / 2).await;
    assert!(is_pending(&mut first).await && is_pending(&mut equal).await);
    store.commit_next();
    assert!(first.await.is_ok() && equal.await.is_ok());
    assert_eq!(*store.committed.lock().unwrap(), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_permit_is_an_unknown_outcome_and_settles() {
    let fence = fence_over(&Script::new(&[kept("42", 33)]));
    let (_, permit) = send(&fence, claim(33)).await;
    drop(permit);
    assert!(!fence.is_quiet());
    assert!(fence.admit(claim(33)).await.is_ok(), "equal tokens pass");
    let began = Clock::now();
    assert!(fence.admit(claim(34)).await.is_ok());
    assert_eq!(began.elapsed().as_secs(), SETTLE.as_secs());
    assert!(fence.is_quiet());
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_is_dropped_in_a_panic_settles_too() {
    let fence = fence_over(&Script::new(&[kept("42", 33)]));
    let (_, permit) = send(&fence, claim(33)).await;
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        let _permit = permit;
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    assert_eq!(fence.totals().unsettled, 1);
    assert!(fence.admit(claim(34)).await.is_ok());
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn only_what_may_still_run_settles() {
    let fence = fence_over(&Script::new(&[kept("42", 33)]));
    let began = Clock::now();
    for (outcome, settles, waits) in [
        (Outcome::Completed, true, false),
        (Outcome::NotForwarded, true, false),
        (Outcome::Unknown, false, false),
        (Outcome::Unknown, true, true),
    ] {
        let mark = fence.key(&k("42")).unwrap().unwrap().mark.counter();
        let (_, permit) = send(&fence, claim(mark)).await;
        permit.ended(outcome, settles);
        drop(fence.admit(claim(mark + 1)).await.unwrap());
        assert_eq!(!began.elapsed().is_zero(), waits, "{outcome:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_came_back_unsent_is_compared_and_sent_again() {
    let fence = fence_over(&Script::new(&[kept("42", 33)]));
    let (_, permit) = send(&fence, claim(33)).await;
    let again = permit.unsent();
    assert_eq!(fence.totals().in_flight, 0);
    let (_write, handle) = Write::new();
    let permit = again.send(&handle).unwrap();
    assert_eq!(fence.totals().in_flight, 1);
    // A newer token waits for it, and takes over as soon as it comes back.
    let newer = begin(&fence, claim(34)).await;
    let again = permit.unsent();
    assert!(newer.await.is_ok());
    let refusal = again.send(&handle).err().unwrap();
    assert_eq!(refusal.reason, Reason::StaleToken);
    assert_eq!(refusal.mark, Some(t(34)));
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn an_admission_that_is_dropped_lets_its_lanes_go() {
    let fence = fence_over(&Script::new(&[kept("a", 1), kept("b", 1)]));
    let both = claim_of(&[("a", 2), ("b", 2)]);
    let admission = fence.admit(both.clone()).await.unwrap();
    assert_eq!(admission.claim().keys.len(), 2);
    drop(admission);
    assert_all_freed(&fence);
    let (_, permit) = send(&fence, both).await;
    drop(permit.unsent());
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_leaves_the_queue_and_the_mark() {
    let fence = fence_over(&Script::new(&[kept("42", 33)]));
    let (_, permit) = send(&fence, claim(33)).await;
    let waiting = begin(&fence, claim(34)).await;
    assert_eq!(fence.totals().waiting, 1);
    drop(waiting);
    assert_eq!(fence.totals().waiting, 0);
    assert_eq!(reason(fence.admit(claim(33)).await), Reason::StaleToken);
    permit.ended(Outcome::Completed, false);
    assert_all_freed(&fence);
    assert_eq!(fence.key(&k("42")).unwrap().unwrap().mark, t(34));
}

#[tokio::test(start_paused = true)]
async fn without_a_cache_every_answer_is_the_same() {
    // G7
    let script = [33, 34, 33, 34, 40, 39, 40, 41];
    let mut answers = Vec::new();
    for cache in [CACHE, 0] {
        let store = Script::new(&[kept("42", 33)]);
        let fence = Fence::new(Arc::clone(&store) as Arc<dyn Store>, cache);
        let mut these = Vec::new();
        for token in script {
            let admitted = fence.admit(claim(token)).await;
            these.push(admitted.err().map(|refusal| (refusal.reason, refusal.mark)));
            fence.table.evict();
        }
        answers.push(these);
        assert_eq!(store.mark(&k("42")).unwrap().mark, t(41));
        assert_all_freed(&fence);
    }
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test(start_paused = true)]
async fn a_hot_mark_is_not_read_again() {
    let store = Script::new(&[kept("42", 33)]);
    let fence = fence_over(&store);
    for _ in 0..3 {
        drop(fence.admit(claim(33)).await.unwrap());
    }
    assert_eq!(store.read.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_late_read_does_not_bring_an_old_mark_back() {
    // C14
    let store = Script::new(&[kept("42", 32)]);
    store.ask_before_reads();
    let fence = Fence::new(Arc::clone(&store) as Arc<dyn Store>, 0);
    let older = begin(&fence, claim(33)).await;
    let (_, late) = store.next_read();
    drop(older);
    assert_all_freed(&fence);
    let mut newer = begin(&fence, claim(34)).await;
    late.send(Ok(Some(kept("42", 32).record)));
    assert!(is_pending(&mut newer).await, "that was another read");
    store.answer_read();
    drop(newer.await.unwrap());
    let older = begin(&fence, claim(33)).await;
    store.answer_read();
    assert_eq!(reason(older.await), Reason::StaleToken);
}

#[tokio::test(start_paused = true)]
async fn the_cache_decides_nothing_while_there_is_a_lane() {
    let store = Script::new(&[kept("42", 33)]);
    let fence = fence_over(&store);
    drop(fence.admit(claim(33)).await.unwrap());
    assert_all_freed(&fence);
    let (_, newer) = send(&fence, claim(34)).await;
    // The cache still has 33, which it was told when the lane before was freed.
    assert_eq!(reason(fence.admit(claim(33)).await), Reason::StaleToken);
    newer.ended(Outcome::Completed, true);
    assert_eq!(reason(fence.admit(claim(33)).await), Reason::StaleToken);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_fails_is_refused_and_tried_again_by_the_next() {
    let store = Script::new(&[kept("42", 33)]);
    store.ask_before_reads();
    let fence = fence_over(&store);
    let first = begin(&fence, claim(33)).await;
    let second = begin(&fence, claim(34)).await;
    drop(store.next_read());
    assert_eq!(reason(first.await), Reason::StoreUnavailable);
    assert_eq!(reason(second.await), Reason::StoreUnavailable);
    assert_all_freed(&fence);
    let third = begin(&fence, claim(33)).await;
    store.answer_read();
    assert!(third.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_read_that_is_never_answered_is_refused_in_time() {
    let store = Script::new(&[]);
    store.ask_before_reads();
    let fence = fence_over(&store);
    let began = Clock::now();
    assert_eq!(
        reason(fence.admit(claim(1)).await),
        Reason::StoreUnavailable
    );
    assert_eq!(
        reason(fence.compare(claim(1)).await),
        Reason::StoreUnavailable
    );
    assert_eq!(began.elapsed(), TIMEOUT * 2);
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn the_limit_on_keys_is_for_new_keys() {
    let fence = fence_over(&Script::new(&[kept("old", 1)]));
    fence.limit_keys(Some(2));
    assert!(fence.admit(claim_of(&[("new", 1)])).await.is_ok());
    assert_eq!(fence.totals().keys, 2);
    assert_eq!(
        reason(fence.admit(claim_of(&[("newer", 1)])).await),
        Reason::Busy
    );
    assert!(fence.admit(claim_of(&[("old", 2)])).await.is_ok());
    fence.limit_keys(None);
    assert!(fence.admit(claim_of(&[("newer", 1)])).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_new_token_is_not_one_that_somebody_has_come_with() {
    let fence = fence_over(&Script::new(&[kept("old", 7)]));
    let advance = |key: &str, counter| fence.admit(claim_of(&[(key, counter)])).advancing();
    assert_eq!(reason(advance("old", 6).await), Reason::StaleToken);
    assert_eq!(reason(advance("old", 7).await), Reason::StaleToken);
    assert!(advance("old", 8).await.is_ok());
    assert_eq!(reason(advance("old", 8).await), Reason::StaleToken);
    assert!(advance("new", 1).await.is_ok());
    // Having raised the mark it waits for older writes as any other does.
    let (write, permit) = send(&fence, claim(1)).await;
    let mut waits = fence.admit(claim(2)).advancing();
    assert!(is_pending(&mut waits).await && is_pending(&mut waits).await);
    permit.ended(Outcome::Completed, true);
    assert!(waits.await.is_ok());
    drop(write);
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_the_keys_of_a_namespace_are_held() {
    let mut draining = kept("draining", 7);
    draining.record.draining = true;
    let store = Script::new(&[kept("42", 33), draining]);
    let fence = fence_over(&store);
    let until = admission::now() + SETTLE;
    fence.hold("objects", until);
    // The longer of two holds counts.
    fence.hold("objects", until - Duration::from_secs(5));
    assert!(!fence.is_quiet());
    let began = Clock::now();
    assert!(fence.admit(claim(33)).await.is_ok(), "an equal token");
    assert!(fence.admit(claim_of(&[("new", 1)])).await.is_ok());
    let mut other = claim(1);
    other.keys[0] = Key::new("others", "42");
    assert!(fence.admit(other).await.is_ok());
    assert_eq!(began.elapsed(), Duration::ZERO);
    let mut orphaned = begin(&fence, claim_of(&[("draining", 7)])).await;
    drop(fence.admit(claim(34)).await.unwrap());
    assert!(began.elapsed() >= SETTLE - Duration::from_millis(5));
    assert!(!is_pending(&mut orphaned).await);
    assert!(store.mark(&k("42")).unwrap().draining);
    assert!(fence.is_quiet());
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_outlasts_the_wait_is_told_as_settling() {
    let fence = fence_over(&Script::new(&[kept("42", 33)]));
    fence.hold("objects", admission::now() + TIMEOUT * 3);
    assert_eq!(reason(fence.admit(claim(34)).await), Reason::Settling);
}

#[tokio::test(start_paused = true)]
async fn observed_requests_go_at_once_and_are_in_flight() {
    let store = Script::new(&[kept("42", 33)]);
    let fence = fence_over(&store);
    let (_, handle) = Write::new();
    // The mark is read once, and known from then on.
    assert!(fence.compare(claim(33)).await.is_ok());
    let stale = fence.observe(claim(32));
    let seen = Arc::clone(stale.observation().unwrap());
    assert_eq!(seen.would_refuse().unwrap().reason, Reason::StaleToken);
    let stale = stale.send(&handle).unwrap();
    // A write without a token is in flight as well, so that enforcing drains it.
    let bare = fence.observe(claim(0)).send(&handle).unwrap();
    let advance = fence.observe(claim(34));
    assert!(advance.observation().unwrap().would_refuse().is_none());
    assert_eq!(store.mark(&k("42")).unwrap().mark, t(34));
    assert_eq!(fence.totals().in_flight, 2);
    let mut enforced = begin(&fence, claim(34)).await;
    stale.ended(Outcome::Completed, false);
    assert!(is_pending(&mut enforced).await);
    bare.ended(Outcome::Completed, false);
    assert!(enforced.await.is_ok());
    let again = fence.observe(claim(34)).send(&handle).unwrap().unsent();
    drop(again);
    drop(advance);
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn observing_does_not_wait_for_a_mark_to_be_read() {
    let store = Script::new(&[kept("42", 33)]);
    store.ask_before_reads();
    let fence = fence_over(&store);
    let admission = fence.observe(claim(32));
    let seen = Arc::clone(admission.observation().unwrap());
    assert!(seen.would_refuse().is_none());
    store.answer_read();
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    assert_eq!(seen.would_refuse().unwrap().reason, Reason::StaleToken);
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn comparing_changes_nothing() {
    let store = Script::new(&[kept("42", 33)]);
    let fence = fence_over(&store);
    assert!(fence.compare(claim(40)).await.is_ok());
    assert_eq!(reason(fence.compare(claim(32)).await), Reason::StaleToken);
    assert_eq!(store.mark(&k("42")).unwrap().mark, t(33));
    assert!(store.committed.lock().unwrap().is_empty());
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn several_keys_are_one_record_and_in_flight_together() {
    // More keys than shards: some share one.
    let names: Vec<String> = (0..100).map(|name| name.to_string()).collect();
    let keys: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 5)).collect();
    let store = Script::new(&[]);
    let fence = fence_over(&store);
    let (_, permit) = send(&fence, claim_of(&keys)).await;
    assert_eq!(*store.committed.lock().unwrap(), [100]);
    assert_eq!(fence.totals().in_flight, 100);
    let one = begin(&fence, claim_of(&[("99", 6)])).await;
    permit.ended(Outcome::Completed, false);
    assert!(one.await.is_ok());
    let stale = claim_of(&[("1", 6), ("99", 5)]);
    assert_eq!(reason(fence.admit(stale).await), Reason::StaleToken);
    assert_eq!(store.mark(&k("1")).unwrap().mark, t(5));
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn a_copy_is_not_sent_beside_an_older_write_on_its_source() {
    let fence = fence_over(&Script::new(&[kept("source", 10), kept("target", 1)]));
    let mut copy = claim_of(&[("source", 20), ("target", 1)]);
    copy.asks[0].access = Access::Read;
    let admission = fence.admit(copy).await.unwrap();
    let (_, between) = send(&fence, claim_of(&[("source", 15)])).await;
    let (_, handle) = Write::new();
    let refusal = admission.send(&handle).err().unwrap();
    assert_eq!(refusal.reason, Reason::Draining);
    assert_eq!(refusal.outcome, Outcome::NotForwarded);
    between.ended(Outcome::Completed, false);
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn a_read_holds_nobody_and_drains_like_a_write() {
    let fence = fence_over(&Script::new(&[kept("42", 33)]));
    let mut reads = claim(33);
    reads.write = false;
    let (_, permit) = send(&fence, reads).await;
    assert!(!permit.is_write());
    let (write, write_permit) = send(&fence, claim(34)).await;
    let mut reads = claim(35);
    reads.write = false;
    let waiting = begin(&fence, reads).await;
    assert_eq!(write.drained.load(Ordering::SeqCst), 1);
    write_permit.ended(Outcome::Completed, false);
    assert!(waiting.await.is_ok());
    drop(permit);
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn everything_in_flight_can_be_cut() {
    let fence = fence_over(&Script::new(&[]));
    let (one, first) = send(&fence, claim_of(&[("1", 1)])).await;
    let (two, second) = send(&fence, claim_of(&[("2", 1)])).await;
    *one.permit.lock().unwrap() = Some(first);
    *two.permit.lock().unwrap() = Some(second);
    assert!(!fence.is_namespace_quiet("objects"));
    assert!(fence.is_namespace_quiet("others"));
    fence.stop();
    assert_eq!(fence.totals().in_flight, 0);
    assert_eq!(fence.totals().unsettled, 2);
    tokio::time::sleep(SETTLE * 2).await;
    assert!(fence.is_quiet());
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn a_wait_without_end_is_no_overflow() {
    let fence = fence_over(&Script::new(&[kept("42", 33)]));
    let mut endless = claim(33);
    endless.drain.settle = Duration::MAX;
    let (_, permit) = send(&fence, endless).await;
    drop(permit);
    let mut patient = claim(34);
    patient.drain.timeout = Duration::MAX;
    let _waiting = begin(&fence, patient.clone()).await;
    assert!(fence.compare(patient).await.is_ok());
}

#[test]
fn lanes_of_several_keys_outlive_a_panic() {
    let fence = fence_over(&Script::new(&[]));
    let keys = [k("1"), k("2"), k("3")];
    let (_, handle) = Write::new();
    fence.table.with_lanes(&keys, true, |mut view| {
        view.lanes[1].begin(t(1), handle);
    });
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        fence
            .table
            .with_lanes(&keys, true, |_| panic!("on purpose"));
    }));
    assert!(panicked.is_err());
    assert_eq!(fence.totals().in_flight, 1);
}

#[test]
fn a_handle_is_dropped_when_the_lanes_are_let_go() {
    struct Curious(Fence, std::sync::mpsc::Sender<usize>);
    impl InFlight for Curious {
        fn drain(self: Arc<Self>, _: Uploads) {}
        fn cut(self: Arc<Self>, _: Cut) {}
    }
    impl Drop for Curious {
        fn drop(&mut self) {
            let _ = self.1.send(self.0.totals().in_flight);
        }
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let fence = fence_over(&Script::new(&[]));
            for unsent in [true, false] {
                let admission = fence.admit(claim(1)).await.unwrap();
                let handle: Handle = Arc::new(Curious(fence.clone(), sender.clone()));
                let permit = admission.send(&handle).unwrap();
                drop(handle);
                if unsent {
                    drop(permit.unsent());
                } else {
                    permit.ended(Outcome::Completed, false);
                }
            }
        });
    });
    for _ in 0..2 {
        let seen = receiver.recv_timeout(Duration::from_secs(10));
        assert_eq!(seen, Ok(0), "a handle was dropped under a lane's lock");
    }
}
