//! Signed tokens (`fence.trust: signed`): a JWS in compact form for each grant, verified by the
//! keys of a JWKS file (RFC 7515, RFC 7517).
//!
//! | file | what |
//! | --- | --- |
//! | `jwks` | keys as they stand in the file, and what is wrong with them |
//! | `jws` | a token taken apart: which key it names, what it says |
//! | `verifier` | what verifies a route's tokens, and remembers what it has verified |
//!
//! What is verified decides which key, and the key decides which algorithm: nothing that a token
//! says of itself chooses how it is verified. The signature itself is `jsonwebtoken`'s to verify.

mod jwks;
mod jws;
#[cfg(test)]
mod tests;
mod verifier;

pub use jwks::read;
pub use verifier::{JwsVerifier, KeySet, MAX_TOKEN_BYTES, NBF_LEEWAY};
