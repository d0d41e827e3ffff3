//! A resource that speaks HTTP/2, and logs what reaches it.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
use tokio::sync::oneshot;

use super::history::{Event, History, Token, Write};
use super::wait::PATIENCE;

type Done = Pin<Box<dyn Future<Output = Result<(), h2::Error>> + Send>>;
type Script = Arc<dyn Fn(Exchange) -> Done + Send + Sync>;

/// The upstream of a test. Requests pick a script by the header `X-Tag`.
pub(crate) struct Http2Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    log: Mutex<Log>,
    changed: Condvar,
    scripts: Mutex<HashMap<String, Script>>,
}

#[derive(Default)]
struct Log {
    order: u64,
    connections: u64,
    writes: Vec<Write>,
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

/// A request at the resource, in the hands of its script.
pub(crate) struct Exchange {
    pub(crate) request: Request<RecvStream>,
    pub(crate) respond: SendResponse<Bytes>,
    shared: Arc<Shared>,
    index: usize,
}

impl Http2Server {
    /// Reads every body and answers `200 ok`, unless a script says otherwise.
    pub(crate) fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = oneshot::channel();
        let serving = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = accept(listener, serving) => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            shared,
            address,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What to do with the requests that carry `X-Tag: tag`.
    pub(crate) fn on<F>(&self, tag: &str, script: impl Fn(Exchange) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<(), h2::Error>> + Send + 'static,
    {
        let script: Script = Arc::new(move |exchange| Box::pin(script(exchange)));
        self.shared
            .scripts
            .lock()
            .unwrap()
            .insert(tag.to_owned(), script);
    }

    pub(crate) fn history(&self) -> History {
        History(self.shared.log.lock().unwrap().writes.clone(), Vec::new())
    }

    pub(crate) fn connections(&self) -> u64 {
        self.shared.log.lock().unwrap().connections
    }

    /// Waits until `is` is true of a request with this tag.
    pub(crate) fn wait(&self, tag: &str, what: &str, is: impl Fn(&Write) -> bool) -> Write {
        let found = |log: &Log| {
            let mut writes = log.writes.iter();
            writes.find(|write| write.tag == tag && is(write)).cloned()
        };
        let log = self.shared.log.lock().unwrap();
        let (log, _) = self
            .shared
            .changed
            .wait_timeout_while(log, PATIENCE, |log| found(log).is_none())
            .unwrap();
        found(&log).unwrap_or_else(|| {
            let history = History(log.writes.clone(), Vec::new());
            panic!("{tag:?} should {what}\n{history}")
        })
    }

    pub(crate) fn arrived(&self, tag: &str) -> Write {
        self.wait(tag, "arrive", |_| true)
    }

    pub(crate) fn broke(&self, tag: &str) -> Write {
        self.wait(tag, "break", |write| write.broke.is_some())
    }
}

impl Drop for Http2Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        let connection = {
            let mut log = shared.log.lock().unwrap();
            log.connections += 1;
            log.connections
        };
        tokio::spawn(serve(stream, connection, Arc::clone(&shared)));
    }
}

async fn serve(stream: tokio::net::TcpStream, connection: u64, shared: Arc<Shared>) {
    let Ok(mut codec) = h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((request, respond))) = codec.accept().await {
        let header = |name: &str| request.headers().get(name)?.to_str().ok();
        let tag = header("x-tag").unwrap_or_default().to_owned();
        let fields = request.headers().iter();
        let text =
            |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let mut fields: Vec<_> = fields
            .map(|(name, value)| (name.to_string(), text(value)))
            .collect();
        let authority = request.uri().authority().map(ToString::to_string);
        fields.push((":authority".to_owned(), authority.unwrap_or_default()));
        let target = request.uri().path_and_query().unwrap().to_string();
        if tag == "goes away" {
            codec.graceful_shutdown();
        }
        let index = {
            let mut log = shared.log.lock().unwrap();
            let began = log.event();
            log.writes.push(Write {
                key: request.uri().path().to_owned(),
                method: request.method().to_string(),
                tag: tag.clone(),
                token: header("fencing-token").and_then(Token::parse),
                safe: ["GET", "HEAD"].contains(&request.method().as_str()),
                connection,
                fields,
                target,
                body: Vec::new(),
                trailers: Vec::new(),
                began,
                body_done: None,
                broke: None,
                ended: None,
            });
            log.writes.len() - 1
        };
        shared.changed.notify_all();
        let script = shared.scripts.lock().unwrap().get(&tag).cloned();
        let exchange = Exchange {
            request,
            respond,
            shared: Arc::clone(&shared),
            index,
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let done = match script {
                Some(script) => script(exchange).await,
                None => answer(exchange).await,
            };
            let mut log = shared.log.lock().unwrap();
            let event = log.event();
            let write = &mut log.writes[index];
            if done.is_err() {
                write.broke = Some(event);
            }
            write.ended = write.ended.or(Some(event));
            drop(log);
            shared.changed.notify_all();
        });
    }
}

async fn answer(mut exchange: Exchange) -> Result<(), h2::Error> {
    exchange.read_body().await?;
    exchange.answer(200, "ok")
}

impl Exchange {
    /// Reads the body whole, and its trailers.
    pub(crate) async fn read_body(&mut self) -> Result<(), h2::Error> {
        while self.read().await?.is_some() {}
        let trailers = self.request.body_mut().trailers().await?;
        self.log(|write, event| {
            write.body_done = Some(event);
            let fields = trailers.iter().flatten();
            write.trailers = fields
                .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
                .collect();
        });
        Ok(())
    }

    /// Reads a piece of it.
    pub(crate) async fn read(&mut self) -> Result<Option<Bytes>, h2::Error> {
        let body = self.request.body_mut();
        let Some(data) = body.data().await else {
            return Ok(None);
        };
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        self.log(|write, _| write.body.extend_from_slice(&data));
        Ok(Some(data))
    }

    /// Answers whole; the write has ended.
    pub(crate) fn answer(&mut self, status: u16, body: &str) -> Result<(), h2::Error> {
        self.log(|write, event| write.ended = Some(event));
        let mut sender = self.respond.send_response(response(status), false)?;
        sender.send_data(Bytes::copy_from_slice(body.as_bytes()), true)
    }

    /// The same, with trailers.
    pub(crate) fn answer_with_trailers(
        &mut self,
        body: &str,
        trailers: HeaderMap,
    ) -> Result<(), h2::Error> {
        self.log(|write, event| write.ended = Some(event));
        let mut sender = self.respond.send_response(response(200), false)?;
        sender.send_data(Bytes::copy_from_slice(body.as_bytes()), false)?;
        sender.send_trailers(trailers)
    }

    /// Waits until the other side is gone.
    pub(crate) async fn gone(&mut self) -> Result<(), h2::Error> {
        let reason = std::future::poll_fn(|cx| self.respond.poll_reset(cx)).await?;
        Err(reason.into())
    }

    fn log(&self, change: impl FnOnce(&mut Write, Event)) {
        let mut log = self.shared.log.lock().unwrap();
        let event = log.event();
        change(&mut log.writes[self.index], event);
        drop(log);
        self.shared.changed.notify_all();
    }
}

pub(crate) fn response(status: u16) -> Response<()> {
    Response::builder().status(status).body(()).unwrap()
}
