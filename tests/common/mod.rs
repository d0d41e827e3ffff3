//! What every black-box test stands on: the real binary, an upstream that logs what it saw, the
//! checker of that log, and a client that speaks bytes.
#![allow(dead_code, reason = "each test crate uses its own part of this module")]
#![allow(
    unused_imports,
    reason = "each test crate uses its own part of this module"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod config;
mod doors;
mod gateway;
mod history;
mod http;
pub(crate) mod http2;
pub(crate) mod http2_server;
pub(crate) mod issuer;
mod lateness;
pub(crate) mod locks;
pub(crate) mod parse;
mod recorder;
mod stage;
pub(crate) mod store;
mod storm;
pub(crate) mod strace;
pub(crate) mod tls;
mod wait;

pub(crate) use config::Config;
pub(crate) use doors::Door;
pub(crate) use gateway::{Failed, Gateway, Launch, Signal, binary, run};
pub(crate) use history::{Event, History, Token, Violation, Write};
pub(crate) use http::{Connection, Ended, Request, Response, send_raw};
pub(crate) use recorder::{Broken, Exchange, Next, Recorder};
pub(crate) use stage::Stage;
pub(crate) use storm::{Dice, Storm, weather};
pub(crate) use wait::{Gate, PATIENCE, eventually, yield_to_all};

/// Says that a test is skipped for want of what `make setup` installs; fails where nothing may be
/// (`CI=true`), since nobody reads there what a test that passed has said.
pub(crate) fn skip(why: &str) {
    let may_not = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(!may_not, "not to be skipped: {why} (make setup)");
    println!("skipped: {why} (make setup)");
}
