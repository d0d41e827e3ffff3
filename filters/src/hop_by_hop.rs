//! Removes the fields that are meant for one connection only, both ways, and adds `Via`.
//!
//! - Removed: `Connection` and every field that *any* of its lines names, `Keep-Alive`,
//!   `Proxy-Connection`, `Transfer-Encoding`, `TE`, `Upgrade`, `HTTP2-Settings` and the fields of
//!   proxy authentication (RFC 9110, sections 7.6.1 and 11.7; RFC 9113, section 8.2.2). The codec
//!   of the next connection frames the message anew. `Host` and `Content-Length` stay, whatever
//!   `Connection` says: without them it would be another message.
//! - `TE: trailers` stays, for it says something about the client and not the hop, and gRPC
//!   servers insist on it. It is sent with `Connection: TE`, as section 10.1.4 demands, so that a
//!   hop which does not know it drops it; an HTTP/2 codec has to leave that line out.
//! - `Trailer` stays: it is end-to-end (section 6.6.2), and HTTP/1.1 codecs send only the trailer
//!   fields that it names.
//! - `Upgrade` stays in an HTTP/1.1 request that asks for it in `Connection` too, and in the 101
//!   and 426 that answer one, with `Connection: upgrade`. An upgrade to HTTP itself (`h2c`, `TLS`)
//!   never stays: further requests would pass inside it, unseen. Neither does what is no protocol
//!   by its form.
//! - `Via` is appended with the version in which the message was received (section 7.6.3).
//!
//! All other fields, and the order of lines with one name, are left as they are.
//!
//! ```
//! use fencegate_filters::HopByHopLayer;
//! use http::Request;
//!
//! let mut request = Request::get("/objects/42")
//!     .header("connection", "close")
//!     .header("connection", "x-secret")
//!     .header("x-secret", "1")
//!     .body(())?;
//! HopByHopLayer::new().filter_request(&mut request);
//! assert_eq!(request.headers().len(), 1);
//! assert_eq!(request.headers()["via"], "1.1 fencegate");
//! # Ok::<(), http::Error>(())
//! ```

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::header::{CONNECTION, Entry, TE, UPGRADE, VIA};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use pin_project_lite::pin_project;
use smallvec::SmallVec;
use tower_layer::Layer;
use tower_service::Service;

use crate::names::{elements, is_token};

/// Applies [`HopByHop`].
#[derive(Clone, Debug)]
pub struct HopByHopLayer {
    via: Arc<Via>,
}

/// The line to append, for each version in which a message may have been received.
#[derive(Debug)]
struct Via {
    http_10: HeaderValue,
    http_11: HeaderValue,
    http_2: HeaderValue,
    http_3: HeaderValue,
}

impl HopByHopLayer {
    /// Calls itself `fencegate` in `Via`.
    #[must_use]
    pub fn new() -> Self {
        Self::with_pseudonym(&HeaderValue::from_static("fencegate"))
    }

    /// Calls itself `pseudonym` in `Via`: a token, or a host and port.
    #[must_use]
    pub fn with_pseudonym(pseudonym: &HeaderValue) -> Self {
        let line = |version: &[u8]| {
            let line = [version, b" ", pseudonym.as_bytes()].concat();
            // Legal bytes before a legal value make a legal value.
            HeaderValue::from_bytes(&line).unwrap_or_else(|_| pseudonym.clone())
        };
        Self {
            via: Arc::new(Via {
                http_10: line(b"1.0"),
                http_11: line(b"1.1"),
                http_2: line(b"2"),
                http_3: line(b"3"),
            }),
        }
    }

    /// What the layer does to a request.
    pub fn filter_request<B>(&self, request: &mut Request<B>) {
        let version = request.version();
        let headers = request.headers_mut();
        let found = Found::in_headers(headers);
        if found.any() {
            let upgrade = found.upgrade && upgrades(version, headers);
            let trailers = found.te && lists(headers, &TE, b"trailers");
            found.remove_from(headers, upgrade);
            if trailers {
                put(headers, TE, HeaderValue::from_static("trailers"));
            }
            let connection = match (upgrade, trailers) {
                (true, true) => Some("upgrade, TE"),
                (true, false) => Some("upgrade"),
                (false, true) => Some("TE"),
                (false, false) => None,
            };
            if let Some(options) = connection {
                put(headers, CONNECTION, HeaderValue::from_static(options));
            }
        }
        self.append_via(version, headers);
    }

    /// What the layer does to a response.
    pub fn filter_response<B>(&self, response: &mut Response<B>) {
        let version = response.version();
        // 426 has to say what to upgrade to (RFC 9110, section 15.5.22).
        let answers_upgrade = matches!(
            response.status(),
            StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED
        );
        let headers = response.headers_mut();
        let found = Found::in_headers(headers);
        if found.any() {
            let upgrade = answers_upgrade && found.upgrade && !upgrades_to_http(headers);
            found.remove_from(headers, upgrade);
            if upgrade {
                put(headers, CONNECTION, HeaderValue::from_static("upgrade"));
            }
        }
        self.append_via(version, headers);
    }

    fn append_via(&self, version: Version, headers: &mut HeaderMap) {
        let line = match version {
            Version::HTTP_09 | Version::HTTP_10 => &self.via.http_10,
            Version::HTTP_2 => &self.via.http_2,
            Version::HTTP_3 => &self.via.http_3,
            _ => &self.via.http_11,
        };
        // Fails only above 32,768 fields, which no codec lets through.
        let _ = headers.try_append(VIA, line.clone());
    }
}

impl Default for HopByHopLayer {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether a request asks for an upgrade that is passed on: such a request is a write, whatever
/// its method.
#[must_use]
pub fn upgrades(version: Version, headers: &HeaderMap) -> bool {
    // HTTP/1.0 has no upgrades (RFC 9110, section 7.8), and HTTP/2 has other ones.
    version == Version::HTTP_11
        && headers.contains_key(UPGRADE)
        && lists(headers, &CONNECTION, b"upgrade")
        && !upgrades_to_http(headers)
}

/// Whether any protocol in `Upgrade` would carry further HTTP requests, or is none by its form
/// (RFC 9110, section 7.8), so that others may read it as one that does.
fn upgrades_to_http(headers: &HeaderMap) -> bool {
    headers.get_all(UPGRADE).iter().any(|line| {
        elements(line.as_bytes()).any(|protocol| {
            let mut parts = protocol.splitn(2, |&byte| byte == b'/');
            let name = parts.next().unwrap_or_default();
            !is_token(name)
                || !parts.next().is_none_or(is_token)
                || [&b"h2c"[..], b"h2", b"http", b"tls"]
                    .iter()
                    .any(|http| name.eq_ignore_ascii_case(http))
        })
    })
}

fn lists(headers: &HeaderMap, name: &HeaderName, wanted: &[u8]) -> bool {
    headers
        .get_all(name)
        .iter()
        .any(|line| elements(line.as_bytes()).any(|element| element.eq_ignore_ascii_case(wanted)))
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    // Only ever takes the place of a field that was removed, so there is room.
    let _ = headers.try_insert(name, value);
}

/// The hop-by-hop fields of one message, found in one pass over its names.
#[derive(Default)]
struct Found {
    connection: bool,
    te: bool,
    upgrade: bool,
    others: SmallVec<[HeaderName; 4]>,
}

impl Found {
    fn in_headers(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "connection" => found.connection = true,
                "te" => found.te = true,
                "upgrade" => found.upgrade = true,
                "keep-alive"
                | "transfer-encoding"
                | "proxy-connection"
                | "proxy-authenticate"
                | "proxy-authorization"
                | "proxy-authentication-info"
                | "http2-settings" => found.others.push(name.clone()),
                _ => {}
            }
        }
        found
    }

    fn any(&self) -> bool {
        self.connection || self.te || self.upgrade || !self.others.is_empty()
    }

    fn remove_from(self, headers: &mut HeaderMap, keep_upgrade: bool) {
        if self.connection {
            // The lines have to outlive the fields that they name.
            let mut lines: SmallVec<[HeaderValue; 2]> = SmallVec::new();
            // Fails only above 32,768 fields, which no codec lets through.
            if let Ok(Entry::Occupied(connection)) = headers.try_entry(CONNECTION) {
                let (_, all) = connection.remove_entry_mult();
                // Nearly every line is one of these, and they name no field.
                lines.extend(
                    all.filter(|line| !matches!(line.as_bytes(), b"keep-alive" | b"close")),
                );
            }
            for option in lines.iter().flat_map(|line| elements(line.as_bytes())) {
                remove_named(headers, option);
            }
        }
        if self.te {
            headers.remove(TE);
        }
        if self.upgrade && !keep_upgrade {
            headers.remove(UPGRADE);
        }
        for name in self.others {
            headers.remove(name);
        }
    }
}

/// Removes the field that a `Connection` option names, if there is one.
fn remove_named(headers: &mut HeaderMap, option: &[u8]) {
    let is = |name: &[u8]| option.eq_ignore_ascii_case(name);
    // Common options that name no field come first; the fields that follow are dealt with
    // elsewhere or make the message what it is.
    let spared: [&[u8]; 5] = [
        b"keep-alive",
        b"close",
        b"upgrade",
        b"host",
        b"content-length",
    ];
    if spared.iter().any(|name| is(name)) {
        return;
    }
    if let Ok(name) = HeaderName::from_bytes(option) {
        headers.remove(name);
    }
}

impl<S> Layer<S> for HopByHopLayer {
    type Service = HopByHop<S>;

    fn layer(&self, inner: S) -> Self::Service {
        HopByHop {
            inner,
            layer: self.clone(),
        }
    }
}

/// Removes the fields that are meant for one connection only, and adds `Via`.
#[derive(Clone, Debug)]
pub struct HopByHop<S> {
    inner: S,
    layer: HopByHopLayer,
}

impl<S, B, R> Service<Request<B>> for HopByHop<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        self.layer.filter_request(&mut request);
        ResponseFuture {
            inner: self.inner.call(request),
            layer: self.layer.clone(),
        }
    }
}

pin_project! {
    /// The response of [`HopByHop`].
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        layer: HopByHopLayer,
    }
}

impl<F, R, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.inner.poll(cx))?;
        this.layer.filter_response(&mut response);
        Poll::Ready(Ok(response))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{answer, call, headers, lines};

    fn request(version: Version, fields: &[(&str, &str)]) -> Vec<String> {
        let mut request = Request::new(());
        *request.version_mut() = version;
        *request.headers_mut() = headers(fields);
        HopByHopLayer::new().filter_request(&mut request);
        lines(request.headers())
    }

    fn response(status: u16, fields: &[(&str, &str)]) -> Vec<String> {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        *response.headers_mut() = headers(fields);
        HopByHopLayer::new().filter_response(&mut response);
        lines(response.headers())
    }

    const VIA_11: &str = "via: 1.1 fencegate";

    #[test]
    fn an_ordinary_request_is_left_as_it_is_but_for_via() {
        let fields = [
            ("accept", "b"),
            ("accept", "a"),
            ("content-length", "5"),
            ("trailer", "x-sum"),
            ("via", "1.0 edge"),
        ];
        let wanted = [
            "accept: b",
            "accept: a",
            "content-length: 5",
            "trailer: x-sum",
            "via: 1.0 edge",
            VIA_11,
        ];
        assert_eq!(request(Version::HTTP_11, &fields), wanted);
    }

    #[test]
    fn what_any_connection_line_names_is_removed_whole() {
        let fields = [
            ("connection", "close"),
            ("connection", " X-One ,, x-two,keep-alive"),
            ("x-one", "1"),
            ("x-one", "2"),
            ("x-two", "3"),
            ("x-three", "4"),
            ("keep-alive", "timeout=5"),
        ];
        assert_eq!(request(Version::HTTP_11, &fields), [VIA_11, "x-three: 4"]);
        assert_eq!(response(200, &fields), [VIA_11, "x-three: 4"]);
    }

    #[test]
    fn connection_can_not_take_away_what_makes_the_message() {
        let fields = [
            ("connection", "host, content-length, \"\", a b, \u{e9}"),
            ("host", "a"),
            ("content-length", "5"),
        ];
        let wanted = ["content-length: 5", "host: a", VIA_11];
        assert_eq!(request(Version::HTTP_11, &fields), wanted);
    }

    #[test]
    fn the_known_hop_by_hop_fields_go_without_being_named() {
        let fields = [
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic x"),
            ("proxy-authenticate", "Basic"),
            ("proxy-authentication-info", "x"),
            ("transfer-encoding", "chunked"),
            ("te", "gzip"),
            ("http2-settings", "AAMAAABk"),
            ("upgrade", "websocket"),
        ];
        assert_eq!(request(Version::HTTP_11, &fields), [VIA_11]);
        assert_eq!(response(200, &fields), [VIA_11]);
    }

    #[test]
    fn te_trailers_stays_alone() {
        let wanted = ["connection: TE", "te: trailers", VIA_11];
        for lines in [
            &[("te", "trailers")][..],
            &[("te", "gzip;q=0.5, Trailers"), ("connection", "te")],
            &[
                ("te", "deflate"),
                ("te", "trailers"),
                ("connection", "close, TE"),
            ],
        ] {
            assert_eq!(request(Version::HTTP_11, lines), wanted, "{lines:?}");
        }
        assert_eq!(response(200, &[("te", "trailers")]), [VIA_11]);
    }

    #[test]
    fn an_upgrade_stays_with_its_connection_option() {
        let fields = [
            ("connection", "keep-alive"),
            ("connection", "Upgrade, x-one"),
            ("upgrade", "websocket"),
            ("x-one", "1"),
        ];
        let wanted = ["connection: upgrade", "upgrade: websocket", VIA_11];
        assert_eq!(request(Version::HTTP_11, &fields), wanted);
        assert!(upgrades(Version::HTTP_11, &headers(&fields)));
        let fields = [
            ("connection", "upgrade"),
            ("upgrade", "a"),
            ("te", "trailers"),
        ];
        let kept = [
            "connection: upgrade, TE",
            "te: trailers",
            "upgrade: a",
            VIA_11,
        ];
        assert_eq!(request(Version::HTTP_11, &fields), kept);
    }

    #[test]
    fn an_upgrade_that_carries_http_is_removed() {
        // S18
        for protocol in ["h2c", "H2C", "websocket, h2c", "h2", "HTTP/2.0", "TLS/1.0"] {
            let fields = [
                ("connection", "upgrade, http2-settings"),
                ("upgrade", protocol),
                ("http2-settings", "AAMAAABk"),
            ];
            assert_eq!(request(Version::HTTP_11, &fields), [VIA_11], "{protocol}");
            assert!(!upgrades(Version::HTTP_11, &headers(&fields)), "{protocol}");
        }
        let second = [
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("upgrade", "h2c"),
        ];
        assert_eq!(request(Version::HTTP_11, &second), [VIA_11]);
    }

    #[test]
    fn http_1_0_has_no_upgrades() {
        let fields = [("connection", "upgrade"), ("upgrade", "websocket")];
        assert_eq!(request(Version::HTTP_10, &fields), ["via: 1.0 fencegate"]);
    }

    #[test]
    fn only_a_response_that_is_about_upgrading_keeps_it() {
        // S17
        let fields = [("connection", "upgrade"), ("upgrade", "websocket")];
        let kept = ["connection: upgrade", "upgrade: websocket", VIA_11];
        assert_eq!(response(101, &fields), kept);
        assert_eq!(response(426, &fields), kept);
        assert_eq!(response(200, &fields), [VIA_11]);
    }

    #[test]
    fn via_says_in_which_version_the_message_came() {
        for (version, line) in [
            (Version::HTTP_10, "via: 1.0 fencegate"),
            (Version::HTTP_11, VIA_11),
            (Version::HTTP_2, "via: 2 fencegate"),
            (Version::HTTP_3, "via: 3 fencegate"),
        ] {
            assert_eq!(request(version, &[]), [line]);
        }
    }

    #[test]
    fn the_service_filters_both_ways() {
        let layer = HopByHopLayer::with_pseudonym(&HeaderValue::from_static("gate:80"));
        let mut service = layer.layer(answer(|request: Request<()>| {
            let mut response = Response::new(lines(request.headers()));
            *response.headers_mut() = headers(&[("keep-alive", "timeout=5")]);
            *response.version_mut() = Version::HTTP_10;
            response
        }));
        let mut request = Request::new(());
        *request.headers_mut() = headers(&[("connection", "close")]);
        let response = call(&mut service, request);
        assert_eq!(lines(response.headers()), ["via: 1.0 gate:80"]);
        assert_eq!(response.into_body(), ["via: 1.1 gate:80"]);
    }

    proptest::proptest! {
        #[test]
        fn no_field_that_connection_names_is_left(
            lines in proptest::collection::vec("[ a-cTE,\\t\"\u{e9}]{0,12}", 0..4),
        ) {
            let mut request = Request::new(());
            *request.headers_mut() = headers(&[("a", "1"), ("b", "2"), ("cab", "3"), ("te", "4")]);
            for line in &lines {
                let line = HeaderValue::from_bytes(line.as_bytes()).unwrap();
                request.headers_mut().append(CONNECTION, line);
            }
            HopByHopLayer::new().filter_request(&mut request);
            for name in ["a", "b", "cab"] {
                let named = lines.iter().any(|line| {
                    let mut options = line.split(',').map(|option| option.trim_matches([' ', '\t']));
                    options.any(|option| option.eq_ignore_ascii_case(name))
                });
                proptest::prop_assert_eq!(request.headers().contains_key(name), !named);
            }
            proptest::prop_assert!(!request.headers().contains_key("te"));
            proptest::prop_assert!(!request.headers().contains_key(CONNECTION));
        }
    }
}
