use super::*;

fn strict(path: &str) -> Result<String, AmbiguousPath> {
    read(path.as_bytes(), PathRules::Strict)
}

fn opaque(path: &str) -> Result<String, AmbiguousPath> {
    read(path.as_bytes(), PathRules::Opaque)
}

fn read(path: &[u8], rules: PathRules) -> Result<String, AmbiguousPath> {
    DecodedPath::read(path, rules, Case::Sensitive).map(|path| path.text(rules).to_owned())
}

// K1
#[test]
fn dot_segments_are_refused_in_any_encoding() {
    for path in [
        "/.",
        "/..",
        "/a/../b",
        "/a/./b",
        "/a/%2e%2e/b",
        "/a/%2E%2e",
        "/a/.%2e/b",
        "/%2e/b",
        "/a/%2e.",
        "/a/..;x=1/b",
        "/a/%2e%2e;/b",
        "/../",
        "/./",
        "/..%2Fb",
        "/a%2F..%2Fb",
        "/a%5C..%5Cb",
        "/a%2f%2e%2e",
        "/a/..%5Cb",
        "/a/.;/b",
        "/a/..%3Bx",
    ] {
        assert!(strict(path).is_err(), "{path}");
        assert_eq!(opaque(path), Err(AmbiguousPath::DotSegment), "{path}");
    }
    for path in [
        "/...",
        "/a/.b",
        "/a/..b",
        "/a/b..",
        "/.well-known/x",
        "/a.b/c.",
    ] {
        assert_eq!(strict(path).as_deref(), Ok(&path[1..]), "{path}");
    }
}

// K2
#[test]
fn empty_segments_are_refused_or_kept() {
    for path in ["//", "//a", "/a//b", "/a//", "/a///b"] {
        assert_eq!(strict(path), Err(AmbiguousPath::EmptySegment), "{path}");
        assert_eq!(opaque(path).as_deref(), Ok(&path[1..]), "{path}");
    }
    assert_eq!(strict("//%61"), Err(AmbiguousPath::EmptySegment));
    assert_eq!(opaque("//%61").as_deref(), Ok("/a"));
}

// K3
#[test]
fn slashes_that_hide_are_refused_by_strict() {
    for path in ["/a%2Fb", "/a%2fb", "/%2F", "/a/%2f"] {
        assert_eq!(strict(path), Err(AmbiguousPath::EncodedSlash), "{path}");
    }
    for path in ["/a%5Cb", "/a%5cb", "/a\\b", "/\\"] {
        assert_eq!(strict(path), Err(AmbiguousPath::Backslash), "{path}");
    }
    assert_eq!(opaque("/a\\b"), Err(AmbiguousPath::Backslash));
    assert_eq!(opaque("/a%5Cb").as_deref(), Ok("a\\b"));
}

// K4
#[test]
fn aliases_decode_to_one_text() {
    assert_eq!(strict("/%61%40"), strict("/a@"));
    for path in ["/a%2fb", "/a%2Fb", "/a/b", "/%61/b"] {
        assert_eq!(opaque(path).as_deref(), Ok("a/b"), "{path}");
    }
    assert_eq!(strict("/%c3%a9"), strict("/%C3%A9"));
}

// K5
#[test]
fn escapes_are_decoded_once_only() {
    assert_eq!(strict("/a/%252e%252e/b").as_deref(), Ok("a/%2e%2e/b"));
    assert_eq!(strict("/a%252Fb").as_deref(), Ok("a%2Fb"));
    assert_eq!(opaque("/a%25").as_deref(), Ok("a%"));
}

// K6
#[test]
fn malformed_escapes_are_refused() {
    for path in [
        "/%zz", "/%", "/a%", "/%4", "/%g0", "/%0g", "/%+1", "/%%41", "/% 1", "/%-1",
    ] {
        assert_eq!(strict(path), Err(AmbiguousPath::MalformedEscape), "{path}");
        assert_eq!(opaque(path), Err(AmbiguousPath::MalformedEscape), "{path}");
    }
}

// K7
#[test]
fn overlong_invalid_and_raw_bytes_are_refused() {
    for path in [
        "/%c0%af",
        "/%c0%ae",
        "/%e0%80%af",
        "/%ff",
        "/%c3",
        "/%ed%a0%80",
        "/%f5%80%80%80",
    ] {
        assert_eq!(strict(path), Err(AmbiguousPath::NotUtf8), "{path}");
        assert_eq!(opaque(path), Err(AmbiguousPath::NotUtf8), "{path}");
    }
    for rules in [PathRules::Strict, PathRules::Opaque] {
        assert_eq!(
            read("/é".as_bytes(), rules),
            Err(AmbiguousPath::RawByte(0xc3))
        );
        assert_eq!(read(b"/\xff", rules), Err(AmbiguousPath::RawByte(0xff)));
    }
    assert_eq!(strict("/%C3%A9").as_deref(), Ok("é"));
}

// K8
#[test]
fn control_characters_are_refused_in_any_encoding() {
    for path in [
        "/%00",
        "/a%0d%0ab",
        "/%09",
        "/%1f",
        "/%7f",
        "/%7F",
        "/%C2%80",
        "/%c2%9f",
        "/a\0",
        "/\u{7f}",
        "/\r\n",
    ] {
        assert_eq!(strict(path), Err(AmbiguousPath::Control), "{path:?}");
        assert_eq!(opaque(path), Err(AmbiguousPath::Control), "{path:?}");
    }
}

// K9
#[test]
fn bytes_that_must_be_escaped_are_refused_raw() {
    for byte in b"|<>\"^`{}[]#? " {
        let path = [b'/', b'a', *byte];
        for rules in [PathRules::Strict, PathRules::Opaque] {
            assert_eq!(read(&path, rules), Err(AmbiguousPath::RawByte(*byte)));
        }
        let escaped = format!("/a%{byte:02X}");
        assert_eq!(strict(&escaped), Ok(format!("a{}", char::from(*byte))));
    }
    assert_eq!(strict("/\t"), Err(AmbiguousPath::Control));
    assert_eq!(
        strict("/-._~!$&'()*+,=:@").as_deref(),
        Ok("-._~!$&'()*+,=:@")
    );
}

// K10
#[test]
fn parameters_are_refused_or_kept() {
    for path in ["/a;b=c", "/a%3Bb", "/a%3bb", "/;"] {
        assert_eq!(strict(path), Err(AmbiguousPath::Parameters), "{path}");
    }
    assert_eq!(opaque("/a;b=c").as_deref(), Ok("a;b=c"));
    assert_eq!(opaque("/a%3Bb").as_deref(), Ok("a;b"));
}

// K11
#[test]
fn one_trailing_slash_is_dropped_or_kept() {
    assert_eq!(strict("/a/"), strict("/a"));
    assert_eq!(strict("/%61/").as_deref(), Ok("a"));
    assert_eq!(opaque("/a/").as_deref(), Ok("a/"));
    assert_eq!(strict("/").as_deref(), Ok(""));
    assert_eq!(opaque("/").as_deref(), Ok(""));
}

// K11
#[test]
fn what_becomes_a_separator_when_folded_is_refused() {
    let folded = |path: &'static str| {
        DecodedPath::read(path.as_bytes(), PathRules::Opaque, Case::Insensitive).map(drop)
    };
    for path in [
        "/a%EF%BC%8Fb",
        "/%E2%80%A5/b",
        "/a%EF%BC%9Bb",
        "/a/%EF%BC%8E",
        "/%EF%BC%BC",
        "/.%C2%AD./x",
    ] {
        assert_eq!(folded(path), Err(AmbiguousPath::FoldedSeparator), "{path}");
        assert!(opaque(path).is_ok(), "{path}");
    }
    assert_eq!(folded("/%C3%84/B"), Ok(()));
}

// K12
#[test]
fn only_an_absolute_path_is_read() {
    for path in ["", "*", "a", "http://host/a", "%2Fa"] {
        assert_eq!(opaque(path), Err(AmbiguousPath::NotAbsolute), "{path}");
    }
}

#[test]
fn an_ordinary_path_is_borrowed() {
    let path = DecodedPath::decode(b"/objects/42/a.b").unwrap();
    assert!(matches!(path.text, Cow::Borrowed("objects/42/a.b")));
}
