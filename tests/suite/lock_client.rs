//! The example client of the lock service: its guard, against the real binary.

#[allow(dead_code, reason = "each test crate uses its own part of this module")]
use std::time::{Duration, Instant};

use crate::common::{Stage, eventually};
use crate::guard::{Guard, acquire};
use fencegate::lease::{Ask, ClientError};
use http::Request;
use serde_json::Value;

const KEY: &str = "objects/42";

fn stage() -> Stage {
    Stage::with(|config| {
        config
            .settle("100ms")
            .set("locks.address", "127.0.0.1:0")
            .fence("trust", "issued")
    })
}

fn ask(holder: &str, ttl_ms: u64, wait: Duration) -> Ask {
    Ask {
        key: KEY.to_owned(),
        holder: holder.to_owned(),
        ttl: Duration::from_millis(ttl_ms),
        wait,
    }
}

async fn take(stage: &Stage, holder: &str, ttl_ms: u64) -> Result<Guard, ClientError> {
    let url = format!("http://{}", stage.gateway.locks());
    acquire(&url, None, ask(holder, ttl_ms, Duration::from_secs(20))).await
}

/// What the gateway says of a write with what the guard puts into it; `None` where it puts nothing.
fn write(stage: &Stage, guard: &Guard) -> Option<u16> {
    let mut request = Request::new(());
    guard.authorize(&mut request).ok()?;
    let mut write = crate::common::Request::put("/objects/42");
    for (name, value) in request.headers() {
        write = write.header(name.as_str(), value.to_str().unwrap());
    }
    Some(stage.send(&write).status)
}

fn holder(stage: &Stage) -> Value {
    stage.gateway.lock_view(KEY).json()["holder"].clone()
}

fn given_back(stage: &Stage) {
    eventually("it is given back", || holder(stage).is_null().then_some(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_carries_its_token_is_renewed_and_gives_the_lock_back() {
    let stage = stage();
    let guard = take(&stage, "a", 600).await.unwrap();
    assert_eq!((guard.key(), guard.token()), (KEY, "1"));
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        assert_eq!(write(&stage, &guard), Some(200));
        assert_eq!(holder(&stage), "a", "it is renewed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let sent = stage.recorder.last();
    assert_eq!(sent.header("fencing-token"), Some("1"));
    assert_eq!(sent.header("fencing-holder"), Some("a"));
    let done = guard.run(async { 7 }).await;
    assert_eq!(done.unwrap(), 7);
    assert!(guard.release().await, "it was held to the end");
    assert!(holder(&stage).is_null());
    let guard = take(&stage, "b", 600).await.unwrap();
    assert_eq!(guard.token(), "2");
    drop(guard);
    given_back(&stage);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_lost_is_told_and_ends_the_work() {
    let stage = stage();
    let guard = take(&stage, "a", 900).await.unwrap();
    let raised = stage.gateway.raise_call(KEY, "50");
    assert_eq!(raised.send(stage.gateway.admin).status, 200);
    let began = Instant::now();
    let work = guard.run(std::future::pending::<()>()).await;
    assert!(work.unwrap_err().to_string().contains("409"));
    // It was told by a renewal, which comes at a third of the time.
    assert!(began.elapsed() < Duration::from_millis(900));
    assert_eq!(write(&stage, &guard), None, "no token for a lost lease");
    guard.lost().await;
    assert!(!guard.release().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_is_gone_costs_the_lease_at_its_deadline() {
    let mut stage = stage();
    let before = Instant::now();
    let guard = take(&stage, "a", 1200).await.unwrap();
    stage.gateway.kill();
    guard.check().unwrap();
    guard.lost().await;
    let took = before.elapsed();
    // It may have been renewed once by then, and not after the gateway's end.
    assert!(
        took >= Duration::from_millis(1200) - Duration::from_millis(5),
        "{took:?}"
    );
    assert!(guard.check().is_err());
}

/// One thread for everything: as it sleeps nobody renews, as in a process that is stopped.
#[tokio::test]
async fn whoever_stood_still_past_its_deadline_knows_it_before_anything_is_told() {
    let stage = stage();
    let guard = take(&stage, "a", 1000).await.unwrap();
    assert_eq!(write(&stage, &guard), Some(200));
    std::thread::sleep(Duration::from_millis(1050));
    assert!(guard.check().is_err(), "the clock is asked");
    assert_eq!(write(&stage, &guard), None);
    let url = format!("http://{}", stage.gateway.locks());
    let other = acquire(&url, None, ask("b", 5000, Duration::from_secs(20)));
    let other = other.await.unwrap();
    assert_eq!(other.token(), "2");
    // Whoever writes all the same is refused by the gateway.
    let blind = crate::common::Request::put("/objects/42").token(guard.token());
    assert_eq!(write(&stage, &other), Some(200));
    stage
        .send(&blind)
        .assert_fenced(409, "stale-token", "a blind write");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_get_it_in_time_is_told_why() {
    let stage = stage();
    let guard = take(&stage, "a", 5000).await.unwrap();
    let url = format!("http://{}", stage.gateway.locks());
    let refused = acquire(&url, None, ask("b", 5000, Duration::ZERO)).await;
    assert!(matches!(refused, Err(ClientError::Refused(status, _)) if status == 409));
    let waits = tokio::spawn(async move {
        let waited = acquire(&url, None, ask("b", 300, Duration::from_secs(20))).await;
        waited.unwrap().token().to_owned()
    });
    eventually("it waits", || {
        (stage.gateway.lock_view(KEY).json()["waiting"] == 1).then_some(())
    });
    assert!(guard.release().await);
    assert_eq!(waits.await.unwrap(), "2");
}
