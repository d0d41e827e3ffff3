//! What an administrator does to marks: `raise`, and `reset`, the one way down.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::common::{Connection, Dice, Event, Request, Response, Stage, eventually, run, weather};
use serde_json::json;

const KEY: &str = "objects/42";
const PATH: &str = "/objects/42";

fn write(token: u64, tag: &str) -> Request {
    Request::put(PATH).token(token).tag(tag)
}

fn raise(stage: &Stage, token: &str) -> Response {
    stage
        .gateway
        .raise_call(KEY, token)
        .send(stage.gateway.admin)
}

fn reset(stage: &Stage, from: &str, to: &str) -> Response {
    let asked = stage.recorder.now();
    let answer = stage
        .gateway
        .reset_call(KEY, from, to)
        .send(stage.gateway.admin);
    if answer.status == 200 {
        stage.recorder.was_reset(PATH, asked);
    }
    answer
}

/// Asks for a reset from a thread; its lane is sealed when this returns.
fn resetting(stage: &Stage, from: &str, to: &str) -> (Event, std::thread::JoinHandle<Response>) {
    let asked = stage.recorder.now();
    let call = stage.gateway.reset_call(KEY, from, to);
    let running = call.spawn(stage.gateway.admin);
    eventually("the lane is sealed", || {
        let answer = stage.send(&write(from.parse().unwrap(), "probe"));
        (answer.status == 503 && answer.reason() == "draining").then_some(())
    });
    (asked, running)
}

fn audit_lines(stage: &Stage) -> Vec<String> {
    let errors = stage.gateway.errors();
    let lines = errors.lines();
    lines
        .filter(|line| line.contains("fencegate::audit"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_raise_fences_what_is_older_from_now_on() {
    let mut stage = Stage::at_34();
    let answer = raise(&stage, "50");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["mark"], "50");
    stage
        .send(&write(49, "late"))
        .assert_fenced(409, "stale-token", "below what was raised");
    stage.gateway.kill();
    stage.gateway.restart();
    assert_eq!(stage.mark(KEY).as_deref(), Some("50"), "it is durable");
    raise(&stage, "49").assert_fenced(409, "stale-token", "a raise below the mark");
    assert_eq!(raise(&stage, "7.1").json()["mark"], "7.1");
    stage.recorder.history().assert_ordered();
}

#[test]
fn a_raise_answers_when_older_writes_have_ended() {
    let stage = Stage::at_34();
    let gate = stage.recorder.hold("older");
    let older = write(34, "older").spawn(stage.http());
    stage.recorder.received("older");
    let calls = ["50", "50"].map(|token| {
        stage
            .gateway
            .raise_call(KEY, token)
            .spawn(stage.gateway.admin)
    });
    stage.gateway.wait_mark(KEY, "50");
    stage.gateway.wait_key(KEY, "waiting", 2);
    gate.open();
    older.join().unwrap().assert_ok("the older write");
    let ended = stage.recorder.ended("older").ended.unwrap();
    for call in calls {
        let answer = call.join().unwrap();
        assert_eq!(answer.status, 200, "equal tokens wait alike");
        assert!(stage.recorder.now() > ended);
    }
}

#[test]
fn a_raise_waits_no_longer_than_a_drain_may_take() {
    let stage = Stage::at_34_with(|config| config.fence("drain", json!({ "timeout": "200ms" })));
    let gate = stage.recorder.hold("older");
    let older = write(34, "older").spawn(stage.http());
    stage.recorder.received("older");
    raise(&stage, "50").assert_fenced(503, "draining", "the older write is in flight");
    assert_eq!(stage.mark(KEY).as_deref(), Some("50"), "it stays raised");
    gate.open();
    older.join().unwrap().assert_ok("the older write");
}

#[test]
fn a_raise_respects_the_limit_on_keys_and_leaves_the_mark_unbound() {
    let stage = Stage::with(|config| config.set("limits.keys", 1).fence("holder", "bind"));
    assert_eq!(raise(&stage, "34").status, 200, "the first key");
    let other = stage.gateway.raise_call("objects/43", "1");
    other
        .send(stage.gateway.admin)
        .assert_fenced(503, "busy", "a second key");
    let bound = |holder: &str| {
        let request = write(34, "bind").header("Fencing-Holder", holder);
        stage.send(&request)
    };
    bound("pod-a").assert_ok("the first equal token binds what no request raised");
    bound("pod-b").assert_fenced(409, "holder-mismatch", "it is bound now");
    assert_eq!(reset(&stage, "34", "33").status, 200);
    let view = stage.gateway.key(KEY).unwrap();
    assert!(view["holder"].is_null(), "a reset unbinds: {view}");
    let request = write(33, "bind").header("Fencing-Holder", "pod-b");
    stage.send(&request).assert_ok("whoever comes first binds");
}

// A9
#[test]
fn a_mark_goes_down_by_a_reset_alone_and_that_is_audited() {
    let mut stage = Stage::with(|config| config.settle("300ms").set("log.level", "error"));
    stage.raise(PATH, "50");
    stage
        .send(&write(34, "low"))
        .assert_fenced(409, "stale-token", "by a request");
    raise(&stage, "34").assert_fenced(409, "stale-token", "by a raise");
    assert_eq!(stage.mark(KEY).as_deref(), Some("50"));
    assert!(
        !audit_lines(&stage)
            .iter()
            .any(|line| line.contains("\"reset\""))
    );
    for (from, to, status, reason) in [
        ("49", "34", 409, "stale-token"),
        ("51", "34", 409, "stale-token"),
        ("50", "50", 400, "bad-request"),
        ("50", "51", 400, "bad-request"),
        ("50", "0", 400, "malformed-token"),
        ("50", "-1", 400, "malformed-token"),
    ] {
        let answer = reset(&stage, from, to);
        answer.assert_fenced(status, reason, &format!("from {from} to {to}"));
        if status == 409 {
            assert_eq!(answer.json()["mark"], "50", "it says which it is");
        }
    }
    assert_eq!(stage.mark(KEY).as_deref(), Some("50"));
    let answer = reset(&stage, "50", "34");
    assert_eq!((answer.status, &answer.json()["mark"]), (200, &json!("34")));
    // What the process has written is read by another thread.
    let done = eventually("there is a line for it", || {
        let mut lines = audit_lines(&stage).into_iter();
        lines.find(|line| line.contains("\"done\""))
    });
    for part in ["reset", KEY, "50", "34", "127.0.0.1:", "timestamp"] {
        assert!(done.contains(part), "{part} is missing in {done}");
    }
    stage
        .send(&write(33, "low"))
        .assert_fenced(409, "stale-token", "below the new mark");
    stage.gateway.kill();
    stage.gateway.restart();
    assert_eq!(stage.mark(KEY).as_deref(), Some("34"), "it is durable");
    stage.send(&write(34, "again")).assert_ok("the new mark");
    let newer = write(35, "newer").send(stage.http());
    newer.assert_ok("an advance, once the hold is over");
    stage.recorder.history().assert_ordered();
}

// C16
#[test]
fn a_reset_waits_for_what_is_in_flight_whatever_its_token() {
    let stage = Stage::with(|config| config.settle("300ms"));
    stage.raise(PATH, "50");
    let gate = stage.recorder.hold("50");
    let older = write(50, "50").spawn(stage.http());
    stage.recorder.received("50");
    let (asked, running) = resetting(&stage, "50", "34");
    stage.send(&write(35, "early")).assert_fenced(
        409,
        "stale-token",
        "the mark is what it was until the lower one is durable",
    );
    stage
        .send(&write(51, "above"))
        .assert_fenced(503, "draining", "nothing passes a sealed lane");
    assert_eq!(stage.mark(KEY).as_deref(), Some("50"));
    // Later in the log: it is not the sync that the reset waits for.
    stage.raise("/objects/other", "1");
    assert!(!running.is_finished());
    gate.open();
    older
        .join()
        .unwrap()
        .assert_ok("the write with the old mark");
    assert_eq!(running.join().unwrap().status, 200);
    stage.recorder.was_reset(PATH, asked);
    stage
        .send(&write(35, "35"))
        .assert_ok("an advance over the new mark");
    let (ended, began) = (
        stage.recorder.ended("50").ended.unwrap(),
        stage.recorder.ended("35").began,
    );
    assert!(began > ended, "35 began when 50 had ended");
    stage.recorder.history().assert_ordered();
}

#[test]
fn a_reset_cuts_uploads_and_waits_for_them_to_settle() {
    let stage = Stage::with(|config| config.settle("600ms"));
    stage.raise(PATH, "50");
    stage.recorder.on("upload", |exchange| {
        exchange.works_on(Duration::from_millis(300));
        exchange.read_body()?;
        exchange.respond(200, "ok")
    });
    let mut upload = Connection::open(stage.http());
    upload.send(write(50, "upload").head(10)).send("half");
    stage.recorder.has_body("upload", 4);
    let answer = reset(&stage, "50", "34");
    assert_eq!(answer.status, 200, "{}", answer.text());
    upload
        .response()
        .assert_refused(409, "superseded", "unknown", "the upload was cut");
    stage.send(&write(34, "after")).assert_ok("the new mark");
    stage.recorder.history().assert_ordered();
}

#[test]
fn a_reset_that_cannot_drain_leaves_the_mark_as_it_was() {
    let stage = Stage::with(|config| config.fence("drain", json!({ "timeout": "200ms" })));
    stage.raise(PATH, "50");
    let gate = stage.recorder.hold("50");
    let older = write(50, "50").spawn(stage.http());
    stage.recorder.received("50");
    reset(&stage, "50", "34").assert_fenced(503, "draining", "a write is in flight");
    assert_eq!(stage.mark(KEY).as_deref(), Some("50"));
    stage
        .send(&write(50, "equal"))
        .assert_ok("the lane is open again");
    gate.open();
    older.join().unwrap().assert_ok("the write");
    stage.gateway.wait_key(KEY, "in_flight", 0);
    assert_eq!(reset(&stage, "50", "34").status, 200, "and now it drains");
    stage.recorder.history().assert_ordered();
}

#[test]
fn a_reset_cuts_at_the_timeout_where_an_advance_would() {
    let drain = json!({ "timeout": "200ms", "on_timeout": "cut" });
    let stage = Stage::with(|config| config.settle("300ms").fence("drain", drain));
    stage.raise(PATH, "50");
    stage.recorder.on("silent", |exchange| {
        exchange.read_body()?;
        exchange.never()
    });
    let silent = write(50, "silent").spawn(stage.http());
    stage.recorder.received("silent");
    assert_eq!(reset(&stage, "50", "34").status, 200);
    let answer = silent.join().unwrap();
    answer.assert_refused(409, "superseded", "unknown", "the write was cut");
    stage.recorder.history().assert_ordered();
}

#[test]
fn those_that_wait_are_refused_by_a_reset() {
    let stage = Stage::with(|config| config.settle("300ms"));
    stage.raise(PATH, "50");
    let gate = stage.recorder.hold("50");
    let older = write(50, "50").spawn(stage.http());
    stage.recorder.received("50");
    let waiting = write(51, "waiting").spawn(stage.http());
    stage.gateway.wait_key(KEY, "waiting", 1);
    let call = stage.gateway.reset_call(KEY, "51", "34");
    let running = call.spawn(stage.gateway.admin);
    let refused = waiting.join().unwrap();
    refused.assert_fenced(503, "draining", "it waited in a lane that was sealed");
    gate.open();
    older.join().unwrap().assert_ok("the write in flight");
    assert_eq!(running.join().unwrap().status, 200);
    assert_eq!(stage.mark(KEY).as_deref(), Some("34"));
}

#[test]
fn a_reset_goes_on_when_its_caller_leaves() {
    let stage = Stage::new();
    stage.raise(PATH, "50");
    let gate = stage.recorder.hold("50");
    let older = write(50, "50").spawn(stage.http());
    stage.recorder.received("50");
    let mut caller = Connection::open(stage.gateway.admin);
    caller.send(stage.gateway.reset_call(KEY, "50", "34").whole());
    eventually("the lane is sealed", || {
        (stage.send(&write(50, "probe")).status == 503).then_some(())
    });
    caller.abort();
    gate.open();
    older.join().unwrap().assert_ok("the write");
    stage.gateway.wait_mark(KEY, "34");
    stage.gateway.says("\"done\"");
}

#[test]
fn bad_calls_change_nothing_and_are_told_so() {
    let stage = Stage::at_34();
    let post = |target: &str, body: &str| stage.gateway.admin_post(target, body);
    let bad = [
        ("", "no body"),
        ("{}", "nothing in it"),
        ("[]", "a list"),
        (r#"{"token":35}"#, "a number"),
        (r#"{"token":null}"#, "null"),
        (r#"{"token":"35","token":"36"}"#, "twice"),
        (r#"{"token":"35","more":1}"#, "an unknown field"),
        (r#"{"token":"35"} x"#, "something behind it"),
        (r#"{"token":"35""#, "broken off"),
        ("{\"token\":\"35\u{0}\"}", "a control byte"),
        ("\u{feff}{\"token\":\"35\"}", "a byte order mark"),
    ];
    for (body, what) in bad {
        post("/v1/keys/objects%2F42/raise", body).assert_fenced(400, "bad-request", what);
    }
    for token in [
        "",
        " 35",
        "+35",
        "0",
        "3.4e1",
        "1.2.3",
        "18446744073709551616",
    ] {
        let body = json!({ "token": token }).to_string();
        let answer = post("/v1/keys/objects%2F42/raise", &body);
        answer.assert_fenced(400, "malformed-token", token);
    }
    let good = r#"{"token":"35"}"#;
    for (target, status, what) in [
        ("/v1/keys/raise", 405, "a key that is none"),
        (
            "/v1/keys/objects/42/raise",
            400,
            "a slash that is not encoded",
        ),
        ("/v1/keys/objects%2F/raise", 400, "an empty key"),
        ("/v1/keys/%2F42/raise", 400, "an empty namespace"),
        ("/v1/keys/objects%2F%ff/raise", 400, "not UTF-8"),
        ("/v1/keys/others%2F42/raise", 404, "an unknown namespace"),
        ("/v1/keys/objects%2F42/lower", 404, "an unknown action"),
    ] {
        assert_eq!(post(target, good).status, status, "{what}");
    }
    let long = format!("/v1/keys/objects%2F{}/raise", "k".repeat(1025));
    assert_eq!(post(&long, good).status, 400, "a key that is too long");
    let huge = format!(r#"{{"token":"35"{}}}"#, " ".repeat(20_000));
    let answer = post("/v1/keys/objects%2F42/raise", &huge);
    answer.assert_fenced(413, "body-too-large", "a huge body");
    let get = stage.gateway.admin_get("/v1/keys/objects%2F42/raise");
    assert_eq!((get.status, get.header("allow")), (405, Some("POST")));
    let delete = Request::new("DELETE", "/v1/keys/objects%2F42").host("localhost");
    assert_eq!(delete.send(stage.gateway.admin).status, 405);
    stage
        .gateway
        .reset_call("objects/none", "2", "1")
        .send(stage.gateway.admin)
        .assert_fenced(404, "no-route", "a key without a mark");
    assert_eq!(
        stage.mark(KEY).as_deref(),
        Some("34"),
        "nothing has changed"
    );
    assert_eq!(stage.gateway.marks().len(), 1, "no state grew");
}

// A2
#[test]
fn no_other_site_raises_or_resets_marks() {
    let stage = Stage::at_34();
    let calls = [
        stage.gateway.raise_call(KEY, "99"),
        stage.gateway.reset_call(KEY, "34", "1"),
    ];
    for call in calls {
        for bad in [
            call.clone().host("evil.test"),
            call.clone().header("Origin", "http://evil.test"),
            call.clone().header("Origin", "null"),
            call.clone().header("Sec-Fetch-Site", "cross-site"),
        ] {
            let answer = bad.send(stage.gateway.admin);
            answer.assert_fenced(403, "forbidden", &format!("{bad:?}"));
            assert_eq!(answer.header("access-control-allow-origin"), None);
        }
        let preflight = Request::new("OPTIONS", "/v1/keys/objects%2F42/raise")
            .host(&stage.gateway.admin.to_string())
            .header("Origin", "http://evil.test")
            .header("Access-Control-Request-Method", "POST");
        assert_eq!(preflight.send(stage.gateway.admin).status, 403);
    }
    assert_eq!(stage.mark(KEY).as_deref(), Some("34"));
}

#[test]
fn where_there_are_tokens_nobody_raises_without_one() {
    // "sesame"
    let hash = "sha256:d0c04f4b1951e4aeaaec8223ed2039e542f3aae805a6fa7f6d794e5afff5d272";
    let stage = Stage::with(|config| config.set("admin.tokens", json!([hash])));
    let call = stage.gateway.raise_call(KEY, "34");
    for bad in [
        call.clone(),
        call.clone().header("Authorization", "Bearer open"),
        call.clone().header("Authorization", "Basic sesame"),
        call.clone().header("Authorization", "Bearer "),
    ] {
        let answer = bad.send(stage.gateway.admin);
        answer.assert_fenced(403, "forbidden", &format!("{bad:?}"));
    }
    let good = call.header("Authorization", "Bearer sesame");
    assert_eq!(good.send(stage.gateway.admin).status, 200);
    let line = stage.gateway.says("fencegate::audit");
    assert!(line.contains("sha256:d0c04f4b"), "it says whose: {line}");
    assert!(!stage.gateway.errors().contains("sesame"));
}

#[test]
fn what_was_reset_is_verified_exported_and_raised_again_by_an_import() {
    let mut stage = Stage::new();
    stage.raise(PATH, "50");
    stage.raise("/objects/43", "7");
    assert_eq!(reset(&stage, "50", "34").status, 200);
    assert!(stage.gateway.terminate().success());
    let store = stage.gateway.store();
    let store = store.to_str().unwrap();
    let verified = run(&["store", "verify", store]);
    assert!(verified.status.success(), "{verified:?}");
    let exported = run(&["store", "export", store]);
    let text = String::from_utf8(exported.stdout).unwrap();
    assert!(text.contains(r#""objects/42","token":"34""#), "{text}");

    // An import only ever raises, whatever was reset here or there.
    let import = |lines: &str| {
        use std::io::Write;
        let mut child = crate::common::binary()
            .args(["store", "import", store])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(lines.as_bytes()).unwrap();
        drop(stdin);
        assert!(child.wait().unwrap().success());
    };
    import(r#"{"key":"objects/42","token":"33"}"#);
    stage.gateway.restart();
    assert_eq!(
        stage.mark(KEY).as_deref(),
        Some("34"),
        "a lower one changes nothing"
    );
    assert!(stage.gateway.terminate().success());
    import(r#"{"key":"objects/42","token":"60","holder":"pod-a"}"#);
    stage.gateway.restart();
    assert_eq!(
        stage.mark(KEY).as_deref(),
        Some("60"),
        "a higher one raises"
    );
    assert_eq!(stage.mark("objects/43").as_deref(), Some("7"));
}

/// Marks are raised and reset while the process is killed: what is found is the old mark or the new.
#[test]
fn a_crash_at_any_moment_leaves_the_old_mark_or_the_new() {
    let seed: u64 = std::env::var("FENCEGATE_SEED").map_or(5, |seed| seed.parse().unwrap());
    println!("seed {seed}: FENCEGATE_SEED={seed} repeats it");
    let mut dice = Dice::new(seed);
    let mut stage = Stage::with(|config| config.settle("100ms"));
    let (mut low, mut kept, mut lowered) = (1, 0, 0);
    for round in 0..25 {
        let high = low + 10;
        assert_eq!(raise(&stage, &high.to_string()).status, 200);
        let call = stage
            .gateway
            .reset_call(KEY, &high.to_string(), &(low + 1).to_string());
        let mut caller = Connection::open(stage.gateway.admin);
        caller.send(call.whole());
        std::thread::sleep(Duration::from_micros(dice.below(2500)));
        stage.gateway.kill();
        let answered = caller
            .try_response("POST")
            .is_ok_and(|one| one.status == 200);
        stage.gateway.restart();
        let mark: u64 = stage.mark(KEY).unwrap().parse().unwrap();
        match mark {
            mark if mark == low + 1 => lowered += 1,
            mark if mark == high && !answered => kept += 1,
            other => panic!("round {round}: {other} is neither {high} nor {}", low + 1),
        }
        // The hold after the crash is over when an advance is let through.
        low = mark;
        assert_eq!(raise(&stage, &(low + 1).to_string()).status, 200);
        low += 1;
    }
    println!("{kept} times the old mark, {lowered} times the new one");
}

/// One writer of a storm: it goes on until it is told to stop, and takes a rest when it is refused, so
/// that a lane which is sealed is no reason to open thousands of connections.
fn writer(
    stage: &Stage,
    seed: u64,
    counter: &Arc<AtomicU64>,
    stop: &Arc<AtomicBool>,
) -> std::thread::JoinHandle<()> {
    let (http, counter, stop) = (stage.http(), Arc::clone(counter), Arc::clone(stop));
    std::thread::spawn(move || {
        let mut dice = Dice::new(seed);
        while !stop.load(Ordering::SeqCst) {
            let newest = counter.fetch_add(dice.below(2), Ordering::SeqCst);
            let token = newest.saturating_sub(dice.below(2)).max(1);
            let tag =
                ["slow", "slow", "fast", "reset", "early"][usize::try_from(dice.below(5)).unwrap()];
            let write = write(token, tag);
            let mut client = Connection::open(http);
            if dice.below(8) == 0 {
                client.send(write.head(10)).send("half");
                client.abort();
                continue;
            }
            let answer = client.send(write.whole()).try_response("PUT");
            if !answer.is_ok_and(|answer| answer.status == 200) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    })
}

/// Writers, and an administrator who lowers the mark in the midst of them.
#[test]
fn resets_in_a_storm_keep_everything_apart() {
    let stage = Stage::with(|config| {
        let drain = json!({ "timeout": "2s", "on_timeout": "cut" });
        config.settle("100ms").fence("drain", drain)
    });
    weather(&stage.recorder);
    let (counter, stop) = (
        Arc::new(AtomicU64::new(10)),
        Arc::new(AtomicBool::new(false)),
    );
    let writers: Vec<_> = (0..6)
        .map(|n| writer(&stage, 210 + n, &counter, &stop))
        .collect();
    let mut resets = 0;
    for _ in 0..12 {
        let before = stage.recorder.count();
        eventually("the storm goes on", || {
            (stage.recorder.count() >= before + 8).then_some(())
        });
        let mark: u64 = stage.mark(KEY).unwrap().parse().unwrap();
        let low = mark.saturating_sub(5).max(1);
        let answer = reset(&stage, &mark.to_string(), &low.to_string());
        match answer.status {
            200 => {
                resets += 1;
                // The writers go on from there.
                counter.fetch_min(low, Ordering::SeqCst);
            }
            400 | 409 | 503 => {}
            other => panic!("{other}: {}", answer.text()),
        }
    }
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.join().unwrap();
    }
    println!("{resets} resets among {} writes", stage.recorder.count());
    assert!(resets > 2, "{resets} resets are too few");
    stage.recorder.history().assert_ordered();
}
