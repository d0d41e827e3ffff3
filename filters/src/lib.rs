//! The fence of fencegate: tower layers that make an HTTP service refuse stale fencing tokens.
//!
//! A distributed lock is a lease, and its holder can outlive it. What protects the resource is a
//! *fencing token*, a number that grows with every grant, and a resource that refuses anything
//! older than the highest token it has seen. This crate is that refusal: it reads the [`Token`]
//! and the [`Key`] of a request, keeps the mark of each key, and lets a newer token through only
//! when every older write is known to have ended.
//!
//! It knows `http`, `http-body`, `tower` and tokio's sync and time; it knows no sockets, no HTTP
//! codec and no config files.

pub mod claim;
#[cfg(feature = "shuttle")]
#[doc(hidden)]
pub mod explore;
pub mod fault;
pub mod fence;
pub mod forwarding;
pub mod guard;
pub mod hop_by_hop;
pub mod key;
pub mod limits;
pub mod lock;
pub mod names;
pub mod passage;
pub mod policy;
pub mod problem;
pub mod refusal;
pub mod respond;
pub mod route;
pub mod signed;
pub mod store;
pub mod strip;
mod sync;
pub mod token;
pub mod tokens;

pub use fence::Fence;
pub use forwarding::{Cidr, ForwardedLayer, Peer};
pub use guard::GuardedNames;
pub use hop_by_hop::HopByHopLayer;
pub use key::Key;
pub use problem::Rendering;
pub use refusal::{Outcome, Reason, Refusal};
pub use respond::RespondLayer;
pub use strip::StripLayer;
pub use token::Token;

#[cfg(test)]
mod testing;
