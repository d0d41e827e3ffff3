//! TLS, by rustls: 1.2 and 1.3, never early data.
//!
//! | file | what |
//! | --- | --- |
//! | `pem` | certificates and keys as they stand in files |
//! | `identity` | what a certificate says of whom it is for, and for how long |
//! | `client` | what is asked of upstreams, and shown to them |
//! | `server` | what a listener proves who it is with, and what it asks of clients |

mod client;
mod identity;
pub mod pem;
mod server;

use std::sync::{Arc, OnceLock};

use rustls::crypto::CryptoProvider;

pub use client::ClientTls;
pub use identity::{Validity, name_of};
pub use server::{Bad, Protocol, ServerTls, Session};

/// The cryptography under all of it.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}
