//! Signed tokens: what an issuer has said of a token, and the seam to who verifies it.
//!
//! A fence that takes every well-formed token believes its clients. Where a policy has a
//! [`Verifier`], the token header carries a signed statement in the place of the number: which
//! token it is, for which keys, and, if its issuer says so, for which holder. Nothing is compared
//! before it is verified. This crate knows no cryptography: who uses the fence brings the verifier.
//!
//! ```
//! use std::sync::Arc;
//! use fencegate_filters::signed::{Grant, GrantedKeys, Verifier};
//! use fencegate_filters::{Key, Reason, Refusal};
//!
//! /// Knows the one statement that was ever made.
//! #[derive(Debug)]
//! struct ByHeart(Arc<Grant>);
//!
//! impl Verifier for ByHeart {
//!     fn verify(&self, sent: &[u8]) -> Result<Arc<Grant>, Refusal> {
//!         let known = sent == b"by heart";
//!         let refusal = || Refusal::new(Reason::BadSignature, "Nobody has said this.");
//!         known.then(|| Arc::clone(&self.0)).ok_or_else(refusal)
//!     }
//! }
//!
//! let verifier = ByHeart(Arc::new(Grant {
//!     keys: GrantedKeys::parse("objects/*").unwrap(),
//!     token: "34".parse()?,
//!     holder: None,
//! }));
//! let grant = verifier.verify(b"by heart").unwrap();
//! assert!(grant.keys.cover(&Key::new("objects", "42")));
//! assert!(!grant.keys.cover(&Key::new("others", "42")));
//! assert!(verifier.verify(b"forged").is_err());
//! # Ok::<(), fencegate_filters::token::MalformedToken>(())
//! ```

use std::fmt;
use std::sync::Arc;

use crate::{Key, Refusal, Token};

/// Verifies what stands in the token header.
pub trait Verifier: fmt::Debug + Send + Sync {
    /// What was signed. `sent` is the field's value without the white space around it.
    ///
    /// # Errors
    ///
    /// [`Reason::MalformedToken`](crate::Reason::MalformedToken) where it is no signed token at
    /// all, and [`Reason::BadSignature`](crate::Reason::BadSignature) where it does not verify or
    /// does not count now. Neither repeats anything that was sent.
    fn verify(&self, sent: &[u8]) -> Result<Arc<Grant>, Refusal>;
}

/// What an issuer has signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The keys that the token is for.
    pub keys: GrantedKeys,
    /// The token.
    pub token: Token,
    /// Whom it was given to.
    pub holder: Option<Arc<str>>,
}

/// The keys of a grant: one, or all that begin alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrantedKeys {
    /// This key, `NAMESPACE/KEY`.
    One(Box<str>),
    /// Every key that begins so.
    Prefix(Box<str>),
}

impl GrantedKeys {
    /// Reads a key with its namespace, or a prefix that ends in `*`. The star is literal nowhere
    /// else, so `objects/a*` is the prefix also where an object is called `a*`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return None;
        }
        Some(match text.strip_suffix('*') {
            Some(prefix) => Self::Prefix(prefix.into()),
            None => Self::One(text.into()),
        })
    }

    /// Whether this key is one of them.
    #[must_use]
    pub fn cover(&self, key: &Key) -> bool {
        match self {
            Self::One(one) => **one == *key.as_str(),
            Self::Prefix(prefix) => key.as_str().starts_with(&**prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(granted: &str, key: &str) -> bool {
        GrantedKeys::parse(granted)
            .unwrap()
            .cover(&Key::from_text(key))
    }

    #[test]
    fn one_key_or_all_that_begin_alike() {
        assert!(covers("objects/42", "objects/42"));
        for other in ["objects/4", "objects/421", "Objects/42", "other/42", "42"] {
            assert!(!covers("objects/42", other), "{other}");
        }
        for key in ["objects/42", "objects/", "objects/a/b", "objects/*"] {
            assert!(covers("objects/*", key), "{key}");
        }
        for other in ["object/42", "objects", "objectsx/1"] {
            assert!(!covers("objects/*", other), "{other}");
        }
        assert!(covers("*", "objects/42"));
    }

    #[test]
    fn a_star_is_a_wildcard_at_the_end_alone() {
        assert!(!covers("*/42", "objects/42"));
        assert!(covers("*/42", "*/42"));
        assert!(covers("objects/a**", "objects/a*b"));
        assert!(!covers("objects/a**", "objects/ab"));
        assert_eq!(GrantedKeys::parse(""), None);
    }
}
