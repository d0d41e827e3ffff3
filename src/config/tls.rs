//! Certificates and keys.

use std::path::{Path, PathBuf};

use super::choice::ClientAuth;
use super::decode::Decoder;
use super::model::Tls;
use super::problem::Spanned;
use super::tree::{Kind, Node};
use crate::tls::{Bad, Protocol, ServerTls, pem};

/// Reads the `tls` of a listener.
pub(super) fn server(d: &mut Decoder<'_>, node: &Node, protocols: &[Protocol]) -> Option<Tls> {
    let mut map = d.map(node);
    let cert = map.require(d, "cert").and_then(|node| file(d, node));
    let key = map.require(d, "key").and_then(|node| file(d, node));
    let authorities = map.get("client_ca");
    let ca = authorities.and_then(|node| file(d, node));
    let implied = match authorities {
        Some(_) => ClientAuth::Required,
        None => ClientAuth::None,
    };
    let asked = map.get("client_auth");
    let client_auth = asked.and_then(|node| d.choice(node)).unwrap_or(implied);
    map.finish(d);
    if let (Some(node), None) = (asked, authorities)
        && client_auth != ClientAuth::None
    {
        let message = "certificates of clients need a client_ca that they come from";
        d.problem(&node.at, message);
        return None;
    }
    if authorities.is_some() && ca.is_none() {
        return None;
    }
    let (cert, key) = (cert?, key?);
    let authorities = ca.as_ref().map(|ca| ca.bytes.as_slice());
    match ServerTls::new(&cert.bytes, &key.bytes, authorities, client_auth, protocols) {
        Ok(server) => Some(Tls {
            cert: cert.path,
            server,
        }),
        Err(all) => {
            for bad in all {
                let (file, what) = match bad {
                    Bad::Certificate(what) => (&cert, what),
                    Bad::Key(what) => (&key, what),
                    Bad::Authorities(what) => (ca.as_ref().unwrap_or(&cert), what),
                };
                d.problem(&file.path.at, cannot_use(&file.path.value, what));
            }
            None
        }
    }
}

/// The `tls` of the gateway's own APIs, which may be left empty.
pub(super) fn of_api(d: &mut Decoder<'_>, node: &Node) -> Option<Tls> {
    match &node.kind {
        Kind::Map(entries) if entries.is_empty() => None,
        _ if node.is_null() => None,
        _ => server(d, node, &[Protocol::Http1]),
    }
}

/// A file that has been read.
pub(super) struct Read {
    pub(super) path: Spanned<PathBuf>,
    pub(super) bytes: Vec<u8>,
}

/// Reads a file whose path is relative to the config file.
pub(super) fn file(d: &mut Decoder<'_>, node: &Node) -> Option<Read> {
    let written = d.spanned(node)?;
    let base = d.reporter.file().parent().unwrap_or(Path::new(""));
    let path = Spanned::new(base.join(&written.value), written.at);
    d.files.push(path.value.clone());
    match pem::read(&path.value) {
        Ok(bytes) => Some(Read { path, bytes }),
        Err(error) => {
            let message = format!("can't read {}: {error}", path.value.display());
            d.problem(&path.at, message);
            None
        }
    }
}

pub(super) fn cannot_use(path: &Path, what: impl std::fmt::Display) -> String {
    format!("can't use {}: {what}", path.display())
}
