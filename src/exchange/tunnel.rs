//! Upgraded connections: bytes both ways, in flight in their lanes until both sides have ended.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use fencegate_filters::Outcome;
use fencegate_filters::fence::Permit;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::server::ClientStream;
use crate::upstream::Conn;

const BUFFER: usize = 16 * 1024;

/// Runs a tunnel until it ends, is cut, or nothing has moved for `idle`.
pub(super) fn spawn(
    client: oneshot::Receiver<ClientStream>,
    upstream: Conn,
    permit: Option<Permit>,
    cut: Arc<Notify>,
    idle: Duration,
) {
    tokio::spawn(async move {
        let whole = tokio::select! {
            biased;
            () = cut.notified() => false,
            ended = run(client, upstream, idle) => ended.is_ok(),
        };
        // Both sockets went with the branch that held them: the permit comes after the close.
        if let Some(permit) = permit {
            if whole {
                permit.ended(Outcome::Completed, false);
            } else {
                permit.ended(Outcome::Unknown, true);
            }
        }
    });
}

async fn run(
    client: oneshot::Receiver<ClientStream>,
    upstream: Conn,
    idle: Duration,
) -> io::Result<()> {
    let client = client.await.map_err(io::Error::other)?;
    let (upstream, read_ahead) = upstream.into_tunnel();
    let (mut from_client, mut to_client) = client.stream.into_split();
    let (mut from_upstream, mut to_upstream) = tokio::io::split(upstream);
    to_upstream.write_all(&client.read_ahead).await?;
    to_client.write_all(&read_ahead).await?;
    let moved = std::sync::Mutex::new(Instant::now());
    let up = copy(&mut from_client, &mut to_upstream, &moved);
    let down = copy(&mut from_upstream, &mut to_client, &moved);
    let both = async { tokio::try_join!(up, down).map(|_| ()) };
    tokio::select! {
        ended = both => ended,
        () = stalled(&moved, idle) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    moved: &std::sync::Mutex<Instant>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        if let Ok(mut moved) = moved.lock() {
            *moved = Instant::now();
        }
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(buffer.get(..read).unwrap_or_default()).await?;
    }
}

async fn stalled(moved: &std::sync::Mutex<Instant>, idle: Duration) {
    loop {
        let until = moved.lock().map_or_else(|_| Instant::now(), |moved| *moved) + idle;
        if until <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(until).await;
    }
}
