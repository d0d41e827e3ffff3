//! Bodies received whole before their request is admitted (`fence.body: spool`).
//!
//! Up to 1 MiB stays in memory; what is larger goes to a file that has no name, in a directory of
//! its own, and is gone with the process.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fencegate_filters::{Reason, Refusal};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncSeekExt, AsyncWriteExt, ReadBuf};

use crate::body::RequestBody;
use crate::upstream::wire::UploadError;

const IN_MEMORY: u64 = 1024 * 1024;
const READ: usize = 64 * 1024;

/// Where bodies that are too large for memory go.
#[derive(Clone, Debug)]
pub struct Spool {
    directory: PathBuf,
}

/// A body that has been received whole.
#[derive(Debug, Default)]
pub struct Spooled {
    memory: VecDeque<Bytes>,
    file: Option<tokio::fs::File>,
    buffer: BytesMut,
    left: u64,
    trailers: Option<HeaderMap>,
}

impl Spool {
    /// A spool in `directory`, which is made when it is first needed.
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// Receives `body` whole. No gap between two reads may be longer than `timeout`.
    ///
    /// # Errors
    ///
    /// `body-too-large`, `request-timeout`, `bad-request` where the client breaks off, and `busy`
    /// where the file can't be written. Nothing has been forwarded.
    pub async fn receive(
        &self,
        mut body: RequestBody,
        timeout: Option<Duration>,
    ) -> Result<Spooled, Refusal> {
        let mut spooled = Spooled {
            memory: VecDeque::new(),
            file: None,
            buffer: BytesMut::new(),
            left: 0,
            trailers: None,
        };
        loop {
            let frame = match timeout {
                None => body.frame().await,
                Some(timeout) => match tokio::time::timeout(timeout, body.frame()).await {
                    Ok(frame) => frame,
                    Err(_) => return Err(refuse(UploadError::TooSlow)),
                },
            };
            let Some(frame) = frame else { break };
            match frame.map_err(refuse)?.into_data() {
                Ok(data) => self.add(&mut spooled, data).await.map_err(|error| {
                    tracing::error!(%error, directory = %self.directory.display(), "a body could not be spooled");
                    Refusal::new(Reason::Busy, "There is no room to receive the body; try again later.")
                })?,
                Err(frame) => spooled.trailers = frame.into_trailers().ok(),
            }
        }
        if let Some(file) = &mut spooled.file {
            let rewound = async {
                file.flush().await?;
                file.rewind().await
            };
            rewound.await.map_err(|error| {
                tracing::error!(%error, "a spooled body could not be read back");
                Refusal::new(
                    Reason::Busy,
                    "The body could not be read back; try again later.",
                )
            })?;
        }
        Ok(spooled)
    }

    async fn add(&self, spooled: &mut Spooled, data: Bytes) -> io::Result<()> {
        spooled.left += data.len() as u64;
        if spooled.file.is_none() && spooled.left > IN_MEMORY {
            std::fs::create_dir_all(&self.directory)?;
            let file = tempfile::tempfile_in(&self.directory)?;
            let mut file = tokio::fs::File::from_std(file);
            for bytes in spooled.memory.drain(..) {
                file.write_all(&bytes).await?;
            }
            spooled.file = Some(file);
        }
        match &mut spooled.file {
            Some(file) => file.write_all(&data).await,
            None => {
                spooled.memory.push_back(data);
                Ok(())
            }
        }
    }
}

fn refuse(error: UploadError) -> Refusal {
    match error {
        UploadError::TooLarge => Refusal::new(
            Reason::BodyTooLarge,
            "The body is above limits.body; nothing was forwarded.",
        ),
        UploadError::TooSlow => Refusal::new(
            Reason::RequestTimeout,
            "The body came too slowly; nothing was forwarded.",
        ),
        UploadError::Client => Refusal::new(
            Reason::BadRequest,
            "The body broke off or was malformed; nothing was forwarded.",
        ),
    }
}

impl Body for Spooled {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let this = self.get_mut();
        if let Some(bytes) = this.memory.pop_front() {
            this.left = this.left.saturating_sub(bytes.len() as u64);
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if let Some(file) = &mut this.file
            && this.left > 0
        {
            this.buffer.resize(READ, 0);
            let mut into = ReadBuf::new(&mut this.buffer);
            let read = ready!(Pin::new(file).poll_read(cx, &mut into));
            let filled = into.filled().len();
            if read.is_err() || filled == 0 {
                return Poll::Ready(Some(Err(UploadError::Client)));
            }
            let bytes = this.buffer.split_to(filled).freeze();
            this.left = this.left.saturating_sub(filled as u64);
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        Poll::Ready(
            this.trailers
                .take()
                .map(|fields| Ok(Frame::trailers(fields))),
        )
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0 && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        // With a length the codec would send no trailers.
        match self.trailers {
            Some(_) => SizeHint::default(),
            None => SizeHint::with_exact(self.left),
        }
    }
}
