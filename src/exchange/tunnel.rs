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
    upstream: Box<Conn>,
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
    upstream: Box<Conn>,
    idle: Duration,
) -> io::Result<()> {
    let client = client.await.map_err(io::Error::other)?;
    let tunnel = upstream.into_tunnel();
    let (upstream, read_ahead, _place) = tunnel.ok_or(io::ErrorKind::Unsupported)?;
    client.stream.keep_nothing();
    let (mut from_client, mut to_client) = tokio::io::split(client.stream);
    let (mut from_upstream, mut to_upstream) = tokio::io::split(upstream);
    to_upstream.write_all(&client.read_ahead).await?;
    to_upstream.flush().await?;
    // With it goes what is left of the 101.
    to_client.write_all(&read_ahead).await?;
    to_client.flush().await?;
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
        // TLS keeps what the socket has no room for, and nobody else will ask for it.
        to.flush().await?;
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

#[cfg(test)]
mod tests {
    use tokio::io::{BufWriter, duplex};

    use super::*;

    #[tokio::test]
    async fn nothing_stays_in_a_writer_that_keeps() {
        let (mut client, mut from) = duplex(64);
        let (to, mut upstream) = duplex(64);
        let copying = tokio::spawn(async move {
            let moved = std::sync::Mutex::new(Instant::now());
            copy(&mut from, &mut BufWriter::new(to), &moved).await
        });
        client.write_all(b"hello").await.unwrap();
        let mut hello = [0; 5];
        upstream.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hello");
        drop(client);
        copying.await.unwrap().unwrap();
    }
}
