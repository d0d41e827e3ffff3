//! What verifies a route's tokens.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fencegate_filters::fault::{self, Fault};
use fencegate_filters::signed::{Grant, Verifier};
use fencegate_filters::{Reason, Refusal};
use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use moka::sync::Cache;

use super::jws::{Header, Parts, Says};

/// The longest token that is looked at, in bytes: room for a key of 1 KiB in escapes and claims
/// of the issuer's own.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// How far the issuer's clock may be ahead where it says from when a token counts. `exp` has no
/// such leeway: it says when the token is over.
pub const NBF_LEEWAY: Duration = Duration::from_secs(30);

/// How much memory the tokens that one file's keys have verified may take, in bytes.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;

/// What an entry of the cache takes besides the token, roughly.
const ENTRY_BYTES: usize = 512;

/// A key that verifies tokens, and the one algorithm that it does that by.
pub(super) struct VerifyingKey {
    pub(super) id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

impl VerifyingKey {
    fn verifies(&self, parts: &Parts<'_>) -> bool {
        crypto::verify(parts.signature, parts.signed, &self.key, self.algorithm).unwrap_or(false)
    }
}

type Verified = Cache<Box<[u8]>, Arc<Says>>;

/// The keys of one file, with what they have verified. Another file has a set of its own, so that
/// nothing that a key has verified outlives it.
pub struct KeySet {
    keys: Vec<VerifyingKey>,
    verified: Verified,
}

impl KeySet {
    pub(super) fn new(keys: Vec<VerifyingKey>) -> Self {
        static FOR_EVER: OnceLock<Verified> = OnceLock::new();
        let verified = if fault::planted(Fault::KeysForEver) {
            FOR_EVER.get_or_init(cache).clone()
        } else {
            cache()
        };
        Self { keys, verified }
    }

    /// What the token says, once its signature has been verified.
    fn verify(&self, sent: &[u8]) -> Result<Arc<Says>, Unverified> {
        if sent.len() > MAX_TOKEN_BYTES {
            return Err(Unverified::TooLong);
        }
        if let Some(says) = self.verified.get(sent) {
            return Ok(says);
        }
        let parts = Parts::of(sent).ok_or(Unverified::NoJws)?;
        let header = parts.header().ok_or(Unverified::Header)?;
        let key = self.key(&header)?;
        if !key.verifies(&parts) && !fault::planted(Fault::UnverifiedTokens) {
            return Err(Unverified::Signature);
        }
        let says = Arc::new(parts.says().ok_or(Unverified::Claims)?);
        self.verified.insert(sent.into(), Arc::clone(&says));
        Ok(says)
    }

    /// The one key that may have signed a token: that which it names, or, where it names none, the
    /// only one of its algorithm. So no token costs more than one signature to look at.
    fn key(&self, header: &Header) -> Result<&VerifyingKey, Unverified> {
        if header.crit.is_some() {
            return Err(Unverified::Critical);
        }
        let is_its_own = |key: &&VerifyingKey| names(key.algorithm).contains(&&*header.alg);
        if let Some(id) = &header.kid {
            let named = |key: &&VerifyingKey| key.id.as_ref() == Some(id);
            let key = self.keys.iter().find(named).ok_or(Unverified::Key)?;
            return Some(key).filter(is_its_own).ok_or(Unverified::Algorithm);
        }
        let mut of_algorithm = self.keys.iter().filter(is_its_own);
        match (of_algorithm.next(), of_algorithm.next()) {
            (Some(only), None) => Ok(only),
            (Some(_), Some(_)) => Err(Unverified::NoKeyId),
            (None, _) => Err(Unverified::Algorithm),
        }
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySet")
            .field("keys", &self.keys.len())
            .finish_non_exhaustive()
    }
}

/// As `alg` names an algorithm: RFC 9864 has a second name for one of them.
pub(super) const fn names(algorithm: Algorithm) -> &'static [&'static str] {
    match algorithm {
        Algorithm::EdDSA => &["EdDSA", "Ed25519"],
        Algorithm::ES256 => &["ES256"],
        Algorithm::HS256 => &["HS256"],
        // No key is read for any other.
        _ => &[],
    }
}

fn cache() -> Verified {
    Verified::builder()
        .max_capacity(CACHE_BYTES)
        .weigher(|sent, _| u32::try_from(sent.len() + ENTRY_BYTES).unwrap_or(u32::MAX))
        .build()
}

/// Verifies the tokens of a route. By default there is no key, and every token is refused.
#[derive(Debug)]
pub struct JwsVerifier {
    keys: Arc<KeySet>,
    /// Who must have issued the token.
    issuer: Option<String>,
}

impl JwsVerifier {
    /// By these keys; where `issuer` is named, the token must name it too.
    #[must_use]
    pub const fn new(keys: Arc<KeySet>, issuer: Option<String>) -> Self {
        Self { keys, issuer }
    }

    pub(super) fn says(&self, sent: &[u8], now_s: f64) -> Result<Arc<Says>, Unverified> {
        let says = self.keys.verify(sent)?;
        // Compared anew each time: what was verified once may be over by now.
        if self.issuer.is_some() && self.issuer != says.issuer {
            return Err(Unverified::Issuer);
        }
        let over = says.expires_s.is_some_and(|expires_s| now_s >= expires_s);
        if over && !fault::planted(Fault::ExpiredTokens) {
            self.keys.verified.invalidate(sent);
            return Err(Unverified::Expired);
        }
        let forgiven_s = now_s + NBF_LEEWAY.as_secs_f64();
        if says.begins_s.is_some_and(|begins_s| forgiven_s < begins_s) {
            return Err(Unverified::NotYet);
        }
        Ok(says)
    }
}

impl Default for JwsVerifier {
    fn default() -> Self {
        Self::new(Arc::new(KeySet::new(Vec::new())), None)
    }
}

impl Verifier for JwsVerifier {
    fn verify(&self, sent: &[u8]) -> Result<Arc<Grant>, Refusal> {
        match self.says(sent, now_s()) {
            Ok(says) => Ok(Arc::clone(&says.grant)),
            Err(unverified) => Err(unverified.into()),
        }
    }
}

/// Seconds since 1970 by the clock on the wall, as issuers count them.
fn now_s() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0.0, |now| now.as_secs_f64())
}

/// Why a token is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unverified {
    TooLong,
    NoJws,
    Header,
    Critical,
    Key,
    NoKeyId,
    Algorithm,
    Signature,
    Claims,
    Issuer,
    Expired,
    NotYet,
}

impl From<Unverified> for Refusal {
    fn from(unverified: Unverified) -> Self {
        let (reason, detail) = match unverified {
            Unverified::TooLong => (
                Reason::MalformedToken,
                "The token is longer than 8192 bytes: send the signed token that came with the lock.",
            ),
            Unverified::NoJws => (
                Reason::MalformedToken,
                "The token is not a signed one (a JWS in compact form): send it as it came with the lock.",
            ),
            Unverified::Header => (
                Reason::BadSignature,
                "The token's header is not that of a JWS: alg and kid are text, and each stands there once.",
            ),
            Unverified::Critical => (
                Reason::BadSignature,
                "The token's header has crit: no extension of JWS is understood here.",
            ),
            Unverified::Key => (
                Reason::BadSignature,
                "No key here has the kid that the token names: it was signed by a key that is not taken, or no longer; acquire the lock again.",
            ),
            Unverified::NoKeyId => (
                Reason::BadSignature,
                "The token names no kid, and more than one key here has its algorithm: its issuer must name the key.",
            ),
            Unverified::Algorithm => (
                Reason::BadSignature,
                "The token's alg is not that of the key: EdDSA, ES256 or HS256, as the key has it.",
            ),
            Unverified::Signature => (
                Reason::BadSignature,
                "The token's signature does not verify: send it as it came with the lock.",
            ),
            Unverified::Claims => (
                Reason::BadSignature,
                "The token's claims are not of the right form: key and tok must be there as text, hld and iss are text, exp and nbf numbers.",
            ),
            Unverified::Issuer => (
                Reason::BadSignature,
                "The token's iss is not the issuer that is taken here.",
            ),
            Unverified::Expired => (
                Reason::BadSignature,
                "The token has expired: acquire the lock again.",
            ),
            Unverified::NotYet => (
                Reason::BadSignature,
                "The token does not count yet (nbf): compare the issuer's clock with this one.",
            ),
        };
        Self::new(reason, detail)
    }
}
