use http::{HeaderMap, HeaderValue};

use super::*;
use crate::Reason;
use crate::key::AmbiguousPath;
use crate::key::query::QueryError;

struct Request {
    captures: Vec<(&'static str, &'static str)>,
    host: Option<&'static str>,
    path: &'static str,
    query: Option<&'static str>,
    headers: HeaderMap,
}

fn request() -> Request {
    Request {
        captures: vec![("bucket", "b"), ("rest", "")],
        host: Some("Example.com:80"),
        path: "b/k",
        query: Some("x=1&id=7"),
        headers: HeaderMap::new(),
    }
}

fn with(name: &'static str, values: &[&str]) -> Request {
    let mut request = request();
    for value in values {
        request
            .headers
            .append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    request
}

impl Request {
    fn parts(&self) -> KeyParts<'_> {
        KeyParts {
            captures: &self.captures,
            host: self.host,
            path: self.path,
            query: self.query,
            headers: &self.headers,
        }
    }

    fn render(&self, template: &str) -> Result<String, KeyError> {
        self.render_by(template, PathRules::Strict, Case::Sensitive)
    }

    fn render_by(&self, template: &str, rules: PathRules, case: Case) -> Result<String, KeyError> {
        KeyTemplate::parse(template)
            .unwrap()
            .render(&self.parts(), rules, case)
    }
}

#[test]
fn a_key_is_made_of_its_parts() {
    let mut request = with("x-id", &[" a b "]);
    for (template, key) in [
        ("{bucket}", "b"),
        ("{host}", "example.com"),
        ("{path}", "b/k"),
        ("{query.id}", "7"),
        ("{header.X-Id}", "a b"),
        ("all", "all"),
        ("{bucket}-{query.x}/z", "b-1/z"),
    ] {
        assert_eq!(request.render(template).as_deref(), Ok(key), "{template}");
    }
    request.query = None;
    assert!(request.render("{query.id}").is_err());
}

#[test]
fn a_missing_or_empty_part_is_no_key() {
    let mut request = with("x-empty", &[""]);
    request.query = Some("id=&x");
    request.path = "";
    request.host = None;
    for part in [
        "nothing",
        "rest",
        "host",
        "path",
        "query.id",
        "query.x",
        "query.no",
        "header.no",
        "header.x-empty",
        "header.destination|path",
        "header.x-amz-copy-source|path",
    ] {
        let error = request.render(&format!("a{{{part}}}")).unwrap_err();
        assert_eq!(error, KeyError::Missing(part.into()));
        assert_eq!(error.reason(), Reason::NoKey);
    }
}

// K13
#[test]
fn a_query_part_is_read_in_one_way_or_refused() {
    let mut request = request();
    for (query, error) in [
        ("id=1&id=2", QueryError::Twice),
        ("%69d=1&id=2", QueryError::Twice),
        ("id=%zz", QueryError::MalformedEscape),
        ("id=%ff", QueryError::NotUtf8),
        ("id=a+b", QueryError::Plus),
    ] {
        request.query = Some(query);
        let found = request.render("{query.id}").unwrap_err();
        assert_eq!(found, KeyError::Query("id".into(), error), "{query}");
        assert_eq!(found.reason(), Reason::BadRequest);
    }
    request.query = Some("id=7&x=1");
    assert_eq!(request.render("{query.id}").as_deref(), Ok("7"));
}

// K16
#[test]
fn the_host_part_has_one_spelling() {
    let mut request = request();
    for host in [
        "example.com",
        "EXAMPLE.com",
        "example.com:8080",
        "example.com.",
    ] {
        request.host = Some(host);
        assert_eq!(
            request.render("{host}").as_deref(),
            Ok("example.com"),
            "{host}"
        );
    }
    request.host = Some("u@example.com");
    assert_eq!(
        request.render("{host}").unwrap_err().reason(),
        Reason::BadRequest
    );
}

#[test]
fn a_header_part_is_one_visible_text() {
    let twice = with("x-id", &["1", "1"])
        .render("{header.x-id}")
        .unwrap_err();
    assert_eq!(twice.reason(), Reason::BadRequest);
    assert!(matches!(twice, KeyError::HeaderTwice(_)));
    let mut request = request();
    for value in [&b"a\tb"[..], b"\xff", b"\xc0\xaf", b"\xc2\x85"] {
        let value = HeaderValue::from_bytes(value).unwrap();
        request.headers.insert("x-id", value);
        let error = request.render("{header.x-id}").unwrap_err();
        assert!(matches!(error, KeyError::HeaderText(_)), "{error:?}");
    }
    assert_eq!(
        with("x-id", &["é"]).render("{header.x-id}").as_deref(),
        Ok("é")
    );
}

// K22
#[test]
fn a_destination_is_read_as_the_path_is() {
    for value in [
        "/dav/a%20b",
        "http://example.com/dav/a b".replace(' ', "%20").as_str(),
        "HTTPS://EXAMPLE.COM:443/dav/%61%20b/",
        "http://example.com.:80/dav/a%20b",
        "https://example.com/dav/a%20b",
    ] {
        let mut request = with("destination", &[value]);
        request.host = Some("Example.COM.");
        assert_eq!(
            request.render("{header.destination|path}").as_deref(),
            Ok("dav/a b"),
            "{value}"
        );
    }
    for value in [
        "http://other.com/dav/a",
        "http://u@example.com/a",
        "http://example.com,other/a",
        "http://example.com@other/a",
        "http:///a",
        "http://example.com.evil/a",
    ] {
        let error = with("destination", &[value])
            .render("{header.destination|path}")
            .unwrap_err();
        assert_eq!(error, KeyError::ForeignDestination, "{value}");
        assert_eq!(error.reason(), Reason::BadRequest);
    }
    for value in [
        "dav/a",
        "ftp://example.com/a",
        "//example.com/a",
        "http://example.com",
        "/a?b",
        "/a#b",
        "http:/a",
        "http://example.com?/a",
        "*",
    ] {
        let error = with("destination", &[value])
            .render("{header.destination|path}")
            .unwrap_err();
        assert!(
            matches!(error, KeyError::HeaderForm(_)),
            "{value} {error:?}"
        );
    }
    for (value, what) in [
        ("/a/../b", AmbiguousPath::DotSegment),
        ("http://example.com/a%2Fb", AmbiguousPath::EncodedSlash),
        ("http://example.com//a", AmbiguousPath::EmptySegment),
        ("/a b", AmbiguousPath::RawByte(b' ')),
        ("/%zz", AmbiguousPath::MalformedEscape),
    ] {
        let error = with("destination", &[value])
            .render("{header.destination|path}")
            .unwrap_err();
        assert_eq!(error.reason(), Reason::AmbiguousPath);
        assert!(
            matches!(error, KeyError::HeaderPath(_, found) if found == what),
            "{value}"
        );
    }
    let twice = with("destination", &["/a", "/b"]).render("{header.destination|path}");
    assert!(matches!(twice, Err(KeyError::HeaderTwice(_))));
    let mut request = with("destination", &["http://example.com:9/a"]);
    request.host = Some("example.com:9");
    assert!(request.render("{header.destination|path}").is_ok());
    for other in ["example.com:8", "example.com", "example.com:80"] {
        request.host = Some(other);
        assert_eq!(
            request.render("{header.destination|path}"),
            Err(KeyError::ForeignDestination),
            "{other}"
        );
    }
    request.host = None;
    assert_eq!(
        request.render("{header.destination|path}"),
        Err(KeyError::ForeignDestination)
    );
}

// K23
#[test]
fn a_copy_source_is_read_as_the_path_is() {
    let template = "{header.x-amz-copy-source|path}";
    for value in [
        "/b/k",
        "b/k",
        "b/%6b",
        "/b/k?versionId=x.y",
        "b/k?versionId=",
        "b/k/",
    ] {
        let request = with("x-amz-copy-source", &[value]);
        assert_eq!(request.render(template).as_deref(), Ok("b/k"), "{value}");
    }
    for value in [
        "b/k?x=1",
        "b/k?versionId=1&x",
        "b/k?y?versionId=1",
        "b/a+b",
        "arn:aws:s3:eu:1:accesspoint/a/object/k",
        "b/k?",
        "/arn%3Aaws/b",
    ] {
        let error = with("x-amz-copy-source", &[value])
            .render(template)
            .unwrap_err();
        assert!(
            matches!(error, KeyError::HeaderForm(_)),
            "{value} {error:?}"
        );
    }
    for value in ["b/../c", "b//k", "http://h/b/k", "b%2Fk", "b/k;x"] {
        let error = with("x-amz-copy-source", &[value])
            .render(template)
            .unwrap_err();
        assert_eq!(error.reason(), Reason::AmbiguousPath, "{value}");
    }
    let opaque = |value| {
        with("x-amz-copy-source", &[value]).render_by(template, PathRules::Opaque, Case::Sensitive)
    };
    for value in ["b%2fk", "b%2Fk", "%2Fb/k", "/b/k"] {
        assert_eq!(opaque(value).as_deref(), Ok("b/k"), "{value}");
    }
    assert_eq!(opaque("b//k/").as_deref(), Ok("b//k/"));
    for value in ["//b/k", "http://h/b/k", "/%2Fb/k"] {
        assert!(opaque(value).is_err(), "{value}");
    }
}

// K26
#[test]
fn a_key_is_one_to_1024_bytes() {
    let long: &'static str = "k".repeat(1025).leak();
    let mut request = request();
    request.path = &long[1..];
    assert_eq!(request.render("{path}").map(|key| key.len()), Ok(1024));
    assert_eq!(request.render("{path}x"), Err(KeyError::TooLong));
    request.path = long;
    let error = request.render("{path}").unwrap_err();
    assert_eq!((error.reason(), error), (Reason::NoKey, KeyError::TooLong));
    request.path = "k".repeat(100_000).leak();
    assert_eq!(request.render("{path}"), Err(KeyError::TooLong));
    request.path = "\u{ad}";
    let folded = request.render_by("{path}", PathRules::Strict, Case::Insensitive);
    assert_eq!(folded.unwrap_err().reason(), Reason::NoKey);
}

// K11
#[test]
fn an_insensitive_key_is_folded_whole() {
    let mut request = with("x-id", &["Ä"]);
    request.path = "A/ﬁ";
    let render = |template| request.render_by(template, PathRules::Strict, Case::Insensitive);
    assert_eq!(render("{path}").as_deref(), Ok("a/fi"));
    assert_eq!(render("X{header.x-id}").as_deref(), Ok("xä"));
    assert_eq!(request.render("{path}").as_deref(), Ok("A/ﬁ"));
}

#[test]
fn a_template_says_what_it_uses() {
    let template =
        KeyTemplate::parse("{host}{path}{bucket}{query.id}{header.X-A}{header.destination|path}")
            .unwrap();
    let uses = template.uses();
    assert_eq!(uses.captures, ["bucket"]);
    assert_eq!(uses.query, ["id"]);
    assert_eq!(uses.headers, ["x-a", "destination"]);
    assert!(uses.host && uses.path);
}

#[test]
fn what_is_no_template_is_an_error() {
    use TemplateError::*;
    for (text, error) in [
        ("", Empty),
        ("{", Braces),
        ("}", Braces),
        ("a{b", Braces),
        ("{a}}", Braces),
        ("{{a}}", Braces),
        ("{}", Part("".into())),
        ("{a.b}", Part("a.b".into())),
        ("{*a}", Part("*a".into())),
        ("{query.}", Part("query.".into())),
        ("{query.a b}", Part("query.a b".into())),
        ("{header.}", HeaderName("".into())),
        ("{header.a b}", HeaderName("a b".into())),
        ("{header.Host}", HostHeader),
        ("{header.x|path}", Form("header.x|path".into())),
        (
            "{header.destination|x}",
            Form("header.destination|x".into()),
        ),
        ("a\n", Control),
    ] {
        assert_eq!(KeyTemplate::parse(text), Err(error), "{text:?}");
    }
}
