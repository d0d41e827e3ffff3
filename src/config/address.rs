//! Where things are: addresses to listen on and URLs of upstreams.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

/// What the system has room for.
const MAX_SOCKET_PATH: usize = 107;

/// A host and a port.
///
/// ```
/// use fencegate::config::Address;
///
/// let address: Address = "[::1]:8080".parse()?;
/// assert_eq!((address.host(), address.port()), ("::1", 8080));
/// assert!(address.is_loopback());
/// # Ok::<(), fencegate::config::BadAddress>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// The host: an IP address without brackets, or a name.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; 0 asks the system for a free one.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Whether only this machine reaches it: a loopback address, or `localhost` (RFC 6761,
    /// section 6.3).
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.host.parse::<IpAddr>().map_or_else(
            |_| self.host == "localhost",
            |ip| ip.to_canonical().is_loopback(),
        )
    }

    /// Stands for an address that could not be read, while the rest of the config is looked at.
    pub(super) fn unreadable() -> Self {
        Self {
            host: "localhost".to_owned(),
            port: 0,
        }
    }

    /// Reads `host[:port]`.
    fn parse(text: &str, default_port: Option<u16>) -> Result<Self, BadAddress> {
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, port) = rest.split_once(']').ok_or(BadAddress::Host)?;
            let ip: Ipv6Addr = host.parse().map_err(|_| BadAddress::Host)?;
            let port = match port.strip_prefix(':') {
                None if port.is_empty() => None,
                None => return Err(BadAddress::Host),
                port => port,
            };
            (ip.to_string(), port)
        } else {
            let (host, port) = match text.split_once(':') {
                None => (text, None),
                Some((host, port)) => (host, Some(port)),
            };
            if port.is_some_and(|port| port.contains(':')) {
                return Err(BadAddress::Brackets);
            }
            if !is_host(host) {
                return Err(BadAddress::Host);
            }
            (host.to_ascii_lowercase(), port)
        };
        let port = match port {
            None => default_port.ok_or(BadAddress::NoPort)?,
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                port.parse().map_err(|_| BadAddress::Port)?
            }
            Some(_) => return Err(BadAddress::Port),
        };
        Ok(Self { host, port })
    }
}

fn is_host(host: &str) -> bool {
    let numeric = host
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    if numeric {
        // `127.1` and `1` are addresses to some resolvers and names to others.
        return host.parse::<IpAddr>().is_ok();
    }
    host.len() <= 253
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        && host.split('.').rev().skip(1).all(|label| !label.is_empty())
}

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text, None)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Why a text is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadAddress {
    /// The host is missing or malformed.
    Host,
    /// An IPv6 address without brackets.
    Brackets,
    /// There is no port.
    NoPort,
    /// The port is not a number from 0 to 65535.
    Port,
    /// The path of a unix socket is not absolute, or too long.
    Socket,
}

impl fmt::Display for BadAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "the host is not an IP address or a name",
            Self::Brackets => "an IPv6 address needs brackets, as in [::1]:8080",
            Self::NoPort => "the port is missing",
            Self::Port => "the port is not a number from 0 to 65535",
            Self::Socket => {
                "a unix socket needs an absolute path of at most 107 bytes, as in unix:/run/x.sock"
            }
        })
    }
}

impl std::error::Error for BadAddress {}

/// The path after `unix:`; `None` where the text begins otherwise.
fn socket_path(text: &str) -> Option<Result<PathBuf, BadAddress>> {
    let path = text.strip_prefix("unix:")?;
    let legal = path.starts_with('/') && path.len() <= MAX_SOCKET_PATH && !path.contains('\0');
    Some(match legal {
        true => Ok(PathBuf::from(path)),
        false => Err(BadAddress::Socket),
    })
}

/// Where clients are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// TCP.
    Tcp(Address),
    /// A unix socket.
    Unix(PathBuf),
}

impl Endpoint {
    /// Whether each bind of it gives another address.
    #[must_use]
    pub const fn is_free_choice(&self) -> bool {
        matches!(self, Self::Tcp(address) if address.port == 0)
    }
}

impl FromStr for Endpoint {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match socket_path(text) {
            Some(path) => path.map(Self::Unix),
            None => text.parse().map(Self::Tcp),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Where an upstream is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Url {
    /// HTTP over TCP.
    Http(Address),
    /// HTTP over TLS over TCP.
    Https(Address),
    /// HTTP over a unix socket.
    Unix(PathBuf),
    /// The small object store within the process, to try things on.
    BuiltinObjects,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(address) => write!(f, "http://{address}"),
            Self::Https(address) => write!(f, "https://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::BuiltinObjects => f.write_str("builtin:objects"),
        }
    }
}

impl FromStr for Url {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "builtin:objects" {
            return Ok(Self::BuiltinObjects);
        }
        if let Some(path) = socket_path(text) {
            return path.map(Self::Unix).map_err(BadUrl::Socket);
        }
        let (scheme, rest) = text.split_once("://").ok_or(BadUrl::Scheme)?;
        let secure = scheme.eq_ignore_ascii_case("https");
        if !secure && !scheme.eq_ignore_ascii_case("http") {
            return Err(BadUrl::Scheme);
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at_checked(end).unwrap_or((rest, ""));
        if authority.contains('@') {
            return Err(BadUrl::UserInfo);
        }
        if !matches!(tail, "" | "/") {
            return Err(BadUrl::Path);
        }
        let default = if secure { 443 } else { 80 };
        let address = Address::parse(authority, Some(default)).map_err(BadUrl::Address)?;
        if address.port == 0 {
            return Err(BadUrl::Address(BadAddress::Port));
        }
        Ok(match secure {
            true => Self::Https(address),
            false => Self::Http(address),
        })
    }
}

/// Why a text is no URL of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadUrl {
    /// None that is known.
    Scheme,
    /// What is wrong with the path of a socket.
    Socket(BadAddress),
    /// A name or a password before the host.
    UserInfo,
    /// A path, a query or a fragment.
    Path,
    /// What is wrong with the host or the port.
    Address(BadAddress),
}

impl fmt::Display for BadUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheme => f.write_str(
                "expected http://HOST[:PORT], https://HOST[:PORT], unix:/PATH or builtin:objects",
            ),
            Self::Socket(error) => error.fmt(f),
            Self::UserInfo => f.write_str(
                "a URL carries no user name or password; set a header in upstream.headers instead",
            ),
            Self::Path => f.write_str(
                "a URL has no path or query: the path of the request is forwarded as it came",
            ),
            Self::Address(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BadUrl {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, host, port) in [
            ("127.0.0.1:80", "127.0.0.1", 80),
            ("LOCALHOST:0", "localhost", 0),
            ("a-b.c_d.example.:65535", "a-b.c_d.example.", 65535),
            ("[::1]:1", "::1", 1),
            ("[0:0::1]:1", "::1", 1),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.host(), address.port()), (host, port), "{text}");
        }
        for (text, error) in [
            ("", BadAddress::Host),
            (":80", BadAddress::Host),
            ("a b:80", BadAddress::Host),
            ("127.1:80", BadAddress::Host),
            ("a..b:80", BadAddress::Host),
            ("[::1:80", BadAddress::Host),
            ("[::1]80", BadAddress::Host),
            ("[a]:80", BadAddress::Host),
            ("::1:80", BadAddress::Brackets),
            ("a", BadAddress::NoPort),
            ("[::1]", BadAddress::NoPort),
            ("a:", BadAddress::Port),
            ("a:+1", BadAddress::Port),
            ("a:65536", BadAddress::Port),
        ] {
            assert_eq!(text.parse::<Address>(), Err(error), "{text}");
        }
    }

    #[test]
    fn loopback() {
        for (text, expected) in [
            ("127.0.0.1:1", true),
            ("127.255.0.9:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("localhost:1", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("10.0.0.1:1", false),
            ("localhost.example:1", false),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.is_loopback(), expected, "{text}");
        }
    }

    #[test]
    fn urls() {
        for (text, expected) in [
            ("http://a", Ok("http://a:80")),
            ("HTTP://A:81/", Ok("http://a:81")),
            ("http://[::1]:81", Ok("http://[::1]:81")),
            ("builtin:objects", Ok("builtin:objects")),
            ("builtin:other", Err(BadUrl::Scheme)),
            ("a:80", Err(BadUrl::Scheme)),
            ("", Err(BadUrl::Scheme)),
            ("http://a:b@c", Err(BadUrl::UserInfo)),
            ("http://a/b", Err(BadUrl::Path)),
            ("http://a?b", Err(BadUrl::Path)),
            ("http://a#", Err(BadUrl::Path)),
            ("http://", Err(BadUrl::Address(BadAddress::Host))),
            ("https://a", Ok("https://a:443")),
            ("unix:/run/x", Ok("unix:/run/x")),
            ("unix:x", Err(BadUrl::Socket(BadAddress::Socket))),
            ("http://a:0", Err(BadUrl::Address(BadAddress::Port))),
        ] {
            let url = text.parse::<Url>().map(|url| url.to_string());
            assert_eq!(url, expected.map(str::to_owned), "{text}");
        }
    }
}
