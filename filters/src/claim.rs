//! The layer that reads a request's tokens and says what it asks of the fence.
//!
//! Past it nobody sees a header string, only a [`Token`] for each [`Key`](crate::Key). Where only
//! signed tokens are taken, they are verified here, and held to the keys that they were signed for.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderMap, HeaderName, Request, Response};
use smallvec::SmallVec;
use tower_layer::Layer;
use tower_service::Service;

use crate::fault::{self, Fault};
use crate::fence::{Access, Ask, Claim};
use crate::hop_by_hop::upgrades;
use crate::names::trim;
use crate::passage::{Facts, KeyFact, Passage};
use crate::policy::{Holder, HolderFrom, Mode, Policy, Require};
use crate::refusal::{Reason, Refusal};
use crate::route::Checked;
use crate::signed::Grant;
use crate::store::Binding;
use crate::tokens::{read_holder, read_line, read_tokens};
use crate::{Peer, Token};

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
    let peer = request.extensions().get::<Peer>();
    let made = make(policy, headers, peer, write, facts);
    if policy.mode == Mode::Enforce {
        facts.claim = made?.map(|claim| (claim, Mode::Enforce));
        return Ok(());
    }
    let claim = match made {
        Ok(claim) => claim,
        Err(refusal) => {
            facts.would_refuse.get_or_insert_with(|| Box::new(refusal));
            // In flight as a write without a token, so that enforcing later waits for it.
            (write && !facts.keys.is_empty()).then(|| {
                let asks = std::mem::take(&mut facts.keys);
                let claim = asks.iter().map(|fact| (fact, Token::NONE, None));
                let claim = build(policy, claim, write);
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
    peer: Option<&Peer>,
    write: bool,
    facts: &mut Facts,
) -> Result<Option<Box<Claim>>, Refusal> {
    let own = read(policy, headers, &policy.token_headers)?;
    facts.token = own.as_ref().map(|sent| sent.token);
    let named = policy
        .keys
        .keys()
        .iter()
        .filter_map(|rule| rule.token_header.as_ref());
    let mut any = own.is_some();
    for name in named {
        any |= read_for(policy, headers, name, &facts.keys)?.is_some();
    }
    if !any && !write && policy.require == Require::Writes {
        return Ok(None);
    }
    if !any {
        return Err(required());
    }
    if let Some(refusal) = facts.key_error.take() {
        return Err(*refusal);
    }
    let mut tokens: SmallVec<[Sent; 1]> = SmallVec::new();
    for (index, fact) in facts.keys.iter().enumerate() {
        let sent = match &fact.token_header {
            None => own.clone(),
            Some(name) => read_for(policy, headers, name, std::slice::from_ref(fact))?,
        };
        let sent = sent.ok_or_else(|| required_for(fact))?;
        sent.check_key(fact)?;
        let rival = facts.keys.iter().zip(&tokens).take(index);
        for (other, other_sent) in rival {
            if other.key == fact.key && !other_sent.is_same(&sent) {
                return Err(Refusal::new(
                    Reason::MalformedToken,
                    "Two different tokens were sent for one key: send the token of the lock that is held for it.",
                ));
            }
        }
        tokens.push(sent);
    }
    facts.token = tokens.first().map(|sent| sent.token);
    let holder = match policy.holder {
        Holder::Ignore => None,
        Holder::Bind => Some(holder(policy.holder_from, headers, peer)?),
    };
    let mut holders: SmallVec<[Option<Binding>; 1]> = SmallVec::new();
    for sent in &tokens {
        holders.push(match sent.named() {
            None => holder.clone(),
            Some(named) => granted(policy, headers, holder.as_ref(), named)?,
        });
    }
    let asks = facts.keys.iter().zip(&tokens).zip(holders);
    let asks = asks.map(|((fact, sent), holder)| (fact, sent.token, holder));
    Ok(Some(build(policy, asks, write)))
}

/// A token as it was sent for a key.
#[derive(Clone)]
struct Sent {
    token: Token,
    /// What it was signed with, where only signed tokens are taken.
    grant: Option<Arc<Grant>>,
}

/// Reads, and where the policy says so verifies, the one token under these names.
fn read(
    policy: &Policy,
    headers: &HeaderMap,
    names: &[HeaderName],
) -> Result<Option<Sent>, Refusal> {
    let Some(verifier) = &policy.signed else {
        let token = read_tokens(headers, names)?;
        return Ok(token.map(|token| Sent { token, grant: None }));
    };
    let Some((_, line)) = read_line(headers, names)? else {
        return Ok(None);
    };
    let grant = verifier.verify(trim(line.as_bytes()))?;
    Ok(Some(Sent {
        token: grant.token,
        grant: Some(grant),
    }))
}

/// The same under the name that a key has for itself; a refusal names that key and no other's token.
fn read_for(
    policy: &Policy,
    headers: &HeaderMap,
    name: &HeaderName,
    keys: &[KeyFact],
) -> Result<Option<Sent>, Refusal> {
    let of_it = |fact: &&KeyFact| fact.token_header.as_ref() == Some(name);
    read(policy, headers, std::slice::from_ref(name)).map_err(|mut refusal| {
        let fact = keys.iter().find(of_it);
        refusal.key = refusal.key.or_else(|| fact.map(|fact| fact.key.clone()));
        refusal
    })
}

impl Sent {
    /// Whom it was given to, where its issuer has signed that.
    fn named(&self) -> Option<&Arc<str>> {
        self.grant.as_ref()?.holder.as_ref()
    }

    fn is_same(&self, other: &Self) -> bool {
        self.token == other.token && self.named() == other.named()
    }

    fn check_key(&self, fact: &KeyFact) -> Result<(), Refusal> {
        let covered = |grant: &Arc<Grant>| grant.keys.cover(&fact.key);
        if self.grant.as_ref().is_none_or(covered) || fault::planted(Fault::TokensOfOtherKeys) {
            return Ok(());
        }
        let mut refusal = Refusal::new(
            Reason::BadSignature,
            "The token was signed for another key: send the token that came with this key's lock.",
        );
        refusal.key = Some(fact.key.clone());
        refusal.token = Some(self.token);
        Err(refusal)
    }
}

/// Who asks, where the token names its holder; `asks` is who asks by all else.
fn granted(
    policy: &Policy,
    headers: &HeaderMap,
    asks: Option<&Binding>,
    named: &Arc<str>,
) -> Result<Option<Binding>, Refusal> {
    if read_holder(headers)?.is_some_and(|said| said != *named) {
        return Err(Refusal::new(
            Reason::BadRequest,
            "Fencing-Holder is not the holder that the token was signed for: leave it out.",
        ));
    }
    let binding = Binding::Holder(Arc::clone(named));
    if policy.holder_from == HolderFrom::Certificate && asks.is_some_and(|asks| *asks != binding) {
        return Err(Refusal::new(
            Reason::Forbidden,
            "The token was signed for another holder than the client's certificate names.",
        ));
    }
    Ok(asks.map(|_| binding))
}

/// Who asks.
fn holder(from: HolderFrom, headers: &HeaderMap, peer: Option<&Peer>) -> Result<Binding, Refusal> {
    let said = read_holder(headers)?;
    if from == HolderFrom::Header {
        return Ok(said.map_or(Binding::Nobody, Binding::Holder));
    }
    let Some(proven) = peer.and_then(Peer::identity) else {
        return Err(Refusal::new(
            Reason::Forbidden,
            "The holder is whom the client's certificate names: come with a certificate that names somebody.",
        ));
    };
    if said.is_some_and(|said| said != *proven) {
        return Err(Refusal::new(
            Reason::BadRequest,
            "Fencing-Holder is not the name in the client's certificate: leave it out.",
        ));
    }
    Ok(Binding::Holder(Arc::clone(proven)))
}

/// A claim over distinct keys: one that is named twice is written if either of the two writes it.
fn build<'a>(
    policy: &Policy,
    asks: impl Iterator<Item = (&'a KeyFact, Token, Option<Binding>)>,
    write: bool,
) -> Box<Claim> {
    let mut claim = Box::new(Claim {
        keys: SmallVec::new(),
        asks: SmallVec::new(),
        write,
        drain: policy.drain,
    });
    for (fact, token, holder) in asks {
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
            holder,
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
