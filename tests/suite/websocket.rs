//! WebSocket through the gateway, with a client and a server that are nobody's of ours.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::common::{Config, Gateway, PATIENCE, Request};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

const KEY: &str = "objects/42";

/// When sockets were opened and ended, and when plain writes came.
#[derive(Clone, Default)]
struct Log(Arc<(Mutex<Vec<Event>>, Condvar)>);

type Event = (&'static str, Instant);

impl Log {
    fn push(&self, what: &'static str) {
        self.0.0.lock().unwrap().push((what, Instant::now()));
        self.0.1.notify_all();
    }

    fn wait(&self, what: &str) -> Instant {
        let find = |log: &Vec<Event>| log.iter().find(|(one, _)| *one == what).map(|(_, at)| *at);
        let log = self.0.0.lock().unwrap();
        let (log, _) = self
            .0
            .1
            .wait_timeout_while(log, PATIENCE, |log| find(log).is_none())
            .unwrap();
        find(&log).unwrap_or_else(|| panic!("never came: {what}"))
    }
}

/// A server that echoes what comes over WebSocket, and answers plain writes.
fn start() -> (SocketAddr, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let log = Log::default();
    let logged = log.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let log = logged.clone();
            std::thread::spawn(move || serve(stream, &log));
        }
    });
    (address, log)
}

fn serve(mut stream: TcpStream, log: &Log) {
    let mut first = [0; 3];
    while stream
        .peek(&mut first)
        .is_ok_and(|count| (1..3).contains(&count))
    {}
    if &first != b"GET" {
        let mut request = Vec::new();
        let mut piece = [0; 1024];
        while !request.ends_with(b"data") {
            match stream.read(&mut piece) {
                Ok(count) if count > 0 => request.extend(&piece[..count]),
                _ => return,
            }
        }
        log.push("write");
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        return;
    }
    let Ok(mut socket) = tungstenite::accept(stream) else {
        return;
    };
    log.push("open");
    while let Ok(message) = socket.read() {
        if (message.is_text() || message.is_binary()) && socket.send(message).is_err() {
            break;
        }
    }
    // Whether by a handshake or by a break, it is over.
    log.push("over");
}

fn gateway(upstream: SocketAddr) -> Gateway {
    let config = Config::new(&format!("http://{upstream}")).settle("400ms");
    Gateway::start(config)
}

fn connect(
    gateway: &Gateway,
    token: Option<u64>,
) -> Result<WebSocket<TcpStream>, Box<tungstenite::Error>> {
    let mut request = format!("ws://{}/objects/42", gateway.http)
        .into_client_request()
        .unwrap();
    if let Some(token) = token {
        let token = token.to_string().parse().unwrap();
        request.headers_mut().insert("fencing-token", token);
    }
    let stream = TcpStream::connect(gateway.http).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    match tungstenite::client(request, stream) {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::HandshakeError::Failure(error)) => Err(Box::new(error)),
        Err(tungstenite::HandshakeError::Interrupted(_)) => panic!("no answer"),
    }
}

#[test]
fn messages_pass_both_ways_until_the_socket_is_closed() {
    let (upstream, log) = start();
    let gateway = gateway(upstream);
    let mut socket = connect(&gateway, Some(34)).unwrap();
    let long = "x".repeat(1 << 20);
    for text in ["hello", "", "\u{1f980}", &long] {
        socket.send(Message::text(text)).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text(text));
    }
    let bytes: Vec<u8> = (0..=255).collect();
    socket.send(Message::binary(bytes.clone())).unwrap();
    assert_eq!(socket.read().unwrap(), Message::binary(bytes));
    socket.send(Message::Ping(vec![1, 2, 3].into())).unwrap();
    assert_eq!(socket.read().unwrap(), Message::Pong(vec![1, 2, 3].into()));
    gateway.wait_key(KEY, "in_flight", 1);

    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    log.wait("over");
    drop(socket);
    gateway.wait_key(KEY, "in_flight", 0);
    let newer = Request::put("/objects/42").token(35).send(gateway.http);
    newer.assert_ok("a newer write, which nothing holds");
}

#[test]
fn the_handshake_is_fenced() {
    let (upstream, _) = start();
    let gateway = gateway(upstream);
    Request::put("/objects/42")
        .token(34)
        .send(gateway.http)
        .assert_ok("the write that raises the mark");
    for (token, status) in [(None, 428), (Some(33), 409)] {
        match *connect(&gateway, token).unwrap_err() {
            tungstenite::Error::Http(response) => {
                assert_eq!(response.status(), status);
                assert_eq!(response.headers()["fencing-outcome"], "not-forwarded");
            }
            other => panic!("{other}"),
        }
    }
    connect(&gateway, Some(34)).unwrap();
}

#[test]
fn a_newer_token_cuts_the_socket() {
    let (upstream, log) = start();
    let gateway = gateway(upstream);
    let mut socket = connect(&gateway, Some(34)).unwrap();
    socket.send(Message::text("hello")).unwrap();
    socket.read().unwrap();
    let newer = Request::put("/objects/42").token(35).spawn(gateway.http);
    while socket.read().is_ok() {}
    newer.join().unwrap().assert_ok("the newer write");
    let held = log.wait("write").duration_since(log.wait("over"));
    assert!(
        held >= Duration::from_millis(320),
        "a tunnel that was cut is unknown, and settles: {held:?}"
    );
}
