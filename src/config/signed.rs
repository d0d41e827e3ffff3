//! Whose signature a token must have.

use std::sync::Arc;

use super::choice::Trust;
use super::decode::{Decoder, Map};
use super::problem::Spanned;
use super::tls::file;
use super::tree::Node;
use crate::signed::{self, JwsVerifier, KeySet};

/// Reads `trust`, `jwks` and `issuer`. No verifier where none is asked for, or something is wrong.
pub(super) fn trust(
    d: &mut Decoder<'_>,
    map: &mut Map<'_>,
    unwritten: Spanned<Trust>,
) -> (Spanned<Trust>, Option<Arc<JwsVerifier>>) {
    let asked = map.get("trust");
    let jwks = map.get("jwks").filter(|node| !node.is_null());
    let issuer = map.get("issuer").filter(|node| !node.is_null());
    let trust = match asked {
        None => unwritten,
        Some(node) => match d.choice(node) {
            Some(trust) => Spanned::new(trust, node.at.clone()),
            None => return (unwritten, None),
        },
    };
    if trust.value != Trust::Signed {
        for (name, node) in [("jwks", jwks), ("issuer", issuer)] {
            // Who names keys and forgets this would believe that tokens are verified.
            if let Some(node) = node {
                d.problem(&node.at, format!("{name} needs trust: signed"));
            }
        }
        return (trust, None);
    }
    let issuer = issuer.map(|node| d.spanned(node).map(|issuer| issuer.value));
    let Some(node) = jwks else {
        let message = "trust: signed needs jwks, the file with the keys that tokens are signed by";
        d.problem(&trust.at, message);
        return (trust, None);
    };
    let keys = keys(d, node);
    let verifier = match (keys, issuer) {
        (Some(keys), None) => Some(JwsVerifier::new(keys, None)),
        (Some(keys), Some(Some(issuer))) => Some(JwsVerifier::new(keys, Some(issuer))),
        _ => None,
    };
    (trust, verifier.map(Arc::new))
}

/// The keys of a file, which routes that name the same one share.
fn keys(d: &mut Decoder<'_>, node: &Node) -> Option<Arc<KeySet>> {
    let read = file(d, node)?;
    let path = read.path.value;
    if let Some(known) = d.key_sets.get(&path) {
        return known.clone();
    }
    let keys = match signed::read(&path, &read.bytes) {
        Ok((keys, warnings)) => {
            d.warnings.extend(warnings);
            Some(Arc::new(keys))
        }
        Err(problems) => {
            d.reporter.add(problems);
            None
        }
    };
    d.key_sets.insert(path, keys.clone());
    keys
}
