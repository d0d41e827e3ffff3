//! The lock service over real sockets.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod common;

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{Config, Connection, Gateway, Request, Response, Stage, eventually};
use serde_json::{Value, json};

const KEY: &str = "objects/42";

fn locking(config: Config) -> Config {
    config.set("locks.address", "127.0.0.1:0")
}

fn stage() -> Stage {
    Stage::with(locking)
}

fn acquiring(stage: &Stage, holder: &str, ttl_ms: u64, wait_ms: u64) -> Request {
    let body = json!({ "holder": holder, "ttl_ms": ttl_ms, "wait_ms": wait_ms });
    stage.gateway.lock_call(KEY, "acquire", &body)
}

fn acquire(stage: &Stage, holder: &str) -> Response {
    acquiring(stage, holder, 30_000, 0).send(stage.gateway.locks())
}

fn spawn(stage: &Stage, holder: &str, wait_ms: u64) -> JoinHandle<Response> {
    acquiring(stage, holder, 30_000, wait_ms).spawn(stage.gateway.locks())
}

fn call(stage: &Stage, action: &str, body: Value) -> Response {
    let call = stage.gateway.lock_call(KEY, action, &body);
    call.send(stage.gateway.locks())
}

fn release(stage: &Stage, token: &str) -> Response {
    call(stage, "release", json!({ "token": token }))
}

fn renew(stage: &Stage, token: &str, ttl_ms: u64) -> Response {
    call(stage, "renew", json!({ "token": token, "ttl_ms": ttl_ms }))
}

fn token(answer: &Response) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["token"].as_str().unwrap().to_owned()
}

fn waiting(stage: &Stage, count: u64) {
    eventually("so many wait", || {
        let view = stage.gateway.lock_view(KEY).json();
        (view["waiting"] == count).then_some(())
    });
}

fn write(token: &str) -> Request {
    Request::put("/objects/42").token(token)
}

#[test]
fn a_lock_is_held_renewed_and_given_back() {
    let stage = stage();
    let answer = acquire(&stage, "pod-a");
    assert_eq!(
        answer.json(),
        json!({ "key": KEY, "token": "1", "holder": "pod-a", "ttl_ms": 30_000 })
    );
    let refused = acquire(&stage, "pod-b");
    refused.assert_fenced(409, "lock-held", "it is held");
    assert_eq!(refused.json()["holder"], "pod-a");
    let after: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&after), "{after}");
    acquire(&stage, "pod-a").assert_fenced(409, "lock-held", "it is not re-entrant");
    let view = stage.gateway.lock_view(KEY).json();
    assert_eq!(
        (&view["holder"], &view["token"]),
        (&json!("pod-a"), &json!("1"))
    );
    assert!(view["expires_in_ms"].as_u64().unwrap() <= 30_000);
    assert_eq!(renew(&stage, "1", 60_000).json()["ttl_ms"], 60_000);
    renew(&stage, "2", 60_000).assert_fenced(409, "lock-lost", "another token");
    release(&stage, "2").assert_fenced(409, "lock-lost", "another token");
    assert_eq!(release(&stage, "1").status, 204);
    release(&stage, "1").assert_fenced(409, "lock-lost", "twice");
    renew(&stage, "1", 1000).assert_fenced(409, "lock-lost", "after it was released");
    let view = stage.gateway.lock_view(KEY).json();
    assert!(
        view["token"].is_null() && view["holder"].is_null(),
        "{view}"
    );
    assert_eq!(token(&acquire(&stage, "pod-b")), "2");
}

#[test]
fn a_grant_fences_from_the_moment_it_is_told() {
    let stage = stage();
    let first = token(&acquire(&stage, "pod-a"));
    stage.send(&write(&first)).assert_ok("the holder writes");
    let gate = stage.recorder.hold("slow");
    let slow = write(&first).tag("slow").spawn(stage.http());
    stage.recorder.received("slow");
    assert_eq!(release(&stage, &first).status, 204, "it does not wait");
    let next = spawn(&stage, "pod-b", 0);
    stage.gateway.wait_mark(KEY, "2");
    stage
        .send(&write(&first))
        .assert_fenced(409, "stale-token", "the mark is raised");
    assert!(!next.is_finished(), "the older write is in flight");
    acquire(&stage, "pod-c").assert_fenced(409, "lock-held", "it is being granted");
    gate.open();
    slow.join().unwrap().assert_ok("the older write");
    let ended = stage.recorder.ended("slow").ended.unwrap();
    assert_eq!(token(&next.join().unwrap()), "2");
    assert!(stage.recorder.now() > ended);
    stage.send(&write("2")).assert_ok("the new holder writes");
    stage.recorder.history().assert_ordered();
}

#[test]
fn a_view_tells_of_a_lease_once_its_holder_is_told_and_not_before() {
    let stage = stage();
    let first = token(&acquire(&stage, "pod-a"));
    let gate = stage.recorder.hold("slow");
    let slow = write(&first).tag("slow").spawn(stage.http());
    stage.recorder.received("slow");
    release(&stage, &first);
    let next = spawn(&stage, "pod-b", 0);
    stage.gateway.wait_mark(KEY, "2");
    let list = Request::get("/v1/locks").host("localhost");
    let listed = |stage: &Stage| list.send(stage.gateway.locks()).json()["locks"][0].clone();
    let held = |stage: &Stage| stage.gateway.metric("fencegate_locks_held", &[]);
    let nobody = json!({
        "key": KEY, "holder": null, "token": null, "expires_in_ms": null, "waiting": 0,
    });
    assert_eq!(stage.gateway.lock_view(KEY).json(), nobody);
    assert_eq!(listed(&stage), nobody);
    assert!(held(&stage) < 0.5);
    assert!(!next.is_finished(), "the older write is in flight");
    gate.open();
    slow.join().unwrap().assert_ok("the older write");
    assert_eq!(token(&next.join().unwrap()), "2");
    for view in [stage.gateway.lock_view(KEY).json(), listed(&stage)] {
        let named = (&view["holder"], &view["token"]);
        assert_eq!(named, (&json!("pod-b"), &json!("2")));
        assert!(view["expires_in_ms"].as_u64().unwrap() <= 30_000, "{view}");
    }
    assert!(held(&stage) > 0.5);
}

#[test]
fn a_drain_that_takes_too_long_burns_the_token_and_serves_the_next() {
    let stage = Stage::with(|config| locking(config).fence("drain", json!({ "timeout": "300ms" })));
    let first = token(&acquire(&stage, "pod-a"));
    let gate = stage.recorder.hold("slow");
    let slow = write(&first).tag("slow").spawn(stage.http());
    stage.recorder.received("slow");
    release(&stage, &first);
    let burnt = spawn(&stage, "pod-b", 0);
    stage.gateway.wait_mark(KEY, "2");
    let next = spawn(&stage, "pod-c", 20_000);
    waiting(&stage, 1);
    burnt
        .join()
        .unwrap()
        .assert_fenced(503, "draining", "the older write is in flight");
    stage.gateway.wait_mark(KEY, "3");
    gate.open();
    slow.join().unwrap().assert_ok("the older write");
    let answer = next.join().unwrap();
    // Its own drain may have been too long as well, by then.
    if answer.status == 503 {
        assert_eq!(token(&acquire(&stage, "pod-c")), "4");
    } else {
        assert_eq!(token(&answer), "3");
    }
}

#[test]
fn those_that_wait_get_it_in_the_order_in_which_they_came() {
    let stage = stage();
    let mut held = token(&acquire(&stage, "pod-0"));
    let mut waiters = Vec::new();
    for n in 1..=5 {
        waiters.push(spawn(&stage, &format!("pod-{n}"), 60_000));
        waiting(&stage, n);
    }
    for (n, waiter) in waiters.into_iter().enumerate() {
        assert_eq!(release(&stage, &held).status, 204);
        let answer = waiter.join().unwrap();
        held = token(&answer);
        assert_eq!(held, (n + 2).to_string());
    }
}

#[test]
fn whoever_leaves_the_queue_is_not_served() {
    let stage = stage();
    let held = token(&acquire(&stage, "pod-a"));
    let mut gone = Connection::open(stage.gateway.locks());
    gone.send(acquiring(&stage, "pod-b", 30_000, 60_000).whole());
    waiting(&stage, 1);
    let next = spawn(&stage, "pod-c", 60_000);
    waiting(&stage, 2);
    gone.abort();
    waiting(&stage, 1);
    release(&stage, &held);
    assert_eq!(next.join().unwrap().json()["holder"], "pod-c");
}

#[test]
fn whoever_leaves_while_its_grant_drains_frees_the_lock_unless_it_may_ask_again() {
    for named in [false, true] {
        let stage = stage();
        let first = token(&acquire(&stage, "pod-a"));
        let gate = stage.recorder.hold("slow");
        let slow = write(&first).tag("slow").spawn(stage.http());
        stage.recorder.received("slow");
        release(&stage, &first);
        let mut body = json!({ "holder": "pod-b", "ttl_ms": 60_000, "wait_ms": 0 });
        if named {
            body["request_id"] = json!("r-1");
        }
        let call = stage.gateway.lock_call(KEY, "acquire", &body);
        let mut gone = Connection::open(stage.gateway.locks());
        gone.send(call.whole());
        stage.gateway.wait_mark(KEY, "2");
        gone.abort();
        if named {
            let again = call.spawn(stage.gateway.locks());
            acquire(&stage, "pod-c").assert_fenced(409, "lock-held", "its time decides");
            assert!(
                !again.is_finished(),
                "it waits for the drain as the first did"
            );
            gate.open();
            assert_eq!(token(&again.join().unwrap()), "2", "the same grant");
            assert_eq!(token(&call.send(stage.gateway.locks())), "2", "and again");
            release(&stage, "2");
            call.send(stage.gateway.locks())
                .assert_fenced(409, "lock-lost", "what it got is over");
        } else {
            eventually("the lock is free", || {
                let view = stage.gateway.lock_view(KEY).json();
                view["holder"].is_null().then_some(())
            });
            gate.open();
            assert_eq!(token(&acquire(&stage, "pod-c")), "3");
        }
        slow.join().unwrap().assert_ok("the older write");
        stage.recorder.history().assert_ordered();
    }
}

#[test]
fn a_lease_expires_and_is_handed_on() {
    let stage = stage();
    let answer = acquiring(&stage, "pod-a", 400, 0).send(stage.gateway.locks());
    let (first, began) = (token(&answer), Instant::now());
    let next = spawn(&stage, "pod-b", 20_000);
    let second = token(&next.join().unwrap());
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(390), "{took:?}");
    renew(&stage, &first, 400).assert_fenced(409, "lock-lost", "it has expired");
    stage
        .send(&write(&first))
        .assert_fenced(409, "stale-token", "whoever stalled past its lease");
    stage.send(&write(&second)).assert_ok("the holder");
}

#[test]
fn a_renewed_lease_lasts() {
    let stage = stage();
    let answer = acquiring(&stage, "pod-a", 2_000, 0).send(stage.gateway.locks());
    let (first, began) = (token(&answer), Instant::now());
    let next = spawn(&stage, "pod-b", 20_000);
    waiting(&stage, 1);
    while began.elapsed() < Duration::from_secs(3) {
        assert_eq!(renew(&stage, &first, 2_000).status, 200);
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(!next.is_finished());
    assert_eq!(token(&next.join().unwrap()), "2", "and then it expires");
}

#[test]
fn a_mark_above_the_token_ends_the_lease_whoever_raised_it() {
    let stage = stage();
    let first = token(&acquire(&stage, "pod-a"));
    let next = spawn(&stage, "pod-b", 20_000);
    waiting(&stage, 1);
    stage.raise("/objects/42", "34");
    renew(&stage, &first, 1000).assert_fenced(409, "lock-lost", "a newer token was seen");
    let second = token(&next.join().unwrap());
    assert_eq!(second, "35", "foreign tokens are overtaken, not repeated");
    assert_eq!(release(&stage, &second).status, 204);
    stage.raise("/objects/42", "7.18446744073709551615");
    assert_eq!(token(&acquire(&stage, "pod-c")), "8.1", "the next epoch");
}

#[test]
fn tokens_are_not_repeated_after_a_reset_of_the_mark_either() {
    let stage = stage();
    for n in 1..=5 {
        let token = token(&acquire(&stage, "pod-a"));
        assert_eq!(token, n.to_string());
        release(&stage, &token);
    }
    let reset = stage.gateway.reset_call(KEY, "5", "2");
    assert_eq!(reset.send(stage.gateway.admin).status, 200);
    assert_eq!(token(&acquire(&stage, "pod-a")), "6");
}

#[test]
fn leases_and_tokens_outlive_a_crash_with_their_whole_time() {
    for fence in [true, false] {
        let mut stage = Stage::with(|config| {
            locking(config.settle("100ms")).set("locks.fence_on_grant", fence)
        });
        let answer = acquiring(&stage, "pod-a", 20_000, 0).send(stage.gateway.locks());
        let first = token(&answer);
        std::thread::sleep(Duration::from_secs(2));
        stage.gateway.kill();
        stage.gateway.restart();
        let view = stage.gateway.lock_view(KEY).json();
        assert_eq!(view["holder"], "pod-a", "{view}");
        assert!(view["expires_in_ms"].as_u64().unwrap() > 18_000, "{view}");
        acquire(&stage, "pod-b").assert_fenced(409, "lock-held", "after the crash");
        assert_eq!(renew(&stage, &first, 60_000).status, 200);
        assert_eq!(stage.mark(KEY).is_some(), fence);
        stage.gateway.kill();
        stage.gateway.restart();
        let view = stage.gateway.lock_view(KEY).json();
        assert!(
            view["expires_in_ms"].as_u64().unwrap() > 50_000,
            "a longer time is kept as well: {view}"
        );
        assert_eq!(release(&stage, &first).status, 204);
        stage.gateway.kill();
        stage.gateway.restart();
        let view = stage.gateway.lock_view(KEY).json();
        assert!(view["holder"].is_null(), "it stays released: {view}");
        assert_eq!(
            token(&acquire(&stage, "pod-b")),
            "2",
            "no token comes twice"
        );
    }
}

#[test]
fn what_is_kept_of_locks_is_neither_a_mark_nor_lost_by_an_export() {
    let mut stage = Stage::with(|config| {
        locking(config)
            .set("locks.fence_on_grant", false)
            .set("limits.keys", 1)
    });
    let first = token(&acquire(&stage, "pod-a"));
    stage.raise("/objects/7", "3");
    assert_eq!(stage.gateway.marks().len(), 1);
    let keys = stage.gateway.metric("fencegate_keys", &[]);
    assert!((keys - 1.0).abs() < 0.1, "{keys}");
    let held = stage.gateway.metric("fencegate_locks_held", &[]);
    assert!((held - 1.0).abs() < 0.1, "{held}");
    release(&stage, &first);
    assert!(stage.gateway.terminate().success());
    let store = stage.gateway.store();
    let verified = common::run(&["store", "verify", store.to_str().unwrap()]);
    assert!(verified.status.success(), "{verified:?}");
    let exported = common::run(&["store", "export", store.to_str().unwrap()]);
    let lines = String::from_utf8(exported.stdout).unwrap();
    assert_eq!(lines.lines().count(), 2, "{lines}");
    std::fs::remove_dir_all(&store).unwrap();
    let mut import = common::binary()
        .args(["store", "import", store.to_str().unwrap()])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut import.stdin.take().unwrap(), lines.as_bytes()).unwrap();
    assert!(import.wait().unwrap().success());
    stage.gateway.restart();
    assert_eq!(
        token(&acquire(&stage, "pod-a")),
        "2",
        "no token comes twice"
    );
}

#[test]
fn locks_are_listed_in_order_by_pages() {
    let stage = stage();
    for key in ["objects/b", "objects/a", "objects/c d"] {
        let body = json!({ "holder": key.replace(['/', ' '], "-"), "ttl_ms": 30_000 });
        let call = stage.gateway.lock_call(key, "acquire", &body);
        assert_eq!(call.send(stage.gateway.locks()).status, 200);
    }
    let list = |query: &str| {
        let request = Request::get(&format!("/v1/locks?{query}")).host("localhost");
        request.send(stage.gateway.locks()).json()
    };
    let page = list("prefix=objects/&limit=2");
    assert_eq!(page["locks"][0]["key"], "objects/a");
    assert_eq!(page["locks"][1]["holder"], "objects-b");
    assert_eq!(page["next"], "objects/b");
    let rest = list("prefix=objects/&limit=2&after=objects/b");
    assert_eq!(rest["locks"][0]["key"], "objects/c d");
    assert!(rest["next"].is_null() && rest["locks"].as_array().unwrap().len() == 1);
    assert_eq!(list("prefix=none")["locks"], json!([]));
}

#[test]
fn bad_calls_change_nothing_and_are_told_so() {
    let stage = stage();
    let held = token(&acquire(&stage, "pod-a"));
    let good = json!({ "holder": "pod-b", "ttl_ms": 1000, "wait_ms": 0 });
    let with = |name: &str, value: Value| {
        let mut body = good.clone();
        body[name] = value;
        body
    };
    for (body, what) in [
        (json!({}), "nothing"),
        (json!([]), "a list"),
        (with("ttl_ms", json!(99)), "too short"),
        (with("ttl_ms", json!(3_600_001)), "too long"),
        (with("ttl_ms", json!(-1)), "negative"),
        (with("ttl_ms", json!("1000")), "text"),
        (with("ttl_ms", json!(1000.5)), "a fraction"),
        (with("ttl_ms", json!(1e300)), "a huge number"),
        (with("wait_ms", json!(3_600_001)), "too long a wait"),
        (with("wait_ms", json!(u64::MAX)), "for ever"),
        (with("holder", json!("")), "no name"),
        (with("holder", json!("a b")), "a space"),
        (with("holder", json!("é")), "not ASCII"),
        (with("holder", json!("x".repeat(129))), "a long name"),
        (with("request_id", json!("")), "an empty id"),
        (with("more", json!(1)), "an unknown field"),
    ] {
        call(&stage, "acquire", body).assert_fenced(400, "bad-request", what);
    }
    for body in [
        json!({ "token": 1 }),
        json!({}),
        json!({ "token": "1", "x": 1 }),
    ] {
        call(&stage, "release", body).assert_fenced(400, "bad-request", "a release");
    }
    release(&stage, "0").assert_fenced(400, "malformed-token", "no token");
    release(&stage, "x").assert_fenced(400, "malformed-token", "no token");
    let raw = |method: &str, target: &str, body: &str| {
        let request = Request::new(method, target).host("localhost").body(body);
        request.send(stage.gateway.locks())
    };
    let good = good.to_string();
    for (target, status, what) in [
        ("/v1/locks/objects%2F42/take", 404, "an unknown action"),
        ("/v1/locks/others%2F42/acquire", 404, "an unknown namespace"),
        (
            "/v1/locks/%21locks%2F42/acquire",
            404,
            "what the gateway keeps for itself",
        ),
        ("/v1/locks/objects/acquire", 400, "no key"),
        ("/v1/locks/objects%2F/acquire", 400, "an empty key"),
        ("/v1/keys/objects%2F42", 404, "another API"),
        ("/", 404, "nothing"),
    ] {
        assert_eq!(raw("POST", target, &good).status, status, "{what}");
    }
    let long = format!("/v1/locks/objects%2F{}/acquire", "k".repeat(1025));
    assert_eq!(raw("POST", &long, &good).status, 400, "a long key");
    let huge = format!("{{{}}}", " ".repeat(20_000));
    assert_eq!(
        raw("POST", "/v1/locks/objects%2F42/acquire", &huge).status,
        413
    );
    assert_eq!(raw("GET", "/v1/locks/objects%2F42/acquire", "").status, 405);
    assert_eq!(raw("DELETE", "/v1/locks/objects%2F42", "").status, 405);
    let evil = acquiring(&stage, "x", 1000, 0).header("Origin", "http://evil.test");
    assert_eq!(evil.send(stage.gateway.locks()).status, 403);
    let rebound = acquiring(&stage, "x", 1000, 0).host("evil.test");
    assert_eq!(rebound.send(stage.gateway.locks()).status, 403);
    let never = stage.gateway.lock_view("objects/never");
    never.assert_fenced(404, "no-route", "a lock that was never held");
    let call = stage.gateway.lock_call(
        "objects/never",
        "renew",
        &json!({ "token": "1", "ttl_ms": 1000 }),
    );
    call.send(stage.gateway.locks())
        .assert_fenced(409, "lock-lost", "the same");
    let view = stage.gateway.lock_view(KEY).json();
    assert_eq!(
        (&view["token"], &view["waiting"]),
        (&json!(held), &json!(0))
    );
}

#[test]
fn too_many_who_wait_are_refused_and_the_others_go_on() {
    let stage = Stage::with(|config| locking(config).set("limits.waiting_per_key", 4));
    let held = token(&acquire(&stage, "pod-0"));
    let waiters: Vec<_> = (0..4)
        .map(|n| spawn(&stage, &format!("pod-{n}"), 60_000))
        .collect();
    waiting(&stage, 4);
    let more = acquiring(&stage, "more", 1000, 10_000).send(stage.gateway.locks());
    more.assert_fenced(503, "busy", "a fifth");
    assert!(more.header("retry-after").is_some());
    let (mut held, mut waiters) = (held, waiters);
    while !waiters.is_empty() {
        assert_eq!(release(&stage, &held).status, 204);
        let next = eventually("the next has it", || {
            waiters.iter().position(JoinHandle::is_finished)
        });
        held = token(&waiters.swap_remove(next).join().unwrap());
    }
}

#[test]
fn a_wait_ends_in_time_and_says_who_has_it() {
    let stage = stage();
    acquire(&stage, "pod-a");
    let began = Instant::now();
    let answer = acquiring(&stage, "pod-b", 1000, 300).send(stage.gateway.locks());
    answer.assert_fenced(409, "lock-held", "it waited");
    assert_eq!(answer.json()["holder"], "pod-a");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(300), "{took:?}");
    waiting(&stage, 0);
}

#[test]
fn an_open_address_needs_tokens_and_they_are_asked_for() {
    // "sesame"
    let hash = "sha256:d0c04f4b1951e4aeaaec8223ed2039e542f3aae805a6fa7f6d794e5afff5d272";
    let stage = Stage::with(|config| {
        config
            .set("locks.address", "0.0.0.0:0")
            .set("locks.tokens", json!([hash]))
    });
    let call = acquiring(&stage, "pod-a", 1000, 0);
    assert_eq!(call.send(stage.gateway.locks()).status, 403);
    let wrong = call.clone().header("Authorization", "Bearer open");
    assert_eq!(wrong.send(stage.gateway.locks()).status, 403);
    let good = call.header("Authorization", "Bearer sesame");
    let by_name = good.host("locks.example");
    assert_eq!(by_name.send(stage.gateway.locks()).status, 200);
    let open = Config::new(&stage.recorder.url()).set("locks.address", "0.0.0.0:0");
    let dir = tempfile::tempdir().unwrap();
    let failed = Gateway::fails(open, &dir.path().join("store"));
    assert_eq!(failed.status.code(), Some(2));
    assert!(failed.errors.contains("locks.tokens"), "{}", failed.errors);
}

/// Each takes the lock, writes twice with its token, and gives it back: no two holders' writes mix.
#[test]
fn the_writes_of_two_holders_never_mix() {
    let stage = stage();
    let workers: Vec<_> = (0..6)
        .map(|n| {
            let acquire = acquiring(&stage, &format!("pod-{n}"), 30_000, 60_000);
            let (locks, http) = (stage.gateway.locks(), stage.http());
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
        let expected = common::Token::from(n as u64 + 1);
        assert_eq!(pair, [expected, expected], "two holders' writes are mixed");
    }
}

#[test]
fn where_only_issued_tokens_are_trusted_no_other_raises_a_mark() {
    let stage = Stage::with(|config| locking(config).fence("trust", "issued"));
    let refused = stage.send(&write("1"));
    refused.assert_fenced(403, "unknown-token", "nothing was issued");
    assert_eq!(stage.mark(KEY), None);
    let first = token(&acquire(&stage, "pod-a"));
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
    release(&stage, &first);
    stage
        .send(&write(&first))
        .assert_ok("issued, and no newer one is");
    acquire(&stage, "pod-b");
    stage
        .send(&write(&first))
        .assert_fenced(409, "stale-token", "it was handed on");
    let raised = stage.gateway.raise_call(KEY, "50");
    assert_eq!(raised.send(stage.gateway.admin).status, 200);
    stage
        .send(&write("50"))
        .assert_fenced(403, "unknown-token", "raised, and not issued");
    assert_eq!(token(&acquire(&stage, "pod-c")), "51");
    stage.send(&write("51")).assert_ok("the holder");
}

#[test]
fn observing_says_what_was_never_issued_and_raises_nothing() {
    let stage = Stage::with(|config| {
        locking(config)
            .fence("trust", "issued")
            .fence("mode", "observe")
    });
    let answer = stage.send(&write("9"));
    answer.assert_ok("it is only observed");
    let decision = answer.header("fencing-decision").unwrap_or_default();
    assert!(decision.contains("unknown-token"), "{decision}");
    assert_eq!(stage.mark(KEY), None);
    let first = token(&acquire(&stage, "pod-a"));
    let answer = stage.send(&write(&first));
    answer.assert_ok("the holder");
    assert_eq!(answer.header("fencing-decision"), None);
}

#[test]
fn a_body_that_is_not_json_is_told_so_whatever_is_wrong_with_it() {
    let stage = stage();
    let held = token(&acquire(&stage, "pod-a"));
    let post = |body: &[u8]| {
        let request = Request::new("POST", "/v1/locks/objects%2F42/acquire");
        request.host("localhost").body(body)
    };
    let good = br#"{"holder":"pod-b","ttl_ms":1000}"#;
    let deep = "[".repeat(5000);
    for (body, what) in [
        (&b""[..], "nothing"),
        (b"{", "half of it"),
        (b"null", "null"),
        (br#""text""#, "a string"),
        (
            br#"{"holder":"a","holder":"b","ttl_ms":1000}"#,
            "a name twice",
        ),
        (br#"{"holder":"a","ttl_ms":1000} {}"#, "more than one"),
        (br#"{"holder":"a","ttl_ms":1e400}"#, "no number"),
        (
            br#"{"holder":"a","ttl_ms":99999999999999999999}"#,
            "a huge number",
        ),
        (b"{\"holder\":\"\xff\",\"ttl_ms\":1000}", "not UTF-8"),
        (b"{\"holder\":\"a\0\",\"ttl_ms\":1000}", "a NUL"),
        (
            b"\xef\xbb\xbf{\"holder\":\"a\",\"ttl_ms\":1000}",
            "a mark of byte order",
        ),
        (b"holder=a&ttl_ms=1000", "a form"),
        (deep.as_bytes(), "a deep one"),
    ] {
        let answer = post(body).send(stage.gateway.locks());
        answer.assert_fenced(400, "bad-request", what);
    }
    for kind in [
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/xml",
        "\u{e9}",
    ] {
        let answer = post(good).header("Content-Type", kind);
        let answer = answer.send(stage.gateway.locks());
        answer.assert_fenced(415, "unsupported-media-type", kind);
    }
    let as_float = br#"{"holder":"pod-b","ttl_ms":1000.0,"wait_ms":0e3}"#;
    let answer = post(as_float).send(stage.gateway.locks());
    answer.assert_fenced(409, "lock-held", "whole numbers, however they are written");
    let encoded = post(good).header("Content-Encoding", "gzip");
    let encoded = encoded.send(stage.gateway.locks());
    encoded.assert_fenced(415, "unsupported-media-type", "encoded");
    // What curl says of `-d`, and two ways of saying JSON.
    for kind in [
        "application/x-www-form-urlencoded",
        "Application/JSON; charset=utf-8",
        "application/vnd.locks+json",
    ] {
        let answer = post(good).header("Content-Type", kind);
        let answer = answer.send(stage.gateway.locks());
        answer.assert_fenced(409, "lock-held", kind);
    }
    for method in ["PUT", "DELETE", "PATCH", "OPTIONS", "QUERY", "acquire"] {
        let request = Request::new(method, "/v1/locks/objects%2F42/acquire").host("localhost");
        let answer = request.body(good).send(stage.gateway.locks());
        answer.assert_fenced(405, "method-not-allowed", method);
        assert_eq!(answer.header("allow"), Some("POST"));
    }
    let nameless = Request::new("TRACE", "/v1/locks/0/acquire").host("localhost");
    let nameless = nameless.send(stage.gateway.locks());
    nameless.assert_fenced(405, "method-not-allowed", "whatever the name is");
    let view = stage.gateway.lock_view(KEY).json();
    assert_eq!(
        (&view["token"], &view["waiting"]),
        (&json!(held), &json!(0))
    );
}

#[test]
fn odd_names_are_names_and_broken_ones_are_told_so() {
    let stage = stage();
    let odd = [
        "objects/..",
        "objects/ ",
        "objects/a/b//c/",
        "objects/%2F",
        "objects/\u{0}\r\n\u{1b}[2J",
        "objects/\"}'`<script>",
        "objects/\u{1f512}\u{202e}",
        "objects/?prefix=#x",
    ];
    let longest = format!("objects/{}", "k".repeat(1024));
    for key in odd.iter().copied().chain([longest.as_str()]) {
        let body = json!({ "holder": "pod-a", "ttl_ms": 30_000 });
        let call = stage.gateway.lock_call(key, "acquire", &body);
        let answer = call.send(stage.gateway.locks());
        assert_eq!(answer.status, 200, "{key:?}: {}", answer.text());
        assert_eq!(answer.json()["key"], key);
        assert_eq!(stage.gateway.lock_view(key).json()["holder"], "pod-a");
    }
    let list = Request::get("/v1/locks?prefix=objects%2F").host("localhost");
    let list = list.send(stage.gateway.locks()).json();
    assert_eq!(list["locks"].as_array().unwrap().len(), odd.len() + 1);
    assert!(
        !stage.gateway.errors().contains('\u{1b}'),
        "control bytes never reach the log"
    );
    let body = json!({ "holder": "pod-a", "ttl_ms": 30_000 }).to_string();
    for key in [
        "objects%2F%ff",
        "objects%2F%c0%af",
        "objects%2F%",
        "objects%2F%2",
        "objects%2F%zz",
        "objects%2F%+2",
        "",
        "%2F42",
        "42",
    ] {
        let target = format!("/v1/locks/{key}/acquire");
        let request = Request::new("POST", &target).host("localhost").body(&body);
        let answer = request.send(stage.gateway.locks());
        answer.assert_fenced(400, "bad-request", key);
    }
}

#[test]
fn ten_thousand_who_wait_for_one_lock_are_bounded() {
    let stage = stage();
    let locks = stage.gateway.locks();
    // For longer than all of it takes.
    let held = acquiring(&stage, "pod-0", 3_600_000, 0).send(locks);
    let before = stage.gateway.resident_kib();
    let call = acquiring(&stage, "pod-n", 30_000, 600_000).whole();
    let mut waiters = std::collections::VecDeque::new();
    for _ in 0..256 {
        let mut one = Connection::open(locks);
        one.send(&call);
        waiters.push_back(one);
        waiting(&stage, waiters.len() as u64);
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
    assert_eq!(release(&stage, &token(&held)).status, 204);
    let next = token(&waiters.pop_front().unwrap().response());
    assert_eq!(next, "2");
    drop(waiters);
    waiting(&stage, 0);
    assert_eq!(release(&stage, &next).status, 204);
}

#[test]
fn who_acquires_in_a_loop_gets_one_lock_and_no_more_than_the_limit_of_new_ones() {
    for fence in [true, false] {
        let mut stage = Stage::with(|config| {
            let config = locking(config).set("locks.fence_on_grant", fence);
            config.set("limits.keys", 3)
        });
        let take = |stage: &Stage, key: &str| {
            let body = json!({ "holder": "pod-a", "ttl_ms": 30_000 });
            let call = stage.gateway.lock_call(key, "acquire", &body);
            call.send(stage.gateway.locks())
        };
        let mut client = Connection::open(stage.gateway.locks());
        let call = acquiring(&stage, "pod-a", 30_000, 0).whole();
        assert_eq!(client.send(&call).response().status, 200);
        for _ in 0..500 {
            let again = client.send(&call).response();
            again.assert_fenced(409, "lock-held", "it holds it already");
        }
        let refused = |stage: &Stage, n| {
            let key = format!("objects/new-{n}");
            let answer = take(stage, &key);
            answer.assert_fenced(503, "busy", "above limits.keys");
            assert!(answer.header("retry-after").is_some());
            let detail = answer.json()["detail"].as_str().unwrap().to_owned();
            assert!(detail.contains("limits.keys"), "{detail}");
            let view = stage.gateway.lock_view(&key);
            assert_eq!(view.status, 404, "nothing is kept of it");
        };
        for n in 0..2 {
            let answer = take(&stage, &format!("objects/new-{n}"));
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        (2..100).for_each(|n| refused(&stage, n));
        let list = Request::get("/v1/locks").host("localhost");
        let list = list.send(stage.gateway.locks()).json();
        assert_eq!(list["locks"].as_array().unwrap().len(), 3, "{list}");
        // What is kept counts after a restart as well, and can be had again.
        stage.gateway.kill();
        stage.gateway.restart();
        refused(&stage, 2);
        assert_eq!(release(&stage, "1").status, 204, "the others go on");
        assert_eq!(token(&acquire(&stage, "pod-b")), "2");
        refused(&stage, 3);
    }
}

#[test]
fn whoever_ends_its_connection_leaves_the_queue_also_with_something_unread() {
    let stage = stage();
    let held = token(&acquire(&stage, "pod-a"));
    let mut quiet = Connection::open(stage.gateway.locks());
    quiet.send(acquiring(&stage, "pod-b", 30_000, 60_000).whole());
    waiting(&stage, 1);
    let mut hasty = Connection::open(stage.gateway.locks());
    let call = acquiring(&stage, "pod-c", 30_000, 60_000).whole();
    hasty.send([call.clone(), call].concat());
    waiting(&stage, 2);
    let next = spawn(&stage, "pod-d", 60_000);
    waiting(&stage, 3);
    drop(quiet);
    waiting(&stage, 2);
    drop(hasty);
    waiting(&stage, 1);
    release(&stage, &held);
    assert_eq!(next.join().unwrap().json()["holder"], "pod-d");
}

#[test]
fn a_grant_that_failed_may_be_asked_for_again_by_the_same_request() {
    let stage = Stage::with(|config| locking(config).fence("drain", json!({ "timeout": "300ms" })));
    let first = token(&acquire(&stage, "pod-a"));
    let gate = stage.recorder.hold("slow");
    let slow = write(&first).tag("slow").spawn(stage.http());
    stage.recorder.received("slow");
    release(&stage, &first);
    let body = json!({ "holder": "pod-b", "ttl_ms": 30_000, "request_id": "r-1" });
    let refused = call(&stage, "acquire", body.clone());
    refused.assert_fenced(503, "draining", "the older write is in flight");
    gate.open();
    slow.join().unwrap().assert_ok("the older write");
    assert_eq!(token(&call(&stage, "acquire", body)), "3");
}

#[test]
fn a_request_that_comes_again_late_gets_no_second_lease() {
    let mut stage = stage();
    let body = json!({ "holder": "pod-b", "ttl_ms": 30_000, "request_id": "r-1" });
    let first = token(&call(&stage, "acquire", body.clone()));
    release(&stage, &first);
    let second = token(&acquire(&stage, "pod-c"));
    release(&stage, &second);
    let again = call(&stage, "acquire", body.clone());
    again.assert_fenced(409, "lock-lost", "others have had it since");
    stage.gateway.kill();
    stage.gateway.restart();
    let again = call(&stage, "acquire", body);
    again.assert_fenced(409, "lock-lost", "nor after a crash");
    let view = stage.gateway.lock_view(KEY).json();
    assert!(view["holder"].is_null(), "{view}");
}

/// Marks come from elsewhere while grants are made: nobody loses its turn by it.
#[test]
fn tokens_from_elsewhere_take_nobodys_turn_away() {
    let stage = stage();
    let first = token(&acquire(&stage, "pod-0"));
    let gate = stage.recorder.hold("slow");
    let slow = write(&first).tag("slow").spawn(stage.http());
    stage.recorder.received("slow");
    release(&stage, &first);
    let granting = spawn(&stage, "pod-1", 0);
    stage.gateway.wait_mark(KEY, "2");
    let later = spawn(&stage, "pod-2", 60_000);
    waiting(&stage, 1);
    // It drains as well, and raises the mark at once.
    let elsewhere = stage
        .gateway
        .raise_call(KEY, "50")
        .spawn(stage.gateway.admin);
    // Above that at once: the grant is made anew in its place.
    stage.gateway.wait_mark(KEY, "51");
    gate.open();
    slow.join().unwrap().assert_ok("the older write");
    let _ = elsewhere.join();
    assert_eq!(token(&granting.join().unwrap()), "51");
    release(&stage, "51");
    assert_eq!(token(&later.join().unwrap()), "52");
}
