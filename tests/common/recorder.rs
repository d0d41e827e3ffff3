//! The resource: a small HTTP/1.1 server that logs what reaches it and does what a script says.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::history::{Event, History, Lowered, Token, Write};
use super::issuer;
use super::lateness;
use super::parse::{Body, Head};
use super::wait::{Gate, PATIENCE};

/// The connection ended before the exchange did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken;

/// What becomes of the connection after an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    KeepAlive,
    Close,
    /// Ends the connection with a reset.
    Reset,
}

type Script = Arc<dyn Fn(&mut Exchange<'_>) -> Result<Next, Broken> + Send + Sync>;

/// The upstream of a test. Requests pick a script by the header `X-Tag`.
pub(crate) struct Recorder {
    shared: Arc<Shared>,
    address: SocketAddr,
    fillers: Mutex<Vec<TcpStream>>,
    /// Whether the resource ends with it.
    main: bool,
}

struct Shared {
    log: Mutex<Log>,
    changed: Condvar,
    scripts: Mutex<HashMap<String, Script>>,
    default: Mutex<Script>,
    streams: Mutex<HashMap<u64, Arc<TcpStream>>>,
    bytes: AtomicU64,
    connections: AtomicU64,
    stopped: AtomicBool,
}

#[derive(Default)]
struct Log {
    order: u64,
    writes: Vec<Write>,
    resets: Vec<Lowered>,
    raw: HashMap<u64, Vec<u8>>,
}

impl Log {
    fn event(&mut self) -> Event {
        self.order += 1;
        Event {
            order: self.order,
            at: Instant::now(),
        }
    }
}

impl Recorder {
    /// A resource that reads every body and answers `200 ok`.
    pub(crate) fn start() -> Self {
        Self::listen(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// The same with a receive buffer so small that a client soon has to wait for it to be read.
    pub(crate) fn with_small_buffers() -> Self {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let address: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&address.into()).unwrap();
        socket.listen(64).unwrap();
        Self::listen(socket.into())
    }

    /// A resource that takes no connections until the gate is opened: who connects before that
    /// waits for it.
    pub(crate) fn behind(gate: &Gate) -> Self {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let address: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&address.into()).unwrap();
        socket.listen(0).unwrap();
        let recorder = Self::listen_behind(socket.into(), Some(gate.clone()));
        // The queue of the listener is filled up, so that the next one has to wait.
        let time = Duration::from_millis(300);
        while TcpStream::connect_timeout(&recorder.address, time).is_ok_and(|stream| {
            recorder.fillers.lock().unwrap().push(stream);
            true
        }) {}
        recorder
    }

    fn listen(listener: TcpListener) -> Self {
        Self::listen_behind(listener, None)
    }

    fn listen_behind(listener: TcpListener, gate: Option<Gate>) -> Self {
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            log: Mutex::default(),
            changed: Condvar::new(),
            scripts: Mutex::default(),
            default: Mutex::new(Arc::new(|exchange| {
                exchange.read_body()?;
                exchange.respond(200, "ok")
            })),
            streams: Mutex::default(),
            bytes: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        });
        lateness::watch();
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            if let Some(gate) = gate {
                gate.wait();
            }
            for stream in listener.incoming() {
                if accepting.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                serve(&accepting, Arc::new(stream));
            }
        });
        Self {
            shared,
            address,
            fillers: Mutex::default(),
            main: true,
        }
    }

    /// The same resource, for somebody who brings it connections.
    pub(super) fn beside(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            address: self.address,
            fillers: Mutex::default(),
            main: false,
        }
    }

    /// Serves a connection, and returns its number.
    /// Breaks a connection that was taken by [`Self::serve`].
    pub(super) fn break_off(&self, connection: u64) {
        let stream = self.shared.streams.lock().unwrap().remove(&connection);
        if let Some(stream) = stream {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(super) fn serve(&self, stream: Arc<TcpStream>) -> u64 {
        serve(&self.shared, stream)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What to do with the requests that carry `X-Tag: tag`.
    pub(crate) fn on(
        &self,
        tag: &str,
        script: impl Fn(&mut Exchange<'_>) -> Result<Next, Broken> + Send + Sync + 'static,
    ) {
        let mut scripts = self.shared.scripts.lock().unwrap();
        scripts.insert(tag.to_owned(), Arc::new(script));
    }

    /// What to do with all others.
    pub(crate) fn otherwise(
        &self,
        script: impl Fn(&mut Exchange<'_>) -> Result<Next, Broken> + Send + Sync + 'static,
    ) {
        *self.shared.default.lock().unwrap() = Arc::new(script);
    }

    /// Reads the request whole and answers once the gate that is returned is open.
    pub(crate) fn hold(&self, tag: &str) -> Gate {
        let gate = Gate::new();
        let opened = gate.clone();
        self.on(tag, move |exchange| {
            exchange.read_body()?;
            exchange.wait(&opened)?;
            exchange.respond(200, "ok")
        });
        gate
    }

    /// All that has reached the resource so far.
    pub(crate) fn history(&self) -> History {
        let log = self.shared.log.lock().unwrap();
        History(log.writes.clone(), log.resets.clone())
    }

    /// Now, in the order of the log.
    pub(crate) fn now(&self) -> Event {
        self.shared.log.lock().unwrap().event()
    }

    /// The mark of the key behind this path has been reset; it was asked for at `asked`.
    pub(crate) fn was_reset(&self, path: &str, asked: Event) {
        let mut log = self.shared.log.lock().unwrap();
        let answered = log.event();
        log.resets.push(Lowered {
            key: path.to_owned(),
            asked,
            answered,
        });
    }

    /// How many requests have reached the resource.
    pub(crate) fn count(&self) -> usize {
        self.shared.log.lock().unwrap().writes.len()
    }

    /// How many bytes have reached the resource.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::SeqCst)
    }

    /// How many bytes for the resource its clients' kernel still holds, sent by them and not
    /// acknowledged: the `tx_queue` of `/proc/net/tcp` (Linux, proc_pid_net(5)).
    pub(crate) fn unacknowledged(&self) -> u64 {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let resource = format!(":{:04X}", self.address.port());
        let queues = table.lines().skip(1).filter_map(|line| {
            let mut columns = line.split_ascii_whitespace().skip(2);
            let remote = columns.next()?;
            let (sending, _) = columns.nth(1)?.split_once(':')?;
            remote
                .ends_with(&resource)
                .then(|| u64::from_str_radix(sending, 16).unwrap())
        });
        queues.sum()
    }

    /// How many connections have been made to the resource.
    pub(crate) fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// The bytes of one connection, as they came (the first MiB of them).
    pub(crate) fn raw(&self, connection: u64) -> Vec<u8> {
        let log = self.shared.log.lock().unwrap();
        log.raw.get(&connection).cloned().unwrap_or_default()
    }

    /// The last request that reached the resource.
    pub(crate) fn last(&self) -> Write {
        self.history().0.last().expect("a request").clone()
    }

    /// Waits for a request with this tag to arrive.
    pub(crate) fn arrived(&self, tag: &str) -> Write {
        self.wait_for(tag, "arrive", |_| true)
    }

    /// Waits for a request with this tag to be there whole.
    pub(crate) fn received(&self, tag: &str) -> Write {
        self.wait_for(tag, "be received whole", |write| write.body_done.is_some())
    }

    /// Waits for the connection of a request with this tag to break.
    pub(crate) fn broke(&self, tag: &str) -> Write {
        self.wait_for(tag, "break", |write| write.broke.is_some())
    }

    /// Waits for a request with this tag to end.
    pub(crate) fn ended(&self, tag: &str) -> Write {
        self.wait_for(tag, "end", |write| write.ended.is_some())
    }

    /// Waits until `count` body bytes of a request with this tag are there.
    pub(crate) fn has_body(&self, tag: &str, count: usize) -> Write {
        self.wait_for(tag, "bring its bytes", |write| write.body.len() >= count)
    }

    fn wait_for(&self, tag: &str, what: &str, is: impl Fn(&Write) -> bool) -> Write {
        let log = self.shared.log.lock().unwrap();
        let found = |log: &Log| {
            let mut writes = log.writes.iter();
            writes.find(|write| write.tag == tag && is(write)).cloned()
        };
        let (log, _) = self
            .shared
            .changed
            .wait_timeout_while(log, PATIENCE, |log| found(log).is_none())
            .unwrap();
        found(&log).unwrap_or_else(|| {
            let history = History(log.writes.clone(), log.resets.clone());
            panic!("{tag:?} should {what} at the resource\n{history}")
        })
    }

    /// Closes every connection that idles or works, as a server that restarts does.
    pub(crate) fn close_connections(&self) {
        for stream in self.shared.streams.lock().unwrap().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if !self.main {
            return;
        }
        self.shared.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        self.close_connections();
    }
}

fn serve(shared: &Arc<Shared>, stream: Arc<TcpStream>) -> u64 {
    let id = shared.connections.fetch_add(1, Ordering::SeqCst);
    let mut streams = shared.streams.lock().unwrap();
    streams.insert(id, Arc::clone(&stream));
    drop(streams);
    let shared = Arc::clone(shared);
    std::thread::spawn(move || Served::new(shared, id, stream).serve());
    id
}

/// One connection of the resource's.
struct Served {
    shared: Arc<Shared>,
    id: u64,
    stream: Arc<TcpStream>,
    read: Vec<u8>,
}

impl Served {
    fn new(shared: Arc<Shared>, id: u64, stream: Arc<TcpStream>) -> Self {
        stream.set_nodelay(true).unwrap();
        Self {
            shared,
            id,
            stream,
            read: Vec::new(),
        }
    }

    fn serve(mut self) {
        while let Ok(Next::KeepAlive) = self.exchange() {}
        self.shared.streams.lock().unwrap().remove(&self.id);
    }

    fn exchange(&mut self) -> Result<Next, Broken> {
        if self.read.is_empty() {
            self.fill()?;
        }
        // What came before a reset can be read after it. A resource that a busy machine made so late does not begin: how long it
        // may go on is what `settle` bounds, and not how late it may start.
        let broken = !self.shared.streams.lock().unwrap().contains_key(&self.id);
        if broken || !matches!(self.stream.take_error(), Ok(None)) {
            return Err(Broken);
        }
        let began = self.shared.log.lock().unwrap().event();
        let head = loop {
            if let Some(head) = Head::cut(&mut self.read) {
                break head;
            }
            self.fill()?;
        };
        let shared = Arc::clone(&self.shared);
        let mut exchange = Exchange::new(self, head, began);
        let tag = exchange.head.get("x-tag").unwrap_or_default().to_owned();
        let script = shared.scripts.lock().unwrap().get(&tag).cloned();
        let script = script.unwrap_or_else(|| Arc::clone(&shared.default.lock().unwrap()));
        let result = script(&mut exchange);
        exchange.close(result);
        if result == Ok(Next::Reset) {
            let _ = socket2::SockRef::from(&*self.stream).set_linger(Some(Duration::ZERO));
        }
        result
    }

    fn fill(&mut self) -> Result<(), Broken> {
        let mut bytes = [0; 64 * 1024];
        match (&*self.stream).read(&mut bytes) {
            Ok(0) | Err(_) => Err(Broken),
            Ok(count) => {
                self.shared.bytes.fetch_add(count as u64, Ordering::SeqCst);
                let mut log = self.shared.log.lock().unwrap();
                let raw = log.raw.entry(self.id).or_default();
                if raw.len() < 1 << 20 {
                    raw.extend_from_slice(&bytes[..count]);
                }
                drop(log);
                self.read.extend_from_slice(&bytes[..count]);
                Ok(())
            }
        }
    }
}

/// A request at the resource, in the hands of its script.
pub(crate) struct Exchange<'a> {
    pub(crate) head: Head,
    served: &'a mut Served,
    body: Body,
    index: usize,
    works_on: Duration,
}

impl<'a> Exchange<'a> {
    fn new(served: &'a mut Served, head: Head, began: Event) -> Self {
        let mut line = head.line.split(' ');
        let method = line.next().unwrap_or_default().to_owned();
        let target = line.next().unwrap_or_default().to_owned();
        let path = target.split('?').next().unwrap_or_default();
        let safe = ["GET", "HEAD", "OPTIONS", "PROPFIND", "REPORT", "SEARCH"];
        let upgrade = head.get("upgrade").is_some();
        let write = Write {
            key: path.to_owned(),
            safe: safe.contains(&method.as_str()) && !upgrade,
            method,
            tag: head.get("x-tag").unwrap_or_default().to_owned(),
            token: head.get("fencing-token").and_then(|sent| {
                Token::parse(sent).or_else(|| Token::parse(&issuer::claimed(sent)?))
            }),
            connection: served.id,
            fields: head.fields.clone(),
            target,
            body: Vec::new(),
            trailers: Vec::new(),
            began,
            body_done: None,
            broke: None,
            ended: None,
        };
        let mut log = served.shared.log.lock().unwrap();
        let index = log.writes.len();
        log.writes.push(write);
        drop(log);
        served.shared.changed.notify_all();
        let body = Body::new(head.framing());
        Self {
            head,
            served,
            body,
            index,
            works_on: Duration::ZERO,
        }
    }

    /// Reads the body whole.
    pub(crate) fn read_body(&mut self) -> Result<(), Broken> {
        if self.head.get("expect").is_some() {
            self.send("HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        self.read_until(|exchange, _| exchange.body.done)
    }

    /// Reads `count` bytes of the body, or somewhat more.
    pub(crate) fn read_some(&mut self, count: usize) -> Result<(), Broken> {
        self.read_until(|_, length| length >= count)
    }

    fn read_until(&mut self, enough: impl Fn(&Self, usize) -> bool) -> Result<(), Broken> {
        loop {
            let mut fresh = Vec::new();
            let fed = self.body.feed(&mut self.served.read, &mut fresh);
            let mut log = self.served.shared.log.lock().unwrap();
            let event = log.event();
            let write = &mut log.writes[self.index];
            write.body.append(&mut fresh);
            if self.body.done && write.body_done.is_none() {
                write.body_done = Some(event);
                write.trailers.clone_from(&self.body.trailers);
            }
            let length = write.body.len();
            drop(log);
            self.served.shared.changed.notify_all();
            fed.expect("the gateway sends well-formed bodies");
            if enough(self, length) {
                return Ok(());
            }
            self.served.fill()?;
        }
    }

    /// Answers with a body, after which the write has ended and the connection stays open.
    pub(crate) fn respond(&mut self, status: u16, body: &str) -> Result<Next, Broken> {
        self.respond_with(status, "", body)
    }

    /// The same with more header lines, each ended by CR LF.
    pub(crate) fn respond_with(
        &mut self,
        status: u16,
        fields: &str,
        body: &str,
    ) -> Result<Next, Broken> {
        // What the gateway may conclude from the response must already be true when it is sent.
        self.end();
        let length = body.len();
        let body = if self.head.line.starts_with("HEAD ") {
            ""
        } else {
            body
        };
        self.send(format!(
            "HTTP/1.1 {status} Scripted\r\n{fields}Content-Length: {length}\r\n\r\n{body}"
        ))?;
        Ok(Next::KeepAlive)
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), Broken> {
        (&*self.served.stream)
            .write_all(bytes.as_ref())
            .map_err(|_| Broken)
    }

    /// Reads raw bytes: for tunnels.
    pub(crate) fn receive(&mut self) -> Result<Vec<u8>, Broken> {
        if self.served.read.is_empty() {
            self.served.fill()?;
        }
        Ok(std::mem::take(&mut self.served.read))
    }

    /// Waits for the gate, or for the connection to break.
    pub(crate) fn wait(&mut self, gate: &Gate) -> Result<(), Broken> {
        let deadline = Instant::now() + PATIENCE;
        while !gate.wait_for(Duration::from_millis(5)) {
            if self.is_broken() {
                return Err(Broken);
            }
            assert!(Instant::now() < deadline, "nobody opened the gate");
        }
        Ok(())
    }

    /// Never answers: waits for the connection to break.
    pub(crate) fn never(&mut self) -> Result<Next, Broken> {
        self.wait(&Gate::new())?;
        Err(Broken)
    }

    /// How long the resource goes on working after its connection broke.
    pub(crate) fn works_on(&mut self, time: Duration) {
        self.works_on = time;
    }

    /// Works, whatever becomes of the connection.
    pub(crate) fn work(&mut self, time: Duration) {
        std::thread::sleep(time);
    }

    /// The resource does nothing for this request any more.
    pub(crate) fn end(&mut self) {
        self.log(|write, event| write.ended = write.ended.or(Some(event)));
    }

    fn is_broken(&self) -> bool {
        let stream = &self.served.stream;
        stream
            .set_read_timeout(Some(Duration::from_millis(1)))
            .unwrap();
        let peeked = stream.peek(&mut [0]);
        stream.set_read_timeout(None).unwrap();
        match peeked {
            Ok(count) => count == 0,
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }

    fn close(&mut self, result: Result<Next, Broken>) {
        if result.is_err() {
            self.log(|write, event| write.broke = write.broke.or(Some(event)));
            std::thread::sleep(self.works_on);
        }
        self.end();
    }

    fn log(&mut self, change: impl FnOnce(&mut Write, Event)) {
        let mut log = self.served.shared.log.lock().unwrap();
        let event = log.event();
        change(&mut log.writes[self.index], event);
        drop(log);
        self.served.shared.changed.notify_all();
    }
}
