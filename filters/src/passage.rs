//! What the filters learn of one request, from the first of them to the access log.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderName, Request};
use smallvec::SmallVec;

use crate::fence::{Admission, Claim, Observation};
use crate::key::Access;
use crate::policy::{AsPolicy, Mode};
use crate::refusal::{Outcome, Refusal};
use crate::{Key, Token};

/// What is known of one request, shared by all filters that it passes.
///
/// It travels as a request extension; a clone is a reference count.
#[derive(Clone, Default)]
pub struct Passage(Arc<Mutex<Facts>>);

/// How the fence decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Decision {
    /// No decision was taken: the request got no further than the filters before it.
    #[default]
    None,
    /// Let through without being fenced.
    Unfenced,
    /// Admitted by its tokens.
    Admitted,
    /// Only observed.
    Observed,
    /// Refused.
    Refused,
}

impl Decision {
    /// As it stands in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Unfenced => "unfenced",
            Self::Admitted => "admitted",
            Self::Observed => "observed",
            Self::Refused => "refused",
        }
    }
}

/// One key of the request, as its route makes it.
#[derive(Clone, Debug)]
pub struct KeyFact {
    /// The key.
    pub key: Key,
    /// What the request does with it.
    pub access: Access,
    /// Where its token stands, unless in the route's own headers.
    pub token_header: Option<HeaderName>,
}

/// What is known.
#[derive(Default)]
pub struct Facts {
    /// The policy of the route.
    pub policy: Option<Arc<dyn AsPolicy>>,
    /// The route's name.
    pub route: Option<Arc<str>>,
    /// The keys, where they could be made.
    pub keys: SmallVec<[KeyFact; 1]>,
    /// Why they could not: it matters only where the request is fenced.
    pub key_error: Option<Box<Refusal>>,
    /// The token of the first key.
    pub token: Option<Token>,
    /// What is asked of the fence; `None` where the request is not fenced.
    pub claim: Option<(Box<Claim>, Mode)>,
    /// What observing found before the fence was asked: a missing or malformed token or key.
    pub would_refuse: Option<Box<Refusal>>,
    /// The admission, until the request is sent.
    pub admission: Option<Admission>,
    /// In observe mode, what the fence found.
    pub observation: Option<Arc<Observation>>,
    /// How the fence decided.
    pub decision: Decision,
    /// How long it took to decide.
    pub waited: Duration,
    /// How long the upstream took for its head.
    pub upstream: Option<Duration>,
    /// How it ended, where the gateway had to answer itself.
    pub outcome: Option<Outcome>,
}

impl Passage {
    /// The passage of this request, begun where no filter has done so before.
    pub fn of<B>(request: &mut Request<B>) -> Self {
        if let Some(passage) = request.extensions().get::<Self>() {
            return passage.clone();
        }
        let passage = Self::default();
        request.extensions_mut().insert(passage.clone());
        passage
    }

    /// The facts, for a moment.
    pub fn facts(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Facts {
    /// The route, as it was registered with the router; `None` where none was found, or one of
    /// another type.
    #[must_use]
    pub fn route_as<R: AsPolicy>(&self) -> Option<Arc<R>> {
        let policy: Arc<dyn Any + Send + Sync> = Arc::<dyn AsPolicy>::clone(self.policy.as_ref()?);
        policy.downcast().ok()
    }

    /// The refusal that enforcing would have answered, where the request is only observed.
    #[must_use]
    pub fn would_refuse(&self) -> Option<&Refusal> {
        self.would_refuse
            .as_deref()
            .or_else(|| self.observation.as_deref()?.would_refuse())
    }
}
