//! The real binary over real sockets.
//!
//! One program, since what takes longest in building many is to compile [`common`] and to link it for each. A file is a subject:
//! `cargo test --test suite draining::`. Programs of their own are `tests/kills.rs` and
//! `tests/lock_openapi.rs`, which have a time to keep and so want the machine for themselves; and what opens stores in the test's own
//! process (`tests/library/`, `tests/store_processes.rs`): a child that
//! another thread starts holds their locks too, from its fork to its exec.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it measured or why it skips"
)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../../examples/lock_client/guard.rs"]
mod guard;

mod addresses;
mod admin;
mod answers;
mod api_heads;
mod cli;
mod concurrency;
mod copies;
mod descriptors;
mod disks;
mod draining;
mod durability;
mod exhaustion;
#[cfg(feature = "faults")]
mod faults;
mod forgetting;
mod framing;
mod grpc;
mod history;
mod holder;
mod hostile_disk;
mod hosts;
mod http2;
mod http2_conformance;
mod http2_floods;
mod http2_hostile;
mod http2_upstream;
mod http2_windows;
mod key;
mod keys_command;
mod listeners;
mod lock_calls;
mod lock_client;
mod lock_command;
mod lock_events;
mod lock_names;
mod lock_scenarios;
mod lock_storms;
mod lock_tls;
mod locks;
mod marks;
mod modes;
mod outcomes;
mod proxying;
mod real_servers;
mod reload;
mod responses;
mod resting;
mod routes;
mod signed;
mod storms;
#[cfg(feature = "faults")]
mod sweep;
mod timeouts;
mod tls;
mod token;
mod unix_upstream;
mod upgrades;
mod upstreams;
mod websocket;
