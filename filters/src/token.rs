//! Fencing tokens: what the client sends, and how two of them compare.
//!
//! ```text
//! token   = [ epoch "." ] counter
//! epoch   = 1*20DIGIT    ; 0 to 2^64-1
//! counter = 1*20DIGIT    ; 0 to 2^64-1
//! ```
//!
//! Tokens compare as the pair (epoch, counter). `42` is `0.42`, leading zeros change nothing, and
//! `0` is no token at all: it is what issuers print for "not held".
//!
//! ```
//! use fencegate_filters::Token;
//!
//! let older: Token = "34".parse()?;
//! let newer: Token = "1.2".parse()?;
//! assert!(older < newer);
//! assert_eq!("0034".parse::<Token>()?, older);
//! assert_eq!(newer.to_string(), "1.2");
//! assert!("+34".parse::<Token>().is_err());
//! # Ok::<(), fencegate_filters::token::MalformedToken>(())
//! ```

use std::fmt;
use std::str::FromStr;

/// The most digits that an epoch or a counter may have.
const MAX_DIGITS: usize = 20;

/// A fencing token: the pair (epoch, counter), ordered in that order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    epoch: u64,
    counter: u64,
}

impl Token {
    /// What a request without a token counts as where it is let through all the same (observe
    /// mode): lower than every token that a client can send.
    pub const NONE: Self = Self {
        epoch: 0,
        counter: 0,
    };

    /// A token from its parts; `None` for `0.0`, which is no token.
    #[must_use]
    pub const fn new(epoch: u64, counter: u64) -> Option<Self> {
        if epoch == 0 && counter == 0 {
            None
        } else {
            Some(Self { epoch, counter })
        }
    }

    /// Reads the value of a token header, or of any other field that holds one token.
    ///
    /// White space around the value must already be stripped, as HTTP does it; a value longer than
    /// any token can be is refused by its length, without being read.
    ///
    /// # Errors
    ///
    /// Everything that the grammar at the top of this module does not produce, and zero.
    pub fn from_bytes(value: &[u8]) -> Result<Self, MalformedToken> {
        if value.is_empty() {
            return Err(MalformedToken::Empty);
        }
        if value.len() > 2 * MAX_DIGITS + 1 {
            return Err(MalformedToken::TooLong);
        }
        let (epoch, counter) = match value.iter().position(|&byte| byte == b'.') {
            None => (0, digits(value)?),
            Some(dot) => {
                let (epoch, rest) = value.split_at(dot);
                (digits(epoch)?, digits(rest.get(1..).unwrap_or_default())?)
            }
        };
        Self::new(epoch, counter).ok_or(MalformedToken::Zero)
    }

    /// The epoch: 0 unless the issuer gave one.
    #[must_use]
    pub const fn epoch(self) -> u64 {
        self.epoch
    }

    /// The counter within the epoch.
    #[must_use]
    pub const fn counter(self) -> u64 {
        self.counter
    }
}

fn digits(part: &[u8]) -> Result<u64, MalformedToken> {
    if part.is_empty() {
        return Err(MalformedToken::NotDigits);
    }
    if part.len() > MAX_DIGITS {
        return Err(MalformedToken::TooLong);
    }
    let mut value: u64 = 0;
    for &byte in part {
        if !byte.is_ascii_digit() {
            return Err(MalformedToken::NotDigits);
        }
        value = value
            .checked_mul(10)
            .and_then(|value| value.checked_add(u64::from(byte - b'0')))
            .ok_or(MalformedToken::TooLarge)?;
    }
    Ok(value)
}

impl FromStr for Token {
    type Err = MalformedToken;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        Self::from_bytes(value.as_bytes())
    }
}

impl fmt::Display for Token {
    /// `42` when the epoch is 0, else `7.42`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.epoch == 0 {
            write!(f, "{}", self.counter)
        } else {
            write!(f, "{}.{}", self.epoch, self.counter)
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({self})")
    }
}

/// Why a value is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MalformedToken {
    /// The value is empty.
    Empty,
    /// A part has more than 20 digits.
    TooLong,
    /// Something other than ASCII digits, with at most one dot between them.
    NotDigits,
    /// A part is above 2^64-1.
    TooLarge,
    /// Zero: what issuers print for "not held".
    Zero,
}

impl fmt::Display for MalformedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the token is empty",
            Self::TooLong => "the token has more than 20 digits in one part",
            Self::NotDigits => "the token is not COUNTER or EPOCH.COUNTER in ASCII digits",
            Self::TooLarge => "the token has a part above 18446744073709551615",
            Self::Zero => "the token is 0, which means that no lock is held",
        })
    }
}

impl std::error::Error for MalformedToken {}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Result<Token, MalformedToken> {
        value.parse()
    }

    #[test]
    fn compares_as_epoch_then_counter() {
        assert!(parse("1.1").unwrap() > parse("18446744073709551615").unwrap());
        assert!(parse("2.1").unwrap() > parse("1.9").unwrap());
        assert_eq!(parse("42"), parse("0.42"));
    }

    #[test]
    fn leading_zeros_change_nothing() {
        assert_eq!(parse("0000000034"), parse("34"));
        assert_eq!(parse("00.034"), parse("34"));
    }

    #[test]
    fn zero_is_no_token() {
        for zero in ["0", "0.0", "00000", "000.00"] {
            assert_eq!(parse(zero), Err(MalformedToken::Zero), "{zero}");
        }
    }

    #[test]
    fn the_largest_part_is_two_to_the_64_less_one() {
        assert_eq!(
            parse("18446744073709551615.18446744073709551615").unwrap(),
            Token::new(u64::MAX, u64::MAX).unwrap()
        );
        assert_eq!(parse("18446744073709551616"), Err(MalformedToken::TooLarge));
        assert_eq!(parse("99999999999999999999"), Err(MalformedToken::TooLarge));
    }

    #[test]
    fn anything_but_digits_is_malformed() {
        for value in [
            "+34",
            "-1",
            "-0",
            "3 4",
            " 34",
            "34 ",
            "34;v=1",
            "\"34\"",
            "3.4e1",
            "0x22",
            "34_0",
            "34.",
            ".34",
            ".",
            "1.2.3",
            "٣٤",
            "34\u{a0}",
            "\u{feff}34",
            "3\x004",
            "34,99",
            "",
        ] {
            assert!(parse(value).is_err(), "{value:?}");
        }
    }

    #[test]
    fn a_value_too_long_is_refused_by_its_length() {
        assert_eq!(parse(&"1".repeat(10_000)), Err(MalformedToken::TooLong));
        assert_eq!(parse(&"0".repeat(21)), Err(MalformedToken::TooLong));
    }

    #[test]
    fn prints_what_it_reads() {
        for value in ["1", "42", "7.42", "7.0"] {
            assert_eq!(parse(value).unwrap().to_string(), value);
        }
    }
}
