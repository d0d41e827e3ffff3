//! The load of benches/locks.py: clients that take a lock of their own and give it back, again and again.
//!
//! Every client has a connection, and the protocol's plainest messages: fencegate's HTTP/1.1, etcd's
//! gRPC (with one lease for each client, granted before the clock starts, as `etcdctl lock` and
//! etcd's client libraries have it), Redis's RESP. One thread; prints one line of JSON.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a benchmark fails by panicking"
)]

mod protocols;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use clap::{Parser, ValueEnum};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

use self::protocols::{Field, Fields, call, command, put_bytes, put_number};

#[derive(Parser)]
struct Options {
    peer: Peer,
    address: SocketAddr,
    #[arg(long)]
    clients: usize,
    #[arg(long)]
    seconds: f64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Peer {
    Fencegate,
    Etcd,
    Redis,
}

/// A client that holds nothing.
enum Client {
    Fencegate(Http),
    Etcd(Etcd),
    Redis(Redis),
}

impl Client {
    async fn connect(peer: Peer, address: SocketAddr, number: usize) -> Self {
        match peer {
            Peer::Fencegate => Self::Fencegate(Http::connect(address, number).await),
            Peer::Etcd => Self::Etcd(Etcd::connect(address, number).await),
            Peer::Redis => Self::Redis(Redis::connect(address, number).await),
        }
    }

    /// Takes the lock and gives it back; gives how long the first half took.
    async fn pair(&mut self) -> Duration {
        match self {
            Self::Fencegate(client) => client.pair().await,
            Self::Etcd(client) => client.pair().await,
            Self::Redis(client) => client.pair().await,
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let options = Options::parse();
    let mut clients = Vec::new();
    for number in 0..options.clients {
        clients.push(Client::connect(options.peer, options.address, number).await);
    }
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(options.seconds);
    let tasks: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            tokio::spawn(async move {
                let (mut acquires, mut pairs) = (Vec::new(), Vec::new());
                loop {
                    let asked = Instant::now();
                    if asked >= end {
                        return (acquires, pairs);
                    }
                    acquires.push(client.pair().await);
                    pairs.push(asked.elapsed());
                }
            })
        })
        .collect();
    let (mut acquires, mut pairs) = (Vec::new(), Vec::new());
    for task in tasks {
        let (some, more) = task.await.unwrap();
        acquires.extend(some);
        pairs.extend(more);
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{}",
        serde_json::json!({
            "pairs": pairs.len(),
            "seconds": seconds,
            "pair_p50_us": quantile(&mut pairs, 50),
            "pair_p99_us": quantile(&mut pairs, 99),
            "acquire_p50_us": quantile(&mut acquires, 50),
            "acquire_p99_us": quantile(&mut acquires, 99),
        })
    );
}

fn quantile(times: &mut [Duration], percent: usize) -> u128 {
    times.sort_unstable();
    let place = (times.len() * percent / 100).min(times.len() - 1);
    times[place].as_micros()
}

/// fencegate: HTTP/1.1 with keep-alive.
struct Http {
    stream: TcpStream,
    read: BytesMut,
    acquire: String,
    release: String,
}

impl Http {
    async fn connect(address: SocketAddr, number: usize) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let path = |action: &str| {
            format!(
                "POST /v1/locks/bench%2Fkey-{number}/{action} HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
            )
        };
        let body = format!(r#"{{"holder":"client-{number}","ttl_ms":60000,"wait_ms":0}}"#);
        Self {
            stream,
            read: BytesMut::new(),
            acquire: format!("{}{}\r\n\r\n{body}", path("acquire"), body.len()),
            release: path("release"),
        }
    }

    async fn pair(&mut self) -> Duration {
        let asked = Instant::now();
        let request = self.acquire.clone();
        let body = self.call(200, request.as_bytes()).await;
        let took = asked.elapsed();
        let grant: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let body = format!(r#"{{"token":{}}}"#, grant["token"]);
        let request = format!("{}{}\r\n\r\n{body}", self.release, body.len());
        self.call(204, request.as_bytes()).await;
        took
    }

    /// The body of the answer, which must have this status.
    async fn call(&mut self, status: u16, request: &[u8]) -> Bytes {
        self.stream.write_all(request).await.unwrap();
        let head = loop {
            let found = self.read.windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(end) = found {
                break self.read.split_to(end + 4);
            }
            assert_ne!(self.stream.read_buf(&mut self.read).await.unwrap(), 0);
        };
        let head = std::str::from_utf8(&head).unwrap().to_ascii_lowercase();
        assert_eq!(head[9..12], *status.to_string(), "{head}");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        while self.read.len() < length {
            assert_ne!(self.stream.read_buf(&mut self.read).await.unwrap(), 0);
        }
        self.read.split_to(length).freeze()
    }
}

/// etcd: its lock service (v3lockpb), by gRPC.
struct Etcd {
    client: tonic::client::Grpc<Channel>,
    lock: Bytes,
}

impl Etcd {
    async fn connect(address: SocketAddr, number: usize) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = endpoint.tcp_nodelay(true).connect().await.unwrap();
        let mut client = tonic::client::Grpc::new(channel);
        // LeaseGrantRequest { TTL = 1 }; LeaseGrantResponse { ID = 2 }
        let mut grant = BytesMut::new();
        put_number(&mut grant, 1, 600);
        let granted = call(
            &mut client,
            "/etcdserverpb.Lease/LeaseGrant",
            grant.freeze(),
        )
        .await;
        let lease = Fields(granted).find_map(|field| match field {
            (2, Field::Number(id)) => Some(id),
            _ => None,
        });
        // LockRequest { name = 1, lease = 2 }
        let mut lock = BytesMut::new();
        put_bytes(&mut lock, 1, format!("bench/key-{number}").as_bytes());
        put_number(&mut lock, 2, lease.unwrap());
        Self {
            client,
            lock: lock.freeze(),
        }
    }

    async fn pair(&mut self) -> Duration {
        let asked = Instant::now();
        let lock = self.lock.clone();
        let locked = call(&mut self.client, "/v3lockpb.Lock/Lock", lock).await;
        let took = asked.elapsed();
        // LockResponse { key = 2 }; UnlockRequest { key = 1 }
        let key = Fields(locked).find_map(|field| match field {
            (2, Field::Bytes(key)) => Some(key),
            _ => None,
        });
        let mut unlock = BytesMut::new();
        put_bytes(&mut unlock, 1, &key.unwrap());
        call(&mut self.client, "/v3lockpb.Lock/Unlock", unlock.freeze()).await;
        took
    }
}

/// Redis: `SET key value NX PX`, and a script that deletes the key only where it has the value.
struct Redis {
    stream: TcpStream,
    read: BytesMut,
    acquire: Vec<u8>,
    release: Vec<u8>,
}

const DELETE_OWN: &str =
    "if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end";

impl Redis {
    async fn connect(address: SocketAddr, number: usize) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (key, value) = (format!("bench:key-{number}"), format!("client-{number}"));
        let mut redis = Self {
            stream,
            read: BytesMut::new(),
            acquire: command(&["SET", &key, &value, "NX", "PX", "60000"]),
            release: Vec::new(),
        };
        let loaded = redis.call(&command(&["SCRIPT", "LOAD", DELETE_OWN])).await;
        let script = loaded.split("\r\n").nth(1).unwrap().to_owned();
        redis.release = command(&["EVALSHA", &script, "1", &key, &value]);
        redis
    }

    async fn pair(&mut self) -> Duration {
        let asked = Instant::now();
        let request = self.acquire.clone();
        assert_eq!(self.call(&request).await, "+OK\r\n");
        let took = asked.elapsed();
        let request = self.release.clone();
        assert_eq!(self.call(&request).await, ":1\r\n");
        took
    }

    /// The answer as it stands: one line, or a string behind its length.
    async fn call(&mut self, request: &[u8]) -> String {
        self.stream.write_all(request).await.unwrap();
        loop {
            let lines = match self.read.first() {
                Some(b'$') => 2,
                _ => 1,
            };
            let ends = self.read.windows(2).filter(|two| two == b"\r\n").count();
            if ends == lines {
                let answer = self.read.split();
                return String::from_utf8(answer.to_vec()).unwrap();
            }
            assert_ne!(self.stream.read_buf(&mut self.read).await.unwrap(), 0);
        }
    }
}
