//! What holds for every path, whatever its bytes.

use proptest::prelude::*;

use super::fold::fold;
use super::*;

const RULES: [PathRules; 2] = [PathRules::Strict, PathRules::Opaque];
const CASES: [Case; 2] = [Case::Sensitive, Case::Insensitive];

/// Paths of the bytes that matter, so that most of them are close to the edge.
fn edgy() -> impl Strategy<Value = String> {
    prop::collection::vec(
        prop::sample::select(vec![
            "/",
            "/",
            "a",
            "b",
            ".",
            "..",
            "%2e",
            "%2F",
            "%2f",
            "%5C",
            "\\",
            ";",
            "%3B",
            "%61",
            "%25",
            "%",
            "%00",
            "%C3%A4",
            "%EF%BC%8F",
            "%ff",
            "|",
            "Ä",
            "A",
        ]),
        0..10,
    )
    .prop_map(|pieces| format!("/{}", pieces.concat()))
}

/// A path, and the same with some of its bytes escaped in either case.
fn aliases() -> impl Strategy<Value = (String, String)> {
    prop::collection::vec((any::<char>(), any::<u8>()), 1..20).prop_map(|characters| {
        let mut one = String::from("/");
        let mut other = String::from("/");
        for (character, how) in characters {
            if character.is_ascii_alphanumeric() && how % 3 == 0 {
                one.push(character);
            } else {
                push_escaped(&mut one, character, how % 2 == 0);
            }
            push_escaped(&mut other, character, how % 5 == 0);
        }
        (one, other)
    })
}

fn push_escaped(text: &mut String, character: char, upper: bool) {
    for byte in character.encode_utf8(&mut [0; 4]).bytes() {
        text.push_str(&if upper {
            format!("%{byte:02X}")
        } else {
            format!("%{byte:02x}")
        });
    }
}

fn read(path: &[u8], rules: PathRules, case: Case) -> Result<String, AmbiguousPath> {
    DecodedPath::read(path, rules, case).map(|path| path.text(rules).to_owned())
}

/// The text as a path that says the same.
fn escape_all(text: &str) -> String {
    let mut path = String::from("/");
    for (at, segment) in text.split('/').enumerate() {
        if at > 0 {
            path.push('/');
        }
        for character in segment.chars() {
            push_escaped(&mut path, character, true);
        }
    }
    path
}

proptest! {
    #[test]
    fn no_bytes_panic(path in prop::collection::vec(any::<u8>(), 0..64)) {
        for rules in RULES {
            for case in CASES {
                let _ = read(&path, rules, case);
            }
        }
        let text = String::from_utf8_lossy(&path);
        let _ = normalize_host(&text);
        let _ = query::value(&text, "a", Case::Insensitive);
        let _ = KeyTemplate::parse(&text);
    }

    // K4
    #[test]
    fn no_two_spellings_have_two_texts((one, other) in aliases()) {
        for rules in RULES {
            for case in CASES {
                prop_assert_eq!(
                    read(one.as_bytes(), rules, case),
                    read(other.as_bytes(), rules, case)
                );
            }
        }
    }

    // K5
    #[test]
    fn what_is_read_reads_the_same_once_escaped_again(path in edgy()) {
        for rules in RULES {
            if let Ok(text) = read(path.as_bytes(), rules, Case::Sensitive) {
                let again = escape_all(&text);
                prop_assert_eq!(read(again.as_bytes(), rules, Case::Sensitive), Ok(text));
            }
        }
    }

    #[test]
    fn what_strict_takes_opaque_takes_alike(path in edgy()) {
        if let Ok(text) = read(path.as_bytes(), PathRules::Strict, Case::Sensitive) {
            let opaque = read(path.as_bytes(), PathRules::Opaque, Case::Sensitive).unwrap();
            prop_assert_eq!(opaque.strip_suffix('/').unwrap_or(&opaque), text);
        }
    }

    #[test]
    fn what_is_read_has_nothing_that_the_rules_refuse(path in edgy()) {
        for rules in RULES {
            if let Ok(text) = read(path.as_bytes(), rules, Case::Sensitive) {
                prop_assert!(!text.chars().any(char::is_control));
                prop_assert!(!text.split('/').any(|segment| matches!(segment, "." | "..")));
                if rules == PathRules::Strict {
                    prop_assert!(!text.contains(['\\', ';']) && !text.contains("//"));
                    prop_assert!(!text.starts_with('/') && !text.ends_with('/'));
                }
            }
        }
    }

    // K11
    #[test]
    fn folding_twice_is_folding_once(text in any::<String>()) {
        let once = fold(&text).into_owned();
        prop_assert_eq!(fold(&once).into_owned(), once);
    }

    // K11
    #[test]
    fn a_text_folds_as_its_upper_and_lower_case_do(text in "[a-zA-ZäöüÄÖÜßéÉñÑλΛшШ0-9/]{0,20}") {
        let folded = fold(&text).into_owned();
        let (lower, upper) = (text.to_lowercase(), text.to_uppercase());
        prop_assert_eq!(fold(&lower), folded.as_str());
        prop_assert_eq!(fold(&upper), folded);
    }

    // K16
    #[test]
    fn a_normal_host_is_its_own_spelling(host in "[a-zA-Z0-9.-]{1,20}(:[0-9]{0,4})?") {
        if let Ok(normal) = normalize_host(&host) {
            prop_assert_eq!(normalize_host(&normal), Ok(normal.clone()));
            let upper = host.to_uppercase();
            prop_assert_eq!(normalize_host(&upper), Ok(normal.clone()));
        }
    }
}
