//! What benches/micro.py counts the instructions of: each function is one step of a request's way.
//!
//! Each is called `CALLS` times with the same input, after everything it needs was made, so that a count of
//! what ran within it says what the step takes. Nothing is timed.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark fails by panicking"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::mpsc;

use fencegate::store::{EmbeddedStore, Options};
use fencegate_filters::fence::{Claim, Cut, Handle, InFlight, Uploads};
use fencegate_filters::key::{Case, DecodedPath, KeyParts, KeyRules, PathRules};
use fencegate_filters::store::{Binding, Raise, Record, Reply, Store};
use fencegate_filters::tokens::read_tokens;
use fencegate_filters::{Fence, Key, Outcome, Token};
use http::header::{HeaderMap, HeaderName, HeaderValue};

/// Enough for what only a first call does to vanish; benches/micro.py has the same number.
const CALLS: usize = 1000;
const CACHE_BYTES: u64 = 1 << 20;
const STORED_KEYS: u64 = 1000;
const PATH: &[u8] = b"/buckets/photos/2026/november/27/harbour%20at%20dawn.jpeg";

/// A write that ends by itself before anybody drains it.
struct Write;

impl InFlight for Write {
    fn drain(self: Arc<Self>, _: Uploads) {}

    fn cut(self: Arc<Self>, _: Cut) {}
}

/// The token of a request, among as many headers as a client of an object store sends.
#[inline(never)]
fn token_parse(headers: &HeaderMap, names: &[HeaderName]) -> Token {
    read_tokens(headers, names).unwrap().unwrap()
}

/// The key of a request, from its path as it came.
#[inline(never)]
fn key_from_request(headers: &HeaderMap, rules: &KeyRules) -> Key {
    let path = DecodedPath::read(PATH, PathRules::Strict, Case::Sensitive).unwrap();
    let text = path.text(PathRules::Strict);
    let captures = [
        ("bucket", "photos"),
        ("object", &text["buckets/photos/".len()..]),
    ];
    let parts = KeyParts {
        captures: &captures,
        host: Some("storage.internal"),
        path: text,
        query: None,
        headers,
    };
    rules.derive(&parts).unwrap().pop().unwrap().key
}

/// A write with the token that is the mark: admitted, in flight, and ended.
#[inline(never)]
fn lane_admission(fence: &Fence, key: &Key, token: Token, handle: &Handle) {
    let admitted = fence.admit(Claim::write(key.clone(), token)).try_now();
    let permit = admitted.unwrap().unwrap().send(handle).unwrap();
    permit.ended(Outcome::Completed, false);
}

/// The mark of a key that the store has in memory.
#[inline(never)]
fn store_read(store: &EmbeddedStore, key: &Key) {
    store.read(
        key,
        Reply::new(|found: Result<Option<Record>, _>| assert!(black_box(found).unwrap().is_some())),
    );
}

fn headers() -> HeaderMap {
    let lines = [
        ("host", "storage.internal"),
        ("user-agent", "aws-sdk-rust/1.3 os/linux lang/rust/1.95"),
        ("accept", "*/*"),
        ("accept-encoding", "gzip"),
        ("content-type", "image/jpeg"),
        ("content-length", "64"),
        ("x-amz-date", "20261127T060000Z"),
        ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
        ("fencing-token", "1764223200.4217"),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
    ];
    lines
        .into_iter()
        .map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        })
        .collect()
}

fn record(mark: Token) -> Record {
    Record {
        mark,
        holder: Binding::Unbound,
        draining: false,
        resets: 0,
    }
}

/// Marks of so many keys, durable.
fn fill(store: &EmbeddedStore, mark: Token) {
    let (durable, wait) = mpsc::channel();
    let raises = (0..STORED_KEYS).map(|number| Raise {
        key: Key::new("objects", &number.to_string()),
        record: record(mark),
    });
    store.commit(
        raises.collect(),
        Reply::new(move |done| durable.send(done).unwrap()),
    );
    wait.recv().unwrap().unwrap();
}

fn main() {
    let (headers, token) = (headers(), Token::new(1_764_223_200, 4217).unwrap());
    let names = ["fencing-token", "x-fencing-token"].map(HeaderName::from_static);
    let rules = KeyRules::single("objects", "{bucket}/{object}").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let store =
        Arc::new(EmbeddedStore::open(&Options::new(directory.path().join("marks"))).unwrap());
    fill(&store, token);
    let fence = Fence::new(Arc::clone(&store) as Arc<dyn Store>, CACHE_BYTES);
    let (key, handle) = (Key::new("objects", "42"), Arc::new(Write) as Handle);

    // The first look may have to wait for the mark.
    while fence
        .admit(Claim::write(key.clone(), token))
        .try_now()
        .is_none()
    {
        std::thread::yield_now();
    }

    for _ in 0..CALLS {
        black_box(token_parse(black_box(&headers), black_box(&names)));
        black_box(key_from_request(black_box(&headers), black_box(&rules)));
        lane_admission(black_box(&fence), black_box(&key), token, &handle);
        store_read(black_box(&store), black_box(&key));
    }
}
