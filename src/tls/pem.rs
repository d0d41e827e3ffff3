//! Certificates and keys as they stand in files.

use std::fmt;
use std::io::{self, Read};
use std::path::Path;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The largest file, in bytes: a bundle of all the world's authorities is a fifth of it.
const MAX_FILE: u64 = 1024 * 1024;

/// Why a file has no certificates or no key.
#[derive(Debug)]
pub enum PemError {
    /// It can't be read.
    Read(io::Error),
    /// It has none.
    None(&'static str),
    /// It is damaged.
    Broken,
}

impl fmt::Display for PemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => error.fmt(f),
            Self::None(what) => write!(f, "it has no {what} in PEM"),
            Self::Broken => f.write_str("it is not PEM"),
        }
    }
}

impl std::error::Error for PemError {}

/// Reads a file whole, if it is one and not too large.
///
/// # Errors
///
/// As the system says.
pub fn read(path: &Path) -> Result<Vec<u8>, PemError> {
    let read = || {
        // A pipe would block the start for ever, a device might never end.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        let mut bytes = Vec::new();
        std::fs::File::open(path)?
            .take(MAX_FILE + 1)
            .read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(io::Error::other("it is larger than 1MiB"));
        }
        Ok(bytes)
    };
    read().map_err(PemError::Read)
}

/// All certificates, in their order.
///
/// # Errors
///
/// Where there is none, or one is damaged.
pub fn certificates(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    match all {
        Ok(all) if all.is_empty() => Err(PemError::None("certificate")),
        Ok(all) => Ok(all),
        Err(_) => Err(PemError::Broken),
    }
}

/// The first private key.
///
/// # Errors
///
/// Where there is none that can be read without a password.
pub fn private_key(bytes: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    match PrivateKeyDer::from_pem_slice(bytes) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) => Err(PemError::None("private key without a password")),
        Err(_) => Err(PemError::Broken),
    }
}
