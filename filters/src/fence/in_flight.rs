//! What the fence may ask of a request that is in flight.

use std::sync::Arc;

/// What to do with older writes whose body has not been sent whole (`fence.drain.uploads`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Uploads {
    /// Cut them at once.
    #[default]
    Cut,
    /// Wait for them.
    Wait,
}

/// Why a write is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// A newer token waits for it.
    Superseded,
    /// The gateway stops.
    Stopping,
}

/// A write in flight, as the fence sees it.
///
/// Both calls come from other requests' threads, while no lane is held; they may end the write
/// before they return.
pub trait InFlight: Send + Sync + 'static {
    /// A newer token waits for this write: cut what may be cut, and get the rest to its end
    /// without waiting for a slow client.
    fn drain(self: Arc<Self>, uploads: Uploads);

    /// Drop the upstream connection now. The write has ended when the close has returned.
    fn cut(self: Arc<Self>, why: Cut);

    /// Cut it where it is a tunnel, which may never end by itself.
    fn end_tunnel(&self) {}
}

/// A handle to a write in flight.
pub type Handle = Arc<dyn InFlight>;
