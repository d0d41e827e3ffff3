//! What must hold, whatever happens.
//!
//! The resource is as bad as it may be: it begins a write the moment that it is forwarded, and it
//! may apply any write until that is known to have ended. That a write is applied in order shows
//! in no state, so that what is left to look for is one that is applied late: a write goes out while
//! an older one is still *live*.

use fencegate_filters::fence::lane::{Access, Held};
use fencegate_filters::fence::step::Refused;

use super::scope::Wanted;
use super::state::{KEYS, Lane, Number, Phase, Promise, Slot, State, mark_of, number, rank_of};
use super::world::{Answer, End, Source, World};

impl World<'_> {
    /// A request was admitted: `known` if all marks were read, `marks` as they are in memory.
    pub(super) fn judge_admission(&mut self, slot: Slot, known: bool, marks: &[Number]) {
        let wanted = self.scope.wanted(slot);
        if !known {
            self.breaks(Promise::G4, "admitted before its mark was read");
        }
        for (at, ask) in wanted.asks.iter().enumerate() {
            let key = wanted.keys[at];
            let token = number(ask.token);
            if self.strict && self.state.durable(key) < marks[at] {
                self.breaks(Promise::Lane, "admitted before the mark was durable");
            }
            if ask.access == Access::Read {
                continue;
            }
            if token < self.state.admitted[key] {
                self.breaks(Promise::G1, "a lower token was admitted after a higher one");
            }
            self.state.admitted[key] = self.state.admitted[key].max(token);
        }
    }

    /// A request goes to the resource.
    pub(super) fn judge_forward(&mut self, wanted: &Wanted) {
        for (at, ask) in wanted.asks.iter().enumerate() {
            let key = wanted.keys[at];
            let token = number(ask.token);
            if self.live().any(|live| live.0 == key && live.1 < token) {
                self.breaks(
                    Promise::G2,
                    "forwarded while an older write may still be applied",
                );
            }
            // Only a reset lets a lower token in after a higher one.
            if self.live().any(|live| live.0 == key && live.1 > token) {
                self.breaks(
                    Promise::G2,
                    "forwarded while a write from before a reset may still be applied",
                );
            }
            if token < self.state.begun[key] {
                self.breaks(Promise::G2, "forwarded after a newer one has begun");
            }
            if ask.access == Access::Read {
                continue;
            }
            if mark_of(self.state.disk[key].as_ref()) < token {
                self.breaks(Promise::G3, "forwarded before its mark was durable");
            }
            self.state.begun[key] = token;
        }
    }

    /// A request was refused when it looked, with these marks before and after; `known` if all
    /// were read.
    pub(super) fn judge_refusal(
        &mut self,
        wanted: &Wanted,
        at: usize,
        refused: Refused,
        known: bool,
        before: &[Number],
        after: &[Number],
    ) {
        let token = number(wanted.asks[at].token);
        let left = (self.state.left.failed_commits, self.state.left.failed_reads);
        let at_first = (self.scope.left.failed_commits, self.scope.left.failed_reads);
        let just = match refused {
            Refused::Stale(_) => after[at] > token,
            Refused::HolderMismatch(_) => after[at] == token && wanted.asks[at].holder.is_some(),
            Refused::Store => left != at_first,
            // Until its mark is read nobody knows that it is an advance.
            Refused::Queue => {
                !known || before[at] >= token || wanted.asks[at].access == Access::Read
            }
            Refused::Sealed => self.is_sealed(wanted.keys[at]),
            Refused::JumpTooLarge(_) | Refused::Keys | Refused::Held(_) => false,
        };
        if !just {
            self.breaks(Promise::Liveness, "refused without a reason");
        }
        if before != after {
            self.breaks(Promise::Lane, "a refusal raised a mark");
        }
    }

    /// What must hold between any two steps. `before` is the state before the last.
    ///
    /// `probes`: whether to see that everybody gets through in the end.
    pub(crate) fn judge(&mut self, before: &State, probes: bool) {
        if self.strict {
            for key in 0..KEYS {
                self.judge_mark(before, key);
            }
            self.judge_counts();
        }
        self.judge_waiting();
        if probes && self.state.broken.is_none() && self.nothing_is_left() {
            self.judge_end();
        }
    }

    fn judge_mark(&mut self, before: &State, key: usize) {
        // But for a reset, which makes whatever comes after it the newer.
        let disk = rank_of(self.state.disk[key].as_ref());
        let forgotten = self.state.disk[key].is_none() && before.durable(key) < self.state.floor;
        if disk < rank_of(before.disk[key].as_ref()) && !forgotten {
            self.breaks(Promise::Lane, "a durable mark fell");
        }
        if let (Some(then), Some(now)) = (&before.lanes[key], &self.state.lanes[key])
            && then.read_under_way().is_none()
            && rank_of(now.record()) < rank_of(then.record())
        {
            self.breaks(Promise::Lane, "a mark fell");
        }
        match &self.state.lanes[key] {
            Some(lane) if lane.read_under_way().is_none() => {
                // One that was forgotten may come back, for what it was.
                let floor = lane.record().is_none().then(|| lane.mark()).flatten();
                let stands = floor.is_some_and(|floor| u64::from(disk.1) < floor.counter());
                if rank_of(lane.record()) < disk && !stands {
                    self.breaks(Promise::Lane, "a mark is below what is durable");
                }
            }
            Some(_) => {}
            None => {
                let cached = &self.state.cache[key];
                if cached.is_some() && *cached != self.state.disk[key] {
                    self.breaks(Promise::G7, "the cache has another mark than the store");
                }
            }
        }
    }

    /// The lanes know exactly what is in flight and unsettled.
    fn judge_counts(&mut self) {
        let mut live = [0; KEYS];
        for one in self.live() {
            live[one.0] += 1;
        }
        for (key, live) in live.into_iter().enumerate() {
            let counts = self.state.lanes[key].as_ref().map(Lane::counts);
            let (in_flight, _, unsettled) = counts.unwrap_or_default();
            let orphans = usize::from(self.state.orphans[key] != 0);
            // A lane that is told in its turn still counts what has ended.
            let late = self.state.tells.len();
            let counted = in_flight + unsettled + orphans;
            if counted < live || counted > live + late {
                self.breaks(Promise::Lane, "a lane has lost count");
            }
        }
    }

    /// Whoever waits has its places, and whoever nothing holds has been woken.
    fn judge_waiting(&mut self) {
        let mut lost = false;
        let mut forgotten = false;
        for attempt in &self.state.attempts {
            let Phase::Waiting { places, woken } = &attempt.phase else {
                continue;
            };
            let wanted = self.scope.wanted(attempt.slot);
            let lanes = || {
                wanted
                    .keys
                    .iter()
                    .map(|key| self.state.lanes[*key].as_ref())
            };
            let placed =
                lanes().all(|lane| lane.is_some_and(|lane| lane.is_waiting(places.waiter)));
            lost |= !placed && !woken;
            let free = |held: Option<Held>| held.is_none();
            let mut pairs = lanes().zip(&wanted.asks);
            forgotten |= !woken
                && pairs.all(|(lane, ask)| {
                    lane.is_some_and(|lane| {
                        lane.read_under_way().is_none() && free(lane.held(ask.token))
                    })
                });
        }
        if lost {
            self.breaks(Promise::Liveness, "who waits has lost its place");
        }
        if forgotten {
            self.breaks(
                Promise::Liveness,
                "nothing holds who waits, and nobody wakes it",
            );
        }
    }

    /// Nothing can happen any more but that somebody comes or leaves, or something breaks.
    fn nothing_is_left(&self) -> bool {
        let state = &self.state;
        let waits = |phase: &Phase| matches!(phase, Phase::Waiting { woken: false, .. });
        state.commits.is_empty()
            && state.reads.is_empty()
            && state.tells.is_empty()
            && state.unsettled.is_empty()
            && !state.hold
            && state.resets.iter().flatten().all(|one| !one.woken)
            && state.attempts.iter().all(|attempt| waits(&attempt.phase))
    }

    /// Everything has ended: nobody waits, and whoever holds the newest token gets through.
    fn judge_end(&mut self) {
        if !self.state.attempts.is_empty() {
            self.breaks(Promise::Liveness, "it waits for ever");
            return;
        }
        if self.state.resets.iter().any(Option::is_some) {
            self.breaks(Promise::Liveness, "a reset waits for ever");
            return;
        }
        for probe in self.scope.probes() {
            if let Some((promise, how)) = self.probe(probe) {
                self.breaks(promise, how);
            }
        }
        let leaks = |lane: &Lane| !lane.needs_commit();
        if self.state.lanes.iter().flatten().any(leaks) {
            self.breaks(Promise::Liveness, "a lane is never freed");
        }
    }

    /// One more request comes, and nothing goes wrong: how it fails, where it does.
    ///
    /// Probes below a mark are stale and are left out.
    fn probe(&self, probe: u8) -> Option<(Promise, &'static str)> {
        let stuck = |how| Some((Promise::Liveness, how));
        let wanted = &self.scope.wanted[usize::from(probe)];
        let stale = |at: usize| number(wanted.asks[at].token) < self.least(wanted.keys[at]);
        if (0..wanted.keys.len()).any(stale) {
            return None;
        }
        let mut then = World {
            scope: self.scope,
            state: self.state.clone(),
            strict: self.strict,
        };
        let slot = then.free_slot(probe)?;
        then.come(slot, Source::Fast);
        while !then.state.commits.is_empty() {
            then.commits(0, Answer::Durable);
        }
        then.all_are_told();
        if let Some(Phase::Waiting { woken: true, .. }) = then.phase_of(slot) {
            then.look(slot, Source::Fast);
        }
        match then.phase_of(slot) {
            Some(Phase::Admitted) => then.send(slot),
            Some(_) => return stuck("a token that nothing holds waits for ever"),
            None => return stuck("a token that nothing holds is refused"),
        }
        if !matches!(then.phase_of(slot), Some(Phase::InFlight(_))) {
            return stuck("a token that nothing holds is not sent");
        }
        then.ends(slot, End::Whole);
        then.all_are_told();
        let kept = |key: &usize| then.state.lanes[*key].is_some();
        if wanted.keys.iter().any(kept) {
            return stuck("a lane is never freed");
        }
        then.state.broken
    }
}
