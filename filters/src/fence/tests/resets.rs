//! Resets of marks, and the clocks around them.

use super::*;
use crate::fence::ResetError;

fn drain(on_timeout: OnTimeout) -> Drain {
    Drain {
        on_timeout,
        ..claim(1).drain
    }
}

fn reset(fence: &Fence, from: u64, to: u64) -> Reset {
    fence.reset(k("42"), t(from), t(to), drain(OnTimeout::Refuse))
}

/// Polls it until it waits for something; once more where the mark is read at once.
async fn waits(reset: &mut Reset) {
    for _ in 0..2 {
        let pending =
            std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *reset).poll(cx).is_pending()));
        assert!(pending.await, "it waits for nothing");
    }
}

fn mark(store: &Script) -> (Token, u64) {
    let record = store.mark(&k("42")).unwrap();
    (record.mark, record.resets)
}

#[tokio::test(start_paused = true)]
async fn it_ends_when_what_is_in_flight_has_ended_and_settled() {
    let store = Script::new(&[kept("42", 50)]);
    let fence = fence_over(&store);
    let (older, permit) = send(&fence, claim(50)).await;
    let mut reset = reset(&fence, 50, 34);
    waits(&mut reset).await;
    assert_eq!(older.drained.load(Ordering::SeqCst), 1);
    assert_eq!(reason(fence.admit(claim(51)).await), Reason::Draining);
    assert_eq!(reason(fence.admit(claim(49)).await), Reason::StaleToken);
    let began = Clock::now();
    drop(permit);
    assert_eq!(reset.await, Ok(()));
    assert_eq!(began.elapsed(), SETTLE);
    assert_eq!(mark(&store), (t(34), 1));
    assert!(fence.admit(claim(34)).await.is_ok());
    assert!(fence.admit(claim(35)).await.is_ok());
    assert_eq!(mark(&store), (t(35), 1));
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_drained_in_time_leaves_the_mark_and_the_lane() {
    let store = Script::new(&[kept("42", 50)]);
    let fence = fence_over(&store);
    let (_older, permit) = send(&fence, claim(50)).await;
    let began = Clock::now();
    assert_eq!(reset(&fence, 50, 34).await, Err(ResetError::InFlight));
    assert_eq!(began.elapsed(), TIMEOUT);
    assert!(fence.admit(claim(50)).await.is_ok());
    drop(permit);
    let short = Drain {
        timeout: Duration::from_secs(1),
        ..drain(OnTimeout::Refuse)
    };
    let unsettled = fence.reset(k("42"), t(50), t(34), short);
    assert_eq!(unsettled.await, Err(ResetError::Unsettled));
    assert_eq!(mark(&store), (t(50), 0));
    tokio::time::sleep(SETTLE).await;
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn a_cut_at_the_timeout_settles_first() {
    let store = Script::new(&[kept("42", 50)]);
    let fence = fence_over(&store);
    let (older, permit) = send(&fence, claim(50)).await;
    *older.permit.lock().unwrap() = Some(permit);
    let began = Clock::now();
    let cutting = fence.reset(k("42"), t(50), t(34), drain(OnTimeout::Cut));
    assert_eq!(cutting.await, Ok(()));
    assert_eq!(older.cut.load(Ordering::SeqCst), 1);
    assert_eq!(began.elapsed(), TIMEOUT + SETTLE);
    assert_eq!(mark(&store), (t(34), 1));
}

#[tokio::test(start_paused = true)]
async fn an_admitted_request_is_waited_for_and_refused() {
    let fence = fence_over(&Script::new(&[kept("42", 50)]));
    let admission = fence.admit(claim(50)).await.unwrap();
    let dropped = fence.admit(claim(50)).await.unwrap();
    let mut reset = reset(&fence, 50, 34);
    waits(&mut reset).await;
    let (_, handle) = Write::new();
    assert_eq!(reason(admission.send(&handle)), Reason::Draining);
    waits(&mut reset).await;
    drop(dropped);
    assert_eq!(reset.await, Ok(()));
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn the_hold_after_a_crash_is_waited_for() {
    let mut raised = kept("42", 50);
    raised.record.draining = true;
    let store = Script::new(&[raised]);
    let fence = fence_over(&store);
    fence.hold("objects", Clock::now().into_std() + SETTLE);
    let began = Clock::now();
    assert_eq!(reset(&fence, 50, 34).await, Ok(()));
    assert_eq!(began.elapsed(), SETTLE);
    assert!(!store.mark(&k("42")).unwrap().draining);
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_keeps_the_mark_whatever_the_disk_has() {
    let store = Script::new(&[kept("42", 50)]);
    let fence = fence_over(&store);
    store.ask_before_commits();
    let mut failing = reset(&fence, 50, 34);
    waits(&mut failing).await;
    store.fail_commit();
    assert_eq!(failing.await, Err(ResetError::Store));
    assert_eq!(reason(fence.admit(claim(49)).await), Reason::StaleToken);
    let equal = begin(&fence, claim(50)).await;
    store.commit_next();
    assert!(equal.await.is_ok());
    assert_eq!(mark(&store), (t(50), 1));
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn dropped_it_leaves_the_mark_or_ends_by_itself() {
    let store = Script::new(&[kept("42", 50)]);
    let fence = fence_over(&store);
    let (_older, permit) = send(&fence, claim(50)).await;
    let mut early = reset(&fence, 50, 34);
    waits(&mut early).await;
    drop(early);
    permit.ended(Outcome::Completed, false);
    assert!(fence.admit(claim(50)).await.is_ok());
    store.ask_before_commits();
    let mut late = reset(&fence, 50, 34);
    waits(&mut late).await;
    drop(late);
    assert_eq!(reason(fence.admit(claim(50)).await), Reason::Draining);
    store.commit_next();
    assert_eq!(mark(&store), (t(34), 1));
    assert!(fence.admit(claim(34)).await.is_ok());
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_the_wait() {
    let fence = fence_over(&Script::new(&[kept("42", 50)]));
    let (_older, _permit) = send(&fence, claim(50)).await;
    let mut reset = reset(&fence, 50, 34);
    waits(&mut reset).await;
    fence.stop();
    assert_eq!(reset.await, Err(ResetError::Stopping));
}

#[tokio::test(start_paused = true)]
async fn only_the_mark_as_it_is_and_only_down() {
    let fence = fence_over(&Script::new(&[kept("42", 50)]));
    assert_eq!(reset(&fence, 50, 50).await, Err(ResetError::NotLower));
    assert_eq!(reset(&fence, 51, 34).await, Err(ResetError::Mark(t(50))));
    let none = fence.reset(k("43"), t(2), t(1), drain(OnTimeout::Refuse));
    assert_eq!(none.await, Err(ResetError::NoMark));
    let (_older, _permit) = send(&fence, claim(50)).await;
    let mut first = reset(&fence, 50, 34);
    waits(&mut first).await;
    assert_eq!(reset(&fence, 50, 33).await, Err(ResetError::UnderWay));
    waits(&mut first).await;
}

#[tokio::test(start_paused = true)]
async fn a_late_read_or_the_cache_does_not_bring_the_old_mark_back() {
    let store = Script::new(&[kept("42", 50)]);
    let fence = fence_over(&store);
    assert!(fence.admit(claim(50)).await.is_ok());
    assert_eq!(reset(&fence, 50, 34).await, Ok(()));
    assert!(fence.admit(claim(34)).await.is_ok());
    fence.table.evict();
    assert!(fence.admit(claim(34)).await.is_ok());
    assert_eq!(reason(fence.admit(claim(33)).await), Reason::StaleToken);
}
