//! What happens to a lock, as those are told who watch it: server-sent events over real sockets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::common::locks::{KEY, token};
use crate::common::{Connection, Request, Stage};
use serde_json::{Value, json};

const EVENTS: &str = "/v1/locks/objects%2F42/events";

/// Takes the lock, and waits until it is free.
fn acquire(stage: &Stage, holder: &str, ttl_ms: u64) -> String {
    let call = stage.acquiring(holder, ttl_ms, 20_000);
    token(&call.send(stage.locks()))
}

/// Somebody who watches: over HTTP/1.0, so that nothing stands between the lines.
struct Watcher(BufReader<TcpStream>);

#[derive(Debug)]
struct Event {
    id: Option<String>,
    name: String,
    data: Value,
}

impl Watcher {
    fn open(locks: SocketAddr, target: &str, more: &str) -> Self {
        let mut stream = TcpStream::connect(locks).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        write!(
            stream,
            "GET {target} HTTP/1.0\r\nHost: localhost\r\n{more}\r\n"
        )
        .unwrap();
        let mut watcher = Self(BufReader::new(stream));
        let mut head = watcher.line();
        assert!(head.contains(" 200 "), "{head}");
        while !watcher.line().is_empty() {
            head = String::new();
        }
        assert!(head.is_empty());
        // From here on everything is told.
        assert_eq!(watcher.line(), ": watching");
        watcher
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let count = self.0.read_line(&mut line).unwrap();
        assert!(count > 0, "the events have ended");
        line.trim_end().to_owned()
    }

    fn event(&mut self) -> Event {
        let mut event = Event {
            id: None,
            name: String::new(),
            data: Value::Null,
        };
        loop {
            let line = self.line();
            match line.split_once(": ") {
                Some(("id", id)) => event.id = Some(id.to_owned()),
                Some(("event", name)) => name.clone_into(&mut event.name),
                Some(("data", data)) => event.data = serde_json::from_str(data).unwrap(),
                _ if line.is_empty() && !event.name.is_empty() => return event,
                _ => {}
            }
        }
    }

    #[track_caller]
    fn tells(&mut self, name: &str, token: &str, holder: Option<&str>) -> Event {
        let event = self.event();
        let expected = json!({ "key": KEY, "token": token, "holder": holder });
        let mut data = event.data.clone();
        data.as_object_mut().unwrap().remove("reason");
        assert_eq!((event.name.as_str(), data), (name, expected), "{event:?}");
        event
    }
}

#[test]
fn everything_that_happens_to_a_lock_is_told_in_order() {
    let stage = Stage::locking();
    let locks = stage.locks();
    let mut watchers = [0, 1].map(|_| Watcher::open(locks, EVENTS, ""));
    let first = acquire(&stage, "pod-a", 30_000);
    stage.renew(&first, 60_000);
    stage.renew("7", 60_000);
    stage.release(&first);
    let second = acquire(&stage, "pod-b", 300);
    let late = stage.send(&Request::put("/objects/42").token(&first));
    late.assert_fenced(409, "stale-token", "whoever stalled");
    for watcher in &mut watchers {
        let ids = [
            watcher.tells("granted", &first, Some("pod-a")),
            watcher.tells("renewed", &first, Some("pod-a")),
            watcher.tells("refused", "7", None),
            watcher.tells("released", &first, Some("pod-a")),
            watcher.tells("granted", &second, Some("pod-b")),
            watcher.tells("refused", &first, None),
            watcher.tells("expired", &second, Some("pod-b")),
        ]
        .map(|event| event.id.unwrap());
        let number = |id: &String| id.split_once('-').unwrap().1.parse::<u64>().unwrap();
        assert!(
            ids.is_sorted_by(|one, next| number(one) < number(next)),
            "{ids:?}"
        );
    }
}

#[test]
fn a_refusal_is_told_with_its_reason_and_a_newer_token_ends_a_lease() {
    let stage = Stage::locking();
    let mut watcher = Watcher::open(stage.locks(), EVENTS, "");
    let first = acquire(&stage, "pod-a", 30_000);
    watcher.tells("granted", &first, Some("pod-a"));
    stage.raise("/objects/42", "34");
    watcher.tells("expired", &first, Some("pod-a"));
    stage
        .send(&Request::put("/objects/42").token(&first))
        .assert_fenced(409, "stale-token", "the old holder");
    assert_eq!(
        watcher.tells("refused", &first, None).data["reason"],
        "stale-token"
    );
    stage.release(&first);
    assert_eq!(
        watcher.tells("refused", &first, None).data["reason"],
        "lock-lost"
    );
}

#[test]
fn a_lease_that_nobody_was_told_of_is_none_to_those_who_watch() {
    let stage = Stage::locking();
    let mut watcher = Watcher::open(stage.locks(), EVENTS, "");
    let first = acquire(&stage, "pod-a", 30_000);
    let slow = stage.slow_write(&first);
    stage.release(&first);
    let mut gone = Connection::open(stage.locks());
    let body = json!({ "holder": "pod-b", "ttl_ms": 30_000 });
    gone.send(stage.gateway.lock_call(KEY, "acquire", &body).whole());
    stage.gateway.wait_mark(KEY, "2");
    gone.abort();
    // The next in line has it while the older write is in flight.
    let next = stage.queue_up("pod-c", 60_000);
    stage.gateway.wait_mark(KEY, "3");
    slow.end();
    assert_eq!(token(&next.join().unwrap()), "3");
    watcher.tells("granted", "1", Some("pod-a"));
    watcher.tells("released", "1", Some("pod-a"));
    watcher.tells("granted", "3", Some("pod-c"));
}

#[test]
fn whoever_comes_again_knows_that_it_may_have_missed_some() {
    let stage = Stage::locking();
    let locks = stage.locks();
    let mut watcher = Watcher::open(locks, EVENTS, "Last-Event-ID: 5d0-7\r\n");
    let event = watcher.event();
    assert_eq!(event.name, "missed");
    assert_eq!(event.data, json!({ "key": KEY, "missed": null }));
    let first = acquire(&stage, "pod-a", 30_000);
    watcher.tells("granted", &first, Some("pod-a"));
}

#[test]
fn whoever_reads_slowly_is_told_how_many_it_has_missed() {
    let stage = Stage::locking();
    let locks = stage.locks();
    // Long names, so that the system's buffers are soon full.
    let (long, holder) = ("k".repeat(1000), "h".repeat(128));
    let key = format!("objects/{long}");
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&locks.into()).unwrap();
    let mut slow: TcpStream = socket.into();
    slow.set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    write!(
        slow,
        "GET /v1/locks/objects%2F{long}/events HTTP/1.0\r\nHost: localhost\r\n\r\n"
    )
    .unwrap();
    let mut slow = BufReader::new(slow);
    let mut line = String::new();
    while line.trim_end() != ": watching" {
        line.clear();
        assert!(slow.read_line(&mut line).unwrap() > 0);
    }
    let body = json!({ "holder": holder, "ttl_ms": 3_600_000 });
    let acquired = stage.gateway.lock_call(&key, "acquire", &body).send(locks);
    let token = acquired.json()["token"].clone();
    let body = json!({ "token": token, "ttl_ms": 3_600_000 });
    let renewal = stage.gateway.lock_call(&key, "renew", &body).whole();
    let mut holder = Connection::open(locks);
    // More than the system's buffers hold, and for less time than the service waits for a client that reads nothing: that is
    // what it takes on a fast machine, and on a slow one.
    let (mut renewals, began) = (0, Instant::now());
    let before = stage.gateway.resident_kib();
    while renewals < 4000 || (renewals < 6000 && began.elapsed() < Duration::from_secs(20)) {
        assert_eq!(holder.send(&renewal).response().status, 200);
        renewals += 1;
    }
    let grown = stage.gateway.resident_kib().saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB for one that does not read");
    let (mut read, mut missed) = (0, None);
    let mut name = String::new();
    while missed.is_none() {
        line.clear();
        assert!(
            slow.read_line(&mut line).unwrap() > 0,
            "cut off before it knew"
        );
        match line.trim_end().split_once(": ") {
            Some(("event", "missed")) => "missed".clone_into(&mut name),
            Some(("event", _)) => read += 1,
            Some(("data", data)) if name == "missed" => {
                let data: Value = serde_json::from_str(data).unwrap();
                missed = data["missed"].as_u64();
            }
            _ => {}
        }
    }
    assert_eq!(
        read + missed.unwrap(),
        renewals + 1,
        "each is accounted for"
    );
    assert_eq!(holder.send(&renewal).response().status, 200);
    line.clear();
    while !line.starts_with("event: ") {
        line.clear();
        slow.read_line(&mut line).unwrap();
    }
    assert_eq!(line.trim_end(), "event: renewed", "and it goes on");
}

#[test]
fn a_comment_comes_where_nothing_happens() {
    let stage = Stage::locking();
    let mut watcher = Watcher::open(stage.locks(), EVENTS, "");
    while watcher.line() != ": still here" {}
}

#[test]
fn a_stop_ends_it_for_all_who_watch_and_who_wait() {
    let mut stage = Stage::locking();
    let locks = stage.locks();
    acquire(&stage, "pod-a", 30_000);
    let mut watcher = Connection::open(locks);
    watcher.send(Request::get(EVENTS).host("localhost").whole());
    let head = watcher.head().unwrap();
    assert_eq!(head.get("content-type"), Some("text/event-stream"));
    let waits = stage.queue_up("pod-b", 60_000);
    stage.wait_for_waiting(1);
    let began = Instant::now();
    assert!(stage.gateway.terminate().success());
    let took = began.elapsed();
    assert!(
        took < Duration::from_secs(5),
        "nothing held it up: {took:?}"
    );
    let mut rest = Vec::new();
    watcher.stream().read_to_end(&mut rest).unwrap();
    assert!(rest.ends_with(b"0\r\n\r\n"), "the body ends as it should");
    waits
        .join()
        .unwrap()
        .assert_fenced(503, "shutting-down", "it is told");
}

#[test]
fn what_is_no_call_for_events_is_told_so() {
    let stage = Stage::locking();
    let locks = stage.locks();
    let ask = |request: Request| request.host("localhost").send(locks);
    ask(Request::get("/v1/locks/others%2F42/events")).assert_fenced(
        404,
        "no-route",
        "no such namespace",
    );
    let post = ask(Request::new("POST", EVENTS).body("{}"));
    post.assert_fenced(405, "method-not-allowed", "only GET");
    assert_eq!(post.header("allow"), Some("GET, HEAD"));
    let head = ask(Request::new("HEAD", EVENTS));
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    ask(Request::get(EVENTS).header("Origin", "http://evil.test")).assert_fenced(
        403,
        "forbidden",
        "another site",
    );
}

#[test]
fn those_who_watch_are_bounded_in_number() {
    let stage = Stage::locking();
    let locks = stage.locks();
    let watch = || {
        let mut connection = Connection::open(locks);
        connection.send(Request::get(EVENTS).host("localhost").whole());
        connection
    };
    let mut watchers: Vec<_> = (0..1024).map(|_| watch()).collect();
    for watcher in &mut watchers {
        assert_eq!(watcher.head().unwrap().line, "HTTP/1.1 200 OK");
    }
    let refused = watch().response();
    refused.assert_fenced(503, "busy", "one more");
    assert!(refused.header("retry-after").is_some());
    // The lock is as well as ever, and so is who comes when others have left.
    assert_eq!(acquire(&stage, "pod-a", 1000), "1");
    watchers.truncate(1000);
    crate::common::eventually("there is room again", || {
        let mut watcher = watch();
        (watcher.head().unwrap().line == "HTTP/1.1 200 OK").then_some(())
    });
}
