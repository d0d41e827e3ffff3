//! The keys of a request, by the rules of its route.

use std::cell::Cell;

use http::header::HeaderName;
use smallvec::SmallVec;

use super::parts::{KeyError, KeyParts};
use super::path::{AmbiguousPath, Case, PathRules};
use super::template::{KeyTemplate, TemplateError};
use crate::Key;

thread_local! {
    /// Where the text of a key is put together. It never grows far above the longest key.
    static SCRATCH: Cell<String> = const { Cell::new(String::new()) };
}

/// What a request does to the resource that a key names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Access {
    /// It may change it: the token raises the mark.
    #[default]
    Write,
    /// It only reads it, as a copy reads its source: drains, raises nothing.
    Read,
}

/// How one key of a request is made (`fence.keys`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRule {
    /// What the key is made of.
    pub template: KeyTemplate,
    /// Skip the rule where the request has none of the template's header and query parts. Where it
    /// has some of them, the others are missing.
    pub when_present: bool,
    /// What the request does to the resource.
    pub access: Access,
    /// Where the token of this key stands; `None` for the route's own header.
    pub token_header: Option<HeaderName>,
}

impl KeyRule {
    /// A rule for every request: write access, the route's own token header.
    #[must_use]
    pub const fn new(template: KeyTemplate) -> Self {
        Self {
            template,
            when_present: false,
            access: Access::Write,
            token_header: None,
        }
    }
}

/// One key of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DerivedKey<'a> {
    /// The key.
    pub key: Key,
    /// What the request does to the resource.
    pub access: Access,
    /// Where the token of this key stands; `None` for the route's own header.
    pub token_header: Option<&'a HeaderName>,
}

/// The rules by which a route makes keys.
///
/// ```
/// use fencegate_filters::key::{Case, KeyParts, KeyRule, KeyRules, KeyTemplate, PathRules};
///
/// let rules = KeyRules::new(
///     "objects",
///     vec![KeyRule::new(KeyTemplate::parse("{id}")?)],
///     PathRules::Strict,
///     Case::Sensitive,
/// )?;
/// let headers = http::HeaderMap::new();
/// let keys = rules.derive(&KeyParts {
///     captures: &[("id", "42")],
///     host: None,
///     path: "objects/42",
///     query: None,
///     headers: &headers,
/// })?;
/// assert_eq!(keys[0].key.as_str(), "objects/42");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRules {
    namespace: Box<str>,
    keys: Vec<KeyRule>,
    path: PathRules,
    case: Case,
    /// Whether any key is made of a Destination.
    destination: bool,
}

impl KeyRules {
    /// The rules of a route. The caller has checked that the namespace holds no slash.
    ///
    /// # Errors
    ///
    /// A rule with `when_present` that has no part which can be absent.
    pub fn new(
        namespace: &str,
        keys: Vec<KeyRule>,
        path: PathRules,
        case: Case,
    ) -> Result<Self, TemplateError> {
        for rule in keys.iter().filter(|rule| rule.when_present) {
            let uses = rule.template.uses();
            if uses.headers.is_empty() && uses.query.is_empty() {
                return Err(TemplateError::NothingOptional);
            }
        }
        let names = |rule: &KeyRule| {
            let headers = rule.template.uses().headers;
            headers.iter().any(|name| name.as_str() == "destination")
        };
        Ok(Self {
            namespace: namespace.into(),
            destination: keys.iter().any(names),
            keys,
            path,
            case,
        })
    }

    /// Whether any key is made of a WebDAV Destination.
    pub(crate) const fn uses_destination(&self) -> bool {
        self.destination
    }

    /// One key for every request, made by this template; strict and case-sensitive.
    ///
    /// # Errors
    ///
    /// A text that is no template.
    pub fn single(namespace: &str, template: &str) -> Result<Self, TemplateError> {
        let rule = KeyRule::new(KeyTemplate::parse(template)?);
        Self::new(namespace, vec![rule], PathRules::Strict, Case::Sensitive)
    }

    /// The namespace of all these keys.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The rules, in the order of the config.
    #[must_use]
    pub fn keys(&self) -> &[KeyRule] {
        &self.keys
    }

    /// The headers that keys are made of, which no hop may be asked to delete.
    pub fn headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.keys
            .iter()
            .flat_map(|rule| rule.template.uses().headers)
    }

    /// The keys of a request, in the order of the rules. Two rules that give the same key give it
    /// twice: each has its own access and token header.
    ///
    /// # Errors
    ///
    /// Whatever keeps one of them from being made, and that there are none.
    pub fn derive(&self, parts: &KeyParts<'_>) -> Result<SmallVec<[DerivedKey<'_>; 2]>, KeyError> {
        // The key's own allocation is the only one of an ordinary request.
        let mut text = SCRATCH.take();
        let keys = self.derive_by(&mut text, parts);
        SCRATCH.set(text);
        keys
    }

    /// The keys that can be meant by a name that comes without a request, from the lock service or an
    /// administrator, one for each rule: folded and read as those of requests are.
    pub fn named(&self, name: &str) -> impl Iterator<Item = Result<Key, AmbiguousPath>> {
        self.keys.iter().map(move |rule| {
            let name = rule.template.named(name, self.path, self.case)?;
            Ok(Key::from_text(&format!("{}/{name}", self.namespace)))
        })
    }

    fn derive_by(
        &self,
        text: &mut String,
        parts: &KeyParts<'_>,
    ) -> Result<SmallVec<[DerivedKey<'_>; 2]>, KeyError> {
        let mut keys = SmallVec::new();
        for rule in &self.keys {
            if rule.when_present && rule.template.is_absent(parts, self.case) {
                continue;
            }
            text.clear();
            text.push_str(&self.namespace);
            text.push('/');
            rule.template
                .render_into(text, parts, self.path, self.case)?;
            keys.push(DerivedKey {
                key: Key::from_text(text),
                access: rule.access,
                token_header: rule.token_header.as_ref(),
            });
        }
        if keys.is_empty() {
            return Err(KeyError::None);
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;

    fn rule(template: &str) -> KeyRule {
        KeyRule::new(KeyTemplate::parse(template).unwrap())
    }

    fn present(template: &str, access: Access) -> KeyRule {
        KeyRule {
            when_present: true,
            access,
            token_header: Some(HeaderName::from_static("fencing-token-destination")),
            ..rule(template)
        }
    }

    fn rules(keys: Vec<KeyRule>) -> KeyRules {
        KeyRules::new("ns", keys, PathRules::Strict, Case::Sensitive).unwrap()
    }

    fn derive(
        rules: &KeyRules,
        headers: &[(&'static str, &'static str)],
    ) -> Result<Vec<String>, KeyError> {
        let headers: HeaderMap = headers
            .iter()
            .map(|&(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect();
        let parts = KeyParts {
            captures: &[],
            host: Some("h"),
            path: "dav/a",
            query: None,
            headers: &headers,
        };
        let keys = rules.derive(&parts)?;
        Ok(keys.iter().map(|key| key.key.to_string()).collect())
    }

    fn named(template: &str, path: PathRules, case: Case, name: &str) -> Result<String, String> {
        let rules = KeyRules::new("ns", vec![rule(template)], path, case).unwrap();
        let key = rules.named(name).next().unwrap();
        key.map(|key| key.as_str().to_owned())
            .map_err(|why| format!("{why:?}"))
    }

    #[test]
    fn a_name_without_a_request_is_read_as_a_request_would_be() {
        let strict = |name| {
            named(
                "{bucket}/{object}",
                PathRules::Strict,
                Case::Sensitive,
                name,
            )
        };
        assert_eq!(strict("a/B %"), Ok("ns/a/B %".into()));
        assert_eq!(strict("a/b/"), Ok("ns/a/b".into()));
        for (name, why) in [
            ("a/..", "DotSegment"),
            (".", "DotSegment"),
            ("a//b", "EmptySegment"),
            ("/", "EmptySegment"),
            ("a;b", "Parameters"),
            ("a\\b", "Backslash"),
            ("a\0", "Control"),
            ("a\u{85}", "Control"),
        ] {
            assert_eq!(strict(name), Err(why.into()), "{name:?}");
        }
        let opaque = |name| named("{path}", PathRules::Opaque, Case::Sensitive, name);
        for name in ["a/", "a//b", "a;b", "a\\b", "%2F"] {
            assert_eq!(opaque(name), Ok(format!("ns/{name}")));
        }
        assert_eq!(opaque("a/../b"), Err("DotSegment".into()));
        let folded = |name| named("{path}", PathRules::Strict, Case::Insensitive, name);
        assert_eq!(folded("Straße/A"), Ok("ns/strasse/a".into()));
    }

    #[test]
    fn a_name_is_as_it_is_where_the_template_is_no_path() {
        for template in [
            "{header.x}",
            "{path}?{query.id}",
            "{a};{b}",
            "{a}/",
            "{a}//{b}",
        ] {
            let as_it_is = named(template, PathRules::Strict, Case::Sensitive, "a/../;/");
            assert_eq!(as_it_is, Ok("ns/a/../;/".into()), "{template}");
        }
        let folded = named("{header.x}", PathRules::Strict, Case::Insensitive, "A/");
        assert_eq!(folded, Ok("ns/a/".into()));
        let destination = named(
            "{header.destination|path}",
            PathRules::Strict,
            Case::Sensitive,
            "a/",
        );
        assert_eq!(destination, Ok("ns/a".into()));
    }

    // K22
    #[test]
    fn a_move_has_the_keys_of_both_ends() {
        let rules = rules(vec![
            rule("{path}"),
            present("{header.destination|path}", Access::Write),
        ]);
        assert_eq!(derive(&rules, &[]).unwrap(), ["ns/dav/a"]);
        let moved = derive(&rules, &[("destination", "http://h/dav/%62")]);
        assert_eq!(moved.unwrap(), ["ns/dav/a", "ns/dav/b"]);
        assert_eq!(
            derive(&rules, &[("destination", "http://other/dav/b")]),
            Err(KeyError::ForeignDestination)
        );
        assert!(derive(&rules, &[("destination", "")]).is_err());
        assert_eq!(rules.headers().collect::<Vec<_>>(), ["destination"]);
    }

    // K23
    #[test]
    fn a_copy_reads_its_source() {
        let rules = rules(vec![
            rule("{path}"),
            present("{header.x-amz-copy-source|path}", Access::Read),
        ]);
        let headers = HeaderMap::from_iter([(
            HeaderName::from_static("x-amz-copy-source"),
            HeaderValue::from_static("dav/a?versionId=1"),
        )]);
        let parts = KeyParts {
            captures: &[],
            host: None,
            path: "dav/a",
            query: None,
            headers: &headers,
        };
        let keys = rules.derive(&parts).unwrap();
        // The same key twice: each has its own access and token header.
        assert_eq!(keys[0].key, keys[1].key);
        assert_eq!(
            (keys[0].access, keys[1].access),
            (Access::Write, Access::Read)
        );
        assert_eq!(keys[0].token_header, None);
        assert!(keys[1].token_header.is_some());
    }

    #[test]
    fn a_rule_is_skipped_only_where_all_its_optional_parts_are_absent() {
        let rules = rules(vec![
            rule("{path}"),
            present("{header.a}/{header.b}", Access::Write),
        ]);
        assert_eq!(derive(&rules, &[]).unwrap().len(), 1);
        assert_eq!(derive(&rules, &[("a", "1"), ("b", "2")]).unwrap().len(), 2);
        assert_eq!(
            derive(&rules, &[("a", "1")]),
            Err(KeyError::Missing("header.b".into()))
        );
    }

    #[test]
    fn a_request_without_any_key_has_no_key() {
        let only = rules(vec![present("{header.a}", Access::Write)]);
        assert_eq!(derive(&only, &[]), Err(KeyError::None));
        assert_eq!(derive(&rules(vec![]), &[]), Err(KeyError::None));
    }

    #[test]
    fn an_optional_rule_needs_an_optional_part() {
        let error = KeyRules::new(
            "ns",
            vec![present("{path}", Access::Write)],
            PathRules::Strict,
            Case::Sensitive,
        );
        assert_eq!(error, Err(TemplateError::NothingOptional));
    }
}
