//! What holds for every target, whatever its bytes.

use proptest::prelude::*;

use super::tests::{find, opaque, route, router, view};
use super::*;

fn edgy() -> impl Strategy<Value = String> {
    prop::collection::vec(
        prop::sample::select(vec![
            "/",
            "/",
            "objects",
            "42",
            "..",
            ".",
            "%2e",
            "%2F",
            "%5C",
            ";",
            "x",
            "%zz",
            "%00",
            "%6fbjects",
            "policy",
        ]),
        0..8,
    )
    .prop_map(|pieces| format!("/{}", pieces.concat()))
}

/// What a server may do: everything at once.
fn most_lenient(path: &str) -> Vec<String> {
    let decoded = percent_encoding::percent_decode_str(path)
        .decode_utf8_lossy()
        .replace('\\', "/");
    let mut names: Vec<String> = Vec::new();
    for name in decoded.split('/') {
        match name.split(';').next().unwrap() {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name.to_owned()),
        }
    }
    names
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    // K1, K2, K3, K10
    #[test]
    fn what_a_lenient_server_takes_for_a_fenced_path_is_fenced_or_refused(path in edgy()) {
        for (fenced, open) in [
            (route("/objects/{id}"), opaque("/{*path}")),
            (opaque("/objects/{id}"), opaque("/{*path}")),
            (route("/objects/{id}"), route("/{*path}")),
        ] {
            let routes = router([open, fenced]);
            let found = find(&routes, &path);
            let names = most_lenient(&path);
            if names.len() == 2 && names[0] == "objects" {
                prop_assert_ne!(found, Ok(0), "{:?}", path);
            }
        }
    }

    #[test]
    fn no_target_panics_and_captures_hold_together(path in edgy(), query in "[a-c=&;%]{0,8}") {
        let routes = router([
            opaque("/{*a}/policy/{b}"),
            route("/objects/{id}").query(["a"]).unwrap(),
            opaque("/{x}").case(Case::Insensitive),
        ]);
        let request = RequestView { query: Some(&query), ..view(&path) };
        if let Ok(found) = routes.find(&request) {
            prop_assert_eq!(found.captures().len(), routes.routes()[found.index].0.captures().len());
            for (name, value) in found.captures() {
                prop_assert!(name == "a" || !value.is_empty());
                prop_assert!(found.path().contains(value));
            }
        }
    }

    // K4
    #[test]
    fn every_spelling_of_a_path_has_one_route_and_one_key(
        names in prop::collection::vec("[a-z;.é ]{0,4}", 0..5),
        escapes in prop::collection::vec(any::<u8>(), 64),
    ) {
        let routes = router([
            opaque("/{bucket}/{*object}"),
            route("/a/{id}"),
            opaque("/{x}").case(Case::Insensitive),
            route("/{*rest}"),
        ]);
        let plain = names.join("/");
        let spell = |mask: u8| {
            let mut path = String::from("/");
            for (byte, escape) in plain.bytes().zip(escapes.iter().cycle()) {
                match (byte, escape & mask) {
                    (b'/', _) | (b'a'..=b'z' | b'.' | b';', 0) => path.push(char::from(byte)),
                    (_, low) if low & 1 == 0 => path.push_str(&format!("%{byte:02x}")),
                    _ => path.push_str(&format!("%{byte:02X}")),
                }
            }
            path
        };
        let (one, other) = (spell(0x0f), spell(0xf1));
        let (one, other) = (view(&one), view(&other));
        match (routes.find(&one), routes.find(&other)) {
            (Ok(one), Ok(other)) => {
                prop_assert_eq!(one.index, other.index);
                prop_assert_eq!(one.path(), other.path());
                prop_assert_eq!(one.captures(), other.captures());
            }
            (one, other) => prop_assert_eq!(one.is_ok(), other.is_ok()),
        }
    }
}
