//! What the admin API does to marks: raises them ("fence it now") and resets them.
//!
//! Both go the way that requests go: through the lane of the key, with its drain. A reset is the one
//! way down for a mark, so it is written to the log, before and after, under the target
//! `fencegate::audit`.

use std::net::SocketAddr;
use std::time::Duration;

use fencegate_filters::fence::{Claim, Drain, Fence, ResetError};
use fencegate_filters::{Key, Reason, Refusal, Token};
use serde::Deserialize;

use crate::api::read;
use crate::gateway::Gateway;
use crate::route::drain_of;

/// How much longer than all its waits a reset may take until its caller is told that it goes on.
const WRITE_TIME: Duration = Duration::from_secs(10);

/// Who calls, for the audit log.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The other end of the connection.
    pub(crate) peer: Option<SocketAddr>,
    /// How the bearer token's hash begins, where there was one.
    pub(crate) token: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RaiseCall {
    token: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResetCall {
    from: String,
    to: String,
}

/// Raises the mark of `key` as an advance does; returns when it is durable and older writes have
/// ended.
pub(crate) async fn raise(
    gateway: &Gateway,
    key: &Key,
    body: &[u8],
    caller: &Caller,
) -> Result<(), Refusal> {
    let call: RaiseCall = read(body, r#"{"token": "35"}"#)?;
    let token = token(&call.token, "token")?;
    let mut claim = Claim::write(key.clone(), token);
    claim.drain = drain_of(&gateway.routes.load(), key)?;
    let Caller { peer, token: who } = caller;
    let raised = gateway.fence.admit(claim).await;
    // Nothing is to be sent: from here on it holds nobody.
    let raised = raised.map(drop);
    tracing::info!(
        target: "fencegate::audit",
        action = "raise",
        %key,
        %token,
        peer = peer.map(tracing::field::display),
        bearer = who.as_deref(),
        result = raised.as_ref().map_or_else(|refusal| refusal.reason.as_str(), |()| "done"),
        "a mark was asked to be raised"
    );
    raised
}

/// Resets the mark of `key`; returns when the lower one is durable.
///
/// It goes on when its caller leaves, so that the log tells how it ended.
pub(crate) async fn reset(
    gateway: &Gateway,
    key: &Key,
    body: &[u8],
    caller: &Caller,
) -> Result<(), Refusal> {
    let call: ResetCall = read(body, r#"{"from": "50", "to": "34"}"#)?;
    let (from, to) = (token(&call.from, "from")?, token(&call.to, "to")?);
    let drain = drain_of(&gateway.routes.load(), key)?;
    if let Some(locks) = &gateway.locks {
        let leased = locks.is_leased(key).await;
        let leased = leased.map_err(|_| refusal(ResetError::Store, key, from))?;
        if leased {
            let mut refusal = Refusal::new(
                Reason::LockHeld,
                "Somebody holds the lock of this key, or asks for it: below its token others could write beside the holder. Release the lock first.",
            );
            refusal.key = Some(key.clone());
            return Err(refusal);
        }
    }
    let fence = gateway.fence.clone();
    let running = tokio::spawn(audited(fence, key.clone(), from, to, drain, caller.clone()));
    let longest = drain.timeout + drain.settle + WRITE_TIME;
    match tokio::time::timeout(longest, running).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(error))) => Err(refusal(error, key, from)),
        _ => Err(Refusal::new(
            Reason::StoreUnavailable,
            "The lower mark is still being written, and may yet become durable: look at the key again.",
        )),
    }
}

async fn audited(
    fence: Fence,
    key: Key,
    from: Token,
    to: Token,
    drain: Drain,
    caller: Caller,
) -> Result<(), ResetError> {
    let (peer, bearer) = (
        caller.peer.map(tracing::field::display),
        caller.token.as_deref(),
    );
    tracing::warn!(
        target: "fencegate::audit",
        action = "reset", %key, %from, %to, peer, bearer, result = "asked",
        "a mark is to be reset"
    );
    let ended = fence.reset(key.clone(), from, to, drain).await;
    let result = match &ended {
        Ok(()) => "done".to_owned(),
        Err(error) => format!("refused: {}", refusal(*error, &key, from).reason.as_str()),
    };
    let peer = caller.peer.map(tracing::field::display);
    tracing::warn!(
        target: "fencegate::audit",
        action = "reset", %key, %from, %to, peer, bearer, result,
        "a reset of a mark has ended"
    );
    ended
}

fn refusal(error: ResetError, key: &Key, from: Token) -> Refusal {
    let (reason, detail) = match error {
        ResetError::NotLower => (
            Reason::BadRequest,
            "A reset lowers a mark: \"to\" must be below \"from\". To go up there is /raise.".into(),
        ),
        ResetError::NoMark => (Reason::NoRoute, "This key has no mark.".into()),
        ResetError::Mark(mark) => (
            Reason::StaleToken,
            format!("The mark is {mark}, not {from}: a reset must name the current mark."),
        ),
        ResetError::UnderWay => (
            Reason::Busy,
            "Another reset of this key is under way; try again when it has ended.".into(),
        ),
        ResetError::InFlight => (
            Reason::Draining,
            "Writes on this key were still in flight when the time to wait was over; the mark is as it was.".to_owned(),
        ),
        ResetError::Unsettled => (
            Reason::Settling,
            "The outcome of a write on this key is unknown and it may still be running; the mark is as it was.".into(),
        ),
        ResetError::Store => (
            Reason::StoreUnavailable,
            "The mark could not be read or made durable: look at the key again.".into(),
        ),
        ResetError::Stopping => (
            Reason::ShuttingDown,
            "The gateway is stopping; the mark is as it was.".into(),
        ),
    };
    let mut refusal = Refusal::new(reason, detail);
    refusal.key = Some(key.clone());
    if let ResetError::Mark(mark) = error {
        refusal.token = Some(from);
        refusal.mark = Some(mark);
    }
    refusal
}

fn token(text: &str, field: &str) -> Result<Token, Refusal> {
    text.parse()
        .map_err(|error| Refusal::new(Reason::MalformedToken, format!("In \"{field}\", {error}.")))
}
