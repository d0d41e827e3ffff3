//! The client's side of an HTTP/1 connection, below the codec.
//!
//! The codec above is lenient where a fence must not be: it drops a Content-Length beside
//! Transfer-Encoding, takes a bare LF for a line end, and answers broken heads with a bare status
//! line. So the bytes are judged here before it sees any of them. [`Guard`] is the judge, and does
//! no I/O; [`ClientIo`] puts it under the codec, answers a broken head itself, and closes so that
//! the client can read the answer; [`ConnState`] and [`Watchdog`] bound how long a client may take.

mod buffer;
mod chunked;
mod client_io;
mod field;
mod guard;
mod head;
mod linger;
mod state;
mod violation;
mod watchdog;

pub use client_io::{ClientIo, Refuse};
pub use guard::{Guard, Inspection, Next};
pub use head::HeadLimits;
pub use linger::LingerLimits;
pub use state::{ConnState, Phase, Serving, ServingBody};
pub use violation::Violation;
pub use watchdog::{ConnTimeouts, Expired, Watchdog};
