//! The judge and the codec above it see the same requests in the same bytes.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fencegate::wire::{
    ClientIo, ConnState, Guard, HeadLimits, LingerLimits, Next, ServingBody, Violation,
};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

/// How many requests passed, and how many of them to the end.
fn judged(bytes: &[u8]) -> (usize, usize) {
    let mut guard = Guard::new(HeadLimits::default());
    let (mut at, mut begun, mut ended) = (0, 0, 0);
    loop {
        let seen = guard.inspect(&bytes[at..]);
        begun += usize::from(seen.pass > 0);
        at += seen.pass;
        if seen.next != Next::Boundary {
            return (begun, ended);
        }
        ended += 1;
        guard.next_request();
    }
}

/// The same, as the service above the codec sees it, and what the client was answered.
async fn served(bytes: &[u8]) -> (usize, usize, String) {
    let (client, server) = duplex(64 * 1024);
    let (state, seen) = (ConnState::new(), Arc::new(Mutex::new((0, 0))));
    let refuse = Arc::new(|violation: &Violation| {
        format!("REFUSED {}", violation.reason.as_str()).into_bytes()
    });
    let io = ClientIo::new(
        server,
        HeadLimits::default(),
        LingerLimits::default(),
        Arc::clone(&state),
        refuse,
    );
    let counted = Arc::clone(&seen);
    let service = service_fn(move |request: Request<Incoming>| {
        let (serving, seen) = (state.serving(), Arc::clone(&counted));
        async move {
            seen.lock().unwrap().0 += 1;
            if request.into_body().collect().await.is_ok() {
                seen.lock().unwrap().1 += 1;
            }
            Ok::<_, Infallible>(Response::new(ServingBody::new(
                Empty::<Bytes>::new(),
                serving,
            )))
        }
    });
    let connection = tokio::spawn(http1::Builder::new().serve_connection(io, service));
    let (mut reader, mut writer) = tokio::io::split(client);
    let answers = tokio::spawn(async move {
        let mut text = Vec::new();
        let _ = pin!(tokio::time::timeout(
            Duration::from_secs(100),
            reader.read_to_end(&mut text)
        ))
        .await;
        String::from_utf8(text).unwrap()
    });
    let _ = writer.write_all(bytes).await;
    let text = answers.await.unwrap();
    connection.abort();
    let seen = *seen.lock().unwrap();
    (seen.0, seen.1, text)
}

fn stream() -> impl Strategy<Value = Vec<u8>> {
    let whole = prop::sample::select(vec![
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\nGET /a?b|c HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        "PUT / HTTP/1.1\r\nTransfer-Encoding: CHUNKED\r\n\r\n3;x=y\r\nabc\r\n0\r\nX: y\r\n\r\n",
        "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
        "PUT / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 001\r\n\r\nx",
    ]);
    let part = prop::sample::select(vec![
        "PUT / HTTP/1.1\r\n",
        "Host: a\r\n",
        "Content-Length: 3\r\n",
        "Transfer-Encoding: chunked\r\n",
        "\r\n",
        "abc",
        "3\r\n",
        "0\r\n",
        ";x",
        "\n",
        "X:\t y \r\n",
        "Expect: 100-continue\r\n",
        "\u{e9}",
        "|",
    ]);
    let piece = prop_oneof![whole, part].prop_map(|text| text.as_bytes().to_vec());
    prop::collection::vec(piece, 1..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn the_codec_sees_the_requests_that_passed(bytes in stream()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let (begun, ended, text) = runtime.block_on(served(&bytes));
        prop_assert_eq!((begun, ended), judged(&bytes), "{} -> {}", bytes.escape_ascii(), text);
        // Every refusal is in our words.
        prop_assert!(!text.contains(" 400 ") && !text.contains(" 431 "), "{}", text);
    }
}
