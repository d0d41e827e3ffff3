//! A token taken apart. Nothing here is to be believed before the signature has been verified.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fencegate_filters::signed::{Grant, GrantedKeys};
use fencegate_filters::{Token, tokens};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};

/// The three parts of a JWS in compact form (RFC 7515, section 7.1).
pub(super) struct Parts<'t> {
    /// What the signature is over: the first two parts as they were sent.
    pub(super) signed: &'t [u8],
    pub(super) signature: &'t str,
    /// The header's JSON.
    header: String,
    payload: Vec<u8>,
}

impl<'t> Parts<'t> {
    /// `None` where this is no JWS at all: three parts in base64url, of which the first is a JSON
    /// object.
    pub(super) fn of(sent: &'t [u8]) -> Option<Self> {
        let sent = std::str::from_utf8(sent).ok()?;
        let (signed, signature) = sent.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        URL_SAFE_NO_PAD.decode(signature).ok()?;
        let payload = URL_SAFE_NO_PAD.decode(payload).ok()?;
        let header = String::from_utf8(URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        let is_json = serde_json::from_str::<IgnoredAny>(&header).is_ok();
        (is_json && is_object(header.as_bytes())).then_some(Self {
            signed: signed.as_bytes(),
            signature,
            header,
            payload,
        })
    }

    /// `None` where it is not of the form that RFC 7515 gives it.
    pub(super) fn header(&self) -> Option<Header> {
        serde_json::from_str(&self.header).ok()
    }

    /// What it says; `None` where that is not of the form of a grant.
    pub(super) fn says(&self) -> Option<Says> {
        let claims: Claims = object(&self.payload)?;
        let holder = match claims.hld {
            None => None,
            Some(name) => Some(tokens::holder(name.as_bytes())?),
        };
        Some(Says {
            grant: Arc::new(Grant {
                keys: GrantedKeys::parse(&claims.key)?,
                token: Token::from_bytes(claims.tok.as_bytes()).ok()?,
                holder,
            }),
            issuer: claims.iss,
            expires_s: claims.exp,
            begins_s: claims.nbf,
        })
    }
}

/// What a token says of how it was signed. A name that comes twice is refused (section 4).
#[derive(Deserialize)]
pub(super) struct Header {
    pub(super) alg: String,
    #[serde(default, deserialize_with = "present")]
    pub(super) kid: Option<String>,
    /// Names extensions that must be understood, and none is (section 4.1.11).
    #[serde(default, deserialize_with = "present")]
    pub(super) crit: Option<IgnoredAny>,
}

/// The claims that count; others are somebody else's.
#[derive(Deserialize)]
struct Claims {
    key: String,
    tok: String,
    #[serde(default, deserialize_with = "present")]
    hld: Option<String>,
    #[serde(default, deserialize_with = "present")]
    iss: Option<String>,
    #[serde(default, deserialize_with = "present")]
    exp: Option<f64>,
    #[serde(default, deserialize_with = "present")]
    nbf: Option<f64>,
}

/// What a token says, once that can be believed. Times are in seconds since 1970 (RFC 7519,
/// section 2: NumericDate).
#[derive(Debug)]
pub(super) struct Says {
    pub(super) grant: Arc<Grant>,
    pub(super) issuer: Option<String>,
    pub(super) expires_s: Option<f64>,
    pub(super) begins_s: Option<f64>,
}

/// A member that may be left out, and is not `null`: an `exp` of `null` must not mean "never".
fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}

fn object<T: DeserializeOwned>(json: &[u8]) -> Option<T> {
    is_object(json).then(|| serde_json::from_slice(json).ok())?
}

/// Whether JSON is an object: a list would be taken for a struct as well.
fn is_object(json: &[u8]) -> bool {
    let mut bytes = json.iter();
    bytes.find(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r')) == Some(&b'{')
}
