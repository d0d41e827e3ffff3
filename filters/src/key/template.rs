//! Key templates: how `fence.key` makes a key of the parts of a request.
//!
//! | part | is |
//! | --- | --- |
//! | `{name}` | what the route's path or host captured under that name |
//! | `{host}` | the host, in lower case, without port and trailing dot |
//! | `{path}` | the whole decoded path, without its leading slash |
//! | `{query.NAME}` | a query parameter, decoded once |
//! | `{header.NAME}` | a header's value |
//! | `{header.destination\|path}` | the path that a WebDAV Destination names, read as `{path}` is |
//! | `{header.x-amz-copy-source\|path}` | the bucket and key of an S3 copy source |
//!
//! `{host}` and `{path}` are always these, also where a route has a capture of that name. A key is
//! a function of the canonical text of its parts, so one resource never has two. Two resources can
//! share one where a template lets them (`{a}-{b}` of `x-y`, `z` and of `x`, `y-z`), which is safe.

use std::borrow::Cow;
use std::fmt;

use http::header::HeaderName;

use super::fold::fold;
use super::host::normalize_host;
use super::parts::{
    KeyError, KeyParts, copy_source_text, destination_text, header, holds_path, is_host,
};
use super::path::{AmbiguousPath, Case, DecodedPath, PathRules};
use super::query;
use crate::Key;

/// Why a text is no key template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplateError {
    /// The template is empty.
    Empty,
    /// A `{` without a `}`, or the other way round.
    Braces,
    /// `{}`, or a part that is not of the form the module documents.
    Part(Box<str>),
    /// A header name that is none.
    HeaderName(Box<str>),
    /// `|path` on anything but Destination and x-amz-copy-source, or another form than `path`.
    Form(Box<str>),
    /// `{header.host}`, which would have many spellings.
    HostHeader,
    /// A control character.
    Control,
    /// A rule with `when: present` whose template has no header and no query part.
    NothingOptional,
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the key template is empty"),
            Self::Braces => f.write_str("the braces of the key template don't pair"),
            Self::Part(part) => write!(
                f,
                "'{{{part}}}' is not a capture, {{host}}, {{path}}, {{query.NAME}} or {{header.NAME}}"
            ),
            Self::HeaderName(name) => write!(f, "'{name}' is not a header name"),
            Self::Form(part) => write!(
                f,
                "'{{{part}}}': only {{header.destination|path}} and {{header.x-amz-copy-source|path}} are read as paths"
            ),
            Self::HostHeader => f.write_str("write {host} instead of {header.host}"),
            Self::Control => f.write_str("the key template has a control character"),
            Self::NothingOptional => {
                f.write_str("'when: present' needs a {header.NAME} or {query.NAME} in the template")
            }
        }
    }
}

impl std::error::Error for TemplateError {}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Capture(Box<str>),
    Host,
    Path,
    Query(Box<str>),
    Header(HeaderName),
    HeaderPath(HeaderName),
}

/// What a template is made of, for the checks of a config and the guards of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uses<'a> {
    /// The captures that the route must have.
    pub captures: Vec<&'a str>,
    /// The headers.
    pub headers: Vec<&'a HeaderName>,
    /// The query parameters.
    pub query: Vec<&'a str>,
    /// Whether the host is a part.
    pub host: bool,
    /// Whether the whole path is a part.
    pub path: bool,
}

/// A parsed key template.
///
/// ```
/// use fencegate_filters::key::{Case, KeyParts, KeyTemplate, PathRules};
///
/// let template = KeyTemplate::parse("{bucket}/{query.id}")?;
/// assert_eq!(template.uses().captures, ["bucket"]);
///
/// let headers = http::HeaderMap::new();
/// let parts = KeyParts {
///     captures: &[("bucket", "b")],
///     host: None,
///     path: "b",
///     query: Some("x=1&id=7"),
///     headers: &headers,
/// };
/// assert_eq!(template.render(&parts, PathRules::Strict, Case::Sensitive)?, "b/7");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyTemplate {
    parts: Vec<Part>,
}

impl KeyTemplate {
    /// Parses a template.
    ///
    /// # Errors
    ///
    /// Whatever the module's table does not have.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.is_empty() {
            return Err(TemplateError::Empty);
        }
        if text.chars().any(char::is_control) {
            return Err(TemplateError::Control);
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((literal, tail)) = rest.split_once('{') {
            push_text(&mut parts, literal)?;
            let (part, tail) = tail.split_once('}').ok_or(TemplateError::Braces)?;
            if part.contains('{') {
                return Err(TemplateError::Braces);
            }
            parts.push(parse_part(part)?);
            rest = tail;
        }
        push_text(&mut parts, rest)?;
        Ok(Self { parts })
    }

    /// What the template is made of.
    #[must_use]
    pub fn uses(&self) -> Uses<'_> {
        let mut uses = Uses::default();
        for part in &self.parts {
            match part {
                Part::Text(_) => {}
                Part::Capture(name) => uses.captures.push(name),
                Part::Host => uses.host = true,
                Part::Path => uses.path = true,
                Part::Query(name) => uses.query.push(name),
                Part::Header(name) | Part::HeaderPath(name) => uses.headers.push(name),
            }
        }
        uses
    }

    /// Makes the key, without its namespace.
    ///
    /// # Errors
    ///
    /// A part that is missing, empty, given twice or can't be read in one way; a key above
    /// [`Key::MAX_BYTES`].
    pub fn render(
        &self,
        parts: &KeyParts<'_>,
        rules: PathRules,
        case: Case,
    ) -> Result<String, KeyError> {
        let mut key = String::with_capacity(64);
        self.render_into(&mut key, parts, rules, case)?;
        Ok(key)
    }

    /// The same at the end of a text that is at hand.
    ///
    /// # Errors
    ///
    /// As for [`KeyTemplate::render`]; what is in the text then is of no use.
    pub fn render_into(
        &self,
        text: &mut String,
        parts: &KeyParts<'_>,
        rules: PathRules,
        case: Case,
    ) -> Result<(), KeyError> {
        let start = text.len();
        for part in &self.parts {
            let value = part.value(parts, rules, case)?;
            match value.as_deref() {
                None | Some("") => return Err(part.missing()),
                Some(value) => {
                    // Folding may shorten a key, but what is far too long is not worth the work.
                    if text.len() - start + value.len() > 16 * Key::MAX_BYTES {
                        return Err(KeyError::TooLong);
                    }
                    text.push_str(value);
                }
            }
        }
        let key = text.get(start..).unwrap_or_default();
        if case == Case::Insensitive
            && let Cow::Owned(folded) = fold(key)
        {
            text.truncate(start);
            text.push_str(&folded);
        }
        match text.len() - start {
            0 => Err(KeyError::None),
            1..=Key::MAX_BYTES => Ok(()),
            _ => Err(KeyError::TooLong),
        }
    }

    /// The key that is meant by somebody who names it without a request: the one that requests
    /// for it have.
    ///
    /// A name of nothing but parts of a path is read as a path is, so that what no request can have
    /// is no name either; in any other nobody can tell which part is which.
    pub(super) fn named(
        &self,
        name: &str,
        rules: PathRules,
        case: Case,
    ) -> Result<String, AmbiguousPath> {
        let name = match self.reads_as_path() {
            true => read_name(name, rules, case)?,
            false => name.to_owned(),
        };
        Ok(match case {
            Case::Sensitive => name,
            Case::Insensitive => fold(&name).into_owned(),
        })
    }

    /// Whether what the template says of its own changes nothing in how a path is read.
    fn reads_as_path(&self) -> bool {
        let mut skeleton = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => skeleton.push_str(text),
                Part::Capture(_) | Part::Host | Part::Path | Part::HeaderPath(_) => {
                    skeleton.push('x');
                }
                Part::Query(_) | Part::Header(_) => return false,
            }
        }
        read_name(&skeleton, PathRules::Strict, Case::Sensitive) == Ok(skeleton)
    }

    /// Whether the template has header or query parts, and the request has none of them.
    pub(super) fn is_absent(&self, parts: &KeyParts<'_>, case: Case) -> bool {
        !self.parts.iter().any(|part| match part {
            Part::Header(name) | Part::HeaderPath(name) => parts.headers.contains_key(name),
            // What is given twice, or in an unclear way, is given.
            Part::Query(name) => parts
                .query
                .is_some_and(|query| query::has(query, name, case) != Ok(false)),
            Part::Text(_) | Part::Capture(_) | Part::Host | Part::Path => false,
        })
    }
}

impl Part {
    fn value<'a>(
        &'a self,
        parts: &KeyParts<'a>,
        rules: PathRules,
        case: Case,
    ) -> Result<Option<Cow<'a, str>>, KeyError> {
        Ok(match self {
            Self::Text(text) => Some(Cow::Borrowed(text)),
            Self::Capture(name) => parts
                .captures
                .iter()
                .find(|(captured, _)| *captured == &**name)
                .map(|(_, value)| Cow::Borrowed(*value)),
            Self::Host => parts
                .host
                .map(normalize_host)
                .transpose()
                .map_err(KeyError::Host)?,
            Self::Path => Some(Cow::Borrowed(parts.path)),
            Self::Query(name) => match parts.query {
                None => None,
                Some(query) => query::value(query, name, case)
                    .map_err(|error| KeyError::Query(name.clone(), error))?,
            },
            Self::Header(name) => header(parts.headers, name)?.map(Cow::Borrowed),
            Self::HeaderPath(name) => if name.as_str() == "destination" {
                destination_text(parts.headers, parts.host, rules, case)?
            } else {
                copy_source_text(parts.headers, name, rules, case)?
            }
            .map(Cow::Owned),
        })
    }

    fn missing(&self) -> KeyError {
        KeyError::Missing(match self {
            Self::Text(name) | Self::Capture(name) => name.clone(),
            Self::Host => "host".into(),
            Self::Path => "path".into(),
            Self::Query(name) => format!("query.{name}").into(),
            Self::Header(name) => format!("header.{name}").into(),
            Self::HeaderPath(name) => format!("header.{name}|path").into(),
        })
    }
}

/// Reads a decoded text as the path that it would be.
fn read_name(name: &str, rules: PathRules, case: Case) -> Result<String, AmbiguousPath> {
    let mut path = String::with_capacity(name.len() + 1);
    for byte in std::iter::once(b'/').chain(name.bytes()) {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'~' => path.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => path.push(char::from(byte)),
            _ => path.push_str(&format!("%{byte:02X}")),
        }
    }
    let read = DecodedPath::read(path.as_bytes(), rules, case)?;
    Ok(read.text(rules).to_owned())
}

fn push_text(parts: &mut Vec<Part>, text: &str) -> Result<(), TemplateError> {
    if text.contains('}') {
        return Err(TemplateError::Braces);
    }
    if !text.is_empty() {
        parts.push(Part::Text(text.into()));
    }
    Ok(())
}

fn parse_part(part: &str) -> Result<Part, TemplateError> {
    let unknown = || TemplateError::Part(part.into());
    if let Some(name) = part.strip_prefix("header.") {
        let (name, form) = match name.split_once('|') {
            None => (name, None),
            Some((name, form)) => (name, Some(form)),
        };
        let header = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| TemplateError::HeaderName(name.into()))?;
        return match form {
            None if is_host(&header) => Err(TemplateError::HostHeader),
            None => Ok(Part::Header(header)),
            Some("path") if holds_path(&header) => Ok(Part::HeaderPath(header)),
            Some(_) => Err(TemplateError::Form(part.into())),
        };
    }
    if let Some(name) = part.strip_prefix("query.") {
        return if is_query_name(name) {
            Ok(Part::Query(name.into()))
        } else {
            Err(unknown())
        };
    }
    match part {
        "host" => Ok(Part::Host),
        "path" => Ok(Part::Path),
        name if is_capture_name(name) => Ok(Part::Capture(name.into())),
        _ => Err(unknown()),
    }
}

/// A name that has one spelling in every query: no characters that a query gives a meaning to.
pub(crate) fn is_query_name(name: &str) -> bool {
    !name.is_empty()
        && !name
            .chars()
            .any(|c| c.is_control() || c.is_whitespace() || "&=;+%#|{}".contains(c))
}

/// A letter or an underscore, then letters, digits, underscores and hyphens.
pub(crate) fn is_capture_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
