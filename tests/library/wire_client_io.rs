//! The adapter below the codec, with the real codec above it.

use std::convert::Infallible;
use std::error::Error;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use fencegate::wire::{
    ClientIo, ConnState, ConnTimeouts, Expired, HeadLimits, LingerLimits, Phase, Refuse,
    ServingBody, Violation, Watchdog,
};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;

type Answer = Response<ServingBody<Full<Bytes>>>;

#[derive(Debug, PartialEq)]
enum End {
    Closed,
    Failed,
    Expired(Expired),
}

/// What the service does with a request.
#[derive(Clone, Copy)]
enum Act {
    /// Answers without reading the body.
    Early,
    /// Reads the body and sends it back, or answers 400 where that fails.
    Echo,
    /// Answers with the path, as often as it is told to.
    Path,
    /// Answers `Early` with so many bytes.
    Large(usize),
    /// 101, and echoes what comes through the tunnel; for a path of `/no`, 200.
    Tunnel,
}

struct Served {
    state: Arc<ConnState>,
    calls: Arc<AtomicUsize>,
    go: Arc<Semaphore>,
    end: JoinHandle<End>,
}

fn refuse() -> Refuse {
    Arc::new(|violation: &Violation| {
        let status = violation.reason.status();
        format!(
            "HTTP/1.1 {} X\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            status.as_str()
        )
        .into_bytes()
    })
}

fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, act: Act) -> Served {
    let (state, calls, go) = (
        ConnState::new(),
        Arc::new(AtomicUsize::new(0)),
        Arc::new(Semaphore::new(0)),
    );
    if !matches!(act, Act::Path) {
        go.add_permits(1000);
    }
    let io = ClientIo::new(
        stream,
        HeadLimits::default(),
        LingerLimits::default(),
        Arc::clone(&state),
        refuse(),
    );
    let service = {
        let (state, calls, go) = (Arc::clone(&state), Arc::clone(&calls), Arc::clone(&go));
        service_fn(move |request| {
            calls.fetch_add(1, Ordering::SeqCst);
            answer(request, act, Arc::clone(&state), Arc::clone(&go))
        })
    };
    let mut connection = http1::Builder::new().serve_connection(io, service);
    let driven = Arc::clone(&state);
    let end = tokio::spawn(async move {
        let mut watchdog = Watchdog::new(ConnTimeouts::default());
        let mut expired = None;
        let end = poll_fn(|cx| {
            loop {
                if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
                    return Poll::Ready(if result.is_ok() {
                        End::Closed
                    } else {
                        End::Failed
                    });
                }
                match watchdog.poll_expired(cx, &driven) {
                    Poll::Ready(Expired::Header | Expired::Idle) if expired.is_none() => {
                        driven.expire();
                        expired = Some(());
                    }
                    Poll::Ready(expired) => return Poll::Ready(End::Expired(expired)),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
        let parts = connection.into_parts();
        let mut io = parts.io;
        if end == End::Closed && driven.is_tunnel() {
            assert!(parts.read_buf.is_empty());
            let (mut stream, first) = io.into_inner();
            stream.write_all(&first).await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            stream.write_all(&rest).await.unwrap();
        } else if end == End::Closed {
            io.finish().await;
        }
        end
    });
    Served {
        state,
        calls,
        go,
        end,
    }
}

async fn answer(
    request: Request<Incoming>,
    act: Act,
    state: Arc<ConnState>,
    go: Arc<Semaphore>,
) -> Result<Answer, Infallible> {
    let serving = state.serving();
    go.acquire().await.unwrap().forget();
    let path = request.uri().path().to_owned();
    let (status, bytes) = match act {
        Act::Early => (StatusCode::CONFLICT, Bytes::from_static(b"stale")),
        Act::Large(bytes) => (StatusCode::OK, Bytes::from(vec![b'a'; bytes])),
        Act::Echo => match request.into_body().collect().await {
            Ok(body) => (StatusCode::OK, body.to_bytes()),
            Err(error) => (StatusCode::BAD_REQUEST, detail(&error).into()),
        },
        Act::Path => (StatusCode::OK, Bytes::from(path)),
        Act::Tunnel if path == "/no" => (StatusCode::OK, Bytes::new()),
        Act::Tunnel => {
            state.tunnel();
            (StatusCode::SWITCHING_PROTOCOLS, Bytes::new())
        }
    };
    let mut response = Response::new(ServingBody::new(Full::new(bytes), serving));
    *response.status_mut() = status;
    Ok(response)
}

/// The violation at the root of a body's error.
fn detail(error: &(dyn Error + 'static)) -> String {
    let mut source = Some(error);
    while let Some(error) = source {
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(|error| error.get_ref());
        if let Some(violation) = inner.and_then(|inner| inner.downcast_ref::<Violation>()) {
            return format!("violation: {}", violation.reason.as_str());
        }
        source = error.source();
    }
    error.to_string()
}

async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        text.push(stream.read_u8().await.expect("the stream ended too early"));
    }
    String::from_utf8(text).unwrap()
}

async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut text = Vec::new();
    stream.read_to_end(&mut text).await.unwrap();
    String::from_utf8(text).unwrap()
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    (client, listener.accept().await.unwrap().0)
}

fn pair(act: Act) -> (DuplexStream, Served) {
    let (client, server) = duplex(64 * 1024);
    (client, serve(server, act))
}

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn a_malformed_head_is_refused_and_reaches_no_service() {
    for (head, status) in [
        (
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "400",
        ),
        ("GET / HTTP/1.1\nHost: a\n\n", "400"),
        ("PUT / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", "501"),
    ] {
        for pause in [false, true] {
            let (mut client, served) = pair(Act::Path);
            let (left, right) = head.split_at(if pause { head.len() / 2 } else { 0 });
            client.write_all(left.as_bytes()).await.unwrap();
            tokio::task::yield_now().await;
            client.write_all(right.as_bytes()).await.unwrap();
            let text = read_all(&mut client).await;
            assert_eq!(
                text,
                format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            );
            drop(client);
            assert_eq!(served.end.await.unwrap(), End::Closed);
            assert_eq!(served.calls.load(Ordering::SeqCst), 0);
        }
    }
}

#[tokio::test]
async fn long_heads_and_targets_are_refused_in_our_words() {
    for (head, status) in [
        (format!("GET /{} HTTP/1.1\r\n", "a".repeat(40_000)), "414"),
        (
            format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(70_000)),
            "431",
        ),
    ] {
        let (mut client, server) = tcp_pair().await;
        let served = serve(server, Act::Path);
        client.write_all(head.as_bytes()).await.unwrap();
        let text = read_all(&mut client).await;
        assert!(
            text.starts_with(&format!("HTTP/1.1 {status} X\r\n")),
            "{text}"
        );
        drop(client);
        assert_eq!(served.end.await.unwrap(), End::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_request_behind_a_good_one_is_answered_after_it() {
    let (mut client, served) = pair(Act::Path);
    client
        .write_all(&[GET, b"BAD\r\n\r\n"].concat())
        .await
        .unwrap();
    while served.calls.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(served.state.phase(), Phase::InService);
    served.go.add_permits(1);
    let text = read_all(&mut client).await;
    let (good, bad) = text.split_at(text.find("/a").unwrap() + 2);
    assert!(
        good.starts_with("HTTP/1.1 200 OK\r\n") && !good.contains("close"),
        "{good}"
    );
    assert!(bad.starts_with("HTTP/1.1 400 X\r\n"), "{bad}");
    drop(client);
    assert_eq!(served.end.await.unwrap(), End::Closed);
    assert_eq!(served.calls.load(Ordering::SeqCst), 1);
}

/// S23
#[tokio::test(start_paused = true)]
async fn pipelined_requests_are_served_one_by_one_in_order() {
    let (mut client, served) = pair(Act::Path);
    for path in ["/one", "/two", "/three"] {
        client
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes())
            .await
            .unwrap();
    }
    for (calls, path) in ["/one", "/two", "/three"].into_iter().enumerate() {
        served.go.add_permits(1);
        let text = read_until(&mut client, path).await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(served.calls.load(Ordering::SeqCst) <= calls + 2);
    }
    drop(client);
    assert_eq!(served.end.await.unwrap(), End::Closed);
}

/// S12, with a body that is larger than what sockets buffer.
#[tokio::test]
async fn an_early_refusal_is_read_whole_while_the_body_still_comes() {
    let (mut client, server) = tcp_pair().await;
    let served = serve(server, Act::Early);
    client
        .write_all(b"PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 8388608\r\n\r\n")
        .await
        .unwrap();
    client.write_all(&vec![b'a'; 8 << 20]).await.unwrap();
    let text = read_all(&mut client).await;
    assert!(
        text.starts_with("HTTP/1.1 409 Conflict\r\n") && text.ends_with("stale"),
        "{text}"
    );
    drop(client);
    assert_eq!(served.end.await.unwrap(), End::Closed);
}

/// S13
#[tokio::test(start_paused = true)]
async fn an_early_refusal_asks_for_no_body() {
    let (mut client, served) = pair(Act::Early);
    client
        .write_all(
            b"PUT /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        )
        .await
        .unwrap();
    let text = read_all(&mut client).await;
    assert!(
        text.starts_with("HTTP/1.1 409 Conflict\r\n") && text.ends_with("stale"),
        "{text}"
    );
    drop(client);
    assert_eq!(served.end.await.unwrap(), End::Closed);
}

/// The codec then ends without closing its stream: the driver does.
#[tokio::test]
async fn an_early_refusal_lingers_also_after_an_upgrade_that_was_not_taken() {
    let (mut client, server) = tcp_pair().await;
    let served = serve(server, Act::Early);
    client
        .write_all(b"PUT /a HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nContent-Length: 8388608\r\n\r\n")
        .await
        .unwrap();
    client.write_all(&vec![b'a'; 8 << 20]).await.unwrap();
    let text = read_all(&mut client).await;
    assert!(
        text.starts_with("HTTP/1.1 409 Conflict\r\n") && text.ends_with("stale"),
        "{text}"
    );
    drop(client);
    assert_eq!(served.end.await.unwrap(), End::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_lingering_close_ends_with_silence_and_in_any_case() {
    const HEAD: &[u8] = b"PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n";
    let (mut client, served) = pair(Act::Early);
    client.write_all(HEAD).await.unwrap();
    read_all(&mut client).await;
    let since = Instant::now();
    assert_eq!(served.end.await.unwrap(), End::Closed);
    assert_eq!(since.elapsed().as_secs(), 5);

    let (mut client, served) = pair(Act::Early);
    client.write_all(HEAD).await.unwrap();
    read_all(&mut client).await;
    let since = Instant::now();
    while client.write_all(b"x").await.is_ok() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(served.end.await.unwrap(), End::Closed);
    assert!((30..=31).contains(&since.elapsed().as_secs()));
}

#[tokio::test(start_paused = true)]
async fn a_broken_body_fails_the_read_and_ends_the_connection() {
    let (mut client, served) = pair(Act::Echo);
    client
        .write_all(
            b"PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0x2\r\n",
        )
        .await
        .unwrap();
    client.write_all(GET).await.unwrap();
    let text = read_all(&mut client).await;
    assert!(
        text.starts_with("HTTP/1.1 400 Bad Request\r\n")
            && text.ends_with("violation: bad-request"),
        "{text}"
    );
    drop(client);
    assert_eq!(served.end.await.unwrap(), End::Closed);
    assert_eq!(served.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn bodies_come_through_unchanged() {
    let body: Vec<u8> = (0..1_000_003_u32).map(|at| (at % 251) as u8).collect();
    let mut chunked = b"PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for (at, chunk) in body.chunks(7919).enumerate() {
        chunked.extend_from_slice(format!("{:x};n={at}\r\n", chunk.len()).as_bytes());
        chunked.extend_from_slice(chunk);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\nX-Sum: 1\r\n\r\n");
    let mut counted = format!(
        "PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    counted.extend_from_slice(&body);
    let (client, served) = pair(Act::Echo);
    let (mut reader, mut writer) = tokio::io::split(client);
    let (all, step) = ([&chunked[..], &counted, &chunked, GET].concat(), 3001);
    let writing = tokio::spawn(async move {
        for piece in all.chunks(step) {
            writer.write_all(piece).await.unwrap();
        }
        writer
    });
    for length in [body.len(), body.len(), body.len(), 0] {
        let head = read_until(&mut reader, "\r\n\r\n").await;
        assert!(
            head.contains(&format!("content-length: {length}\r\n")),
            "{head}"
        );
        let mut echo = vec![0; length];
        reader.read_exact(&mut echo).await.unwrap();
        assert!(echo == body[..length]);
    }
    assert_eq!(served.state.phase(), Phase::Idle);
    drop((reader, writing.await.unwrap()));
    assert_eq!(served.end.await.unwrap(), End::Closed);
}

/// R1
#[tokio::test(start_paused = true)]
async fn a_slow_head_expires_with_a_408() {
    let (mut client, served) = pair(Act::Path);
    tokio::time::sleep(Duration::from_secs(4)).await;
    let since = Instant::now();
    let writer = async {
        loop {
            // The last writes go to a connection that lingers.
            client
                .write_all(b"GET / HTTP/1.1\r\nX: "[..1].as_ref())
                .await
                .unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
            if since.elapsed().as_secs() >= 11 {
                break;
            }
        }
    };
    writer.await;
    let text = read_all(&mut client).await;
    assert!(text.starts_with("HTTP/1.1 408 X\r\n"), "{text}");
    drop(client);
    assert_eq!(served.end.await.unwrap(), End::Closed);
    assert_eq!(served.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn silent_connections_are_closed_without_a_word() {
    let since = Instant::now();
    let (mut client, served) = pair(Act::Path);
    assert_eq!(read_all(&mut client).await, "");
    assert_eq!(
        (served.end.await.unwrap(), since.elapsed().as_secs()),
        (End::Closed, 10)
    );

    let (mut client, served) = pair(Act::Echo);
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(9)).await;
        client.write_all(GET).await.unwrap();
        read_until(&mut client, "\r\n\r\n").await;
    }
    let since = Instant::now();
    // An empty line begins no request.
    client.write_all(b"\r\n").await.unwrap();
    assert_eq!(read_all(&mut client).await, "");
    drop(client);
    assert_eq!(
        (served.end.await.unwrap(), since.elapsed().as_secs()),
        (End::Closed, 60)
    );
}

#[tokio::test(start_paused = true)]
async fn a_head_that_waited_for_its_turn_has_its_whole_time() {
    let (mut client, served) = pair(Act::Path);
    client
        .write_all(&[GET, b"GET /b HT"].concat())
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(100)).await;
    served.go.add_permits(2);
    read_until(&mut client, "/a").await;
    tokio::time::sleep(Duration::from_secs(9)).await;
    client
        .write_all(b"TP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut client, "/b").await;
    drop(client);
    assert_eq!(served.end.await.unwrap(), End::Closed);
}

/// R3
#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_expires() {
    let since = Instant::now();
    let (mut client, served) = pair(Act::Large(1 << 20));
    client.write_all(GET).await.unwrap();
    assert_eq!(served.end.await.unwrap(), End::Expired(Expired::WriteStall));
    assert_eq!(since.elapsed().as_secs(), 60);
}

/// S16
#[tokio::test]
async fn bytes_before_a_101_are_held_and_then_tunnelled() {
    let (mut client, served) = pair(Act::Tunnel);
    client
        .write_all(
            b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nearly\0",
        )
        .await
        .unwrap();
    let head = read_until(&mut client, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    client.write_all(b" late").await.unwrap();
    client.shutdown().await.unwrap();
    let text = read_all(&mut client).await;
    assert_eq!(text, "early\0 late");
    assert_eq!(served.end.await.unwrap(), End::Closed);
}

/// S17
#[tokio::test(start_paused = true)]
async fn an_upgrade_that_is_not_taken_stays_http() {
    let (mut client, served) = pair(Act::Tunnel);
    client.write_all(b"GET /no HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\nGET /no HTTP/1.1\r\nHost: a\r\n\r\n\0").await.unwrap();
    let text = read_all(&mut client).await;
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 2, "{text}");
    assert!(text.contains("HTTP/1.1 400 X"), "{text}");
    drop(client);
    assert_eq!(served.end.await.unwrap(), End::Closed);
    assert_eq!(served.calls.load(Ordering::SeqCst), 2);
}

/// S22
#[tokio::test(start_paused = true)]
async fn a_request_after_connection_close_is_ignored() {
    let (mut client, served) = pair(Act::Echo);
    client
        .write_all(
            &[
                b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
                GET,
            ]
            .concat(),
        )
        .await
        .unwrap();
    let text = read_all(&mut client).await;
    assert_eq!(text.matches("HTTP/1.1").count(), 1, "{text}");
    drop(client);
    assert_eq!(served.end.await.unwrap(), End::Closed);
    assert_eq!(served.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_connection() {
    let (mut client, served) = pair(Act::Path);
    client.write_all(GET).await.unwrap();
    while served.calls.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    drop(client);
    assert_eq!(served.end.await.unwrap(), End::Failed);
}

fn wrap<S>(stream: S, state: &Arc<ConnState>) -> ClientIo<S> {
    ClientIo::new(
        stream,
        HeadLimits::default(),
        LingerLimits::default(),
        Arc::clone(state),
        refuse(),
    )
}

/// The codec's own way to hand the stream over works as well.
#[tokio::test]
async fn a_tunnel_can_be_taken_from_the_codec() {
    let (mut client, server) = duplex(1024);
    let state = ConnState::new();
    let io = wrap(server, &state);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (serving, state) = (state.serving(), Arc::clone(&state));
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let parts = upgrade
                .await
                .unwrap()
                .downcast::<ClientIo<DuplexStream>>()
                .unwrap();
            assert!(parts.read_buf.is_empty());
            let (mut stream, first) = parts.io.into_inner();
            stream.write_all(&first).await.unwrap();
        });
        async move {
            state.tunnel();
            let mut response = Response::new(ServingBody::new(Full::new(Bytes::new()), serving));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .serve_connection(io, service)
        .with_upgrades();
    let end = tokio::spawn(connection);
    client
        .write_all(
            b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n\0early",
        )
        .await
        .unwrap();
    let text = read_all(&mut client).await;
    assert!(
        text.starts_with("HTTP/1.1 101 ") && text.ends_with("\r\n\r\n\0early"),
        "{text}"
    );
    end.await.unwrap().unwrap();
}

/// And so does reading a tunnel through the adapter.
#[tokio::test]
async fn a_tunnel_passes_what_is_no_http() {
    let (mut client, server) = duplex(1024);
    let state = ConnState::new();
    let mut io = wrap(server, &state);
    client
        .write_all(b"GET /a HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n\0early")
        .await
        .unwrap();
    client.shutdown().await.unwrap();
    state.tunnel();
    let (mut raw, mut text) = ([0; 1024], Vec::new());
    for serving in [Some(state.serving()), None, None] {
        let mut buf = hyper::rt::ReadBuf::new(&mut raw);
        let polled = poll_fn(|cx| {
            let polled = hyper::rt::Read::poll_read(Pin::new(&mut io), cx, buf.unfilled());
            Poll::Ready(polled.map(|read| read.unwrap()))
        });
        assert_eq!(polled.await, Poll::Ready(()));
        text.extend_from_slice(buf.filled());
        if serving.is_some() {
            // Not before the request is answered.
            let mut buf = hyper::rt::ReadBuf::new(&mut raw);
            let polled = poll_fn(|cx| {
                Poll::Ready(
                    hyper::rt::Read::poll_read(Pin::new(&mut io), cx, buf.unfilled()).is_ready(),
                )
            });
            assert!(!polled.await);
        }
    }
    assert!(
        text.ends_with(b"\r\n\r\n\0early"),
        "{}",
        text.escape_ascii()
    );
    assert_eq!(state.phase(), Phase::Tunnel);
}

#[tokio::test(start_paused = true)]
async fn a_graceful_shutdown_answers_what_is_in_service_and_no_more() {
    let (mut client, server) = duplex(64 * 1024);
    let (state, go) = (ConnState::new(), Arc::new(Semaphore::new(0)));
    let service = {
        let (state, go) = (Arc::clone(&state), Arc::clone(&go));
        service_fn(move |request| answer(request, Act::Path, Arc::clone(&state), Arc::clone(&go)))
    };
    let mut connection = http1::Builder::new().serve_connection(wrap(server, &state), service);
    client.write_all(&[GET, GET].concat()).await.unwrap();
    let client = async {
        let text = read_all(&mut client).await;
        assert!(
            text.contains("connection: close") && text.ends_with("/a"),
            "{text}"
        );
        assert_eq!(text.matches("HTTP/1.1").count(), 1, "{text}");
        drop(client);
    };
    let server = async {
        let asked = poll_fn(|cx| Poll::Ready(Pin::new(&mut connection).poll(cx).is_ready())).await;
        assert!(!asked && state.phase() == Phase::InService);
        Pin::new(&mut connection).graceful_shutdown();
        go.add_permits(2);
        connection.await.unwrap();
    };
    tokio::join!(client, server);
}
