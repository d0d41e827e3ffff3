//! What comes before HTTP on a client's connection: a PROXY header, the handshake of TLS.
//!
//! Both are done within the connection's own task and place, so that a flood of them is shed as any
//! other flood of connections is, and within `timeouts.header`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use fencegate_filters::forwarding::Scheme;
use fencegate_filters::{Peer, Reason};

use super::answer_broken_head;
use super::proxy_header::{self, Origin};
use crate::access::log_not_opened;
use crate::gateway::Settings;
use crate::net::Stream;
use crate::stop::{Stop, Stopping};
use crate::tls::{Protocol, ServerTls, Session};
use crate::wire::{Violation, dismiss};

/// How connections to one listener are opened; a reload puts another way in its place.
#[derive(Debug, Default)]
pub struct Door(ArcSwap<Way>);

/// How a connection is opened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Way {
    /// `None`: without TLS.
    pub tls: Option<ServerTls>,
    /// Whether a PROXY header comes first.
    pub proxy_protocol: bool,
}

impl Door {
    /// A door that is opened in this way.
    #[must_use]
    pub fn new(way: Way) -> Self {
        Self(ArcSwap::from_pointee(way))
    }

    /// How connections are opened from now on.
    pub fn change(&self, way: Way) {
        // What has not changed is kept: with it go the keys of tickets.
        if *self.0.load_full() != way {
            self.0.store(Arc::new(way));
        }
    }

    /// Whether TLS comes first.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.0.load().tls.is_some()
    }

    /// Opens a connection of which nothing has to be known but that it may be used; `None` where
    /// nothing comes of it.
    pub async fn enter(
        &self,
        stream: Stream,
        peer: Option<IpAddr>,
        limit: Duration,
    ) -> Option<Stream> {
        let way = self.0.load_full();
        let Some(tls) = &way.tls else {
            return Some(stream);
        };
        match tokio::time::timeout(limit, shake_hands(tls, stream)).await {
            Ok(Ok((stream, _))) => Some(stream),
            Ok(Err(error)) => {
                log_not_opened(peer, &error);
                None
            }
            Err(_) => None,
        }
    }

    /// `None`: HTTP begins at once.
    pub(super) fn way(&self) -> Option<Arc<Way>> {
        let way = self.0.load();
        (way.tls.is_some() || way.proxy_protocol).then(|| Arc::clone(&way))
    }
}

/// The handshake, with a client that begins it. One that speaks HTTP without it can read what it got
/// wrong; to TLS its bytes are noise.
async fn shake_hands(tls: &ServerTls, mut stream: Stream) -> io::Result<(Stream, Session)> {
    // All that HTTP begins with is a letter, of a method or of HTTP/2's preface. TLS begins with 22.
    let first = stream.peek().await?;
    if first.is_some_and(|first| first.is_ascii_alphabetic()) {
        let violation = Violation {
            reason: Reason::BadRequest,
            detail: "A plain HTTP request was sent to a port for HTTPS: ask again with https://.",
            in_head: true,
        };
        dismiss(stream, answer_broken_head(&violation)).await;
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "HTTP without TLS",
        ));
    }
    tls.accept(stream).await
}

/// Who is on a connection, and what is spoken with them.
pub(super) struct Client {
    pub(super) peer: Peer,
    /// `None`: whatever they begin with.
    pub(super) protocol: Option<Protocol>,
}

impl Client {
    /// One with whom HTTP begins at once.
    pub(super) fn new(address: Option<IpAddr>, scheme: Scheme, settings: &Settings) -> Self {
        let trusted = address.is_some_and(|address| settings.forwarded.trusts(address));
        Self {
            peer: Peer::new(address, scheme).speaking_for_others(trusted),
            protocol: None,
        }
    }
}

impl Way {
    /// Opens a connection; `None` where nothing comes of it.
    pub(super) async fn open(
        &self,
        stream: Stream,
        address: Option<SocketAddr>,
        settings: &Settings,
        stop: &Stopping,
    ) -> Option<(Stream, Client)> {
        let mut stream = stream;
        let mut address = address.map(|address| address.ip());
        let proxy = address;
        let opening = async {
            if self.proxy_protocol {
                if !address.is_some_and(|address| settings.forwarded.trusts(address)) {
                    return Err(io::Error::new(
                        io::ErrorKind::PermissionDenied,
                        "the address is not in trusted_proxies",
                    ));
                }
                if let Origin::Client(client) = proxy_header::read(&mut stream).await? {
                    address = client;
                }
            }
            let Some(tls) = &self.tls else {
                return Ok((stream, Client::new(address, Scheme::Http, settings)));
            };
            let (stream, session) = shake_hands(tls, stream).await?;
            let mut client = Client::new(address, Scheme::Https, settings);
            client.peer = client.peer.with_identity(session.identity);
            client.protocol = session.protocol;
            Ok::<_, io::Error>((stream, client))
        };
        let in_time = async {
            match settings.timeouts.header {
                Some(limit) => tokio::time::timeout(limit, opening)
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
                None => opening.await,
            }
        };
        tokio::select! {
            biased;
            () = stop.reached(Stop::Draining) => None,
            opened = in_time => match opened {
                Ok(opened) => Some(opened),
                Err(error) => {
                    log_not_opened(proxy, &error);
                    None
                }
            },
        }
    }
}
