//! What the name of an upstream stands for: asked of the system for each connection, and what it said
//! last where nobody answers now.
//!
//! The system's own resolver knows `/etc/hosts`, the search list, and whatever else the machine is set
//! up with; it blocks, so it is asked in a thread of its own, by one at a time for each name, and
//! nobody waits for it longer than for a connection, or than a moment where it has answered before.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// The most addresses of one name that are known, as many as an upstream may have by its config.
const MOST: usize = 64;
/// The most that are tried for one connection.
const TRIES: usize = 4;
/// For how long an address that could not be connected to is tried after the others.
const SHUNNED: Duration = Duration::from_secs(10);
/// How long an answer is waited for where there is one of before.
const SOON: Duration = Duration::from_millis(250);
/// For how long an answer serves those that come after: connections come in bursts.
const FRESH: Duration = Duration::from_secs(1);
/// For how long the last answer serves where there is no new one. A name server that is away for a
/// moment stops nothing; a name that is gone is given up.
const LASTS: Duration = Duration::from_secs(300);

/// Addresses of a name, in the order in which they are to be tried.
pub(super) type Addresses = SmallVec<[IpAddr; TRIES]>;

/// A name, and what is known of it.
#[derive(Debug)]
pub(super) struct Name {
    host: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: Option<Known>,
    /// Where somebody asks: what comes of it.
    asking: Option<watch::Receiver<Option<Answer>>>,
    /// How many connections have been begun.
    turn: usize,
    /// Addresses that could not be connected to, and when.
    failed: Vec<(IpAddr, Instant)>,
}

#[derive(Debug)]
struct Known {
    addresses: Addresses,
    since: Instant,
}

/// An error is told to all who wait for it.
type Answer = Result<Addresses, Arc<io::Error>>;

impl Name {
    pub(super) fn new(host: &str) -> Arc<Self> {
        Arc::new(Self {
            host: host.to_owned(),
            state: Mutex::default(),
        })
    }

    /// What the name stands for, by the system.
    ///
    /// # Errors
    ///
    /// As the system says, or `TimedOut`, where nothing is known from before.
    pub(super) async fn addresses(self: &Arc<Self>, patience: Duration) -> io::Result<Addresses> {
        let host = self.host.clone();
        self.addresses_by(patience, || async move {
            // Any port will do: it is only handed back.
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
        .await
    }

    async fn addresses_by<F>(
        self: &Arc<Self>,
        patience: Duration,
        ask: impl FnOnce() -> F,
    ) -> io::Result<Addresses>
    where
        F: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
    {
        let (mut asking, patience) = {
            let mut state = self.state();
            let patience = match state.known(LASTS) {
                Some(_) => patience.min(SOON),
                None => patience,
            };
            if let Some(known) = state.known(FRESH) {
                return Ok(known.clone());
            }
            let asking = match &state.asking {
                // Where the sender is gone, whoever asked has ended without an answer.
                Some(asking) if asking.has_changed().is_ok() => asking.clone(),
                _ => {
                    let (tell, asking) = watch::channel(None);
                    state.asking = Some(asking.clone());
                    let answer = ask();
                    let name = Arc::clone(self);
                    // Whoever waits may give up; the answer is of use to the next.
                    tokio::spawn(async move {
                        let answer = name.learn(answer.await);
                        // Nobody may wait any more.
                        let _ = tell.send(Some(answer));
                    });
                    asking
                }
            };
            (asking, patience)
        };
        let answer = match timeout(patience, asking.wait_for(Option::is_some)).await {
            Ok(Ok(answer)) => answer.clone().unwrap_or_else(|| Ok(Addresses::new())),
            Ok(Err(_)) => Err(Arc::new(io::ErrorKind::Interrupted.into())),
            Err(_) => Err(Arc::new(io::ErrorKind::TimedOut.into())),
        };
        let error = match answer {
            Ok(addresses) => return Ok(addresses),
            Err(error) => error,
        };
        if let Some(known) = self.state().known(LASTS) {
            tracing::warn!(host = %self.host, %error, "a name could not be resolved: it is taken for what it stood for last");
            return Ok(known.clone());
        }
        Err(io::Error::new(error.kind(), error))
    }

    /// Which of these to try for the next connection, one after the other. Connections take turns, in
    /// front with the family of addresses that the system puts first (RFC 6724), and come to one that failed a
    /// moment ago last.
    pub(super) fn in_turn(&self, mut found: Addresses) -> Addresses {
        let mut state = self.state();
        let now = Instant::now();
        state.failed.retain(|(_, at)| *at + SHUNNED > now);
        let first = found.first().map(IpAddr::is_ipv4);
        found.sort_by_key(|address| Some(address.is_ipv4()) != first);
        let family = found.partition_point(|address| Some(address.is_ipv4()) == first);
        if let Some(family) = found.get_mut(..family)
            && !family.is_empty()
        {
            let count = family.len();
            family.rotate_left(state.turn % count);
        }
        state.turn = state.turn.wrapping_add(1);
        found.sort_by_key(|address| state.failed.iter().any(|(failed, _)| failed == address));
        found.truncate(TRIES);
        found
    }

    /// An address has been connected to, or could not be.
    pub(super) fn tried(&self, address: IpAddr, connected: bool) {
        let mut state = self.state();
        state.failed.retain(|(failed, _)| *failed != address);
        if !connected {
            state.failed.push((address, Instant::now()));
        }
    }

    fn learn(&self, answer: io::Result<Vec<IpAddr>>) -> Answer {
        let mut state = self.state();
        state.asking = None;
        let mut addresses: Addresses = answer.map_err(Arc::new)?.into_iter().collect();
        if addresses.is_empty() {
            let nothing = "the name resolves to no address";
            return Err(Arc::new(io::Error::new(io::ErrorKind::NotFound, nothing)));
        }
        addresses.truncate(MOST);
        let (known, since) = (addresses.clone(), Instant::now());
        state.known = Some(Known {
            addresses: known,
            since,
        });
        Ok(addresses)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What is known and not older than this.
    fn known(&self, age: Duration) -> Option<&Addresses> {
        let known = self.known.as_ref()?;
        (known.since.elapsed() < age).then_some(&known.addresses)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::oneshot;
    use tokio::time::advance;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(2);

    fn address(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, last])
    }

    async fn asked(name: &Arc<Name>, answer: io::Result<Vec<IpAddr>>) -> io::Result<Addresses> {
        name.addresses_by(PATIENCE, || ready(answer)).await
    }

    fn away() -> io::Result<Vec<IpAddr>> {
        Err(io::Error::other("no name server answers"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_asked_for_again_and_what_it_stands_for_now_counts() {
        let name = Name::new("storage");
        let found = asked(&name, Ok(vec![address(1)])).await.unwrap();
        assert_eq!(found.as_slice(), [address(1)]);
        let found = asked(&name, Ok(vec![address(2)])).await.unwrap();
        assert_eq!(found.as_slice(), [address(1)], "within a second");
        advance(FRESH).await;
        let found = asked(&name, Ok(vec![address(2), address(3)])).await;
        assert_eq!(found.unwrap().as_slice(), [address(2), address(3)]);
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_answer_the_last_one_counts_for_a_while() {
        let name = Name::new("storage");
        asked(&name, away()).await.unwrap_err();
        asked(&name, Ok(Vec::new())).await.unwrap_err();
        asked(&name, Ok(vec![address(1)])).await.unwrap();
        advance(FRESH).await;
        for answer in [away(), Ok(Vec::new())] {
            let found = asked(&name, answer).await.unwrap();
            assert_eq!(found.as_slice(), [address(1)]);
        }
        // Nobody waits for one that does not come.
        let start = Instant::now();
        let found = name.addresses_by(PATIENCE, pending).await.unwrap();
        assert_eq!(
            (found.as_slice(), start.elapsed()),
            (&[address(1)][..], SOON)
        );
        advance(LASTS).await;
        let error = asked(&name, away()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "still asked for");
    }

    #[tokio::test(start_paused = true)]
    async fn connections_take_turns_and_leave_what_failed_for_last() {
        let name = Name::new("storage");
        let six = IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]);
        let found: Addresses = [address(1), six, address(2), address(3)]
            .into_iter()
            .collect();
        let turn = || name.in_turn(found.clone()).to_vec();
        assert_eq!(turn(), [address(1), address(2), address(3), six]);
        assert_eq!(turn(), [address(2), address(3), address(1), six]);
        name.tried(address(3), false);
        assert_eq!(turn(), [address(1), address(2), six, address(3)]);
        advance(SHUNNED).await;
        assert_eq!(turn(), [address(1), address(2), address(3), six]);
        name.tried(address(2), false);
        name.tried(address(2), true);
        assert_eq!(turn(), [address(2), address(3), address(1), six]);
        assert!(name.in_turn(Addresses::new()).is_empty());
        let many: Addresses = (0..9).map(address).collect();
        assert_eq!(name.in_turn(many).len(), TRIES);
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_want_to_know_share_one_answer() {
        let name = Name::new("storage");
        let asks = Arc::new(AtomicUsize::new(0));
        let (tell, told) = oneshot::channel::<IpAddr>();
        let mut told = Some(told);
        let waiting: Vec<_> = (0..100)
            .map(|_| {
                let (name, asks, told) = (Arc::clone(&name), Arc::clone(&asks), told.take());
                tokio::spawn(async move {
                    name.addresses_by(PATIENCE, || async move {
                        asks.fetch_add(1, Ordering::SeqCst);
                        told.unwrap()
                            .await
                            .map(|one| vec![one])
                            .map_err(io::Error::other)
                    })
                    .await
                })
            })
            .collect();
        tokio::task::yield_now().await;
        tell.send(address(9)).unwrap();
        for one in waiting {
            assert_eq!(one.await.unwrap().unwrap().as_slice(), [address(9)]);
        }
        assert_eq!(asks.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_asked_and_fell_over_keeps_nobody_from_asking() {
        let name = Name::new("storage");
        let fell = name.addresses_by(PATIENCE, || async { panic!("on purpose") });
        fell.await.unwrap_err();
        asked(&name, Ok(vec![address(1)])).await.unwrap();
    }

    #[tokio::test]
    async fn the_system_knows_this_machine() {
        let found = Name::new("localhost").addresses(PATIENCE).await.unwrap();
        assert!(found.iter().all(IpAddr::is_loopback), "{found:?}");
    }
}
