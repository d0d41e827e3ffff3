//! What an HTTP/2 client may send of a body before it is read, and what a gateway holds of it.

use crate::common::http2::{END_STREAM, FLOW_CONTROL_ERROR, Frame, Http2, SETTINGS, WINDOW_UPDATE};
use crate::common::{Connection, Request, Stage};
use serde_json::json;

const CONNECTIONS: usize = 12;
const WAITING: usize = 99;
/// As much of DATA as one frame has room for.
const FRAME: usize = 16 * 1024;
/// What the memory of the gateway may grow by, whatever waits.
const MOST_GROWTH_KIB: u64 = 64 * 1024;

fn write(number: usize, token: u64, tag: &str) -> Request {
    Request::put(&format!("/objects/{number}"))
        .token(token)
        .tag(tag)
}

/// A client that has heard of the gateway's windows, and that of a new stream.
fn greeted(stage: &Stage) -> (Http2, usize) {
    let mut client = Http2::open(stage.http());
    client.sync().unwrap();
    let settings = client.others.iter().find(|frame| frame.kind == SETTINGS);
    let settings = &settings.expect("the gateway says what counts").payload;
    let window = settings.chunks(6).find(|setting| setting[..2] == [0, 4]);
    let window = u32::from_be_bytes(window.unwrap()[2..].try_into().unwrap());
    (client, usize::try_from(window).unwrap())
}

/// By how much the windows of a stream were opened so far.
fn opened(client: &mut Http2, stream: u32) -> usize {
    client.sync().unwrap();
    let updates = client.others.iter();
    let updates = updates.filter(|frame| frame.kind == WINDOW_UPDATE && frame.stream == stream);
    let all: u32 = updates.map(|frame| frame.word(0)).sum();
    usize::try_from(all).unwrap()
}

#[test]
fn uploads_that_wait_hold_little_and_end() {
    let stage =
        Stage::with(|config| config.fence("drain", json!({ "uploads": "wait", "timeout": "2m" })));
    stage.send(&write(99, 1, "warm")).assert_ok("a first write");
    let before = stage.gateway.resident_kib();
    let mut all: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let (mut client, window) = greeted(&stage);
            let tag = format!("older-{number}");
            let older = client.begin(&write(number, 1, &tag), None);
            client.data(older, "begins", 0);
            stage.recorder.has_body(&tag, 6);
            let waiting: Vec<u32> = (0..WAITING)
                .map(|_| {
                    let stream = client.begin(&write(number, 2, "newer"), None);
                    for part in vec![0; window].chunks(FRAME) {
                        client.data(stream, part, 0);
                    }
                    stream
                })
                .collect();
            (client, older, waiting)
        })
        .collect();
    for number in 0..CONNECTIONS {
        let (key, count) = (format!("objects/{number}"), WAITING as u64);
        stage.gateway.wait_key(&key, "waiting", count);
    }
    for (client, ..) in &mut all {
        client.sync().unwrap();
    }
    let grown = stage.gateway.resident_kib().saturating_sub(before);
    assert!(grown < MOST_GROWTH_KIB, "memory grew by {grown} KiB");
    for (number, (mut client, older, waiting)) in all.into_iter().enumerate() {
        client.data(older, "ends", END_STREAM);
        client.response(older).assert_ok("the older write");
        // All end in the same way; a few will do.
        for stream in waiting
            .into_iter()
            .take(if number == 0 { WAITING } else { 1 })
        {
            client.data(stream, "", END_STREAM);
            client.response(stream).assert_ok("a write that waited");
        }
    }
    stage.recorder.history().assert_ordered();
}

#[test]
fn who_sends_beyond_its_windows_is_sent_away() {
    let stage = Stage::new();
    stage.send(&write(99, 1, "warm")).assert_ok("a first write");
    let gate = stage.recorder.hold("older");
    let older = write(0, 1, "older").body("older").spawn(stage.http());
    stage.recorder.received("older");
    let before = stage.gateway.peak_kib();
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (mut client, _) = greeted(&stage);
            let waiting: Vec<u32> = (0..WAITING)
                .map(|_| client.begin(&write(0, 2, "newer"), None))
                .collect();
            for stream in waiting {
                let part = Frame::new(0, 0, stream, vec![0; FRAME]).bytes();
                // The connection may be gone by now.
                if client.connection.try_send(part.repeat(15)).is_err() {
                    break;
                }
            }
            client
        })
        .collect();
    for mut client in clients {
        // What it was told may be lost with what it had still to say.
        let code = client.ended().unwrap_or(FLOW_CONTROL_ERROR);
        assert_eq!(code, FLOW_CONTROL_ERROR);
    }
    let grown = stage.gateway.peak_kib().saturating_sub(before);
    assert!(grown < MOST_GROWTH_KIB, "memory grew by {grown} KiB");
    stage.gateway.says("bodies beyond their windows");
    gate.open();
    older.join().unwrap().assert_ok("the older write");
    stage.assert_alive();
}

#[test]
fn a_window_is_opened_when_its_body_is_read() {
    let stage = Stage::new();
    let (mut client, window) = greeted(&stage);
    let small = client.begin(&write(1, 1, "small"), None);
    client.data(small, "small", END_STREAM);
    client.response(small).assert_ok("a small upload");
    assert_eq!(opened(&mut client, small), 0, "it needed none");

    let gate = stage.recorder.hold("older");
    let older = client.request(&write(2, 1, "older").body("older"));
    stage.recorder.received("older");
    let large = client.begin(&write(2, 2, "large"), None);
    client.data(large, vec![0; window], 0);
    stage.gateway.wait_key("objects/2", "waiting", 1);
    assert_eq!(opened(&mut client, large), 0, "nobody reads it");
    gate.open();
    client.response(older).assert_ok("the older write");
    stage.recorder.has_body("large", window);
    let more = crate::common::eventually("the window is opened", || {
        Some(opened(&mut client, large)).filter(|more| *more > 0)
    });
    assert!(window + more >= 256 * 1024, "{more}");
    for part in vec![0; more].chunks(FRAME) {
        client.data(large, part, 0);
    }
    stage.recorder.has_body("large", window + more);
    client.data(large, "", END_STREAM);
    client.response(large).assert_ok("the large upload");
    stage.recorder.history().assert_ordered();
}

/// The window of before counts until the client has said that it knows of another.
#[test]
fn a_client_that_hears_late_may_send_what_it_always_could() {
    let stage = Stage::new();
    let mut client = Http2::over(Connection::open(stage.http()));
    let upload = client.begin(&write(1, 1, "early"), None);
    for part in vec![0; 65_535].chunks(FRAME) {
        client.data(upload, part, 0);
    }
    stage.recorder.has_body("early", 65_535);
    client.sync().unwrap();
    client.data(upload, "ends", END_STREAM);
    client.response(upload).assert_ok("the upload");
}
