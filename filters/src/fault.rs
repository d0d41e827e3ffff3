//! Faults that tests plant to see that they are caught.
//!
//! Without the `faults` feature there are none, and every check is the constant `false`. With it,
//! the variable `FENCEGATE_FAULT` names the one that is planted in this process.

/// A guarantee that can be broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A newer token is admitted while older writes are in flight.
    NoDrain,
    /// A request is admitted before its mark is durable.
    ForwardBeforeSync,
    /// Marks are not there after a restart.
    ForgetMarks,
    /// A lane lets go of a write when its client leaves.
    ReleaseOnLeave,
    /// After a crash, keys that were draining hold no equal token.
    NoDrainingHold,
    /// An admitted request is sent without being compared once more.
    NoSecondCheck,
}

impl Fault {
    /// Every fault with its name in `FENCEGATE_FAULT`.
    pub const ALL: &'static [(Self, &'static str)] = &[
        (Self::NoDrain, "no-drain"),
        (Self::ForwardBeforeSync, "forward-before-sync"),
        (Self::ForgetMarks, "forget-marks"),
        (Self::ReleaseOnLeave, "release-on-leave"),
        (Self::NoDrainingHold, "no-draining-hold"),
        (Self::NoSecondCheck, "no-second-check"),
    ];
}

/// Whether `fault` is planted in this process.
#[cfg(not(feature = "faults"))]
#[inline]
#[must_use]
pub const fn planted(_fault: Fault) -> bool {
    false
}

/// Whether `fault` is planted in this process.
#[cfg(feature = "faults")]
#[must_use]
pub fn planted(fault: Fault) -> bool {
    use std::sync::OnceLock;
    static PLANTED: OnceLock<Option<Fault>> = OnceLock::new();
    let planted = PLANTED.get_or_init(|| {
        let name = std::env::var("FENCEGATE_FAULT").ok()?;
        Fault::ALL
            .iter()
            .find(|known| known.1 == name)
            .map(|known| known.0)
    });
    *planted == Some(fault)
}
