//! A lock that is held for as long as a guard lives: the whole of a client of the lock service.
//!
//! [`acquire`] takes it. A task renews it at a third of its time. [`Guard::authorize`] puts the token
//! into a request, and refuses where the lease is over; [`Guard::lost`] ends when it is, and
//! [`Guard::run`] stops work that it guards. Dropped, or by [`Guard::release`], it is given back.
//!
//! None of that keeps a holder from stalling between its last look and its write. The gateway does:
//! it refuses the token once the lock is handed on.
#![allow(unreachable_pub, reason = "it is a library, wherever its file is put")]

use std::fmt;
use std::future::Future;
use std::time::Duration;

use fencegate::lease::{Ask, Client, ClientError, Lease, now};
use http::{HeaderName, HeaderValue, Request};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

const TOKEN: HeaderName = HeaderName::from_static("fencing-token");
const HOLDER: HeaderName = HeaderName::from_static("fencing-holder");

/// How the lease stands.
#[derive(Clone, Debug)]
enum State {
    /// It lasts at least until then.
    Held(Duration),
    Lost(String),
}

/// The lease is over, and why: whatever its holder still does comes too late.
#[derive(Clone, Debug)]
pub struct Lost(pub String);

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the lock is lost: {}", self.0)
    }
}

impl std::error::Error for Lost {}

/// A lock that is held.
pub struct Guard {
    key: String,
    token: String,
    headers: [(HeaderName, HeaderValue); 2],
    state: watch::Receiver<State>,
    /// Told or dropped, it has the task give the lock back.
    give_back: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<bool>>,
}

/// Waits for a lock, and holds it.
///
/// # Errors
///
/// Somebody else has it for longer than `ask.wait`, or the service refused or was not reached.
pub async fn acquire(url: &str, bearer: Option<&str>, ask: Ask) -> Result<Guard, ClientError> {
    let lease = Lease::acquire(Client::new(url, bearer)?, &ask).await?;
    let value = |text: &str| HeaderValue::from_str(text).map_err(|_| ClientError::Garbled);
    let headers = [
        (TOKEN, value(lease.token())?),
        (HOLDER, value(&ask.holder)?),
    ];
    let token = lease.token().to_owned();
    let (tells, state) = watch::channel(State::Held(lease.until()));
    let (give_back, asked) = oneshot::channel();
    let task = tokio::spawn(keep(lease, tells, asked));
    Ok(Guard {
        key: ask.key,
        token,
        headers,
        state,
        give_back: Some(give_back),
        task: Some(task),
    })
}

/// Renews the lease until it is lost or given back; gives whether it was held to the end.
async fn keep(
    mut lease: Lease,
    tells: watch::Sender<State>,
    mut asked: oneshot::Receiver<()>,
) -> bool {
    loop {
        let stayed = tokio::select! {
            biased;
            _ = &mut asked => return lease.release().await,
            stayed = lease.stay() => stayed,
        };
        match stayed {
            Ok(()) => tells.send_replace(State::Held(lease.until())),
            Err(why) => {
                tells.send_replace(State::Lost(why));
                return false;
            }
        };
    }
}

impl Guard {
    /// The lock: `NAMESPACE/KEY`.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Whether the lease surely lasts. The clock is asked, since a process that stood still has not
    /// heard of anything yet.
    ///
    /// # Errors
    ///
    /// It is lost, or may be over.
    pub fn check(&self) -> Result<(), Lost> {
        match &*self.state.borrow() {
            State::Held(until) if now() < *until => Ok(()),
            State::Held(_) => Err(Lost("it could not be renewed in time".to_owned())),
            State::Lost(why) => Err(Lost(why.clone())),
        }
    }

    /// Puts the token, and who holds it, into a request.
    ///
    /// # Errors
    ///
    /// The lease is over: the request must not be sent.
    pub fn authorize<B>(&self, request: &mut Request<B>) -> Result<(), Lost> {
        self.check()?;
        for (name, value) in &self.headers {
            request.headers_mut().insert(name, value.clone());
        }
        Ok(())
    }

    /// Ends when the lease is lost, at its deadline at the latest.
    pub async fn lost(&self) -> Lost {
        let mut state = self.state.clone();
        loop {
            let left = match self.check() {
                Ok(()) => match &*state.borrow_and_update() {
                    State::Held(until) => until.saturating_sub(now()),
                    State::Lost(why) => return Lost(why.clone()),
                },
                Err(lost) => return lost,
            };
            // The task looks at the clock that goes on while the machine is suspended; this is for
            // a task that is late itself.
            if let Ok(Err(_)) = tokio::time::timeout(left, state.changed()).await {
                return Lost("nobody renews it any more".to_owned());
            }
        }
    }

    /// Does work for as long as the lease lasts.
    ///
    /// # Errors
    ///
    /// The lease was lost before the work was done, and the work was dropped.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Result<T, Lost> {
        tokio::select! {
            biased;
            lost = self.lost() => Err(lost),
            done = work => Ok(done),
        }
    }

    /// Gives the lock back; `true` where it was held until then.
    pub async fn release(mut self) -> bool {
        drop(self.give_back.take());
        match self.task.take() {
            Some(task) => task.await.unwrap_or(false),
            None => false,
        }
    }
}

impl Drop for Guard {
    /// The task gives it back. Where its runtime ends first, the time of the lease decides.
    fn drop(&mut self) {
        drop(self.give_back.take());
    }
}
