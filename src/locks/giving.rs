//! How a lease is given: durable and fenced before anybody is told of it.

use fencegate_filters::fault::{self, Fault};
use fencegate_filters::fence::{Claim, Drain};
use fencegate_filters::lock::Lease;
use fencegate_filters::{Key, Reason, Refusal, Token};

use super::cell::{Grant, Used, now};
use super::events::What;
use super::refusals::{busy, lost, unkept};
use super::service::Locks;

/// How often a grant is tried anew when a newer mark overtakes it.
const MOST_OVERTAKEN: usize = 16;

impl Locks {
    /// Makes a lease durable and fences it; its time begins. `new`: nobody has tried to before, so
    /// that its token can't be the mark yet.
    pub(super) async fn give(
        &self,
        used: &Used,
        mut lease: Lease,
        mut new: bool,
        drain: Drain,
    ) -> Result<(Lease, Grant), Refusal> {
        let mut giving = Giving {
            used,
            token: lease.token,
            given: false,
        };
        let mut overtaken = 0;
        loop {
            let fenced = self.fence_by(&used.key, lease.token, new, drain);
            let (kept, fenced) = tokio::join!(used.keep(), fenced);
            let Err(refusal) = fenced.and_then(|()| kept.map_err(|_| unkept())) else {
                break;
            };
            let stale = refusal.reason == Reason::StaleToken;
            if stale && !lease.told && overtaken < MOST_OVERTAKEN {
                overtaken += 1;
                // Its turn is not over because somebody came with a token from elsewhere.
                if let Ok(mark) = self.fence.mark(&used.key).await {
                    let newer = used.cell.lock().overtaken(lease.token, mark);
                    match newer {
                        Ok(Some(newer)) => {
                            giving.token = newer.token;
                            lease = newer;
                            new = true;
                            continue;
                        }
                        Ok(None) => {}
                        // Somebody else's it is already.
                        Err(_) => return Err(lost(&used.key, Some(lease.token))),
                    }
                }
            }
            giving.given = true;
            used.burn(lease.token);
            return Err(match stale {
                true if lease.told => lost(&used.key, Some(lease.token)),
                true => busy(&used.key, "Newer tokens keep coming from elsewhere."),
                false => refusal,
            });
        }
        giving.given = true;
        let token = lease.token;
        let mut lock = used.cell.lock();
        match lock.granted(token, now()) {
            Ok(true) => used.tell(What::Granted, &lease),
            Ok(false) => {}
            Err(_) => return Err(lost(&used.key, Some(token))),
        }
        drop(lock);
        let grant = Grant {
            used: used.clone(),
            token,
        };
        Ok((lease, grant))
    }

    /// Raises the mark, and waits until older writes have drained.
    async fn fence_by(
        &self,
        key: &Key,
        token: Token,
        new: bool,
        drain: Drain,
    ) -> Result<(), Refusal> {
        if !self.fence_on_grant || fault::planted(Fault::GrantUndrained) {
            return Ok(());
        }
        let mut claim = Claim::write(key.clone(), token);
        claim.drain = drain;
        let admit = self.fence.admit(claim);
        let admit = match new {
            // A token that somebody has come with meanwhile is not to be another's as well.
            true => admit.advancing(),
            false => admit,
        };
        // Nothing is to be sent: once admitted it holds nobody.
        admit.await.map(drop)
    }
}

/// A lease on its way to whoever acquires it; dropped before it is given, it is abandoned. Either way
/// the same request that came again is told.
struct Giving<'a> {
    used: &'a Used,
    token: Token,
    given: bool,
}

impl Drop for Giving<'_> {
    fn drop(&mut self) {
        if !self.given {
            self.used.abandon(self.token);
        }
        self.used.cell.given.notify_waiters();
    }
}
