//! Upstreams that are reached by a unix socket.

use std::path::PathBuf;
use std::time::Duration;

use crate::common::tls::from_unix;
use crate::common::{Config, Connection, Gateway, Recorder, Request, eventually};
use serde_json::json;
use tempfile::TempDir;

/// A resource behind a unix socket.
struct Socket {
    recorder: Recorder,
    path: PathBuf,
    _dir: TempDir,
}

impl Socket {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let this = Self {
            recorder: Recorder::start(),
            path: dir.path().join("store.sock"),
            _dir: dir,
        };
        this.listen();
        this
    }

    /// Listens until the process ends: nobody reaches it once its file is gone.
    fn listen(&self) {
        from_unix(self.path.clone(), self.recorder.address());
    }

    fn url(&self) -> String {
        format!("unix:{}", self.path.display())
    }

    fn config(&self) -> Config {
        Config::new(&self.url())
    }
}

fn write(token: u64) -> Request {
    Request::put("/objects/42").token(token)
}

#[test]
fn requests_are_fenced_and_passed_on() {
    let socket = Socket::new();
    let pool = json!({ "idle_timeout": "60s" });
    let gateway = Gateway::start(socket.config().upstream("pool", pool));
    let mut client = Connection::open(gateway.http);
    for token in [33, 34] {
        client.send(write(token).whole());
        client.response().assert_ok("a write");
    }
    client.send(write(33).whole());
    client
        .response()
        .assert_fenced(409, "stale-token", "an older token");
    let seen = socket.recorder.last();
    assert_eq!(seen.header("host"), Some("store.test"));
    assert_eq!(socket.recorder.count(), 2);
    assert_eq!(socket.recorder.connections(), 1, "it is kept");
    socket.recorder.history().assert_ordered();
}

#[test]
fn a_request_without_a_host_is_for_localhost() {
    let socket = Socket::new();
    let gateway = Gateway::start(socket.config());
    let mut client = Connection::open(gateway.http);
    client.send("GET /objects/42 HTTP/1.0\r\n\r\n");
    client.response().assert_ok("a read");
    assert_eq!(socket.recorder.last().header("host"), Some("localhost"));
}

#[test]
fn an_upload_that_a_newer_token_cuts_ends_at_the_socket() {
    let socket = Socket::new();
    let gateway = Gateway::start(socket.config());
    let mut slow = Connection::open(gateway.http);
    slow.send(write(33).tag("slow").head(100)).send("half");
    socket.recorder.has_body("slow", 4);
    let newer = write(34).tag("newer").spawn(gateway.http);
    let answer = slow.response();
    answer.assert_refused(409, "superseded", "unknown", "it was cut");
    newer.join().unwrap().assert_ok("after it has settled");
    let cut = socket.recorder.broke("slow").broke.unwrap();
    let began = socket.recorder.arrived("newer").began;
    assert!(began.at.duration_since(cut.at) > Duration::from_millis(800));
    socket.recorder.history().assert_ordered();
}

#[test]
fn without_a_socket_nothing_is_sent_and_a_new_one_is_found() {
    let socket = Socket::new();
    std::fs::remove_file(&socket.path).unwrap();
    let gateway = Gateway::start(socket.config());
    let answer = write(1).send(gateway.http);
    answer.assert_fenced(502, "upstream-unreachable", "there is no socket");
    socket.listen();
    write(2).send(gateway.http).assert_ok("a write");
    assert_eq!(socket.recorder.count(), 1);
}

#[test]
fn it_can_stand_beside_other_addresses() {
    let socket = Socket::new();
    let urls = [socket.url(), socket.recorder.url()];
    let config = socket.config().upstream("urls", json!(urls));
    let gateway = Gateway::start(config);
    for token in 1..=4 {
        write(token).send(gateway.http).assert_ok("a write");
    }
    std::fs::remove_file(&socket.path).unwrap();
    socket.recorder.close_connections();
    let mut token = 4;
    eventually("the socket is found to be gone", || {
        token += 1;
        write(token)
            .send(gateway.http)
            .assert_ok("by the other address");
        gateway.errors().contains("left alone").then_some(())
    });
    socket.recorder.history().assert_ordered();
}
