//! Removes from a request what a client must not send.
//!
//! - `Fencing-Mark`, `Fencing-Outcome` and `Fencing-Decision` are the gateway's own words.
//! - `X-HTTP-Method-Override`, `X-HTTP-Method` and `X-Method-Override` turn a safe method into a
//!   write after the check; a route may allow them.
//! - `X-Original-URL` and `X-Rewrite-URL` let some frameworks serve another path than the one that
//!   was checked.
//!
//! Names are also removed with `_` for `-`, since servers that follow CGI do not tell them apart.
//!
//! [`StripBody`] does the same to the trailers of a request. A token there comes after the
//! decision: nobody reads it here, and no upstream that merges trailers into the header may.
//!
//! ```
//! use fencegate_filters::StripLayer;
//! use http::Request;
//!
//! let mut request = Request::get("/objects/42")
//!     .header("x-http-method-override", "DELETE")
//!     .header("accept", "*/*")
//!     .body(())?;
//! StripLayer::new().filter(request.headers_mut());
//! assert_eq!(request.headers().len(), 1);
//! # Ok::<(), http::Error>(())
//! ```

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{HeaderMap, HeaderName, Request};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use smallvec::SmallVec;
use tower_layer::Layer;
use tower_service::Service;

use crate::names::{Lengths, alike};

/// The gateway's own words, and paths beside the path.
const ALWAYS: [&str; 5] = [
    "fencing-mark",
    "fencing-outcome",
    "fencing-decision",
    "x-original-url",
    "x-rewrite-url",
];

/// Methods beside the method.
const METHOD_OVERRIDES: [&str; 3] = [
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
];

/// Applies [`Strip`].
#[derive(Clone, Debug)]
pub struct StripLayer {
    names: Arc<[Box<str>]>,
    lengths: Lengths,
}

impl StripLayer {
    /// Removes everything that the top of this module lists.
    #[must_use]
    pub fn new() -> Self {
        Self::of(ALWAYS.iter().chain(&METHOD_OVERRIDES).copied())
    }

    /// The same without the method override headers (`fence.allow_method_override`).
    #[must_use]
    pub fn allowing_method_override() -> Self {
        Self::of(ALWAYS.into_iter())
    }

    /// The same with `names` besides: fields that only the gateway itself may set.
    #[must_use]
    pub fn with(&self, names: &[HeaderName]) -> Self {
        let own = self.names.iter().map(AsRef::as_ref);
        Self::of(own.chain(names.iter().map(HeaderName::as_str)))
    }

    fn of<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let names: Arc<[Box<str>]> = names.map(Box::from).collect();
        let mut lengths = Lengths::default();
        for name in &*names {
            lengths.add(name.as_bytes());
        }
        Self { names, lengths }
    }

    /// Removes them from `headers`: one pass over the names, and nothing more where none is there.
    pub fn filter(&self, headers: &mut HeaderMap) {
        let mut found: SmallVec<[HeaderName; 2]> = SmallVec::new();
        for name in headers.keys() {
            if self.strips(name.as_str().as_bytes()) {
                found.push(name.clone());
            }
        }
        for name in found {
            headers.remove(name);
        }
    }

    fn strips(&self, name: &[u8]) -> bool {
        self.lengths.may_hold(name)
            && self
                .names
                .iter()
                .any(|stripped| alike(stripped.as_bytes(), name))
    }
}

impl Default for StripLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for StripLayer {
    type Service = Strip<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Strip {
            inner,
            layer: self.clone(),
        }
    }
}

/// Removes from a request what a client must not send.
#[derive(Clone, Debug)]
pub struct Strip<S> {
    inner: S,
    layer: StripLayer,
}

impl<S, B> Service<Request<B>> for Strip<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        self.layer.filter(request.headers_mut());
        self.inner.call(request)
    }
}

pin_project! {
    /// A body from whose trailers a [`StripLayer`]'s names are removed.
    ///
    /// For a request, with the headers that carry tokens among the names; see
    /// [`StripLayer::with`].
    #[derive(Debug)]
    pub struct StripBody<B> {
        #[pin]
        inner: B,
        layer: StripLayer,
    }
}

impl<B> StripBody<B> {
    /// Removes the names of `layer` from the trailers of `inner`.
    pub const fn new(inner: B, layer: StripLayer) -> Self {
        Self { inner, layer }
    }
}

impl<B: Body> Body for StripBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let mut frame = ready!(this.inner.poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            this.layer.filter(trailers);
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
    use crate::testing::{answer, headers, names};

    fn left(layer: &StripLayer, lines: &[(&str, &str)]) -> Vec<String> {
        let mut service = layer.layer(answer(|request: Request<()>| {
            http::Response::new(names(request.headers()))
        }));
        let mut request = Request::new(());
        *request.headers_mut() = headers(lines);
        crate::testing::call(&mut service, request).into_body()
    }

    #[test]
    fn what_only_the_gateway_says_is_removed_from_requests() {
        // T25
        let lines = [
            ("fencing-mark", "1"),
            ("fencing-mark", "2"),
            ("fencing-token", "34"),
            ("Fencing_Outcome", "not-forwarded"),
            ("Fencing-Decision", "x"),
        ];
        assert_eq!(left(&StripLayer::new(), &lines), ["fencing-token"]);
    }

    #[test]
    fn method_overrides_are_removed_unless_allowed() {
        // K19
        let lines = [
            ("X-HTTP-Method-Override", "DELETE"),
            ("x-http-method", "DELETE"),
            ("X-Method_Override", "DELETE"),
        ];
        assert!(left(&StripLayer::new(), &lines).is_empty());
        let allowing = StripLayer::allowing_method_override();
        assert_eq!(left(&allowing, &lines).len(), 3);
    }

    #[test]
    fn paths_beside_the_path_are_removed() {
        // K25
        let lines = [("X-Original-URL", "/admin"), ("X-Rewrite-Url", "/admin")];
        assert!(left(&StripLayer::allowing_method_override(), &lines).is_empty());
    }

    #[test]
    fn names_can_be_added() {
        let layer = StripLayer::new().with(&[HeaderName::from_static("x-peer")]);
        let lines = [("x-peer", "1"), ("x-original-url", "/"), ("accept", "*/*")];
        assert_eq!(left(&layer, &lines), ["accept"]);
    }

    /// Trailers and nothing else.
    struct Trailers(Option<HeaderMap>);

    impl Body for Trailers {
        type Data = bytes::Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<bytes::Bytes>, Self::Error>>> {
            Poll::Ready(self.0.take().map(|trailers| Ok(Frame::trailers(trailers))))
        }
    }

    #[test]
    fn a_token_in_trailers_is_not_passed_on() {
        // T22
        let trailers = headers(&[
            ("fencing-token", "99"),
            ("Fencing_Token", "99"),
            ("fencing-mark", "1"),
            ("x-sum", "5"),
        ]);
        let token = std::slice::from_ref(&crate::names::FENCING_TOKEN);
        let layer = StripLayer::new().with(token);
        let mut body = std::pin::pin!(StripBody::new(Trailers(Some(trailers)), layer));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let Poll::Ready(Some(Ok(frame))) = body.as_mut().poll_frame(&mut cx) else {
            panic!("the trailers are ready");
        };
        assert_eq!(names(frame.trailers_ref().unwrap()), ["x-sum"]);
        assert!(matches!(
            body.as_mut().poll_frame(&mut cx),
            Poll::Ready(None)
        ));
    }
}
