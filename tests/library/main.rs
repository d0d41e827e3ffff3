//! The library through its own doors, in the test's process: the config, the store, and the reader of bytes beneath the codec.
//!
//! Nothing here may start a child: from its fork to its exec it would hold the locks of the stores that other threads open.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it measured"
)]

#[path = "../common/mod.rs"]
mod common;

mod config;
mod store;
mod wire_agreement;
mod wire_client_io;
mod wire_guard;
