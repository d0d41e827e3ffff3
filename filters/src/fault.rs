//! Faults that tests plant to see that they are caught.
//!
//! Without the `faults` feature there are none, and every check is the constant `false`. With it,
//! the variable `FENCEGATE_FAULT` names the one that is planted in the whole process, and a test
//! that shares its process with others plants one in its own thread with `plant`.

/// A guarantee that can be broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A newer token is admitted while older writes are in flight.
    NoDrain,
    /// A write has ended for its lane when the response's head has come, its body still to come.
    DrainHeadsOnly,
    /// A request is admitted before its mark is durable.
    ForwardBeforeSync,
    /// A commit that failed is taken for one that is durable.
    IgnoreSyncResult,
    /// Marks are not there after a restart.
    ForgetMarks,
    /// After a crash nothing is held.
    NoCrashHold,
    /// After a crash, keys that were draining hold no equal token.
    NoDrainingHold,
    /// A lane lets go of a write when its client leaves.
    ReleaseOnLeave,
    /// A permit that is dropped, in a panic for one, counts as completed.
    PanicCompletes,
    /// An outcome that is unknown counts as completed.
    UnknownCompletes,
    /// A final response that came before the request was sent whole counts as completed.
    EarlyAnswerCompletes,
    /// A response with one of the upstream's `unknown_statuses`, as 504, counts as completed.
    UnknownStatusCompletes,
    /// A request of which bytes may have been sent is sent once more.
    ResendAfterBytes,
    /// A request that broke on one address of its upstream after it was sent goes to the next one.
    MoveAfterBytes,
    /// An address of an upstream to which no connection came about keeps its turns.
    UseEjected,
    /// An address that takes connections and never answers has its turns all the same.
    UseSilent,
    /// Of a header that comes on several lines only the first is read.
    FirstLineOnly,
    /// The key is made of another path than the one that is forwarded.
    KeyOfAnotherPath,
    /// A mark in the cache decides where there is a lane.
    CacheDecides,
    /// Waiters are let in as they are woken, without being compared again: an older one after a
    /// newer one.
    WaitersOutOfOrder,
    /// An admitted request is sent without being compared once more.
    NoSecondCheck,
    /// The store is marked clean while a write is unsettled.
    CleanUnsettled,
    /// A read of a mark that comes late replaces what its lane knows by then.
    LateReadOverwrites,
    /// A mark whose commit failed is never committed again.
    FailedCommitWedges,
    /// Upstream sockets have no `SO_LINGER` of 0: what was not sent yet outlives the close.
    NoLinger,
    /// What waits in the buffers of TLS counts as sent.
    FlushUnheard,
    /// TLS takes what a client sends before the handshake is over.
    EarlyData,
    /// A safe method with an Upgrade counts as a read.
    UpgradeIsRead,
    /// The rules of keys change while writes are in flight under the old ones.
    RulesInFlight,
    /// A reset lowers the mark without waiting for what is in flight.
    ResetWithoutDrain,
    /// Marks are forgotten before the floor that stands for them is durable.
    FloorLate,
    /// Floors that are high enough already are not committed once more.
    FloorSkipped,
    /// A key without a mark of its own is not compared with its namespace's floor.
    FloorUnheard,
    /// The mark of a key is forgotten although the key has a lane.
    ForgetInUse,
    /// A grant of the lock service is told before older writes have ended.
    GrantUndrained,
    /// Leases are not there after a restart.
    ForgetLeases,
    /// The lock service issues tokens by the mark alone: after a reset they come twice.
    RepeatTokens,
    /// A lease is over before its time.
    ExpireEarly,
    /// A lock counts as held, and its token is shown, while it is still being granted.
    ShowUngranted,
    /// A longer time of a lease is promised before it is durable.
    RenewUnkept,
    /// Whoever is next is not woken when the end of a lease is noticed.
    SleepOnExpiry,
    /// Whoever is next is not woken when one before it leaves.
    SleepOnLeave,
    /// A lock whose lease is over stays in memory.
    KeepEndedLocks,
    /// Who waits for locks is not bounded over all of them.
    UnboundedWaiters,
    /// Locks that raise no mark are kept without a bound.
    UnboundedLocks,
    /// Those who watch a lock are not told of its renewals.
    LoseEvents,
    /// Those who watch a lock are told of everything twice.
    RepeatEvents,
    /// Those who watch a lock are told of the later one first, where there are two events.
    ReorderEvents,
    /// A body of HTTP/2 that is longer than its Content-Length reaches the upstream whole.
    LongBodyIsWhole,
    /// A stream of HTTP/2 that its client has stopped reading is kept for ever.
    KeepStalledStream,
    /// Streams of HTTP/2 that wait take the window from those under way.
    OneWindowForAll,
    /// Streams of HTTP/2 that wait have windows as large as those that are read.
    WideWindows,
    /// Frames of HTTP/2 that carry nothing are not counted.
    UncountedFrames,
    /// The header blocks of HTTP/2 are not read beside the codec, which repairs some in silence.
    UnreadBlocks,
    /// All that an HTTP/2 client has sent is handled before anybody else has a turn.
    EndlessTurns,
    /// All requests that an HTTP/2 client has made are begun as they come.
    UnpacedRequests,
    /// A request whose frames an upstream has got is sent once more.
    ResendAfterFrames,
    /// Whoever waits in a lane is not woken when it is released.
    DropWake,
    /// The commits that wait when the store fails are not answered.
    LoseReplies,
    /// The committer is not told of a commit that comes into its empty queue.
    DropNotify,
    /// Signed tokens are taken whatever their signature is.
    UnverifiedTokens,
    /// Signed tokens are taken after they have expired.
    ExpiredTokens,
    /// Signed tokens are taken for every key.
    TokensOfOtherKeys,
    /// What a key has verified is taken after it has been taken out of the file.
    KeysForEver,
}

impl Fault {
    /// Every fault with its name in `FENCEGATE_FAULT`.
    pub const ALL: &'static [(Self, &'static str)] = &[
        (Self::NoDrain, "no-drain"),
        (Self::DrainHeadsOnly, "drain-heads-only"),
        (Self::ForwardBeforeSync, "forward-before-sync"),
        (Self::IgnoreSyncResult, "ignore-sync-result"),
        (Self::ForgetMarks, "forget-marks"),
        (Self::NoCrashHold, "no-crash-hold"),
        (Self::NoDrainingHold, "no-draining-hold"),
        (Self::ReleaseOnLeave, "release-on-leave"),
        (Self::PanicCompletes, "panic-completes"),
        (Self::UnknownCompletes, "unknown-completes"),
        (Self::EarlyAnswerCompletes, "early-answer-completes"),
        (Self::UnknownStatusCompletes, "unknown-status-completes"),
        (Self::ResendAfterBytes, "resend-after-bytes"),
        (Self::MoveAfterBytes, "move-after-bytes"),
        (Self::UseEjected, "use-ejected"),
        (Self::UseSilent, "use-silent"),
        (Self::FirstLineOnly, "first-line-only"),
        (Self::KeyOfAnotherPath, "key-of-another-path"),
        (Self::CacheDecides, "cache-decides"),
        (Self::WaitersOutOfOrder, "waiters-out-of-order"),
        (Self::NoSecondCheck, "no-second-check"),
        (Self::CleanUnsettled, "clean-unsettled"),
        (Self::LateReadOverwrites, "late-read-overwrites"),
        (Self::FailedCommitWedges, "failed-commit-wedges"),
        (Self::NoLinger, "no-linger"),
        (Self::FlushUnheard, "flush-unheard"),
        (Self::EarlyData, "early-data"),
        (Self::UpgradeIsRead, "upgrade-is-read"),
        (Self::RulesInFlight, "rules-in-flight"),
        (Self::ResetWithoutDrain, "reset-without-drain"),
        (Self::FloorLate, "floor-late"),
        (Self::FloorSkipped, "floor-skipped"),
        (Self::FloorUnheard, "floor-unheard"),
        (Self::ForgetInUse, "forget-in-use"),
        (Self::GrantUndrained, "grant-undrained"),
        (Self::ForgetLeases, "forget-leases"),
        (Self::RepeatTokens, "repeat-tokens"),
        (Self::ExpireEarly, "expire-early"),
        (Self::ShowUngranted, "show-ungranted"),
        (Self::RenewUnkept, "renew-unkept"),
        (Self::SleepOnExpiry, "sleep-on-expiry"),
        (Self::SleepOnLeave, "sleep-on-leave"),
        (Self::KeepEndedLocks, "keep-ended-locks"),
        (Self::UnboundedWaiters, "unbounded-waiters"),
        (Self::UnboundedLocks, "unbounded-locks"),
        (Self::LoseEvents, "lose-events"),
        (Self::RepeatEvents, "repeat-events"),
        (Self::ReorderEvents, "reorder-events"),
        (Self::LongBodyIsWhole, "long-body-is-whole"),
        (Self::KeepStalledStream, "keep-stalled-stream"),
        (Self::OneWindowForAll, "one-window-for-all"),
        (Self::WideWindows, "wide-windows"),
        (Self::UncountedFrames, "uncounted-frames"),
        (Self::UnreadBlocks, "unread-blocks"),
        (Self::EndlessTurns, "endless-turns"),
        (Self::UnpacedRequests, "unpaced-requests"),
        (Self::ResendAfterFrames, "resend-after-frames"),
        (Self::DropWake, "drop-wake"),
        (Self::LoseReplies, "lose-replies"),
        (Self::DropNotify, "drop-notify"),
        (Self::UnverifiedTokens, "unverified-tokens"),
        (Self::ExpiredTokens, "expired-tokens"),
        (Self::TokensOfOtherKeys, "tokens-of-other-keys"),
        (Self::KeysForEver, "keys-for-ever"),
    ];

    /// Its name in `FENCEGATE_FAULT`.
    #[must_use]
    pub fn name(self) -> &'static str {
        let known = Self::ALL.iter().find(|known| known.0 == self);
        known.map_or("", |known| known.1)
    }

    /// The fault of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let known = Self::ALL.iter().find(|known| known.1 == name);
        known.map(|known| known.0)
    }
}

/// Whether the store is to be as small as it can be. No fault by itself: with the feature `faults`
/// a test asks for it with `FENCEGATE_SMALL_STORE`, so that all of the store is soon at work.
#[must_use]
pub fn small_store() -> bool {
    cfg!(feature = "faults") && std::env::var_os("FENCEGATE_SMALL_STORE").is_some()
}

/// Whether `fault` is planted in this process.
#[cfg(not(feature = "faults"))]
#[inline]
#[must_use]
pub const fn planted(_fault: Fault) -> bool {
    false
}

#[cfg(feature = "faults")]
pub use planting::{Planted, plant, planted};

#[cfg(feature = "faults")]
mod planting {
    use std::cell::Cell;
    use std::marker::PhantomData;
    use std::sync::OnceLock;

    use super::Fault;

    thread_local! {
        static IN_THREAD: Cell<Option<Fault>> = const { Cell::new(None) };
    }

    fn in_process() -> Option<Fault> {
        static IN_PROCESS: OnceLock<Option<Fault>> = OnceLock::new();
        *IN_PROCESS.get_or_init(|| Fault::named(&std::env::var("FENCEGATE_FAULT").ok()?))
    }

    /// Whether `fault` is planted in this thread, or in this process.
    #[must_use]
    pub fn planted(fault: Fault) -> bool {
        IN_THREAD.get() == Some(fault) || in_process() == Some(fault)
    }

    /// Plants a fault in this thread, for as long as what is returned lives.
    ///
    /// Of several that are planted one within the other, the innermost counts. Other threads don't
    /// see it: a test whose work goes to threads of a runtime takes a runtime of one thread.
    pub fn plant(fault: Fault) -> Planted {
        Planted {
            before: IN_THREAD.replace(Some(fault)),
            of_this_thread: PhantomData,
        }
    }

    /// A fault that is planted in this thread; dropped, it is taken out.
    #[must_use = "a fault is taken out when this is dropped"]
    #[derive(Debug)]
    pub struct Planted {
        before: Option<Fault>,
        /// Dropped in another thread, it would take out what that one has planted.
        of_this_thread: PhantomData<*const ()>,
    }

    impl Drop for Planted {
        fn drop(&mut self) {
            IN_THREAD.set(self.before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_found_again() {
        for (fault, name) in Fault::ALL {
            assert_eq!(fault.name(), *name);
            assert_eq!(Fault::named(name), Some(*fault));
        }
        assert_eq!(Fault::named("no-such-fault"), None);
    }

    #[cfg(feature = "faults")]
    #[test]
    fn a_fault_is_planted_in_one_thread_and_taken_out() {
        assert!(!planted(Fault::NoDrain));
        let outer = plant(Fault::NoDrain);
        {
            let _inner = plant(Fault::NoLinger);
            assert!(planted(Fault::NoLinger) && !planted(Fault::NoDrain));
        }
        assert!(planted(Fault::NoDrain));
        let elsewhere = std::thread::spawn(|| planted(Fault::NoDrain));
        assert!(!elsewhere.join().unwrap());
        drop(outer);
        assert!(!planted(Fault::NoDrain));
    }

    #[cfg(not(feature = "faults"))]
    #[test]
    fn nothing_is_planted_without_the_feature() {
        assert!(Fault::ALL.iter().all(|known| !planted(known.0)));
    }
}
