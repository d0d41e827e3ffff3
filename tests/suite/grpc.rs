//! gRPC through the gateway, with tonic's client and server.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use crate::common::{Config, Gateway, PATIENCE};
use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{
    ClientStreamingService, NamedService, ServerStreamingService, StreamingService, UnaryService,
};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status, Streaming};
use tower_service::Service;

/// Messages as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// A store of objects, by gRPC. It keeps what it was called with: method and token.
#[derive(Clone, Default)]
struct Store(Arc<Mutex<Vec<(String, String)>>>);

type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

struct Put;
struct Watch;
struct Collect;
struct Chat;

impl UnaryService<Bytes> for Put {
    type Response = Bytes;
    type Future = Later<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        Box::pin(async move {
            let message = request.into_inner();
            if message == "missing" {
                return Err(Status::not_found("no such object: 100% sure"));
            }
            let mut response = Response::new(message);
            response
                .metadata_mut()
                .insert("x-served", "yes".parse().unwrap());
            Ok(response)
        })
    }
}

impl ServerStreamingService<Bytes> for Watch {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = Later<Result<Response<Messages>, Status>>;

    fn call(&mut self, _: Request<Bytes>) -> Self::Future {
        Box::pin(async {
            let messages = tokio_stream::iter(0..200_u32);
            let messages = messages.map(|number| Ok(Bytes::from(number.to_string())));
            Ok(Response::new(Box::pin(messages) as Messages))
        })
    }
}

impl ClientStreamingService<Bytes> for Collect {
    type Response = Bytes;
    type Future = Later<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        Box::pin(async move {
            let mut messages = request.into_inner();
            let mut all = Vec::new();
            while let Some(message) = messages.message().await? {
                all.extend(message);
            }
            Ok(Response::new(all.into()))
        })
    }
}

impl StreamingService<Bytes> for Chat {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = Later<Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        Box::pin(async move { Ok(Response::new(Box::pin(request.into_inner()) as Messages)) })
    }
}

impl NamedService for Store {
    const NAME: &'static str = "objects.Store";
}

impl Service<http::Request<Body>> for Store {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Later<Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
        let token = request.headers().get("fencing-token");
        let token = token.map_or_else(String::new, |token| token.to_str().unwrap().to_owned());
        self.0.lock().unwrap().push((method.clone(), token));
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Raw);
            Ok(match method.as_str() {
                "Put" => grpc.unary(Put, request).await,
                "Watch" => grpc.server_streaming(Watch, request).await,
                "Collect" => grpc.client_streaming(Collect, request).await,
                _ => grpc.streaming(Chat, request).await,
            })
        })
    }
}

struct Stage {
    gateway: Gateway,
    store: Store,
    client: tonic::client::Grpc<Channel>,
}

impl Stage {
    async fn new() -> Self {
        let store = Store::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = listener.local_addr().unwrap();
        let served = store.clone();
        let incoming = futures(listener);
        tokio::spawn(async move {
            Server::builder()
                .add_service(served)
                .serve_with_incoming(incoming)
                .await
        });
        let gateway = tokio::task::spawn_blocking(move || start(upstream))
            .await
            .unwrap();
        let channel = Endpoint::from_shared(format!("http://{}", gateway.http))
            .unwrap()
            .connect()
            .await
            .unwrap();
        Self {
            gateway,
            store,
            client: tonic::client::Grpc::new(channel),
        }
    }

    async fn put(
        &self,
        token: Option<u64>,
        message: &'static str,
    ) -> Result<Response<Bytes>, Status> {
        let mut client = self.client.clone();
        client.ready().await.unwrap();
        let message = request(token, Bytes::from_static(message.as_bytes()));
        client.unary(message, path("Put"), Raw).await
    }

    fn calls(&self) -> usize {
        self.store.0.lock().unwrap().len()
    }
}

fn futures(
    listener: tokio::net::TcpListener,
) -> impl Stream<Item = std::io::Result<tokio::net::TcpStream>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if sender.send(Ok(stream)).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

fn start(upstream: SocketAddr) -> Gateway {
    let config = Config::new(&format!("http://{upstream}"))
        .upstream("http2", true)
        .settle("300ms")
        .routes(json!([{
            "name": "objects",
            "path": "/objects.Store/{method}",
            "upstream": "objects",
            "fence": { "key": "{header.x-object}" },
        }]));
    Gateway::start(config)
}

/// Runs a test, which fails where it comes to a stop.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, test)
            .await
            .unwrap_or_else(|_| panic!("the test came to a stop"));
    });
}

fn path(method: &str) -> PathAndQuery {
    format!("/objects.Store/{method}").parse().unwrap()
}

fn request<T>(token: Option<u64>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("x-object", "42".parse().unwrap());
    if let Some(token) = token {
        metadata.insert("fencing-token", token.to_string().parse().unwrap());
    }
    request
}

#[test]
fn calls_are_fenced() {
    run(async {
        let stage = Stage::new().await;
        let answer = stage.put(Some(34), "hello").await.unwrap();
        assert_eq!(answer.metadata().get("x-served").unwrap(), "yes");
        assert_eq!(answer.into_inner(), "hello");
        assert_eq!(
            stage.store.0.lock().unwrap()[0],
            ("Put".to_owned(), "34".to_owned())
        );

        let calls = stage.calls();
        let stale = stage.put(Some(33), "late").await.unwrap_err();
        assert_eq!(stale.code(), Code::Aborted);
        assert!(stale.message().starts_with("stale-token: "), "{stale:?}");
        assert_eq!(
            stale.metadata().get("fencing-outcome").unwrap(),
            "not-forwarded"
        );
        assert_eq!(stale.metadata().get("fencing-mark").unwrap(), "34");
        let none = stage.put(None, "x").await.unwrap_err();
        assert_eq!(none.code(), Code::FailedPrecondition);
        assert_eq!(stage.calls(), calls, "neither was forwarded");

        // A status of the server's own comes in trailers.
        let missing = stage.put(Some(34), "missing").await.unwrap_err();
        assert_eq!(missing.code(), Code::NotFound);
        assert_eq!(missing.message(), "no such object: 100% sure");
        let gateway = stage.gateway;
        tokio::task::spawn_blocking(move || {
            assert_eq!(gateway.mark("objects/42").as_deref(), Some("34"));
            assert_eq!(gateway.key("objects/42").unwrap()["unsettled"], 0);
        })
        .await
        .unwrap();
    });
}

#[test]
fn streams_pass() {
    run(async {
        let stage = Stage::new().await;
        let mut client = stage.client.clone();
        client.ready().await.unwrap();
        let watched = client
            .server_streaming(request(Some(1), Bytes::new()), path("Watch"), Raw)
            .await
            .unwrap();
        let mut messages = watched.into_inner();
        for number in 0..200 {
            let message = messages.message().await.unwrap().unwrap();
            assert_eq!(message, number.to_string());
        }
        assert_eq!(messages.message().await.unwrap(), None);

        client.ready().await.unwrap();
        let pieces = tokio_stream::iter(vec![Bytes::from_static(b"ab"); 300]);
        let collected = client
            .client_streaming(request(Some(1), pieces), path("Collect"), Raw)
            .await
            .unwrap();
        assert_eq!(collected.into_inner().len(), 600);

        let (sender, receiver) = mpsc::channel(1);
        client.ready().await.unwrap();
        let talk = request(Some(1), ReceiverStream::new(receiver));
        let chat = client.streaming(talk, path("Chat"), Raw).await.unwrap();
        let mut answers = chat.into_inner();
        for round in 0..50 {
            let message = Bytes::from(format!("message {round}"));
            sender.send(message.clone()).await.unwrap();
            assert_eq!(answers.message().await.unwrap().unwrap(), message);
        }
        drop(sender);
        assert_eq!(answers.message().await.unwrap(), None);
        // Each has completed: nothing is held.
        stage.put(Some(2), "newer").await.unwrap();
    });
}

#[test]
fn a_newer_token_cuts_a_stream() {
    run(async {
        let stage = Stage::new().await;
        let mut client = stage.client.clone();
        // One whose response has not begun is told.
        let (sender, receiver) = mpsc::channel(1);
        let upload = request(Some(1), ReceiverStream::new(receiver));
        let mut uploading = client.clone();
        let upload = tokio::spawn(async move {
            uploading.ready().await.unwrap();
            uploading
                .client_streaming(upload, path("Collect"), Raw)
                .await
        });
        sender.send(Bytes::from_static(b"half")).await.unwrap();
        while stage.calls() == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        stage.put(Some(2), "newer").await.unwrap();
        let cut = upload.await.unwrap().unwrap_err();
        assert_eq!(cut.code(), Code::Aborted, "{cut:?}");
        assert!(cut.message().starts_with("superseded: "), "{cut:?}");
        assert_eq!(cut.metadata().get("fencing-outcome").unwrap(), "unknown");

        // One whose response has begun is broken off.
        let (sender, receiver) = mpsc::channel(1);
        client.ready().await.unwrap();
        let talk = request(Some(2), ReceiverStream::new(receiver));
        let chat = client.streaming(talk, path("Chat"), Raw).await.unwrap();
        let mut answers = chat.into_inner();
        sender.send(Bytes::from_static(b"hello")).await.unwrap();
        answers.message().await.unwrap().unwrap();
        stage.put(Some(3), "newest").await.unwrap();
        let broken = answers.message().await.unwrap_err();
        assert_ne!(broken.code(), Code::Ok);
    });
}
