//! The lock service: leases that expire, waiters in line, and tokens that only grow.
//!
//! | file | what |
//! | --- | --- |
//! | `service` | acquire, renew, release, over the pure lock of `fencegate_filters::lock` |
//! | `cell` | a lock in memory, and whether the store has it as it is |
//! | `events` | what those are told who watch a lock |
//! | `kept` | what the store keeps of a lock |
//! | `room` | how many locks can be had |
//! | `api` | the calls over HTTP |
//! | `delivery` | whether a reply went out |

mod api;
mod cell;
mod delivery;
mod events;
mod kept;
mod room;
mod service;

pub use self::api::Api;
pub use self::service::Locks;
