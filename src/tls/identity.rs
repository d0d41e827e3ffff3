//! What a certificate says of whom it is for, and for how long.

use std::sync::Arc;

use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

/// The longest name, in bytes: that of a holder.
const MAX_NAME: usize = fencegate_filters::tokens::MAX_HOLDER_BYTES;

/// For how long a certificate counts, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// From.
    pub from: i64,
    /// To.
    pub to: i64,
}

impl Validity {
    /// That of a certificate; `None` where it can't be read.
    #[must_use]
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let (_, certificate) = parse_x509_certificate(certificate).ok()?;
        let validity = certificate.validity();
        Some(Self {
            from: validity.not_before.timestamp(),
            to: validity.not_after.timestamp(),
        })
    }
}

/// The name of whom a certificate is for: the first URI among its alternative names (SPIFFE has it
/// there), else the first DNS name, else the common name of its subject. `None` where that is not
/// what a holder can be called: 1 to 128 visible ASCII characters.
#[must_use]
pub fn name_of(certificate: &[u8]) -> Option<Arc<str>> {
    let (_, certificate) = parse_x509_certificate(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    let uri = names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let dns = || {
        names.iter().find_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        })
    };
    let common = || {
        let mut names = certificate.subject().iter_common_name();
        names.next()?.as_str().ok()
    };
    let name = uri.or_else(dns).or_else(common)?;
    let legal = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
    legal.then(|| Arc::from(name))
}
