//! What may stand in the token header, and what must not. The mark of the key is 34 throughout.

use crate::common::{Connection, Request, Stage};
use serde_json::json;

/// A write of one byte to the key, with these header lines (each ended by CR LF) besides.
fn write_with(lines: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bytes = b"PUT /objects/42 HTTP/1.1\r\nHost: store.test\r\n".to_vec();
    bytes.extend_from_slice(lines.as_ref());
    bytes.extend_from_slice(b"Content-Length: 1\r\n\r\nx");
    bytes
}

fn with_value(value: impl AsRef<[u8]>) -> Vec<u8> {
    let mut line = b"Fencing-Token: ".to_vec();
    line.extend_from_slice(value.as_ref());
    line.extend_from_slice(b"\r\n");
    write_with(line)
}

// T1
#[test]
fn a_write_without_a_token_is_told_to_bring_one() {
    let stage = Stage::at_34();
    let answer = stage
        .assert_bad(write_with(""), "a write without a token")
        .unwrap();
    answer.assert_fenced(428, "token-required", "a write needs a token");
    stage.assert_alive();
}

// T2
#[test]
fn an_empty_token_is_malformed() {
    let stage = Stage::at_34();
    for value in ["", " ", "\t", "  \t "] {
        let what = format!("the empty token {value:?}");
        let answer = stage.assert_bad(with_value(value), &what).unwrap();
        answer.assert_fenced(400, "malformed-token", &what);
    }
    stage.assert_alive();
}

// T3 T7 T17
#[test]
fn white_space_zeros_and_the_case_of_the_name_change_nothing() {
    let stage = Stage::at_34();
    for line in [
        "Fencing-Token:34\r\n",
        "Fencing-Token:   34  \r\n",
        "Fencing-Token:\t34\t\r\n",
        "Fencing-Token: 034\r\n",
        "Fencing-Token: 00000000000000000034\r\n",
        "Fencing-Token: 0.34\r\n",
        "Fencing-Token: 00.034\r\n",
        "fencing-token: 34\r\n",
        "FENCING-TOKEN: 34\r\n",
        "fEnCiNg-ToKeN: 34\r\n",
        "X-Fencing-Token: 34\r\n",
    ] {
        let mut connection = Connection::open(stage.http());
        connection
            .send(write_with(line))
            .response()
            .assert_ok(&format!("{line:?} is the token 34, equal to the mark"));
    }
    assert_eq!(
        stage.mark("objects/42").as_deref(),
        Some("34"),
        "equal tokens raise nothing"
    );
    for line in ["FENCING-TOKEN: 33\r\n", "x-fencing-token: 033\r\n"] {
        let answer = stage.assert_bad(write_with(line), line).unwrap();
        answer.assert_fenced(409, "stale-token", line);
    }
}

// T4 T5 T6 T8
#[test]
fn only_ascii_digits_and_one_dot_make_a_token() {
    let stage = Stage::at_34();
    for value in [
        "3 4",
        "34;v=1",
        "\"34\"",
        "'34'",
        "+34",
        "-1",
        "-0",
        "3.4e1",
        "34e0",
        "0x22",
        "34_0",
        "34.",
        ".34",
        ".",
        "1.2.3",
        "1..2",
        "1 .2",
        "1. 2",
        "thirty-four",
        "34,",
        "(34)",
        "34=",
        "NaN",
        "inf",
        "34\\",
        "%33%34",
        "1.+2",
        "1.-2",
    ] {
        let what = format!("the token {value:?}");
        let answer = stage.assert_bad(with_value(value), &what).unwrap();
        answer.assert_fenced(400, "malformed-token", &what);
    }
    stage.assert_alive();
}

#[test]
fn zero_is_no_token() {
    let stage = Stage::at_34();
    for value in ["0", "0.0", "000", "00.00"] {
        let what = format!("{value:?}, which systems use for \"not held\"");
        let answer = stage.assert_bad(with_value(value), &what).unwrap();
        answer.assert_fenced(400, "malformed-token", &what);
    }
    stage.raise("/objects/epoch", "5.0");
    assert_eq!(
        stage.mark("objects/epoch").as_deref(),
        Some("5.0"),
        "a counter of 0 in a later epoch is a token"
    );
}

#[test]
fn epochs_are_compared_before_counters_and_as_numbers() {
    let stage = Stage::new();
    for token in ["9", "10", "0.11", "1.1", "2.0", "10.1", "10.2"] {
        stage.raise("/objects/42", token);
    }
    for token in ["10.1", "9.99999", "2.3", "99999999999", "010.001"] {
        let answer = stage.send(&Request::put("/objects/42").token(token));
        answer.assert_fenced(409, "stale-token", token);
        assert_eq!(answer.header("fencing-mark"), Some("10.2"));
    }
    stage.recorder.history().assert_ordered();
}

// T9
#[test]
fn the_largest_token_is_admitted_where_any_is_trusted() {
    let stage = Stage::at_34();
    stage.raise("/objects/42", "18446744073709551615");
    stage.raise("/objects/42", "18446744073709551615.18446744073709551615");
    stage
        .send(&Request::put("/objects/42").token("18446744073709551615.18446744073709551614"))
        .assert_fenced(409, "stale-token", "one below the largest token of all");
}

// T9 A3
#[test]
fn an_advance_beyond_the_limit_is_refused_and_raises_nothing() {
    let stage = Stage::at_34_with(|config| {
        config
            .fence("max_advance", 100)
            .fence("new_epochs", "refuse")
    });
    for value in ["18446744073709551615", "135", "1.1", "1.34"] {
        let what = format!("{value} after 34 where an advance is at most 100");
        let answer = stage.assert_bad(with_value(value), &what).unwrap();
        answer.assert_fenced(403, "jump-too-large", &what);
    }
    stage.raise("/objects/42", "134");
    stage.raise("/objects/first", "900000");
}

#[test]
fn a_new_epoch_is_allowed_beside_a_limit_unless_refused() {
    let stage = Stage::at_34_with(|config| config.fence("max_advance", 100));
    stage.raise("/objects/42", "1.7");
    stage
        .send(&Request::put("/objects/42").token("1.108"))
        .assert_fenced(403, "jump-too-large", "101 within one epoch");
}

// T10
#[test]
fn tokens_that_overflow_are_malformed() {
    let stage = Stage::at_34();
    for value in [
        "18446744073709551616",
        "99999999999999999999",
        "340282366920938463463374607431768211456",
        "000000000000000000034",
        "18446744073709551616.1",
        "1.18446744073709551616",
        "1.000000000000000000001",
    ] {
        let what = format!("the token {value}");
        let answer = stage.assert_bad(with_value(value), &what).unwrap();
        answer.assert_fenced(400, "malformed-token", &what);
    }
    stage.assert_bad(with_value("9".repeat(10_000)), "a token of 10,000 digits");
    stage.assert_alive();
}

// T11
#[test]
fn digits_of_other_scripts_are_no_digits() {
    let stage = Stage::at_34();
    for value in [
        "\u{663}\u{664}",
        "\u{ff13}\u{ff14}",
        "\u{96f}\u{96a}",
        "\u{b3}\u{2074}",
        "\u{a0}34",
        "34\u{a0}",
        "\u{feff}34",
        "\u{2007}34",
        "34\u{200b}",
    ] {
        stage.assert_bad(with_value(value), &format!("the token {value:?}"));
    }
    for value in [&b"\xb334"[..], b"\xff34", b"34\xa0", b"\x8534"] {
        stage.assert_bad(with_value(value), &format!("the token {value:?}"));
    }
    stage.assert_alive();
}

// T12
#[test]
fn control_bytes_in_the_token_are_refused() {
    let stage = Stage::at_34();
    for value in [
        &b"34\0"[..],
        b"\x0034",
        b"3\x004",
        b"34\x01",
        b"34\x0b",
        b"34\x0c",
        b"34\x7f",
        b"34\x1b[0m",
        b"34\x08",
        b"34\r",
        b"34\r99",
    ] {
        stage.assert_bad(with_value(value), &format!("the token {value:?}"));
    }
    stage.assert_alive();
}

// T13 T14 T15
#[test]
fn two_tokens_are_malformed_even_where_they_agree() {
    let stage = Stage::at_34();
    for lines in [
        "Fencing-Token: 34\r\nFencing-Token: 34\r\n",
        "Fencing-Token: 34\r\nFencing-Token: 99\r\n",
        "Fencing-Token: 99\r\nFencing-Token: 34\r\n",
        "Fencing-Token: 34\r\nFENCING-TOKEN: 34\r\n",
        "Fencing-Token: 34\r\nX-Other: 1\r\nFencing-Token: 33\r\n",
        "Fencing-Token: 34\r\nX-Fencing-Token: 34\r\n",
        "X-Fencing-Token: 99\r\nFencing-Token: 34\r\n",
        "Fencing-Token: 34\r\nX-Fencing-Token:\r\n",
        "Fencing-Token: 34\r\nFencing-Token:\r\n",
        "Fencing-Token: 34, 34\r\n",
        "Fencing-Token: 34, 99\r\n",
        "Fencing-Token: 34,\r\n",
        "Fencing-Token: ,34\r\n",
    ] {
        let answer = stage.assert_bad(write_with(lines), lines).unwrap();
        answer.assert_fenced(400, "malformed-token", lines);
    }
    stage.assert_alive();
}

// T13 for a read: a bad token is never read as none.
#[test]
fn a_malformed_token_on_a_read_is_refused_too() {
    let stage = Stage::at_34();
    for lines in [
        "Fencing-Token: 34\r\nFencing-Token: 34\r\n",
        "Fencing-Token: x\r\n",
        "Fencing-Token:\r\n",
    ] {
        let bytes = format!("GET /objects/42 HTTP/1.1\r\nHost: store.test\r\n{lines}\r\n");
        let answer = stage.assert_bad(bytes, lines).unwrap();
        answer.assert_fenced(400, "malformed-token", lines);
    }
}

// T16
#[test]
fn a_folded_header_is_refused() {
    let stage = Stage::at_34();
    for lines in [
        "Fencing-Token:\r\n 34\r\n",
        "Fencing-Token: 3\r\n 4\r\n",
        "Fencing-Token: 34\r\n 99\r\n",
        "X-Other: a\r\n Fencing-Token: 34\r\n",
        "X-Other: a\r\n\tFencing-Token: 99\r\nFencing-Token: 34\r\n",
    ] {
        stage.assert_bad(write_with(lines), lines);
    }
    stage.assert_alive();
}

// T18
#[test]
fn a_name_that_some_servers_read_as_the_token_is_refused() {
    let stage = Stage::at_34();
    for lines in [
        "Fencing_Token: 34\r\n",
        "fencing_token: 99\r\n",
        "X_Fencing_Token: 34\r\n",
        "X-Fencing_Token: 34\r\n",
        "Fencing.Token: 34\r\n",
        "Fencing-Token: 34\r\nFencing!Token: 99\r\n",
        "Fencing-Token: 34\r\nFencing_Token: 99\r\n",
        "Fencing_Token: 99\r\nFencing-Token: 34\r\n",
        "Fencing-Token: 34\r\nX_Fencing-Token: 99\r\n",
        "Fencing-Token: 34\r\nFencing_Holder: a\r\n",
    ] {
        stage.assert_bad(write_with(lines), lines);
    }
    let read = "GET /objects/42 HTTP/1.1\r\nHost: store.test\r\nFencing_Token: 34\r\n\r\n";
    stage.assert_bad(read, "a read with Fencing_Token");
    stage.assert_alive();
}

// T19 T26
#[test]
fn broken_field_names_are_refused() {
    let stage = Stage::at_34();
    for lines in [
        "Fencing-Token : 34\r\n",
        "Fencing-Token\t: 34\r\n",
        " Fencing-Token: 34\r\n",
        "Fencing-Token: 34\r\n: x\r\n",
        ": 34\r\n",
        "Fencing-Token: 34\r\nno colon\r\n",
        "Fencing Token: 34\r\n",
        "Fencing-Token\0: 34\r\n",
        "Fencing-Token: 34\r\nX(y): 1\r\n",
    ] {
        stage.assert_bad(write_with(lines), &format!("{lines:?}"));
    }
    stage.assert_alive();
}

// T20 T21
#[test]
fn a_connection_option_that_names_a_guarded_header_is_refused() {
    let stage = Stage::at_34();
    for option in [
        "fencing-token",
        "Fencing-Token",
        "x-fencing-token",
        "close, fencing-token",
        "keep-alive,fencing-token",
        "fencing-holder",
        "Host",
        "host, close",
        "Authorization",
        "Content-Length",
    ] {
        for lines in [
            format!("Fencing-Token: 34\r\nConnection: {option}\r\n"),
            format!("Connection: {option}\r\nFencing-Token: 34\r\n"),
            format!("Fencing-Token: 34\r\nConnection: close\r\nConnection: {option}\r\n"),
            format!("Fencing-Token: 99\r\nconnection: {option}\r\n"),
        ] {
            let answer = stage.assert_bad(write_with(&lines), &lines).unwrap();
            answer.assert_fenced(400, "bad-request", &lines);
        }
    }
    stage.assert_alive();
}

// T20 T21
#[test]
fn a_connection_option_that_is_no_token_is_refused() {
    let stage = Stage::at_34();
    for option in [
        "\"fencing-token\"",
        "fencing-token;q=1",
        "fencing-token=1",
        "fencing token",
        "fencing-token/1",
        "(fencing-token)",
        "\u{a0}fencing-token",
        "close, \"fencing-token\"",
        "\"close\"",
        "close;q=0",
    ] {
        for lines in [
            format!("Fencing-Token: 34\r\nConnection: {option}\r\n"),
            format!("Fencing-Token: 34\r\nConnection: close\r\nConnection: {option}\r\n"),
        ] {
            let answer = stage.assert_bad(write_with(&lines), &lines).unwrap();
            answer.assert_fenced(400, "bad-request", &lines);
        }
    }
    for options in ["", ",", ", close,,\tx-a ,", "Keep-Alive"] {
        let request = Request::put("/objects/42").token(34);
        stage
            .send(&request.header("Connection", options))
            .assert_ok(options);
    }
    stage.assert_alive();
}

// T21
#[test]
fn a_connection_option_that_names_a_header_of_the_key_is_refused() {
    let stage = Stage::with(|config| {
        config
            .set("routes.0.path", "/objects")
            .fence("key", "{header.x-object}")
    });
    let write = |lines: &str| {
        format!("PUT /objects HTTP/1.1\r\nHost: store.test\r\nFencing-Token: 34\r\n{lines}\r\n")
    };
    stage.assert_bad(
        write("X-Object: 42\r\nConnection: x-object\r\n"),
        "Connection naming the key's header",
    );
    stage.assert_bad(
        write("X-Object: 42\r\nX_Object: 43\r\n"),
        "a twin of the key's header",
    );
    stage.assert_bad(
        write("X-Object: 42\r\nX-Object: 42\r\n"),
        "the key's header twice",
    );
    Connection::open(stage.http())
        .send(write("X-Object: 42\r\n"))
        .response()
        .assert_ok("the key's header once");
}

// T22
#[test]
fn a_token_in_trailers_is_neither_read_nor_forwarded() {
    let stage = Stage::at_34();
    let chunked = |lines: &str, trailers: &str| {
        format!(
            "PUT /objects/42 HTTP/1.1\r\nHost: store.test\r\n{lines}\
             Transfer-Encoding: chunked\r\nX-Tag: trailers\r\n\
             Trailer: Fencing-Token, X-Fencing-Token, X-Sum\r\n\r\n1\r\nx\r\n0\r\n{trailers}\r\n"
        )
    };
    let answer = stage
        .assert_bad(
            chunked("", "Fencing-Token: 35\r\n"),
            "a token only in the trailers",
        )
        .unwrap();
    answer.assert_fenced(428, "token-required", "a trailer is no header");

    let bytes = chunked(
        "Fencing-Token: 34\r\n",
        "Fencing-Token: 99\r\nX-Fencing-Token: 99\r\nX-Sum: abc\r\n",
    );
    Connection::open(stage.http())
        .send(bytes)
        .response()
        .assert_ok("the token is in the head");
    let seen = stage.recorder.received("trailers");
    let names: Vec<_> = seen
        .trailers
        .iter()
        .map(|(name, _)| name.to_lowercase())
        .collect();
    assert!(
        !names.iter().any(|name| name.contains("fencing-token")),
        "a token in trailers is not forwarded: {names:?}"
    );
    assert!(
        names.contains(&"x-sum".to_owned()),
        "other trailers are forwarded: {names:?}"
    );
    assert_eq!(stage.mark("objects/42").as_deref(), Some("34"));
}

// T25
#[test]
fn the_gateways_own_headers_are_taken_off_requests() {
    let stage = Stage::at_34();
    stage
        .send(
            &Request::put("/objects/42")
                .token(34)
                .header("Fencing-Mark", "99")
                .header("Fencing-Outcome", "completed")
                .header("Fencing-Decision", "admitted"),
        )
        .assert_ok("a request with the gateway's own headers");
    let seen = stage.recorder.last();
    for name in ["fencing-mark", "fencing-outcome", "fencing-decision"] {
        assert_eq!(
            seen.header(name),
            None,
            "{name} says what a gateway decided, so no client may send it on"
        );
    }
    assert_eq!(
        seen.header("fencing-token"),
        Some("34"),
        "the token itself goes upstream by default"
    );
}

// T27
#[test]
fn a_huge_field_name_is_too_large() {
    let stage = Stage::at_34();
    let lines = format!("Fencing-Token: 34\r\n{}: 1\r\n", "n".repeat(270 * 1024));
    let answer = stage.assert_bad(write_with(lines), "a name of 270 KiB");
    if let Some(answer) = answer {
        assert_eq!(answer.status, 431, "the header is too large");
    }
    stage.assert_alive();
}

#[test]
fn the_token_can_stay_at_the_gateway() {
    let stage = Stage::at_34_with(|config| config.fence("forward_token", false));
    stage.raise("/objects/42", "35");
    let seen = stage.recorder.last();
    assert_eq!(
        seen.header("fencing-token"),
        None,
        "forward_token: false keeps it from the upstream"
    );
}

#[test]
fn the_names_of_the_token_header_are_the_configs() {
    let stage = Stage::with(|config| config.fence("token_headers", json!(["x-lease"])));
    let write = Request::put("/objects/42");
    stage
        .send(&write.clone().header("X-Lease", "34"))
        .assert_ok("the configured name");
    stage
        .send(&write.clone().header("X-Lease", "33"))
        .assert_fenced(409, "stale-token", "the configured name is fenced");
    stage
        .send(&write.header("Fencing-Token", "35"))
        .assert_fenced(428, "token-required", "another name is no token");
}
