//! Tokens that are signed: what nobody has signed raises nothing and is told so. The mark of
//! `objects/42` is 34 throughout, raised by a signed token.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::common::http2::{self, Frame, Http2};
use crate::common::issuer::{Issuer, base64url, jwks};
use crate::common::{Config, Connection, Request, Stage, eventually, run};
use serde_json::{Value, json};
use tempfile::TempDir;

const KEY: &str = "objects/42";

/// A gateway that takes what these keys have signed, and their file.
struct House {
    stage: Stage,
    file: PathBuf,
    _dir: TempDir,
}

impl House {
    fn of(issuers: &[&Issuer]) -> Self {
        Self::with(issuers, |config| config)
    }

    fn with(issuers: &[&Issuer], change: impl FnOnce(Config) -> Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys.json");
        put(&file, &jwks(issuers));
        let stage = Stage::with(|config| {
            let config = config.fence("trust", "signed");
            change(config.fence("jwks", file.to_str().unwrap()))
        });
        Self {
            stage,
            file,
            _dir: dir,
        }
    }

    /// Puts other keys in the place of those in force, and waits until the gateway has read them.
    fn rotate(&self, text: &str, result: &str) {
        let reloads = || {
            let gateway = &self.stage.gateway;
            gateway.metric("fencegate_config_reloads_total", &[result])
        };
        let before = reloads();
        put(&self.file, text);
        eventually("the keys are read again", || {
            (reloads() > before + 0.5).then_some(())
        });
    }
}

/// Writes a file whole and at once.
fn put(file: &Path, text: &str) {
    let new = file.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, file).unwrap();
}

fn claims(key: &str, token: &str) -> Value {
    json!({ "key": key, "tok": token })
}

fn write(token: &str) -> Request {
    Request::put("/objects/42").token(token)
}

fn now_s() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs_f64()
}

/// A token with one claim more.
fn with(issuer: &Issuer, token: &str, name: &str, value: impl Into<Value>) -> String {
    let mut claims = claims(KEY, token);
    claims[name] = value.into();
    issuer.token(&claims)
}

/// With the mark at 34.
fn at_34(issuers: &[&Issuer], change: impl FnOnce(Config) -> Config) -> House {
    let house = House::with(issuers, change);
    let token = issuers[0].token(&claims(KEY, "34"));
    house.stage.send(&write(&token)).assert_ok("a signed token");
    assert_eq!(house.stage.mark(KEY).as_deref(), Some("34"));
    house
}

#[test]
fn what_was_signed_is_fenced_by_its_number() {
    let secret = [7; 32];
    let issuers = [
        Issuer::ed25519("ed"),
        Issuer::p256("ec"),
        Issuer::shared("hs", &secret),
    ];
    let house = House::of(&[&issuers[0], &issuers[1], &issuers[2]]);
    let stage = &house.stage;
    for (issuer, token) in issuers.iter().zip(["34", "35", "7.1"]) {
        let sent = issuer.token(&claims("objects/*", token));
        stage
            .send(&write(&sent).tag(token))
            .assert_ok(issuer.algorithm());
        assert_eq!(stage.mark(KEY).as_deref(), Some(token));
        let arrived = stage.recorder.arrived(token);
        assert_eq!(
            arrived.header("fencing-token"),
            Some(sent.as_str()),
            "it goes upstream as it came"
        );
    }
    let stale = with(&issuers[0], "7.0", "exp", now_s() + 60.0);
    let answer = stage.send(&write(&stale));
    answer.assert_fenced(409, "stale-token", "verified, and stale");
    assert_eq!(answer.header("fencing-mark"), Some("7.1"));
    assert_eq!(answer.json()["token"], "7.0");
    stage
        .send(&Request::get("/objects/42").token(&stale))
        .assert_fenced(409, "stale-token", "a read with a token");
    stage
        .send(&Request::get("/objects/42"))
        .assert_ok("a read without one");
    stage.send(&Request::put("/objects/42")).assert_fenced(
        428,
        "token-required",
        "a write without one",
    );
}

/// What is refused where `ed` and `ec` are the keys, and why; the mark is 34.
fn unfit(ed: &Issuer, ec: &Issuer) -> Vec<(&'static str, String)> {
    let forger = Issuer::ed25519("ed");
    let stranger = Issuer::ed25519("stranger");
    let good = ed.token(&claims(KEY, "35"));
    let parts: Vec<&str> = good.split('.').collect();
    let tampered = base64url(claims(KEY, "99").to_string());
    let none = base64url(r#"{"alg":"none"}"#);
    let public = ed.jwk()["x"].as_str().unwrap().to_owned();
    let confused = |secret: &[u8], kid: &str| {
        let header = json!({ "alg": "HS256", "kid": kid }).to_string();
        let forger = Issuer::shared("", secret);
        forger.sign(&header, &claims(KEY, "99").to_string())
    };
    let critical = json!({ "alg": "EdDSA", "kid": "ed", "crit": ["exp"], "exp": 1 });
    let own = json!({ "alg": "EdDSA", "kid": "ed", "jwk": forger.jwk() });
    vec![
        ("expired", with(ed, "35", "exp", now_s() - 1.0)),
        ("expired long ago", with(ed, "35", "exp", 0)),
        ("not yet", with(ed, "35", "nbf", now_s() + 600.0)),
        ("for another key", ed.token(&claims("objects/43", "35"))),
        (
            "for a longer key",
            ed.token(&claims("objects/42/more", "35")),
        ),
        ("for a shorter key", ed.token(&claims("objects/4", "35"))),
        ("for another namespace", ed.token(&claims("others/*", "35"))),
        ("without a namespace", ed.token(&claims("42", "35"))),
        (
            "a tampered payload",
            format!("{}.{tampered}.{}", parts[0], parts[2]),
        ),
        ("no signature", format!("{}.{}.", parts[0], parts[1])),
        ("alg none", format!("{none}.{tampered}.")),
        (
            "alg none with a signature",
            format!("{none}.{tampered}.{}", parts[2]),
        ),
        (
            "the public key as a secret",
            confused(public.as_bytes(), "ed"),
        ),
        (
            "its JWK as a secret",
            confused(ed.jwk().to_string().as_bytes(), "ed"),
        ),
        (
            "the other public key as a secret",
            confused(ec.jwk()["x"].as_str().unwrap().as_bytes(), "ec"),
        ),
        (
            "another key's algorithm",
            ed.sign(
                r#"{"alg":"ES256","kid":"ed"}"#,
                &claims(KEY, "35").to_string(),
            ),
        ),
        (
            "another key's kid",
            ed.sign(
                r#"{"alg":"EdDSA","kid":"ec"}"#,
                &claims(KEY, "35").to_string(),
            ),
        ),
        ("a forger's signature", forger.token(&claims(KEY, "35"))),
        ("an unknown kid", stranger.token(&claims(KEY, "35"))),
        (
            "an extension",
            ed.sign(&critical.to_string(), &claims(KEY, "35").to_string()),
        ),
        (
            "a key of its own",
            forger.sign(&own.to_string(), &claims(KEY, "35").to_string()),
        ),
        ("a number for a token", with(ed, "35", "tok", 35)),
        ("no token at all", ed.token(&json!({ "key": KEY }))),
        ("no key", ed.token(&json!({ "tok": "35" }))),
        ("an exp that is text", with(ed, "35", "exp", "4102444800")),
        ("an exp of null", with(ed, "35", "exp", Value::Null)),
        ("zero", with(ed, "35", "tok", "0")),
    ]
}

// A4
#[test]
fn what_nobody_has_signed_is_refused_before_anything_is_compared() {
    let (ed, ec) = (Issuer::ed25519("ed"), Issuer::p256("ec"));
    let house = at_34(&[&ed, &ec], |config| config);
    for (what, token) in unfit(&ed, &ec) {
        let bytes = write(&token).whole();
        let answer = house.stage.assert_bad(bytes, what).unwrap();
        answer.assert_fenced(403, "bad-signature", what);
        // Of a key that has no mark nothing is known afterwards either.
        let elsewhere = Request::put("/objects/new").token(&token).whole();
        let answer = house.stage.assert_bad(elsewhere, what).unwrap();
        answer.assert_fenced(403, "bad-signature", what);
        assert_eq!(house.stage.gateway.key("objects/new"), None, "{what}");
    }
    let good = write(&ed.token(&claims(KEY, "35")));
    house.stage.send(&good).assert_ok("the good one");
    assert_eq!(house.stage.mark(KEY).as_deref(), Some("35"));
}

// A4, over HTTP/2.
#[test]
fn over_http2_a_stream_whose_token_nobody_has_signed_reaches_nothing() {
    let (ed, ec) = (Issuer::ed25519("ed"), Issuer::p256("ec"));
    let house = at_34(&[&ed, &ec], |config| config);
    let stage = &house.stage;
    let seen = || (stage.recorder.count(), stage.recorder.bytes());
    let before = seen();
    let mut client = Http2::open(stage.http());
    for (what, token) in unfit(&ed, &ec) {
        // Of a key that has no mark nothing is known afterwards either.
        for target in ["/objects/42", "/objects/new"] {
            let stream = client.request(&Request::put(target).token(&token));
            let answer = client.response(stream);
            answer.assert_fenced(403, "bad-signature", what);
        }
        let read = client.request(&Request::get("/objects/42").token(&token));
        client
            .response(read)
            .assert_fenced(403, "bad-signature", "a read with a token");
    }
    let (good, other) = (ed.token(&claims(KEY, "35")), ec.token(&claims(KEY, "36")));
    for malformed in ["", "35", &format!("{good},{other}"), &"x".repeat(9000)] {
        let stream = client.request(&write(malformed));
        let answer = client.response(stream);
        answer.assert_fenced(400, "malformed-token", malformed);
    }
    for (one, two) in [
        ("fencing-token", "fencing-token"),
        ("x-fencing-token", "fencing-token"),
    ] {
        let twice = Request::put("/objects/42")
            .header(one, &good)
            .header(two, &other);
        let stream = client.request(&twice);
        let answer = client.response(stream);
        answer.assert_fenced(400, "malformed-token", "two tokens");
    }
    // A token behind the body is none.
    let stream = client.begin(&Request::new("PUT", "/objects/42"), None);
    client.data(stream, "data", 0);
    let trailers = http2::block(&[("fencing-token", &good)]);
    let flags = http2::END_HEADERS | http2::END_STREAM;
    client.send(&Frame::new(http2::HEADERS, flags, stream, trailers));
    client
        .response(stream)
        .assert_fenced(428, "token-required", "in the trailers");
    assert_eq!(seen(), before, "nothing of all that reaches the upstream");
    assert_eq!(stage.mark(KEY).as_deref(), Some("34"));
    assert_eq!(stage.gateway.key("objects/new"), None);
    // The connection is as good as ever, for streams of good tokens among bad ones.
    let forged = Issuer::ed25519("ed").token(&claims(KEY, "99"));
    let good_one = client.request(&write(&good).tag("good"));
    let bad_one = client.request(&write(&forged));
    client.response(good_one).assert_ok("a signed token");
    let refused = client.response(bad_one);
    refused.assert_fenced(403, "bad-signature", "a forged one");
    assert_eq!(
        stage.recorder.arrived("good").header("fencing-token"),
        Some(good.as_str()),
        "it goes upstream as it came"
    );
    let stale = client.request(&write(&ed.token(&claims(KEY, "34"))));
    let stale = client.response(stale);
    stale.assert_fenced(409, "stale-token", "verified, and stale");
    assert_eq!(stage.mark(KEY).as_deref(), Some("35"));
    assert_eq!(seen().0, before.0 + 1);
}

// As T2, T10 and T13 to T15 for tokens that are numbers.
#[test]
fn what_is_no_signed_token_is_malformed() {
    let ed = Issuer::ed25519("ed");
    let house = at_34(&[&ed], |config| config);
    let (good, other) = (ed.token(&claims(KEY, "35")), ed.token(&claims(KEY, "36")));
    let longest = "x".repeat(60_000);
    for value in [
        "",
        " ",
        "34",
        "35",
        "7.42",
        "1.2.3",
        "...",
        "a.b.c.d",
        &format!("{good}."),
        &format!("{good}="),
        &format!("\"{good}\""),
        &format!("Bearer {good}"),
        &format!("{good}, {other}"),
        &format!("{good},{good}"),
        &good.replacen('.', "..", 1),
        &longest,
        &format!("{good}{longest}"),
        &with(&ed, "35", "padding", "x".repeat(8192)),
    ] {
        let what = value.chars().take(300).collect::<String>();
        let answer = house.stage.assert_bad(write(value).whole(), &what).unwrap();
        answer.assert_fenced(400, "malformed-token", &what);
    }
    for (one, two) in [
        ("Fencing-Token", "Fencing-Token"),
        ("Fencing-Token", "X-Fencing-Token"),
    ] {
        for second in [&good, &other] {
            let twice = Request::put("/objects/42")
                .header(one, &good)
                .header(two, second);
            let answer = house.stage.assert_bad(twice.whole(), two).unwrap();
            answer.assert_fenced(400, "malformed-token", "two tokens, even where they agree");
        }
    }
    let answer = house
        .stage
        .assert_bad(write(&"x".repeat(70_000)).whole(), "a huge token");
    answer
        .unwrap()
        .assert_fenced(431, "headers-too-large", "a huge token");
    let padded = Request::put("/objects/42").header("X-Fencing-Token", &format!(" \t{good}\t "));
    house.stage.send(&padded).assert_ok("white space around it");
}

#[test]
fn a_token_is_over_when_it_says_so_although_it_was_verified() {
    let ed = Issuer::ed25519("ed");
    let house = at_34(&[&ed], |config| config);
    let expires_s = now_s() + 1.5;
    let request = write(&with(&ed, "35", "exp", expires_s));
    let mut connection = Connection::open(house.stage.http());
    let mut taken = 0;
    eventually("the token expires", || {
        let began_s = now_s();
        let answer = connection.send(request.whole()).response();
        if answer.status == 200 {
            assert!(began_s < expires_s, "taken after it had expired");
            taken += 1;
            return None;
        }
        answer.assert_fenced(403, "bad-signature", "over");
        Some(())
    });
    assert!(now_s() >= expires_s, "it counts until then");
    assert!(taken > 0, "it counted before");
    house
        .stage
        .send(&write(&with(&ed, "35", "exp", now_s() + 600.0)))
        .assert_ok("the same token, given for longer");
}

#[test]
fn a_key_that_is_taken_out_is_out_at_once_and_nothing_is_lost_meanwhile() {
    let (kept, old, new) = (
        Issuer::ed25519("kept"),
        Issuer::p256("old"),
        Issuer::ed25519("new"),
    );
    let house = at_34(&[&old, &kept], |config| config);
    let steady = Request::put("/objects/steady").token(kept.token(&claims("objects/steady", "1")));
    let (address, over) = (house.stage.http(), Arc::new(AtomicBool::new(false)));
    let writer = std::thread::spawn({
        let over = Arc::clone(&over);
        move || {
            let mut connection = Connection::open(address);
            let mut sent = 0_u64;
            while !over.load(Ordering::SeqCst) {
                connection
                    .send(steady.whole())
                    .response()
                    .assert_ok("a key that stays in the file");
                sent += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            sent
        }
    });
    let mut connection = Connection::open(house.stage.http());
    let by_old = write(&old.token(&claims(KEY, "34")));
    let by_new = write(&new.token(&claims(KEY, "35")));
    for _ in 0..2 {
        let answer = connection.send(by_old.whole()).response();
        answer.assert_ok("verified, and remembered");
    }
    connection.send(by_new.whole()).response().assert_fenced(
        403,
        "bad-signature",
        "not in the file yet",
    );

    house.rotate(&jwks(&[&new, &kept]), "ok");
    connection
        .send(by_old.whole())
        .response()
        .assert_fenced(403, "bad-signature", "taken out");
    connection
        .send(by_new.whole())
        .response()
        .assert_ok("put in");

    // A file that is broken changes nothing, and says so.
    let mut broken = new.jwk();
    broken["x"] = json!("hunter22");
    let broken = serde_json::to_string_pretty(&json!({ "keys": [broken] })).unwrap();
    house.rotate(&broken, "failed");
    let said = house.stage.gateway.says("keys[0].x: expected 32 bytes");
    assert!(said.contains("keys.json:"), "{said}");
    house.stage.gateway.says("the old one stays in force");
    connection
        .send(by_new.whole())
        .response()
        .assert_ok("still in");
    connection
        .send(by_old.whole())
        .response()
        .assert_fenced(403, "bad-signature", "still out");

    // Without any key everything is refused.
    over.store(true, Ordering::SeqCst);
    assert!(writer.join().unwrap() > 0);
    house.rotate(r#"{ "keys": [] }"#, "ok");
    connection.send(by_new.whole()).response().assert_fenced(
        403,
        "bad-signature",
        "no key is left",
    );
    let said = house.stage.gateway.errors();
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn the_holder_is_whom_the_token_was_signed_for() {
    let ed = Issuer::ed25519("ed");
    let house = at_34(&[&ed], |config| config.fence("holder", "bind"));
    let stage = &house.stage;
    let a = with(&ed, "35", "hld", "pod-a");
    let b = with(&ed, "35", "hld", "pod-b");
    stage.send(&write(&a)).assert_ok("the first holder");
    assert_eq!(stage.gateway.key(KEY).unwrap()["holder"], "pod-a");
    stage
        .send(&write(&a).header("Fencing-Holder", "pod-a"))
        .assert_ok("which may say so itself");
    stage
        .send(&write(&b))
        .assert_fenced(409, "holder-mismatch", "another holder");
    for other in ["pod-b", "Pod-a"] {
        let bytes = write(&a).header("Fencing-Holder", other).whole();
        let answer = stage.assert_bad(bytes, other).unwrap();
        answer.assert_fenced(400, "bad-request", "a header that says something else");
    }
    // A token that names nobody leaves it to the header.
    let nobody = ed.token(&claims(KEY, "36"));
    stage
        .send(&write(&nobody).header("Fencing-Holder", "pod-c"))
        .assert_ok("by its header");
    stage
        .send(&write(&nobody))
        .assert_fenced(409, "holder-mismatch", "nobody");
    stage
        .send(&write(&with(&ed, "36", "hld", "pod-c")))
        .assert_ok("the same holder");
}

#[test]
fn only_the_issuer_that_is_named_is_taken() {
    let ed = Issuer::ed25519("ed");
    let house = House::with(&[&ed], |config| config.fence("issuer", "locks.example"));
    let stage = &house.stage;
    stage
        .send(&write(&with(&ed, "34", "iss", "locks.example")))
        .assert_ok("the issuer");
    for token in [
        ed.token(&claims(KEY, "35")),
        with(&ed, "35", "iss", "other.example"),
    ] {
        let answer = stage.assert_bad(write(&token).whole(), "iss").unwrap();
        answer.assert_fenced(403, "bad-signature", "another issuer");
    }
}

#[test]
fn each_key_has_a_token_that_was_signed_for_it() {
    let ed = Issuer::ed25519("ed");
    let house = House::with(&[&ed], |config| {
        config.without("routes.0.fence.key").fence(
            "keys",
            json!([
                { "key": "{id}" },
                { "key": "{header.x-other}", "when": "present", "token_header": "fencing-token-other" },
            ]),
        )
    });
    let stage = &house.stage;
    let (one, other) = (
        ed.token(&claims("objects/42", "34")),
        ed.token(&claims("objects/43", "5")),
    );
    let both = |first: &str, second: &str| {
        let request = write(first).header("X-Other", "43");
        stage.send(&request.header("Fencing-Token-Other", second))
    };
    both(&one, &other).assert_ok("each its own");
    assert_eq!(stage.mark("objects/43").as_deref(), Some("5"));
    both(&other, &one).assert_fenced(403, "bad-signature", "the wrong way round");
    both(&one, &one).assert_fenced(403, "bad-signature", "one for both");
    both(&one, "6").assert_fenced(400, "malformed-token", "one that is not signed");
    let all = ed.token(&claims("objects/*", "40"));
    both(&all, &all).assert_ok("one for all of them");
    assert_eq!(stage.mark("objects/43").as_deref(), Some("40"));
}

#[test]
fn observing_says_what_does_not_verify_and_raises_nothing() {
    let ed = Issuer::ed25519("ed");
    let house = House::with(&[&ed], |config| config.fence("mode", "observe"));
    let stage = &house.stage;
    for (token, reason) in [
        (
            Issuer::ed25519("ed").token(&claims(KEY, "99")),
            "bad-signature",
        ),
        (ed.token(&claims("objects/43", "99")), "bad-signature"),
        ("99".to_owned(), "malformed-token"),
    ] {
        let answer = stage.send(&write(&token));
        answer.assert_ok("it is only observed");
        let decision = answer.header("fencing-decision").unwrap_or_default();
        assert!(decision.contains(reason), "{decision}");
        assert_eq!(stage.mark(KEY), None);
    }
    let answer = stage.send(&write(&ed.token(&claims(KEY, "1"))));
    answer.assert_ok("verified");
    assert_eq!(answer.header("fencing-decision"), None);
}

// A3 A4
#[test]
fn marks_rise_by_verified_tokens_alone_whatever_comes_beside_them() {
    let ed = Issuer::ed25519("ed");
    let house = House::of(&[&ed]);
    let address = house.stage.http();
    let forged: Vec<String> = [
        Issuer::ed25519("ed").token(&claims("objects/*", "18446744073709551615")),
        with(&ed, "18446744073709551615", "exp", 1),
        ed.token(&claims("others/*", "18446744073709551615")),
        "18446744073709551615".to_owned(),
    ]
    .into();
    let over = Arc::new(AtomicBool::new(false));
    let bombers: Vec<_> = forged
        .into_iter()
        .map(|token| {
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                let mut connection = Connection::open(address);
                while !over.load(Ordering::SeqCst) {
                    let answer = connection.send(write(&token).whole()).response();
                    assert!(matches!(answer.status, 400 | 403), "{}", answer.status);
                }
            })
        })
        .collect();
    let mut connection = Connection::open(address);
    for token in 1..=100 {
        let sent = ed.token(&claims(KEY, &token.to_string()));
        connection
            .send(write(&sent).whole())
            .response()
            .assert_ok("a signed token");
        assert_eq!(house.stage.mark(KEY), Some(token.to_string()));
    }
    over.store(true, Ordering::SeqCst);
    bombers.into_iter().for_each(|one| one.join().unwrap());
    let history = house.stage.recorder.history();
    history.assert_ordered();
    assert_eq!(
        house.stage.recorder.count(),
        100,
        "nothing else reached the resource"
    );
    house.stage.assert_marks_hold();
}

// A8
#[test]
fn neither_tokens_nor_keys_are_in_what_the_gateway_says() {
    let secret = b"hunter2 hunter2 hunter2 hunter2 ";
    let hs = Issuer::shared("hs", secret);
    let house = at_34(&[&hs], |config| config.set("log.level", "trace"));
    let good = hs.token(&claims(KEY, "35"));
    let mut said = String::new();
    for token in [
        good.clone(),
        format!("{good}x"),
        with(&hs, "36", "exp", 1),
        hs.token(&claims("objects/43", "37")),
        good.replacen('.', " ", 1),
    ] {
        let answer = house.stage.send(&write(&token));
        said += &format!("{:?} {}", answer.head, answer.text());
    }
    house.stage.gateway.says("bad-signature");
    house.stage.gateway.says("\"35\"");
    said += &house.stage.gateway.errors();
    said += &house
        .stage
        .gateway
        .admin_get("/v1/keys/objects%2F42")
        .text();
    said += &house.stage.gateway.admin_get("/metrics").text();
    let parts: Vec<&str> = good.split('.').collect();
    for hidden in [parts[0], parts[1], parts[2], "hunter2", &base64url(secret)] {
        assert!(!said.contains(hidden), "{hidden} stands in {said}");
    }
}

#[test]
fn a_broken_file_of_keys_is_told_with_everything_else() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yaml");
    let write = |fence: &str| {
        let text = format!(
            "listeners: [{{ address: 127.0.0.1:0 }}]\n\
             upstreams: {{ objects: {{ urls: ['builtin:objects'] }} }}\n\
             routes:\n  \
             - {{ name: a, path: '/a/{{id}}', upstream: objects, fence: {{ key: '{{id}}', {fence} }} }}\n  \
             - {{ name: b, path: '/b/{{id}}', upstream: objects, namespace: a, fence: {{ key: '{{id}}', {fence} }} }}\n"
        );
        std::fs::write(&config, text).unwrap();
    };
    let check = || {
        let output = run(&["check", "--config", config.to_str().unwrap()]);
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), said)
    };
    write("trust: signed, jwks: keys.json, refuse_status: 7");
    put(
        &dir.path().join("keys.json"),
        "{\n  \"keys\": [\n    { \"kty\": \"oct\", \"k\": \"c2hvcnQ\" },\n    { \"kty\": \"EC\" }\n  ]\n}\n",
    );
    let (code, said) = check();
    assert_eq!(code, Some(2), "{said}");
    for expected in [
        "config.yaml:4:",
        "config.yaml:5:",
        "keys.json:3:26: keys[0].k: expected at least 32 bytes, found 5",
        "keys.json:4:5: keys[1]: crv is missing",
    ] {
        assert_eq!(said.matches(expected).count(), 1, "{expected} in {said}");
    }
    // What is odd is said, and taken.
    write("trust: signed, jwks: keys.json");
    put(
        &dir.path().join("keys.json"),
        r#"{ "keys": [{ "kty": "RSA" }] }"#,
    );
    let (code, said) = check();
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("keys[0].kty: this key verifies no tokens"),
        "{said}"
    );
    assert!(said.contains("every token is refused"), "{said}");
    for (fence, expected) in [
        ("trust: signed", "trust: signed needs jwks"),
        ("trust: signed, jwks: nowhere.json", "can't read"),
        ("jwks: keys.json", "jwks needs trust: signed"),
        ("trust: issued, issuer: me", "issuer needs trust: signed"),
        (
            "trust: signd, jwks: keys.json",
            "expected any, issued or signed",
        ),
    ] {
        write(fence);
        let (code, said) = check();
        assert_eq!(code, Some(2), "{fence}: {said}");
        assert!(said.contains(expected), "{fence}: {said}");
    }
}
