//! The shell around the lanes, as transitions: what `table.rs` and `admission.rs` do with threads,
//! timers and sockets happens here one step at a time, in any order.
//!
//! Every decision is the real code's: `arrive`, `send`, `leave` of `step.rs`, and what `lane.rs`
//! makes of what it is told. The shell only carries news, and breaks down.

use fencegate_filters::fault::{Fault, planted};
use fencegate_filters::fence::lane::Access;
use fencegate_filters::fence::lane::reset::{NotReset, Resetting};
use fencegate_filters::fence::step::{self, Arrival, Bounds, Effects, Places, Refused};
use fencegate_filters::store::Record;
use smallvec::SmallVec;

use super::scope::{Scope, Wanted};
use super::state::{
    Attempt, Commit, KEYS, Lane, Lowering, Number, Phase, Promise, RESETS, Read, Slot, State, Tell,
    Unsettled, mark_of, number,
};

/// How a lane that is made comes by its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The cache has it.
    Cache,
    /// The store answers at once.
    Fast,
    /// The store answers later, with what it had when it was asked.
    Slow,
}

/// How a write in flight ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Sent whole, and answered whole.
    Whole,
    /// A reset, a timeout, a cut, an early final answer, a 504, a panic: the resource may go on
    /// until it has settled. The lane is told the same of all of them.
    Unknown,
    /// Parts of [`End::Unknown`] that a fault tells apart.
    Early,
    Status,
    Panic,
    /// The head of the answer has come. Nothing ends; a fault thinks so.
    Head,
    /// The client has left. Nothing ends; a fault thinks so.
    Left,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Durable,
    /// It failed, and is on disk all the same.
    FailedKept,
    FailedLost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// A request comes, and looks for the first time.
    Come(u8, Source),
    /// One that was woken looks again.
    Look(Slot),
    /// A client leaves, or the time to wait is over.
    GiveUp(Slot),
    /// The upstream connection is ready.
    Send(Slot),
    /// The connection had closed before a byte was written.
    Unsent(Slot),
    Ends(Slot, End),
    /// One write of this kind has settled: from now on the resource does nothing of it.
    Settles(Unsettled),
    /// The store answers the commit at this index.
    Commits(usize, Answer),
    /// The read at this index is answered; `false`: it failed.
    Reads(usize, bool),
    /// A lane is told what another was told before.
    Tells(usize),
    /// An administrator asks for the mark of a key to be lowered to this one.
    Reset(usize, Number),
    /// A reset that was woken looks again.
    LookReset(usize),
    /// Its time is over, or its caller is gone.
    GiveUpReset(usize),
    /// The floor is durable above the mark of a key.
    Floor(usize),
    /// The mark of a key is forgotten.
    Forget(usize),
    /// The record of a key that is used is on its way to be committed once more.
    Touch(usize),
    /// The one at this index is committed.
    Touched(usize),
    /// The hold after a crash is over, and so are the orphans.
    HoldOver,
    /// The process dies and is started again. The bits say which commits reached the disk.
    Crash(u32),
    /// The process stops, marks the store clean, and is started again.
    CleanRestart,
}

impl Action {
    /// What happens, in words.
    pub(crate) fn tell(self, scope: &Scope) -> String {
        let label = |slot| scope.label(slot);
        let name = |key| if key == 0 { 'a' } else { 'b' };
        match self {
            Self::Come(ask, source) => {
                let how = match source {
                    Source::Cache => " to a cached mark",
                    Source::Fast => "",
                    Source::Slow => " to a mark that is read slowly",
                };
                format!("{} comes{how}", label(ask * scope.copies))
            }
            Self::Look(slot) => format!("{} looks", label(slot)),
            Self::GiveUp(slot) => format!("{} gives up", label(slot)),
            Self::Send(slot) => format!("{} is sent", label(slot)),
            Self::Unsent(slot) => format!("{} comes back unsent", label(slot)),
            Self::Ends(slot, end) => {
                let how = match end {
                    End::Whole => "completes",
                    End::Unknown => "ends unknown",
                    End::Early => "is answered early",
                    End::Status => "is answered 504",
                    End::Panic => "panics",
                    End::Head => "is answered, but for the body",
                    End::Left => "is left by its client",
                };
                format!("{} {how}", label(slot))
            }
            Self::Settles(unsettled) => {
                format!("{} settles", label(unsettled.ask * scope.copies))
            }
            Self::Commits(at, Answer::Durable) => format!("commit {at} is durable"),
            Self::Commits(at, Answer::FailedKept) => format!("commit {at} fails, and is on disk"),
            Self::Commits(at, Answer::FailedLost) => format!("commit {at} fails"),
            Self::Reads(at, true) => format!("read {at} is answered"),
            Self::Reads(at, false) => format!("read {at} fails"),
            Self::Tells(at) => format!("lane is told {at}"),
            Self::Reset(key, to) => format!("{} is to be reset to {to}", name(key)),
            Self::LookReset(key) => format!("the reset of {} looks", name(key)),
            Self::GiveUpReset(key) => format!("the reset of {} gives up", name(key)),
            Self::Floor(key) => format!("the floor rises above the mark of {}", name(key)),
            Self::Forget(key) => format!("the mark of {} is forgotten", name(key)),
            Self::Touch(key) => format!("{} is touched", name(key)),
            Self::Touched(at) => format!("touch {at} is durable"),
            Self::HoldOver => "the hold is over".to_owned(),
            Self::Crash(0) => "crash".to_owned(),
            Self::Crash(kept) => format!("crash, commits {kept:b} on disk"),
            Self::CleanRestart => "clean restart".to_owned(),
        }
    }
}

/// What can happen next.
pub(crate) fn actions(scope: &Scope, state: &State, actions: &mut Vec<Action>) {
    if state.broken.is_some() {
        return;
    }
    arrivals(scope, state, actions);
    for attempt in &state.attempts {
        let slot = attempt.slot;
        match &attempt.phase {
            Phase::Waiting { woken, .. } => {
                if *woken {
                    actions.push(Action::Look(slot));
                }
                actions.push(Action::GiveUp(slot));
            }
            Phase::Admitted => {
                actions.extend([Action::Send(slot), Action::GiveUp(slot)]);
            }
            Phase::InFlight(_) => {
                if state.left.unsent > 0 {
                    actions.push(Action::Unsent(slot));
                }
                actions.extend(ends().map(|end| Action::Ends(slot, end)));
            }
            Phase::LetGo => actions.push(Action::Ends(slot, End::Whole)),
        }
    }
    let mut last = None;
    for unsettled in &state.unsettled {
        // The time to settle runs from when all lanes know.
        let wanted = &scope.wanted[usize::from(unsettled.ask)];
        let late = |tell: &Tell| match tell {
            Tell::Ended(key, _, settles) => *settles && wanted.keys.contains(key),
            Tell::Settled(..) | Tell::Committed(..) => false,
        };
        if last.replace(unsettled) != Some(unsettled) && !state.tells.iter().any(late) {
            actions.push(Action::Settles(*unsettled));
        }
    }
    for at in 0..state.commits.len() {
        actions.push(Action::Commits(at, Answer::Durable));
        if state.left.failed_commits > 0 {
            let failed = [Answer::FailedKept, Answer::FailedLost];
            actions.extend(failed.map(|answer| Action::Commits(at, answer)));
        }
    }
    for at in 0..state.reads.len() {
        actions.push(Action::Reads(at, true));
        if state.left.failed_reads > 0 {
            actions.push(Action::Reads(at, false));
        }
    }
    actions.extend((0..state.tells.len()).map(Action::Tells));
    if state.hold {
        actions.push(Action::HoldOver);
    }
    resets(state, actions);
    forgets(state, actions);
    if state.left.crashes > 0 {
        actions.extend((0..1 << state.commits.len()).map(Action::Crash));
    }
    if state.left.clean_restarts > 0 && is_quiet(state) {
        actions.push(Action::CleanRestart);
    }
}

/// `Forget` as the store has it: a mark goes only below a durable floor, and only one that was never
/// reset; and as the fence has it: only while there is no lane, and no hold.
fn forgets(state: &State, actions: &mut Vec<Action>) {
    for key in 0..KEYS {
        let record = state.disk[key].as_ref();
        let idle = state.lanes[key].is_none() || planted(Fault::ForgetInUse);
        if let Some(record) = record.filter(|_| idle && !state.hold) {
            if state.left.forgets > 0 && record.resets == 0 {
                let below = number(record.mark) < state.floor;
                actions.push(if below {
                    Action::Forget(key)
                } else {
                    Action::Floor(key)
                });
            }
            if state.left.touches > 0 {
                actions.push(Action::Touch(key));
            }
        }
    }
    actions.extend((0..state.touches.len()).map(Action::Touched));
}

fn resets(state: &State, actions: &mut Vec<Action>) {
    for key in 0..KEYS {
        match state.resets[key] {
            Some(lowering) => {
                if lowering.woken {
                    actions.push(Action::LookReset(key));
                }
                actions.push(Action::GiveUpReset(key));
            }
            None if state.left.resets > 0 => {
                actions.extend((1..memory(state, key)).map(|to| Action::Reset(key, to)));
            }
            None => {}
        }
    }
}

fn arrivals(scope: &Scope, state: &State, actions: &mut Vec<Action>) {
    if state.left.requests == 0 {
        return;
    }
    for ask in 0..scope.kinds {
        let wanted = &scope.wanted[usize::from(ask)];
        if free_slot(scope, state, ask).is_none() {
            continue;
        }
        let new = || {
            wanted
                .keys
                .iter()
                .filter(|key| state.lanes[**key].is_none())
        };
        if new().any(|key| state.cache[*key].is_some()) {
            actions.push(Action::Come(ask, Source::Cache));
        }
        actions.push(Action::Come(ask, Source::Fast));
        if state.left.slow_reads > 0 && new().next().is_some() {
            actions.push(Action::Come(ask, Source::Slow));
        }
    }
}

fn free_slot(scope: &Scope, state: &State, ask: u8) -> Option<Slot> {
    let first = ask * scope.copies;
    let mut slots = first..first + scope.copies;
    slots.find(|slot| state.attempts.iter().all(|one| one.slot != *slot))
}

/// What lets a stop mark the store clean: `Fence::is_quiet`.
fn is_quiet(state: &State) -> bool {
    let mut lanes = state.lanes.iter().flatten();
    !state.hold && lanes.all(Lane::is_quiet) || planted(Fault::CleanUnsettled)
}

/// One step from one state.
pub(crate) struct World<'a> {
    pub(crate) scope: &'a Scope,
    pub(crate) state: State,
    /// Whether what lanes take for granted must hold too. A planted fault is to break a promise.
    pub(crate) strict: bool,
}

impl World<'_> {
    pub(crate) fn step(&mut self, action: Action) {
        match action {
            Action::Come(ask, source) => {
                self.state.left.requests -= 1;
                self.state.left.slow_reads -= u8::from(source == Source::Slow);
                let slot = self.free_slot(ask).unwrap();
                self.come(slot, source);
            }
            Action::Look(slot) => self.look(slot, Source::Fast),
            Action::GiveUp(slot) => self.give_up(slot),
            Action::Send(slot) => self.send(slot),
            Action::Unsent(slot) => self.unsent(slot),
            Action::Ends(slot, end) => self.ends(slot, end),
            Action::Settles(unsettled) => self.settles(unsettled),
            Action::Commits(at, answer) => self.commits(at, answer),
            Action::Reads(at, ok) => self.reads(at, ok),
            Action::Tells(at) => {
                let tell = self.state.tells.remove(at);
                self.tell(tell);
            }
            Action::Reset(key, to) => {
                self.state.left.resets -= 1;
                self.state.resets[key] = Some(Lowering {
                    from: self.memory(key),
                    to,
                    woken: true,
                });
                self.look_reset(key);
            }
            Action::LookReset(key) => self.look_reset(key),
            Action::GiveUpReset(key) => {
                self.state.resets[key] = None;
                self.with_lanes(&[key], true, Source::Fast, |lanes| {
                    lanes[0].leave_reset(reset_of(key).into());
                });
            }
            Action::Floor(key) => {
                let mark = mark_of(self.state.disk[key].as_ref());
                self.state.floor = self.state.floor.max(mark + 1);
            }
            Action::Forget(key) => {
                self.state.left.forgets -= 1;
                self.state.disk[key] = None;
                self.state.cache[key] = None;
            }
            Action::Touch(key) => {
                self.state.left.touches -= 1;
                let record = self.state.disk[key].clone().unwrap();
                self.state.touches.push((key, record));
            }
            Action::Touched(at) => self.step_touched(at),
            Action::HoldOver => self.hold_over(),
            Action::Crash(kept) => self.crash(kept),
            Action::CleanRestart => self.clean_restart(),
        }
        let scope = self.scope;
        if scope.renumbers {
            self.state.renumber(|slot| &scope.wanted(slot).keys);
        }
    }

    pub(crate) fn free_slot(&self, ask: u8) -> Option<Slot> {
        free_slot(self.scope, &self.state, ask)
    }

    pub(crate) fn attempt(&self, slot: Slot) -> Option<&Attempt> {
        self.state.attempts.iter().find(|one| one.slot == slot)
    }

    fn phase(&mut self, slot: Slot) -> &mut Phase {
        let found = self.state.attempts.iter_mut().find(|one| one.slot == slot);
        &mut found.unwrap().phase
    }

    fn forget(&mut self, slot: Slot) -> Phase {
        let at = self.state.attempts.iter().position(|one| one.slot == slot);
        self.state.attempts.remove(at.unwrap()).phase
    }

    pub(crate) fn breaks(&mut self, promise: Promise, how: &'static str) {
        self.state.broken.get_or_insert((promise, how));
    }

    // The table: `with_lanes`, `open`, `read_if_needed`, `free`, `tell`.

    fn with_lanes<R>(
        &mut self,
        keys: &[usize],
        retry: bool,
        source: Source,
        step: impl FnOnce(&mut [&mut Lane]) -> R,
    ) -> R {
        let mut asked = SmallVec::<[(usize, u64); 2]>::new();
        let mut taken: SmallVec<[Lane; 2]> = SmallVec::new();
        for key in keys {
            let mut lane = match self.state.lanes[*key].take() {
                Some(mut lane) => {
                    if !retry {
                        lane.recall(self.state.cache[*key].clone());
                    }
                    lane
                }
                None => self.open(*key, source),
            };
            if lane.read_under_way() == Some(0) || (lane.read_failed() && !retry) {
                // Only who comes has a mark read, so that no other read has this number.
                let read = 10 + u64::from(u8::MAX - self.state.left.requests);
                lane.load_again(read);
                asked.push((*key, read));
            }
            taken.push(lane);
        }
        let mut lanes: SmallVec<[&mut Lane; 2]> = taken.iter_mut().collect();
        let result = step(&mut lanes);
        drop(lanes);
        for (key, lane) in keys.iter().zip(taken) {
            self.put(*key, lane);
        }
        for (key, read) in asked {
            let found = self.state.disk[key].clone();
            let read = Read {
                key,
                number: read,
                found,
            };
            if source == Source::Slow {
                self.state.reads.push(read);
            } else {
                self.answer(read, true);
            }
        }
        result
    }

    fn open(&mut self, key: usize, source: Source) -> Lane {
        // While there is a lane nobody looks into the cache, and what it has is replaced when the
        // lane is freed: leaving it there would only tell apart states that do the same.
        let cached = if planted(Fault::CacheDecides) {
            self.state.cache[key].clone()
        } else {
            self.state.cache[key].take()
        };
        match cached {
            Some(record) if source == Source::Cache => Lane::known(Some(record), self.state.hold),
            _ => Lane::loading(0),
        }
    }

    fn put(&mut self, key: usize, lane: Lane) {
        let reset = lane.reset_to_wake().copied();
        self.wake(reset);
        if !lane.is_idle() {
            self.state.lanes[key] = Some(lane);
        } else if let Some(record) = lane.record()
            && lane.read_under_way().is_none()
        {
            self.state.cache[key] = Some(record.clone());
        }
    }

    fn tell_lane(&mut self, key: usize, event: impl FnOnce(&mut Lane) -> Vec<Slot>) {
        let Some(mut lane) = self.state.lanes[key].take() else {
            return;
        };
        let woken = event(&mut lane);
        self.put(key, lane);
        self.wake(woken);
    }

    fn wake(&mut self, slots: impl IntoIterator<Item = Slot>) {
        for slot in slots {
            if let Some(key) = slot.checked_sub(RESETS) {
                if let Some(lowering) = &mut self.state.resets[usize::from(key)] {
                    lowering.woken = true;
                }
                continue;
            }
            let found = self.state.attempts.iter_mut().find(|one| one.slot == slot);
            if let Some(Phase::Waiting { woken, .. }) = found.map(|one| &mut one.phase) {
                *woken = true;
            }
        }
    }

    /// Tells the lanes of one request in turn. They may be told at once, or others may come between.
    fn tell_each(&mut self, tells: impl IntoIterator<Item = Tell>) {
        for (at, tell) in tells.into_iter().enumerate() {
            if at > 0 && self.scope.in_turn {
                self.state.tells.push(tell);
            } else {
                self.tell(tell);
            }
        }
    }

    pub(crate) fn all_are_told(&mut self) {
        for tell in std::mem::take(&mut self.state.tells) {
            self.tell(tell);
        }
    }

    fn tell(&mut self, tell: Tell) {
        match tell {
            Tell::Ended(key, ticket, settles) => {
                self.tell_lane(key, |lane| lane.ended(ticket, settles).1);
            }
            Tell::Settled(key, number) => {
                self.tell_lane(key, |lane| lane.settled(super::scope::token(number)));
            }
            Tell::Committed(key, change, durable) => {
                self.tell_lane(key, |lane| lane.committed(change, durable));
            }
        }
    }

    // A request's way: `Admit`, `Admission`, `Permit`.

    pub(crate) fn come(&mut self, slot: Slot, source: Source) {
        let places = Places {
            waiter: u64::from(slot),
            ..Places::default()
        };
        let phase = Phase::Waiting {
            places,
            woken: false,
        };
        self.state.attempts.push(Attempt { slot, phase });
        self.look(slot, source);
        // What the store has answered at once is seen at once.
        if source != Source::Slow
            && matches!(
                self.phase_of(slot),
                Some(Phase::Waiting { woken: true, .. })
            )
        {
            self.look(slot, source);
        }
    }

    pub(crate) fn phase_of(&self, slot: Slot) -> Option<&Phase> {
        self.attempt(slot).map(|one| &one.phase)
    }

    pub(crate) fn look(&mut self, slot: Slot, source: Source) {
        let scope = self.scope;
        let wanted = scope.wanted(slot);
        let Phase::Waiting { places, woken } = self.phase(slot) else {
            unreachable!("only who waits looks");
        };
        *woken = false;
        let mut places = places.clone();
        let bounds = Bounds {
            waiting: scope.queue,
            new_keys: true,
        };
        let mut effects = Effects::default();
        let retry = places.waited;
        let (arrival, known, before, marks) =
            self.with_lanes(&wanted.keys, retry, source, |lanes| {
                let before = marks(lanes);
                let asks = &wanted.asks;
                let arrival = step::arrive(lanes, asks, &mut places, bounds, &slot, &mut effects);
                let known = lanes.iter().all(|lane| lane.read_under_way().is_none());
                (arrival, known, before, marks(lanes))
            });
        if let Phase::Waiting { places: old, .. } = self.phase(slot) {
            *old = places;
        }
        let raises: SmallVec<_> = effects
            .commit
            .into_iter()
            .map(|(at, change, record, _)| (wanted.keys[at], change, record))
            .collect();
        if !raises.is_empty() {
            self.state.commits.push(Commit(raises));
        }
        self.wake(effects.wake);
        match arrival {
            Arrival::Waiting | Arrival::Unread => {}
            Arrival::Admitted => {
                *self.phase(slot) = Phase::Admitted;
                self.judge_admission(slot, known, &marks);
            }
            Arrival::Refused(at, refused) => {
                self.forget(slot);
                self.judge_refusal(wanted, at, refused, known, &before, &marks);
            }
        }
    }

    /// The mark as the lane knows it, or as the store has it, or what stands for it.
    pub(crate) fn least(&self, key: usize) -> Number {
        let lane = self.state.lanes[key].as_ref();
        let lane = lane.filter(|lane| lane.read_under_way().is_none());
        lane.map_or_else(
            || self.state.durable(key),
            |lane| lane.mark().map_or(0, number),
        )
    }

    /// The mark as the lane knows it, or as the store has it.
    pub(crate) fn memory(&self, key: usize) -> Number {
        memory(&self.state, key)
    }

    /// `Reset`, as far as it gets without waiting.
    fn look_reset(&mut self, key: usize) {
        loop {
            let Some(Lowering { from, to, woken }) = &mut self.state.resets[key] else {
                return;
            };
            *woken = false;
            let (from, to) = (super::scope::token(*from), super::scope::token(*to));
            let slot = reset_of(key);
            let mut woken = Vec::new();
            let (found, change) = self.with_lanes(&[key], true, Source::Fast, |lanes| {
                let found = lanes[0].reset(slot.into(), from, to, &slot, &mut woken);
                (found, lanes[0].change())
            });
            self.wake(woken);
            match found {
                Resetting::Sealed => {}
                Resetting::Lower(record) => {
                    let raises = SmallVec::from_iter([(key, change, record)]);
                    self.state.commits.push(Commit(raises));
                }
                Resetting::Unread | Resetting::Draining | Resetting::Committing => return,
                Resetting::Done => {
                    self.state.resets[key] = None;
                    return;
                }
                Resetting::Refused(why) => {
                    self.state.resets[key] = None;
                    let just = match why {
                        NotReset::Mark(mark) => mark != from,
                        NotReset::Store => {
                            self.state.left.failed_commits != self.scope.left.failed_commits
                        }
                        // One that was given up is being committed.
                        NotReset::Sealed => true,
                        // A record that comes back late is none that this lane knows of.
                        NotReset::NoMark => {
                            let lane = self.state.lanes[key].as_ref();
                            let knows = lane.is_some_and(|lane| lane.record().is_some());
                            self.state.floor > 0 && !knows
                        }
                    };
                    if !just {
                        self.breaks(Promise::Liveness, "a reset was refused without a reason");
                    }
                    return;
                }
            }
        }
    }

    /// Whether a reset keeps everybody out of a lane, one that nobody waits for included.
    pub(super) fn is_sealed(&self, key: usize) -> bool {
        self.state.lanes[key].as_ref().is_some_and(Lane::is_sealed)
    }

    fn give_up(&mut self, slot: Slot) {
        let keys = &self.scope.wanted(slot).keys;
        match self.forget(slot) {
            Phase::Waiting { places, .. } => {
                self.with_lanes(keys, true, Source::Fast, |lanes| {
                    step::leave(lanes, &places);
                });
            }
            Phase::Admitted => self.with_lanes(keys, true, Source::Fast, |lanes| {
                lanes.iter_mut().for_each(|lane| lane.unadmit());
            }),
            Phase::InFlight(_) | Phase::LetGo => unreachable!("it has been sent"),
        }
    }

    pub(crate) fn send(&mut self, slot: Slot) {
        let scope = self.scope;
        let wanted = scope.wanted(slot);
        self.forget(slot);
        let sealed: SmallVec<[bool; 2]> =
            wanted.keys.iter().map(|key| self.is_sealed(*key)).collect();
        let sent = self.with_lanes(&wanted.keys, true, Source::Fast, |lanes| {
            step::send(lanes, &wanted.asks, wanted.write, &slot)
        });
        match sent {
            Ok(tickets) => {
                self.judge_forward(wanted);
                let tickets: SmallVec<[_; 2]> = tickets.into_iter().collect();
                // A read holds nobody: what becomes of it is nobody's business.
                if tickets.iter().any(Option::is_some) {
                    let phase = Phase::InFlight(tickets);
                    self.state.attempts.push(Attempt { slot, phase });
                }
            }
            Err((at, refused)) => {
                let mark = self.memory(wanted.keys[at]);
                let token = number(wanted.asks[at].token);
                let reads = wanted.asks[at].access == Access::Read;
                let just = match refused {
                    Refused::Stale(_) => mark > token,
                    Refused::Held(_) => reads,
                    Refused::Sealed => sealed[at],
                    _ => false,
                };
                if !just {
                    self.breaks(Promise::Liveness, "refused at send without a reason");
                }
            }
        }
    }

    fn unsent(&mut self, slot: Slot) {
        let scope = self.scope;
        let wanted = scope.wanted(slot);
        let Phase::InFlight(tickets) = self.forget(slot) else {
            unreachable!("it has not been sent");
        };
        self.state.left.unsent -= 1;
        let woken = self.with_lanes(&wanted.keys, true, Source::Fast, |lanes| {
            let mut woken = Vec::new();
            for (lane, ticket) in lanes.iter_mut().zip(&tickets) {
                lane.admit();
                if let Some(ticket) = ticket {
                    woken.append(&mut lane.ended(*ticket, false).1);
                }
            }
            woken
        });
        let phase = Phase::Admitted;
        self.state.attempts.push(Attempt { slot, phase });
        self.wake(woken);
        if planted(Fault::ResendAfterBytes) {
            self.runs_on(slot, false);
        }
    }

    /// The resource may go on with this write.
    fn runs_on(&mut self, slot: Slot, told: bool) {
        let ask = slot / self.scope.copies;
        self.state.unsettled.push(Unsettled { ask, told });
    }

    pub(crate) fn ends(&mut self, slot: Slot, end: End) {
        let Phase::InFlight(tickets) = self.forget(slot) else {
            // Let go before: no lane is told.
            return;
        };
        let goes_on = matches!(end, End::Head | End::Left);
        let settles = match end {
            End::Whole | End::Head | End::Left => false,
            End::Unknown => true,
            End::Early => !planted(Fault::EarlyAnswerCompletes),
            End::Status => !planted(Fault::UnknownStatusCompletes),
            End::Panic => !planted(Fault::PanicCompletes),
        };
        if goes_on {
            let phase = Phase::LetGo;
            self.state.attempts.push(Attempt { slot, phase });
        } else if end != End::Whole {
            self.runs_on(slot, settles);
        }
        let keys = &self.scope.wanted(slot).keys;
        let tells = keys.iter().zip(tickets);
        self.tell_each(tells.filter_map(|(key, ticket)| Some(Tell::Ended(*key, ticket?, settles))));
    }

    fn settles(&mut self, unsettled: Unsettled) {
        let found = self
            .state
            .unsettled
            .iter()
            .position(|one| *one == unsettled);
        self.state.unsettled.remove(found.unwrap());
        if !unsettled.told {
            return;
        }
        let wanted = &self.scope.wanted[usize::from(unsettled.ask)];
        self.tell_each(
            (0..wanted.keys.len())
                .filter(|at| wanted.writes(*at))
                .map(|at| Tell::Settled(wanted.keys[at], number(wanted.asks[at].token))),
        );
    }

    // The store.

    pub(crate) fn commits(&mut self, at: usize, answer: Answer) {
        let Commit(raises) = self.state.commits.remove(at);
        // The store takes what comes in the order in which it comes.
        for (key, _, _) in &raises {
            let touched = |one: &(usize, Record)| one.0 == *key;
            while let Some(at) = self.state.touches.iter().position(touched) {
                self.step_touched(at);
            }
        }
        if answer != Answer::Durable {
            self.state.left.failed_commits -= 1;
        }
        if answer != Answer::FailedLost {
            self.keep(&raises);
        }
        let durable = answer == Answer::Durable;
        self.tell_each(
            raises
                .iter()
                .map(|(key, change, _)| Tell::Committed(*key, *change, durable)),
        );
    }

    fn step_touched(&mut self, at: usize) {
        let (key, record) = self.state.touches.remove(at);
        self.keep(&[(key, 0, record)]);
    }

    fn keep(&mut self, raises: &[(usize, u64, Record)]) {
        for (key, _, record) in raises {
            let known = self.state.disk[*key].as_ref();
            let lowers = known.is_some_and(|known| known.resets < record.resets);
            if lowers {
                // From here on a lower token may be admitted, as after every audited reset.
                let mark = mark_of(Some(record));
                self.state.admitted[*key] = mark;
                self.state.begun[*key] = self.state.begun[*key].min(mark);
            }
            match &mut self.state.disk[*key] {
                Some(kept) => kept.merge(record.clone()),
                none => *none = Some(record.clone()),
            }
        }
    }

    fn reads(&mut self, at: usize, ok: bool) {
        let read = self.state.reads.remove(at);
        self.state.left.failed_reads -= u8::from(!ok);
        self.answer(read, ok);
    }

    fn answer(&mut self, read: Read, ok: bool) {
        let hold = self.state.hold;
        // As it is when the answer comes, and only where there is no mark.
        let floor = Some(self.state.floor).filter(|floor| *floor > 0);
        let floor = floor
            .map(super::scope::token)
            .filter(|_| read.found.is_none());
        self.tell_lane(read.key, |lane| {
            if ok {
                lane.loaded(read.number, read.found, floor, hold)
            } else {
                lane.load_failed(read.number)
            }
        });
    }

    // The process.

    fn hold_over(&mut self) {
        self.state.hold = false;
        self.state.orphans = [0; KEYS];
        for key in 0..KEYS {
            // As `table.rs` does: no lane is freed here, since none is kept by the hold alone.
            if let Some(lane) = &mut self.state.lanes[key] {
                let mut woken = lane.hold_over();
                woken.extend(lane.reset_to_wake());
                self.wake(woken);
            }
        }
    }

    fn crash(&mut self, kept: u32) {
        self.state.left.crashes -= 1;
        for (at, Commit(raises)) in std::mem::take(&mut self.state.commits).iter().enumerate() {
            if kept & (1 << at) != 0 {
                self.keep(raises);
            }
        }
        self.start();
        self.state.hold = true;
    }

    fn clean_restart(&mut self) {
        self.state.left.clean_restarts -= 1;
        // A close answers what is pending first.
        for Commit(raises) in std::mem::take(&mut self.state.commits) {
            self.keep(&raises);
        }
        self.start();
    }

    /// What was in memory is gone, and what was on its way upstream is an orphan.
    fn start(&mut self) {
        for (key, token) in self.live().collect::<Vec<_>>() {
            let lowest = &mut self.state.orphans[key];
            if *lowest == 0 || token < *lowest {
                *lowest = token;
            }
        }
        self.state.lanes = [None, None];
        self.state.cache = [None, None];
        self.state.reads.clear();
        self.state.tells.clear();
        self.state.touches.clear();
        self.state.attempts.clear();
        self.state.unsettled.clear();
        self.state.resets = [None; KEYS];
    }

    /// The writes that the resource may be working on, or may yet begin: key and token.
    pub(crate) fn live(&self) -> impl Iterator<Item = (usize, Number)> {
        let state = &self.state;
        let orphans = (0..KEYS).map(|key| (key, state.orphans[key]));
        let writes = |wanted: &'_ Wanted| {
            let writes = (0..wanted.keys.len()).filter(|at| wanted.writes(*at));
            let writes = writes.map(|at| (wanted.keys[at], number(wanted.asks[at].token)));
            writes.collect::<SmallVec<[_; 2]>>()
        };
        let in_flight = state.attempts.iter();
        let in_flight = in_flight
            .filter(|one| matches!(one.phase, Phase::InFlight(_) | Phase::LetGo))
            .flat_map(move |one| writes(self.scope.wanted(one.slot)));
        let unsettled = state.unsettled.iter();
        let unsettled =
            unsettled.flat_map(move |one| writes(&self.scope.wanted[usize::from(one.ask)]));
        orphans
            .filter(|one| one.1 != 0)
            .chain(in_flight)
            .chain(unsettled)
    }
}

/// The mark of a key as its lane knows it, or as the store has it; where it has none there is none to
/// be lowered.
fn memory(state: &State, key: usize) -> Number {
    let lane = state.lanes[key].as_ref();
    match lane.filter(|lane| lane.read_under_way().is_none()) {
        Some(lane) => mark_of(lane.record()),
        None => mark_of(state.disk[key].as_ref()),
    }
}

fn reset_of(key: usize) -> Slot {
    RESETS + Slot::try_from(key).unwrap()
}

fn marks(lanes: &[&mut Lane]) -> SmallVec<[Number; 2]> {
    let marks = lanes.iter().map(|lane| lane.mark());
    marks.map(|mark| mark.map_or(0, number)).collect()
}

/// How a write may end. What the lane is told in one way is one way, unless a fault is planted
/// that tells it apart.
fn ends() -> impl Iterator<Item = End> {
    let told_apart = [
        (Fault::EarlyAnswerCompletes, End::Early),
        (Fault::UnknownStatusCompletes, End::Status),
        (Fault::PanicCompletes, End::Panic),
        (Fault::DrainHeadsOnly, End::Head),
        (Fault::ReleaseOnLeave, End::Left),
    ];
    let told_apart = told_apart.into_iter();
    [End::Whole, End::Unknown]
        .into_iter()
        .chain(told_apart.filter(|one| planted(one.0)).map(|one| one.1))
}
