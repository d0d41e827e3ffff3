//! Floods of HTTP/2 frames: the client that sends one is told to go away, and nobody else notices.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::common::http2::{
    CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, Frame, HEADERS, Http2,
    PADDED, PING, PREFACE, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE, block, pseudo,
};
use crate::common::{Connection, Ended, Request, Stage, eventually};

/// What the memory of the gateway may grow by, whatever comes.
const MOST_GROWTH_KIB: u64 = 64 * 1024;
/// Connections that one flood is sent over, one after the other.
const CONNECTIONS: usize = 8;
/// For how long a good client is timed without a flood and with one, in turns, so that a machine
/// that gets slower does so for both; and how many send the flood at once.
const WINDOW: Duration = Duration::from_millis(500);
const WINDOWS: u32 = 6;
const FLOODERS: usize = 2;
/// How long one may last.
const LONGEST: Duration = Duration::from_secs(20);

struct Flood {
    name: &'static str,
    /// What is sent before it.
    before: Vec<u8>,
    /// The frames of its nth step.
    step: fn(u32) -> Vec<u8>,
}

fn request(stream: u32, method: &str, flags: u8) -> Vec<u8> {
    let mut fields = pseudo(method, "/objects/flood");
    fields.push(("fencing-token", "1"));
    Frame::new(HEADERS, flags, stream, block(&fields)).bytes()
}

fn odd(step: u32) -> u32 {
    step * 2 + 1
}

fn floods() -> Vec<Flood> {
    let whole = END_HEADERS | END_STREAM;
    let upload = request(1, "PUT", END_HEADERS);
    let plain = |name, step| Flood {
        name,
        before: Vec::new(),
        step,
    };
    vec![
        // R5, CVE-2023-44487
        plain("rapid reset", |step| {
            let mut bytes = request(odd(step), "GET", END_HEADERS | END_STREAM);
            let reset = CANCEL.to_be_bytes();
            bytes.extend(Frame::new(RST_STREAM, 0, odd(step), reset).bytes());
            bytes
        }),
        // R6, CVE-2025-8671: the gateway is made to reset what it has begun.
        plain("made you reset (window of 0)", |step| {
            let mut bytes = request(odd(step), "GET", END_HEADERS | END_STREAM);
            bytes.extend(Frame::new(WINDOW_UPDATE, 0, odd(step), [0; 4]).bytes());
            bytes
        }),
        plain("made you reset (window overflow)", |step| {
            let mut bytes = request(odd(step), "PUT", END_HEADERS);
            let most = 0x7fff_ffff_u32.to_be_bytes();
            bytes.extend(Frame::new(WINDOW_UPDATE, 0, odd(step), most).bytes());
            bytes
        }),
        plain("made you reset (own dependency)", |step| {
            let mut bytes = request(odd(step), "GET", END_HEADERS | END_STREAM);
            let mut own = odd(step).to_be_bytes().to_vec();
            own.push(16);
            bytes.extend(Frame::new(PRIORITY, 0, odd(step), own).bytes());
            bytes
        }),
        // R7, CVE-2024-27316
        Flood {
            name: "CONTINUATION",
            before: request(1, "PUT", END_STREAM),
            step: |step| {
                let fields = block(&[(format!("x-{step}"), "1")]);
                Frame::new(CONTINUATION, 0, 1, fields).bytes()
            },
        },
        Flood {
            name: "empty CONTINUATION",
            before: request(1, "PUT", END_STREAM),
            step: |_| Frame::new(CONTINUATION, 0, 1, []).bytes(),
        },
        // R8, CVE-2019-9518
        Flood {
            name: "empty DATA",
            before: upload.clone(),
            step: |_| Frame::new(DATA, 0, 1, []).bytes(),
        },
        Flood {
            name: "DATA of padding alone",
            before: upload.clone(),
            step: |_| Frame::new(DATA, PADDED, 1, [1, 0]).bytes(),
        },
        // R9, CVE-2019-9512, CVE-2019-9515, CVE-2019-9511
        plain("PING", |_| Frame::new(PING, 0, 0, [0; 8]).bytes()),
        plain("SETTINGS", |_| Frame::new(SETTINGS, 0, 0, []).bytes()),
        plain("SETTINGS that change windows", |step| {
            let size = step % 2 * 1000;
            let mut setting = vec![0, 4];
            setting.extend(size.to_be_bytes());
            Frame::new(SETTINGS, 0, 0, setting).bytes()
        }),
        Flood {
            name: "WINDOW_UPDATE",
            before: upload,
            step: |_| Frame::new(WINDOW_UPDATE, 0, 1, [0, 0, 0, 1]).bytes(),
        },
        plain("PRIORITY", |step| {
            Frame::new(PRIORITY, 0, odd(step), [0, 0, 0, 0, 1]).bytes()
        }),
        plain("frames of no known type", |_| {
            Frame::new(0xbe, 0, 0, [0; 100]).bytes()
        }),
        // R10: an entry of 3 KiB in the table, and heads that name it some thousand times.
        Flood {
            name: "HPACK bomb",
            before: Vec::new(),
            step: |step| {
                let mut bytes = block(&pseudo("GET", "/objects/flood"));
                if step == 0 {
                    let long = block(&[("x-bomb", "b".repeat(3000))]);
                    bytes.push(0x40);
                    bytes.extend(&long[1..]);
                }
                bytes.resize(bytes.len() + 10_000, 0x80 | 62);
                Frame::new(HEADERS, END_HEADERS | END_STREAM, odd(step), bytes).bytes()
            },
        },
        plain("requests beyond the limit of streams", |step| {
            request(odd(step), "PUT", END_HEADERS)
        }),
        Flood {
            name: "resets of what is over",
            before: request(1, "GET", whole),
            step: |_| Frame::new(RST_STREAM, 0, 1, CANCEL.to_be_bytes()).bytes(),
        },
    ]
}

/// Sends the flood over one connection until it is cut off. Says how many steps were sent, and the
/// code of the GOAWAY, where one came through.
fn send(address: SocketAddr, flood: &Flood, reads: bool) -> (u32, Option<u32>) {
    let mut client = Http2::silent(address);
    client.send_bytes(PREFACE);
    client.send(&Frame::new(SETTINGS, 0, 0, []));
    client.send_bytes(&flood.before);
    let mut stream = client.connection.stream().try_clone().unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let reader = reads.then(|| {
        let over = Arc::clone(&over);
        std::thread::spawn(move || {
            // What it is answered is read as it comes.
            let code = loop {
                match client.frame() {
                    Ok(frame) if frame.kind == crate::common::http2::GOAWAY => {
                        break Some(frame.word(4));
                    }
                    Ok(_) => {}
                    Err(_) => break None,
                }
            };
            over.store(true, Ordering::SeqCst);
            code
        })
    });
    let mut sent = 0;
    let mut batch = Vec::new();
    let end = Instant::now() + LONGEST;
    while !over.load(Ordering::SeqCst) {
        assert!(Instant::now() < end, "{}: never cut off", flood.name);
        batch.clear();
        for _ in 0..50 {
            batch.extend((flood.step)(sent));
            sent += 1;
        }
        if stream.write_all(&batch).is_err() {
            break;
        }
    }
    drop(stream);
    (sent, reader.and_then(|reader| reader.join().unwrap()))
}

/// How long requests of a well-behaved client take, while `busy`: the median and the 99th of a
/// hundred.
fn times(address: SocketAddr, least: usize, busy: impl Fn() -> bool) -> (Duration, Duration) {
    let mut client = Http2::open(address);
    let mut times = Vec::new();
    while times.len() < least || busy() {
        let start = Instant::now();
        let stream = client.request(&Request::get("/objects/good"));
        client.response(stream).assert_ok("a good client's request");
        times.push(start.elapsed());
    }
    times.sort();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

// R5 to R10
#[test]
fn a_flood_is_cut_off_and_harms_nobody() {
    let stage = Stage::new();
    let address = stage.http();
    let (_, quiet) = times(address, 500, || false);
    println!("| flood | steps sent until cut off | GOAWAY | p99 of a good client, ms | KiB more |");
    println!("| --- | --- | --- | --- | --- |");
    println!("| none | | | {:.2} | |", quiet.as_secs_f64() * 1e3);
    for flood in floods() {
        let before = stage.gateway.resident_kib();
        let done = AtomicUsize::new(0);
        let (sent, during) = std::thread::scope(|scope| {
            let flooding = scope.spawn(|| {
                let sent: Vec<_> = (0..CONNECTIONS)
                    .map(|_| {
                        let sent = send(address, &flood, true);
                        done.fetch_add(1, Ordering::SeqCst);
                        sent
                    })
                    .collect();
                sent
            });
            let busy = || done.load(Ordering::SeqCst) < CONNECTIONS && !flooding.is_finished();
            let (_, during) = times(address, 100, busy);
            (flooding.join().unwrap(), during)
        });
        let grown = stage.gateway.resident_kib().saturating_sub(before);
        let most = sent.iter().map(|(sent, _)| *sent).max().unwrap();
        let codes: Vec<u32> = sent.iter().filter_map(|(_, code)| *code).collect();
        println!(
            "| {} | {most} | {codes:?} | {:.2} | {grown} |",
            flood.name,
            during.as_secs_f64() * 1e3
        );
        assert!(
            !codes.is_empty(),
            "{}: told to go away at least once",
            flood.name
        );
        assert!(
            grown < MOST_GROWTH_KIB,
            "{}: memory grew by {grown} KiB",
            flood.name
        );
        // A machine under the load of other tests has pauses of its own.
        let allowed = (quiet * 2).max(Duration::from_secs(5));
        assert!(
            during <= allowed,
            "{}: {during:?} > {allowed:?}",
            flood.name
        );
    }
    eventually("nothing is left in flight", || {
        let count = stage.gateway.metric("fencegate_in_flight", &[]);
        (count < 0.5).then_some(())
    });
    stage.assert_alive();
}

/// What a flood that never ends costs a good client: `FENCEGATE_BIN=… cargo test --test suite
/// -- --ignored --nocapture what_a_flood`. It asserts nothing, since what it measures is the
/// machine's as well. `FLOOD=PING` takes one flood. `FLOOD_PEER=127.0.0.1:8081` measures another server
/// that speaks HTTP/2 without TLS and has `/objects/good`. `FLOOD_ASIDE=127.0.0.1:8081` sends the
/// flood there, and the good requests to the gateway: what they wait for then, the machine adds.
#[test]
#[ignore = "measures for two minutes, by `make floods`, and asserts nothing"]
fn what_a_flood_costs_a_good_client() {
    let stage = Stage::with(|config| config.set("log.access", false));
    let other = |name| Some(std::env::var(name).ok()?.parse::<SocketAddr>().unwrap());
    let address = other("FLOOD_PEER").unwrap_or(stage.http());
    let flooded = other("FLOOD_ASIDE").unwrap_or(address);
    let only = std::env::var("FLOOD").unwrap_or_default();
    println!(
        "| flood | p50, ms | p99, ms | p50 without it, ms | p99 without it, ms | p99 with ÷ without | connections a second | CPU of the gateway | KiB more |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for flood in floods() {
        if !flood.name.contains(&only) {
            continue;
        }
        // Several, so that each of the gateway's threads has some.
        let mut clients: Vec<_> = (0..8).map(|_| Http2::open(address)).collect();
        times_for(&mut clients, WINDOW, &mut Vec::new());
        let (mut quiet, mut during) = (Vec::new(), Vec::new());
        let (mut used, mut grown) = (Duration::ZERO, 0);
        let count = AtomicUsize::new(0);
        let before = stage.gateway.resident_kib();
        for _ in 0..WINDOWS {
            times_for(&mut clients, WINDOW, &mut quiet);
            let over = AtomicBool::new(false);
            let cpu = stage.gateway.cpu();
            std::thread::scope(|scope| {
                for _ in 0..FLOODERS {
                    scope.spawn(|| {
                        // What is measured is the gateway, not who gets the CPU.
                        crate::common::yield_to_all();
                        while !over.load(Ordering::SeqCst) {
                            send(flooded, &flood, true);
                            count.fetch_add(1, Ordering::SeqCst);
                        }
                    });
                }
                times_for(&mut clients, WINDOW, &mut during);
                used += stage.gateway.cpu() - cpu;
                grown = grown.max(stage.gateway.resident_kib().saturating_sub(before));
                over.store(true, Ordering::SeqCst);
            });
        }
        let seconds = (WINDOW * WINDOWS).as_secs_f64();
        let count = f64::from(u32::try_from(count.into_inner()).unwrap()) / seconds;
        let used = used.as_secs_f64() / seconds * 100.0;
        let [quiet, during] = [quiet, during].map(|mut times| {
            times.sort();
            [50, 99].map(|percent| times[times.len() * percent / 100].as_secs_f64() * 1e3)
        });
        println!(
            "| {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {count:.0} | {used:.0}% | {grown} |",
            flood.name,
            during[0],
            during[1],
            quiet[0],
            quiet[1],
            during[1] / quiet[1],
        );
    }
}

/// Adds the times of requests for so long, of one client after the other.
fn times_for(clients: &mut [Http2], long: Duration, times: &mut Vec<Duration>) {
    let end = Instant::now() + long;
    for turn in 0.. {
        let start = Instant::now();
        if start > end {
            break;
        }
        let at = turn % clients.len();
        let client = &mut clients[at];
        let stream = client.request(&Request::get("/objects/good"));
        client.response(stream).assert_ok("a good client's request");
        times.push(start.elapsed());
    }
}

/// Answers that nobody reads must not pile up.
#[test]
fn a_flood_that_reads_no_answers_takes_no_memory() {
    let stage = Stage::with(|config| config.set("timeouts.idle", "1s"));
    let before = stage.gateway.resident_kib();
    for name in ["PING", "SETTINGS", "rapid reset", "HPACK bomb"] {
        let floods = floods();
        let flood = floods.iter().find(|flood| flood.name == name).unwrap();
        for _ in 0..3 {
            send(stage.http(), flood, false);
        }
    }
    let grown = stage.gateway.resident_kib().saturating_sub(before);
    assert!(grown < MOST_GROWTH_KIB, "memory grew by {grown} KiB");
    stage.assert_alive();
}

/// Small pieces of a body that waits are cheap for the client, and dear to keep.
#[test]
fn a_body_in_crumbs_takes_no_memory_while_it_waits() {
    let stage = Stage::new();
    let gate = stage.recorder.hold("older");
    let mut client = Http2::open(stage.http());
    client.sync().unwrap();
    let older = client.request(&Request::put("/objects/flood").token(1).tag("older"));
    stage.recorder.received("older");
    let before = stage.gateway.resident_kib();
    let mut waiting = Vec::new();
    for _ in 0..20 {
        waiting.push(client.begin(&Request::put("/objects/flood").token(2), None));
    }
    let mut crumbs = Vec::new();
    for stream in &waiting {
        for _ in 0..20_000 {
            crumbs.extend(Frame::new(DATA, 0, *stream, [1]).bytes());
        }
    }
    client.send_bytes(&crumbs);
    let code = client.ended();
    let grown = stage.gateway.resident_kib().saturating_sub(before);
    assert!(matches!(code, None | Some(ENHANCE_YOUR_CALM)), "{code:?}");
    assert!(grown < MOST_GROWTH_KIB, "memory grew by {grown} KiB");
    gate.open();
    let _ = older;
    stage.assert_alive();
}

/// A client that closes without a word is no flood, and neither is one that is only busy.
#[test]
fn a_busy_client_is_no_flood() {
    let stage = Stage::new();
    let long = "x".repeat(1 << 20);
    stage
        .recorder
        .on("long", move |exchange| exchange.respond(200, &long));
    let mut client = Http2::open(stage.http());
    client.sync().unwrap();
    for _ in 0..20 {
        // Both windows are opened after each frame, and each is acknowledged by a PING.
        let stream = client.request(&Request::get("/objects/42").tag("long"));
        client.response(stream).assert_ok("a download");
        client.sync().unwrap();
    }
    for _ in 0..2 {
        let streams: Vec<u32> = (0..40)
            .map(|_| client.request(&Request::get("/objects/42").tag("long")))
            .collect();
        for stream in streams {
            client.reset(stream, CANCEL);
        }
        client.sync().unwrap();
    }
    let stream = client.request(&Request::get("/objects/42"));
    client.response(stream).assert_ok("it is still served");
    drop(client);
    let mut client = Connection::open(stage.http());
    client.send(PREFACE);
    client.finish();
    assert_ne!(client.ended(), Ended::Silent);
}
