//! Keys as they stand in a JWKS file, and what is wrong with them.
//!
//! Every problem has its place in the file. None repeats what the file says but for the names of
//! things, and those short: what stands there may be a secret.
//!
//! A key of a kind that this version does not verify by is no problem, since files of keys are
//! shared (RFC 7517, section 5): it is left out, and that is said.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::verifier::{KeySet, VerifyingKey, names};
use crate::config::{Position, Problem};

/// The length of a coordinate, of a public key of Ed25519, and the least length of a shared
/// secret (RFC 7518, section 3.2), in bytes.
const KEY_BYTES: usize = 32;

/// Reads the keys of a file, with what is odd about it.
///
/// # Errors
///
/// Everything that is wrong with the file, each with its place.
pub fn read(file: &Path, bytes: &[u8]) -> Result<(KeySet, Vec<Problem>), Vec<Problem>> {
    let mut reader = Reader {
        file,
        text: "",
        problems: Vec::new(),
        warnings: Vec::new(),
    };
    let keys = match std::str::from_utf8(bytes) {
        Ok(text) => {
            reader.text = text;
            reader.keys()
        }
        Err(error) => {
            let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
            reader.text = std::str::from_utf8(valid).unwrap_or_default();
            let at = reader.place(valid.len(), "");
            reader.problem(&at, "the file is not UTF-8 from here on");
            Vec::new()
        }
    };
    if !reader.problems.is_empty() {
        return Err(reader.problems);
    }
    Ok((KeySet::new(keys), reader.warnings))
}

struct Reader<'f> {
    file: &'f Path,
    text: &'f str,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

/// A key, and where it and its `kid` stand.
struct Found {
    key: VerifyingKey,
    at: Position,
    id_at: Option<Position>,
}

impl<'f> Reader<'f> {
    fn keys(&mut self) -> Vec<VerifyingKey> {
        let start = self.place(0, "");
        // Reading it as JSON of any kind first tells what is no JSON from what is no JWKS.
        let whole: &RawValue = match serde_json::from_str(self.text) {
            Ok(whole) => whole,
            Err(error) => {
                // The error counts bytes, and a reader characters.
                let line = self.text.split('\n').nth(error.line().saturating_sub(1));
                let line = line.unwrap_or_default().char_indices();
                let before = line.take_while(|(byte, _)| byte + 1 < error.column());
                let at = Position {
                    line: error.line().max(1),
                    column: before.count() + 1,
                    key_path: Arc::from(""),
                };
                self.problem(&at, "the file is not JSON from here on");
                return Vec::new();
            }
        };
        let Some(members) = self.members(whole, "") else {
            self.problem(&start, "expected an object with a list of \"keys\"");
            return Vec::new();
        };
        let Some(list) = members.get("keys") else {
            self.problem(&start, "keys is missing");
            return Vec::new();
        };
        let Ok(list) = serde_json::from_str::<Vec<&RawValue>>(list.get()) else {
            let at = self.at(list, "keys");
            self.problem(&at, "expected a list");
            return Vec::new();
        };
        let found: Vec<Found> = list
            .iter()
            .enumerate()
            .filter_map(|(index, raw)| self.key(raw, index))
            .collect();
        self.check(&found);
        if found.is_empty() && self.problems.is_empty() {
            let at = members
                .get("keys")
                .map_or(start, |list| self.at(list, "keys"));
            self.warn(
                &at,
                "there is no key here that verifies tokens: every token is refused",
            );
        }
        found.into_iter().map(|found| found.key).collect()
    }

    /// Whether each token can say which key it was signed by.
    fn check(&mut self, found: &[Found]) {
        let mut ids: HashMap<&str, usize> = HashMap::new();
        for one in found {
            let Some((id, at)) = one.key.id.as_deref().zip(one.id_at.as_ref()) else {
                let same = |other: &&Found| other.key.algorithm == one.key.algorithm;
                if found.iter().filter(same).count() > 1 {
                    let message = "kid is missing, and another key has the same algorithm: a token \
                                   could not say which of them it was signed by";
                    self.problem(&one.at, message);
                }
                continue;
            };
            if let Some(line) = ids.get(id) {
                let message = format!("another key has this kid too, in line {line}");
                self.problem(at, message);
            } else {
                ids.insert(id, at.line);
            }
        }
    }

    fn key(&mut self, raw: &'f RawValue, index: usize) -> Option<Found> {
        let path = format!("keys[{index}]");
        let at = self.at(raw, &path);
        let Some(members) = self.members(raw, &path) else {
            self.problem(&at, "expected an object");
            return None;
        };
        let mut fields = Fields {
            reader: self,
            members,
            at: at.clone(),
            path,
        };
        let before = fields.reader.problems.len();
        let key = fields.key();
        let id_at = fields.place_of("kid");
        (self.problems.len() == before).then_some(())?;
        Some(Found {
            key: key?,
            at,
            id_at,
        })
    }

    /// The members of an object; `None` where it is none.
    fn members(&mut self, raw: &'f RawValue, path: &str) -> Option<HashMap<String, &'f RawValue>> {
        let Members(list) = serde_json::from_str(raw.get()).ok()?;
        let mut members = HashMap::new();
        for (name, value) in list {
            let at = self.at(value, &joined(path, &name));
            if members.insert(name, value).is_some() {
                self.problem(&at, "this member is given twice");
            }
        }
        Some(members)
    }

    /// Where a piece of the file stands.
    fn at(&self, raw: &RawValue, path: &str) -> Position {
        // Each piece is a slice of the text.
        let offset = raw.get().as_ptr().addr() - self.text.as_ptr().addr();
        self.place(offset, path)
    }

    fn place(&self, offset: usize, path: &str) -> Position {
        let before = self.text.get(..offset).unwrap_or_default();
        let line = before.rsplit('\n').next().unwrap_or_default();
        Position {
            line: before.matches('\n').count() + 1,
            column: line.chars().count() + 1,
            key_path: Arc::from(path),
        }
    }

    fn problem(&mut self, at: &Position, message: impl Into<String>) {
        self.problems.push(Problem::new(self.file, at, message));
    }

    fn warn(&mut self, at: &Position, message: impl Into<String>) {
        self.warnings.push(Problem::new(self.file, at, message));
    }
}

/// The members of one key.
struct Fields<'r, 'f> {
    reader: &'r mut Reader<'f>,
    members: HashMap<String, &'f RawValue>,
    at: Position,
    path: String,
}

impl Fields<'_, '_> {
    /// The key; `None` where it is broken, or not one to verify tokens by.
    fn key(&mut self) -> Option<VerifyingKey> {
        let id = self.optional("kid");
        let kind = self.text("kty")?;
        let (algorithm, key) = match kind.as_str() {
            "OKP" => {
                self.curve("Ed25519")?;
                (Algorithm::EdDSA, self.ed25519())
            }
            "EC" => {
                self.curve("P-256")?;
                (Algorithm::ES256, self.p256())
            }
            "oct" => (Algorithm::HS256, self.secret()),
            _ => return self.left_out("kty", "kty is none of OKP, EC and oct"),
        };
        self.check_purpose(algorithm)?;
        let (id, key) = (id.ok()?, key?);
        if algorithm != Algorithm::HS256
            && let Some(at) = self.place_of("d")
        {
            let message = "this key is private: whoever reads the file can sign tokens, and to \
                           verify them the public part is enough";
            self.reader.warn(&at, message);
        }
        Some(VerifyingKey { id, algorithm, key })
    }

    /// `None` where the key is for something else than verifying tokens by this algorithm.
    fn check_purpose(&mut self, algorithm: Algorithm) -> Option<()> {
        if self.optional("use").ok()?.is_some_and(|it| it != "sig") {
            return self.left_out("use", "use is not sig");
        }
        if let Some(operations) = self.members.get("key_ops") {
            let Ok(operations) = serde_json::from_str::<Vec<String>>(operations.get()) else {
                return self.broken("key_ops", "expected a list of text");
            };
            if !operations.iter().any(|operation| operation == "verify") {
                return self.left_out("key_ops", "key_ops does not have verify");
            }
        }
        let named = self.optional("alg").ok()?;
        if named.is_some_and(|named| !names(algorithm).contains(&&*named)) {
            let name = names(algorithm).first().copied().unwrap_or_default();
            return self.left_out("alg", &format!("alg is not {name}"));
        }
        Some(())
    }

    fn curve(&mut self, taken: &str) -> Option<()> {
        let curve = self.text("crv")?;
        if curve != taken {
            return self.left_out("crv", &format!("crv is not {taken}"));
        }
        Some(())
    }

    fn ed25519(&mut self) -> Option<DecodingKey> {
        let x = self.bytes("x", |length| length == KEY_BYTES, "32 bytes")?;
        if ParsedPublicKey::new(&ED25519, &x).is_err() {
            return self.broken("x", "this is no public key of Ed25519");
        }
        Some(DecodingKey::from_ed_der(&x))
    }

    fn p256(&mut self) -> Option<DecodingKey> {
        let x = self.bytes("x", |length| length == KEY_BYTES, "32 bytes");
        let y = self.bytes("y", |length| length == KEY_BYTES, "32 bytes");
        // An uncompressed point (SEC 1, section 2.3.3).
        let point = [&[4][..], &x?, &y?].concat();
        if ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &point).is_err() {
            return self.broken("x", "x and y are no point on the curve P-256");
        }
        Some(DecodingKey::from_ec_der(&point))
    }

    fn secret(&mut self) -> Option<DecodingKey> {
        let secret = self.bytes("k", |length| length >= KEY_BYTES, "at least 32 bytes")?;
        Some(DecodingKey::from_secret(&secret))
    }

    fn bytes(
        &mut self,
        name: &str,
        fits: impl FnOnce(usize) -> bool,
        expected: &str,
    ) -> Option<Vec<u8>> {
        let text = self.text(name)?;
        let Ok(bytes) = URL_SAFE_NO_PAD.decode(text) else {
            return self.broken(name, "expected base64url without padding");
        };
        if !fits(bytes.len()) {
            let message = format!("expected {expected}, found {}", bytes.len());
            return self.broken(name, &message);
        }
        Some(bytes)
    }

    /// Text that must be there.
    fn text(&mut self, name: &str) -> Option<String> {
        let text = self.optional(name).ok()?;
        if text.is_none() {
            let at = self.at.clone();
            self.reader.problem(&at, format!("{name} is missing"));
        }
        text
    }

    /// Text that may be left out; an error where something else stands there, which was reported.
    fn optional(&mut self, name: &str) -> Result<Option<String>, ()> {
        let Some(raw) = self.members.get(name) else {
            return Ok(None);
        };
        match serde_json::from_str(raw.get()) {
            Ok(text) => Ok(Some(text)),
            Err(_) => {
                self.broken::<()>(name, "expected text");
                Err(())
            }
        }
    }

    fn place_of(&self, name: &str) -> Option<Position> {
        let raw = self.members.get(name)?;
        Some(self.reader.at(raw, &joined(&self.path, name)))
    }

    fn broken<T>(&mut self, name: &str, message: &str) -> Option<T> {
        let at = self.place_of(name).unwrap_or_else(|| self.at.clone());
        self.reader.problem(&at, message);
        None
    }

    fn left_out<T>(&mut self, name: &str, why: &str) -> Option<T> {
        let at = self.place_of(name).unwrap_or_else(|| self.at.clone());
        self.reader
            .warn(&at, format!("this key verifies no tokens: {why}"));
        None
    }
}

/// `keys[0]` and `kid` as `keys[0].kid`. What may be anything is not repeated.
fn joined(path: &str, name: &str) -> String {
    let known = [
        "keys", "kty", "kid", "use", "key_ops", "alg", "crv", "x", "y", "k", "d",
    ];
    let name = if known.contains(&name) { name } else { "…" };
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// The members of an object in their order, as they stand in the file: a name that comes twice
/// comes twice.
struct Members<'t>(Vec<(String, &'t RawValue)>);

impl<'de: 't, 't> Deserialize<'de> for Members<'t> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reads;

        impl<'de> Visitor<'de> for Reads {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(members)
            }
        }

        deserializer.deserialize_map(Reads).map(Self)
    }
}
