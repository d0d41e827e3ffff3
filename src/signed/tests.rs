//! What verifies and what does not, by keys that are made anew in each run.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fencegate_filters::signed::{Grant, GrantedKeys, Verifier as _};
use fencegate_filters::{Reason, Refusal};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{JwsVerifier, KeySet, MAX_TOKEN_BYTES, read};

#[path = "../../tests/common/issuer.rs"]
#[allow(
    dead_code,
    reason = "made for the black-box tests, which use all of it"
)]
mod issuer;

use issuer::{Issuer, base64url, jwks};

const SECRET: &[u8; 32] = b"a shared secret of thirty-two by";

struct House {
    issuers: [Issuer; 3],
    verifier: JwsVerifier,
}

static HOUSE: LazyLock<House> = LazyLock::new(|| {
    let issuers = [
        Issuer::ed25519("ed"),
        Issuer::p256("ec"),
        Issuer::shared("hs", SECRET),
    ];
    let verifier = verifier(&[&issuers[0], &issuers[1], &issuers[2]]);
    House { issuers, verifier }
});

fn key_set(text: &str) -> KeySet {
    read(Path::new("keys.json"), text.as_bytes()).unwrap().0
}

fn verifier(issuers: &[&Issuer]) -> JwsVerifier {
    JwsVerifier::new(Arc::new(key_set(&jwks(issuers))), None)
}

fn claims() -> Value {
    json!({ "key": "objects/42", "tok": "34" })
}

fn reason(result: Result<Arc<Grant>, Refusal>) -> Option<Reason> {
    result.err().map(|refusal| refusal.reason)
}

#[test]
fn what_each_kind_of_key_has_signed_verifies() {
    for issuer in &HOUSE.issuers {
        let mut claims = claims();
        claims["hld"] = json!("pod-7");
        claims["other"] = json!({ "of": ["nobody's", 7, null] });
        let token = issuer.token(&claims);
        // The second time it comes from the cache.
        for _ in 0..2 {
            let grant = HOUSE.verifier.verify(token.as_bytes()).unwrap();
            assert_eq!(grant.keys, GrantedKeys::parse("objects/42").unwrap());
            assert_eq!(grant.token.to_string(), "34");
            assert_eq!(grant.holder.as_deref(), Some("pod-7"));
        }
    }
    // RFC 9864's name of the same algorithm.
    let ed = &HOUSE.issuers[0];
    let token = ed.sign(r#"{"alg":"Ed25519","kid":"ed"}"#, &claims().to_string());
    assert!(HOUSE.verifier.verify(token.as_bytes()).is_ok());
}

#[test]
fn the_key_decides_the_algorithm() {
    let claims = claims().to_string();
    for (index, issuer) in HOUSE.issuers.iter().enumerate() {
        for other in [
            "EdDSA", "ES256", "HS256", "RS256", "none", "None", "", "HS512",
        ] {
            if other == issuer.algorithm() {
                continue;
            }
            for id in ["ed", "ec", "hs"] {
                let header = json!({ "alg": other, "kid": id }).to_string();
                let token = issuer.sign(&header, &claims);
                let refused = reason(HOUSE.verifier.verify(token.as_bytes()));
                assert_eq!(refused, Some(Reason::BadSignature), "{index} {header}");
                // Without a signature too.
                let (signed, _) = token.rsplit_once('.').unwrap();
                let bare = format!("{signed}.");
                let refused = reason(HOUSE.verifier.verify(bare.as_bytes()));
                assert_eq!(refused, Some(Reason::BadSignature), "{index} {header}");
            }
        }
    }
}

#[test]
fn a_public_key_is_no_shared_secret() {
    let [ed, ec, _] = &HOUSE.issuers;
    let verifier = verifier(&[ed, ec]);
    for issuer in [ed, ec] {
        let jwk = issuer.jwk();
        let x = URL_SAFE_NO_PAD.decode(jwk["x"].as_str().unwrap()).unwrap();
        for secret in [
            x,
            jwk["x"].to_string().into_bytes(),
            jwk.to_string().into_bytes(),
        ] {
            let forger = Issuer::shared("forger", &secret);
            for kid in [json!(jwk["kid"]), json!("forger")] {
                let header = json!({ "alg": "HS256", "kid": kid }).to_string();
                let token = forger.sign(&header, &claims().to_string());
                let refused = reason(verifier.verify(token.as_bytes()));
                assert_eq!(refused, Some(Reason::BadSignature));
            }
            let token = forger.sign(r#"{"alg":"HS256"}"#, &claims().to_string());
            let refused = reason(verifier.verify(token.as_bytes()));
            assert_eq!(refused, Some(Reason::BadSignature));
        }
    }
}

#[test]
fn a_token_without_a_kid_is_taken_where_one_key_can_have_signed_it() {
    let ed = Issuer::ed25519("a");
    let other = Issuer::ed25519("b");
    let header = r#"{"alg":"EdDSA"}"#;
    let token = ed.sign(header, &claims().to_string());
    assert!(verifier(&[&ed]).verify(token.as_bytes()).is_ok());
    assert!(
        verifier(&[&ed, &HOUSE.issuers[1]])
            .verify(token.as_bytes())
            .is_ok()
    );
    for verifier in [
        verifier(&[&ed, &other]),
        verifier(&[&other]),
        JwsVerifier::default(),
    ] {
        let refused = reason(verifier.verify(token.as_bytes()));
        assert_eq!(refused, Some(Reason::BadSignature));
    }
}

#[test]
fn headers_that_ask_for_more_are_refused() {
    let ed = &HOUSE.issuers[0];
    for header in [
        r#"{"alg":"EdDSA","kid":"ed","crit":["exp"],"exp":1}"#,
        r#"{"alg":"EdDSA","kid":"ed","crit":[]}"#,
        r#"{"alg":"EdDSA","kid":"ed","crit":null}"#,
        r#"{"alg":"EdDSA","kid":"ed","b64":false,"crit":["b64"]}"#,
        r#"{"alg":"EdDSA","kid":"none"}"#,
        r#"{"alg":"EdDSA","kid":""}"#,
        r#"{"alg":"EdDSA","kid":null}"#,
        r#"{"alg":"EdDSA","kid":["ed"]}"#,
        r#"{"alg":["EdDSA"],"kid":"ed"}"#,
        r#"{"alg":"EdDSA","alg":"EdDSA","kid":"ed"}"#,
        r#"{"alg":"EdDSA","kid":"ed","kid":"ed"}"#,
        r#"{"alg":"eddsa","kid":"ed"}"#,
        r#"{"kid":"ed"}"#,
        "{}",
    ] {
        let token = ed.sign(header, &claims().to_string());
        let refused = reason(HOUSE.verifier.verify(token.as_bytes()));
        assert_eq!(refused, Some(Reason::BadSignature), "{header}");
    }
    // What names a key of its own is not asked for it.
    let forger = Issuer::ed25519("ed");
    let header = json!({
        "alg": "EdDSA", "kid": "ed", "jwk": forger.jwk(), "jku": "http://127.0.0.1:1/keys.json",
    });
    let token = forger.sign(&header.to_string(), &claims().to_string());
    let refused = reason(HOUSE.verifier.verify(token.as_bytes()));
    assert_eq!(refused, Some(Reason::BadSignature));
}

#[test]
fn claims_that_are_not_of_the_form_are_refused() {
    let ed = &HOUSE.issuers[0];
    let header = ed.header().to_string();
    for payload in [
        "",
        "34",
        "null",
        "[]",
        r#"["objects/42","34"]"#,
        "{}",
        r#"{"key":"objects/42"}"#,
        r#"{"tok":"34"}"#,
        r#"{"key":"","tok":"34"}"#,
        r#"{"key":"objects/42","tok":34}"#,
        r#"{"key":"objects/42","tok":"0"}"#,
        r#"{"key":"objects/42","tok":" 34"}"#,
        r#"{"key":"objects/42","tok":"+34"}"#,
        r#"{"key":"objects/42","tok":"18446744073709551616"}"#,
        r#"{"key":["objects/42"],"tok":"34"}"#,
        r#"{"key":"objects/42","tok":"34","tok":"35"}"#,
        r#"{"key":"objects/42","key":"objects/43","tok":"34"}"#,
        r#"{"key":"objects/42","tok":"34","exp":null}"#,
        r#"{"key":"objects/42","tok":"34","exp":"4102444800"}"#,
        r#"{"key":"objects/42","tok":"34","exp":1e999}"#,
        r#"{"key":"objects/42","tok":"34","exp":4102444800,"exp":4102444800}"#,
        r#"{"key":"objects/42","tok":"34","nbf":null}"#,
        r#"{"key":"objects/42","tok":"34","nbf":"0"}"#,
        r#"{"key":"objects/42","tok":"34","iss":7}"#,
        r#"{"key":"objects/42","tok":"34","iss":null}"#,
        r#"{"key":"objects/42","tok":"34","hld":""}"#,
        r#"{"key":"objects/42","tok":"34","hld":"two words"}"#,
        r#"{"key":"objects/42","tok":"34","hld":null}"#,
        r#"{"key":"objects/42","tok":"34"} {}"#,
    ] {
        let token = ed.sign(&header, payload);
        let refused = reason(HOUSE.verifier.verify(token.as_bytes()));
        assert_eq!(refused, Some(Reason::BadSignature), "{payload}");
    }
}

#[test]
fn what_is_no_jws_is_malformed() {
    let good = HOUSE.issuers[0].token(&claims());
    let (header, rest) = good.split_once('.').unwrap();
    let (payload, signature) = rest.split_once('.').unwrap();
    for bad in [
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        "34".to_owned(),
        "7.42".to_owned(),
        "1.2.3".to_owned(),
        format!("{header}.{payload}"),
        format!(".{payload}.{signature}"),
        format!("{good}.{signature}"),
        format!("{good}="),
        format!("{good},{good}"),
        format!("{good}, {good}"),
        format!("Bearer {good}"),
        format!("\"{good}\""),
        format!("{header} .{payload}.{signature}"),
        format!("{header}.{payload}+.{signature}"),
        format!("{header}.{payload}.{signature}!"),
        format!("{header}.{payload}.A"),
        format!("{}.{payload}.{signature}", base64url("not JSON")),
        format!("{}.{payload}.{signature}", base64url(r#""EdDSA""#)),
        format!("{}.{payload}.{signature}", base64url(r#"["EdDSA","ed"]"#)),
        format!("{}.{payload}.{signature}", base64url(b"{\"alg\":\"\xff\"}")),
        format!(
            "{}.{payload}.{signature}",
            base64url(r#"{"alg":"EdDSA"} x"#)
        ),
        json!({ "payload": payload, "signature": signature }).to_string(),
        "é.é.é".to_owned(),
    ] {
        let refused = reason(HOUSE.verifier.verify(bad.as_bytes()));
        assert_eq!(refused, Some(Reason::MalformedToken), "{bad}");
    }
}

#[test]
fn a_token_may_be_so_long_and_no_longer() {
    let ed = &HOUSE.issuers[0];
    let with = |padding: usize| {
        let mut claims = claims();
        claims["padding"] = json!("x".repeat(padding));
        ed.token(&claims)
    };
    let mut padding = 5800;
    while with(padding + 1).len() <= MAX_TOKEN_BYTES {
        padding += 1;
    }
    assert!(HOUSE.verifier.verify(with(padding).as_bytes()).is_ok());
    let refusal = HOUSE
        .verifier
        .verify(with(padding + 1).as_bytes())
        .unwrap_err();
    assert_eq!(refusal.reason, Reason::MalformedToken);
    assert!(refusal.detail.contains(&MAX_TOKEN_BYTES.to_string()));
}

#[test]
fn times_are_compared_each_time() {
    let ed = &HOUSE.issuers[0];
    let verifier = JwsVerifier::new(Arc::new(key_set(&jwks(&[ed]))), None);
    let mut claims = claims();
    claims["nbf"] = json!(1_000);
    claims["exp"] = json!(2_000.5);
    let token = ed.token(&claims);
    for (now_s, counts) in [
        (0.0, false),
        (969.9, false),
        (970.0, true),
        (1_500.0, true),
        (2_000.4, true),
        (2_000.5, false),
        // It was verified, and is over.
        (1_500.0, true),
        (2_001.0, false),
    ] {
        assert_eq!(
            verifier.says(token.as_bytes(), now_s).is_ok(),
            counts,
            "{now_s}"
        );
    }
    for never in [json!(0), json!(-5), json!(-1e300)] {
        claims["exp"] = never;
        let token = ed.token(&claims);
        assert!(verifier.says(token.as_bytes(), 1_500.0).is_err());
    }
    for ever in [json!(1e300), json!(u64::MAX)] {
        claims["exp"] = ever;
        let token = ed.token(&claims);
        assert!(verifier.says(token.as_bytes(), 1_500.0).is_ok());
    }
}

#[test]
fn an_issuer_that_is_asked_for_must_be_named() {
    let ed = &HOUSE.issuers[0];
    let keys = Arc::new(key_set(&jwks(&[ed])));
    let of = |issuer: Option<&str>| JwsVerifier::new(Arc::clone(&keys), issuer.map(str::to_owned));
    let mut named = claims();
    named["iss"] = json!("locks.example");
    let (named, nameless) = (ed.token(&named), ed.token(&claims()));
    // The two share what they have verified, and not what they ask for.
    for _ in 0..2 {
        assert!(of(None).verify(named.as_bytes()).is_ok());
        assert!(of(None).verify(nameless.as_bytes()).is_ok());
        assert!(of(Some("locks.example")).verify(named.as_bytes()).is_ok());
        assert!(
            of(Some("locks.example"))
                .verify(nameless.as_bytes())
                .is_err()
        );
        assert!(of(Some("Locks.example")).verify(named.as_bytes()).is_err());
    }
}

#[test]
fn other_keys_know_nothing_of_what_was_verified() {
    let (old, new) = (Issuer::ed25519("1"), Issuer::ed25519("1"));
    let token = old.token(&claims());
    let before = verifier(&[&old]);
    assert!(before.verify(token.as_bytes()).is_ok());
    let after = verifier(&[&new]);
    assert_eq!(
        reason(after.verify(token.as_bytes())),
        Some(Reason::BadSignature)
    );
}

#[test]
fn refusals_and_debug_repeat_nothing_that_was_sent() {
    let text = jwks(&[&HOUSE.issuers[0], &HOUSE.issuers[2]]);
    let keys = Arc::new(key_set(&text));
    let verifier = JwsVerifier::new(keys, None);
    let mut said = format!("{verifier:?}");
    let good = HOUSE.issuers[0].token(&claims());
    for sent in [
        good.replace("ey", "ez"),
        format!("{good}x"),
        "hunter2".to_owned(),
    ] {
        said += &format!("{:?}", verifier.verify(sent.as_bytes()));
    }
    for secret in [
        "hunter2",
        &base64url(SECRET),
        good.split('.').next_back().unwrap(),
    ] {
        assert!(!said.contains(secret), "{said}");
    }
}

mod file {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        match read(Path::new("keys.json"), text.as_bytes()) {
            Ok((_, warnings)) => warnings.iter().map(|one| format!("odd {one}")).collect(),
            Err(problems) => problems.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn all_that_is_wrong_with_a_file_is_told_with_its_place() {
        let text = r#"{
  "keys": [
    { "kty": "OKP", "crv": "Ed25519", "kid": "a", "x": "AAAA" },
    { "kty": "OKP", "crv": "Ed25519", "kid": 7, "x": "not base64" },
    { "kty": "EC", "crv": "P-256", "kid": "c",
      "x": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
      "y": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" },
    { "kty": "oct", "kid": "d", "k": "c2hvcnQ" },
    { "crv": "Ed25519" },
    { "kty": "oct", "kty": "oct" },
    { "kty": "oct", "key_ops": "verify", "k": "YSBzaGFyZWQgc2VjcmV0IG9mIHRoaXJ0eS10d28gYnk" },
    7
  ]
}"#;
        assert_eq!(
            problems(text),
            [
                "keys.json:3:56: keys[0].x: expected 32 bytes, found 3",
                "keys.json:4:46: keys[1].kid: expected text",
                "keys.json:4:54: keys[1].x: expected base64url without padding",
                "keys.json:6:12: keys[2].x: x and y are no point on the curve P-256",
                "keys.json:8:38: keys[3].k: expected at least 32 bytes, found 5",
                "keys.json:9:5: keys[4]: kty is missing",
                "keys.json:10:28: keys[5].kty: this member is given twice",
                "keys.json:10:5: keys[5]: k is missing",
                "keys.json:11:32: keys[6].key_ops: expected a list of text",
                "keys.json:12:5: keys[7]: expected an object",
            ]
        );
    }

    #[test]
    fn what_is_no_jwks_at_all_is_told_too() {
        for (text, expected) in [
            ("", "keys.json:1:1: the file is not JSON from here on"),
            ("keys", "keys.json:1:1: the file is not JSON from here on"),
            (
                "{\n \"keys\": [}",
                "keys.json:2:11: the file is not JSON from here on",
            ),
            (
                "[]",
                "keys.json:1:1: expected an object with a list of \"keys\"",
            ),
            ("\n{ }", "keys.json:1:1: keys is missing"),
            ("{ \"keys\": {} }", "keys.json:1:11: keys: expected a list"),
            (
                "{ \"keys\": [], \"keys\": [] }",
                "keys.json:1:23: keys: this member is given twice",
            ),
        ] {
            assert_eq!(problems(text), [expected], "{text}");
        }
        let problems = read(Path::new("k"), b"{ \"\xff\": 1 }").unwrap_err();
        assert_eq!(
            problems[0].to_string(),
            "k:1:4: the file is not UTF-8 from here on"
        );
    }

    #[test]
    fn each_token_must_be_able_to_say_which_key_it_was_signed_by() {
        let (a, b) = (Issuer::ed25519("a"), Issuer::ed25519("b"));
        let (mut a, mut b) = (a.jwk(), b.jwk());
        b["kid"] = json!("a");
        let text = json!({ "keys": [a, b] }).to_string();
        let said = problems(&text);
        assert!(
            said[0].ends_with("keys[1].kid: another key has this kid too, in line 1"),
            "{said:?}"
        );
        a.as_object_mut().unwrap().remove("kid");
        let text = json!({ "keys": [a, b] }).to_string();
        let said = problems(&text);
        assert!(
            said[0].contains("keys[0]: kid is missing, and another key"),
            "{said:?}"
        );
        assert_eq!(said.len(), 1);
        let text = json!({ "keys": [a, HOUSE.issuers[1].jwk()] }).to_string();
        assert_eq!(problems(&text), [""; 0]);
    }

    #[test]
    fn keys_for_something_else_are_left_out_and_that_is_said() {
        let ed = HOUSE.issuers[0].jwk();
        let with = |name: &str, value: Value| {
            let mut key = ed.clone();
            key[name] = value;
            json!({ "keys": [key] }).to_string()
        };
        for (text, expected) in [
            (
                json!({ "keys": [{ "kty": "RSA", "n": "AQAB", "e": "AQAB" }] }).to_string(),
                "kty",
            ),
            (with("crv", json!("X25519")), "crv"),
            (with("use", json!("enc")), "use"),
            (with("key_ops", json!(["sign"])), "key_ops"),
            (with("alg", json!("ES256")), "alg"),
        ] {
            let said = problems(&text);
            assert_eq!(said.len(), 2, "{said:?}");
            let left_out = format!("keys[0].{expected}: this key verifies no tokens");
            assert!(said[0].contains(&left_out), "{said:?}");
            assert!(said[1].contains("every token is refused"), "{said:?}");
        }
        let said = problems(&with("d", json!("hunter2")));
        assert!(
            said[0].contains("keys[0].d: this key is private"),
            "{said:?}"
        );
        for said in [
            with("alg", json!("EdDSA")),
            with("key_ops", json!(["sign", "verify"])),
            with("x5c", json!([1, 2])),
        ] {
            assert_eq!(problems(&said), [""; 0]);
        }
    }

    #[test]
    fn no_problem_repeats_what_may_be_a_secret() {
        for text in [
            r#"{ "keys": "hunter2" }"#,
            r#"{ "keys": [{ "kty": "oct", "k": "hunter2" }] }"#,
            r#"{ "keys": [{ "kty": "oct", "k": "hunter2!" }] }"#,
            r#"{ "keys": [{ "kty": "hunter2", "hunter2": 1, "hunter2": 2 }] }"#,
            r#"{ "keys": [{ "kty": "oct", "kid": { "hunter2": 1 }, "alg": "hunter2" }] }"#,
            r#"{ "keys": [hunter2] }"#,
        ] {
            let said = problems(text).join("\n");
            assert!(!said.is_empty() && !said.contains("hunter2"), "{said}");
        }
    }
}

/// Whether this is a JWS in compact form, read naively.
fn is_jws(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    let decoded: Vec<_> = parts
        .iter()
        .map(|part| URL_SAFE_NO_PAD.decode(part))
        .collect();
    parts.len() == 3
        && decoded.iter().all(Result::is_ok)
        && serde_json::from_slice::<Value>(decoded[0].as_ref().unwrap())
            .is_ok_and(|it| it.is_object())
}

fn json_text() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|it| json!(it)),
        any::<i64>().prop_map(|it| json!(it)),
        any::<f64>().prop_map(|it| json!(it)),
        "[a-z0-9/*.]{0,12}".prop_map(|it| json!(it)),
    ];
    let name = prop_oneof![
        Just("alg"),
        Just("kid"),
        Just("crit"),
        Just("key"),
        Just("tok"),
        Just("hld"),
        Just("exp"),
        Just("nbf"),
        Just("iss"),
        Just("other"),
    ];
    let map = prop::collection::vec((name, leaf.clone()), 0..6).prop_map(|list| {
        let list: Vec<_> = list
            .iter()
            .map(|(name, value)| format!("{name:?}:{value}"))
            .collect();
        format!("{{{}}}", list.join(","))
    });
    prop_oneof![8 => map, 1 => leaf.prop_map(|it| it.to_string()), 1 => "\\PC{0,20}"]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_are_taken_that_nobody_signed(sent in prop::collection::vec(any::<u8>(), 0..300)) {
        let refused = reason(HOUSE.verifier.verify(&sent)).unwrap();
        let naive = std::str::from_utf8(&sent).is_ok_and(is_jws);
        prop_assert_eq!(refused == Reason::BadSignature, naive);
    }

    #[test]
    fn a_token_that_was_changed_anywhere_is_none(
        which in 0_usize..3, at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in 0_u8..3,
    ) {
        let good = HOUSE.issuers[which].token(&claims());
        let mut sent = good.clone().into_bytes();
        let at = at.index(sent.len());
        match cut {
            0 => sent[at] = byte,
            1 => drop(sent.remove(at)),
            _ => sent.insert(at, byte),
        }
        // Also where the token itself has been verified just now.
        prop_assert!(HOUSE.verifier.verify(good.as_bytes()).is_ok());
        let result = HOUSE.verifier.verify(&sent);
        prop_assert_eq!(result.is_ok(), sent == good.as_bytes());
        let naive = std::str::from_utf8(&sent).is_ok_and(is_jws);
        prop_assert!(naive || reason(result) == Some(Reason::MalformedToken));
    }

    #[test]
    fn what_is_signed_over_decides(which in 0_usize..3, header in json_text(), payload in json_text()) {
        let issuer = &HOUSE.issuers[which];
        let token = issuer.sign(&header, &payload);
        let result = HOUSE.verifier.verify(token.as_bytes());
        // A naive reading: each name once, the right types, and only then the meaning.
        let once = |text: &str, name: &str| text.matches(&format!("{name:?}:")).count() <= 1;
        let head: Value = serde_json::from_str(&header).unwrap_or_default();
        let says: Value = serde_json::from_str(&payload).unwrap_or_default();
        let said_once = ["alg", "kid", "crit"].iter().all(|name| once(&header, name))
            && ["key", "tok", "hld", "exp", "nbf", "iss"].iter().all(|name| once(&payload, name));
        let text = |name: &str| says.get(name).is_none_or(Value::is_string);
        let number = |name: &str| says.get(name).is_none_or(Value::is_number);
        let good = said_once
            && head["alg"] == issuer.algorithm()
            && head.get("kid").is_none_or(|kid| *kid == issuer.jwk()["kid"])
            && head.get("crit").is_none()
            && says["key"].as_str().is_some_and(|key| !key.is_empty())
            && says["tok"].as_str().is_some_and(|token| token.parse::<fencegate_filters::Token>().is_ok())
            && ["hld", "iss"].iter().all(|name| text(name))
            && says.get("hld").is_none_or(|name| !name.as_str().unwrap_or_default().is_empty())
            && ["exp", "nbf"].iter().all(|name| number(name));
        if good {
            let now = 1.0e9;
            let over = says["exp"].as_f64().is_some_and(|exp| exp <= now);
            let not_yet = says["nbf"].as_f64().is_some_and(|nbf| nbf > now + 30.0);
            let counts = HOUSE.verifier.says(token.as_bytes(), now).is_ok();
            prop_assert_eq!(counts, !over && !not_yet);
        } else {
            let expected = if is_jws(&token) { Reason::BadSignature } else { Reason::MalformedToken };
            prop_assert_eq!(reason(result), Some(expected));
        }
    }

    #[test]
    fn any_file_is_read_or_told_where_it_is_wrong(text in "\\PC{0,80}", keys in prop::collection::vec(json_text(), 0..4)) {
        for text in [text, format!("{{\"keys\":[{}]}}", keys.join(",\n"))] {
            if let Err(problems) = read(Path::new("keys.json"), text.as_bytes()) {
                prop_assert!(!problems.is_empty());
                for problem in problems {
                    let lines: Vec<&str> = text.split('\n').collect();
                    let line = lines.get(problem.line - 1);
                    prop_assert!(line.is_some_and(|line| problem.column <= line.chars().count() + 1), "{}", problem);
                }
            }
        }
    }
}
