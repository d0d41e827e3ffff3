//! Small vectored writes made flat: for a head and a short body one buffer costs the system less
//! than a list of two.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

/// The most that is copied.
const SMALL: usize = 2048;

/// Writes what can be written of `parts`.
pub(crate) fn poll_write_parts<S: AsyncWrite>(
    stream: Pin<&mut S>,
    cx: &mut Context<'_>,
    parts: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    if let [part] = parts {
        return stream.poll_write(cx, part);
    }
    let total: usize = parts.iter().map(|part| part.len()).sum();
    if total > SMALL {
        return stream.poll_write_vectored(cx, parts);
    }
    let mut flat = [0; SMALL];
    let mut end = 0;
    for part in parts {
        if let Some(room) = flat.get_mut(end..end + part.len()) {
            room.copy_from_slice(part);
            end += part.len();
        }
    }
    stream.poll_write(cx, flat.get(..end).unwrap_or_default())
}
