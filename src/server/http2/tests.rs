//! A connection with a service that never answers, in paused time: it passes only where everybody
//! waits for it.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fencegate_filters::forwarding::Scheme;
use fencegate_filters::{ForwardedLayer, Peer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tower::service_fn;

use super::*;
use crate::stop::Stopper;
use crate::wire::{ConnTimeouts, HeadLimits};

const STREAMS: u32 = 100;

fn settings() -> Arc<Settings> {
    Arc::new(Settings {
        forwarded: ForwardedLayer::new([], false),
        access_log: false,
        body_timeout: None,
        heads: HeadLimits::default(),
        timeouts: ConnTimeouts::default(),
        preserve_header_case: false,
        requests_per_connection: None,
        http2_streams: STREAMS,
        connections: None,
    })
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

fn greeting() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes
}

/// The heads of these uploads.
fn uploads(numbers: std::ops::Range<u32>) -> Vec<u8> {
    // `PUT / http://a`: by RFC 7541, appendix A and section 6.2.2.
    let head = b"\x02\x03PUT\x84\x86\x01\x01a";
    numbers
        .flat_map(|number| frame(1, 4, number * 2 + 1, head))
        .collect()
}

/// A connection that is served; what was begun on it is counted.
async fn served(stream: DuplexStream, begun: Arc<AtomicUsize>) {
    let state = ConnState::new();
    let settings = settings();
    let io = FrameIo::new(stream, Vec::new(), STREAMS, Arc::clone(&state));
    let service = service_fn(move |_: Request<ClientBody>| {
        begun.fetch_add(1, Ordering::SeqCst);
        pending::<Result<Response<AccessBody>, Infallible>>()
    });
    let stopper = Stopper::default();
    let peer = Peer::new(None, Scheme::Http);
    serve(io, peer, settings, service, state, stopper.stopping()).await;
}

/// The client's end of one, and how many requests were begun on it.
async fn greeted(room: usize) -> (DuplexStream, Arc<AtomicUsize>) {
    let (mut client, gateway) = tokio::io::duplex(room);
    let begun = Arc::new(AtomicUsize::new(0));
    tokio::spawn(served(gateway, Arc::clone(&begun)));
    client.write_all(&greeting()).await.unwrap();
    (client, begun)
}

/// Lets everybody do what can be done without time passing.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_to_be_sent_away_has_nothing_begun() {
    let (mut client, begun) = greeted(1 << 20).await;
    let all = uploads(0..2 * STREAMS + 1);
    client.write_all(&all).await.unwrap();
    let mut told = Vec::new();
    client.read_to_end(&mut told).await.unwrap();
    // An acknowledgement, and what refused requests are told, go before it.
    let goaway = told
        .windows(17)
        .find(|bytes| bytes[3..9] == [7, 0, 0, 0, 0, 0]);
    assert_eq!(goaway.map(|frame| &frame[13..]), Some(&[0, 0, 0, 11][..]));
    // The first was taken before it was known that there are more.
    assert_eq!(begun.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_connection_begins_a_few_requests_and_more_as_time_passes() {
    let (mut client, begun) = greeted(1 << 20).await;
    for first in (0..STREAMS).step_by(5) {
        client.write_all(&uploads(first..first + 5)).await.unwrap();
        settle().await;
    }
    assert_eq!(begun.load(Ordering::SeqCst), 8);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(begun.load(Ordering::SeqCst), 100);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_always_has_more_to_send_is_served() {
    let (mut client, begun) = greeted(16 * 1024).await;
    client.write_all(&uploads(0..1)).await.unwrap();
    settle().await;
    // The body of the first, in pieces that a hundred turns have to read.
    let body = frame(0, 0, 1, b"x").repeat(6400);
    let all = [uploads(1..3), body].concat();
    let served = async {
        while begun.load(Ordering::SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        () = served => {}
        _ = client.write_all(&all) => panic!("nothing was begun until nearly all was read"),
    }
}
