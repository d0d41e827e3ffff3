//! A lease on a lock, from the side of whoever holds it.
//!
//! Until when it lasts is counted from before each request was sent, by a clock that goes on while
//! the machine is suspended: so it is never believed to last longer than it does.

use std::time::Duration;

use http::Method;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::client::encoded;
pub use crate::client::{Client, ClientError};

/// How often it is looked whether the lease is over, whatever the timers say: they stand still while
/// the machine is suspended.
const LOOK: Duration = Duration::from_secs(1);

/// How long the answer to an acquire may take beyond the time in the queue: as long as older writes
/// drain and settle.
const ANSWER: Duration = Duration::from_secs(120);

/// How long a call that did not get through waits until it is tried again.
const AGAIN: Duration = Duration::from_millis(250);

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The lock: `NAMESPACE/KEY`.
    pub key: String,
    /// The name under which it is held: 1 to 128 visible ASCII characters.
    pub holder: String,
    /// How long the lease lasts without a renewal.
    pub ttl: Duration,
    /// How long to wait for it.
    pub wait: Duration,
}

/// A lease, and until when it surely lasts.
pub struct Lease {
    client: Client,
    path: String,
    token: String,
    ttl: Duration,
    until: Duration,
}

impl Lease {
    /// Takes the lock. A request of which nobody knows whether it got through is sent again: it is
    /// known by its id. Where this is dropped before its end, a grant that was on its way lasts for
    /// its time.
    ///
    /// # Errors
    ///
    /// Somebody else has it for longer than `ask.wait`, or the service refused or was not reached.
    pub async fn acquire(mut client: Client, ask: &Ask) -> Result<Self, ClientError> {
        let path = format!("/v1/locks/{}", encoded(&ask.key));
        let id = unique();
        let end = now() + ask.wait;
        loop {
            let sent = now();
            let body = json!({
                "holder": ask.holder,
                "ttl_ms": millis(ask.ttl),
                "wait_ms": millis(end.saturating_sub(sent)),
                "request_id": id,
            });
            let target = format!("{path}/acquire");
            let call = client.call(Method::POST, &target, Some(&body));
            let answer = tokio::time::timeout(end.saturating_sub(sent) + ANSWER, call).await;
            let Ok(answer) = answer else {
                let silent = "the lock service took the request, and does not answer it";
                return Err(ClientError::Unreachable(silent.to_owned()));
            };
            match answer {
                Ok(answer) => {
                    let token = answer.get("token").and_then(Value::as_str);
                    let lease = Self {
                        client,
                        path,
                        token: token.ok_or(ClientError::Garbled)?.to_owned(),
                        ttl: ask.ttl,
                        until: sent + ask.ttl,
                    };
                    // The time in the queue is not of the lease, and nobody but the service knows how
                    // long that was: a renewal is known to come after it.
                    return lease.made_sure().await;
                }
                Err(ClientError::Unreachable(_)) if now() + AGAIN < end => {
                    tokio::time::sleep(AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Knows from now on until when it lasts.
    async fn made_sure(mut self) -> Result<Self, ClientError> {
        if self.until > now() + self.ttl / 2 {
            return Ok(self);
        }
        self.renew().await?;
        Ok(self)
    }

    /// The token, to be sent with every write.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Until when it surely lasts, by [`now`].
    #[must_use]
    pub const fn until(&self) -> Duration {
        self.until
    }

    async fn renew(&mut self) -> Result<(), ClientError> {
        let sent = now();
        let body = json!({ "token": self.token, "ttl_ms": millis(self.ttl) });
        let target = format!("{}/renew", self.path);
        self.client.call(Method::POST, &target, Some(&body)).await?;
        self.until = sent + self.ttl;
        Ok(())
    }

    /// Waits until a third of its time has passed, and lets it last anew.
    ///
    /// # Errors
    ///
    /// Why it is lost.
    pub async fn stay(&mut self) -> Result<(), String> {
        let next = self.until.saturating_sub(self.ttl - self.ttl / 3);
        while now() < next {
            let left = next.saturating_sub(now());
            tokio::time::sleep(left.min(LOOK)).await;
        }
        loop {
            let left = self.until.saturating_sub(now());
            if left.is_zero() {
                return Err("it could not be renewed in time".to_owned());
            }
            match tokio::time::timeout(left.min(self.ttl / 3), self.renew()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error @ ClientError::Refused(status, _))) if status.is_client_error() => {
                    return Err(error.to_string());
                }
                Ok(Err(_)) | Err(_) => {
                    let left = self.until.saturating_sub(now());
                    tokio::time::sleep(left.min(AGAIN)).await;
                }
            }
        }
    }

    /// Gives it back. Where that fails its time decides. `true` where it was held until then.
    pub async fn release(mut self) -> bool {
        let body = json!({ "token": self.token });
        let target = format!("{}/release", self.path);
        let call = self.client.call(Method::POST, &target, Some(&body));
        let left = self.until.saturating_sub(now());
        matches!(tokio::time::timeout(left, call).await, Ok(Ok(_)))
    }
}

/// Now, by a clock that goes on while the machine is suspended.
#[must_use]
pub fn now() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(
        now.tv_sec.try_into().unwrap_or_default(),
        now.tv_nsec.try_into().unwrap_or_default(),
    )
}

/// A name that tells this process from others: this machine's and the process's number.
#[must_use]
pub fn myself() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host
        .chars()
        .filter(char::is_ascii_graphic)
        .take(64)
        .collect();
    format!("{host}:{}", std::process::id())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// An id that no other request has. The standard library seeds its hashers from the system's
/// randomness.
fn unique() -> String {
    use std::hash::{BuildHasher, Hasher};
    let draw = || std::collections::hash_map::RandomState::new().build_hasher();
    format!("{:016x}{:016x}", draw().finish(), draw().finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_service_that_never_answers_is_not_waited_for_for_ever() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let ask = Ask {
            key: "objects/42".to_owned(),
            holder: "me".to_owned(),
            ttl: Duration::from_secs(10),
            wait: Duration::from_secs(1),
        };
        let began = tokio::time::Instant::now();
        let error = Lease::acquire(Client::new(&url, None).unwrap(), &ask).await;
        assert!(matches!(error, Err(ClientError::Unreachable(_))));
        assert!(began.elapsed() >= ANSWER);
    }
}
