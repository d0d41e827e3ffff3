//! The config as the rest of the gate reads it: every default applied, every name checked.
//!
//! The names are those of the file. What is an `Option` here is what `none` switches off in the
//! file, or what may be left out of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderName, Method};

use super::address::{Address, Endpoint, Url};
use super::choice::{
    Access, Body, Case, Holder, HolderFrom, Level, LogFormat, Mode, NewEpochs, OnTimeout,
    PathRules, Require, Trust, Uploads, When,
};
use super::cidr::Cidr;
use super::problem::Spanned;
use super::secret::{Secret, TokenHash};
use crate::signed::JwsVerifier;
use crate::tls::{ClientTls, ServerTls};

/// The whole config.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients are accepted; at least one.
    pub listeners: Vec<Listener>,
    /// Peers whose `X-Forwarded-*` fields are believed.
    pub trusted_proxies: Vec<Cidr>,
    /// Whether RFC 7239's `Forwarded` is sent beside the `X-Forwarded-*` fields.
    pub forwarded: bool,
    /// The listener for health, metrics and keys, if there is one.
    pub admin: Option<Admin>,
    /// `None`: there is no lock service.
    pub locks: Option<Locks>,
    /// Where marks are kept.
    pub store: Store,
    /// What is behind the fence, by name; at least one.
    pub upstreams: BTreeMap<String, Upstream>,
    /// What leads where, in the order of the file; at least one.
    pub routes: Vec<Route>,
    /// How much is accepted.
    pub limits: Limits,
    /// How long clients may take.
    pub timeouts: Timeouts,
    /// How the gate stops.
    pub shutdown: Shutdown,
    /// What is logged.
    pub log: Log,
    /// The files that were read besides: certificates, keys and secrets.
    pub files: Vec<PathBuf>,
}

/// An address on which clients are accepted.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Host and port, or a unix socket.
    pub address: Spanned<Endpoint>,
    /// How clients are spoken to in secret; `None`: they are not.
    pub tls: Option<Tls>,
    /// Whether clients come by a proxy that says so in a PROXY header (version 2).
    pub proxy_protocol: bool,
}

/// What a listener has for TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The file of its certificate.
    pub cert: Spanned<PathBuf>,
    /// What was made of its files.
    pub server: ServerTls,
}

/// The admin listener.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Host and port; loopback unless `tokens` or `insecure` says otherwise.
    pub address: Spanned<Address>,
    /// The hashes of the bearer tokens that are let in; empty: no token is asked for.
    pub tokens: Vec<TokenHash>,
    /// As that of a listener.
    pub tls: Option<Tls>,
    /// Whether an address that others reach is meant to be open to all of them.
    pub insecure: bool,
}

/// The lock service and its listener.
#[derive(Clone, Debug)]
pub struct Locks {
    /// Host and port; loopback unless `tokens` or `insecure` says otherwise.
    pub address: Spanned<Address>,
    /// Whether a grant raises the mark, and is told only when older writes have drained.
    pub fence_on_grant: bool,
    /// The hashes of the bearer tokens that are let in; empty: no token is asked for.
    pub tokens: Vec<TokenHash>,
    /// As that of a listener.
    pub tls: Option<Tls>,
    /// Whether an address that others reach is meant to be open to all of them.
    pub insecure: bool,
}

/// Where marks are kept.
#[derive(Clone, Debug)]
pub struct Store {
    /// The directory of the embedded store, relative to the working directory of the process.
    pub path: PathBuf,
    /// The memory for hot marks, in bytes.
    pub cache: u64,
    /// Whether a directory that is missing or empty is refused at start, instead of created.
    pub require_existing: bool,
    /// Which marks are forgotten, if any are.
    pub forget: Option<Forget>,
}

/// Forgetting the marks of keys that nobody uses.
#[derive(Clone, Debug)]
pub struct Forget {
    /// The namespaces whose tokens are ordered across keys; at least one.
    pub namespaces: Vec<Spanned<String>>,
    /// For how long a key is not used before its mark may be forgotten, in uptime.
    pub after: Duration,
}

/// A resource behind the fence.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Where it is reached; at least one, all different. An object store within the process is the
    /// only one.
    pub urls: Vec<Spanned<Url>>,
    /// How that is done by `https`; `None` where no URL asks for it.
    pub tls: Option<UpstreamTls>,
    /// Whether it is spoken to in HTTP/2.
    pub http2: bool,
    /// The longest wait for a connection.
    pub connect_timeout: Duration,
    /// The longest wait from the last byte of the request to the head of the response, and between
    /// two reads of the response.
    pub timeout: Duration,
    /// How long the upstream may go on working on a request whose outcome is unknown.
    pub settle: Duration,
    /// Whether it is known to apply nothing of a request whose body did not arrive whole.
    pub discards_incomplete: bool,
    /// The statuses after which it may still be working.
    pub unknown_statuses: BTreeSet<u16>,
    /// Whether the authority of a WebDAV `Destination` is made the upstream's own.
    pub rewrite_destination: bool,
    /// Fields that are set on every request, in place of the client's own.
    pub headers: Vec<UpstreamHeader>,
    /// Idle connections.
    pub pool: Pool,
    /// Whether field names are sent in the case in which the client wrote them.
    pub preserve_header_case: bool,
    /// How its addresses are asked whether they are well, if they are.
    pub health: Option<Health>,
}

/// How the addresses of an upstream are asked whether they are well.
#[derive(Clone, Debug)]
pub struct Health {
    /// What is asked for by GET.
    pub path: PathAndQuery,
    /// How often, and how long an answer may take.
    pub interval: Duration,
}

/// What is asked of an upstream, and shown to it.
#[derive(Clone, Debug)]
pub struct UpstreamTls {
    /// Made of the files, and the `server_name` where one is given.
    pub client: ClientTls,
}

impl UpstreamTls {
    /// For the host of one URL, unless there is a `server_name`.
    #[must_use]
    pub fn for_host(&self, host: &str) -> Option<ClientTls> {
        match self.client.is_named() {
            true => Some(self.client.clone()),
            false => self.client.named(host),
        }
    }
}

/// A field that is set on every request to an upstream.
#[derive(Clone, Debug)]
pub struct UpstreamHeader {
    /// The field's name.
    pub name: Spanned<HeaderName>,
    /// The field's value: often a credential that only the gate knows.
    pub value: Secret,
}

/// The idle connections of an upstream.
#[derive(Clone, Debug)]
pub struct Pool {
    /// The most that are kept; 0: none is.
    pub max_idle: usize,
    /// How long one is kept.
    pub idle_timeout: Duration,
}

/// Which requests lead where, and what fences them.
#[derive(Clone, Debug)]
pub struct Route {
    /// The name, unique among the routes.
    pub name: Spanned<String>,
    /// Host templates; empty: every host.
    pub hosts: Vec<Spanned<String>>,
    /// The path template; begins with a slash.
    pub path: Spanned<String>,
    /// Methods; empty: every method.
    pub methods: Vec<Method>,
    /// Query parameters that must be present.
    pub query: Vec<Spanned<String>>,
    /// Whether what matches is refused.
    pub deny: bool,
    /// Whether other rules than those the marks of the namespace were made under are meant.
    pub rekey: bool,
    /// The name of the upstream: one of [`Config::upstreams`]. `None` only where `deny` is set.
    pub upstream: Option<Spanned<String>>,
    /// The namespace of the keys; by default the route's name.
    pub namespace: Spanned<String>,
    /// The fence.
    pub fence: Fence,
}

/// What a route checks before it forwards.
#[derive(Clone, Debug)]
pub struct Fence {
    /// Which requests need a token.
    pub require: Require,
    /// Whether refusals are carried out.
    pub mode: Mode,
    /// How the keys are made; at least one. `key: T` in the file is one rule with template `T`.
    pub keys: Vec<KeyRule>,
    /// The methods that only read.
    pub safe_methods: Vec<Method>,
    /// The names of the token header; at least one.
    pub token_headers: Vec<Spanned<HeaderName>>,
    /// Whether the token goes upstream too.
    pub forward_token: bool,
    /// Whether a mark is bound to the holder that raised it.
    pub holder: Holder,
    /// Whose tokens may raise a mark, and where that stands.
    pub trust: Spanned<Trust>,
    /// What verifies tokens, where only signed ones are trusted.
    pub verifier: Option<Arc<JwsVerifier>>,
    /// Where the holder's name comes from.
    pub holder_from: HolderFrom,
    /// The furthest that one advance may raise the counter.
    pub max_advance: Option<u64>,
    /// Whether an advance may begin a new epoch; read only where `max_advance` is set.
    pub new_epochs: NewEpochs,
    /// How strictly paths are read.
    pub path: PathRules,
    /// Whether keys that differ in case only are the same.
    pub case: Case,
    /// Whether the body is received whole before the request is admitted.
    pub body: Body,
    /// How an advance waits for older writes.
    pub drain: Drain,
    /// The status of a refusal that would be 409.
    pub refuse_status: u16,
    /// Whether refusals tell the mark.
    pub reveal_mark: bool,
    /// Whether fields such as `X-HTTP-Method-Override` are forwarded.
    pub allow_method_override: bool,
}

/// How one key of a request is made.
#[derive(Clone, Debug)]
pub struct KeyRule {
    /// The template.
    pub key: Spanned<String>,
    /// Whether the key may be missing.
    pub when: When,
    /// What the request does to this key.
    pub access: Access,
    /// The header of this key's token, where it is not one of the route's.
    pub token_header: Option<Spanned<HeaderName>>,
}

/// How an advance waits for older writes.
#[derive(Clone, Debug)]
pub struct Drain {
    /// The longest wait, counted from the raise.
    pub timeout: Duration,
    /// What happens then.
    pub on_timeout: OnTimeout,
    /// What becomes of older writes whose body is still on its way.
    pub uploads: Uploads,
}

/// How much is accepted.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The most bytes of a request's head.
    pub header_bytes: u64,
    /// The most fields of a request.
    pub header_count: usize,
    /// The most bytes of a request's body.
    pub body: Option<u64>,
    /// The most connections from clients at once.
    pub connections: Option<usize>,
    /// The most keys that may have a mark.
    pub keys: Option<u64>,
    /// The most requests that wait for one key.
    pub waiting_per_key: usize,
    /// The most requests on one connection from a client.
    pub requests_per_connection: Option<u64>,
    /// The most requests at once on one HTTP/2 connection from a client.
    pub http2_streams: u32,
}

/// How long clients may take.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// For the head of a request.
    pub header: Option<Duration>,
    /// Between two requests of a connection.
    pub idle: Option<Duration>,
    /// Between two reads of a request's body.
    pub body: Option<Duration>,
}

/// How the gate stops.
#[derive(Clone, Debug)]
pub struct Shutdown {
    /// How long requests in flight may go on; zero: they are cut at once.
    pub timeout: Duration,
}

/// What is logged.
#[derive(Clone, Debug)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// The least important level that is logged.
    pub level: Level,
    /// Whether every request is logged.
    pub access: bool,
}
