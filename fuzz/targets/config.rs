//! Configs: whatever the text, it is read or refused with places that exist in it, and reading it
//! again says the same.

#![no_main]

use std::path::Path;

use fencegate::config::{Config, Problem};
use libfuzzer_sys::fuzz_target;

fn env(name: &str) -> Option<String> {
    match name {
        "SET" => Some("127.0.0.1:8080".to_owned()),
        "EMPTY" => Some(String::new()),
        _ => None,
    }
}

/// Every problem of a text stands in it.
fn check(text: &str, problem: &Problem) {
    assert!(
        problem.line > 0 && problem.column > 0,
        "no place: {problem}"
    );
    // YAML ends lines at a carriage return too, and a text may end in an empty line.
    let lines = text
        .split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'])
        .count();
    assert!(
        problem.line <= lines + 1,
        "line {} of {lines}: {problem}",
        problem.line
    );
    assert!(!problem.message.is_empty());
    // Nothing in it can mislead a terminal.
    assert!(
        !problem.to_string().chars().any(char::is_control),
        "{problem:?}"
    );
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let file = Path::new("config.yaml");
    let read = || Config::parse(text, file, &env);
    match (read(), read()) {
        (Ok(one), Ok(other)) => {
            assert_eq!(format!("{one:?}"), format!("{other:?}"));
            assert!(!one.config.routes.is_empty() && !one.config.listeners.is_empty());
            for route in &one.config.routes {
                let upstream = &route.upstream;
                assert!(!format!("{upstream:?}").is_empty());
            }
            one.warnings.iter().for_each(|warning| check(text, warning));
        }
        (Err(one), Err(other)) => {
            assert_eq!(one, other);
            assert!(!one.as_slice().is_empty());
            one.as_slice()
                .iter()
                .for_each(|problem| check(text, problem));
        }
        _ => panic!("read once, and not again"),
    }
});
