//! Paths, hosts, queries and key templates: one resource has one key, and nothing is read that
//! another server would read otherwise. The first byte chooses, the rest is what is read.

#![no_main]

use std::future::{Future, Ready, ready};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use fencegate_filters::key::{
    Case, DecodedPath, KeyParts, KeyRules, KeyTemplate, PathRules, normalize_host, query,
};
use fencegate_filters::policy::Policy;
use fencegate_filters::route::{RouteLayer, RouteMatcher};
use fencegate_filters::{Refusal, passage::Passage};
use http::{HeaderMap, HeaderValue, Request, Response};
use libfuzzer_sys::fuzz_target;
use tower_layer::Layer;
use tower_service::Service;

const RULES: [PathRules; 2] = [PathRules::Strict, PathRules::Opaque];

fn read(path: &[u8], rules: PathRules, case: Case) -> Option<String> {
    let path = DecodedPath::read(path, rules, case).ok()?;
    Some(path.text(rules).to_owned())
}

/// Decodes once, by the book (RFC 3986, section 2.1).
fn naive(path: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::new();
    let mut rest = path;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            decoded.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            decoded.push(byte);
        }
    }
    Some(decoded)
}

/// The same path, with what can be escaped escaped wherever `how` says so.
fn alias(path: &[u8], how: &[u8]) -> Vec<u8> {
    let mut other = Vec::new();
    let mut rest = path;
    let mut hows = how.iter().cycle();
    while let Some((&byte, tail)) = rest.split_first() {
        let how = hows.next().copied().unwrap_or(0);
        rest = tail;
        if byte == b'%' && tail.len() >= 2 {
            let digits: Vec<u8> = match how % 3 {
                0 => tail[..2].to_ascii_lowercase(),
                1 => tail[..2].to_ascii_uppercase(),
                _ => tail[..2].to_vec(),
            };
            let value = std::str::from_utf8(&digits).ok();
            let value = value.and_then(|digits| u8::from_str_radix(digits, 16).ok());
            match value {
                // An unreserved character needs no escape.
                Some(plain) if plain.is_ascii_alphanumeric() && how & 8 != 0 => other.push(plain),
                _ => {
                    other.push(b'%');
                    other.extend(digits);
                }
            }
            rest = &tail[2..];
        } else if byte != b'/' && byte != b'%' && how & 4 != 0 {
            other.extend(format!("%{byte:02x}").into_bytes());
        } else {
            other.push(byte);
        }
    }
    other
}

fn path(data: &[u8]) {
    let at = data
        .iter()
        .position(|&byte| byte == b'\n')
        .unwrap_or(data.len());
    let (path, how) = data.split_at(at);
    for rules in RULES {
        for case in [Case::Sensitive, Case::Insensitive] {
            let text = read(path, rules, case);
            // A raw character that must be escaped is refused, and is legal once it is.
            let other = read(&alias(path, how), rules, case);
            if let (Some(one), Some(other)) = (&text, &other) {
                assert_eq!(one, other, "{}", path.escape_ascii());
            }
            if text.is_some() {
                assert!(
                    other.is_some(),
                    "an alias is refused: {}",
                    path.escape_ascii()
                );
            }
        }
        let Some(text) = read(path, rules, Case::Sensitive) else {
            continue;
        };
        // Decoded once, and only once.
        let decoded = naive(path).expect("what is read can be decoded");
        let decoded = String::from_utf8(decoded).expect("it is UTF-8");
        let decoded = decoded.strip_prefix('/').expect("it is absolute");
        match rules {
            PathRules::Opaque => assert_eq!(text, decoded),
            PathRules::Strict => assert_eq!(text, decoded.strip_suffix('/').unwrap_or(decoded)),
        }
        assert!(!text.chars().any(char::is_control));
        assert!(
            !text
                .split(['/', '\\'])
                .any(|part| part == "." || part == "..")
        );
        if rules == PathRules::Strict {
            assert!(
                !text.contains(['\\', ';']) && !text.contains("//"),
                "{text}"
            );
            let slashes = |bytes: &[u8]| bytes.iter().filter(|&&byte| byte == b'/').count();
            assert_eq!(
                slashes(path),
                slashes(decoded.as_bytes()) + 1,
                "an escaped slash"
            );
            let opaque = read(path, PathRules::Opaque, Case::Sensitive).expect("laxer");
            assert_eq!(opaque.strip_suffix('/').unwrap_or(&opaque), text);
        }
        // What is read says the same once it is escaped as a whole.
        let whole: String = text
            .bytes()
            .map(|byte| match byte {
                b'/' => "/".to_owned(),
                byte => format!("%{byte:02X}"),
            })
            .collect();
        assert_eq!(
            read(format!("/{whole}").as_bytes(), rules, Case::Sensitive),
            Some(text)
        );
    }
    routed(path);
}

/// The service behind the routes: it keeps the target and the keys as they reach it.
#[derive(Clone, Default)]
struct Behind(Arc<Mutex<Option<(String, Vec<String>)>>>);

impl Service<Request<()>> for Behind {
    type Response = Response<()>;
    type Error = Refusal;
    type Future = Ready<Result<Response<()>, Refusal>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<()>) -> Self::Future {
        let target = request.uri().to_string();
        let passage = Passage::of(&mut request);
        let keys = passage
            .facts()
            .keys
            .iter()
            .map(|one| one.key.to_string())
            .collect();
        *self.0.lock().unwrap() = Some((target, keys));
        ready(Ok(Response::new(())))
    }
}

/// The path that is forwarded is, byte for byte, the one that came, and the key is made of it.
fn routed(path: &[u8]) {
    let Ok(uri) = http::Uri::try_from(path) else {
        return;
    };
    if uri.authority().is_some() || uri.path() == "*" {
        return;
    }
    let sent = uri.to_string();
    let (raw, _) = sent.split_once('?').unwrap_or((&sent, ""));
    let expected = read(raw.as_bytes(), PathRules::Strict, Case::Sensitive);
    let policy = Policy::new("n", KeyRules::single("n", "{path}").expect("a template"));
    let matcher = RouteMatcher::new("/{*path}").expect("a pattern");
    let behind = Behind::default();
    let mut service = RouteLayer::fixed([(matcher, policy)]).layer(behind.clone());
    let request = Request::put(uri)
        .header("host", "a")
        .body(())
        .expect("a request");
    let mut answer = pin!(service.call(request));
    let answer = answer
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()));
    let reached = behind.0.lock().unwrap().take();
    match (answer, reached) {
        (Poll::Ready(Ok(_)), Some((target, keys))) => {
            assert_eq!(target, sent, "the target was rewritten");
            if let [key] = &keys[..] {
                assert_eq!(
                    Some(key.strip_prefix("n/").unwrap_or_default()),
                    expected.as_deref()
                );
            }
        }
        (Poll::Ready(Err(_)), None) => {}
        (answer, reached) => panic!("{:?} {reached:?}", answer.is_ready()),
    }
}

fn host(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(host) = normalize_host(text) {
        assert_eq!(normalize_host(&host).as_deref(), Ok(&*host));
        assert!(
            !host.contains(['@', ',', ' ', '/', '%', '?', '#', '\\']),
            "{host}"
        );
        assert!(!host.ends_with('.') && !host.is_empty());
        assert_eq!(host, host.to_ascii_lowercase());
        let upper = text.to_ascii_uppercase();
        assert_eq!(normalize_host(&upper).as_deref(), Ok(&*host));
    }
}

fn parameter(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (name, query) = text.split_once('\n').unwrap_or(("id", text));
    let value = query::value(query, name, Case::Sensitive);
    // The order of parameters changes nothing; to say it twice is refused.
    let backwards: Vec<_> = query.rsplit('&').collect();
    assert_eq!(
        query::value(&backwards.join("&"), name, Case::Sensitive),
        value
    );
    if let Ok(Some(value)) = &value {
        assert!(!value.chars().any(char::is_control));
        if !name.contains(['&', '=', ';', '%', '+', '#']) {
            let twice = format!("{query}&{name}=x");
            assert!(
                query::value(&twice, name, Case::Sensitive).is_err(),
                "{twice}"
            );
        }
    }
}

fn template(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut lines = text.splitn(4, '\n');
    let mut next = || lines.next().unwrap_or_default();
    let (template, path, query, value) = (next(), next(), next(), next());
    let Ok(template) = KeyTemplate::parse(template) else {
        return;
    };
    let mut headers = HeaderMap::new();
    for name in template.uses().headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name.clone(), value);
        }
    }
    for rules in RULES {
        let Some(path) = read(path.as_bytes(), rules, Case::Sensitive) else {
            continue;
        };
        for case in [Case::Sensitive, Case::Insensitive] {
            let captures: Vec<_> = template
                .uses()
                .captures
                .into_iter()
                .map(|name| (name, &*path))
                .collect();
            let parts = KeyParts {
                captures: &captures,
                host: Some("Host.example:80"),
                path: &path,
                query: Some(query),
                headers: &headers,
            };
            let Ok(key) = template.render(&parts, rules, case) else {
                continue;
            };
            assert!((1..=1024).contains(&key.len()));
            assert!(!key.chars().any(char::is_control), "{key:?}");
            // Another spelling of the host is the same host.
            let parts = KeyParts {
                host: Some("hOST.example."),
                ..parts
            };
            assert_eq!(template.render(&parts, rules, case), Ok(key));
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else {
        return;
    };
    match choice % 4 {
        0 => path(data),
        1 => host(data),
        2 => parameter(data),
        _ => template(data),
    }
});
