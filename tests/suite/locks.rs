//! The lock service over real sockets: who has a lock, for how long, and who is next.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::locks::{KEY, token, write};
use crate::common::{Connection, Request, Stage, eventually};
use serde_json::json;

#[test]
fn a_lock_is_held_renewed_and_given_back() {
    let stage = Stage::locking();
    let answer = stage.acquire("pod-a");
    assert_eq!(
        answer.json(),
        json!({ "key": KEY, "token": "1", "holder": "pod-a", "ttl_ms": 30_000 })
    );
    let refused = stage.acquire("pod-b");
    refused.assert_fenced(409, "lock-held", "it is held");
    assert_eq!(refused.json()["holder"], "pod-a");
    let after: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&after), "{after}");
    stage
        .acquire("pod-a")
        .assert_fenced(409, "lock-held", "it is not re-entrant");
    let view = stage.view();
    assert_eq!(
        (&view["holder"], &view["token"]),
        (&json!("pod-a"), &json!("1"))
    );
    assert!(view["expires_in_ms"].as_u64().unwrap() <= 30_000);
    assert_eq!(stage.renew("1", 60_000).json()["ttl_ms"], 60_000);
    stage
        .renew("2", 60_000)
        .assert_fenced(409, "lock-lost", "another token");
    stage
        .release("2")
        .assert_fenced(409, "lock-lost", "another token");
    assert_eq!(stage.release("1").status, 204);
    stage.release("1").assert_fenced(409, "lock-lost", "twice");
    stage
        .renew("1", 1000)
        .assert_fenced(409, "lock-lost", "after it was released");
    let view = stage.view();
    assert!(
        view["token"].is_null() && view["holder"].is_null(),
        "{view}"
    );
    assert_eq!(token(&stage.acquire("pod-b")), "2");
}

#[test]
fn a_grant_fences_from_the_moment_it_is_told() {
    let stage = Stage::locking();
    let first = token(&stage.acquire("pod-a"));
    stage.send(&write(&first)).assert_ok("the holder writes");
    let slow = stage.slow_write(&first);
    assert_eq!(stage.release(&first).status, 204, "it does not wait");
    let next = stage.queue_up("pod-b", 0);
    stage.gateway.wait_mark(KEY, "2");
    stage
        .send(&write(&first))
        .assert_fenced(409, "stale-token", "the mark is raised");
    assert!(!next.is_finished(), "the older write is in flight");
    stage
        .acquire("pod-c")
        .assert_fenced(409, "lock-held", "it is being granted");
    slow.end();
    let ended = stage.recorder.ended("slow").ended.unwrap();
    assert_eq!(token(&next.join().unwrap()), "2");
    assert!(stage.recorder.now() > ended);
    stage.send(&write("2")).assert_ok("the new holder writes");
    stage.recorder.history().assert_ordered();
}

#[test]
fn a_view_tells_of_a_lease_once_its_holder_is_told_and_not_before() {
    let stage = Stage::locking();
    let first = token(&stage.acquire("pod-a"));
    let slow = stage.slow_write(&first);
    stage.release(&first);
    let next = stage.queue_up("pod-b", 0);
    stage.gateway.wait_mark(KEY, "2");
    let list = Request::get("/v1/locks").host("localhost");
    let listed = |stage: &Stage| list.send(stage.locks()).json()["locks"][0].clone();
    let held = |stage: &Stage| stage.gateway.metric("fencegate_locks_held", &[]);
    let nobody = json!({
        "key": KEY, "holder": null, "token": null, "expires_in_ms": null, "waiting": 0,
    });
    assert_eq!(stage.view(), nobody);
    assert_eq!(listed(&stage), nobody);
    assert!(held(&stage) < 0.5);
    assert!(!next.is_finished(), "the older write is in flight");
    slow.end();
    assert_eq!(token(&next.join().unwrap()), "2");
    for view in [stage.view(), listed(&stage)] {
        let named = (&view["holder"], &view["token"]);
        assert_eq!(named, (&json!("pod-b"), &json!("2")));
        assert!(view["expires_in_ms"].as_u64().unwrap() <= 30_000, "{view}");
    }
    assert!(held(&stage) > 0.5);
}

#[test]
fn a_drain_that_takes_too_long_burns_the_token_and_serves_the_next() {
    let stage = Stage::locking_with(|config| config.fence("drain", json!({ "timeout": "300ms" })));
    let first = token(&stage.acquire("pod-a"));
    let slow = stage.slow_write(&first);
    stage.release(&first);
    let burnt = stage.queue_up("pod-b", 0);
    stage.gateway.wait_mark(KEY, "2");
    let next = stage.queue_up("pod-c", 20_000);
    stage.wait_for_waiting(1);
    burnt
        .join()
        .unwrap()
        .assert_fenced(503, "draining", "the older write is in flight");
    stage.gateway.wait_mark(KEY, "3");
    slow.end();
    let answer = next.join().unwrap();
    // Its own drain may have been too long as well, by then.
    if answer.status == 503 {
        assert_eq!(token(&stage.acquire("pod-c")), "4");
    } else {
        assert_eq!(token(&answer), "3");
    }
}

#[test]
fn those_that_wait_get_it_in_the_order_in_which_they_came() {
    let stage = Stage::locking();
    let mut held = token(&stage.acquire("pod-0"));
    let mut waiters = Vec::new();
    for n in 1..=5 {
        waiters.push(stage.queue_up(&format!("pod-{n}"), 60_000));
        stage.wait_for_waiting(n);
    }
    for (n, waiter) in waiters.into_iter().enumerate() {
        assert_eq!(stage.release(&held).status, 204);
        let answer = waiter.join().unwrap();
        held = token(&answer);
        assert_eq!(held, (n + 2).to_string());
    }
}

#[test]
fn whoever_leaves_the_queue_is_not_served() {
    let stage = Stage::locking();
    let held = token(&stage.acquire("pod-a"));
    let mut gone = Connection::open(stage.locks());
    gone.send(stage.acquiring("pod-b", 30_000, 60_000).whole());
    stage.wait_for_waiting(1);
    let next = stage.queue_up("pod-c", 60_000);
    stage.wait_for_waiting(2);
    gone.abort();
    stage.wait_for_waiting(1);
    stage.release(&held);
    assert_eq!(next.join().unwrap().json()["holder"], "pod-c");
}

#[test]
fn whoever_leaves_while_its_grant_drains_frees_the_lock_unless_it_may_ask_again() {
    for named in [false, true] {
        let stage = Stage::locking();
        let first = token(&stage.acquire("pod-a"));
        let slow = stage.slow_write(&first);
        stage.release(&first);
        let mut body = json!({ "holder": "pod-b", "ttl_ms": 60_000, "wait_ms": 0 });
        if named {
            body["request_id"] = json!("r-1");
        }
        let call = stage.gateway.lock_call(KEY, "acquire", &body);
        let mut gone = Connection::open(stage.locks());
        gone.send(call.whole());
        stage.gateway.wait_mark(KEY, "2");
        gone.abort();
        if named {
            let again = call.spawn(stage.locks());
            stage
                .acquire("pod-c")
                .assert_fenced(409, "lock-held", "its time decides");
            assert!(
                !again.is_finished(),
                "it waits for the drain as the first did"
            );
            slow.let_go();
            assert_eq!(token(&again.join().unwrap()), "2", "the same grant");
            assert_eq!(token(&call.send(stage.locks())), "2", "and again");
            stage.release("2");
            call.send(stage.locks())
                .assert_fenced(409, "lock-lost", "what it got is over");
        } else {
            // The next in line has it while the older write is in flight.
            let next = stage.queue_up("pod-c", 60_000);
            stage.gateway.wait_mark(KEY, "3");
            slow.let_go();
            assert_eq!(token(&next.join().unwrap()), "3");
        }
        slow.end();
        stage.recorder.history().assert_ordered();
    }
}

#[test]
fn a_lease_expires_and_is_handed_on() {
    let stage = Stage::locking();
    let answer = stage.acquiring("pod-a", 400, 0).send(stage.locks());
    let (first, began) = (token(&answer), Instant::now());
    let next = stage.queue_up("pod-b", 20_000);
    let second = token(&next.join().unwrap());
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(390), "{took:?}");
    stage
        .renew(&first, 400)
        .assert_fenced(409, "lock-lost", "it has expired");
    stage
        .send(&write(&first))
        .assert_fenced(409, "stale-token", "whoever stalled past its lease");
    stage.send(&write(&second)).assert_ok("the holder");
}

#[test]
fn a_renewed_lease_lasts() {
    let stage = Stage::locking();
    let answer = stage.acquiring("pod-a", 2_000, 0).send(stage.locks());
    let (first, began) = (token(&answer), Instant::now());
    let next = stage.queue_up("pod-b", 20_000);
    stage.wait_for_waiting(1);
    while began.elapsed() < Duration::from_secs(3) {
        assert_eq!(stage.renew(&first, 2_000).status, 200);
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(!next.is_finished());
    assert_eq!(token(&next.join().unwrap()), "2", "and then it expires");
}

#[test]
fn a_mark_above_the_token_ends_the_lease_whoever_raised_it() {
    let stage = Stage::locking();
    let first = token(&stage.acquire("pod-a"));
    let next = stage.queue_up("pod-b", 20_000);
    stage.wait_for_waiting(1);
    stage.raise("/objects/42", "34");
    stage
        .renew(&first, 1000)
        .assert_fenced(409, "lock-lost", "a newer token was seen");
    let second = token(&next.join().unwrap());
    assert_eq!(second, "35", "foreign tokens are overtaken, not repeated");
    assert_eq!(stage.release(&second).status, 204);
    stage.raise("/objects/42", "7.18446744073709551615");
    assert_eq!(token(&stage.acquire("pod-c")), "8.1", "the next epoch");
}

#[test]
fn tokens_are_not_repeated_after_a_reset_of_the_mark_either() {
    let stage = Stage::locking();
    for n in 1..=5 {
        let token = token(&stage.acquire("pod-a"));
        assert_eq!(token, n.to_string());
        stage.release(&token);
    }
    let reset = stage.gateway.reset_call(KEY, "5", "2");
    assert_eq!(reset.send(stage.gateway.admin).status, 200);
    assert_eq!(token(&stage.acquire("pod-a")), "6");
}

#[test]
fn a_mark_is_not_reset_below_the_token_of_a_holder() {
    let stage = Stage::locking();
    let first = token(&stage.acquire("pod-a"));
    stage.release(&first);
    let second = token(&stage.acquire("pod-b"));
    let reset = stage.gateway.reset_call(KEY, &second, &first);
    let refused = reset.send(stage.gateway.admin);
    refused.assert_fenced(409, "lock-held", "another could write beside pod-b");
    stage
        .send(&write(&first))
        .assert_fenced(409, "stale-token", "the mark is as it was");
    stage.release(&second);
    assert_eq!(reset.send(stage.gateway.admin).status, 200);
}

#[test]
fn leases_and_tokens_outlive_a_crash_with_their_whole_time() {
    for fence in [true, false] {
        let mut stage =
            Stage::locking_with(|config| config.settle("100ms").set("locks.fence_on_grant", fence));
        let answer = stage.acquiring("pod-a", 20_000, 0).send(stage.locks());
        let first = token(&answer);
        std::thread::sleep(Duration::from_secs(2));
        stage.gateway.kill();
        stage.gateway.restart();
        let view = stage.view();
        assert_eq!(view["holder"], "pod-a", "{view}");
        assert!(view["expires_in_ms"].as_u64().unwrap() > 18_000, "{view}");
        stage
            .acquire("pod-b")
            .assert_fenced(409, "lock-held", "after the crash");
        assert_eq!(stage.renew(&first, 60_000).status, 200);
        assert_eq!(stage.mark(KEY).is_some(), fence);
        stage.gateway.kill();
        stage.gateway.restart();
        let view = stage.view();
        assert!(
            view["expires_in_ms"].as_u64().unwrap() > 50_000,
            "a longer time is kept as well: {view}"
        );
        assert_eq!(stage.release(&first).status, 204);
        stage.gateway.kill();
        stage.gateway.restart();
        let view = stage.view();
        assert!(view["holder"].is_null(), "it stays released: {view}");
        assert_eq!(token(&stage.acquire("pod-b")), "2", "no token comes twice");
    }
}

#[test]
fn what_is_kept_of_locks_is_neither_a_mark_nor_lost_by_an_export() {
    let mut stage = Stage::locking_with(|config| {
        config
            .set("locks.fence_on_grant", false)
            .set("limits.keys", 1)
    });
    let first = token(&stage.acquire("pod-a"));
    stage.raise("/objects/7", "3");
    assert_eq!(stage.gateway.marks().len(), 1);
    let keys = stage.gateway.metric("fencegate_keys", &[]);
    assert!((keys - 1.0).abs() < 0.1, "{keys}");
    let held = stage.gateway.metric("fencegate_locks_held", &[]);
    assert!((held - 1.0).abs() < 0.1, "{held}");
    stage.release(&first);
    assert!(stage.gateway.terminate().success());
    let store = stage.gateway.store();
    let verified = crate::common::run(&["store", "verify", store.to_str().unwrap()]);
    assert!(verified.status.success(), "{verified:?}");
    let exported = crate::common::run(&["store", "export", store.to_str().unwrap()]);
    let lines = String::from_utf8(exported.stdout).unwrap();
    assert_eq!(lines.lines().count(), 2, "{lines}");
    std::fs::remove_dir_all(&store).unwrap();
    let mut import = crate::common::binary()
        .args(["store", "import", store.to_str().unwrap()])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut import.stdin.take().unwrap(), lines.as_bytes()).unwrap();
    assert!(import.wait().unwrap().success());
    stage.gateway.restart();
    assert_eq!(token(&stage.acquire("pod-a")), "2", "no token comes twice");
}

#[test]
fn too_many_who_wait_are_refused_and_the_others_go_on() {
    let stage = Stage::locking_with(|config| config.set("limits.waiting_per_key", 4));
    let held = token(&stage.acquire("pod-0"));
    let waiters: Vec<_> = (0..4)
        .map(|n| stage.queue_up(&format!("pod-{n}"), 60_000))
        .collect();
    stage.wait_for_waiting(4);
    let more = stage.acquiring("more", 1000, 10_000).send(stage.locks());
    more.assert_fenced(503, "busy", "a fifth");
    assert!(more.header("retry-after").is_some());
    let (mut held, mut waiters) = (held, waiters);
    while !waiters.is_empty() {
        assert_eq!(stage.release(&held).status, 204);
        let next = eventually("the next has it", || {
            waiters.iter().position(JoinHandle::is_finished)
        });
        held = token(&waiters.swap_remove(next).join().unwrap());
    }
}

#[test]
fn a_wait_ends_in_time_and_says_who_has_it() {
    let stage = Stage::locking();
    stage.acquire("pod-a");
    let began = Instant::now();
    let answer = stage.acquiring("pod-b", 1000, 300).send(stage.locks());
    answer.assert_fenced(409, "lock-held", "it waited");
    assert_eq!(answer.json()["holder"], "pod-a");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(300), "{took:?}");
    stage.wait_for_waiting(0);
}

/// Each takes the lock, writes twice with its token, and gives it back: no two holders' writes mix.
#[test]
fn the_writes_of_two_holders_never_mix() {
    let stage = Stage::locking();
    let workers: Vec<_> = (0..6)
        .map(|n| {
            let acquire = stage.acquiring(&format!("pod-{n}"), 30_000, 60_000);
            let (locks, http) = (stage.locks(), stage.http());
            std::thread::spawn(move || {
                for _ in 0..10 {
                    let token = token(&acquire.send(locks));
                    for part in ["begin", "end"] {
                        let write = write(&token).tag(part).send(http);
                        write.assert_ok("the holder writes");
                    }
                    let body = json!({ "token": token }).to_string();
                    let release = Request::new("POST", "/v1/locks/objects%2F42/release")
                        .host("localhost")
                        .body(body);
                    assert_eq!(release.send(locks).status, 204);
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    let history = stage.recorder.history();
    history.assert_ordered();
    let tokens: Vec<_> = history.0.iter().map(|write| write.token.unwrap()).collect();
    assert_eq!(tokens.len(), 120);
    for (n, pair) in tokens.chunks(2).enumerate() {
        let expected = crate::common::Token::from(n as u64 + 1);
        assert_eq!(pair, [expected, expected], "two holders' writes are mixed");
    }
}

#[test]
fn where_only_issued_tokens_are_trusted_no_other_raises_a_mark() {
    let stage = Stage::locking_with(|config| config.fence("trust", "issued"));
    let refused = stage.send(&write("1"));
    refused.assert_fenced(403, "unknown-token", "nothing was issued");
    assert_eq!(stage.mark(KEY), None);
    let first = token(&stage.acquire("pod-a"));
    stage.send(&write(&first)).assert_ok("the holder");
    for bomb in ["2", "7.1", "18446744073709551615"] {
        let refused = stage.send(&write(bomb));
        refused.assert_fenced(403, "unknown-token", bomb);
        assert_eq!(refused.json()["token"], bomb);
    }
    let read = Request::get("/objects/42").token("2");
    stage
        .send(&read)
        .assert_fenced(403, "unknown-token", "a read with a token");
    stage
        .send(&Request::get("/objects/42"))
        .assert_ok("a read without one");
    assert_eq!(stage.mark(KEY).as_deref(), Some("1"));
    stage.release(&first);
    stage
        .send(&write(&first))
        .assert_ok("issued, and no newer one is");
    stage.acquire("pod-b");
    stage
        .send(&write(&first))
        .assert_fenced(409, "stale-token", "it was handed on");
    let raised = stage.gateway.raise_call(KEY, "50");
    assert_eq!(raised.send(stage.gateway.admin).status, 200);
    stage
        .send(&write("50"))
        .assert_fenced(403, "unknown-token", "raised, and not issued");
    assert_eq!(token(&stage.acquire("pod-c")), "51");
    stage.send(&write("51")).assert_ok("the holder");
}

#[test]
fn observing_says_what_was_never_issued_and_raises_nothing() {
    let stage =
        Stage::locking_with(|config| config.fence("trust", "issued").fence("mode", "observe"));
    let answer = stage.send(&write("9"));
    answer.assert_ok("it is only observed");
    let decision = answer.header("fencing-decision").unwrap_or_default();
    assert!(decision.contains("unknown-token"), "{decision}");
    assert_eq!(stage.mark(KEY), None);
    let first = token(&stage.acquire("pod-a"));
    let answer = stage.send(&write(&first));
    answer.assert_ok("the holder");
    assert_eq!(answer.header("fencing-decision"), None);
}

#[test]
fn ten_thousand_who_wait_for_one_lock_are_bounded() {
    let stage = Stage::locking();
    let locks = stage.locks();
    // For longer than all of it takes.
    let held = stage.acquiring("pod-0", 3_600_000, 0).send(locks);
    let before = stage.gateway.resident_kib();
    let call = stage.acquiring("pod-n", 30_000, 600_000).whole();
    let mut waiters = std::collections::VecDeque::new();
    for _ in 0..256 {
        let mut one = Connection::open(locks);
        one.send(&call);
        waiters.push_back(one);
        stage.wait_for_waiting(waiters.len() as u64);
    }
    let mut others: Vec<_> = (0..8).map(|_| Connection::open(locks)).collect();
    for n in 256..10_000 {
        let answer = others[n % 8].send(&call).response();
        answer.assert_fenced(503, "busy", "above limits.waiting_per_key");
        assert!(answer.header("retry-after").is_some());
    }
    let grown = stage.gateway.resident_kib().saturating_sub(before);
    assert!(grown < 64 * 1024, "{grown} KiB");
    // And those who wait are served, the first first.
    assert_eq!(stage.release(&token(&held)).status, 204);
    let next = token(&waiters.pop_front().unwrap().response());
    assert_eq!(next, "2");
    drop(waiters);
    stage.wait_for_waiting(0);
    assert_eq!(stage.release(&next).status, 204);
}

#[test]
fn who_acquires_in_a_loop_gets_one_lock_and_no_more_than_the_limit_of_new_ones() {
    for fence in [true, false] {
        let mut stage = Stage::locking_with(|config| {
            let config = config.set("locks.fence_on_grant", fence);
            config.set("limits.keys", 3)
        });
        let mut client = Connection::open(stage.locks());
        let call = stage.acquiring("pod-a", 30_000, 0).whole();
        assert_eq!(client.send(&call).response().status, 200);
        for _ in 0..500 {
            let again = client.send(&call).response();
            again.assert_fenced(409, "lock-held", "it holds it already");
        }
        let refused = |stage: &Stage, n| {
            let key = format!("objects/new-{n}");
            let answer = stage.acquire_other(&key, "pod-a");
            answer.assert_fenced(503, "busy", "above limits.keys");
            assert!(answer.header("retry-after").is_some());
            let detail = answer.json()["detail"].as_str().unwrap().to_owned();
            assert!(detail.contains("limits.keys"), "{detail}");
            let view = stage.gateway.lock_view(&key);
            assert_eq!(view.status, 404, "nothing is kept of it");
        };
        for n in 0..2 {
            let answer = stage.acquire_other(&format!("objects/new-{n}"), "pod-a");
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        (2..100).for_each(|n| refused(&stage, n));
        let list = Request::get("/v1/locks").host("localhost");
        let list = list.send(stage.locks()).json();
        assert_eq!(list["locks"].as_array().unwrap().len(), 3, "{list}");
        // What is kept counts after a restart as well, and can be had again.
        stage.gateway.kill();
        stage.gateway.restart();
        refused(&stage, 2);
        assert_eq!(stage.release("1").status, 204, "the others go on");
        assert_eq!(token(&stage.acquire("pod-b")), "2");
        refused(&stage, 3);
    }
}

#[test]
fn whoever_ends_its_connection_leaves_the_queue_also_with_something_unread() {
    let stage = Stage::locking();
    let held = token(&stage.acquire("pod-a"));
    let mut quiet = Connection::open(stage.locks());
    quiet.send(stage.acquiring("pod-b", 30_000, 60_000).whole());
    stage.wait_for_waiting(1);
    let mut hasty = Connection::open(stage.locks());
    let call = stage.acquiring("pod-c", 30_000, 60_000).whole();
    hasty.send([call.clone(), call].concat());
    stage.wait_for_waiting(2);
    let next = stage.queue_up("pod-d", 60_000);
    stage.wait_for_waiting(3);
    drop(quiet);
    stage.wait_for_waiting(2);
    drop(hasty);
    stage.wait_for_waiting(1);
    stage.release(&held);
    assert_eq!(next.join().unwrap().json()["holder"], "pod-d");
}

#[test]
fn a_grant_that_failed_may_be_asked_for_again_by_the_same_request() {
    let stage = Stage::locking_with(|config| config.fence("drain", json!({ "timeout": "300ms" })));
    let first = token(&stage.acquire("pod-a"));
    let slow = stage.slow_write(&first);
    stage.release(&first);
    let body = json!({ "holder": "pod-b", "ttl_ms": 30_000, "request_id": "r-1" });
    let refused = stage.lock_do("acquire", &body);
    refused.assert_fenced(503, "draining", "the older write is in flight");
    slow.end();
    assert_eq!(token(&stage.lock_do("acquire", &body)), "3");
}

#[test]
fn a_request_that_comes_again_late_gets_no_second_lease() {
    let mut stage = Stage::locking();
    let body = json!({ "holder": "pod-b", "ttl_ms": 30_000, "request_id": "r-1" });
    let first = token(&stage.lock_do("acquire", &body));
    stage.release(&first);
    let second = token(&stage.acquire("pod-c"));
    stage.release(&second);
    let again = stage.lock_do("acquire", &body);
    again.assert_fenced(409, "lock-lost", "others have had it since");
    stage.gateway.kill();
    stage.gateway.restart();
    let again = stage.lock_do("acquire", &body);
    again.assert_fenced(409, "lock-lost", "nor after a crash");
    let view = stage.view();
    assert!(view["holder"].is_null(), "{view}");
}

/// Marks come from elsewhere while grants are made: nobody loses its turn by it.
#[test]
fn tokens_from_elsewhere_take_nobodys_turn_away() {
    let stage = Stage::locking();
    let first = token(&stage.acquire("pod-0"));
    let slow = stage.slow_write(&first);
    stage.release(&first);
    let granting = stage.queue_up("pod-1", 0);
    stage.gateway.wait_mark(KEY, "2");
    let later = stage.queue_up("pod-2", 60_000);
    stage.wait_for_waiting(1);
    // It drains as well, and raises the mark at once.
    let elsewhere = stage
        .gateway
        .raise_call(KEY, "50")
        .spawn(stage.gateway.admin);
    // Above that at once: the grant is made anew in its place.
    stage.gateway.wait_mark(KEY, "51");
    slow.end();
    let _ = elsewhere.join();
    assert_eq!(token(&granting.join().unwrap()), "51");
    stage.release("51");
    assert_eq!(token(&later.join().unwrap()), "52");
}
