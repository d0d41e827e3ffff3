//! Limits that last as long as the body does.
//!
//! [`check_length`] refuses a request whose `Content-Length` is too long before anything is read;
//! [`LimitBody`] counts what comes for those that do not say, and fails instead of ending early: a
//! body that was cut must never look whole. [`GuardBody`] holds a permit to the end of the body,
//! since a limit that ends at the response's head forgets most of the work.
//!
//! ```
//! use fencegate_filters::limits::check_length;
//! use http::{HeaderMap, HeaderValue};
//!
//! let mut headers = HeaderMap::new();
//! headers.insert("content-length", HeaderValue::from_static("1025"));
//! assert!(check_length(&headers, Some(1024)).is_err());
//! assert!(check_length(&headers, Some(1025)).is_ok());
//! assert!(check_length(&headers, None).is_ok());
//! ```

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::names::{elements, trim};
use crate::{Reason, Refusal};

/// Refuses a request that says itself that its body is above `limit` bytes.
///
/// # Errors
///
/// [`Reason::BodyTooLarge`], or [`Reason::BadRequest`] where `Content-Length` is no number.
pub fn check_length(headers: &HeaderMap, limit: Option<u64>) -> Result<(), Refusal> {
    let Some(limit) = limit else {
        return Ok(());
    };
    for line in headers.get_all(CONTENT_LENGTH) {
        // A list of equal lengths is legal to accept (RFC 9110, section 8.6); the codec judges
        // whether they are equal, here each one counts.
        if trim(line.as_bytes()).is_empty() {
            return Err(not_a_length());
        }
        for length in elements(line.as_bytes()) {
            if !length.iter().all(u8::is_ascii_digit) {
                return Err(not_a_length());
            }
            let length = std::str::from_utf8(length).ok().map(str::parse::<u64>);
            // Digits that are no u64 are more than any limit.
            if !matches!(length, Some(Ok(length)) if length <= limit) {
                return Err(BodyTooLarge { limit }.into());
            }
        }
    }
    Ok(())
}

fn not_a_length() -> Refusal {
    Refusal::new(
        Reason::BadRequest,
        "Content-Length is not a number of bytes in ASCII digits",
    )
}

/// More bytes came than `limits.body` allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyTooLarge {
    /// The limit, in bytes.
    pub limit: u64,
}

impl fmt::Display for BodyTooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the body is above {} bytes", self.limit)
    }
}

impl Error for BodyTooLarge {}

impl From<BodyTooLarge> for Refusal {
    fn from(error: BodyTooLarge) -> Self {
        Self::new(
            Reason::BodyTooLarge,
            format!("{error}; send it in smaller parts"),
        )
    }
}

/// Why a [`LimitBody`] failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitError<E> {
    /// It is above its limit.
    TooLarge(BodyTooLarge),
    /// The body within failed.
    Body(E),
}

impl<E: fmt::Display> fmt::Display for LimitError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge(error) => error.fmt(f),
            Self::Body(error) => error.fmt(f),
        }
    }
}

impl<E: Error + 'static> Error for LimitError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::TooLarge(_) => None,
            Self::Body(error) => error.source(),
        }
    }
}

pin_project! {
    /// A body that fails when more than a number of bytes is read from it.
    ///
    /// The size hint is that of the body within, also where that is above the limit: an upstream
    /// must be told the length that the client announced, so that what it gets before the failure
    /// is not whole. The failure is for good: every further poll returns it again.
    #[derive(Debug)]
    pub struct LimitBody<B> {
        #[pin]
        inner: B,
        limit: Option<u64>,
        left: u64,
        exceeded: bool,
    }
}

impl<B> LimitBody<B> {
    /// Lets `limit` bytes of data through; `None` lets all through. Trailers are not counted.
    pub const fn new(inner: B, limit: Option<u64>) -> Self {
        Self {
            inner,
            limit,
            left: match limit {
                Some(limit) => limit,
                None => u64::MAX,
            },
            exceeded: false,
        }
    }
}

impl<B: Body> Body for LimitBody<B> {
    type Data = B::Data;
    type Error = LimitError<B::Error>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, Self::Error>>> {
        let this = self.project();
        if !*this.exceeded {
            let frame = match ready!(this.inner.poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(LimitError::Body(error)))),
                Some(Ok(frame)) => frame,
            };
            let read = frame.data_ref().map_or(0, Buf::remaining);
            let left = u64::try_from(read)
                .ok()
                .and_then(|read| this.left.checked_sub(read));
            match left {
                Some(left) => {
                    *this.left = left;
                    return Poll::Ready(Some(Ok(frame)));
                }
                // Nobody sends 2^64 bytes; without a limit, counting simply starts anew.
                None if this.limit.is_none() => {
                    *this.left = u64::MAX;
                    return Poll::Ready(Some(Ok(frame)));
                }
                None => *this.exceeded = true,
            }
        }
        let limit = this.limit.unwrap_or(u64::MAX);
        Poll::Ready(Some(Err(LimitError::TooLarge(BodyTooLarge { limit }))))
    }

    fn is_end_stream(&self) -> bool {
        !self.exceeded && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

pin_project! {
    /// A body that holds a guard until it has ended, failed, or is dropped, whichever is first.
    ///
    /// A body that says that it is at its end counts as ended without being polled again: codecs
    /// do not poll for the end of a body whose length they know.
    #[derive(Debug)]
    pub struct GuardBody<B, G> {
        #[pin]
        inner: B,
        guard: Option<G>,
    }
}

impl<B: Body, G> GuardBody<B, G> {
    /// Holds `guard` for as long as `inner` lasts: not at all, where that is empty.
    pub fn new(inner: B, guard: G) -> Self {
        let guard = (!inner.is_end_stream()).then_some(guard);
        Self { inner, guard }
    }
}

impl<B: Body, G> Body for GuardBody<B, G> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        let ended = !matches!(frame, Some(Ok(_))) || this.inner.is_end_stream();
        if ended {
            *this.guard = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::headers;
    use bytes::Bytes;
    use std::collections::VecDeque;
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::Waker;

    /// Yields its frames; says that it has ended only where it is told to.
    struct Frames {
        frames: VecDeque<Result<Frame<Bytes>, &'static str>>,
        known_length: bool,
    }

    impl Frames {
        fn new(known_length: bool, data: &[&'static str]) -> Self {
            let frames = data.iter().map(|&data| Ok(Frame::data(Bytes::from(data))));
            Self {
                frames: frames.collect(),
                known_length,
            }
        }
    }

    impl Body for Frames {
        type Data = Bytes;
        type Error = &'static str;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
            Poll::Ready(self.frames.pop_front())
        }

        fn is_end_stream(&self) -> bool {
            self.known_length && self.frames.is_empty()
        }

        fn size_hint(&self) -> SizeHint {
            if !self.known_length {
                return SizeHint::default();
            }
            let lengths = self.frames.iter().flatten().filter_map(Frame::data_ref);
            SizeHint::with_exact(lengths.map(|data| data.len() as u64).sum())
        }
    }

    /// Polls once; data as text.
    fn next<B>(body: Pin<&mut B>) -> Option<Result<String, B::Error>>
    where
        B: Body<Data = Bytes>,
    {
        let mut cx = Context::from_waker(Waker::noop());
        match body.poll_frame(&mut cx) {
            Poll::Pending => panic!("the body is not ready"),
            Poll::Ready(frame) => frame.map(|frame| {
                frame.map(|frame| match frame.into_data() {
                    Ok(data) => String::from_utf8(data.to_vec()).unwrap(),
                    Err(_) => "trailers".to_owned(),
                })
            }),
        }
    }

    #[test]
    fn a_length_above_the_limit_is_refused_unread() {
        let cases = [
            ("10", None),
            ("0010", None),
            ("10, 10", None),
            ("11", Some(Reason::BodyTooLarge)),
            ("1, 11", Some(Reason::BodyTooLarge)),
            ("18446744073709551616", Some(Reason::BodyTooLarge)),
            ("", Some(Reason::BadRequest)),
            ("+1", Some(Reason::BadRequest)),
            ("0x1", Some(Reason::BadRequest)),
        ];
        for (value, wanted) in cases {
            let result = check_length(&headers(&[("content-length", value)]), Some(10));
            assert_eq!(
                result.err().map(|refusal| refusal.reason),
                wanted,
                "{value}"
            );
        }
        let two = headers(&[("content-length", "1"), ("content-length", "11")]);
        assert!(check_length(&two, Some(10)).is_err());
        assert!(check_length(&HeaderMap::new(), Some(0)).is_ok());
    }

    #[test]
    fn a_body_within_the_limit_is_untouched() {
        let mut frames = Frames::new(false, &["abc", "de"]);
        let trailers = headers(&[("x-sum", "1234567890")]);
        frames.frames.push_back(Ok(Frame::trailers(trailers)));
        let mut body = pin!(LimitBody::new(frames, Some(5)));
        assert_eq!(next(body.as_mut()), Some(Ok("abc".into())));
        assert_eq!(next(body.as_mut()), Some(Ok("de".into())));
        assert_eq!(next(body.as_mut()), Some(Ok("trailers".into())));
        assert_eq!(next(body.as_mut()), None);
    }

    #[test]
    fn the_chunk_that_crosses_the_limit_is_an_error_and_so_is_all_that_follows() {
        let mut body = pin!(LimitBody::new(
            Frames::new(true, &["abc", "def", "g"]),
            Some(5)
        ));
        assert_eq!(next(body.as_mut()), Some(Ok("abc".into())));
        let too_large = LimitError::TooLarge(BodyTooLarge { limit: 5 });
        for _ in 0..3 {
            assert_eq!(next(body.as_mut()), Some(Err(too_large)));
            assert!(!body.is_end_stream());
        }
        assert_eq!(
            Refusal::from(BodyTooLarge { limit: 5 }).reason,
            Reason::BodyTooLarge
        );
    }

    #[test]
    fn an_error_of_the_body_comes_through() {
        let mut frames = Frames::new(false, &[]);
        frames.frames.push_back(Err("reset"));
        let mut body = pin!(LimitBody::new(frames, None));
        assert_eq!(next(body.as_mut()), Some(Err(LimitError::Body("reset"))));
    }

    #[test]
    fn the_hint_and_the_end_are_those_of_the_body() {
        let mut body = pin!(LimitBody::new(Frames::new(true, &["abcdef"]), Some(5)));
        // A lower hint would frame the cut body as a whole one.
        assert_eq!(body.size_hint().exact(), Some(6));
        assert!(!body.is_end_stream());
        assert!(next(body.as_mut()).is_some_and(|frame| frame.is_err()));

        let mut body = pin!(LimitBody::new(Frames::new(true, &["abc"]), Some(3)));
        assert_eq!(next(body.as_mut()), Some(Ok("abc".into())));
        assert_eq!(body.size_hint().exact(), Some(0));
        assert!(body.is_end_stream());
        assert_eq!(
            LimitBody::new(Frames::new(false, &[]), Some(3))
                .size_hint()
                .upper(),
            None
        );
    }

    #[test]
    fn a_guard_is_held_to_the_end_of_the_stream() {
        let guard = Arc::new(());
        let held = || Arc::strong_count(&guard) == 2;
        let mut body = pin!(GuardBody::new(
            Frames::new(false, &["a"]),
            Arc::clone(&guard)
        ));
        assert!(next(body.as_mut()).is_some());
        assert!(held(), "the end has not been seen");
        assert!(next(body.as_mut()).is_none());
        assert!(!held());
    }

    #[test]
    fn a_guard_is_not_held_past_the_last_byte_of_a_known_length() {
        let guard = Arc::new(());
        let held = || Arc::strong_count(&guard) == 2;
        let mut body = pin!(GuardBody::new(
            Frames::new(true, &["a", "b"]),
            Arc::clone(&guard)
        ));
        assert!(next(body.as_mut()).is_some());
        assert!(held());
        assert!(next(body.as_mut()).is_some());
        assert!(!held(), "no codec polls once more");

        let _empty = GuardBody::new(Frames::new(true, &[]), Arc::clone(&guard));
        assert!(!held());
    }

    #[test]
    fn a_guard_goes_with_a_failed_or_dropped_body() {
        let guard = Arc::new(());
        let held = || Arc::strong_count(&guard) == 2;
        let body = GuardBody::new(Frames::new(false, &["a"]), Arc::clone(&guard));
        assert!(held());
        drop(body);
        assert!(!held());

        let mut frames = Frames::new(false, &[]);
        frames.frames.push_back(Err("reset"));
        let mut body = pin!(GuardBody::new(frames, Arc::clone(&guard)));
        assert!(held());
        assert_eq!(next(body.as_mut()), Some(Err("reset")));
        assert!(!held());
    }
}
