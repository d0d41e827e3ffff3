//! A gateway whose process may have few files open, or none more.

use crate::common::http2::Http2;
use crate::common::{Config, Connection, Ended, Gateway, Launch, Recorder, Request, eventually};

fn write(token: u64) -> Request {
    Request::put("/objects/42").token(token)
}

// R12
#[test]
fn no_more_connections_are_held_than_there_are_descriptors_for() {
    const FIT: u32 = 64;
    let recorder = Recorder::start();
    let launch = Launch {
        under: vec!["prlimit".to_owned(), "--nofile=256:256".to_owned()],
        ..Launch::default()
    };
    let dir = tempfile::tempdir().unwrap();
    // The flood is to last as long as the test.
    let config = Config::new(&recorder.url()).set("timeouts.header", "5m");
    let mut gateway = Gateway::try_start(dir, config, launch).unwrap();
    let warning = gateway.says("limits.connections");
    for part in ["10000", "21024", "256", " 64 ", "LimitNOFILE"] {
        assert!(warning.contains(part), "{part}: {warning}");
    }
    let connections = |gateway: &Gateway| gateway.metric("fencegate_connections", &[]);
    let mut inside = Connection::open(gateway.http);
    inside.send(write(1).whole());
    inside.response().assert_ok("before the flood");
    let flood: Vec<_> = (1..FIT).map(|_| Connection::open(gateway.http)).collect();
    eventually("all places are taken", || {
        (connections(&gateway) >= f64::from(FIT)).then_some(())
    });
    for token in 2..100 {
        // Those that are shed are told so, and leave room for the next.
        let mut above = Connection::open(gateway.http);
        match above.try_response("GET") {
            Ok(answer) => assert_eq!(answer.status, 503, "{}", answer.text()),
            Err(ended) => assert_ne!(ended, Ended::Silent),
        }
        inside.send(write(token).whole());
        inside.response().assert_ok("an advance beside the flood");
        assert!(connections(&gateway) <= f64::from(FIT));
    }
    drop(flood);
    eventually("a place is free", || {
        let answer = write(100).try_send(gateway.http).ok()?;
        (answer.status == 200).then_some(())
    });
    assert!(gateway.terminate().success());
}

// R12
#[test]
fn streams_take_no_more_descriptors_than_there_are() {
    const FIT: usize = 64;
    const STREAMS: usize = 90;
    let recorder = Recorder::start();
    let gate = recorder.hold("held");
    let launch = Launch {
        under: vec!["prlimit".to_owned(), "--nofile=256:256".to_owned()],
        ..Launch::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::try_start(dir, Config::new(&recorder.url()), launch).unwrap();
    let mut client = Http2::open(gateway.http);
    // A new connection has to earn as many streams.
    for _ in 0..STREAMS {
        let stream = client.request(&Request::get("/objects/42"));
        client.response(stream).assert_ok("one at a time");
    }
    let streams: Vec<_> = (0..STREAMS)
        .map(|_| client.request(&Request::get("/objects/42").tag("held")))
        .collect();
    let mut busy = Vec::new();
    let refused = streams.iter().rev().take(STREAMS - FIT);
    for stream in refused {
        let answer = client.response(*stream);
        answer.assert_fenced(503, "busy", "one connection too many");
        busy.push(*stream);
    }
    write(1).try_send(gateway.http).unwrap().assert_fenced(
        503,
        "busy",
        "nor is there one for others",
    );
    gate.open();
    for stream in streams {
        if !busy.contains(&stream) {
            client.response(stream).assert_ok("within the limit");
        }
    }
    eventually("there is room again", || {
        (write(2).try_send(gateway.http).ok()?.status == 200).then_some(())
    });
    assert!(gateway.terminate().success());
}

/// Small segments, so that the log goes on to the next one with every few advances.
#[cfg(feature = "faults")]
#[test]
fn advances_outlive_a_want_of_descriptors() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let recorder = Recorder::start();
    let launch = Launch {
        variables: vec![("FENCEGATE_SMALL_STORE", "1".to_owned())],
        ..Launch::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::try_start(dir, Config::new(&recorder.url()), launch).unwrap();
    let target = format!("/objects/{}", "k".repeat(900));
    let mut client = Connection::open(gateway.http);
    let mut advance = |token: u64| {
        client.send(Request::put(&target).token(token).whole());
        client.response()
    };
    // It has opened the connection to the upstream. Nothing moves into the index before more advances have
    // come: what the index lacks in the middle of that may be the end of the store.
    advance(1).assert_ok("an advance");
    let mut last = 1;
    let pid = Pid::from_raw(i32::try_from(gateway.pid()).unwrap());
    let limit = |limit| prlimit(pid, Resource::Nofile, limit).unwrap();
    // Below what is open, so that nothing more can be.
    let few = Rlimit {
        current: Some(3),
        maximum: rustix::process::getrlimit(Resource::Nofile).maximum,
    };
    let before = limit(few);
    let mut refused = 0;
    for token in 2..=120 {
        let answer = advance(token);
        match answer.status {
            200 => last = token,
            503 => refused += 1,
            other => panic!("{other}: {}", answer.text()),
        }
    }
    assert!(refused > 0, "no segment was made");
    assert_eq!(gateway.ended(), None, "{}", gateway.errors());
    limit(before);
    let mut token = 120;
    for _ in 0..40 {
        // What it had put off is tried again after a moment.
        eventually("advances go on", || {
            token += 1;
            (advance(token).status == 200).then_some(())
        });
    }
    last = last.max(token);
    gateway.kill();
    gateway.restart();
    let stale = Request::put(&target).token(last - 1).send(gateway.http);
    stale.assert_fenced(409, "stale-token", "every mark is there");
}
