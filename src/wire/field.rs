//! One field line, in a head or in trailers (RFC 9112, section 5; RFC 9110, section 5).

use fencegate_filters::Reason;

use super::Violation;

/// No registered name comes near it, and peers have kept name lengths in one byte.
const MAX_NAME_BYTES: usize = 256;

/// Splits a field line, without its CRLF, into its name and its value, stripped of white space
/// around it. Every byte of both is judged.
pub(super) fn split(line: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    let end = line
        .iter()
        .position(|&byte| !is_tchar(byte))
        .unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    let Some((b':', value)) = rest.split_first().map(|(byte, value)| (*byte, value)) else {
        return Err(Violation::bad(match (name, rest.first()) {
            // RFC 9112, section 5.2: a server must refuse obs-fold, or replace it.
            ([], Some(b' ' | b'\t')) => "A header line must not start with white space.",
            // RFC 9112, section 5.1: white space before the colon must be refused.
            (_, Some(b' ' | b'\t')) => {
                "White space must not stand between a header's name and its colon."
            }
            (_, Some(_)) => "A header's name has a character that is not allowed there.",
            (_, None) => "A header line has no colon.",
        }));
    };
    if name.is_empty() {
        return Err(Violation::bad("A header has an empty name."));
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(Violation::head(
            Reason::HeadersTooLarge,
            "A header's name is longer than 256 bytes.",
        ));
    }
    if has_control(value) {
        return Err(Violation::bad("A header's value has a control character."));
    }
    Ok((name, trim(value)))
}

/// RFC 9110, section 5.6.2.
pub(super) fn is_tchar(byte: u8) -> bool {
    TCHAR.get(usize::from(byte)).copied().unwrap_or(false)
}

/// Whether there is a control character but HTAB (RFC 9110, section 5.5). It has no early exit, so
/// that it compiles to vector code: good values are the ordinary case.
pub(super) fn has_control(bytes: &[u8]) -> bool {
    bytes.iter().fold(false, |bad, &byte| {
        bad | ((byte < 0x20) & (byte != b'\t')) | (byte == 0x7f)
    })
}

/// Strips OWS (RFC 9110, section 5.6.3), which is narrower than what Rust calls white space.
pub(super) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

static TCHAR: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    loop {
        #[allow(
            clippy::indexing_slicing,
            reason = "it is computed by the compiler, and a u8 is below 256"
        )]
        let slot = &mut table[byte as usize];
        *slot = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        if byte == u8::MAX {
            break table;
        }
        byte += 1;
    }
};
