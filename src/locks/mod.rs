//! The lock service: leases that expire, waiters in line, and tokens that only grow.
//!
//! | file | what |
//! | --- | --- |
//! | `service` | acquire, renew, release, over the pure lock of `fencegate_filters::lock` |
//! | `giving` | a lease is made durable and fenced |
//! | `view` | locks as others see them |
//! | `refusals` | what whoever asks is refused with |
//! | `table` | the locks that are in memory |
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
mod giving;
mod kept;
mod refusals;
mod room;
mod service;
mod table;
mod view;

pub use self::api::Api;
pub use self::service::Locks;
