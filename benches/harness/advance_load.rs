//! The load of benches/advances.py for peers that are servers: so many advances in flight at once,
//! each the plainest durable write that the peer has: `SET key token` in Redis, and etcd's Put.
//!
//! The advances share a few connections, in which a peer finds many at a time: that is what serves
//! it best. One thread; prints one line of JSON.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a benchmark fails by panicking"
)]

mod protocols;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use clap::{Parser, ValueEnum};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::Endpoint;

use self::protocols::{call, command, put_bytes};

const HOT_KEYS: u64 = 1000;
const MOST_CONNECTIONS: u64 = 16;

#[derive(Clone, Parser)]
struct Options {
    peer: Peer,
    address: SocketAddr,
    #[arg(long)]
    keys: Keys,
    #[arg(long)]
    advancers: u64,
    #[arg(long)]
    seconds: f64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Peer {
    Redis,
    Etcd,
}

#[derive(Clone, Copy, ValueEnum)]
enum Keys {
    Hot,
    Random,
}

/// What is written: keys of 40 bytes, and tokens that rise.
#[derive(Clone)]
struct Advances {
    keys: Keys,
    counter: u64,
}

impl Advances {
    fn next(&mut self) -> (String, String) {
        self.counter += 1;
        let key = match self.keys {
            Keys::Hot => format!(
                "objects/hot-key-of-forty-bytes-{:09}",
                self.counter % HOT_KEYS
            ),
            Keys::Random => format!(
                "objects/random-key-{:021}",
                self.counter.wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ),
        };
        (key, self.counter.to_string())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let options = Options::parse();
    let connections = options.advancers.min(MOST_CONNECTIONS);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let base = u64::try_from(now.unwrap().as_micros()).unwrap();
    let mut running = Vec::new();
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(options.seconds);
    for number in 0..connections {
        let share =
            options.advancers / connections + u64::from(number < options.advancers % connections);
        let advances = Advances {
            keys: options.keys,
            counter: base + (number << 32),
        };
        let address = options.address;
        running.push(match options.peer {
            Peer::Redis => tokio::spawn(redis(address, advances, share, end)),
            Peer::Etcd => tokio::spawn(etcd(address, advances, share, end)),
        });
    }
    let mut times = Vec::new();
    for task in running {
        times.extend(task.await.unwrap());
    }
    times.sort_unstable();
    let quantile =
        |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_micros();
    println!(
        "{}",
        serde_json::json!({
            "advances": times.len(),
            "seconds": began.elapsed().as_secs_f64(),
            "p50_us": quantile(50),
            "p99_us": quantile(99),
        })
    );
}

/// Keeps `share` commands on their way in one connection.
async fn redis(
    address: SocketAddr,
    mut advances: Advances,
    share: u64,
    end: Instant,
) -> Vec<Duration> {
    const OK: &[u8] = b"+OK\r\n";
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut times, mut asked, mut read) = (Vec::new(), VecDeque::new(), BytesMut::new());
    let mut more = share;
    loop {
        let mut commands = Vec::new();
        let now = Instant::now();
        if now < end {
            for _ in 0..more {
                let (key, token) = advances.next();
                commands.extend(command(&["SET", &key, &token]));
                asked.push_back(now);
            }
        }
        stream.write_all(&commands).await.unwrap();
        if asked.is_empty() {
            return times;
        }
        assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0);
        more = 0;
        while read.len() >= OK.len() {
            assert_eq!(&read.split_to(OK.len())[..], OK);
            times.extend(asked.pop_front().map(|asked: Instant| asked.elapsed()));
            more += 1;
        }
    }
}

/// Keeps `share` calls on their way in one connection.
async fn etcd(address: SocketAddr, advances: Advances, share: u64, end: Instant) -> Vec<Duration> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let channel = endpoint.tcp_nodelay(true).connect().await.unwrap();
    let calls: Vec<_> = (0..share)
        .map(|number| {
            let mut client = tonic::client::Grpc::new(channel.clone());
            let mut advances = Advances {
                counter: advances.counter + (number << 22),
                ..advances.clone()
            };
            tokio::spawn(async move {
                let mut times = Vec::new();
                loop {
                    let asked = Instant::now();
                    if asked >= end {
                        return times;
                    }
                    // PutRequest { key = 1, value = 2 }
                    let (key, token) = advances.next();
                    let mut put = BytesMut::new();
                    put_bytes(&mut put, 1, key.as_bytes());
                    put_bytes(&mut put, 2, token.as_bytes());
                    call(&mut client, "/etcdserverpb.KV/Put", put.freeze()).await;
                    times.push(asked.elapsed());
                }
            })
        })
        .collect();
    let mut times = Vec::new();
    for call in calls {
        times.extend(call.await.unwrap());
    }
    times
}
