//! Marks that are set aside, forgotten and touched.

use super::*;

fn aside(fence: &Fence, key: &str) -> SetAside {
    fence.set_aside([k(key)])
}

fn is_aside(set_aside: &SetAside) -> bool {
    set_aside.keys().next().is_some()
}

/// Forgets the mark of `42`, which was `mark`, as the store does.
fn forget(store: &Script, aside: SetAside, mark: u64) {
    assert!(is_aside(&aside));
    store.forget(&k("42"), t(mark + 1));
    aside.forgotten(1);
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_key_is_compared_with_the_floor() {
    let store = Script::new(&[kept("42", 33)]);
    let fence = fence_over(&store);
    fence.turn(1);
    let (_, permit) = send(&fence, claim(34)).await;
    permit.ended(Outcome::Completed, false);
    fence.turn(2);
    forget(&store, aside(&fence, "42"), 34);
    assert_eq!(fence.totals().keys, 0);
    let stale = fence.admit(claim(34)).await.err().unwrap();
    assert_eq!(
        (stale.reason, stale.mark),
        (Reason::StaleToken, Some(t(35)))
    );
    assert_eq!(fence.mark(&k("42")).await.unwrap(), Some(t(35)));
    assert!(
        fence.key(&k("42")).unwrap().is_none(),
        "it has no mark of its own"
    );
    let (_, permit) = send(&fence, claim(35)).await;
    assert_eq!(
        store.mark(&k("42")).unwrap().mark,
        t(35),
        "it is kept before it is forwarded"
    );
    permit.ended(Outcome::Completed, false);
    assert_eq!(fence.totals().keys, 1);
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn a_key_with_a_lane_is_never_set_aside() {
    let store = Script::new(&[kept("42", 33)]);
    let fence = fence_over(&store);
    fence.forgets(["objects".into()]);
    fence.turn(1);
    let (_, permit) = send(&fence, claim(33)).await;
    fence.turn(2);
    fence.turn(3);
    let held = aside(&fence, "42");
    if is_aside(&held) {
        store.forget(&k("42"), t(100));
        held.forgotten(1);
    }
    permit.ended(Outcome::Completed, false);
    fence.table.evict();
    let (_, permit) = send(&fence, claim(33)).await;
    // What is unknown has to settle first.
    drop(permit);
    assert!(!is_aside(&aside(&fence, "42")));
    tokio::time::sleep(SETTLE * 2).await;
    fence.turn(4);
    assert!(is_aside(&aside(&fence, "42")));
}

#[tokio::test(start_paused = true)]
async fn whoever_comes_while_a_mark_is_set_aside_waits_for_what_is_left_of_it() {
    let store = Script::new(&[kept("42", 33)]);
    let fence = fence_over(&store);
    fence.turn(1);
    let kept = aside(&fence, "42");
    let mut equal = fence.admit(claim(33));
    let mut left = fence.admit(claim(33));
    assert!(is_pending(&mut equal).await && is_pending(&mut left).await);
    drop(left);
    assert!(!is_aside(&aside(&fence, "42")), "it is set aside already");
    drop(kept);
    drop(equal.await.unwrap());
    fence.table.evict();
    // And once more, and then it is forgotten.
    fence.turn(2);
    let gone = aside(&fence, "42");
    let mut older = fence.admit(claim(33));
    let mut newer = fence.admit(claim(40));
    assert!(is_pending(&mut older).await && is_pending(&mut newer).await);
    forget(&store, gone, 33);
    assert_eq!(reason(older.await), Reason::StaleToken);
    drop(newer.await.unwrap());
    assert_all_freed(&fence);
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_everybody_left_stays_until_its_mark_is_put_back() {
    let store = Script::new(&[kept("42", 33)]);
    let fence = fence_over(&store);
    let gone = aside(&fence, "42");
    let mut left = fence.admit(claim(33));
    assert!(is_pending(&mut left).await);
    drop(left);
    // Read now, the mark would be found, and be gone a moment later.
    let mut next = fence.admit(claim(33));
    assert!(is_pending(&mut next).await);
    assert_eq!(store.read.load(Ordering::SeqCst), 0);
    forget(&store, gone, 33);
    assert_eq!(reason(next.await), Reason::StaleToken);
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_is_not_in_the_cache() {
    let store = Script::new(&[kept("42", 33)]);
    let fence = fence_over(&store);
    fence.turn(1);
    drop(fence.admit(claim(33)).await.unwrap());
    assert!(
        !is_aside(&aside(&fence, "42")),
        "it was used in this period"
    );
    fence.turn(2);
    forget(&store, aside(&fence, "42"), 33);
    assert_eq!(reason(fence.admit(claim(33)).await), Reason::StaleToken);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_set_aside_under_the_hold_after_a_crash() {
    let store = Script::new(&[kept("42", 33)]);
    let fence = fence_over(&store);
    fence.hold("objects", admission::now() + SETTLE);
    assert!(!is_aside(&aside(&fence, "42")));
    tokio::time::sleep(SETTLE * 2).await;
    assert!(is_aside(&aside(&fence, "42")));
}

#[tokio::test(start_paused = true)]
async fn what_is_used_is_touched_once_in_a_period() {
    let store = Script::new(&[kept("42", 33), kept("43", 33)]);
    let fence = fence_over(&store);
    fence.forgets(["objects".into()]);
    let commits = || store.committed.lock().unwrap().len();
    let used = |key: &'static str| {
        let fence = fence.clone();
        async move { drop(fence.admit(claim_of(&[(key, 33)])).await.unwrap()) }
    };
    fence.turn(1);
    used("42").await;
    assert_eq!(commits(), 0, "what is read from the store is touched there");
    fence.turn(2);
    assert_eq!(commits(), 0, "it has no lane");
    used("42").await;
    used("42").await;
    assert_eq!(commits(), 1);
    // Nobody is in between: a lane that lives on is touched when the period begins.
    let (_, permit) = send(&fence, claim_of(&[("43", 33)])).await;
    fence.turn(3);
    fence.turn(3);
    assert_eq!(commits(), 2);
    permit.ended(Outcome::Completed, false);
    assert_eq!(commits(), 2);
}
