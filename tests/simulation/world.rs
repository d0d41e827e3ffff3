//! What all hosts of one simulation share: the clock, the log, and what the oracle knows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use fencegate::gateway::Gateway;
use fencegate::sim::Disk;
use fencegate::stop::Stopper;
use turmoil::net::TcpStream;

use super::common::{Event, History, Token, Write};
use super::dice::Dice;
use super::scenario::{KEYS, Scenario};

/// How far time goes in one step. Within a step hosts run one after the other.
pub(crate) const TICK: Duration = Duration::from_millis(2);

/// How much earlier than the contract allows the resource is done, since a time of one host and the
/// same time of another may be apart by a step.
const MARGIN: Duration = Duration::from_millis(6);

pub(crate) struct World {
    pub(crate) scenario: Scenario,
    clock: AtomicU64,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lines: Vec<String>,
    order: u64,
    tags: u64,
    writes: Vec<Write>,
    seen: BTreeMap<String, Seen>,
    answers: Vec<Answer>,
    /// When the gateway closed its end of an upstream connection, by its address.
    closed: HashMap<SocketAddr, Duration>,
    open: BTreeSet<SocketAddr>,
    locks: Locks,
    violations: Vec<String>,
    life: Life,
}

/// What the resource did with one attempt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) times: u32,
    pub(crate) applied: bool,
    /// The status of the answer that it sent.
    pub(crate) answered: Option<u16>,
    /// It answered before it had applied anything.
    pub(crate) early: bool,
}

/// What a client was told of one attempt.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) tag: String,
    pub(crate) token: Option<u64>,
    pub(crate) safe: bool,
    pub(crate) status: u16,
    pub(crate) outcome: Option<String>,
    pub(crate) mark: Option<String>,
    pub(crate) body: String,
    pub(crate) over_http2: bool,
}

/// The lock service: leases on keys, and tokens that rise over all of them.
#[derive(Default)]
struct Locks {
    last: u64,
    until: [Duration; KEYS],
    /// The newest token of each key; 0: none.
    newest: [u64; KEYS],
}

/// The gateway of now.
#[derive(Default)]
pub(crate) struct Life {
    pub(crate) disk: Disk,
    pub(crate) stopper: Option<Stopper>,
    pub(crate) gateway: Weak<Gateway>,
    /// How it ended.
    pub(crate) ended: Option<Result<(), String>>,
    /// The disk takes this much longer.
    pub(crate) stall: Duration,
    /// How long the host is down before the next one begins.
    pub(crate) down: Duration,
    /// Whether peers are told at once that the last one is gone, as by the kernel of a machine that
    /// has lost no more than a process.
    pub(crate) told: bool,
    dying: bool,
    streams: u64,
    /// The streams of those that died, by number.
    orphans: BTreeMap<u64, TcpStream>,
}

impl World {
    pub(crate) fn new(scenario: Scenario) -> Self {
        Self {
            scenario,
            clock: AtomicU64::new(0),
            began: Instant::now(),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn set_clock(&self, elapsed: Duration) {
        let ms = u64::try_from(elapsed.as_millis()).unwrap();
        self.clock.store(ms, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> Duration {
        Duration::from_millis(self.clock.load(Ordering::Relaxed))
    }

    pub(crate) fn is_over(&self) -> bool {
        self.now() >= self.scenario.chaos
    }

    /// A line of the log. Equal seeds have equal logs.
    pub(crate) fn log(&self, line: impl AsRef<str>) {
        let now = self.now().as_millis();
        self.state()
            .lines
            .push(format!("{now:>6} {}", line.as_ref()));
    }

    pub(crate) fn violation(&self, what: String) {
        self.log(format!("VIOLATION {what}"));
        self.state().violations.push(what);
    }

    fn event(&self, state: &mut State) -> Event {
        state.order += 1;
        Event {
            order: state.order,
            at: self.began + self.now(),
        }
    }

    pub(crate) fn tag(&self) -> String {
        let mut state = self.state();
        state.tags += 1;
        format!("r{}", state.tags)
    }

    pub(crate) fn life<R>(&self, with: impl FnOnce(&mut Life) -> R) -> R {
        with(&mut self.state().life)
    }

    /// A gateway dies within `death`. Its tasks are dropped in an order that is another in each run,
    /// so what its streams have to tell their peers is told later, in the order of their numbers.
    pub(crate) fn dies(&self, death: impl FnOnce()) {
        self.life(|life| life.dying = true);
        death();
        self.life(|life| life.dying = false);
        // Whatever a dead process leaves open, the kernel closes.
        let now = self.now();
        let state = &mut *self.state();
        for address in std::mem::take(&mut state.open) {
            state.closed.insert(address, now);
            let what = format!("a stream of the dead gateway, {address}, is left");
            state.violations.push(what);
        }
    }

    pub(crate) fn stream_number(&self) -> u64 {
        self.life(|life| {
            life.streams += 1;
            life.streams
        })
    }

    /// Takes in the stream of a gateway that is dying; gives it back where none is.
    pub(crate) fn orphan(&self, number: u64, stream: TcpStream) -> Option<TcpStream> {
        self.life(|life| match life.dying {
            true => {
                life.orphans.insert(number, stream);
                None
            }
            false => Some(stream),
        })
    }

    /// Closes what dead gateways left open. To be called on the gateway's host.
    pub(crate) fn close_orphans(&self) {
        let orphans = self.life(|life| std::mem::take(&mut life.orphans));
        orphans.into_values().for_each(drop);
    }

    // The lock service.

    /// A new token for all of `keys`, where nobody has a lease on any.
    pub(crate) fn grant(&self, keys: &[usize], lease: Duration) -> Option<u64> {
        let now = self.now();
        let locks = &mut self.state().locks;
        if keys.iter().any(|key| locks.until[*key] > now) {
            return None;
        }
        locks.last += 1;
        for key in keys {
            locks.until[*key] = now + lease;
            locks.newest[*key] = locks.last;
        }
        Some(locks.last)
    }

    /// The newest token that was granted for a key.
    pub(crate) fn newest(&self, key: usize) -> Option<u64> {
        Some(self.state().locks.newest[key]).filter(|token| *token > 0)
    }

    pub(crate) fn release(&self, keys: &[usize], until: Duration) {
        let locks = &mut self.state().locks;
        for key in keys {
            // Not a lease that somebody else has got since.
            if locks.until[*key] == until {
                locks.until[*key] = Duration::ZERO;
            }
        }
    }

    // The gateway's end of upstream connections.

    pub(crate) fn opened(&self, gateway: SocketAddr) {
        self.state().open.insert(gateway);
    }

    pub(crate) fn closed(&self, gateway: SocketAddr) {
        let now = self.now();
        let mut state = self.state();
        if state.open.remove(&gateway) {
            state.closed.insert(gateway, now);
        }
    }

    /// When the resource must be done with what came on this connection, by the contract: `settle`
    /// after the gateway closed it.
    pub(crate) fn limit(&self, gateway: SocketAddr) -> Option<Duration> {
        let closed = *self.state().closed.get(&gateway)?;
        Some((closed + self.scenario.settle).saturating_sub(MARGIN))
    }

    // The resource's log.

    /// A request has reached the resource: one record for each of its keys.
    pub(crate) fn begin(&self, write: &Write, keys: &[String]) -> Vec<usize> {
        let mut state = self.state();
        let event = self.event(&mut state);
        let seen = state.seen.entry(write.tag.clone()).or_default();
        seen.times += 1;
        let first = state.writes.len();
        for key in keys {
            let mut write = write.clone();
            write.key.clone_from(key);
            write.began = event;
            state.writes.push(write);
        }
        (first..state.writes.len()).collect()
    }

    pub(crate) fn change(&self, ids: &[usize], change: impl Fn(&mut Write, Event)) {
        let mut state = self.state();
        let event = self.event(&mut state);
        for id in ids {
            change(&mut state.writes[*id], event);
        }
    }

    pub(crate) fn seen(&self, tag: &str, change: impl FnOnce(&mut Seen)) {
        change(self.state().seen.entry(tag.to_owned()).or_default());
    }

    pub(crate) fn highest(&self) -> BTreeMap<String, Token> {
        let history = History(self.state().writes.clone(), Vec::new());
        let keys = history.keys().into_iter();
        keys.filter_map(|key| Some((key.clone(), history.highest(&key)?)))
            .collect()
    }

    pub(crate) fn answered(&self, answer: Answer) {
        self.log(format!(
            "client {} told {} {:?}",
            answer.tag, answer.status, answer.outcome
        ));
        self.state().answers.push(answer);
    }

    // The oracle.

    /// Everything that is wrong with what happened.
    pub(crate) fn verdict(&self) -> Vec<String> {
        let state = self.state();
        let mut wrong = state.violations.clone();
        let history = History(state.writes.clone(), Vec::new());
        if let Err(violation) = history.check() {
            wrong.push(violation.to_string());
        }
        for (tag, seen) in &state.seen {
            if seen.times > 1 {
                wrong.push(format!("G5 is broken: {tag} was sent {} times", seen.times));
            }
        }
        let nothing = Seen::default();
        for answer in &state.answers {
            let seen = state.seen.get(&answer.tag).unwrap_or(&nothing);
            // A floor is one above a mark.
            let most = state.locks.last + u64::from(self.scenario.forgets);
            wrong.extend(untruth(answer, seen, most));
        }
        wrong
    }

    pub(crate) fn finish(&self) -> Finished {
        let state = self.state();
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in state
            .lines
            .iter()
            .flat_map(|line| line.bytes().chain([b'\n']))
        {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let good = |answer: &&Answer| (200..300).contains(&answer.status);
        Finished {
            hash,
            lines: state.lines.clone(),
            reached: state.seen.len(),
            answered: state.answers.len(),
            good: state.answers.iter().filter(good).count(),
            over_http2: state
                .answers
                .iter()
                .filter(|answer| answer.over_http2)
                .count(),
        }
    }
}

pub(crate) struct Finished {
    pub(crate) hash: u64,
    pub(crate) lines: Vec<String>,
    pub(crate) reached: usize,
    pub(crate) answered: usize,
    pub(crate) good: usize,
    pub(crate) over_http2: usize,
}

/// How an answer is not true.
fn untruth(answer: &Answer, seen: &Seen, highest_mark: u64) -> Option<String> {
    let Answer { tag, status, .. } = answer;
    let lie = |what: &str| {
        Some(format!(
            "{tag} was told {status}: {what}; {answer:?}, {seen:?}"
        ))
    };
    match answer.outcome.as_deref() {
        Some("not-forwarded") if seen.times > 0 => return lie("not-forwarded, but it was"),
        Some("not-forwarded" | "unknown") => {}
        Some(_) => return lie("there is no such outcome"),
        // The resource's own answer.
        None if answer.body != *tag => return lie("another's answer"),
        None if seen.answered != Some(*status) => return lie("nobody answered so"),
        None if (200..300).contains(status) && !answer.safe && !seen.applied && !seen.early => {
            return lie("nothing was applied");
        }
        None => {}
    }
    if answer.token.is_none() && !answer.safe && seen.times > 0 {
        return lie("a write without a token was forwarded");
    }
    if let Some(mark) = &answer.mark {
        let mark: u64 = mark.parse().unwrap_or(0);
        if mark > highest_mark || answer.token.is_some_and(|token| mark <= token) {
            return lie("the mark is none that was issued, or not above the token");
        }
    }
    None
}

/// How long the simulated disk takes.
pub(crate) struct Pace {
    pub(crate) world: std::sync::Arc<World>,
    pub(crate) dice: Dice,
}

impl fencegate::sim::Pace for Pace {
    fn draw(&mut self) -> Duration {
        let stall = self.world.life(|life| life.stall);
        self.dice.ms(0, 3) + stall
    }
}
