//! Clients that speak HTTP/2: those of one host share a connection, so that requests of several
//! holders are on it at once, and one that leaves resets its stream and nothing else.

use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use turmoil::net::TcpStream;

use super::holder::Attempt;
use super::world::Answer;

/// The connection of one host, once there is one.
#[derive(Clone, Default)]
pub(crate) struct Shared(Arc<Mutex<Option<SendRequest<Bytes>>>>);

impl Shared {
    /// The next request goes over a new connection; what is under way stays where it is.
    pub(crate) fn renew(&self) {
        *self.0.lock().unwrap() = None;
    }

    /// A connection that takes a request.
    async fn ready(&self) -> io::Result<SendRequest<Bytes>> {
        let kept = self.0.lock().unwrap().clone();
        if let Some(kept) = kept
            && let Ok(ready) = kept.ready().await
        {
            return Ok(ready);
        }
        let stream = TcpStream::connect("gateway:8080").await?;
        let (sender, connection) = h2::client::handshake(stream).await.map_err(broken)?;
        // It ends with the last request on it, once nobody wants to send another.
        tokio::spawn(async { drop(connection.await) });
        *self.0.lock().unwrap() = Some(sender.clone());
        sender.ready().await.map_err(broken)
    }

    /// Sends one request and reads its answer; `None` where the client left before.
    pub(crate) async fn exchange(&self, attempt: &Attempt) -> io::Result<Option<Answer>> {
        let mut sender = self.ready().await?;
        let over = attempt.body.is_empty();
        let sent = sender.send_request(request(attempt), over);
        let (response, mut stream) = sent.map_err(broken)?;
        let pieces = attempt.pieces();
        for (number, piece) in pieces.iter().enumerate() {
            if attempt.chunks > 0 {
                if attempt.leaves_after.is_some_and(|after| number >= after) {
                    return Ok(None);
                }
                tokio::time::sleep(attempt.gap).await;
            }
            let last = number + 1 == pieces.len();
            if stream
                .send_data(Bytes::copy_from_slice(piece), last)
                .is_err()
            {
                // The answer may have come before.
                break;
            }
        }
        if attempt.chunks == 0 && attempt.leaves_after.is_some() {
            tokio::time::sleep(attempt.gap).await;
            return Ok(None);
        }
        let (head, mut incoming) = response.await.map_err(broken)?.into_parts();
        let mut body = Vec::new();
        while let Some(data) = incoming.data().await {
            let data = data.map_err(broken)?;
            body.extend_from_slice(&data);
            let read = incoming.flow_control().release_capacity(data.len());
            read.map_err(broken)?;
        }
        let status = head.status.as_u16();
        let answer = attempt.answer(status, |name| field(&head.headers, name), &body);
        Ok(Some(Answer {
            over_http2: true,
            ..answer
        }))
    }
}

fn request(attempt: &Attempt) -> Request<()> {
    let mut request = Request::builder()
        .method(attempt.method)
        .uri(format!("http://gateway{}", attempt.target))
        .header("x-tag", &attempt.tag);
    if let Some(token) = attempt.token {
        request = request.header("fencing-token", token);
    }
    if !attempt.is_chunked() && attempt.method != "GET" {
        request = request.header("content-length", attempt.body.len());
    }
    request.body(()).unwrap()
}

fn field<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::other(error)
}
