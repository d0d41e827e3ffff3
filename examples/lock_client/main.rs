//! Writes an object while a lock is held: a small client of the lock service.
//!
//! With a gateway that has a section `locks` (see the README) on its usual ports:
//!
//! ```text
//! $ cargo run --example lock_client -- objects/42
//! objects/42 is ours with token 36
//! PUT /objects/42: 200 OK
//! given back
//! ```
//!
//! Start it in two terminals with `--hold 10`: the second waits for the first. Stop the first with
//! `kill -STOP` for longer than its lease, so that the second gets the lock, and let it go on with
//! `kill -CONT`: it says that the lock is lost. `--blind` has it write all the same, without a look at
//! its lease, as a client does that stalls in the wrong moment: the gateway refuses it.
//!
//! All that a client needs stands in `guard.rs`.
#![allow(clippy::print_stdout, reason = "it is an example")]

mod guard;

use std::error::Error;
use std::time::Duration;

use clap::Parser;
use fencegate::lease::{Ask, myself};
use http::{HeaderValue, Method, Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use guard::{Guard, acquire};

/// Writes an object while a lock is held.
#[derive(Parser)]
struct Options {
    /// The lock, and the object: NAMESPACE/KEY
    key: String,
    /// The lock service
    #[arg(
        long,
        default_value = "http://127.0.0.1:8082",
        env = "FENCEGATE_LOCKS_URL"
    )]
    locks: String,
    /// The gateway, HOST:PORT
    #[arg(long, default_value = "127.0.0.1:8080")]
    gateway: String,
    /// The name under which the lock is held; without it, this machine's and the process's number
    #[arg(long)]
    holder: Option<String>,
    /// How many milliseconds the lease lasts without a renewal
    #[arg(long, default_value_t = 5000)]
    ttl: u64,
    /// How many seconds to wait for the lock
    #[arg(long, default_value_t = 60)]
    wait: u64,
    /// For how many seconds to write again and again
    #[arg(long, default_value_t = 0)]
    hold: u64,
    /// Writes without a look at the lease
    #[arg(long)]
    blind: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let ask = Ask {
        key: options.key.clone(),
        holder: options.holder.clone().unwrap_or_else(myself),
        ttl: Duration::from_millis(options.ttl),
        wait: Duration::from_secs(options.wait),
    };
    let bearer = std::env::var("FENCEGATE_LOCKS_TOKEN").ok();
    let guard = acquire(&options.locks, bearer.as_deref(), ask).await?;
    println!("{} is ours with token {}", guard.key(), guard.token());
    if options.blind {
        work(&options, &guard).await?;
    } else {
        // The work ends the moment that the lease does.
        guard.run(work(&options, &guard)).await??;
    }
    match guard.release().await {
        true => println!("given back"),
        false => println!("it was lost"),
    }
    Ok(())
}

/// Writes once, and then every second for as long as it is asked to.
async fn work(options: &Options, guard: &Guard) -> Result<(), Box<dyn Error>> {
    let path = format!("/{}", options.key);
    for second in 0..=options.hold {
        if second > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let mut request = Request::new(Full::new(Bytes::from(format!("by {}\n", guard.token()))));
        *request.method_mut() = Method::PUT;
        *request.uri_mut() = path.parse()?;
        if options.blind {
            let token = HeaderValue::from_str(guard.token())?;
            request.headers_mut().insert("fencing-token", token);
        } else {
            guard.authorize(&mut request)?;
        }
        let response = send(&options.gateway, request).await?;
        println!("PUT {path}: {}", response.status());
    }
    Ok(())
}

async fn send(
    gateway: &str,
    mut request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, Box<dyn Error>> {
    let host = HeaderValue::from_str(gateway)?;
    request.headers_mut().insert(http::header::HOST, host);
    let stream = TcpStream::connect(gateway).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}
