//! What of this build is for tests only. Such a binary says so at each start and in its metrics, so
//! that nobody goes on running one unawares.

/// The features for tests that this binary was built with, separated by commas; empty for one that
/// is to be used.
pub(crate) fn names() -> String {
    let features = [
        ("faults", cfg!(feature = "faults")),
        ("fuzzing", cfg!(feature = "fuzzing")),
        ("shuttle", cfg!(feature = "shuttle")),
        ("sim", cfg!(feature = "sim")),
    ];
    let built = features.iter().filter(|feature| feature.1);
    built.map(|feature| feature.0).collect::<Vec<_>>().join(",")
}

/// Warns of a binary that is not to be used.
pub(crate) fn warn() {
    let features = names();
    if !features.is_empty() {
        tracing::warn!(
            %features,
            "this binary was built for tests: what it promises can be broken on purpose; build \
             one without these features"
        );
    }
}
