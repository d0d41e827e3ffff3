//! The PROXY protocol, version 2: what a proxy that passes on bytes says of whose they are.
//!
//! The header comes before everything else and says how long it is, so not a byte behind it is read.
//! Version 1 is text that ends somewhere, and is refused.

use std::io;
use std::net::IpAddr;

use ppp::v2::{Addresses, Command, Header, Protocol};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The part that all have, of which the last two bytes are the length of the rest.
const FIXED: usize = 16;

/// The longest rest: that of one with all that is defined is far shorter.
const MOST: usize = 4096;

/// Whose bytes follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The proxy's own, as when it asks whether it is answered here.
    Proxy,
    /// Those of a client at this address; `None`: at none, as on a unix socket, or at one that
    /// the proxy does not know.
    Client(Option<IpAddr>),
}

/// Reads the header from `stream`.
///
/// # Errors
///
/// `InvalidData` where it is none, and as the system says.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Origin> {
    let broken = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut header = vec![0; FIXED];
    stream.read_exact(&mut header).await?;
    // A version of its own would be read as another's length.
    if !header.starts_with(ppp::v2::PROTOCOL_PREFIX) {
        return Err(broken("no PROXY header of version 2"));
    }
    let length = match header.as_slice() {
        [.., high, low] => usize::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    };
    if length > MOST {
        return Err(broken("a PROXY header that is too long"));
    }
    header.resize(FIXED + length, 0);
    let rest = header.get_mut(FIXED..).unwrap_or_default();
    stream.read_exact(rest).await?;
    let header = Header::try_from(header.as_slice());
    let header = header.map_err(|_| broken("a broken PROXY header"))?;
    match (header.command, header.protocol) {
        (Command::Local, _) => return Ok(Origin::Proxy),
        (Command::Proxy, Protocol::Datagram) => {
            return Err(broken("a PROXY header of datagrams"));
        }
        (Command::Proxy, Protocol::Stream | Protocol::Unspecified) => {}
    }
    Ok(match header.addresses {
        Addresses::IPv4(of) => Origin::Client(Some(of.source_address.into())),
        Addresses::IPv6(of) => Origin::Client(Some(of.source_address.into())),
        // A client that the proxy can't name is still not the proxy, which is believed what it says.
        Addresses::Unix(_) | Addresses::Unspecified => Origin::Client(None),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version_and_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        bytes.extend([version_and_command, family]);
        bytes.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    async fn origin(mut bytes: Vec<u8>) -> io::Result<Origin> {
        bytes.extend(b"GET");
        let mut rest = bytes.as_slice();
        let origin = read(&mut rest).await;
        assert!(
            origin.is_err() || rest == b"GET",
            "nothing behind it is read"
        );
        origin
    }

    #[tokio::test]
    async fn headers_of_version_2_say_whose_bytes_follow() {
        let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 1, 1, 0, 80];
        let mut v6 = [0_u8; 36];
        v6[15] = 9;
        let client = |text: &str| Origin::Client(Some(text.parse().unwrap()));
        let with_more = [&v4[..], &[4, 0, 1, 0]].concat();
        for (bytes, expected) in [
            (header(0x21, 0x11, &v4), client("192.0.2.7")),
            (header(0x21, 0x11, &with_more), client("192.0.2.7")),
            (header(0x21, 0x21, &v6), client("::9")),
            (header(0x21, 0x31, &[0; 216]), Origin::Client(None)),
            (header(0x21, 0x00, &[]), Origin::Client(None)),
            (header(0x20, 0x00, &[]), Origin::Proxy),
            (header(0x20, 0x11, &v4), Origin::Proxy),
        ] {
            assert_eq!(origin(bytes.clone()).await.unwrap(), expected, "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn all_others_are_refused() {
        let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 1, 1, 0, 80];
        for bytes in [
            b"PROXY TCP4 192.0.2.7 10.0.0.1 257 80\r\n".to_vec(),
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            header(0x11, 0x11, &v4),
            header(0x31, 0x11, &v4),
            header(0x22, 0x11, &v4),
            header(0x21, 0x12, &v4),
            header(0x21, 0x41, &v4),
            header(0x21, 0x13, &v4),
            header(0x21, 0x11, &v4[..11]),
            header(0x21, 0x21, &v4),
            header(0x21, 0x11, &[0; MOST + 1]),
            header(0x21, 0x11, &v4)[..20].to_vec(),
        ] {
            let length = bytes.len();
            let mut rest = bytes.as_slice();
            assert!(read(&mut rest).await.is_err(), "{length} bytes: {bytes:?}");
        }
    }
}
