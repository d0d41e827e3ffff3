//! The steps that decide over all keys of one request at once.
//!
//! Each is one atomic step: the caller holds all lanes of the request while it runs.

use std::sync::atomic::{AtomicU64, Ordering};

use smallvec::SmallVec;

use super::lane::{Access, Ask, Held, Judgement, Lane, Ticket, Waiter};
use crate::Token;
use crate::fault::{self, Fault};
use crate::store::Record;

/// What [`arrive`] decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Nothing holds it: it may be sent.
    Admitted,
    /// It waits in all its lanes.
    Waiting,
    /// It waits for a mark to be read.
    Unread,
    /// It is refused because of the key at this index.
    Refused(usize, Refused),
}

/// Why [`arrive`] or [`send`] refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Below the mark.
    Stale(Token),
    /// Equal to the mark, which another holder has.
    HolderMismatch(Token),
    /// Too far above the mark.
    JumpTooLarge(Token),
    /// The commit or the read that it waited for failed.
    Store,
    /// An older write on a key that is only read has begun since it was admitted.
    Held(Held),
    /// The mark is being reset.
    Sealed,
    /// Too many requests wait for this key.
    Queue,
    /// Too many keys have a mark.
    Keys,
}

/// What is to be done once the lanes are let go.
#[derive(Debug)]
pub struct Effects<W, X> {
    /// Records to make durable, all or none: the index of the key, the number of the change, and
    /// whether it is the key's first mark.
    pub commit: Vec<(usize, u64, Record, bool)>,
    /// Older writes that the raise wants out of the way.
    pub drain: Vec<X>,
    /// Requests to look at their lanes again.
    pub wake: Vec<W>,
}

impl<W, X> Default for Effects<W, X> {
    fn default() -> Self {
        Self {
            commit: Vec::new(),
            drain: Vec::new(),
            wake: Vec::new(),
        }
    }
}

/// A request that may have to wait.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Places {
    /// By what name it waits; given before it first looks.
    pub waiter: Waiter,
    /// Whether it has ever had to wait.
    pub waited: bool,
    /// The change of each lane that it waits for, in the order of its keys.
    pub changes: SmallVec<[u64; 1]>,
}

impl Places {
    /// The places of a request that has not looked yet.
    #[must_use]
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            waiter: NEXT.fetch_add(1, Ordering::Relaxed),
            ..Self::default()
        }
    }
}

/// Limits that a step must respect.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How many may wait in one lane.
    pub waiting: usize,
    /// Whether a key that has no mark may get one.
    pub new_keys: bool,
}

/// A request arrives, or one that waits looks again.
///
/// All its keys are compared first; one that is stale raises none. Those above their marks are
/// raised together, and the records are to be committed as one.
pub fn arrive<W: Clone, X: Clone>(
    lanes: &mut [&mut Lane<W, X>],
    asks: &[Ask],
    places: &mut Places,
    bounds: Bounds,
    waker: &W,
    effects: &mut Effects<W, X>,
) -> Arrival {
    debug_assert_eq!(lanes.len(), asks.len());
    if let Some(arrival) = unread(lanes, asks, places, bounds, waker) {
        return arrival;
    }
    let judged = match compare(lanes, asks, places, bounds) {
        Ok(judged) => judged,
        Err((index, refused)) => {
            leave(lanes, places);
            return Arrival::Refused(index, refused);
        }
    };
    let raises = judged
        .iter()
        .any(|one| matches!(one, Judgement::Advance | Judgement::Bind));
    let again = lanes.iter().any(|lane| lane.needs_commit());
    if !raises
        && !again
        && lanes
            .iter()
            .zip(asks)
            .all(|(lane, ask)| lane.held(ask.token).is_none())
    {
        return admitted(lanes, places);
    }
    // Only a request that would join a queue can find it full: an advance empties the queue.
    for (index, (lane, judgement)) in lanes.iter().zip(&judged).enumerate() {
        let full = || lane.counts().1 >= bounds.waiting && !lane.is_waiting(places.waiter);
        if *judgement != Judgement::Advance && full() {
            leave(lanes, places);
            return Arrival::Refused(index, Refused::Queue);
        }
    }
    raise_all(lanes, asks, &judged, effects);
    let held = lanes
        .iter()
        .zip(asks)
        .any(|(lane, ask)| lane.held(ask.token).is_some());
    if !held {
        return admitted(lanes, places);
    }
    places.changes = lanes.iter().map(|lane| lane.change()).collect();
    places.waited = true;
    for (lane, ask) in lanes.iter_mut().zip(asks) {
        lane.wait(places.waiter, ask.token, waker);
    }
    Arrival::Waiting
}

/// A look that neither waits nor drains: it compares and, where `raises`, raises.
/// [`Arrival::Unread`] asks to be called again once the marks are read.
pub fn look<W: Clone, X: Clone>(
    lanes: &mut [&mut Lane<W, X>],
    asks: &[Ask],
    places: &mut Places,
    bounds: Bounds,
    raises: bool,
    waker: &W,
    effects: &mut Effects<W, X>,
) -> Arrival {
    if let Some(arrival) = unread(lanes, asks, places, bounds, waker) {
        return arrival;
    }
    let judged = compare(lanes, asks, places, bounds);
    leave(lanes, places);
    match judged {
        Ok(judged) => {
            if raises {
                raise_all(lanes, asks, &judged, effects);
                effects.drain.clear();
            }
            Arrival::Admitted
        }
        Err((index, refused)) => Arrival::Refused(index, refused),
    }
}

/// Compares all keys with their marks, and changes nothing.
fn compare<W: Clone, X: Clone>(
    lanes: &[&mut Lane<W, X>],
    asks: &[Ask],
    places: &Places,
    bounds: Bounds,
) -> Result<SmallVec<[Judgement; 1]>, (usize, Refused)> {
    let mut judged = SmallVec::new();
    for (index, (lane, ask)) in lanes.iter().zip(asks).enumerate() {
        let judgement = compare_one(lane, ask, places, bounds);
        let judgement = judgement.map_err(|refused| (index, refused))?;
        if let Some(refused) = waited_in_vain(lane, places, index) {
            return Err((index, refused));
        }
        judged.push(judgement);
    }
    Ok(judged)
}

/// Compares one key with its mark, which is known.
fn compare_one<W: Clone, X: Clone>(
    lane: &Lane<W, X>,
    ask: &Ask,
    places: &Places,
    bounds: Bounds,
) -> Result<Judgement, Refused> {
    let judgement = lane.judge(ask);
    let mark = lane.mark().unwrap_or(Token::NONE);
    match judgement {
        Judgement::Stale
            if !places.changes.is_empty() && fault::planted(Fault::WaitersOutOfOrder) =>
        {
            Ok(judgement)
        }
        Judgement::Stale => Err(Refused::Stale(mark)),
        // Whatever comes now is to come again: there may be another mark then.
        _ if lane.is_sealed() => Err(Refused::Sealed),
        Judgement::HolderMismatch => Err(Refused::HolderMismatch(mark)),
        Judgement::JumpTooLarge => Err(Refused::JumpTooLarge(mark)),
        Judgement::Advance if lane.record().is_none() && !bounds.new_keys => Err(Refused::Keys),
        _ => Ok(judgement),
    }
}

/// Raises, binds or commits again what has been compared.
fn raise_all<W: Clone, X: Clone>(
    lanes: &mut [&mut Lane<W, X>],
    asks: &[Ask],
    judged: &[Judgement],
    effects: &mut Effects<W, X>,
) {
    for (index, ((lane, ask), judgement)) in lanes.iter_mut().zip(asks).zip(judged).enumerate() {
        match judgement {
            Judgement::Advance | Judgement::Bind => {
                let first = lane.record().is_none();
                let record = lane.raise(ask, &mut effects.wake);
                if *judgement == Judgement::Advance {
                    effects.drain.extend(lane.older(ask.token).cloned());
                }
                effects.commit.push((index, lane.change(), record, first));
            }
            _ if lane.needs_commit() => {
                if let Some(record) = lane.commit_again() {
                    // Whether the failed commit reached the disk is not known: as far as the count
                    // of keys goes, it did.
                    effects.commit.push((index, lane.change(), record, false));
                }
            }
            _ => {}
        }
    }
}

fn admitted<W: Clone, X: Clone>(lanes: &mut [&mut Lane<W, X>], places: &mut Places) -> Arrival {
    leave(lanes, places);
    lanes.iter_mut().for_each(|lane| lane.admit());
    Arrival::Admitted
}

/// Waits for the marks that are being read; `None` where all are known.
fn unread<W: Clone, X: Clone>(
    lanes: &mut [&mut Lane<W, X>],
    asks: &[Ask],
    places: &mut Places,
    bounds: Bounds,
    waker: &W,
) -> Option<Arrival> {
    if lanes.iter().all(|lane| lane.read_under_way().is_none()) {
        return None;
    }
    let failed = lanes.iter().position(|lane| lane.read_failed());
    let full = || {
        lanes.iter().zip(asks).position(|(lane, ask)| {
            // A full queue never refuses an advance, as far as it is known to be one.
            let joins = lane.read_under_way().is_some() || lane.judge(ask) != Judgement::Advance;
            joins && lane.counts().1 >= bounds.waiting && !lane.is_waiting(places.waiter)
        })
    };
    let refused = failed.map(|index| (index, Refused::Store));
    if let Some(refused) = refused.or_else(|| full().map(|index| (index, Refused::Queue))) {
        // Another try would not help a request that a known mark refuses, so that is what it is
        // told. Where it can wait, it does: which marks are known must not change an answer.
        let known = lanes
            .iter()
            .zip(asks)
            .enumerate()
            .find_map(|(index, (lane, ask))| {
                lane.read_under_way().is_none().then_some(())?;
                let refused = compare_one(lane, ask, places, bounds).err()?;
                Some((index, refused))
            });
        let (index, refused) = known.unwrap_or(refused);
        leave(lanes, places);
        return Some(Arrival::Refused(index, refused));
    }
    // It waits in the lanes that are known as well, so that none of them is freed.
    places.waited = true;
    for lane in lanes.iter_mut() {
        lane.wait_for_mark(places.waiter, waker);
    }
    Some(Arrival::Unread)
}

/// Whether what this request waited for in the lane at `index` has failed.
fn waited_in_vain<W: Clone, X: Clone>(
    lane: &Lane<W, X>,
    places: &Places,
    index: usize,
) -> Option<Refused> {
    let change = *places.changes.get(index)?;
    lane.has_failed(change).then_some(Refused::Store)
}

/// A waiting request leaves all its lanes.
pub fn leave<W: Clone, X: Clone>(lanes: &mut [&mut Lane<W, X>], places: &Places) {
    if places.waited {
        lanes.iter_mut().for_each(|lane| lane.leave(places.waiter));
    }
}

/// An upstream connection is ready for an admitted request: it is in flight from now on in the lane
/// of every key that it writes, unless a newer token has come since. Either way it is no longer
/// admitted.
///
/// Returns its tickets, in the order of its keys; `None` for a key that it only reads.
///
/// # Errors
///
/// The index of the key that has a newer mark by now or whose mark is being reset, or that is only
/// read and has an older write in flight or unsettled; nothing is in flight then.
pub fn send<W: Clone, X: Clone>(
    lanes: &mut [&mut Lane<W, X>],
    asks: &[Ask],
    write: bool,
    handle: &X,
) -> Result<SmallVec<[Option<Ticket>; 1]>, (usize, Refused)> {
    lanes.iter_mut().for_each(|lane| lane.unadmit());
    for (index, (lane, ask)) in lanes.iter().zip(asks).enumerate() {
        let mark = lane.mark().unwrap_or(Token::NONE);
        let overtaken = mark > ask.token;
        // The mark is below an admitted token only when it was reset in between.
        let reset = ask.access == Access::Write && mark < ask.token;
        if (overtaken && !fault::planted(Fault::NoSecondCheck)) || reset {
            return Err((index, Refused::Stale(mark)));
        }
        // A reset waits for what is admitted; what is sent now it would have to wait for as well.
        if lane.is_sealed() {
            return Err((index, Refused::Sealed));
        }
        // A read raises no mark, so a write with a token between the mark and its own may have
        // been let through since.
        if ask.access == Access::Read
            && let Some(held @ (Held::InFlight | Held::Unsettled)) = lane.held(ask.token)
        {
            return Err((index, Refused::Held(held)));
        }
    }
    Ok(begin(lanes, asks, write, handle))
}

/// A write is in flight whatever its tokens are: [`send`] has compared them, or it is only
/// observed.
pub fn begin<W: Clone, X: Clone>(
    lanes: &mut [&mut Lane<W, X>],
    asks: &[Ask],
    write: bool,
    handle: &X,
) -> SmallVec<[Option<Ticket>; 1]> {
    lanes
        .iter_mut()
        .zip(asks)
        .map(|(lane, ask)| {
            let writes = write && ask.access == Access::Write;
            writes.then(|| lane.begin(ask.token, handle.clone()))
        })
        .collect()
}

/// What still holds a request, the gravest first: older writes in flight, then what is unsettled,
/// then a commit.
#[must_use]
pub fn held<W: Clone, X: Clone>(lanes: &[&mut Lane<W, X>], asks: &[Ask]) -> Option<(usize, Held)> {
    let held = || {
        lanes
            .iter()
            .zip(asks)
            .enumerate()
            .filter_map(|(index, (lane, ask))| Some((index, lane.held(ask.token)?)))
    };
    held()
        .find(|one| one.1 == Held::InFlight)
        .or_else(|| held().find(|one| one.1 == Held::Unsettled))
        .or_else(|| held().next())
}

#[cfg(test)]
mod tests;
