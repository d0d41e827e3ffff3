//! The client's side of a connection, below the codec.
//!
//! The codec above is lenient where a fence must not be: it drops a Content-Length beside
//! Transfer-Encoding, takes a bare LF for a line end, and answers broken heads with a bare status
//! line. So the bytes are judged here before it sees any of them. [`Guard`] is the judge, and does
//! no I/O; [`ClientIo`] puts it under the codec, answers a broken head itself, and closes so that
//! the client can read the answer; [`ConnState`] and [`Watchdog`] bound how long a client may take.
//!
//! HTTP/2 is judged by its codec. Below it [`FrameIo`] lets a [`Meter`] count what the codec does
//! not, and [`Unserved`] tells what the codec has refused. What the codec repairs in silence it is made
//! to refuse.

mod blocks;
mod buffer;
mod chunked;
mod client_io;
mod field;
mod frame_io;
pub(crate) mod frames;
mod guard;
mod head;
mod hpack;
mod linger;
mod meter;
mod state;
mod unserved;
mod violation;
mod watchdog;
mod windows;

pub(crate) use blocks::CUT_TARGET;
pub use client_io::{ClientIo, Refuse};
pub use frame_io::FrameIo;
pub use guard::{Guard, Inspection, Next};
pub use head::{HeadLimits, MAX_METHOD_BYTES};
pub use linger::LingerLimits;
pub(crate) use linger::dismiss;
pub use meter::{Flood, Meter};
pub use state::{ConnState, Phase, Serving, ServingBody};
pub use unserved::{Refused, Unserved};
pub use violation::Violation;
pub use watchdog::{ConnTimeouts, Ended, Expired, Watchdog};
pub(crate) use windows::{STREAM_WINDOW, Window, Windows};
