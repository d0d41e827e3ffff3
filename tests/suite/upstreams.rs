//! Upstreams by TLS, and what `check` says of upstreams.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Instant;

use crate::common::http2_server::Http2Server;
use crate::common::tls::{Authority, Issued, NAME, terminate};
use crate::common::{Config, Connection, Gateway, Recorder, Request, Stage, eventually, run};
use serde_json::{Value, json};

fn write(token: u64) -> Request {
    Request::put("/objects/42").token(token)
}

/// A recorder that is reached over TLS only.
struct Secured {
    recorder: Recorder,
    terminator: crate::common::tls::Terminator,
}

impl Secured {
    fn new(authority: &Authority, issued: &Issued, asks: bool) -> Self {
        let recorder = Recorder::start();
        let config = authority.server(issued, asks, "http/1.1");
        let terminator = terminate(config, recorder.address());
        Self {
            recorder,
            terminator,
        }
    }

    fn stage(
        self,
        change: impl FnOnce(Config) -> Config,
    ) -> (Stage, crate::common::tls::Terminator) {
        let url = format!("https://{}", self.terminator.address);
        let stage = Stage::before(self.recorder, |config| {
            change(config.upstream("urls", json!([url])))
        });
        (stage, self.terminator)
    }
}

fn of(authority: &Authority) -> Value {
    json!({ "ca": authority.path("ca.pem"), "server_name": NAME })
}

#[test]
fn an_upstream_by_tls_proves_who_it_is() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let served = authority.issue(|_| {});
    let (stage, terminator) = Secured::new(&authority, &served, false).stage(|config| {
        config
            .upstream("tls", of(&authority))
            .upstream("pool", json!({ "idle_timeout": "60s" }))
    });
    let body = vec![b'x'; 3_000_000];
    // One connection, so that one worker has them all.
    let mut client = Connection::open(stage.http());
    client.send(write(34).body(&body).whole());
    client.response().assert_ok("over TLS");
    assert!(stage.recorder.last().body == body);
    client.send(write(33).whole());
    let answer = client.response();
    answer.assert_fenced(409, "stale-token", "fenced all the same");
    client.send(write(35).whole());
    client.response().assert_ok("and once more");
    assert_eq!(stage.recorder.connections(), 1, "the connection is kept");
    assert_eq!(*terminator.names.lock().unwrap(), [Some(NAME.to_owned())]);
    assert_eq!(*terminator.shown.lock().unwrap(), [None]);

    for (tls, why) in [
        (of(&stranger), "of an authority that is not believed"),
        (
            json!({ "ca": authority.path("ca.pem"), "server_name": "other.test" }),
            "for another name",
        ),
        (
            json!({ "ca": authority.path("ca.pem") }),
            "for a name where there is an address",
        ),
    ] {
        let secured = Secured::new(&authority, &served, false);
        let (stage, _) = secured.stage(|config| config.upstream("tls", tls));
        let answer = stage.send(&write(34));
        answer.assert_fenced(502, "upstream-unreachable", why);
        assert_eq!(stage.recorder.count(), 0);
        let key = stage.gateway.key("objects/42").unwrap();
        assert_eq!(key["unsettled"], 0, "nothing was sent: {key}");
    }
}

#[test]
fn an_upstream_is_shown_a_certificate() {
    let authority = Authority::new();
    let served = authority.issue(|_| {});
    let own = authority.client(vec![], "gateway");
    let mut tls = of(&authority);
    tls["cert"] = json!(authority.write("own.pem", &own.cert));
    tls["key"] = json!(authority.write("own.key", &own.key));
    let (stage, terminator) =
        Secured::new(&authority, &served, true).stage(|config| config.upstream("tls", tls));
    stage.send(&write(34)).assert_ok("with a certificate");
    assert!(terminator.shown.lock().unwrap()[0].is_some());

    let (stage, _) = Secured::new(&authority, &served, true)
        .stage(|config| config.upstream("tls", of(&authority)));
    let answer = stage.send(&write(34));
    assert_eq!(answer.status, 502, "without one: {}", answer.text());
    assert_eq!(stage.recorder.count(), 0);
}

#[test]
fn whom_an_upstream_is_believed_is_read_again_when_it_changes() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let served = authority.issue(|_| {});
    let believed = stranger.path("ca.pem");
    let tls = json!({ "ca": believed, "server_name": NAME });
    let (stage, _terminator) = Secured::new(&authority, &served, false)
        .stage(|config| config.upstream("tls", tls).settle("100ms"));
    let answer = stage.send(&write(34));
    answer.assert_fenced(502, "upstream-unreachable", "of another authority");
    let authority = std::fs::read(authority.path("ca.pem")).unwrap();
    std::fs::write(&believed, authority).unwrap();
    eventually("the authority is believed", || {
        (stage.send(&write(34)).status == 200).then_some(())
    });
}

#[test]
fn a_cut_over_tls_closes_the_connection_at_once() {
    let authority = Authority::new();
    let (stage, _) = Secured::new(&authority, &authority.issue(|_| {}), false)
        .stage(|config| config.upstream("tls", of(&authority)).settle("500ms"));
    let mut older = Connection::open(stage.http());
    older
        .send(write(33).tag("older").head(1000))
        .send([b'x'; 500]);
    stage.recorder.has_body("older", 500);
    let began = Instant::now();
    stage
        .send(&write(34).tag("newer"))
        .assert_ok("after the cut and its settle");
    older
        .response()
        .assert_refused(409, "superseded", "unknown", "its upload was cut");
    let broke = stage.recorder.broke("older");
    let newer = stage.recorder.arrived("newer");
    assert!(newer.began.order > broke.broke.unwrap().order);
    assert!(
        newer.began.at.duration_since(began).as_millis() >= 500,
        "it has settled"
    );
    assert!(
        stage.recorder.history().tagged("older")[0]
            .body_done
            .is_none()
    );
}

/// A server that answers with a body that only the end of the connection ends, and tells the end of
/// TLS or does not.
fn close_delimited(config: rustls::ServerConfig, tells: bool) -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let accepting = listener.try_clone().unwrap();
    let config = Arc::new(config);
    std::thread::spawn(move || {
        for stream in accepting.incoming() {
            let mut stream = stream.unwrap();
            let mut tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut both = rustls::Stream::new(&mut tls, &mut stream);
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\ndata") && both.read(&mut byte).is_ok_and(|n| n > 0) {
                head.push(byte[0]);
            }
            let _ = both.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf of it");
            let _ = both.flush();
            if tells {
                tls.send_close_notify();
                let _ = tls.complete_io(&mut stream);
            }
            let _ = stream.shutdown(std::net::Shutdown::Write);
            // Whoever is told of the end closes too.
            let _ = stream.read(&mut [0; 100]);
        }
    });
    listener
}

#[test]
fn a_response_that_tls_did_not_end_is_truncated_and_its_outcome_unknown() {
    let authority = Authority::new();
    let served = authority.issue(|_| {});
    for tells in [true, false] {
        let listener = close_delimited(authority.server(&served, false, "http/1.1"), tells);
        let url = format!("https://{}", listener.local_addr().unwrap());
        let config = Config::new(&url)
            .upstream("tls", of(&authority))
            .settle("20s");
        let gateway = Gateway::start(config);
        let mut client = Connection::open(gateway.http);
        client.send(write(34).whole());
        let answer = client.try_response("PUT");
        let unsettled = u64::from(!tells);
        gateway.wait_key("objects/42", "in_flight", 0);
        gateway.wait_key("objects/42", "unsettled", unsettled);
        match answer {
            Ok(answer) if tells => {
                assert!(answer.broken.is_none());
                assert_eq!(answer.text(), "half of it");
            }
            Ok(answer) => assert!(
                answer.broken.is_some() || answer.status == 502,
                "{answer:?}"
            ),
            Err(_) => assert!(!tells),
        }
    }
}

#[test]
fn http_2_by_tls_is_agreed_on() {
    let authority = Authority::new();
    let served = authority.issue(|_| {});
    let (stage, _) = Secured::new(&authority, &served, false).stage(|config| {
        config
            .upstream("tls", of(&authority))
            .upstream("http2", true)
    });
    let answer = stage.send(&write(34));
    answer.assert_fenced(502, "upstream-unreachable", "it speaks HTTP/1.1 only");

    let server = Http2Server::start();
    let (told, scheme) = std::sync::mpsc::channel();
    server.on("two", move |mut exchange| {
        let told = told.clone();
        async move {
            exchange.read_body().await?;
            let _ = told.send(exchange.request.uri().scheme_str().map(str::to_owned));
            exchange.answer(200, "ok")
        }
    });
    let to = server
        .url()
        .strip_prefix("http://")
        .unwrap()
        .parse()
        .unwrap();
    let terminator = terminate(authority.server(&served, false, "h2"), to);
    let url = format!("https://{}", terminator.address);
    let config = Config::new(&url)
        .upstream("tls", of(&authority))
        .upstream("http2", true);
    let gateway = Gateway::start(config);
    let body = vec![b'x'; 1_000_000];
    let answer = write(34).tag("two").body(&body).send(gateway.http);
    answer.assert_ok("HTTP/2 over TLS");
    assert_eq!(scheme.recv().unwrap().as_deref(), Some("https"));
    assert!(server.history().0[0].body == body);
    write(33)
        .send(gateway.http)
        .assert_fenced(409, "stale-token", "fenced all the same");
}

/// Two resources behind one upstream.
fn pair(change: impl FnOnce(Config) -> Config) -> (Stage, Recorder) {
    let (one, other) = (Recorder::start(), Recorder::start());
    let urls = json!([one.url(), other.url()]);
    let stage = Stage::before(one, |config| change(config.upstream("urls", urls)));
    (stage, other)
}

#[test]
fn a_request_that_was_sent_does_not_go_to_another_address() {
    let (stage, other) = pair(|config| config.settle("200ms"));
    for recorder in [&stage.recorder, &other] {
        recorder.on("broken", |exchange| {
            exchange.read_body()?;
            Ok(crate::common::Next::Reset)
        });
    }
    let answer = stage.send(&write(34).tag("broken"));
    answer.assert_refused(502, "upstream-failed", "unknown", "it was reset");
    assert_eq!(stage.recorder.count() + other.count(), 1, "once");
}

#[test]
fn check_reads_what_upstreams_need() {
    let authority = Authority::new();
    let own = authority.client(vec![], "gateway");
    let cert = json!(authority.write("own.pem", &own.cert));
    let ca = json!(authority.path("ca.pem"));
    let https = "https://store.test";
    let upstreams = json!({
        "a": { "urls": [https], "tls": { "ca": ca, "cert": cert } },
        "b": { "urls": [https], "tls": { "ca": ca, "cert": cert, "key": authority.write("ca.key", "no") } },
        "c": { "urls": [https], "tls": { "ca": authority.path("none.pem") } },
        "d": { "urls": [https], "tls": { "ca": ca, "server_name": "two words" } },
        "e": { "urls": ["http://a"], "tls": { "ca": ca } },
        "f": { "urls": ["http://a", "http://A:80"] },
        "g": { "urls": ["builtin:objects", "http://a"] },
        "h": { "urls": ["unix:relative"] },
        "i": { "urls": ["http://a"], "health": { "path": "healthz", "interval": "1ms" } },
        "j": { "urls": [https, "http://a:81", "unix:/run/x"], "tls": { "ca": ca } },
    });
    let config = json!({
        "listeners": [{ "address": "127.0.0.1:0" }],
        "upstreams": upstreams,
        "routes": [{ "name": "objects", "path": "/objects/{id}", "upstream": "j" }],
    });
    let file = authority.write(
        "config.yaml",
        &serde_json::to_string_pretty(&config).unwrap(),
    );
    let output = run(&["check", "--config", file.to_str().unwrap()]);
    let text = String::from_utf8(output.stderr).unwrap();
    for expected in [
        "upstreams.a.tls.cert: a certificate and its key come together",
        "upstreams.b.tls.key: can't use",
        "upstreams.c.tls.ca: can't read",
        "upstreams.d.tls.server_name: expected the name",
        "upstreams.e.tls: no URL of this upstream is https",
        "upstreams.f.urls[1]: http://a:80 stands here twice",
        "upstreams.g.urls[0]: builtin:objects can't be one of several addresses",
        "upstreams.h.urls[0]: a unix socket needs an absolute path",
        "upstreams.i.health.path: expected a path such as /healthz",
        "upstreams.i.health.interval: expected a duration of at least",
        "10 problems",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}
