//! As much of HTTP/1.1 over a simulated stream as the resource and the clients need.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use turmoil::net::TcpStream;

use super::common::parse::{Body, Framing, Head};

pub(crate) struct Wire {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    pub(crate) const fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            read: Vec::new(),
        }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await
    }

    /// Reads a bit more.
    pub(crate) async fn fill(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.read).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// The next head, if it is here whole.
    pub(crate) fn head(&mut self) -> Option<Head> {
        Head::cut(&mut self.read)
    }

    /// Takes what is here of a body.
    pub(crate) fn feed(&mut self, body: &mut Body, out: &mut Vec<u8>) -> io::Result<()> {
        let fed = body.feed(&mut self.read, out);
        fed.map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// The next final response: its status, its fields and its body.
    pub(crate) async fn response(&mut self) -> io::Result<(u16, Head, Vec<u8>)> {
        loop {
            let head = loop {
                match self.head() {
                    Some(head) => break head,
                    None => self.fill().await?,
                }
            };
            let status = head
                .line
                .split(' ')
                .nth(1)
                .and_then(|code| code.parse().ok());
            let status: u16 = status.ok_or(io::ErrorKind::InvalidData)?;
            if status == 100 {
                continue;
            }
            let framing = match head.framing() {
                _ if status == 204 => Framing::None,
                Framing::None => Framing::Close,
                known => known,
            };
            let (mut body, mut out) = (Body::new(framing), Vec::new());
            loop {
                self.feed(&mut body, &mut out)?;
                if body.done {
                    return Ok((status, head, out));
                }
                match self.fill().await {
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                        return match framing {
                            Framing::Close => Ok((status, head, out)),
                            _ => Err(error),
                        };
                    }
                    filled => filled?,
                }
            }
        }
    }
}
