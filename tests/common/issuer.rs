//! An issuer of signed tokens, which can also sign what no issuer would.

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// One key of an issuer, and what it is called.
pub(crate) struct Issuer {
    id: &'static str,
    key: Key,
}

enum Key {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
    Shared(Vec<u8>),
}

impl Issuer {
    pub(crate) fn ed25519(id: &'static str) -> Self {
        let key = Key::Ed25519(Ed25519KeyPair::generate().unwrap());
        Self { id, key }
    }

    pub(crate) fn p256(id: &'static str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let key = Key::P256(pair);
        Self { id, key }
    }

    /// With a secret that the gateway has too.
    pub(crate) fn shared(id: &'static str, secret: &[u8]) -> Self {
        let key = Key::Shared(secret.to_vec());
        Self { id, key }
    }

    pub(crate) fn algorithm(&self) -> &'static str {
        match self.key {
            Key::Ed25519(_) => "EdDSA",
            Key::P256(_) => "ES256",
            Key::Shared(_) => "HS256",
        }
    }

    /// The key as it stands in a JWKS file.
    pub(crate) fn jwk(&self) -> Value {
        match &self.key {
            Key::Ed25519(pair) => {
                let x = base64url(pair.public_key());
                json!({ "kty": "OKP", "crv": "Ed25519", "x": x, "kid": self.id })
            }
            Key::P256(pair) => {
                let point = pair.public_key().as_ref();
                let (x, y) = (base64url(&point[1..33]), base64url(&point[33..65]));
                json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": self.id, "use": "sig" })
            }
            Key::Shared(secret) => json!({
                "kty": "oct", "k": base64url(secret), "kid": self.id, "alg": "HS256",
            }),
        }
    }

    /// The header of what it signs.
    pub(crate) fn header(&self) -> Value {
        json!({ "alg": self.algorithm(), "kid": self.id })
    }

    /// A signed token with these claims.
    pub(crate) fn token(&self, claims: &Value) -> String {
        self.sign(&self.header().to_string(), &claims.to_string())
    }

    /// Signs any header and any payload.
    pub(crate) fn sign(&self, header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", base64url(header), base64url(payload));
        let bytes = signed.as_bytes();
        let signature = match &self.key {
            Key::Ed25519(pair) => base64url(pair.sign(bytes)),
            Key::P256(pair) => base64url(pair.sign(&SystemRandom::new(), bytes).unwrap()),
            Key::Shared(secret) => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
                base64url(hmac::sign(&key, bytes))
            }
        };
        format!("{signed}.{signature}")
    }
}

/// A JWKS file with these keys.
pub(crate) fn jwks(issuers: &[&Issuer]) -> String {
    let keys: Vec<Value> = issuers.iter().map(|issuer| issuer.jwk()).collect();
    serde_json::to_string_pretty(&json!({ "keys": keys })).unwrap()
}

/// The `tok` that a signed token claims; nothing is verified.
pub(crate) fn claimed(token: &str) -> Option<String> {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&payload).ok()?;
    Some(claims["tok"].as_str()?.to_owned())
}

pub(crate) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
