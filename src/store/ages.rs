//! For how long keys have not been used, and below which mark none of an unknown key can be.
//!
//! Both stand in the store itself, as records beside the marks under keys that no namespace has:
//! what makes marks durable, merges, exports and imports them does the same for these.
//!
//! | key | its mark |
//! | --- | --- |
//! | `!floors/NAMESPACE` | every mark that was forgotten in the namespace is below it |
//! | `!forgets/NAMESPACE` | the uptime since when the namespace's keys are touched when they are used |
//! | `!uptime/store` | for how many units the store has been open, over all processes |
//!
//! Age is counted in uptime, by units of a second, so a wall clock that jumps, or a store that lay idle, ages nothing. What
//! of the uptime a crash loses makes keys younger than they are.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use fencegate_filters::Token;
use fencegate_filters::store::{Binding, Raise, Record};

use super::index::{Index, IndexError};
use super::{Key, lock_mutex, now};
use crate::sync::Mutex;

pub(super) const FLOORS: &str = "!floors/";
pub(super) const FORGETS: &str = "!forgets/";
const UPTIME: &str = "!uptime/store";

/// What is kept of whether a namespace's keys are touched, in the place of a holder.
const ON: &str = "on";
const OFF: &str = "off";

/// The uptime, and what is known of each namespace that forgets or has forgotten.
pub(super) struct Ages {
    opened: Instant,
    unit: Duration,
    /// The uptime when the store was opened, in units.
    base: AtomicU32,
    /// Whether the uptime goes on.
    counts: AtomicBool,
    has_floors: AtomicBool,
    namespaces: Mutex<Namespaces>,
}

#[derive(Default)]
struct Namespaces {
    floors: BTreeMap<String, Token>,
    /// Since when the keys of each are touched.
    since: BTreeMap<String, u32>,
    after: u32,
}

/// The uptime that the index knows, in units.
pub(super) fn indexed_uptime(index: &dyn Index) -> Result<u32, IndexError> {
    let kept = index.get(UPTIME)?;
    Ok(kept.map_or(0, |kept| units(kept.record.mark)))
}

/// The uptime that was told with `raise`, if it is that.
pub(super) fn uptime_of(raise: &Raise) -> Option<u32> {
    (raise.key.as_str() == UPTIME).then(|| units(raise.record.mark))
}

fn units(mark: Token) -> u32 {
    u32::try_from(mark.counter()).unwrap_or(u32::MAX)
}

/// The least token above `mark`; `None` where there is none.
pub(super) fn above(mark: Token) -> Option<Token> {
    match mark.counter().checked_add(1) {
        Some(counter) => Token::new(mark.epoch(), counter),
        None => Token::new(mark.epoch().checked_add(1)?, 0),
    }
}

/// Whether this key says something that is true of one store alone.
pub(super) fn is_of_this_store(key: &Key) -> bool {
    key.as_str() == UPTIME || key.as_str().starts_with(FORGETS)
}

/// A namespace's floor, as it is kept.
pub(super) fn floor_raise(namespace: &str, floor: Token) -> Raise {
    raise(&format!("{FLOORS}{namespace}"), floor, None, 0)
}

/// The namespace of a floor that is kept under `key`.
pub(super) fn floor_of(key: &Key) -> Option<&str> {
    key.as_str().strip_prefix(FLOORS)
}

fn raise(key: &str, mark: Token, text: Option<&str>, resets: u64) -> Raise {
    Raise {
        key: Key::from_text(key),
        record: Record {
            mark,
            holder: text.map_or(Binding::Unbound, |text| Binding::Holder(text.into())),
            draining: false,
            resets,
        },
    }
}

impl Ages {
    pub(super) fn new(opened: Instant, unit: Duration) -> Self {
        Self {
            opened,
            unit,
            base: AtomicU32::new(0),
            counts: AtomicBool::new(false),
            has_floors: AtomicBool::new(false),
            namespaces: Mutex::default(),
        }
    }

    /// The store has been open for so many units before.
    pub(super) fn begin(&self, uptime: u32) {
        self.base.store(uptime, Ordering::Relaxed);
    }

    /// The uptime in units. It stands still while nothing is to be forgotten; 0 where nothing
    /// ever was.
    pub(super) fn uptime(&self) -> u32 {
        let base = self.base.load(Ordering::Relaxed);
        if !self.counts.load(Ordering::Relaxed) {
            return base;
        }
        let elapsed = now().saturating_duration_since(self.opened);
        base.saturating_add(self.in_units(elapsed)).max(1)
    }

    fn in_units(&self, time: Duration) -> u32 {
        let units = time.as_nanos() / self.unit.as_nanos().max(1);
        u32::try_from(units).unwrap_or(u32::MAX)
    }

    /// The uptime as it is to be kept.
    pub(super) fn uptime_raise(&self) -> Option<Raise> {
        let mark = Token::new(0, self.uptime().into())?;
        Some(raise(UPTIME, mark, None, 0))
    }

    /// From now on the uptime goes on, and keys of `namespaces` that are not used for `after` may be
    /// forgotten. `kept` is what is known from before; gives what is to be kept from now on.
    pub(super) fn start(
        &self,
        namespaces: &[String],
        after: Duration,
        kept: &[(Key, Record)],
    ) -> Vec<Raise> {
        self.counts.store(!namespaces.is_empty(), Ordering::Relaxed);
        let uptime = self.uptime();
        let mut all = lock_mutex(&self.namespaces);
        all.after = self.in_units(after);
        let mut raises = Vec::new();
        let known: BTreeMap<&str, &Record> = kept
            .iter()
            .filter_map(|(key, record)| Some((key.as_str().strip_prefix(FORGETS)?, record)))
            .collect();
        let is_on = |record: &Record| record.holder == Binding::Holder(ON.into());
        for namespace in namespaces {
            let known = known.get(namespace.as_str());
            if let Some(record) = known.filter(|record| is_on(record)) {
                all.since.insert(namespace.clone(), units(record.mark));
                continue;
            }
            // Nobody has seen until now which keys are used.
            all.since.insert(namespace.clone(), uptime);
            let resets = known.map_or(0, |record| record.resets + 1);
            let mark = Token::new(0, uptime.max(1).into()).unwrap_or(Token::NONE);
            raises.push(raise(
                &format!("{FORGETS}{namespace}"),
                mark,
                Some(ON),
                resets,
            ));
        }
        for (namespace, record) in known {
            if is_on(record) && !all.since.contains_key(namespace) {
                let key = format!("{FORGETS}{namespace}");
                raises.push(raise(&key, record.mark, Some(OFF), record.resets + 1));
            }
        }
        raises
    }

    /// A quarter of the time after which keys are forgotten, in units: how often what is used is
    /// touched.
    fn quarter(after: u32) -> u32 {
        (after / 4).max(1)
    }

    /// The number of the period that it is now, from 1 on.
    pub(super) fn period(&self) -> u32 {
        let after = lock_mutex(&self.namespaces).after;
        (self.uptime() / Self::quarter(after)).saturating_add(1)
    }

    /// Whether a key that was committed last at `stamp`, and is used now, is to be touched: its
    /// namespace forgets, and it was not committed in this period.
    pub(super) fn is_due(&self, namespace: &str, stamp: u32) -> bool {
        if !self.counts.load(Ordering::Relaxed) {
            return false;
        }
        let all = lock_mutex(&self.namespaces);
        let Some(since) = all.since.get(namespace) else {
            return false;
        };
        let quarter = Self::quarter(all.after);
        stamp.max(*since) / quarter < self.uptime() / quarter
    }

    /// Whether a key that was committed last at `stamp` has not been used for long enough.
    ///
    /// It may have been used for a period after that without having been touched, and for as long
    /// as it takes to notice that a period is over.
    pub(super) fn is_idle(&self, namespace: &str, stamp: u32) -> bool {
        let all = lock_mutex(&self.namespaces);
        let Some(since) = all.since.get(namespace) else {
            return false;
        };
        let age = self.uptime().saturating_sub(stamp.max(*since));
        age > all.after.saturating_add(2 * Self::quarter(all.after))
    }

    /// So many units go by, and keys of `namespace` may be forgotten after one.
    #[cfg(test)]
    pub(super) fn age(&self, namespace: &str, units: u32) {
        self.counts.store(true, Ordering::Relaxed);
        self.base.fetch_add(units, Ordering::Relaxed);
        let mut all = lock_mutex(&self.namespaces);
        all.after = 1;
        all.since.entry(namespace.to_owned()).or_insert(0);
    }

    /// What stands for the mark of a key of this namespace that has none.
    pub(super) fn floor(&self, namespace: &str) -> Option<Token> {
        if !self.has_floors.load(Ordering::Acquire) {
            return None;
        }
        lock_mutex(&self.namespaces).floors.get(namespace).copied()
    }

    /// The floor of this namespace is durable.
    pub(super) fn raise_floor(&self, namespace: &str, floor: Token) {
        let mut all = lock_mutex(&self.namespaces);
        let known = all.floors.entry(namespace.to_owned()).or_insert(floor);
        *known = floor.max(*known);
        self.has_floors.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(epoch: u64, counter: u64) -> Token {
        Token::new(epoch, counter).unwrap()
    }

    /// Ages as they are after so many seconds of uptime.
    fn after(seconds: u32) -> Ages {
        let ages = Ages::new(now(), Duration::from_secs(1));
        ages.begin(seconds);
        ages
    }

    fn kept(raises: &[Raise]) -> Vec<(Key, Record)> {
        let pairs = raises.iter().cloned();
        pairs.map(|raise| (raise.key, raise.record)).collect()
    }

    #[test]
    fn a_floor_is_above_every_mark_but_the_last() {
        assert_eq!(above(t(0, 41)), Some(t(0, 42)));
        assert_eq!(above(t(7, u64::MAX)), Some(t(8, 0)));
        assert!(above(t(7, u64::MAX)).unwrap() > t(7, u64::MAX));
        assert_eq!(above(t(u64::MAX, u64::MAX)), None);
    }

    #[test]
    fn floors_only_rise() {
        let ages = after(0);
        assert_eq!(ages.floor("n"), None);
        ages.raise_floor("n", t(0, 7));
        ages.raise_floor("n", t(0, 5));
        assert_eq!(ages.floor("n"), Some(t(0, 7)));
        assert_eq!(ages.floor("m"), None);
    }

    #[test]
    fn a_key_is_idle_when_it_was_not_touched_for_long() {
        let long = Duration::from_secs(100);
        let first = after(1000);
        let begun = first.start(&["n".to_owned()], long, &[]);
        assert_eq!(begun.len(), 1);
        assert!(
            !first.is_idle("n", 0),
            "nobody knows for how long it was not used"
        );
        // The same namespace in a later life.
        let later = after(1200);
        assert!(
            later
                .start(&["n".to_owned()], long, &kept(&begun))
                .is_empty()
        );
        assert!(later.is_idle("n", 0) && later.is_idle("n", 1040));
        assert!(!later.is_idle("n", 1060));
        assert!(!later.is_idle("m", 0), "it keeps its marks for ever");
        assert!(later.is_due("n", 1199) != later.is_due("n", 1200));
        assert!(!later.is_due("m", 0));
    }

    #[test]
    fn a_namespace_that_forgets_again_begins_anew() {
        let long = Duration::from_secs(100);
        let begun = after(1000).start(&["n".to_owned()], long, &[]);
        let ended = after(2000).start(&["m".to_owned()], long, &kept(&begun));
        assert_eq!(ended.len(), 2);
        let again = after(3000);
        let raises = again.start(&["n".to_owned()], long, &kept(&ended));
        assert!(!again.is_idle("n", 0), "it was not touched in between");
        let n = |raise: &&Raise| raise.key.as_str() == "!forgets/n";
        let newer = raises.iter().find(n).unwrap().record.resets;
        assert!(newer > ended.iter().find(n).unwrap().record.resets);
    }

    #[test]
    fn the_uptime_stands_still_while_nothing_forgets() {
        let ages = after(0);
        assert_eq!(ages.uptime(), 0);
        assert!(ages.uptime_raise().is_none());
        ages.start(&["n".to_owned()], Duration::from_secs(9), &[]);
        let raise = ages.uptime_raise().unwrap();
        assert_eq!(uptime_of(&raise), Some(1));
    }
}
