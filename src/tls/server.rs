//! What a listener proves who it is with, and what it asks of clients.

use std::fmt;
use std::io;
use std::sync::Arc;

use fencegate_filters::fault::{self, Fault};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;

use super::{Validity, name_of, pem, provider};
use crate::config::ClientAuth;
use crate::net::Stream;

/// What is spoken on a connection once its handshake is over (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

impl Protocol {
    /// What clients of the gateway are offered, the most wanted first.
    pub const ALL: &'static [Self] = &[Self::Http2, Self::Http1];

    pub(super) const fn name(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }
}

/// Which of the three files is wrong, and how.
#[derive(Debug)]
pub enum Bad {
    /// The certificate.
    Certificate(String),
    /// The key.
    Key(String),
    /// The authorities of clients.
    Authorities(String),
}

/// What a listener needs for TLS. A clone is a reference count.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<rustls::ServerConfig>,
    client_auth: ClientAuth,
    validity: Option<Validity>,
    /// Of all that it was made of.
    digest: [u8; 32],
}

/// What is known once a handshake is over.
#[derive(Debug)]
pub struct Session {
    /// The name in the client's certificate, if it has sent one.
    pub identity: Option<Arc<str>>,
    /// What was agreed on; `None` where the client does not know of such agreements.
    pub protocol: Option<Protocol>,
}

impl ServerTls {
    /// From the bytes of the files: the certificate and those between it and its authority, the
    /// key, and the authorities that clients' certificates come from. `protocols` are offered, the
    /// most wanted first.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with any of them.
    pub fn new(
        certificate: &[u8],
        key: &[u8],
        authorities: Option<&[u8]>,
        client_auth: ClientAuth,
        protocols: &[Protocol],
    ) -> Result<Self, Vec<Bad>> {
        let mut bad = Vec::new();
        let chain = pem::certificates(certificate)
            .map_err(|error| bad.push(Bad::Certificate(error.to_string())));
        let private = pem::private_key(key).map_err(|error| bad.push(Bad::Key(error.to_string())));
        let provider = provider();
        let verifier = match authorities {
            Some(bytes) if client_auth != ClientAuth::None => {
                let verifier = verifier(bytes, client_auth, &provider);
                verifier.map_err(|error| bad.push(Bad::Authorities(error)))
            }
            _ => Ok(WebPkiClientVerifier::no_client_auth()),
        };
        let (Ok(chain), Ok(private), Ok(verifier)) = (chain, private, verifier) else {
            return Err(bad);
        };
        let validity = chain.first().and_then(|first| Validity::of(first));
        let broken = |error: rustls::Error| vec![of_certificate_or_key(error)];
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(broken)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, private)
            .map_err(broken)?;
        config.alpn_protocols = protocols.iter().map(|one| one.name().to_vec()).collect();
        // What is sent before the handshake is over can be sent once more by anybody.
        config.max_early_data_size = 0;
        // A client that comes again is let in by a ticket, which costs no memory. Whoever has to
        // show a certificate shows it each time: a ticket would let in one that counts no more.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        if fault::planted(Fault::EarlyData) {
            config.max_early_data_size = 16_384;
            config.session_storage = rustls::server::ServerSessionMemoryCache::new(256);
        } else if client_auth == ClientAuth::None {
            config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(broken)?;
        } else {
            config.send_tls13_tickets = 0;
        }
        Ok(Self {
            config: Arc::new(config),
            client_auth,
            validity,
            digest: digest(
                &[certificate, key, authorities.unwrap_or_default()],
                client_auth,
            ),
        })
    }

    /// What is asked of clients.
    #[must_use]
    pub const fn client_auth(&self) -> ClientAuth {
        self.client_auth
    }

    /// For how long the certificate counts.
    #[must_use]
    pub const fn validity(&self) -> Option<Validity> {
        self.validity
    }

    /// The server's side of a handshake over `stream`.
    ///
    /// # Errors
    ///
    /// As the client or the system has it.
    pub async fn accept(&self, stream: Stream) -> io::Result<(Stream, Session)> {
        let stream = TlsAcceptor::from(Arc::clone(&self.config))
            .accept(stream)
            .await?;
        let connection = stream.get_ref().1;
        let agreed = connection.alpn_protocol();
        let session = Session {
            identity: connection
                .peer_certificates()
                .and_then(|chain| name_of(chain.first()?)),
            protocol: Protocol::ALL
                .iter()
                .copied()
                .find(|one| Some(one.name()) == agreed),
        };
        Ok((Stream::Tls(Box::new(stream.into())), session))
    }
}

impl PartialEq for ServerTls {
    /// Whether they were made of the same.
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls")
            .field("client_auth", &self.client_auth)
            .finish_non_exhaustive()
    }
}

fn verifier(
    authorities: &[u8],
    client_auth: ClientAuth,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, String> {
    let roots = Arc::new(roots(authorities)?);
    let builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
    let builder = match client_auth {
        ClientAuth::Required => builder,
        _ => builder.allow_unauthenticated(),
    };
    builder.build().map_err(|error| error.to_string())
}

/// Authorities that are believed.
pub(super) fn roots(authorities: &[u8]) -> Result<RootCertStore, String> {
    let certificates = pem::certificates(authorities).map_err(|error| error.to_string())?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        add(&mut roots, certificate)?;
    }
    Ok(roots)
}

fn add(roots: &mut RootCertStore, certificate: CertificateDer<'static>) -> Result<(), String> {
    roots.add(certificate).map_err(|error| words(&error))
}

/// What rustls says of a certificate and its key, by whose fault it is.
pub(super) fn of_certificate_or_key(error: rustls::Error) -> Bad {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            Bad::Key("it is not the key of the certificate".to_owned())
        }
        rustls::Error::General(_) => Bad::Key("it is of a kind that is not known".to_owned()),
        error => Bad::Certificate(words(&error)),
    }
}

fn words(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(what) => format!("a certificate is not valid: {what:?}"),
        error => error.to_string(),
    }
}

fn digest(parts: &[&[u8]], client_auth: ClientAuth) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.update([client_auth as u8]);
    hash.finalize().into()
}
