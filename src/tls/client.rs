//! How an upstream proves who it is, and what it is shown.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::server::{Protocol, of_certificate_or_key, roots};
use super::{Bad, pem, provider};
use crate::net::Stream;

/// What an upstream needs for TLS. A clone is a reference count.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<rustls::ClientConfig>,
    protocol: Protocol,
    name: Option<ServerName<'static>>,
}

impl ClientTls {
    /// From the bytes of the files: the authorities that the upstream's certificate comes from, or
    /// those of this system, and the certificate and the key that it is shown. `protocol` is spoken.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with any of them.
    pub fn new(
        authorities: Option<&[u8]>,
        own: Option<(&[u8], &[u8])>,
        protocol: Protocol,
    ) -> Result<Self, Vec<Bad>> {
        let mut bad = Vec::new();
        let believed = authorities.map_or_else(of_system, roots);
        let believed = believed.map_err(|error| bad.push(Bad::Authorities(error)));
        let own = own.map(|(certificate, key)| {
            let chain = pem::certificates(certificate)
                .map_err(|error| bad.push(Bad::Certificate(error.to_string())));
            let key = pem::private_key(key).map_err(|error| bad.push(Bad::Key(error.to_string())));
            Ok::<_, ()>((chain?, key?))
        });
        let (Ok(believed), Ok(own)) = (believed, own.transpose()) else {
            return Err(bad);
        };
        let broken = |error: rustls::Error| vec![of_certificate_or_key(error)];
        let builder = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(broken)?
            .with_root_certificates(believed);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(broken)?,
        };
        config.alpn_protocols = vec![protocol.name().to_vec()];
        Ok(Self {
            config: Arc::new(config),
            protocol,
            name: None,
        })
    }

    /// The same for an upstream of this name, which its certificate must be for.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Self> {
        let name = name.strip_suffix('.').unwrap_or(name);
        let name = ServerName::try_from(name.to_owned()).ok()?;
        Some(Self {
            name: Some(name),
            ..self.clone()
        })
    }

    /// Whether it is known whom the certificate must be for.
    #[must_use]
    pub const fn is_named(&self) -> bool {
        self.name.is_some()
    }

    /// The client's side of a handshake over `stream`.
    ///
    /// # Errors
    ///
    /// As the upstream or the system has it.
    pub async fn connect(&self, stream: Stream) -> io::Result<Stream> {
        let name = self.name.clone().ok_or(io::ErrorKind::InvalidInput)?;
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let stream = connector.connect(name, stream).await?;
        let agreed = stream.get_ref().1.alpn_protocol();
        // To one that knows of no such agreement HTTP/1.1 is spoken, and HTTP/2 is not.
        if self.protocol == Protocol::Http2 && agreed != Some(self.protocol.name()) {
            return Err(io::Error::other("the upstream does not speak HTTP/2"));
        }
        Ok(Stream::Tls(Box::new(stream.into())))
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The authorities that this system believes, as its other programs do.
fn of_system() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    // One that can't be read is none.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err("this system has no certificates of authorities".to_owned());
    }
    Ok(roots)
}
