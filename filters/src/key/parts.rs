//! The parts of a request that a key can be made of.

use std::borrow::Cow;
use std::fmt;

use http::header::HeaderName;
use http::{HeaderMap, header};
use smallvec::SmallVec;

use super::host::{HostError, normalize_host, split_port};
use super::path::{AmbiguousPath, Case, DecodedPath, PathRules};
use super::query::QueryError;
use crate::{Key, Reason, Refusal};

/// What a route's template and hosts captured: names and decoded texts.
pub type Captures<'a> = SmallVec<[(&'a str, &'a str); 4]>;

/// What the parts of a key are taken from.
#[derive(Clone, Copy, Debug)]
pub struct KeyParts<'a> {
    /// What the route captured.
    pub captures: &'a [(&'a str, &'a str)],
    /// The value of `Host`, as it came or normalised.
    pub host: Option<&'a str>,
    /// The decoded path without its leading slash: [`DecodedPath::text`].
    pub path: &'a str,
    /// The query as it is sent upstream, without the `?`.
    pub query: Option<&'a str>,
    /// The header as it is sent upstream.
    pub headers: &'a HeaderMap,
}

/// Why a request has no key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// A part is missing or empty; the text is the part as the template writes it.
    Missing(Box<str>),
    /// The key is longer than [`Key::MAX_BYTES`].
    TooLong,
    /// No rule of the route gave a key.
    None,
    /// A query parameter that can't be read in one way.
    Query(Box<str>, QueryError),
    /// A header given twice.
    HeaderTwice(HeaderName),
    /// A header that is not visible text.
    HeaderText(HeaderName),
    /// The path in a header is ambiguous.
    HeaderPath(HeaderName, AmbiguousPath),
    /// A header with a path that is not of the form that its standard gives it.
    HeaderForm(HeaderName),
    /// A Destination on another host.
    ForeignDestination,
    /// `Host` names no single host.
    Host(HostError),
}

impl KeyError {
    /// The reason it is refused for.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Missing(_) | Self::TooLong | Self::None => Reason::NoKey,
            Self::HeaderPath(..) => Reason::AmbiguousPath,
            Self::Query(..)
            | Self::HeaderTwice(_)
            | Self::HeaderText(_)
            | Self::HeaderForm(_)
            | Self::ForeignDestination
            | Self::Host(_) => Reason::BadRequest,
        }
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(part) => {
                write!(f, "{{{part}}} is missing or empty, and the key is made of it: send it")
            }
            Self::TooLong => write!(
                f,
                "the key is longer than {} bytes: use a shorter name",
                Key::MAX_BYTES
            ),
            Self::None => f.write_str(
                "the request has none of the parts that the route's keys are made of: send one",
            ),
            Self::Query(name, error) => write!(f, "the query parameter '{name}' {error}"),
            Self::HeaderTwice(name) => {
                write!(f, "the header '{name}' is given twice: send it once")
            }
            Self::HeaderText(name) => write!(
                f,
                "the header '{name}' has bytes that are not visible UTF-8 text: leave them out"
            ),
            Self::HeaderPath(name, what) => write!(f, "in the header '{name}', {what}"),
            Self::HeaderForm(name) => match name.as_str() {
                "destination" => f.write_str(
                    "the header 'destination' is not a path or an http URI without query and fragment: correct it",
                ),
                _ => write!(
                    f,
                    "the header '{name}' is not BUCKET/KEY, percent-encoded ('+' too), with no more than a versionId after it: correct it"
                ),
            },
            Self::ForeignDestination => f.write_str(
                "the header 'destination' names another host than the request: send this one",
            ),
            Self::Host(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for KeyError {}

impl From<KeyError> for Refusal {
    fn from(error: KeyError) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}

/// The one value of a header, `None` where it is absent.
pub(super) fn header<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a str>, KeyError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(KeyError::HeaderTwice(name.clone()));
    }
    let text = std::str::from_utf8(value.as_bytes())
        .ok()
        .map(|text| text.trim_matches([' ', '\t']))
        .filter(|text| !text.chars().any(char::is_control))
        .ok_or_else(|| KeyError::HeaderText(name.clone()))?;
    Ok(Some(text))
}

/// The path that a `Destination` (RFC 4918, section 10.3) names, as it stands there: still escaped,
/// with its leading slash. `None` where the request has no Destination.
///
/// A caller that routes by path can ask where the destination itself would be routed.
///
/// # Errors
///
/// A Destination given twice, of another form, or of a host that is not the request's.
pub fn destination_path<'a>(
    headers: &'a HeaderMap,
    host: Option<&str>,
) -> Result<Option<&'a str>, KeyError> {
    let name = HeaderName::from_static("destination");
    header(headers, &name)?
        .map(|value| destination(value, host, &name))
        .transpose()
}

/// The scheme of a `Destination` that is a URI; `None` where it is a path, or there is none.
#[must_use]
pub fn destination_scheme(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get("destination")?.to_str().ok()?;
    let (scheme, _) = value.split_once("://")?;
    let scheme = scheme.trim_start();
    (!scheme.contains('/')).then_some(scheme)
}

fn destination<'a>(
    value: &'a str,
    host: Option<&str>,
    name: &HeaderName,
) -> Result<&'a str, KeyError> {
    let malformed = || KeyError::HeaderForm(name.clone());
    // A query would be part of the name for a server that takes the whole value for a path.
    if value.contains(['?', '#']) {
        return Err(malformed());
    }
    if value.starts_with("//") {
        // A network-path reference (RFC 3986, section 4.2) to some, a path to others.
        return Err(malformed());
    }
    if value.starts_with('/') {
        return Ok(value);
    }
    let (scheme, rest) = value.split_once("://").ok_or_else(malformed)?;
    let default_port = if scheme.eq_ignore_ascii_case("http") {
        "80"
    } else if scheme.eq_ignore_ascii_case("https") {
        "443"
    } else {
        return Err(malformed());
    };
    let (authority, path) = rest
        .find('/')
        .and_then(|at| rest.split_at_checked(at))
        .ok_or_else(malformed)?;
    if same_authority(authority, host, default_port)? {
        Ok(path)
    } else {
        Err(KeyError::ForeignDestination)
    }
}

/// Whether an authority is the request's own. Where either has no port it has the scheme's: another
/// port is another server, with resources of its own.
fn same_authority(
    authority: &str,
    host: Option<&str>,
    default_port: &str,
) -> Result<bool, KeyError> {
    let Some(host) = host else {
        return Ok(false);
    };
    if normalize_host(authority).map_err(|_| KeyError::ForeignDestination)?
        != normalize_host(host).map_err(KeyError::Host)?
    {
        return Ok(false);
    }
    let port = |value| {
        let (_, port) = split_port(value).unwrap_or_default();
        let port = port.trim_start_matches('0');
        if port.is_empty() { default_port } else { port }.to_owned()
    };
    Ok(port(authority) == port(host))
}

/// The key text of a Destination.
pub(super) fn destination_text(
    headers: &HeaderMap,
    host: Option<&str>,
    rules: PathRules,
    case: Case,
) -> Result<Option<String>, KeyError> {
    destination_path(headers, host)?
        .map(|path| {
            let path = DecodedPath::read(path.as_bytes(), rules, case).map_err(|what| {
                KeyError::HeaderPath(HeaderName::from_static("destination"), what)
            })?;
            Ok(path.text(rules).to_owned())
        })
        .transpose()
}

/// The key text of an S3 copy source: `BUCKET/KEY`, with or without a leading slash,
/// percent-encoded, with or without `?versionId=`.
///
/// The first segment is a bucket, which never holds a colon: an ARN or a URI there would be
/// another name for an object that has one already. A raw `+` is a space to some stores.
pub(super) fn copy_source_text(
    headers: &HeaderMap,
    name: &HeaderName,
    rules: PathRules,
    case: Case,
) -> Result<Option<String>, KeyError> {
    let Some(value) = header(headers, name)? else {
        return Ok(None);
    };
    let malformed = || KeyError::HeaderForm(name.clone());
    let (source, version) = match value.split_once('?') {
        None => (value, None),
        Some((source, version)) => (source, Some(version)),
    };
    if source.is_empty() {
        return Ok(Some(String::new()));
    }
    if source.contains('+') {
        return Err(malformed());
    }
    if let Some(version) = version {
        let version = version.strip_prefix("versionId=").ok_or_else(malformed)?;
        if version.contains(['?', '&', ';', '/', '#']) {
            return Err(malformed());
        }
    }
    let bare = !source.starts_with('/');
    let source: Cow<'_, str> = if bare {
        Cow::Owned(format!("/{source}"))
    } else {
        Cow::Borrowed(source)
    };
    let path = DecodedPath::read(source.as_bytes(), rules, case)
        .map_err(|what| KeyError::HeaderPath(name.clone(), what))?;
    let text = path.text(rules);
    // The one leading slash can be escaped too, as by clients that escape the whole value.
    let text = if bare {
        text.strip_prefix('/').unwrap_or(text)
    } else {
        text
    };
    let bucket = text.split('/').next().unwrap_or_default();
    if (bucket.is_empty() && !text.is_empty()) || bucket.contains(':') {
        return Err(malformed());
    }
    Ok(Some(text.to_owned()))
}

/// The names of the headers that hold a path.
pub(super) fn holds_path(name: &HeaderName) -> bool {
    matches!(name.as_str(), "destination" | "x-amz-copy-source")
}

/// Whether a header must be read as the part of its own.
pub(super) fn is_host(name: &HeaderName) -> bool {
    name == header::HOST
}
