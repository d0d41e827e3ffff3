//! The layer that reads a request's tokens and says what it asks of the fence.
//!
//! Past it nobody sees a header string, only a [`Token`] for each [`Key`](crate::Key).

use std::task::{Context, Poll};

use http::{HeaderMap, Request, Response};
use smallvec::SmallVec;
use tower_layer::Layer;
use tower_service::Service;

use crate::Token;
use crate::fence::{Access, Ask, Claim};
use crate::hop_by_hop::upgrades;
use crate::passage::{Facts, KeyFact, Passage};
use crate::policy::{Holder, Mode, Policy, Require};
use crate::refusal::{Reason, Refusal};
use crate::route::Checked;
use crate::store::Binding;
use crate::tokens::{read_holder, read_tokens};

/// Reads tokens and holders by the route's policy, and leaves a [`Claim`] in the [`Passage`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ClaimLayer;

impl<S> Layer<S> for ClaimLayer {
    type Service = ClaimService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ClaimService { inner }
    }
}

/// The service of [`ClaimLayer`].
#[derive(Clone, Debug)]
pub struct ClaimService<S> {
    inner: S,
}

impl<S, B, RB> Service<Request<B>> for ClaimService<S>
where
    S: Service<Request<B>, Response = Response<RB>>,
    S::Error: Into<Refusal>,
{
    type Response = Response<RB>;
    type Error = Refusal;
    type Future = Checked<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let passage = Passage::of(&mut request);
        let claimed = claim(&request, &mut passage.facts());
        match claimed {
            Ok(()) => Checked::go(self.inner.call(request)),
            Err(refusal) => Checked::refuse(refusal),
        }
    }
}

fn claim<B>(request: &Request<B>, facts: &mut Facts) -> Result<(), Refusal> {
    let headers = request.headers();
    let Some(policy) = facts.policy.clone() else {
        return Err(Refusal::new(
            Reason::NoRoute,
            "No route takes this request.",
        ));
    };
    let policy = policy.policy();
    if policy.require == Require::Never {
        return Ok(());
    }
    let write = policy.is_write(request.method(), upgrades(request.version(), headers));
    let made = make(policy, headers, write, facts);
    if policy.mode == Mode::Enforce {
        facts.claim = made?.map(|claim| (claim, Mode::Enforce));
        return Ok(());
    }
    let claim = match made {
        Ok(claim) => claim,
        Err(refusal) => {
            facts.would_refuse.get_or_insert(refusal);
            // In flight as a write without a token, so that enforcing later waits for it.
            (write && !facts.keys.is_empty()).then(|| {
                let asks = std::mem::take(&mut facts.keys);
                let claim = asks.iter().map(|fact| (fact, Token::NONE));
                let claim = build(policy, claim, None, write);
                facts.keys = asks;
                claim
            })
        }
    };
    facts.claim = claim.map(|claim| (claim, Mode::Observe));
    Ok(())
}

/// The claim; `None` where the request passes unfenced.
fn make(
    policy: &Policy,
    headers: &HeaderMap,
    write: bool,
    facts: &mut Facts,
) -> Result<Option<Claim>, Refusal> {
    let own = read_tokens(headers, &policy.token_headers)?;
    facts.token = own;
    let named = policy
        .keys
        .keys()
        .iter()
        .filter_map(|rule| rule.token_header.as_ref());
    let mut any = own.is_some();
    for name in named {
        any |= read_tokens(headers, std::slice::from_ref(name))?.is_some();
    }
    if !any && !write && policy.require == Require::Writes {
        return Ok(None);
    }
    if !any {
        return Err(required());
    }
    if let Some(refusal) = facts.key_error.take() {
        return Err(refusal);
    }
    let mut tokens: SmallVec<[Token; 1]> = SmallVec::new();
    for (index, fact) in facts.keys.iter().enumerate() {
        let token = match &fact.token_header {
            None => own,
            Some(name) => read_tokens(headers, std::slice::from_ref(name))?,
        };
        let token = token.ok_or_else(|| required_for(fact))?;
        let rival = facts.keys.iter().zip(&tokens).take(index);
        for (other, other_token) in rival {
            if other.key == fact.key && *other_token != token {
                return Err(Refusal::new(
                    Reason::MalformedToken,
                    "Two different tokens were sent for one key: send the token of the lock that is held for it.",
                ));
            }
        }
        tokens.push(token);
    }
    facts.token = tokens.first().copied();
    let holder = match policy.holder {
        Holder::Ignore => None,
        Holder::Bind => Some(read_holder(headers)?.map_or(Binding::Nobody, Binding::Holder)),
    };
    let asks = facts.keys.iter().zip(tokens.iter().copied());
    Ok(Some(build(policy, asks, holder.as_ref(), write)))
}

/// A claim over distinct keys: one that is named twice is written if either of the two writes it.
fn build<'a>(
    policy: &Policy,
    asks: impl Iterator<Item = (&'a KeyFact, Token)>,
    holder: Option<&Binding>,
    write: bool,
) -> Claim {
    let mut claim = Claim {
        keys: SmallVec::new(),
        asks: SmallVec::new(),
        write,
        drain: policy.drain,
    };
    for (fact, token) in asks {
        let same = claim.keys.iter().position(|key| *key == fact.key);
        if let Some(ask) = same.and_then(|at| claim.asks.get_mut(at)) {
            if fact.access == Access::Write {
                ask.access = Access::Write;
            }
            continue;
        }
        claim.keys.push(fact.key.clone());
        claim.asks.push(Ask {
            token,
            holder: holder.cloned(),
            access: fact.access,
            max_advance: policy.max_advance,
            new_epochs: policy.new_epochs,
        });
    }
    claim
}

fn required_for(fact: &KeyFact) -> Refusal {
    let Some(name) = &fact.token_header else {
        return required();
    };
    let mut refusal = Refusal::new(
        Reason::TokenRequired,
        format!(
            "This request needs a fencing token for each of its keys: send the token that came with this key's lock in {name}."
        ),
    );
    refusal.key = Some(fact.key.clone());
    refusal
}

fn required() -> Refusal {
    Refusal::new(
        Reason::TokenRequired,
        "This request needs a fencing token for each of its keys: send the token that came with the lock in Fencing-Token.",
    )
}
