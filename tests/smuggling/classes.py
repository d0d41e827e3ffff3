"""Malformed requests in classes, for the table of several proxies; and odd requests that are valid."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import corpus

Odd = Callable[[bytes], object]
CANARY = b"GET /canary HTTP/1.1\r\nHost: store.test\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked"
DATUM = b"5\r\ndatum\r\n0\r\n\r\n"


@dataclass
class Class:
    """Requests that are wrong in the same way. `odd` tells from the upstream's bytes whether what is wrong reached it."""

    name: str
    variants: list[tuple[bytes, Odd]] = field(default_factory=list)

    def add(self, raw: bytes, odd: Odd | bytes) -> None:
        self.variants.append((raw, re.compile(odd, re.IGNORECASE | re.DOTALL).search if isinstance(odd, bytes) else odd))


def put(*lines: bytes, body: bytes = b"", first: bytes = b"PUT /v/1 HTTP/1.1\r\n", host: bytes = b"Host: store.test\r\n", end: bytes = b"\r\n") -> bytes:
    """A write whose lines are sent as they are; those without an end get CRLF."""
    whole = [line if line.endswith((b"\n", b"\r", b"\x00", b"\x85")) else line + b"\r\n" for line in lines]
    return first + host + b"Fencing-Token: 7\r\n" + b"".join(whole) + end + body


def literal(text: bytes) -> bytes:
    return re.escape(text)


def malformed() -> list[Class]:
    made: list[Class] = []

    def new(name: str) -> Class:
        made.append(Class(name))
        return made[-1]

    both = rb"(?=.*\ncontent-length:)(?=.*\ntransfer-encoding:)"
    one = new("Content-Length beside Transfer-Encoding")
    for lines in ((b"Content-Length: 5", CHUNKED), (CHUNKED, b"Content-Length: 5"), (b"Content-Length: 0", CHUNKED), (CHUNKED, b"X: y", b"Content-Length: 50")):
        one.add(put(*lines, body=DATUM), both)
        one.add(put(*lines, body=b"0\r\n\r\n" + CANARY), both)

    one = new("Transfer-Encoding that only resembles chunked")
    valid = (b"chunked", b"Chunked", b"CHUNKED", b"chunked\t", b"\tchunked", b" chunked ", b",chunked", b"chunked,", b",,chunked,,")
    other = (b"gzip", b"gzip, chunked", b"deflate, chunked", b"br")
    for coding in corpus.CODINGS:
        if coding not in (*valid, *other) and not coding.endswith((b"\r", b"\n")):
            one.add(put(b"Transfer-Encoding: " + coding, body=DATUM), rb"\ntransfer-encoding[^\n]*:(?! ?chunked\r\n)")
            one.add(put(b"Content-Length: 5", b"Transfer-Encoding: " + coding, body=b"datum"), rb"\ntransfer-encoding[^\n]*:")

    one = new("Transfer-Encoding of other codings")
    for coding in other:
        one.add(put(b"Transfer-Encoding: " + coding, body=DATUM), rb"\ntransfer-encoding[^\n]*:(?! ?chunked\r\n)")

    one = new("Transfer-Encoding twice")
    for coding in (b"chunked", b"identity", b"gzip", b"x"):
        for lines in ((CHUNKED, b"Transfer-Encoding: " + coding), (b"Transfer-Encoding: " + coding, CHUNKED)):
            one.add(put(*lines, body=DATUM), rb"\ntransfer-encoding:.*\ntransfer-encoding:|chunked, ?chunked")

    one = new("Transfer-Encoding on HTTP/1.0")
    for keep in (b"Connection: keep-alive", b"Connection: close"):
        one.add(put(CHUNKED, keep, body=DATUM, first=b"PUT /v/1 HTTP/1.0\r\n"), rb"HTTP/1.0.*\ntransfer-encoding:")

    one = new("Content-Length that is no number")
    for length in corpus.LENGTHS:
        if not re.fullmatch(rb"[ \t]*[0-9]{1,26}[ \t]*", length) and not length.endswith((b"\r", b"\n")):
            one.add(put(b"Content-Length: " + length, body=b"datum"), rb"\ncontent-length:(?! ?[0-9]{1,18}\r\n)")

    one = new("Content-Length that overflows")
    for length in (b"9223372036854775808", b"18446744073709551616", b"18446744073709551621", b"99999999999999999999999", b"1" * 400):
        one.add(put(b"Content-Length: " + length, body=b"datum"), rb"\ncontent-length: ?[0-9]{19}")

    one = new("Content-Length twice, different")
    for first, second in ((b"5", b"6"), (b"6", b"5"), (b"0", b"5"), (b"5", b"0"), (b"5", b"x"), (b"5", b"")):
        one.add(put(b"Content-Length: " + first, b"Content-Length: " + second, body=b"datum"), rb"\ncontent-length:.*\ncontent-length:|content-length:[^\n]*,")

    one = new("Content-Length twice, the same")
    for lines in ((b"Content-Length: 5", b"Content-Length: 5"), (b"Content-Length: 5, 5",), (b"Content-Length: 5", b"Content-Length: 05")):
        one.add(put(*lines, body=b"datum"), rb"\ncontent-length:.*\ncontent-length:|content-length:[^\n]*,")

    one = new("chunk sizes that are no hexadecimal number, or overflow")
    for size in (b"0x5", b"0X5", b"+5", b"-5", b"-0", b"5\x0b", b"\x0b5", b"5\x00", b"\x005", b"", b"g", b"5g", b"5h", b"5_", b"0_5", b"5,", b"5.0", b"5:a", b"5/a", b"5#", b"5\xa0", b"\xd9\xa5", b" 5", b"\t5", b"10000000000000005", b"ffffffffffffffff5", b"ffffffffffffffff"):
        one.add(put(CHUNKED, body=size + b"\r\ndatum\r\n0\r\n\r\n"), rb"\r\n\r\n" + literal(size) + rb"\r\ndatum")

    one = new("line ends of chunks that are not CRLF")
    for body in (b"5\ndatum\r\n0\r\n\r\n", b"5\rdatum\r\n0\r\n\r\n", b"5\r\r\ndatum\r\n0\r\n\r\n", b"5\r\ndatum\n0\r\n\r\n", b"5\r\ndatum\r0\r\n\r\n", b"5\r\ndatum0\r\n\r\n", b"5\r\ndatumXX0\r\n\r\n", b"5\r\ndatum\r\n0\n\r\n", b"5\r\ndatum\r\n0\r\n\n", b"5\r\ndatum\r\n0\n\n", b"5\r\ndatum\r\n0\r\r\n\r\n", b"5;a\ndatum\r\n0\r\n\r\n"):
        one.add(put(CHUNKED, body=body), rb"\r\n\r\n" + literal(body))

    one = new("control characters in chunk extensions")
    for byte in (b"\n", b"\r", b"\x00", b"\x0b", b"\x7f", b"\x01"):
        one.add(put(CHUNKED, body=b"5;a" + byte + b"b\r\ndatum\r\n0\r\n\r\n"), b"5;a" + literal(byte))

    one = new("chunk data longer or shorter than its size")
    for size in (b"3", b"4", b"6", b"7"):
        one.add(put(CHUNKED, body=size + b"\r\ndatum\r\n0\r\n\r\n" + CANARY), b"\r\n\r\n" + size + b"\r\ndatum\r\n")

    one = new("trailers that are malformed")
    for line in (b"X-Sum : 5", b" X-Sum: 5", b": 5", b"X-Sum", b"X-Sum: \x00", b"X-Sum: 5\rHost: evil", b"X-Sum: 5\nHost: evil", b"X Sum: 5", b"X-Sum: a\r\n b"):
        one.add(put(b"Trailer: X-Sum", CHUNKED, body=b"5\r\ndatum\r\n0\r\n" + line + b"\r\n\r\n"), literal(line))

    one = new("trailers that would frame or route")
    for line in (b"Content-Length: 5", CHUNKED, b"Host: evil.test", b"Connection: close", b"TE: trailers", b"Trailer: X"):
        name = line.partition(b":")[0]
        one.add(put(b"Trailer: " + name, CHUNKED, body=b"5\r\ndatum\r\n0\r\n" + line + b"\r\n\r\n"), rb"\r\n\r\n.*\n" + literal(name) + b":")

    bare_lf = rb"(?<!\r)\n"
    one = new("lines of the head that end in a bare LF")
    one.add(put(b"Content-Length: 5", body=b"datum", first=b"PUT /v/1 HTTP/1.1\n"), bare_lf)
    one.add(put(b"X: y\n", b"Content-Length: 5", body=b"datum"), bare_lf)
    one.add(put(b"Content-Length: 5\n", body=b"datum"), bare_lf)
    one.add(put(b"Content-Length: 5", body=b"datum", end=b"\n"), bare_lf)
    one.add(put(b"Content-Length: 5\n", body=b"datum", end=b"\n"), bare_lf)

    one = new("a bare CR in the head")
    for line in (b"X: a\rb", b"X: a\rContent-Length: 0", b"X\r: a", b"\rX: a", b"X:\ra", b"X: a\r\rb", b"X: a\r"):
        one.add(put(line + b"\r\n", b"Content-Length: 5", body=b"datum"), rb"\r(?!\n)")
    one.add(put(b"Content-Length: 5", body=b"datum", first=b"PUT /v/1 HTTP/1.1\rX: y\r\n"), rb"\r(?!\n)")

    one = new("NUL and other control characters in values")
    for byte in (*corpus.CONTROLS[:9], *corpus.CONTROLS[11:13], *corpus.CONTROLS[14:]):
        one.add(put(b"X: a" + byte + b"b", b"Content-Length: 5", body=b"datum"), b"X: a" + literal(byte))

    one = new("characters in names that no name has")
    for name in corpus.NAMES:
        if not re.fullmatch(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]*", name) and b"\r" not in name:
            one.add(put(name + b": 1", b"Content-Length: 5", body=b"datum"), rb"\n" + literal(name) + b":")

    one = new("folded lines")
    for line in (b"X: a\r\n b", b"X: a\r\n\tb", b"Content-Length: 5\r\n ", b"Transfer-Encoding:\r\n chunked", b"X:\r\n\r\n b"):
        one.add(put(line, body=b""), rb"\r\n[ \t]")

    one = new("white space before the colon")
    for line in (b"X : a", b"X\t: a", b"Content-Length : 5", b"Transfer-Encoding : chunked", b"Host : evil.test"):
        one.add(put(line, b"Content-Length: 5" if b"ontent" not in line else b"Y: z", body=b"datum"), rb"\n[^\n:]*[ \t]:")

    one = new("white space before the first line")
    for space in (b" ", b"\t"):
        one.add(put(b"Content-Length: 5", body=b"datum", host=space + b"X: y\r\nHost: store.test\r\n"), rb"\n[ \t]")

    one = new("lines without a colon or a name")
    for line in (b"garbage", b"X", b": a", b":", b"X;a", b"GET /canary HTTP/1.1"):
        one.add(put(line, b"Content-Length: 5", body=b"datum"), rb"\n" + literal(line) + rb"\r\n")

    one = new("Host missing, empty or twice")
    for host in (b"", b"Host:\r\n", b"Host: store.test\r\nHost: evil.test\r\n", b"Host: store.test\r\nHost: store.test\r\n"):
        one.add(put(b"Content-Length: 5", body=b"datum", host=host), rb"\nhost: ?\r\n|\nhost:.*\nhost:|\A(?!.*\nhost:)")

    one = new("Host that is no host and port")
    for host in (b"store.test, evil.test", b"store.test evil.test", b"user@store.test", b"store.test:8o", b"store.test:80:80", b"store.test:65536", b"store.test/x", b"store.test?x", b"store.test#x", b"[::1", b"[::1]x", b"store.test\\evil", b"http://store.test", b"caf\xc3\xa9.test", b'"store.test"', b"store..test", b".store.test", b"store.test|evil"):
        one.add(put(b"Content-Length: 5", body=b"datum", host=b"Host: " + host + b"\r\n"), rb"\nhost: ?" + literal(host))

    one = new("absolute target whose authority is not Host")
    for target in (b"http://evil.test/v/1", b"http://user@store.test/v/1", b"http://store.test@evil.test/v/1", b"http://store.test:8080/v/1", b"ftp://store.test/v/1", b"http:///v/1", b"http:/v/1", b"http://store.test:80:80/v/1"):
        one.add(put(b"Content-Length: 5", body=b"datum", first=b"PUT " + target + b" HTTP/1.1\r\n"), rb"\nhost: ?store\.test\r\n|" + literal(target))

    one = new("versions that are neither 1.0 nor 1.1")
    for version in corpus.VERSIONS:
        if version not in (b"HTTP/1.0", b"HTTP/1.1 ", b"HTTP/1.1\t", b"") and not version.endswith(b"\r"):
            one.add(put(b"Content-Length: 5", body=b"datum", first=b"PUT /v/1 " + version + b"\r\n"), rb"\A[^\n]* (?!HTTP/1\.[01]\r\n)[^ \n]*\r?\n")

    one = new("HTTP/0.9")
    for first in (b"GET /v/1\r\n", b"GET /v/1 \r\n", b"GET /v/1\n"):
        one.add(first, rb"\AGET /v/1 ?\r?\n")

    one = new("white space in the request line")
    for first in (b"PUT  /v/1 HTTP/1.1", b"PUT /v/1  HTTP/1.1", b"PUT\t/v/1 HTTP/1.1", b"PUT /v/1\tHTTP/1.1", b"PUT /v/1 HTTP/1.1 ", b" PUT /v/1 HTTP/1.1", b"PUT /v/1 x HTTP/1.1", b"PUT\x0b/v/1 HTTP/1.1", b"PUT\x0c/v/1 HTTP/1.1", b"PUT /v/1 HTTP/1.1 HTTP/1.1"):
        one.add(put(b"Content-Length: 5", body=b"datum", first=first + b"\r\n"), rb"\A" + literal(first) + b"\r\n")

    one = new("methods that are no token")
    for method in (b"P UT", b"PUT\x00", b"P\xc9T", b"PUT:", b"PUT/", b"(PUT)", b'"PUT"', b"PUT,GET", b"PUT;", b"PUT=", b"{PUT}", b"@", b"PUT\\", b"\xef\xbb\xbfPUT", b"PUT\x7f"):
        one.add(put(b"Content-Length: 5", body=b"datum", first=method + b" /v/1 HTTP/1.1\r\n"), rb"\A" + literal(method))

    one = new("control and 8-bit characters in the target")
    for byte in (b"\x00", b"\x01", b"\x0b", b"\x0c", b"\x1f", b"\x7f", b"\x80", b"\xff", b"\xc3\xa9", b"\t"):
        one.add(put(b"Content-Length: 5", body=b"datum", first=b"PUT /v/a" + byte + b"b HTTP/1.1\r\n"), b"/v/a" + literal(byte))
        one.add(put(b"Content-Length: 5", body=b"datum", first=b"PUT /v/a?b=" + byte + b" HTTP/1.1\r\n"), b"b=" + literal(byte))

    one = new("characters in the path that must be escaped")
    for byte in b'"<>\\^`{|}[]':
        one.add(put(b"Content-Length: 5", body=b"datum", first=b"PUT /v/a" + bytes([byte]) + b"b HTTP/1.1\r\n"), b"/v/a" + literal(bytes([byte])))

    one = new("a fragment in the target")
    for target in (b"/v/1#a", b"/v/1#", b"/v/1?a#b", b"http://store.test/v/1#a"):
        one.add(put(b"Content-Length: 5", body=b"datum", first=b"PUT " + target + b" HTTP/1.1\r\n"), rb"\A[^\n]*#")

    one = new("targets of no known form")
    for target in (b"v/1", b"*", b"../v", b"?a=b", b"\\v", b"%2fv", b"store.test:80"):
        one.add(put(b"Content-Length: 5", body=b"datum", first=b"PUT " + target + b" HTTP/1.1\r\n"), rb"\APUT " + literal(target))

    one = new("dot segments, escaped slashes and malformed escapes in the path")
    for path in (b"/v/../a", b"/v/./a", b"/v/%2e%2e/a", b"/v/.%2e/a", b"/../a", b"/v/..", b"/v%2fa", b"/v%5ca", b"/v/%00", b"/v/%zz", b"/v/%", b"/v/%c0%ae", b"/v/%ff", b"/v/..;/a", b"/v//a", b"/v;a=b/c"):
        one.add(put(b"Content-Length: 5", body=b"datum", first=b"PUT " + path + b" HTTP/1.1\r\n"), rb"\APUT " + literal(path) + b" ")

    one = new("Connection that names what the message is made of")
    for name in (b"Host", b"Content-Length", b"Transfer-Encoding", b"Authorization", b"close, Host"):
        one.add(put(b"Authorization: x", b"Connection: " + name, b"Content-Length: 5", body=b"datum"), rb"\nconnection: ?" + literal(name) + rb"|\A(?!.*\nhost:)|\A(?!.*\nauthorization:)")

    one = new("Connection options that are no token")
    for option in (b'"close"', b"close;q=0", b"x y", b"(close)", b"a=b", b"[x]", b"x/1"):
        one.add(put(b"Connection: " + option, b"Content-Length: 5", body=b"datum"), rb"\nconnection: ?" + literal(option))

    one = new("expectations that nobody knows")
    for value in (b"x", b"200-ok", b"100-continue, x", b"100-continue;q=1", b'"100-continue"'):
        one.add(put(b"Expect: " + value, b"Content-Length: 5", body=b"datum"), rb"\nexpect: ?" + literal(value))

    one = new("an upgrade to HTTP/2 behind the proxy")
    for value in (b"h2c", b"h2c, websocket", b"HTTP/2.0", b'"h2c"', b"h2c;q=1", b"H2C"):
        one.add(put(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + value, b"HTTP2-Settings: AAMAAABkAAQAAP__", b"Content-Length: 5", body=b"datum"), rb"\nupgrade: ?" + literal(value))

    one = new("bytes before the request")
    for before in (b"\n", b"\n\n", b" ", b"\t", b"\x00", b"\xef\xbb\xbf", b"\r\n ", b"0\r\n\r\n", b"\r"):
        one.add(before + put(b"Content-Length: 5", body=b"datum"), rb"\A" + literal(before))

    one = new("twins of framing fields, spelt with an underscore")
    for line in (b"Content_Length: 0", b"Transfer_Encoding: chunked", b"content_length: 50"):
        one.add(put(b"Content-Length: 5", line, body=b"datum"), rb"\n" + literal(line.partition(b":")[0]) + b":")

    one = new("a request behind the last one")
    for line in (b"Connection: close", b"Connection: Close", b"Connection: x, close"):
        one.add(put(line, b"Content-Length: 5", body=b"datum" + CANARY), rb"GET /canary")
    one.add(put(b"Content-Length: 5", body=b"datum" + CANARY, first=b"PUT /v/1 HTTP/1.0\r\n"), rb"GET /canary")
    return made


def valid() -> list[bytes]:
    """Odd requests that break no rule: whoever is not on the way of the fence passes them on."""
    made = []

    def one(*lines: bytes, first: bytes = b"PUT /v/1 HTTP/1.1", body: bytes = b"datum", host: bytes = b"Host: store.test", framing: bytes = b"Content-Length: 5") -> None:
        made.append(first + b"\r\n" + b"".join(line + b"\r\n" for line in (host, b"Fencing-Token: 7", *lines, framing) if line) + b"\r\n" + body)

    for method in (b"PUT", b"POST", b"DELETE", b"PATCH", b"PROPFIND", b"MKCOL", b"LOCK", b"SEARCH", b"REPORT", b"M-SEARCH", b"OPTIONS", b"GET"):
        one(first=method + b" /v/1 HTTP/1.1")
    for method in (b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"POST"):
        one(first=method + b" /v/1 HTTP/1.1", framing=b"", body=b"")
        one(first=method + b" /v/1 HTTP/1.1", framing=b"Content-Length: 0", body=b"")
    # What is no key needs none where it is only read.
    for target in (b"/", b"http://store.test", b"http://store.test?a=b"):
        made.append(b"GET " + target + b" HTTP/1.1\r\nHost: store.test\r\n\r\n")
    for target in (b"/v/", b"/v/1?", b"/v/1?a", b"/v/1?a=b&a=c", b"/v/1?a=b?c/d", b"/v/1?a[]=1", b"/v/1?%00", b"/v/1?a=%zz", b"/v/caf%C3%A9", b"/v/a%20b", b"/v/~a", b"/v/a:b@c!$&'()*+,=", b"/v/%41", b"/v/%7e", b"/v/...", b"/v/.a", b"/v/a.", b"/v/1?a=|", b"/v/1?" + b"q" * 4000, b"/v/" + b"a" * 900, b"/v/%E2%82%AC", b"/v/1?a=http://x/../y", b"/V/1", b"/v/a%3Fb", b"/v/a%23b", b"/v/1?a=%23"):
        one(first=b"PUT " + target + b" HTTP/1.1")
    for target in (b"http://store.test/v/1", b"HTTP://store.test/v/1", b"http://store.test:80/v/1", b"http://STORE.test/v/1"):
        one(first=b"PUT " + target + b" HTTP/1.1")
    for host in (b"Host: STORE.test", b"Host: store.test.", b"Host: store.test:80", b"Host: store.test:8080", b"Host: store.test:", b"Host: 127.0.0.1", b"Host: [::1]", b"Host: [::1]:80", b"Host: store_1.test", b"Host:store.test", b"Host:   store.test  ", b"HOST: store.test", b"hOsT:\tstore.test", b"Host: localhost", b"Host: xn--caf-dma.test", b"Host: a-b.c"):
        one(host=host)
    for line in (
        b"X:", b"X: ", b"X:a", b"X: \t a \t ", b"X: a  b", b"X: a\tb", b"X: caf\xc3\xa9", b"X: \xe9", b"X: \xff\x80", b'X: "a\\"b"', b"X: a:b:c", b"X: " + b"v" * 4000, b"x-a!#$%&'*+.^`|~: 1", b"X.A: 1", b"1: 2", b"X_A: 1", b"Cookie: a=b; c=d", b"Cookie: a=b\r\nCookie: c=d", b"X: a\r\nX: a", b"X: a, b,, c", b"Accept: */*;q=0.1",
        b"Range: bytes=0-1", b"If-Match: \"a\", W/\"b\"", b"TE: trailers", b"TE:", b"TE: gzip;q=0.5", b"Via: 1.0 a, 1.1 b", b"Forwarded: for=1.2.3.4", b"X-Forwarded-For: 1.2.3.4", b"Max-Forwards: 5", b"Keep-Alive: timeout=5", b"Proxy-Connection: keep-alive", b"User-Agent: a (b; c) d/1", b"Authorization: Basic YTpi", b"Content-Type: a/b; c=\"d e\"", b"Content-Encoding: gzip", b"Date: Wed, 25 Nov 2026 08:00:00 GMT", b"Referer: http://x/#a", b"Origin: null", b"X-HTTP-Version: HTTP/1.1",
        b"Connection: keep-alive", b"Connection: close", b"Connection: Keep-Alive, X", b"Connection: , close,", b"Connection:", b"Connection: x\r\nConnection: close", b"Connection: TE\r\nTE: trailers", b"Connection: upgrade\r\nUpgrade: websocket", b"Upgrade: x/1", b"Expect: 100-continue", b"Expect: 100-Continue",
    ):  # fmt: skip
        one(line)
    for framing in (b"Content-Length: 05", b"Content-Length:5", b"content-length: 5", b"CONTENT-LENGTH:\t5", b"Content-Length: 5 ", b"Content-Length: 0000000005"):
        one(framing=framing)
    chunked = b"Transfer-Encoding: chunked"
    for body in (b"0\r\n\r\n", DATUM, b"05\r\ndatum\r\n0\r\n\r\n", b"5\r\ndatum\r\n000\r\n\r\n", b"5;a\r\ndatum\r\n0\r\n\r\n", b"5;a=b\r\ndatum\r\n0\r\n\r\n", b'5;a="b"\r\ndatum\r\n0\r\n\r\n', b"5;a=b;c=d\r\ndatum\r\n0;e\r\n\r\n", b"1\r\nd\r\n4\r\natum\r\n0\r\n\r\n", b"A\r\n0123456789\r\n0\r\n\r\n", b"a\r\n0123456789\r\n0\r\n\r\n", b"5\r\ndatum\r\n0\r\nX-Sum: 5\r\n\r\n", b"5\r\n\r\n\r\n\r\r\n0\r\n\r\n"):
        one(framing=chunked, body=body)
    for framing in (b"transfer-encoding: chunked", b"Transfer-Encoding: Chunked", b"Transfer-Encoding:chunked", b"Transfer-Encoding: \tchunked\t ", b"TRANSFER-ENCODING: CHUNKED"):
        one(framing=framing, body=DATUM)
    one(chunked, first=b"GET /v/1 HTTP/1.1", framing=b"", body=DATUM)
    one(first=b"PUT /v/1 HTTP/1.0")
    one(b"Connection: keep-alive", first=b"PUT /v/1 HTTP/1.0")
    one(first=b"GET /v/1 HTTP/1.0", framing=b"", body=b"")
    one(first=b"GET /v/1 HTTP/1.0", framing=b"", body=b"", host=b"")
    made.append(b"\r\n" + made[0])
    made.append(put(*(b"X-%d: %d" % (at, at) for at in range(90)), b"Content-Length: 5", body=b"datum"))
    return made
