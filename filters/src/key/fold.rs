//! Case folding, for upstreams that take `A` and `a` for one name (`fence.case: insensitive`).
//!
//! The fold is Unicode's `NFKC_Casefold` (Unicode Standard, section 3.13, R5): full case folding,
//! compatibility normalisation, and default-ignorable characters taken out. It is coarser than
//! what any file system does, which is what a key needs: two names that an upstream takes for one
//! must never have two keys, and two that it tells apart may share one.

use std::borrow::Cow;

use caseless::Caseless;
use unicode_normalization::UnicodeNormalization;

/// Folds a text. ASCII without capitals is returned as it is.
///
/// ```
/// use fencegate_filters::key::fold::fold;
///
/// assert_eq!(fold("Straße"), "strasse");
/// assert_eq!(fold("ＡＢＣ"), "abc");
/// assert_eq!(fold("plain"), "plain");
/// ```
#[must_use]
pub fn fold(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        return if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(text.to_ascii_lowercase())
        } else {
            Cow::Borrowed(text)
        };
    }
    // The standard library knows the newest characters first, so it lower-cases what the table of
    // folds may not have yet. A second fold after the normalisation catches what only that makes foldable, and the
    // ignorable characters go first, so that they never keep two characters from composing.
    Cow::Owned(
        text.chars()
            .filter(|&character| !is_default_ignorable(character))
            .flat_map(char::to_lowercase)
            .nfd()
            .default_case_fold()
            .nfkd()
            .default_case_fold()
            .nfkd()
            .filter(|&character| !is_default_ignorable(character))
            .nfc()
            .collect(),
    )
}

/// The property `Default_Ignorable_Code_Point`, unassigned ranges included, so that it will not
/// change with the version of Unicode.
const fn is_default_ignorable(character: char) -> bool {
    matches!(
        character,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fff8}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    // K11
    #[test]
    fn folds_case_width_and_composition() {
        for (one, other) in [
            ("README", "readme"),
            ("Straße", "STRASSE"),
            ("ﬁle", "FILE"),
            ("Å", "a\u{30a}"),
            ("Ａ", "a"),
            ("Σίσυφος", "ΣΊΣΥΦΟΣ"),
            ("ẞ", "ss"),
            ("K", "k"),
            ("so\u{ad}ft", "SOFT"),
            ("a\u{200b}\u{30a}", "å"),
        ] {
            assert_eq!(fold(one), fold(other), "{one:?} {other:?}");
        }
        assert_ne!(fold("a"), fold("b"));
        assert_ne!(fold("ä"), fold("a"));
    }

    #[test]
    fn every_character_folds_to_what_is_folded() {
        // What is above are ideographs, tags and private use: no case, one form each.
        for character in '\0'..='\u{1ffff}' {
            let once = fold(character.encode_utf8(&mut [0; 4])).into_owned();
            assert_eq!(fold(&once), once, "{character:?}");
            for other in character.to_lowercase() {
                // U+0130 is lower-cased to two characters, each of which folds on its own.
                if character.to_lowercase().count() == 1 {
                    assert_eq!(fold(other.encode_utf8(&mut [0; 4])), once, "{character:?}");
                }
            }
        }
    }

    #[test]
    fn lower_case_ascii_is_borrowed() {
        assert!(matches!(fold("objects/42"), Cow::Borrowed(_)));
    }
}
