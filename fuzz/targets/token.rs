//! Tokens, from bytes and from a header, against a reader that is naive on purpose.

#![no_main]

use fencegate_filters::{Reason, Token, names, tokens};
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;

/// What the grammar says, by way of text and big numbers.
fn naive(value: &[u8]) -> Option<(u64, u64)> {
    let text = std::str::from_utf8(value).ok()?;
    let (epoch, counter) = match text.split_once('.') {
        Some(parts) => parts,
        None => ("0", text),
    };
    let number = |part: &str| {
        let legal =
            (1..=20).contains(&part.len()) && part.chars().all(|c| "0123456789".contains(c));
        let value = part
            .bytes()
            .filter(|_| legal)
            .fold(0_u128, |value, digit| value * 10 + u128::from(digit - b'0'));
        u64::try_from(value).ok().filter(|_| legal)
    };
    let token = (number(epoch)?, number(counter)?);
    (token != (0, 0)).then_some(token)
}

fn parts(token: Token) -> (u64, u64) {
    (token.epoch(), token.counter())
}

fuzz_target!(|data: &[u8]| {
    let read = Token::from_bytes(data).ok();
    assert_eq!(read.map(parts), naive(data), "{}", data.escape_ascii());
    if let Some(token) = read {
        let printed = token.to_string();
        assert_eq!(printed.parse(), Ok(token), "{printed}");
        assert_eq!(printed.len(), printed.trim_start_matches('+').len());
        assert!(token > Token::NONE);
    }
    // Two tokens compare as their pairs do.
    let at = data
        .iter()
        .position(|&byte| byte == b'\n')
        .unwrap_or(data.len());
    let (one, other) = data.split_at(at);
    if let (Ok(one), Ok(other)) = (
        Token::from_bytes(one),
        Token::from_bytes(other.get(1..).unwrap_or_default()),
    ) {
        assert_eq!(one.cmp(&other), parts(one).cmp(&parts(other)));
    }
    // As header lines: the first byte of each says under which name it comes.
    let accepted = [names::FENCING_TOKEN.clone(), names::X_FENCING_TOKEN.clone()];
    let mut headers = HeaderMap::new();
    let mut lines = Vec::new();
    for line in data.split(|&byte| byte == b'\n').take(4) {
        let Some((name, value)) = line.split_first() else {
            continue;
        };
        let name = match name % 4 {
            0 | 1 => accepted[0].clone(),
            2 => accepted[1].clone(),
            _ => HeaderName::from_static("fencing-tokens"),
        };
        let Ok(legal) = HeaderValue::from_bytes(value) else {
            continue;
        };
        if accepted.contains(&name) {
            lines.push(value);
        }
        headers.append(name, legal);
    }
    let found = tokens::read_tokens(&headers, &accepted);
    match lines[..] {
        [] => assert!(matches!(found, Ok(None))),
        [line] => {
            let start = line.iter().position(|byte| !b" \t".contains(byte));
            let end = line.iter().rposition(|byte| !b" \t".contains(byte));
            let value = start
                .zip(end)
                .map_or(&b""[..], |(start, end)| &line[start..=end]);
            match (found, naive(value)) {
                (Ok(Some(token)), Some(expected)) => assert_eq!(parts(token), expected),
                (Err(refusal), None) => assert_eq!(refusal.reason, Reason::MalformedToken),
                (found, expected) => panic!("{found:?} for {expected:?}"),
            }
        }
        _ => assert_eq!(
            found.err().map(|refusal| refusal.reason),
            Some(Reason::MalformedToken)
        ),
    }
});
