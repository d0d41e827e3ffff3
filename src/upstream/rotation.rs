//! Which of an upstream's addresses a request goes to.
//!
//! They have their turns one after the other. An address to which no connection came about is
//! ejected: it is left alone for a while, which doubles each time, and then one request tries it. So is
//! one that takes connections and answers none of a few requests in a row, where there is another to
//! go to. One whose health checks fail is left alone until they succeed. Where all are left alone, the
//! one that comes free first is tried, so that there is always one.
//!
//! It has no clock of its own and does no I/O.

use std::time::Duration;

use fencegate_filters::fault::{self, Fault};
use smallvec::SmallVec;
use tokio::time::Instant;

/// How long an address is left alone after its first failure.
const FIRST_EJECTION: Duration = Duration::from_secs(1);

/// The longest that it is left alone.
const LONGEST_EJECTION: Duration = Duration::from_secs(30);

/// How many requests in a row an address may leave without an answer: one may be slow by itself.
const MOST_UNANSWERED: u32 = 3;

/// How many health checks in a row must fail, or succeed, to change what is thought of an address.
const FALL: u32 = 3;
const RISE: u32 = 2;

/// The most addresses that are tried for one request.
const MOST_TRIES: usize = 3;

/// The addresses of an upstream, by number.
#[derive(Debug)]
pub(super) struct Rotation {
    /// Whose turn it is.
    next: usize,
    addresses: Box<[Standing]>,
}

/// What is known of one address.
#[derive(Debug)]
struct Standing {
    /// What health checks say.
    healthy: bool,
    /// How many of them in a row have said otherwise; `None`: there was none yet.
    doubts: Option<u32>,
    /// Ejections in a row.
    failures: u32,
    /// Requests in a row that it did not answer.
    unanswered: u32,
    ejection: Option<Ejection>,
}

#[derive(Clone, Copy, Debug)]
struct Ejection {
    until: Instant,
    /// It takes connections and does not answer: only an answer shows that it is well again.
    silent: bool,
    /// A request tries it, and the others leave it alone until that is known, or for as long again.
    on_trial: bool,
}

/// Where one request may go.
#[derive(Debug, PartialEq, Eq)]
pub struct Turn {
    /// The addresses in the order in which they are to be tried; at least one.
    pub(super) order: SmallVec<[usize; MOST_TRIES]>,
    /// Whether a kept connection to the first of them may be used.
    pub(super) kept: bool,
}

impl Turn {
    /// There is nothing to choose from.
    pub(super) fn only() -> Self {
        Self {
            order: SmallVec::from_iter([0]),
            kept: true,
        }
    }
}

impl Standing {
    fn ejection(&self) -> Option<Ejection> {
        self.ejection.filter(|_| !fault::planted(Fault::UseEjected))
    }

    fn is_free(&self, now: Instant) -> bool {
        let ejection = self.ejection();
        self.healthy && ejection.is_none_or(|ejection| ejection.until <= now)
    }

    /// For how long that is.
    fn eject(&mut self, now: Instant, silent: bool) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let time = ejection_of(self.failures);
        self.ejection = Some(Ejection {
            until: now + time,
            silent,
            on_trial: false,
        });
        time
    }
}

impl Rotation {
    pub(super) fn new(addresses: usize) -> Self {
        Self {
            next: 0,
            addresses: (0..addresses)
                .map(|_| Standing {
                    healthy: true,
                    doubts: None,
                    failures: 0,
                    unanswered: 0,
                    ejection: None,
                })
                .collect(),
        }
    }

    /// Where a request goes now. An address whose ejection is over is given to one request alone.
    pub(super) fn turn(&mut self, now: Instant) -> Turn {
        let count = self.addresses.len().max(1);
        let from_next = |number: &usize| (number + count - self.next) % count;
        let standing = |number: &usize| {
            let standing = self.addresses.get(*number);
            let free = standing.is_some_and(|standing| standing.is_free(now));
            let sick = standing.is_some_and(|standing| !standing.healthy);
            let until = standing.and_then(Standing::ejection);
            let until = until.filter(|_| !free).map(|ejection| ejection.until);
            (!free, sick, until, from_next(number))
        };
        let mut order: SmallVec<[usize; MOST_TRIES]> = (0..count).collect();
        order.sort_by_key(standing);
        order.truncate(MOST_TRIES);
        let first = order.first().copied().unwrap_or_default();
        self.next = (first + 1) % count;
        let mut kept = false;
        if let Some(standing) = self.addresses.get_mut(first)
            && standing.is_free(now)
        {
            kept = standing.ejection().is_none();
            if let Some(ejection) = &mut standing.ejection {
                // Whether it answers may take long to be known, and everybody who tries waits as long.
                ejection.until = now
                    + match ejection.silent {
                        true => LONGEST_EJECTION,
                        false => ejection_of(standing.failures),
                    };
                ejection.on_trial = true;
            }
        }
        Turn { order, kept }
    }

    /// A connection to an address came about. Whether it had been ejected for want of one.
    pub(super) fn succeeded(&mut self, number: usize) -> bool {
        let Some(standing) = self.addresses.get_mut(number) else {
            return false;
        };
        if standing.ejection.is_some_and(|ejection| ejection.silent) {
            return false;
        }
        standing.failures = 0;
        standing.ejection.take().is_some()
    }

    /// An address has answered a request. Whether it had been ejected since it did not.
    pub(super) fn answered(&mut self, number: usize) -> bool {
        let Some(standing) = self.addresses.get_mut(number) else {
            return false;
        };
        standing.unanswered = 0;
        if !standing.ejection.is_some_and(|ejection| ejection.silent) {
            return false;
        }
        standing.failures = 0;
        standing.ejection = None;
        true
    }

    /// An address had a request and did not answer it. How long it is left alone from now on, where
    /// that was not known yet.
    pub(super) fn unanswered(&mut self, number: usize, now: Instant) -> Option<Duration> {
        let mut others = self.addresses.iter().enumerate();
        let another = others.any(|(other, standing)| other != number && standing.is_free(now));
        let standing = self.addresses.get_mut(number)?;
        standing.unanswered = standing.unanswered.saturating_add(1);
        let enough = match standing.ejection {
            Some(ejection) => ejection.on_trial && ejection.silent,
            None => standing.unanswered >= MOST_UNANSWERED && another,
        };
        if !enough || fault::planted(Fault::UseSilent) {
            return None;
        }
        Some(standing.eject(now, true))
    }

    /// No connection to an address came about. How long it is left alone from now on, where that was
    /// not known yet.
    pub(super) fn failed(&mut self, number: usize, now: Instant) -> Option<Duration> {
        let standing = self.addresses.get_mut(number)?;
        let known = |ejection: Ejection| ejection.until > now && !ejection.on_trial;
        if standing.ejection.is_some_and(known) {
            return None;
        }
        Some(standing.eject(now, false))
    }

    /// A health check ended. Whether something new is thought of the address: the first check counts
    /// at once, and later ones where several in a row say the same.
    pub(super) fn checked(&mut self, number: usize, healthy: bool) -> bool {
        let Some(standing) = self.addresses.get_mut(number) else {
            return false;
        };
        if healthy && !standing.ejection.is_some_and(|ejection| ejection.silent) {
            standing.failures = 0;
            standing.ejection = None;
        }
        let doubts = standing.doubts.replace(0);
        if standing.healthy == healthy {
            return false;
        }
        let needed = if healthy { RISE } else { FALL };
        let enough = doubts.is_none_or(|doubts| doubts + 1 >= needed);
        if enough {
            standing.healthy = healthy;
        } else {
            standing.doubts = doubts.map(|doubts| doubts + 1);
        }
        enough
    }

    /// Whether all is well with an address, as far as is known.
    pub(super) fn is_well(&self, number: usize) -> bool {
        let standing = self.addresses.get(number);
        standing.is_some_and(|standing| standing.healthy && standing.failures == 0)
    }
}

/// How long an address is left alone that has failed so often.
fn ejection_of(failures: u32) -> Duration {
    let doubled = 1_u32.checked_shl(failures.saturating_sub(1));
    FIRST_EJECTION
        .saturating_mul(doubled.unwrap_or(u32::MAX))
        .min(LONGEST_EJECTION)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn firsts(rotation: &mut Rotation, now: Instant, count: usize) -> Vec<usize> {
        (0..count).map(|_| rotation.turn(now).order[0]).collect()
    }

    #[test]
    fn each_has_its_turn() {
        let now = Instant::now();
        let mut rotation = Rotation::new(3);
        assert_eq!(firsts(&mut rotation, now, 7), [0, 1, 2, 0, 1, 2, 0]);
        let turn = rotation.turn(now);
        assert_eq!(turn.order.as_slice(), [1, 2, 0], "the others follow");
        assert!(turn.kept);
    }

    #[test]
    fn one_address_is_always_tried() {
        let now = Instant::now();
        let mut rotation = Rotation::new(1);
        assert_eq!(rotation.turn(now), Turn::only());
        rotation.failed(0, now);
        let turn = rotation.turn(now);
        assert_eq!(turn.order.as_slice(), [0]);
        assert!(!turn.kept);
    }

    #[test]
    fn an_ejected_address_is_left_alone_and_the_others_share_its_turns() {
        let now = Instant::now();
        let mut rotation = Rotation::new(3);
        assert_eq!(rotation.failed(0, now), Some(SECOND));
        assert_eq!(firsts(&mut rotation, now, 4), [1, 2, 1, 2]);
        let last = rotation.turn(now).order;
        assert_eq!(last.as_slice(), [1, 2, 0], "it is the last resort");
    }

    #[test]
    fn after_its_time_one_request_tries_it_on_a_new_connection() {
        let start = Instant::now();
        let mut rotation = Rotation::new(2);
        rotation.failed(0, start);
        let later = start + SECOND;
        let trial = rotation.turn(later);
        assert_eq!(trial.order.as_slice(), [0, 1]);
        assert!(!trial.kept, "what was kept may be as dead");
        assert_eq!(firsts(&mut rotation, later, 3), [1, 1, 1]);
        assert!(rotation.succeeded(0));
        assert_eq!(firsts(&mut rotation, later, 3), [0, 1, 0]);
    }

    #[test]
    fn a_trial_that_nobody_reports_of_is_repeated() {
        let start = Instant::now();
        let mut rotation = Rotation::new(2);
        rotation.failed(0, start);
        assert_eq!(firsts(&mut rotation, start + SECOND, 2), [0, 1]);
        assert_eq!(firsts(&mut rotation, start + 2 * SECOND, 2), [0, 1]);
    }

    #[test]
    fn the_time_doubles_with_each_failed_trial_up_to_a_bound() {
        let mut now = Instant::now();
        let mut rotation = Rotation::new(2);
        let mut times = Vec::new();
        for _ in 0..8 {
            let time = rotation.failed(0, now).unwrap();
            times.push(time.as_secs());
            assert!(!firsts(&mut rotation, now + time - SECOND / 2, 2).contains(&0));
            now += time;
            assert!(firsts(&mut rotation, now, 2).contains(&0), "it is tried");
        }
        assert_eq!(times, [1, 2, 4, 8, 16, 30, 30, 30]);
        rotation.succeeded(0);
        assert_eq!(rotation.failed(0, now), Some(SECOND), "from the beginning");
        for _ in 0..100 {
            now += LONGEST_EJECTION;
            rotation.failed(0, now);
        }
        assert_eq!(
            rotation.failed(0, now + LONGEST_EJECTION),
            Some(LONGEST_EJECTION)
        );
    }

    #[test]
    fn many_that_fail_at_once_count_once() {
        let now = Instant::now();
        let mut rotation = Rotation::new(2);
        assert_eq!(rotation.failed(0, now), Some(SECOND));
        assert_eq!(rotation.failed(0, now), None);
        assert_eq!(rotation.failed(0, now + SECOND / 2), None);
        assert_eq!(firsts(&mut rotation, now + SECOND, 1), [0]);
        assert_eq!(rotation.failed(0, now + SECOND), Some(2 * SECOND));
        assert_eq!(rotation.failed(0, now + SECOND), None);
    }

    #[test]
    fn where_all_are_ejected_the_one_that_comes_free_first_is_tried() {
        let now = Instant::now();
        let mut rotation = Rotation::new(3);
        rotation.failed(2, now);
        rotation.failed(0, now + SECOND / 4);
        rotation.failed(1, now + SECOND / 2);
        for _ in 0..3 {
            let turn = rotation.turn(now + SECOND / 2);
            assert_eq!(turn.order.as_slice(), [2, 0, 1]);
            assert!(!turn.kept);
        }
    }

    #[test]
    fn an_unhealthy_address_is_left_alone_until_checks_succeed() {
        let start = Instant::now();
        let mut rotation = Rotation::new(2);
        assert!(rotation.checked(0, false), "nothing else is known");
        assert!(!rotation.checked(0, false));
        let later = start + 10 * LONGEST_EJECTION;
        assert_eq!(firsts(&mut rotation, later, 3), [1, 1, 1]);
        rotation.succeeded(0);
        assert_eq!(firsts(&mut rotation, later, 2), [1, 1]);
        assert!(!rotation.checked(0, true));
        assert_eq!(firsts(&mut rotation, later, 2), [1, 1]);
        assert!(rotation.checked(0, true));
        assert_eq!(firsts(&mut rotation, later, 2), [0, 1]);

        rotation.failed(0, later);
        assert!(!rotation.checked(0, true));
        assert_eq!(
            firsts(&mut rotation, later, 2),
            [0, 1],
            "a check is a trial"
        );
    }

    #[test]
    fn one_lost_check_tells_nothing_and_several_in_a_row_do() {
        let now = Instant::now();
        let mut rotation = Rotation::new(2);
        assert!(!rotation.checked(0, true));
        for _ in 0..5 {
            assert!(!rotation.checked(0, false));
            assert!(!rotation.checked(0, false));
            assert!(!rotation.checked(0, true), "they are not in a row");
        }
        assert_eq!(firsts(&mut rotation, now, 2), [0, 1]);
        assert!(!rotation.checked(0, false));
        assert!(!rotation.checked(0, false));
        assert!(rotation.checked(0, false));
        assert_eq!(firsts(&mut rotation, now, 2), [1, 1]);
        assert!(!rotation.checked(0, true));
        assert!(!rotation.checked(0, false));
        assert!(!rotation.checked(0, true));
        assert!(rotation.checked(0, true));
    }

    #[test]
    fn an_address_that_answers_nothing_is_ejected_until_it_answers() {
        let now = Instant::now();
        let mut rotation = Rotation::new(2);
        for _ in 0..5 {
            assert_eq!(rotation.unanswered(0, now), None);
            assert_eq!(rotation.unanswered(0, now), None);
            assert!(!rotation.answered(0), "they are not in a row");
        }
        assert_eq!(rotation.unanswered(0, now), None);
        assert_eq!(rotation.unanswered(0, now), None);
        assert_eq!(rotation.unanswered(0, now), Some(SECOND));
        assert_eq!(rotation.unanswered(0, now), None, "it is known");
        assert_eq!(firsts(&mut rotation, now, 3), [1, 1, 1]);
        assert!(!rotation.is_well(0));
        // One request tries it. That it is connected to tells nothing, nor does a check.
        let later = now + SECOND;
        assert_eq!(firsts(&mut rotation, later, 2), [0, 1]);
        assert!(!rotation.succeeded(0));
        rotation.checked(0, true);
        assert_eq!(firsts(&mut rotation, later + 2 * SECOND, 2), [1, 1]);
        let later = later + 2 * SECOND;
        assert_eq!(rotation.unanswered(0, later), Some(2 * SECOND));
        let later = later + 2 * SECOND;
        assert_eq!(firsts(&mut rotation, later, 2), [0, 1]);
        assert!(rotation.answered(0));
        assert!(rotation.is_well(0));
        assert_eq!(firsts(&mut rotation, later, 2), [0, 1]);
    }

    #[test]
    fn the_last_address_is_not_ejected_for_its_silence() {
        let now = Instant::now();
        let mut rotation = Rotation::new(2);
        rotation.failed(1, now);
        for _ in 0..2 * MOST_UNANSWERED {
            assert_eq!(rotation.unanswered(0, now), None);
        }
        let turn = rotation.turn(now);
        assert_eq!((turn.order[0], turn.kept), (0, true));
        // It is, once there is another.
        rotation.succeeded(1);
        assert_eq!(rotation.unanswered(0, now), Some(SECOND));
        assert_eq!(rotation.unanswered(1, now), None);
    }

    #[test]
    fn where_none_is_well_an_ejected_one_goes_before_an_unhealthy_one() {
        let now = Instant::now();
        let mut rotation = Rotation::new(2);
        rotation.checked(0, false);
        rotation.failed(1, now);
        assert_eq!(rotation.turn(now).order.as_slice(), [1, 0]);
        assert!(!rotation.is_well(0) && !rotation.is_well(1));
        rotation.succeeded(1);
        assert!(!rotation.is_well(0) && rotation.is_well(1));
    }

    #[test]
    fn no_more_than_a_few_are_tried_for_one_request() {
        let mut rotation = Rotation::new(10);
        assert_eq!(rotation.turn(Instant::now()).order.len(), MOST_TRIES);
    }
}
