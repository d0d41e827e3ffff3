//! A client that speaks bytes, so that it can speak them wrongly.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use super::parse::{Body, Framing, Head, all, lossy};
use super::wait::PATIENCE;

/// A connection to the gateway.
pub(crate) struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

/// Why no response came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The other side closed in order.
    Closed,
    /// The other side reset the connection.
    Reset,
    /// Nothing came in time.
    Silent,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).expect("the gateway accepts connections"))
    }

    pub(crate) fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream,
            read: Vec::new(),
        }
    }

    /// Sends bytes as they are. A gateway that has hung up is no error: its answer tells more.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let _ = self.stream.write_all(bytes.as_ref());
        self
    }

    /// The same, for those who must know whether it was taken.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// The next final response to a request that was not HEAD.
    pub(crate) fn response(&mut self) -> Response {
        self.try_response("GET")
            .unwrap_or_else(|ended| panic!("expected a response, but the connection: {ended:?}"))
    }

    /// The next final response to a request with this method, or why there is none.
    pub(crate) fn try_response(&mut self, method: &str) -> Result<Response, Ended> {
        let mut informational = Vec::new();
        loop {
            let head = self.head()?;
            let status = status(&head);
            if (100..200).contains(&status) && status != 101 {
                informational.push(status);
                continue;
            }
            let mut response = Response {
                status,
                head,
                body: Vec::new(),
                trailers: Vec::new(),
                informational,
                broken: None,
            };
            self.body(&mut response, method);
            return Ok(response);
        }
    }

    /// The next head, final or not.
    pub(crate) fn head(&mut self) -> Result<Head, Ended> {
        loop {
            if let Some(head) = Head::cut(&mut self.read) {
                return Ok(head);
            }
            self.fill()?;
        }
    }

    /// Reads until `count` bytes are there and takes them, or says why they never came.
    pub(crate) fn take(&mut self, count: usize) -> Result<Vec<u8>, Ended> {
        while self.read.len() < count {
            self.fill()?;
        }
        Ok(self.read.drain(..count).collect())
    }

    /// Waits until the other side ends the connection, dropping what still comes.
    pub(crate) fn ended(&mut self) -> Ended {
        loop {
            self.read.clear();
            if let Err(ended) = self.fill() {
                return ended;
            }
        }
    }

    /// Whether nothing at all comes within `time`.
    pub(crate) fn silent_for(&mut self, time: Duration) -> bool {
        self.stream.set_read_timeout(Some(time)).unwrap();
        let result = self.fill();
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        result == Err(Ended::Silent)
    }

    /// Says that no more bytes will be sent.
    pub(crate) fn finish(&mut self) -> &mut Self {
        let _ = self.stream.shutdown(Shutdown::Write);
        self
    }

    /// Goes away at once, with a reset.
    pub(crate) fn abort(self) {
        let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    fn body(&mut self, response: &mut Response, method: &str) {
        let no_body = method == "HEAD" || [101, 204, 304].contains(&response.status);
        let framing = match response.head.framing() {
            _ if no_body => Framing::None,
            Framing::None => Framing::Close,
            known => known,
        };
        let mut body = Body::new(framing);
        loop {
            if let Err(broken) = body.feed(&mut self.read, &mut response.body) {
                panic!("the gateway's response is broken: {broken}");
            }
            if body.done {
                break;
            }
            match self.fill() {
                Ok(()) => {}
                Err(Ended::Closed) if framing == Framing::Close => break,
                Err(ended) => {
                    response.broken = Some(ended);
                    break;
                }
            }
        }
        response.trailers = body.trailers;
    }

    fn fill(&mut self) -> Result<(), Ended> {
        let mut bytes = [0; 64 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(Ended::Closed),
            Ok(count) => {
                self.read.extend_from_slice(&bytes[..count]);
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(Ended::Silent)
            }
            Err(_) => Err(Ended::Reset),
        }
    }
}

fn status(head: &Head) -> u16 {
    head.line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("no status line: {:?}", head.line))
}

/// A response as it came.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    /// The 1xx responses before it.
    pub(crate) informational: Vec<u16>,
    /// Set when the connection ended before the body did.
    pub(crate) broken: Option<Ended>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.get(name)
    }

    pub(crate) fn headers(&self, name: &str) -> Vec<&str> {
        self.head.all(name)
    }

    pub(crate) fn trailer(&self, name: &str) -> Option<&str> {
        all(&self.trailers, name).first().copied()
    }

    pub(crate) fn text(&self) -> String {
        lossy(&self.body)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {:?}", self.text()))
    }

    /// The `reason` of a problem, or nothing where the response is none.
    pub(crate) fn reason(&self) -> String {
        if self.header("content-type") != Some("application/problem+json") {
            return String::new();
        }
        self.json()["reason"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// Asserts a response of the upstream's.
    #[track_caller]
    pub(crate) fn assert_ok(&self, why: &str) {
        assert!(
            (200..300).contains(&self.status),
            "{why}: expected it to be admitted and forwarded, got {} {:?}",
            self.status,
            self.text()
        );
    }

    /// Asserts one of the gateway's own answers: status, reason and outcome.
    #[track_caller]
    pub(crate) fn assert_refused(&self, status: u16, reason: &str, outcome: &str, why: &str) {
        assert_eq!(
            (self.status, self.reason().as_str()),
            (status, reason),
            "{why}: {:?} {:?}",
            self.head,
            self.text()
        );
        assert_eq!(
            self.header("fencing-outcome"),
            Some(outcome),
            "{why}: every error of the gateway's carries its outcome: {:?}",
            self.head
        );
    }

    /// Asserts a refusal before anything was sent upstream.
    #[track_caller]
    pub(crate) fn assert_fenced(&self, status: u16, reason: &str, why: &str) {
        self.assert_refused(status, reason, "not-forwarded", why);
    }
}

/// Builds a well-formed request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    method: String,
    target: String,
    host: String,
    fields: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Request {
    pub(crate) fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            host: "store.test".to_owned(),
            fields: Vec::new(),
            body: None,
        }
    }

    /// A write of one object.
    pub(crate) fn put(target: &str) -> Self {
        Self::new("PUT", target).body("data")
    }

    pub(crate) fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    pub(crate) fn token(self, token: impl ToString) -> Self {
        self.header("Fencing-Token", &token.to_string())
    }

    /// Names the request in the upstream's log, and picks its script there.
    pub(crate) fn tag(self, tag: &str) -> Self {
        self.header("X-Tag", tag)
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn host(mut self, host: &str) -> Self {
        host.clone_into(&mut self.host);
        self
    }

    pub(crate) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = Some(body.as_ref().to_vec());
        self
    }

    /// The head with a Content-Length of `length`, and no body: for those who send it in pieces.
    pub(crate) fn head(&self, length: usize) -> Vec<u8> {
        self.bytes(Some(&format!("Content-Length: {length}\r\n")), b"")
    }

    /// The head of a chunked request.
    pub(crate) fn chunked_head(&self) -> Vec<u8> {
        self.bytes(Some("Transfer-Encoding: chunked\r\n"), b"")
    }

    /// The whole request.
    pub(crate) fn whole(&self) -> Vec<u8> {
        match &self.body {
            Some(body) => self.bytes(Some(&format!("Content-Length: {}\r\n", body.len())), body),
            None => self.bytes(None, b""),
        }
    }

    /// Its fields as HTTP/2 has them, and its body.
    pub(crate) fn for_http2(&self) -> (Vec<(String, String)>, Option<Vec<u8>>) {
        let pseudo = [
            (":method", &*self.method),
            (":scheme", "http"),
            (":authority", &*self.host),
            (":path", &*self.target),
        ];
        let mut fields: Vec<_> = pseudo
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        for (name, value) in &self.fields {
            fields.push((name.to_ascii_lowercase(), value.clone()));
        }
        if let Some(body) = &self.body {
            fields.push(("content-length".to_owned(), body.len().to_string()));
        }
        (fields, self.body.clone())
    }

    fn bytes(&self, framing: Option<&str>, body: &[u8]) -> Vec<u8> {
        let mut head = format!(
            "{} {} HTTP/1.1\r\nHost: {}\r\n",
            self.method, self.target, self.host
        );
        for (name, value) in &self.fields {
            head += &format!("{name}: {value}\r\n");
        }
        head += framing.unwrap_or_default();
        head += "\r\n";
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        bytes
    }

    /// Sends it over a connection of its own and reads the response.
    pub(crate) fn send(&self, address: SocketAddr) -> Response {
        self.try_send(address)
            .unwrap_or_else(|ended| panic!("{self:?} got no response: {ended:?}"))
    }

    pub(crate) fn try_send(&self, address: SocketAddr) -> Result<Response, Ended> {
        let mut connection = Connection::open(address);
        connection.send(self.whole());
        connection.try_response(&self.method)
    }

    /// Sends it from a thread of its own.
    pub(crate) fn spawn(&self, address: SocketAddr) -> std::thread::JoinHandle<Response> {
        let request = self.clone();
        std::thread::spawn(move || request.send(address))
    }
}

/// Sends bytes over a connection of their own, and reads one response if there is one.
pub(crate) fn send_raw(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Result<Response, Ended> {
    let mut connection = Connection::open(address);
    connection.send(bytes);
    connection.try_response("GET")
}
