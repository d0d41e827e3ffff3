//! What a route demands of the requests that it takes.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use http::{HeaderName, Method, StatusCode};

use crate::fault::{self, Fault};
use crate::fence::Drain;
use crate::key::KeyRules;
use crate::names;
use crate::signed::Verifier;

/// Which requests are fenced (`fence.require`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Require {
    /// Writes must carry a token; a read that carries one is fenced as well.
    #[default]
    Writes,
    /// Every request must carry a token.
    All,
    /// No request is fenced.
    Never,
}

/// Whether refusals are answered or only noted (`fence.mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Refusals are answered.
    #[default]
    Enforce,
    /// Every decision is taken and told, and the request is forwarded at once all the same.
    Observe,
}

/// What a route does with the holder's name (`fence.holder`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Holder {
    /// Nothing.
    #[default]
    Ignore,
    /// The first holder of a token is the only one.
    Bind,
}

/// Where the holder's name comes from (`fence.holder_from`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HolderFrom {
    /// The header `Fencing-Holder`.
    #[default]
    Header,
    /// The certificate of the peer: [`Peer::identity`](crate::Peer::identity).
    Certificate,
}

/// The fence of one route.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The route's name, for logs and metrics.
    pub route: Arc<str>,
    /// Refuse whatever matches.
    pub deny: bool,
    /// Take no request for now: the rules that keys come from are being changed.
    pub closed: bool,
    /// Which requests are fenced.
    pub require: Require,
    /// Whether refusals are answered.
    pub mode: Mode,
    /// How keys are made.
    pub keys: KeyRules,
    /// Methods that read; every other one writes.
    pub safe_methods: Arc<[Method]>,
    /// The names under which the token may come, lower-case.
    pub token_headers: Arc<[HeaderName]>,
    /// Who verifies tokens, where only signed ones are taken.
    pub signed: Option<Arc<dyn Verifier>>,
    /// What is done with the holder's name.
    pub holder: Holder,
    /// Where the holder's name comes from.
    pub holder_from: HolderFrom,
    /// The largest advance of the counter within one epoch.
    pub max_advance: Option<u64>,
    /// Whether a new epoch is allowed where `max_advance` is set.
    pub new_epochs: bool,
    /// How an advance drains, and how long it waits.
    pub drain: Drain,
    /// What 409 becomes for this route's clients.
    pub refuse_status: StatusCode,
    /// Whether refusals show the mark.
    pub reveal_mark: bool,
}

impl Policy {
    /// The policy of a route of this name, whose keys are made so; all else as by default.
    #[must_use]
    pub fn new(route: &str, keys: KeyRules) -> Self {
        let safe = ["GET", "HEAD", "OPTIONS", "PROPFIND", "REPORT", "SEARCH"];
        Self {
            route: route.into(),
            deny: false,
            closed: false,
            require: Require::Writes,
            mode: Mode::Enforce,
            keys,
            safe_methods: safe
                .iter()
                .filter_map(|method| method.parse().ok())
                .collect(),
            token_headers: [names::FENCING_TOKEN.clone(), names::X_FENCING_TOKEN.clone()].into(),
            signed: None,
            holder: Holder::Ignore,
            holder_from: HolderFrom::Header,
            max_advance: None,
            new_epochs: true,
            drain: Drain::default(),
            refuse_status: StatusCode::CONFLICT,
            reveal_mark: true,
        }
    }

    /// Whether a request is a write: whatever is not safe, and whatever asks to be upgraded.
    #[must_use]
    pub fn is_write(&self, method: &Method, upgrade: bool) -> bool {
        let upgrade = upgrade && !fault::planted(Fault::UpgradeIsRead);
        upgrade || !self.safe_methods.contains(method)
    }
}

/// What is registered with a route and holds its policy.
pub trait AsPolicy: Any + Send + Sync {
    /// The policy.
    fn policy(&self) -> &Policy;
}

impl AsPolicy for Policy {
    fn policy(&self) -> &Policy {
        self
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_upgraded_is_a_write_whatever_its_method() {
        let policy = Policy::new("r", KeyRules::single("n", "{path}").unwrap());
        assert!(!policy.is_write(&Method::GET, false));
        assert!(policy.is_write(&Method::GET, true));
        assert!(policy.is_write(&Method::PUT, false));
    }
}
