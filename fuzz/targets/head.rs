//! Bytes of a client: whatever the guard lets pass is one request after another to the codec too,
//! with the same method, target, header and body, and the filter behind it leaves nothing in a
//! head that another hop would read otherwise.

#![no_main]

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use fencegate::wire::{
    ClientIo, ConnState, Guard, HeadLimits, LingerLimits, Next, ServingBody, Violation,
};
use fencegate_filters::{GuardedNames, guard, names};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

/// One request, in the words of whoever read it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    method: String,
    target: String,
    fields: Vec<(String, Vec<u8>)>,
    /// As much as came of it, and whether it came whole.
    body: Vec<u8>,
    whole: bool,
}

/// Splits the bytes that the guard let pass by the book: lines end in CRLF, names in a colon.
fn judged(bytes: &[u8], step: usize) -> (Vec<Seen>, Option<Violation>) {
    let mut guard = Guard::new(HeadLimits::default());
    let (mut at, mut shown) = (0, 0);
    let mut requests = Vec::new();
    // What passed of the request that is under way.
    let mut passed = Vec::new();
    loop {
        shown = bytes.len().min(shown.max(at) + step);
        let seen = guard.inspect(&bytes[at..shown]);
        passed.extend_from_slice(&bytes[at..at + seen.pass]);
        at += seen.pass;
        let violation = match seen.next {
            Next::More if shown < bytes.len() => continue,
            Next::Boundary => {
                requests.push(naive(&passed));
                passed.clear();
                guard.next_request();
                continue;
            }
            Next::More => None,
            Next::Violation(violation) => Some(violation),
        };
        if !passed.is_empty() {
            requests.push(naive(&passed));
        }
        return (requests, violation);
    }
}

fn naive(passed: &[u8]) -> Seen {
    let mut rest = passed.strip_prefix(b"\r\n").unwrap_or(passed);
    let mut line = || {
        let end = rest
            .windows(2)
            .position(|two| two == b"\r\n")
            .expect("a line ends");
        let (line, tail) = rest.split_at(end);
        rest = &tail[2..];
        line
    };
    let mut seen = Seen::default();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("it is ASCII");
    let request = text(line());
    let [method, target, version] = request.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{request}");
    };
    assert!(matches!(version, "HTTP/1.1" | "HTTP/1.0"), "{version}");
    (seen.method, seen.target) = (method.to_owned(), target.to_owned());
    let (mut length, mut chunked) = (0, false);
    loop {
        let field = line();
        if field.is_empty() {
            break;
        }
        let colon = field
            .iter()
            .position(|&byte| byte == b':')
            .expect("a colon");
        let name = text(&field[..colon]).to_ascii_lowercase();
        assert!(!name.is_empty() && !name.contains([' ', '\t']), "{name}");
        let mut value = &field[colon + 1..];
        while let [b' ' | b'\t', inner @ ..] | [inner @ .., b' ' | b'\t'] = value {
            value = inner;
        }
        assert!(!value.iter().any(|byte| b"\0\r\n".contains(byte)));
        match &*name {
            "content-length" => length = text(value).parse().expect("one number"),
            "transfer-encoding" => chunked = true,
            _ => {}
        }
        seen.fields.push((name, value.to_vec()));
    }
    let of = |name: &str| seen.fields.iter().filter(|field| field.0 == name).count();
    assert!(of("content-length") + of("transfer-encoding") <= 1);
    assert!(of("host") <= 1);
    if chunked {
        (seen.body, seen.whole) = dechunk(rest);
    } else {
        seen.body = rest.to_vec();
        seen.whole = rest.len() as u64 == length;
        assert!(rest.len() as u64 <= length, "more than its length");
    }
    seen
}

fn dechunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else {
            return (body, false);
        };
        let size = rest[..end]
            .split(|&byte| byte == b';')
            .next()
            .unwrap_or_default();
        let size = std::str::from_utf8(size)
            .expect("digits")
            .trim_end_matches([' ', '\t']);
        let size = u64::from_str_radix(size, 16).expect("a size");
        rest = &rest[end + 2..];
        if size == 0 {
            // Trailers, and the empty line.
            return (body, rest == b"\r\n" || rest.ends_with(b"\r\n\r\n"));
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if rest.len() < size {
            body.extend_from_slice(rest);
            return (body, false);
        }
        body.extend_from_slice(&rest[..size]);
        let Some(tail) = rest[size..].strip_prefix(b"\r\n") else {
            return (body, false);
        };
        rest = tail;
    }
}

/// What the service above the codec sees, and what the client was answered.
async fn served(bytes: &[u8]) -> (Vec<Seen>, String) {
    let (client, server) = duplex(256 * 1024);
    let (state, seen) = (ConnState::new(), Rc::new(RefCell::new(Vec::new())));
    let refuse = Arc::new(|violation: &Violation| {
        format!("REFUSED {}", violation.reason.as_str()).into_bytes()
    });
    let (head, linger) = (HeadLimits::default(), LingerLimits::default());
    let io = ClientIo::new(server, head, linger, Arc::clone(&state), refuse);
    let all = Rc::clone(&seen);
    let service = service_fn(move |request: Request<Incoming>| {
        let (serving, seen) = (state.serving(), Rc::clone(&all));
        async move {
            let (head, mut body) = request.into_parts();
            filtered(&head);
            let fields = head.headers.iter();
            let mut one = Seen {
                method: head.method.to_string(),
                target: head.uri.to_string(),
                fields: fields
                    .map(|field| (field.0.to_string(), field.1.as_bytes().to_vec()))
                    .collect(),
                ..Seen::default()
            };
            one.whole = loop {
                match body.frame().await {
                    None => break true,
                    Some(Err(_)) => break false,
                    Some(Ok(frame)) => {
                        if let Some(data) = frame.data_ref() {
                            one.body.extend_from_slice(data);
                        }
                    }
                }
            };
            seen.borrow_mut().push(one);
            Ok::<_, Infallible>(Response::new(ServingBody::new(
                Empty::<Bytes>::new(),
                serving,
            )))
        }
    });
    let connection = http1::Builder::new().serve_connection(io, service);
    let (mut reader, mut writer) = tokio::io::split(client);
    let mut text = Vec::new();
    let talk = async {
        let _ = writer.write_all(bytes).await;
        let _ = writer.shutdown().await;
        let _ = reader.read_to_end(&mut text).await;
    };
    let _ = tokio::join!(connection, talk);
    let seen = std::mem::take(&mut *seen.borrow_mut());
    (seen, String::from_utf8_lossy(&text).into_owned())
}

/// A head that passes the filter names one host, has every guarded field once at most under one
/// spelling, and asks no hop to delete one.
fn filtered(head: &http::request::Parts) {
    let tokens = [names::FENCING_TOKEN.clone(), names::X_FENCING_TOKEN.clone()];
    let guarded = GuardedNames::new(tokens, [http::HeaderName::from_static("destination")]);
    if guard::check(head, &guarded).is_err() {
        return;
    }
    let headers = &head.headers;
    assert!(headers.get_all("host").iter().count() <= 1);
    assert!(!matches!(
        &*head.method.as_str().to_ascii_uppercase(),
        "TRACE" | "CONNECT"
    ));
    let watched = [
        "fencing-token",
        "x-fencing-token",
        "fencing-holder",
        "destination",
        "host",
        "authorization",
        "content-length",
        "transfer-encoding",
    ];
    for name in headers.keys() {
        let twin = name.as_str().replace('_', "-");
        assert!(
            !watched.contains(&&*twin) || twin == name.as_str(),
            "{name} passes"
        );
    }
    for line in headers.get_all("connection") {
        let line = String::from_utf8_lossy(line.as_bytes()).to_ascii_lowercase();
        for option in line.split(',') {
            let option = option.trim_matches([' ', '\t']).replace('_', "-");
            assert!(!watched.contains(&&*option), "Connection: {option} passes");
        }
    }
}

/// The target as the codec gives it: without its fragment, and in the form that it prints.
fn printed(target: &str) -> String {
    let uri: http::Uri = target.parse().expect("what passes is a URI");
    uri.to_string()
}

fuzz_target!(|data: &[u8]| {
    let Some((how, bytes)) = data.split_first() else {
        return;
    };
    let (mut expected, violation) = judged(bytes, usize::MAX / 2);
    // How the bytes were split changes no verdict.
    let step = usize::from(how % 32) + 1;
    let (stepped, other) = judged(bytes, step);
    assert_eq!(other.map(|one| one.reason), violation.map(|one| one.reason));
    assert_eq!(stepped, expected);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let (seen, text) = runtime.block_on(served(bytes));
    for one in &mut expected {
        one.target = printed(&one.target);
    }
    // The codec ends a connection by itself (`Connection: close`, HTTP/1.0, Expect), never a
    // request that passed before.
    assert!(seen.len() <= expected.len(), "{seen:?} for {expected:?}");
    for (seen, expected) in seen.iter().zip(&expected) {
        let mut seen_fields = seen.fields.clone();
        let mut fields = expected.fields.clone();
        // The map of the codec keeps the order of one name's lines, not that of names.
        seen_fields.sort_by(|one, other| one.0.cmp(&other.0));
        fields.sort_by(|one, other| one.0.cmp(&other.0));
        assert_eq!(seen_fields, fields);
        assert_eq!(
            (&seen.method, &seen.target),
            (&expected.method, &expected.target)
        );
        assert_eq!(seen.whole, expected.whole);
        assert!(expected.body.starts_with(&seen.body), "another body");
        assert!(!seen.whole || seen.body == expected.body, "another body");
    }
    // Every refusal is in the words of the gateway.
    assert!(!text.contains(" 400 ") && !text.contains(" 431 "), "{text}");
});
