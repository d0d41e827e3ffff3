//! Certificates made for a test, and a client that speaks TLS below the one that speaks bytes.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion, RootCertStore};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_rustls::TlsConnector;

use super::http::Connection;

/// The name that servers' certificates are for.
pub(crate) const NAME: &str = "store.test";

/// An authority, and a directory for what it issues.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
    dir: TempDir,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub(crate) struct Issued {
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "an authority of a test");
        let pem = params.self_signed(&key).unwrap().pem();
        let authority = Self {
            issuer: Issuer::new(params, key),
            pem: pem.clone(),
            dir: tempfile::tempdir().unwrap(),
        };
        authority.write("ca.pem", &pem);
        authority
    }

    /// A certificate for a server, changed by `change`.
    pub(crate) fn issue(&self, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Issued {
            cert: cert.pem(),
            key: key.serialize_pem(),
        }
    }

    /// One that ends with that year.
    pub(crate) fn until(&self, year: i32) -> Issued {
        self.issue(|params| {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(year, 12, 31);
        })
    }

    /// A client's, with these alternative names and this common name.
    pub(crate) fn client(&self, names: Vec<SanType>, common: &str) -> Issued {
        self.issue(|params| {
            params.subject_alt_names = names;
            params.distinguished_name.push(DnType::CommonName, common);
        })
    }

    /// Writes a file, whole and at once, as tools that renew certificates do.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        let new = self.path("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &path).unwrap();
        path
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes what was issued; the `tls` of a listener that uses it.
    pub(crate) fn listener(&self, issued: &Issued) -> Value {
        json!({
            "cert": self.write("server.pem", &issued.cert),
            "key": self.write("server.key", &issued.key),
        })
    }

    /// The same for one that asks for certificates of this authority.
    pub(crate) fn mutual(&self, issued: &Issued, client_auth: &str) -> Value {
        let mut tls = self.listener(issued);
        tls["client_ca"] = json!(self.path("ca.pem"));
        tls["client_auth"] = json!(client_auth);
        tls
    }

    /// A client that believes this authority.
    pub(crate) fn trust(&self) -> ClientConfig {
        self.trust_with(rustls::DEFAULT_VERSIONS, None)
    }

    /// The same with these versions, and a certificate of its own.
    pub(crate) fn trust_with(
        &self,
        versions: &[&'static rustls::SupportedProtocolVersion],
        own: Option<&Issued>,
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap();
        roots.add(ca).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        match own {
            None => builder.with_no_client_auth(),
            Some(own) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(own.cert.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap(),
                )
                .unwrap(),
        }
    }
}

/// What came of a handshake.
#[derive(Debug)]
pub(crate) struct Shaken {
    pub(crate) version: ProtocolVersion,
    pub(crate) alpn: Option<Vec<u8>>,
    pub(crate) kind: HandshakeKind,
    pub(crate) certificate: Vec<u8>,
}

/// A connection over TLS: what it sends and receives passes a thread that speaks TLS.
pub(crate) fn connect(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
) -> std::io::Result<(Connection, Shaken)> {
    connect_over(TcpStream::connect(address)?, config)
}

/// The same over a connection that is there.
pub(crate) fn connect_over(
    remote: TcpStream,
    config: &Arc<ClientConfig>,
) -> std::io::Result<(Connection, Shaken)> {
    let (told, hears) = mpsc::channel();
    let config = Arc::clone(config);
    let near = TcpListener::bind("127.0.0.1:0").unwrap();
    let near_address = near.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            remote.set_nonblocking(true).unwrap();
            remote.set_nodelay(true).unwrap();
            let remote = tokio::net::TcpStream::from_std(remote).unwrap();
            let connector = TlsConnector::from(config);
            let name = ServerName::try_from(NAME).unwrap();
            let mut remote = match connector.connect(name, remote).await {
                Ok(remote) => remote,
                Err(error) => {
                    let _ = told.send(Err(error));
                    return;
                }
            };
            let connection = remote.get_ref().1;
            let shaken = Shaken {
                version: connection.protocol_version().unwrap(),
                alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
                kind: connection.handshake_kind().unwrap(),
                certificate: connection.peer_certificates().unwrap()[0].to_vec(),
            };
            let _ = told.send(Ok(shaken));
            near.set_nonblocking(true).unwrap();
            let near = tokio::net::TcpListener::from_std(near).unwrap();
            let (mut near, _) = near.accept().await.unwrap();
            near.set_nodelay(true).unwrap();
            let _ = tokio::io::copy_bidirectional(&mut near, &mut remote).await;
        });
    });
    let shaken = hears.recv().unwrap()?;
    let connection = Connection::over(TcpStream::connect(near_address).unwrap());
    Ok((connection, shaken))
}

/// What stands before a server that knows no TLS.
pub(crate) struct Terminator {
    pub(crate) address: SocketAddr,
    /// The certificates that clients have shown, the newest last; `None` where one showed none.
    pub(crate) shown: Arc<Mutex<Vec<Option<Vec<u8>>>>>,
    /// Whatever name they asked for.
    pub(crate) names: Arc<Mutex<Vec<Option<String>>>>,
}

impl Authority {
    /// What a server of `issued` needs; it asks for certificates of this authority's where it is told.
    pub(crate) fn server(
        &self,
        issued: &Issued,
        asks: bool,
        protocol: &str,
    ) -> rustls::ServerConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if asks {
            let mut roots = RootCertStore::empty();
            let ca = CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap();
            roots.add(ca).unwrap();
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
                Arc::new(roots),
                provider,
            );
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(issued.cert.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        config
    }
}

/// Takes TLS off and passes the bytes on to `to`.
pub(crate) fn terminate(config: rustls::ServerConfig, to: SocketAddr) -> Terminator {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let terminator = Terminator {
        address: listener.local_addr().unwrap(),
        shown: Arc::default(),
        names: Arc::default(),
    };
    let (shown, names) = (Arc::clone(&terminator.shown), Arc::clone(&terminator.names));
    in_runtime(async move {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                return;
            };
            let (acceptor, shown, names) =
                (acceptor.clone(), Arc::clone(&shown), Arc::clone(&names));
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let connection = stream.get_ref().1;
                let first = connection
                    .peer_certificates()
                    .map(|chain| chain[0].to_vec());
                shown.lock().unwrap().push(first);
                let name = connection.server_name().map(str::to_owned);
                names.lock().unwrap().push(name);
                let mut to = tokio::net::TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut to).await;
            });
        }
    });
    terminator
}

/// Passes on to `to` what comes by a unix socket.
pub(crate) fn from_unix(path: PathBuf, to: SocketAddr) {
    let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
    in_runtime(async move {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        loop {
            let Ok((mut stream, _)) = listener.accept().await else {
                return;
            };
            tokio::spawn(async move {
                let mut to = tokio::net::TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut to).await;
            });
        }
    });
}

/// A connection over a unix socket.
pub(crate) fn over_unix(path: &std::path::Path) -> std::io::Result<Connection> {
    let far = std::os::unix::net::UnixStream::connect(path)?;
    let near = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = near.local_addr().unwrap();
    in_runtime(async move {
        far.set_nonblocking(true).unwrap();
        let mut far = tokio::net::UnixStream::from_std(far).unwrap();
        near.set_nonblocking(true).unwrap();
        let near = tokio::net::TcpListener::from_std(near).unwrap();
        let (mut near, _) = near.accept().await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    });
    Ok(Connection::over(TcpStream::connect(address).unwrap()))
}

/// Runs in a thread of its own, which ends with the process.
fn in_runtime(work: impl Future<Output = ()> + Send + 'static) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work);
    });
}
