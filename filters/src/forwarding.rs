//! Tells the upstream who the client is: `X-Forwarded-For`, `X-Forwarded-Proto` and
//! `X-Forwarded-Host`, and `Forwarded` (RFC 7239) where that is asked for.
//!
//! Who the peer is comes from the request's [`Peer`] extension.
//!
//! - **Peer not trusted** (the default): everything a client says about itself is removed, and the
//!   three fields are set to what the gateway saw. Removed are `Forwarded`, all of
//!   `X-Forwarded-*`, `X-Real-IP`, `X-Client-IP`, `X-Cluster-Client-IP` and `True-Client-IP`, also
//!   spelt with `_`: an upstream that believes one of them would believe a stranger.
//! - **Peer trusted** (its address is in `trusted_proxies`): its address is appended to
//!   `X-Forwarded-For`, as one comma list on one line, which is what nginx sends and every server
//!   reads; `-Proto` and `-Host` are set only where the peer did not; all others pass untouched,
//!   `Forwarded` too where it is not asked for.
//!
//! A peer without an address (a unix socket) is never trusted; its request has no
//! `X-Forwarded-For`, and `for=unknown` in `Forwarded`. A request without a [`Peer`] is treated as
//! from such a peer over an unknown scheme: it gets no `X-Forwarded-Proto` either.
//!
//! ```
//! use std::net::IpAddr;
//!
//! use fencegate_filters::forwarding::{ForwardedLayer, Peer, Scheme};
//! use http::Request;
//!
//! let layer = ForwardedLayer::new(["10.0.0.0/8".parse()?], false);
//! let address: IpAddr = "10.1.2.3".parse()?;
//! let mut request = Request::get("/objects/42")
//!     .header("host", "storage.internal")
//!     .header("x-forwarded-for", "192.0.2.7")
//!     .extension(Peer::new(Some(address), Scheme::Https))
//!     .body(())?;
//! layer.filter(&mut request);
//! assert_eq!(request.headers()["x-forwarded-for"], "192.0.2.7, 10.1.2.3");
//! assert_eq!(request.headers()["x-forwarded-proto"], "https");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{Entry, FORWARDED, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use smallvec::SmallVec;
use tower_layer::Layer;
use tower_service::Service;

use crate::names::alike;

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Where clients say who they are, besides `X-Forwarded-*`.
const CLAIMS: [&str; 5] = [
    "forwarded",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "true-client-ip",
];

/// The scheme in which a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Without TLS.
    Http,
    /// With TLS.
    Https,
}

impl Scheme {
    /// As it stands in a URI.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Who sent a request: an extension that whoever accepts connections adds to each.
///
/// Made once for a connection: a clone costs a reference count.
#[derive(Clone, Debug)]
pub struct Peer {
    address: Option<IpAddr>,
    text: Option<HeaderValue>,
    scheme: Scheme,
    identity: Option<Arc<str>>,
    speaks_for_others: bool,
}

impl Peer {
    /// A peer with its address, `None` for one on a unix socket. An IPv4 address that is mapped
    /// into IPv6 is taken as the IPv4 address that it is.
    #[must_use]
    pub fn new(address: Option<IpAddr>, scheme: Scheme) -> Self {
        let address = address.map(|address| address.to_canonical());
        Self {
            address,
            text: address.and_then(|address| HeaderValue::try_from(address.to_string()).ok()),
            scheme,
            identity: None,
            speaks_for_others: false,
        }
    }

    /// The same peer, proven to be `identity`.
    #[must_use]
    pub fn with_identity(mut self, identity: Option<Arc<str>>) -> Self {
        self.identity = identity;
        self
    }

    /// The same peer, one of `trusted_proxies`, which may have been reached by another scheme.
    #[must_use]
    pub const fn speaking_for_others(mut self, speaks: bool) -> Self {
        self.speaks_for_others = speaks;
        self
    }

    /// Whom its certificate names, where it has shown one.
    #[must_use]
    pub const fn identity(&self) -> Option<&Arc<str>> {
        self.identity.as_ref()
    }

    /// Whether a URI of this scheme can be one that was asked for here.
    #[must_use]
    pub fn is_reached_by(&self, scheme: &str) -> bool {
        self.speaks_for_others || scheme.eq_ignore_ascii_case(self.scheme.as_str())
    }

    /// Its address.
    #[must_use]
    pub const fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// The scheme in which it sent.
    #[must_use]
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }
}

/// Applies [`Forwarded`].
#[derive(Clone, Debug)]
pub struct ForwardedLayer {
    trusted: Arc<[Cidr]>,
    rfc7239: bool,
}

impl ForwardedLayer {
    /// Believes the peers in `trusted`; sends `Forwarded` too where `rfc7239` is set.
    #[must_use]
    pub fn new(trusted: impl IntoIterator<Item = Cidr>, rfc7239: bool) -> Self {
        Self {
            trusted: trusted.into_iter().collect(),
            rfc7239,
        }
    }

    /// Whether what a peer at `address` says about its clients is believed.
    #[must_use]
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|block| block.contains(address))
    }

    /// What the layer does to a request.
    pub fn filter<B>(&self, request: &mut Request<B>) {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.as_ref();
        let host = request.headers().get(HOST).cloned().or_else(|| {
            // HTTP/2 has the host in the target.
            let authority = request.uri().authority()?;
            HeaderValue::from_str(authority.as_str()).ok()
        });
        let headers = request.headers_mut();
        let trusted = peer
            .and_then(Peer::address)
            .is_some_and(|address| self.trusts(address));
        if !trusted {
            remove_claims(headers);
        }
        if let Some(address) = peer.and_then(|peer| peer.text.as_ref()) {
            append(headers, &X_FORWARDED_FOR, address);
        }
        if let Some(peer) = peer {
            let scheme = HeaderValue::from_static(peer.scheme.as_str());
            set_if_absent(headers, &X_FORWARDED_PROTO, scheme);
        }
        if self.rfc7239 {
            append(headers, &FORWARDED, &element(peer, host.as_ref()));
        }
        if let Some(host) = host {
            set_if_absent(headers, &X_FORWARDED_HOST, host);
        }
    }
}

fn remove_claims(headers: &mut HeaderMap) {
    let mut claims: SmallVec<[HeaderName; 4]> = SmallVec::new();
    for name in headers.keys() {
        let bytes = name.as_str().as_bytes();
        let prefix = bytes.get(..12).unwrap_or_default();
        if alike(prefix, b"x-forwarded-")
            || CLAIMS.iter().any(|claim| alike(claim.as_bytes(), bytes))
        {
            claims.push(name.clone());
        }
    }
    for name in claims {
        headers.remove(name);
    }
}

fn set_if_absent(headers: &mut HeaderMap, name: &HeaderName, value: HeaderValue) {
    // Fails only above 32,768 fields, which no codec lets through.
    if let Ok(Entry::Vacant(vacant)) = headers.try_entry(name) {
        let _ = vacant.try_insert(value);
    }
}

/// Appends `value` to the list in `name`, and makes one line of all.
fn append(headers: &mut HeaderMap, name: &HeaderName, value: &HeaderValue) {
    // Fails only above 32,768 fields, which no codec lets through.
    match headers.try_entry(name) {
        Ok(Entry::Vacant(vacant)) => {
            let _ = vacant.try_insert(value.clone());
        }
        Ok(Entry::Occupied(mut lines)) => {
            let mut list = Vec::with_capacity(128);
            for line in lines.iter().filter(|line| !line.is_empty()) {
                list.extend_from_slice(line.as_bytes());
                list.extend_from_slice(b", ");
            }
            list.extend_from_slice(value.as_bytes());
            // Legal values joined by legal bytes make a legal value.
            let list = HeaderValue::from_maybe_shared(bytes::Bytes::from(list));
            lines.insert(list.unwrap_or_else(|_| value.clone()));
        }
        Err(_) => {}
    }
}

/// The element of `Forwarded` for this hop (RFC 7239, section 4).
fn element(peer: Option<&Peer>, host: Option<&HeaderValue>) -> HeaderValue {
    let mut element = match peer.and_then(Peer::address) {
        // The colons of an IPv6 address make quotes necessary (section 6).
        Some(IpAddr::V6(address)) => format!("for=\"[{address}]\""),
        Some(IpAddr::V4(address)) => format!("for={address}"),
        None => "for=unknown".to_owned(),
    };
    // A host that is no visible ASCII has no place in a quoted string that all can read.
    if let Some(host) = host.and_then(|host| host.to_str().ok()) {
        element.push_str(";host=\"");
        for letter in host.chars() {
            if matches!(letter, '"' | '\\') {
                element.push('\\');
            }
            element.push(letter);
        }
        element.push('"');
    }
    if let Some(peer) = peer {
        element.push_str(";proto=");
        element.push_str(peer.scheme.as_str());
    }
    HeaderValue::try_from(element).unwrap_or_else(|_| HeaderValue::from_static("for=unknown"))
}

impl<S> Layer<S> for ForwardedLayer {
    type Service = Forwarded<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Forwarded {
            inner,
            layer: self.clone(),
        }
    }
}

/// Tells the upstream who the client is.
#[derive(Clone, Debug)]
pub struct Forwarded<S> {
    inner: S,
    layer: ForwardedLayer,
}

impl<S, B> Service<Request<B>> for Forwarded<S>
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
        self.layer.filter(&mut request);
        self.inner.call(request)
    }
}

/// A block of addresses, such as `10.0.0.0/8`, `fd00::/8` or one address alone.
///
/// IPv4 blocks contain IPv4 addresses that are mapped into IPv6, and a mapped block
/// (`::ffff:10.0.0.0/104`) is the IPv4 block that it maps. Other IPv6 blocks, `::/0` too, contain
/// no IPv4 addresses.
///
/// ```
/// use fencegate_filters::Cidr;
///
/// let block: Cidr = "10.0.0.0/8".parse()?;
/// assert!(block.contains("10.255.0.1".parse()?));
/// assert!(block.contains("::ffff:10.0.0.1".parse()?));
/// assert!(!block.contains("11.0.0.1".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    network: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The block of `address` whose first `prefix` bits are fixed; the other bits of `address` do
    /// not count.
    ///
    /// # Errors
    ///
    /// A prefix that is longer than the address.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, InvalidCidr> {
        let canonical = address.to_canonical();
        let mapped = address.is_ipv6() && canonical.is_ipv4();
        let (address, prefix) = match prefix.checked_sub(96) {
            Some(prefix) if mapped => (canonical, prefix),
            _ => (address, prefix),
        };
        if prefix > width(address) {
            return Err(InvalidCidr);
        }
        Ok(Self {
            network: mask(address, prefix),
            prefix,
        })
    }

    /// Whether `address` is in the block.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.network.is_ipv4() && mask(address, self.prefix) == self.network
    }
}

const fn width(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn mask(address: IpAddr, prefix: u8) -> IpAddr {
    // A shift by the whole width is what `checked_shl` calls an overflow: nothing is fixed then.
    let host_bits = u32::from(width(address).saturating_sub(prefix));
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

impl FromStr for Cidr {
    type Err = InvalidCidr;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| InvalidCidr)?;
        let prefix = match prefix {
            None => width(address),
            // `parse` alone would take a sign.
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().map_err(|_| InvalidCidr)?
            }
            Some(_) => return Err(InvalidCidr),
        };
        Self::new(address, prefix)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// A text that is no block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidCidr;

impl fmt::Display for InvalidCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an address, or an address and a prefix length such as 10.0.0.0/8")
    }
}

impl std::error::Error for InvalidCidr {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{answer, call, headers, lines};
    use http::Response;

    const TRUSTED: &str = "10.1.2.3";
    const STRANGER: &str = "192.0.2.9";

    fn sent(
        rfc7239: bool,
        peer: Option<Peer>,
        target: &str,
        fields: &[(&str, &str)],
    ) -> Vec<String> {
        let layer = ForwardedLayer::new(["10.0.0.0/8".parse().unwrap()], rfc7239);
        let mut service = layer.layer(answer(|request: Request<()>| {
            Response::new(lines(request.headers()))
        }));
        let mut request = Request::get(target).body(()).unwrap();
        *request.headers_mut() = headers(fields);
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        call(&mut service, request).into_body()
    }

    fn peer(address: &str) -> Option<Peer> {
        Some(Peer::new(Some(address.parse().unwrap()), Scheme::Https))
    }

    const CLAIMED: [(&str, &str); 10] = [
        ("host", "a"),
        ("x-forwarded-for", "1.1.1.1"),
        ("x-forwarded-for", "2.2.2.2"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "b"),
        ("x-forwarded-port", "1"),
        ("X_Forwarded_For", "3.3.3.3"),
        ("forwarded", "for=1.1.1.1"),
        ("x-real-ip", "1.1.1.1"),
        ("True_Client-IP", "1.1.1.1"),
    ];

    #[test]
    fn what_a_stranger_says_is_replaced() {
        let wanted = [
            "host: a",
            "x-forwarded-for: 192.0.2.9",
            "x-forwarded-host: a",
            "x-forwarded-proto: https",
        ];
        assert_eq!(sent(false, peer(STRANGER), "/", &CLAIMED), wanted);
        assert_eq!(sent(false, peer(STRANGER), "/", &[("host", "a")]), wanted);
    }

    #[test]
    fn what_a_trusted_peer_says_is_kept_and_its_address_is_appended() {
        let wanted = [
            "forwarded: for=1.1.1.1",
            "host: a",
            "true_client-ip: 1.1.1.1",
            "x-forwarded-for: 1.1.1.1, 2.2.2.2, 10.1.2.3",
            "x-forwarded-host: b",
            "x-forwarded-port: 1",
            "x-forwarded-proto: http",
            "x-real-ip: 1.1.1.1",
            "x_forwarded_for: 3.3.3.3",
        ];
        assert_eq!(sent(false, peer(TRUSTED), "/", &CLAIMED), wanted);
    }

    #[test]
    fn what_a_trusted_peer_leaves_out_is_set() {
        let wanted = [
            "host: a",
            "x-forwarded-for: 10.1.2.3",
            "x-forwarded-host: a",
            "x-forwarded-proto: https",
        ];
        assert_eq!(sent(false, peer(TRUSTED), "/", &[("host", "a")]), wanted);
        assert_eq!(
            sent(false, peer("::ffff:10.1.2.3"), "/", &[("host", "a")]),
            wanted
        );
    }

    #[test]
    fn forwarded_is_sent_where_it_is_asked_for() {
        let line = |address, fields: &[(&str, &str)]| {
            let all = sent(true, peer(address), "/", fields);
            all.into_iter()
                .find(|line| line.starts_with("forwarded: "))
                .unwrap()
        };
        assert_eq!(
            line(
                STRANGER,
                &[("host", "a:8080"), ("forwarded", "for=1.1.1.1")]
            ),
            "forwarded: for=192.0.2.9;host=\"a:8080\";proto=https"
        );
        assert_eq!(
            line("2001:db8::1", &[("host", "a\"\\")]),
            "forwarded: for=\"[2001:db8::1]\";host=\"a\\\"\\\\\";proto=https"
        );
        assert_eq!(
            line(
                TRUSTED,
                &[("forwarded", "for=1.1.1.1"), ("forwarded", "for=2.2.2.2")]
            ),
            "forwarded: for=1.1.1.1, for=2.2.2.2, for=10.1.2.3;proto=https"
        );
    }

    #[test]
    fn a_peer_without_an_address_is_not_trusted() {
        let unix = Some(Peer::new(None, Scheme::Http));
        let wanted = [
            "forwarded: for=unknown;host=\"a\";proto=http",
            "host: a",
            "x-forwarded-host: a",
            "x-forwarded-proto: http",
        ];
        assert_eq!(sent(true, unix, "/", &CLAIMED), wanted);
        assert_eq!(
            sent(false, None, "/", &CLAIMED),
            ["host: a", "x-forwarded-host: a"]
        );
    }

    #[test]
    fn the_host_of_http_2_stands_in_the_target() {
        let all = sent(false, peer("2001:db8::1"), "https://a:8443/x", &[]);
        let wanted = [
            "x-forwarded-for: 2001:db8::1",
            "x-forwarded-host: a:8443",
            "x-forwarded-proto: https",
        ];
        assert_eq!(all, wanted);
    }

    #[test]
    fn a_list_keeps_bytes_that_are_no_text() {
        let mut request = Request::new(());
        let opaque = HeaderValue::from_bytes(b"\xff").unwrap();
        request.headers_mut().insert(&X_FORWARDED_FOR, opaque);
        request.extensions_mut().insert(peer(TRUSTED).unwrap());
        ForwardedLayer::new(["10.1.2.3".parse().unwrap()], false).filter(&mut request);
        let value = request.headers().get(&X_FORWARDED_FOR).unwrap();
        assert_eq!(value.as_bytes(), b"\xff, 10.1.2.3");
    }

    #[test]
    fn blocks_contain_their_addresses() {
        let cases = [
            ("10.0.0.0/8", "10.255.255.255", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.9.9.9/8", "10.0.0.1", true),
            ("0.0.0.0/0", "255.1.1.1", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "::1", true),
            ("::/0", "1.1.1.1", false),
            ("::/0", "::ffff:1.1.1.1", false),
            ("::1", "::1", true),
            ("::1", "::2", false),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1/32", "192.0.2.2", false),
            ("2001:db8::/33", "2001:db8:7fff::1", true),
            ("2001:db8::/33", "2001:db8:8000::1", false),
            ("10.0.0.0/8", "::ffff:10.0.0.1", true),
            ("::ffff:10.0.0.0/104", "10.0.0.1", true),
            ("::ffff:10.0.0.1", "10.0.0.1", true),
            ("::ffff:10.0.0.1", "10.0.0.2", false),
        ];
        for (block, address, inside) in cases {
            let parsed: Cidr = block.parse().unwrap();
            assert_eq!(
                parsed.contains(address.parse().unwrap()),
                inside,
                "{block} {address}"
            );
            assert_eq!(parsed.to_string().parse(), Ok(parsed), "{block}");
        }
    }

    #[test]
    fn other_texts_are_no_blocks() {
        for text in [
            "",
            "/",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/ 8",
            "10.0.0/8",
            "::/129",
            "10.0.0.0/8/8",
            "a",
            "10.0.0.0/-1",
            "10.0.0.0/256",
            "[::1]",
            "::1%eth0",
        ] {
            assert_eq!(text.parse::<Cidr>(), Err(InvalidCidr), "{text}");
        }
    }
}
