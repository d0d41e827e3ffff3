//! The judge of client bytes: every verdict is the same however the bytes were split.

use fencegate::wire::{Guard, HeadLimits, Next, Violation};
use fencegate_filters::Reason;
use proptest::prelude::*;

const LIMITS: HeadLimits = HeadLimits {
    header_bytes: 2048,
    header_count: 10,
    target_bytes: 512,
};

/// What became of a stream: the bytes that passed, where requests ended, and what stopped it.
#[derive(Debug, PartialEq)]
struct Verdict {
    passed: Vec<u8>,
    ends: Vec<usize>,
    violation: Option<Violation>,
}

fn judge<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Verdict {
    judge_showing(pieces, true)
}

/// `bodies`: whether bodies whose length was given are shown to the guard, or only told to have passed.
fn judge_showing<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, bodies: bool) -> Verdict {
    let mut guard = Guard::new(LIMITS);
    let mut pending = Vec::new();
    let mut verdict = Verdict {
        passed: Vec::new(),
        ends: Vec::new(),
        violation: None,
    };
    for mut piece in pieces {
        if !bodies && pending.is_empty() {
            let left = usize::try_from(guard.body_left()).unwrap_or(usize::MAX);
            let (body, behind) = piece.split_at(left.min(piece.len()));
            guard.pass_body(body.len() as u64);
            verdict.passed.extend_from_slice(body);
            piece = behind;
        }
        pending.extend_from_slice(piece);
        loop {
            let seen = guard.inspect(&pending);
            verdict.passed.extend(pending.drain(..seen.pass));
            match seen.next {
                Next::More => break,
                Next::Boundary => {
                    verdict.ends.push(verdict.passed.len());
                    guard.next_request();
                    assert!(guard.in_head());
                }
                Next::Violation(violation) => {
                    verdict.violation = Some(violation);
                    return verdict;
                }
            }
        }
    }
    verdict
}

/// Whole, byte by byte, and in two at every point.
fn judge_every_way(bytes: &[u8]) -> Verdict {
    let whole = judge([bytes]);
    assert_eq!(
        judge(bytes.chunks(1)),
        whole,
        "byte by byte: {}",
        bytes.escape_ascii()
    );
    assert_eq!(
        judge_showing(bytes.chunks(1), false),
        whole,
        "bodies not shown: {}",
        bytes.escape_ascii()
    );
    for at in 0..bytes.len() {
        let (left, right) = bytes.split_at(at);
        assert_eq!(
            judge([left, right]),
            whole,
            "split at {at}: {}",
            bytes.escape_ascii()
        );
    }
    whole
}

#[track_caller]
fn refuses_head(head: impl AsRef<[u8]>, reason: Reason) {
    let head = head.as_ref();
    let verdict = judge_every_way(head);
    let violation = verdict
        .violation
        .unwrap_or_else(|| panic!("passed: {}", head.escape_ascii()));
    assert_eq!(
        violation.reason,
        reason,
        "{violation}: {}",
        head.escape_ascii()
    );
    assert!(
        violation.in_head && verdict.passed.is_empty(),
        "{}",
        head.escape_ascii()
    );
}

#[track_caller]
fn refuses_field(line: impl AsRef<[u8]>, reason: Reason) {
    let mut head = b"PUT /a HTTP/1.1\r\nHost: a\r\n".to_vec();
    head.extend_from_slice(line.as_ref());
    head.extend_from_slice(b"\r\n\r\n");
    refuses_head(&head, reason);
}

const CHUNKED: &str = "PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

/// `good` is the part of the body that passes before the violation.
#[track_caller]
fn refuses_chunks(good: &str, bad: impl AsRef<[u8]>, reason: Reason) {
    let mut bytes = format!("{CHUNKED}{good}").into_bytes();
    let passes = bytes.len();
    bytes.extend_from_slice(bad.as_ref());
    let verdict = judge_every_way(&bytes);
    let violation = verdict
        .violation
        .unwrap_or_else(|| panic!("passed: {}", bytes.escape_ascii()));
    assert_eq!(
        violation.reason,
        reason,
        "{violation}: {}",
        bytes.escape_ascii()
    );
    assert!(!violation.in_head);
    assert_eq!(verdict.passed.len(), passes, "{}", bytes.escape_ascii());
}

#[track_caller]
fn passes(bytes: impl AsRef<[u8]>, requests: usize) {
    let bytes = bytes.as_ref();
    let verdict = judge_every_way(bytes);
    assert_eq!(verdict.violation, None, "{}", bytes.escape_ascii());
    assert_eq!(verdict.passed, bytes);
    assert_eq!(verdict.ends.len(), requests);
    assert_eq!(verdict.ends.last(), Some(&bytes.len()));
}

#[test]
fn well_formed_requests_pass_unchanged() {
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "get /a?b=c&d=%20 HTTP/1.1\r\nhOST:a\r\nX:\r\nY: \t b c\t \r\n\r\n",
        "GET http://a.example:80/b HTTP/1.1\r\nHost: a.example:80\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
        "GET /a?q=[x]{y}| HTTP/1.1\r\nHost: a\r\n\r\n",
        "PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n\r\n\r\n\0",
        "PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 0005\r\n\r\nhello",
        "PUT /a HTTP/1.0\r\nContent-Length:\t5 \r\n\r\nhello",
        "PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \t CHUNKED \r\n\r\n0\r\n\r\n",
        "PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:chunked\r\n\r\n5\r\nhello\r\n00A;x=\"y z\";w\r\n0123456789\r\n000\r\nX-Sum: 1\r\nY:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    ] {
        passes(request, 1);
    }
    passes(
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Name: caf\xe9 \xff\r\n\r\n",
        1,
    );
}

/// S23
#[test]
fn pipelined_requests_pass_one_by_one() {
    let one = "PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
    let two =
        "\r\nPUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    let three = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    passes(format!("{one}{two}{three}{three}"), 4);
    let verdict = judge_every_way(format!("{one}{three}BAD\r\n").as_bytes());
    assert_eq!(verdict.passed, format!("{one}{three}").into_bytes());
    assert_eq!(
        verdict.violation.map(|violation| violation.reason),
        Some(Reason::BadRequest)
    );
}

#[test]
fn bytes_after_a_request_wait_for_a_word() {
    let head = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n";
    let bytes = [&head[..], b"\0\x01\r\n\r\n"].concat();
    let mut guard = Guard::new(LIMITS);
    let seen = guard.inspect(&bytes);
    assert_eq!((seen.pass, seen.next), (head.len(), Next::Boundary));
    assert_eq!(guard.inspect(&bytes[head.len()..]).pass, 0);
    guard.tunnel();
    let seen = guard.inspect(&bytes[head.len()..]);
    assert_eq!((seen.pass, seen.next), (6, Next::More));
}

/// T12, S2, S10
#[test]
fn control_bytes_in_a_value_are_refused() {
    for byte in (0..=0x1f_u8).chain([0x7f]) {
        if !matches!(byte, b'\t' | b'\n') {
            refuses_field(
                [b"Fencing-Token: 3", &[byte][..], b"4"].concat(),
                Reason::BadRequest,
            );
        }
    }
    // The last CR of two is the line's end, and the first is bare.
    refuses_field("Fencing-Token: 34\r", Reason::BadRequest);
}

/// T16
#[test]
fn folded_headers_are_refused() {
    refuses_field("Fencing-Token: 3\r\n 4", Reason::BadRequest);
    refuses_field("Fencing-Token: 3\r\n\t4", Reason::BadRequest);
    refuses_head("GET / HTTP/1.1\r\n Host: a\r\n\r\n", Reason::BadRequest);
    refuses_field("X: 1\r\n ", Reason::BadRequest);
}

/// T19
#[test]
fn white_space_before_the_colon_is_refused() {
    refuses_field("Fencing-Token : 34", Reason::BadRequest);
    refuses_field("Content-Length\t: 5", Reason::BadRequest);
}

/// T26
#[test]
fn empty_field_names_are_refused() {
    refuses_field(": 34", Reason::BadRequest);
    refuses_field(":", Reason::BadRequest);
}

/// T27
#[test]
fn huge_field_names_are_too_large() {
    refuses_field(format!("{}: 1", "a".repeat(257)), Reason::HeadersTooLarge);
    refuses_field(format!("{}: 1", "a".repeat(1500)), Reason::HeadersTooLarge);
    refuses_head(
        format!("GET / HTTP/1.1\r\n{}", "a".repeat(4000)),
        Reason::HeadersTooLarge,
    );
}

#[test]
fn field_names_are_tokens() {
    for byte in 0..=u8::MAX {
        let line = [b"Fencing", &[byte][..], b"Token: 34"].concat();
        if byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte) {
            passes([b"GET / HTTP/1.1\r\n", &line[..], b"\r\n\r\n"].concat(), 1);
        } else if byte != b':' && byte != b'\n' {
            refuses_field(&line, Reason::BadRequest);
        }
    }
    refuses_field("no colon", Reason::BadRequest);
    refuses_field("nocolon", Reason::BadRequest);
}

/// S1
#[test]
fn length_and_coding_together_are_refused_in_either_order() {
    refuses_field(
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        Reason::BadRequest,
    );
    refuses_field(
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        Reason::BadRequest,
    );
    refuses_field(
        "transfer-encoding: chunked\r\nX: 1\r\ncontent-length: 0",
        Reason::BadRequest,
    );
}

/// S2
#[test]
fn hidden_chunked_is_refused() {
    for value in [
        "",
        " ",
        "xchunked",
        "chunkedx",
        "chunked, chunked",
        "chunked,",
        ",chunked",
        "identity",
        "identity, chunked",
        "chunked, identity",
        "chunked, gzip",
        "\"chunked\"",
        "chunked;q=1",
        "chun ked",
        "x, chunked",
        "chunked\tx",
        "gzip,",
        ",",
        "gzip, xchunked",
        "gzip chunked",
        "ch\u{17f}nked",
        "chun\u{212a}ed",
    ] {
        refuses_field(format!("Transfer-Encoding: {value}"), Reason::BadRequest);
    }
    for byte in ["\x0b", "\x0c", "\0", "\r"] {
        refuses_field(
            format!("Transfer-Encoding: {byte}chunked"),
            Reason::BadRequest,
        );
        refuses_field(
            format!("Transfer-Encoding: chunked{byte}"),
            Reason::BadRequest,
        );
    }
    refuses_field(
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        Reason::BadRequest,
    );
    refuses_field(
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        Reason::BadRequest,
    );
    refuses_field("Transfer-Encoding:\r\n chunked", Reason::BadRequest);
}

/// S3
#[test]
fn other_codings_are_not_implemented() {
    for value in [
        "gzip, chunked",
        "gzip",
        "deflate,gzip , chunked",
        "GZIP",
        "br, Chunked",
    ] {
        refuses_field(
            format!("Transfer-Encoding: {value}"),
            Reason::NotImplemented,
        );
    }
}

/// S4
#[test]
fn repeated_lengths_are_refused() {
    refuses_field("Content-Length: 5\r\nContent-Length: 6", Reason::BadRequest);
    refuses_field("Content-Length: 5\r\nContent-Length: 5", Reason::BadRequest);
    refuses_field("Content-Length: 5, 5", Reason::BadRequest);
}

/// S5
#[test]
fn lengths_that_are_no_plain_number_are_refused() {
    for value in [
        "",
        " ",
        "+5",
        "-0",
        "-5",
        "0x5",
        "5 5",
        "5;",
        "5.0",
        "1e1",
        "\"5\"",
        "5a",
        "٥",
        "9223372036854775808",
        "18446744073709551616",
        "99999999999999999999999999",
        "000000000000000000005",
    ] {
        refuses_field(format!("Content-Length: {value}"), Reason::BadRequest);
    }
    let verdict =
        judge_every_way(b"PUT / HTTP/1.1\r\nContent-Length: 9223372036854775807\r\n\r\nx");
    assert_eq!(verdict.violation, None);
}

/// S6
#[test]
fn codings_on_http_1_0_are_refused() {
    refuses_head(
        "PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        Reason::BadRequest,
    );
    refuses_head(
        "PUT / HTTP/1.0\r\nTransfer-Encoding: gzip\r\n\r\n",
        Reason::BadRequest,
    );
}

/// S7
#[test]
fn chunk_sizes_are_hexadecimal_digits_only() {
    for size in [
        "",
        "0x5",
        "+5",
        "-5",
        "_5",
        "5_",
        "5 ",
        " 5",
        "5\t",
        "g",
        "11111111111111111",
        "00000000000000005",
        "8000000000000000",
        "ffffffffffffffff",
        "5,",
    ] {
        refuses_chunks("", format!("{size}\r\n"), Reason::BadRequest);
        refuses_chunks("2\r\nhi\r\n", format!("{size}\r\n"), Reason::BadRequest);
    }
    let verdict = judge_every_way(format!("{CHUNKED}7FFFFFFFFFFFFFFF\r\nhello").as_bytes());
    assert_eq!(verdict.violation, None);
}

/// S8
#[test]
fn chunk_lines_end_in_crlf_and_have_no_control_bytes() {
    refuses_chunks("", "5\n", Reason::BadRequest);
    refuses_chunks("", "5;a\nhello", Reason::BadRequest);
    refuses_chunks("", "5;a\rb\r\nhello", Reason::BadRequest);
    refuses_chunks("", "5;a\0b\r\nhello", Reason::BadRequest);
    refuses_chunks("", "5;a\x7f\r\nhello", Reason::BadRequest);
    refuses_chunks("", "5\r\r\n", Reason::BadRequest);
    refuses_chunks("5\r\nhello\r\n", "0\n\n", Reason::BadRequest);
}

/// S9
#[test]
fn chunk_extensions_are_bounded() {
    refuses_chunks("", format!("5;{}\r\n", "a".repeat(256)), Reason::BadRequest);
    refuses_chunks("", format!("5;{}", "a".repeat(1000)), Reason::BadRequest);
    passes(
        format!("{CHUNKED}2;{}\r\nhi\r\n0\r\n\r\n", "a".repeat(255)),
        1,
    );
    let chunk = format!("1;{}\r\na\r\n", "a".repeat(255));
    let verdict = judge([format!("{CHUNKED}{}", chunk.repeat(65)).as_bytes()]);
    assert_eq!(verdict.passed.len(), CHUNKED.len() + 64 * chunk.len());
    assert_eq!(
        verdict.violation.map(|violation| violation.reason),
        Some(Reason::BadRequest)
    );
}

/// S10
#[test]
fn bare_line_ends_are_refused() {
    refuses_head("GET / HTTP/1.1\nHost: a\r\n\r\n", Reason::BadRequest);
    refuses_head("GET / HTTP/1.1\r\nHost: a\n\r\n", Reason::BadRequest);
    refuses_head("GET / HTTP/1.1\r\nHost: a\r\n\n", Reason::BadRequest);
    refuses_head("GET / HTTP/1.1\rHost: a\r\n\r\n", Reason::BadRequest);
    refuses_head(
        "GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
        Reason::BadRequest,
    );
    refuses_head("GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", Reason::BadRequest);
    refuses_head("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Reason::BadRequest);
    refuses_head(
        "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        Reason::BadRequest,
    );
    refuses_head("\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", Reason::BadRequest);
}

/// S11
#[test]
fn chunks_longer_than_their_size_break_the_body() {
    refuses_chunks("2\r\nhi", "hi\r\n", Reason::BadRequest);
    refuses_chunks("2\r\nhi", "\n0\r\n", Reason::BadRequest);
    refuses_chunks("2\r\nhi", "\rx", Reason::BadRequest);
}

#[test]
fn trailers_obey_the_rules_of_headers() {
    refuses_chunks("0\r\n", "X : 1\r\n", Reason::BadRequest);
    refuses_chunks("0\r\n", "X: 1\n", Reason::BadRequest);
    refuses_chunks("0\r\nX: 1\r\n", " 2\r\n", Reason::BadRequest);
    refuses_chunks("0\r\n", "X: \0\r\n", Reason::BadRequest);
    refuses_chunks("0\r\n", "GET / HTTP/1.1\r\n", Reason::BadRequest);
    refuses_chunks(
        &format!("0\r\n{}", "X: 1\r\n".repeat(10)),
        "X: 1\r\n",
        Reason::HeadersTooLarge,
    );
    refuses_chunks(
        "0\r\n",
        format!("X: {}", "a".repeat(3000)),
        Reason::HeadersTooLarge,
    );
}

/// R4
#[test]
fn large_heads_are_refused_as_what_is_large_in_them() {
    refuses_head(
        format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(512)),
        Reason::UriTooLong,
    );
    refuses_head(format!("GET /{}", "a".repeat(3000)), Reason::UriTooLong);
    passes(
        format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(511)),
        1,
    );
    refuses_field("X: 1\r\n".repeat(10), Reason::HeadersTooLarge);
    refuses_field(format!("X: {}", "a".repeat(2048)), Reason::HeadersTooLarge);
    let frame = "GET / HTTP/1.1\r\nX: \r\n\r\n".len();
    passes(
        format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(2048 - frame)),
        1,
    );
    refuses_head(
        format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(2049 - frame)),
        Reason::HeadersTooLarge,
    );
}

#[test]
fn request_lines_are_exact() {
    for line in [
        "GET /",
        "GET / ",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        " GET / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET\t/ HTTP/1.1",
        "GET / HTTP/1.2",
        "GET / HTTP/2.0",
        "GET / HTTP/0.9",
        "GET / HTTP/11",
        "GET / http/1.1",
        "GET / HTTP/1.1x",
        "PRI * HTTP/2.0",
        "GET HTTP/1.1",
        "GET /a b HTTP/1.1",
        "G(T / HTTP/1.1",
        "/ HTTP/1.1",
        "GET / HTTP/1.10",
        "GET http:// HTTP/1.1",
        "GET a/b HTTP/1.1",
        "GET /\u{e9} HTTP/1.1",
        "GET /\0 HTTP/1.1",
        "GET /\x7f HTTP/1.1",
        "GET /<a> HTTP/1.1",
        "GET /a?<> HTTP/1.1",
        "HTTP/1.1",
        "GET",
    ] {
        refuses_head(format!("{line}\r\nHost: a\r\n\r\n"), Reason::BadRequest);
    }
    refuses_head(
        format!("{} / HTTP/1.1\r\n\r\n", "A".repeat(65)),
        Reason::BadRequest,
    );
}

/// K15, as far as it is decided on the bytes.
#[test]
fn two_hosts_are_refused() {
    refuses_head(
        "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n",
        Reason::BadRequest,
    );
}

#[test]
fn binary_clients_are_refused_at_the_first_byte() {
    refuses_head(b"\x16\x03\x01\x02", Reason::BadRequest);
    refuses_head(b"\0", Reason::BadRequest);
}

/// What passes here must parse above, where a failure would be answered without a body.
#[test]
fn targets_that_pass_are_uris() {
    for byte in 0..=u8::MAX {
        for (before, after) in [
            ("/", ""),
            ("/a?", "b"),
            ("http://a/", ""),
            ("http://", ""),
            ("", ""),
        ] {
            let target = [before.as_bytes(), &[byte], after.as_bytes()].concat();
            let head = [b"GET ", &target[..], b" HTTP/1.1\r\n\r\n"].concat();
            if judge([&head[..]]).violation.is_none() {
                assert!(
                    http::Uri::try_from(&target[..]).is_ok(),
                    "{}",
                    target.escape_ascii()
                );
            }
        }
    }
}

/// Bytes as an attacker would pick them.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let fragment = prop::sample::select(vec![
        "GET / HTTP/1.1\r\n",
        "PUT /a HTTP/1.0\r\n",
        "Host: a\r\n",
        "Content-Length: 3\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip\r\n",
        "\r\n",
        "\n",
        "\r",
        "abc",
        "3\r\n",
        "0\r\n",
        ";x",
        ":",
        " ",
        "\t",
        "\0",
        "X: y\r\n",
        "a",
    ]);
    let any = prop::collection::vec(any::<u8>(), 0..8);
    prop::collection::vec(
        prop_oneof![8 => fragment.prop_map(|text| text.as_bytes().to_vec()), 1 => any],
        0..24,
    )
    .prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn splits_change_nothing(bytes in hostile(), cuts in prop::collection::vec(1..40_usize, 0..40)) {
        let whole = judge([&bytes[..]]);
        let (mut pieces, mut rest) = (Vec::new(), &bytes[..]);
        for cut in cuts {
            let (piece, more) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = more;
        }
        pieces.push(rest);
        prop_assert_eq!(&judge_showing(pieces.clone(), false), &whole);
        prop_assert_eq!(judge(pieces), whole);
        prop_assert_eq!(judge(bytes.chunks(1)), judge([&bytes[..]]));
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        judge([&bytes[..]]);
    }
}
