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
mod gateway;
mod history;
mod http;
mod parse;
mod recorder;
mod stage;
mod storm;
mod wait;

pub(crate) use config::Config;
pub(crate) use gateway::{Failed, Gateway, Signal, binary, run};
pub(crate) use history::{History, Token, Violation, Write};
pub(crate) use http::{Connection, Ended, Request, Response, send_raw};
pub(crate) use recorder::{Broken, Exchange, Next, Recorder};
pub(crate) use stage::Stage;
pub(crate) use storm::{Dice, Storm, weather};
pub(crate) use wait::{Gate, PATIENCE, eventually};
