//! Networks, of proxies that are trusted.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A network: an address and how many of its leading bits count.
///
/// ```
/// use fencegate::config::Cidr;
///
/// let network: Cidr = "10.0.0.0/8".parse()?;
/// assert!(network.contains("10.1.2.3".parse()?));
/// assert!(!network.contains("11.0.0.1".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    network: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// Whether `ip` belongs to the network. An IPv4 address that comes in IPv6's clothes, as on a
    /// dual-stack socket, is the IPv4 address.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        mask(ip.to_canonical(), self.prefix) == Some(self.network)
    }
}

/// `ip` with only its leading bits; `None` when it has fewer.
fn mask(ip: IpAddr, prefix: u8) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => {
            let rest = 32_u32.checked_sub(prefix.into())?;
            let bits = u32::MAX.checked_shl(rest).unwrap_or(0);
            Some(IpAddr::V4((ip.to_bits() & bits).into()))
        }
        IpAddr::V6(ip) => {
            let rest = 128_u32.checked_sub(prefix.into())?;
            let bits = u128::MAX.checked_shl(rest).unwrap_or(0);
            Some(IpAddr::V6((ip.to_bits() & bits).into()))
        }
    }
}

impl FromStr for Cidr {
    type Err = BadCidr;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (ip, prefix) = match text.split_once('/') {
            None => (text, None),
            Some((ip, prefix)) => (ip, Some(prefix)),
        };
        let ip: IpAddr = ip.parse().map_err(|_| BadCidr::Form)?;
        if ip != ip.to_canonical() {
            return Err(BadCidr::Mapped);
        }
        let all = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => all,
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => {
                bits.parse().map_err(|_| BadCidr::Form)?
            }
            Some(_) => return Err(BadCidr::Form),
        };
        let network = mask(ip, prefix).ok_or(BadCidr::Form)?;
        if network != ip {
            return Err(BadCidr::HostBits(Self { network, prefix }));
        }
        Ok(Self { network, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// Why a text is no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadCidr {
    /// Not an address with an optional prefix length.
    Form,
    /// An IPv4 address written as an IPv6 one.
    Mapped,
    /// Bits are set that do not count; the network that was probably meant.
    HostBits(Cidr),
}

impl fmt::Display for BadCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Form => f.write_str("expected a network such as 10.0.0.0/8 or fd00::/8"),
            Self::Mapped => f.write_str("an IPv4 network is written as such, not within IPv6"),
            Self::HostBits(network) => write!(
                f,
                "bits beyond the prefix are set; the network would be {network}"
            ),
        }
    }
}

impl std::error::Error for BadCidr {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        let contains = |network: &str, ip: &str| {
            let network: Cidr = network.parse().unwrap();
            network.contains(ip.parse().unwrap())
        };
        assert!(contains("0.0.0.0/0", "8.8.8.8"));
        assert!(!contains("0.0.0.0/0", "2001:db8::1"));
        assert!(contains("::/0", "2001:db8::1"));
        assert!(contains("10.0.0.0/9", "10.127.255.255"));
        assert!(!contains("10.0.0.0/9", "10.128.0.0"));
        assert!(contains("10.0.0.0/9", "::ffff:10.0.0.1"));
        assert!(contains("2001:db8::1", "2001:db8::1"));
        for bad in [
            "",
            "a",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/33",
            "::/129",
            "10.0.0/8",
        ] {
            assert_eq!(bad.parse::<Cidr>(), Err(BadCidr::Form), "{bad}");
        }
        assert_eq!("::ffff:10.0.0.1".parse::<Cidr>(), Err(BadCidr::Mapped));
        assert!(matches!(
            "10.1.0.0/8".parse::<Cidr>(),
            Err(BadCidr::HostBits(_))
        ));
    }
}
