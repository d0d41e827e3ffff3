"""Malformed and odd requests, drawn from a seed.

A case begins as a good request and is changed one to three times; many carry another request, the canary, in a place where only
a server that was led astray finds it. `FAULTS` names the changes. The same seed and index make the same bytes in every process.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

HOST = b"store.test"
CANARY_KEY = "canary"


@dataclass
class Message:
    """One request, in the pieces that are changed."""

    probe: bytes
    method: bytes = b"PUT"
    after_method: bytes = b" "
    target: bytes = b"/k/1"
    after_target: bytes = b" "
    version: bytes = b"HTTP/1.1"
    first_end: bytes = b"\r\n"
    before: bytes = b""
    lines: list[bytes] = field(default_factory=list)
    head_end: bytes = b"\r\n"
    body: bytes = b""
    after: bytes = b""
    # What stands in place of all but `after`, once a change went through the bytes as they are.
    whole: bytes | None = None

    def raw(self) -> bytes:
        if self.whole is not None:
            return self.whole + self.after
        first = self.before + self.method + self.after_method + self.target + self.after_target + self.version + self.first_end
        return first + b"".join(self.lines) + self.head_end + self.body + self.after

    def find(self, name: bytes) -> int | None:
        """Where the line of this name stands."""
        for at, line in enumerate(self.lines):
            if line.lower().startswith(name.lower() + b":"):
                return at
        return None

    def set(self, name: bytes, value: bytes) -> None:
        line = name + b": " + value + b"\r\n"
        at = self.find(name)
        if at is None:
            self.lines.append(line)
        else:
            self.lines[at] = line

    def drop(self, name: bytes) -> None:
        at = self.find(name)
        if at is not None:
            del self.lines[at]

    def add(self, dice: random.Random, *lines: bytes) -> None:
        """Puts whole lines, without their ends, anywhere in the header."""
        at = dice.randint(0, len(self.lines))
        self.lines[at:at] = [line + b"\r\n" for line in lines]

    def chunked(self, *chunks: bytes, last: bytes = b"0\r\n\r\n") -> None:
        self.drop(b"Content-Length")
        self.set(b"Transfer-Encoding", b"chunked")
        self.body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + last


@dataclass
class Case:
    """What is sent: the bytes up to the second, good request, and that one."""

    seed: int
    index: int
    faults: tuple[str, ...]
    raw: bytes
    follower: bytes
    pipelined: bool
    cuts: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.seed}-{self.index}"


def canary(dice: random.Random, name: str) -> bytes:
    """A request that nobody may see: it stands in the body, or between the lines, of another."""
    kind = dice.randrange(4)
    method, token = ((b"PUT", b"1"), (b"PUT", b"99"), (b"GET", b""), (b"DELETE", b"51"))[kind]
    lines = [b"%b /%b HTTP/1.1" % (method, CANARY_KEY.encode()), b"Host: " + HOST, b"X-Probe: x-" + name.encode()]
    if token:
        lines.append(b"Fencing-Token: " + token)
    if method != b"GET":
        lines.append(b"Content-Length: 0")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def follower(name: str) -> bytes:
    body = b"next of " + name.encode()
    return (
        b"PUT /next/%b HTTP/1.1\r\nHost: %b\r\nX-Probe: n-%b\r\nFencing-Token: 7\r\nContent-Length: %d\r\n\r\n%b"
        % (name.encode(), HOST, name.encode(), len(body), body)
    )


def draw(seed: int, index: int) -> Case:
    dice = random.Random(f"{seed}/{index}")
    name = f"{seed}-{index}"
    message = good(dice, name)
    # The first change goes round, so that a short run has them all; the others are drawn.
    names = list(FAULTS)
    chosen = [names[index % len(names)]]
    chosen += dice.choices(names, k=dice.choice((0, 0, 0, 1, 1, 2)))
    hidden = canary(dice, name)
    for fault in chosen:
        FAULTS[fault](dice, message, hidden)
    raw = message.raw()
    if dice.random() < 0.1:
        before = good(dice, f"{name}p")
        raw = before.raw() + raw
    cuts = tuple(sorted(dice.sample(range(1, len(raw)), min(len(raw) - 1, dice.choice((0, 0, 1, 3)))))) if len(raw) > 1 else ()
    return Case(seed, index, tuple(chosen), raw, follower(name), dice.random() < 0.7, cuts)


def good(dice: random.Random, name: str) -> Message:
    probe = b"c-" + name.encode()
    path = dice.choice((b"/k/%b", b"/k/%b", b"/k/%b", b"/o/%b", b"/s/%b", b"/k/%b/a", b"/k/%b?v=1")) % name.encode()
    message = Message(probe, method=dice.choice((b"PUT", b"PUT", b"POST", b"DELETE", b"PATCH", b"GET")), target=path)
    message.lines = [b"Host: " + HOST + b"\r\n", b"X-Probe: " + probe + b"\r\n"]
    if message.method != b"GET" or dice.random() < 0.3:
        message.lines.append(b"Fencing-Token: %d\r\n" % dice.randint(1, 99))
    if message.method != b"GET":
        body = dice.choice((b"", b"datum", b"x" * dice.randint(1, 200)))
        if dice.random() < 0.4:
            message.chunked(*([body] if body else []))
        else:
            message.set(b"Content-Length", b"%d" % len(body))
            message.body = body
    if dice.random() < 0.3:
        dice.shuffle(message.lines)
    return message


Fault = Callable[[random.Random, Message, bytes], None]
FAULTS: dict[str, Fault] = {}


def fault(change: Fault) -> Fault:
    FAULTS[change.__name__.removesuffix("_").replace("_", "-")] = change
    return change


CONTROLS = [bytes([byte]) for byte in (*range(0x20), 0x7F)]
ODD = [*CONTROLS, b"\x80", b"\x85", b"\xa0", b"\xff", b"\xc0\xaf", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\xef\xbc\x9a", b"\xc4\x8d", b"\xc4\x8a"]
ENDS = [b"\n", b"\r", b"\r\r\n", b"\n\r", b"\n\n", b"\r\n\x00", b"\x0b\r\n", b"\x0c\r\n", b"\x00\r\n", b"\x85", b"\xe2\x80\xa8", b"", b" \r\n", b"\r \n", b"\r\n\x0b"]

CODINGS = [
    b"xchunked", b"chunkedx", b"chunked, identity", b"identity", b"identity, chunked", b"chunked, chunked", b"gzip", b"gzip, chunked",
    b"chunked, gzip", b"chunked;q=1", b"chunked;", b'"chunked"', b"'chunked'", b"\x0bchunked", b"chunked\x0c", b"chunked\x00", b"\x00chunked",
    b",chunked", b"chunked,", b",,chunked,,", b"chunk\xe9d", b"", b"Chunked", b"CHUNKED", b"chunked chunked", b"chunked\t", b"\tchunked", b" chunked ",
    b"chunked\r", b"\rchunked", b"chunked\xa0", b"\xc2\xa0chunked", b"chunked\x85", b"chun\x00ked", b"cow", b"cow, chunked", b"chunked, cow",
    b"trailers, chunked", b"chunked\x08", b"\\chunked", b"chunked\\", b"(c) chunked", b"chunked (c)", b"deflate, chunked", b"br", b"x-chunked",
    b"chunked\r\n\t", b"\r\n chunked", b"chunked\n", b"chunkedchunked", b"ch\xc4\xb1nked", b"\xef\xbd\x83hunked", b"null", b"0", b"[chunked]",
]
LENGTHS = [
    b"", b" ", b"+5", b"-0", b"-5", b"0x5", b"5.0", b"5e0", b"5 5", b"5,5", b"5, 5", b"5,6", b"5;", b"5;q=1", b'"5"', b"five", b"05", b"0000000005",
    b"00000000000000000000000005", b"18446744073709551616", b"18446744073709551621", b"9223372036854775808", b"9223372036854775807", b"4294967301",
    b"99999999999999999999999", b"5\x00", b"\x005", b"5\x0b", b"\x0b5", b"5\r", b"\r5", b"5\xa0", b"\xd9\xa5", b"0_5", b"5_", b"1_0", b"5\t", b"\t5", b"0, 5",
    b"5,", b",5", b"5\n", b"5 ", b"5\r\n\t", b"\r\n 5", b"0b101", b"0o5", b"5L", b"#5", b"5#", b"\xef\xbc\x95", b"2147483648", b"1" * 400, b"5\x0c",
]
CHUNK_SIZES = [
    b"0x5", b"0X5", b"+5", b"-5", b"-0", b"05", b"0000000000000005", b"00000000000000005", b"0" * 40 + b"5", b"5 ", b" 5", b"5\t", b"\t5", b"5\x0b", b"\x0b5", b"5\x00",
    b"\x005", b"", b" ", b"g", b"5g", b"5h", b"10000000000000005", b"ffffffffffffffff5", b"ffffffffffffffff", b"fffffffffffffffb", b"8000000000000005", b"100000005", b"5_", b"0_5",
    b"5,", b"5.", b"5.0", b"5;", b"5;;", b"5;a", b"5;a=b", b"5;a=\"b;c\"", b'5;a="b', b"5 ;a", b"5\t;a=b", b"5; a = b", b"5;a\xff", b"5;=", b"5:a", b"5/a", b"5#", b"5\xa0", b"\xd9\xa5", b"A", b"a",
    b"5\r", b"\r5", b"5;\r", b"5;\x00", b"5;\x7f", b"5;a\x0b", b"0x", b"0", b"00", b"000", b"0;a", b"0 ", b" 0", b"5\r\n5", b"\r\n5", b"5\\", b"5;" + b"e" * 255, b"5;" + b"e" * 300,
]  # fmt: skip
LAST_CHUNKS = [
    b"0\n\n", b"0\r\n\n", b"0\n\r\n", b"0\r\r\n\r\n", b"0\r\n\r", b"0\r\n", b"0", b"", b"00\r\n\r\n", b"000000000000000000000\r\n\r\n", b"0;a\r\n\r\n", b"0 \r\n\r\n", b" 0\r\n\r\n", b"-0\r\n\r\n", b"+0\r\n\r\n",
    b"0x0\r\n\r\n", b"0\x00\r\n\r\n", b"\r\n\r\n", b"0\r\n \r\n", b"0\r\n\x00\r\n", b"0\r\n\r\n\r\n", b"0\r\n\r\n0\r\n\r\n", b"0\r\nx\r\n\r\n", b"0\r\n:\r\n\r\n", b"0\r\r\n", b"0\n", b"0;\n\r\n\r\n",
]  # fmt: skip
TRAILERS = [
    b"Fencing-Token: 99", b"Fencing_Token: 99", b"X-Fencing-Token: 99", b"Fencing-Holder: mallory", b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Host: evil.test", b"X-Sum: 5", b"Connection: close",
    b"X-Sum : 5", b" X-Sum: 5", b": 5", b"X-Sum", b"X-Sum: \x00", b"X-Sum: 5\rHost: evil", b"Authorization: evil", b"Trailer: X-Sum", b"Expect: 100-continue", b"X-HTTP-Method-Override: DELETE", b"Upgrade: h2c", b"X-Sum: 5\nX-B: 6",
    b"Fencing.Token: 99", b"Forwarded: for=evil", b"X-Forwarded-For: 6.6.6.6", b"X-Probe: t", b"\r", b"X-Sum:5\r\n folded", b"Set-Cookie: a=b",
]  # fmt: skip
HOSTS = [
    b"", b" ", b"evil.test", b"store.test, evil.test", b"store.test evil.test", b"user@store.test", b"store.test@evil.test", b"store.test:", b"store.test:80", b"store.test:0", b"store.test:65536", b"store.test:+80", b"store.test:8o",
    b"store.test:80:80", b"store.test/", b"store.test/x", b"store.test?x", b"store.test#x", b"STORE.test", b"store.test.", b"store..test", b".store.test", b"[::1]", b"[::1", b"::1", b"[::1]x", b"[fe80::1%25eth0]", b"store.test\x00evil", b"store%2etest", b"store.test\\evil",
    b"store_test", b"store.test\tevil", b"http://store.test", b"//store.test", b"caf\xc3\xa9.test", b"*", b"localhost", b"127.0.0.1", b"127.1", b"0x7f.1", b"a" * 300, b"store.test:00080", b"-", b"store.test;evil", b"(store.test)", b'"store.test"', b"store.test|evil",
]  # fmt: skip
TARGETS = [
    b"", b"k", b"*", b"/", b"//", b"///k", b"//evil.test/k", b"/k//a", b"/k/./a", b"/k/../a", b"/../k", b"/k/..", b"/k/.", b"/k/%2e%2e/a", b"/k/.%2e/a", b"/k/%2E/a", b"/k/..;/a", b"/k/..%3ba", b"/k/%252e%252e/a", b"/k%2fa", b"/k%2Fa", b"/k%5ca", b"/k\\a", b"/k/%5c..%5ca",
    b"/k/%00", b"/k/%0d%0a", b"/k/%0aHost:%20evil", b"/k/%09", b"/k/%7f", b"/k/%c2%85", b"/k/%zz", b"/k/%", b"/k/%1", b"/k/%u0041", b"/k/%c0%ae", b"/k/%c0%af", b"/k/%e0%80%af", b"/k/%ff", b"/k/%ed%a0%80", b"/k/caf%C3%A9", b"/k/caf\xc3\xa9", b"/k/\xff", b"/k;a=b", b"/k/a;b", b"/k%3ba", b"/k?a=b?c", b"/k?", b"/k??",
    b"/k#a", b"/k#", b"/#/k", b"/k?a#b", b"/k%23a", b"/k%3fa=b", b"/k/", b"/k//", b"/k/a/", b"/k/%20", b"/k/a b", b"/k/a\tb", b"/k/a|b", b"/k/<a>", b'/k/"a"', b"/k/{a}", b"/k/[a]", b"/k/^a", b"/k/`a", b"/k/a+b", b"/k/a%2bb", b"/k/~a", b"/k/%7ea", b"/k/a:b@c!$&'()*+,=", b"/k/%41", b"/k/%61%62", b"/K/a", b"/k/A",
    b"/k?a=%00", b"/k?a=\xff", b"/k?a=|b", b"/k?a=%zz", b"/k?a=/../b", b"/k?a=http://evil", b"k/a", b"./k", b"../k", b"?a=b", b"#", b"%2fk", b"\\k", b"/o//a", b"/o/a%2fb", b"/o/a;b", b"/o/a/", b"/o/%5ca", b"/o/../k", b"/o/%2e%2e%2fk", b"/%6f/a%2Fb", b"/%6b/a", b"/o%2f..%2fk", b"/o;x/a", b"/O/a", b"/canary", b"/%63anary", b"/canary/", b"/canar%79",
    b"/k/" + b"a" * 1100, b"/k/" + b"a" * 9000, b"/k/" + b"a" * 33000, b"/k/a\x00b", b"/k/a\x7fb", b"/k/a\x0bb", b"/k/%EF%BC%8Fa", b"/k/%E2%80%AEa", b"/k/%EF%BB%BF", b"/k/.../a", b"/k/.a", b"/k/a.", b"/k/a%2e", b"/k/ ", b"/k/%C2%A0",
]  # fmt: skip
ABSOLUTES = [
    b"http://store.test%b", b"HTTP://store.test%b", b"https://store.test%b", b"http://STORE.test.%b", b"http://store.test:80%b", b"http://store.test:8080%b", b"http://evil.test%b", b"http://user@store.test%b", b"http://store.test@evil.test%b", b"ftp://store.test%b",
    b"http:/%b", b"http:%b", b"http://%b", b"http:///%b", b"http://store.test\\%b", b"http://store.test?%b", b"http://store.test#%b", b"//store.test%b", b"store.test%b", b"store.test:80", b"http://store.test:%b", b"http://[::1]%b", b"h\x00ttp://store.test%b", b"file://%b", b"javascript:%b",
    b"http://store.test:80:80%b", b"http://store.test/\\evil%b", b"https://store.test:443%b", b"https://store.test:80%b", b"ws://store.test%b", b"http://store.test/..%b", b"http://store%%2etest%b", b"http://store.test,evil.test%b", b" http://store.test%b", b"http ://store.test%b",
]  # fmt: skip
VERSIONS = [
    b"HTTP/1.0", b"HTTP/1.2", b"HTTP/1.9", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/2", b"HTTP/3", b"HTTP/1", b"HTTP/1.", b"HTTP/.1", b"HTTP/11", b"HTTP/1.10", b"HTTP/1.01", b"HTTP/01.1", b"HTTP/1,1", b"HTTP/ 1.1", b"HTTP/1 .1", b"http/1.1", b"Http/1.1", b"HTTPS/1.1", b"HTTP1.1", b"HTTP\\1.1", b"HTTP/1.1 ", b"HTTP/1.1\t", b"HTTP/1.1\x00",
    b"HTTP/1.1x", b"XHTTP/1.1", b"HTTP/-1.1", b"HTTP/+1.1", b"HTTP/1.1.1", b"HTTP/1.1 HTTP/1.1", b"", b"ICY", b"SIP/2.0", b"HTTP/9.9", b"HTTP/1.\xd9\xa1", b"\x00HTTP/1.1", b"HTTP/1.1\r", b"HTTP/4294967297.1", b"HTTP/1.4294967297", b"RTSP/1.0", b"HTTP/1.1;a", b"HTTP/1.1,",
]  # fmt: skip
METHODS = [
    b"", b"get", b"Get", b"put", b"pUT", b"G ET", b"GET\x00", b"\x00GET", b"GET\t", b"\tGET", b" GET", b"GET:", b"GET/", b"(GET)", b"G\xc9T", b"X", b"M-SEARCH", b"PROPFIND", b"REPORT", b"SEARCH", b"LOCK", b"COPY", b"TRACE", b"trace", b"TRACK", b"CONNECT", b"connect", b"PRI", b"OPTIONS", b"HEAD", b"HEAD", b"head", b"QUERY",
    b"A" * 64, b"A" * 65, b"A" * 2000, b"!#$%&'*+-.^_`|~0", b'"GET"', b"GET,PUT", b"GET;", b"GET=", b"{GET}", b"GET\\", b"@", b"\xef\xbb\xbfGET", b"GET\x0b", b"GET\x7f", b"HTTP/1.1", b"PUT\r\nHost:", b"SOURCE", b"STOR", b"\x16\x03\x01", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\nGET",
]  # fmt: skip
NAMES = [
    b"X A", b"X\x00A", b"X\tA", b"X\rA", b"X\x0bA", b"X(A)", b"X/A", b"X[A]", b"X{A}", b'X"A"', b"X,A", b"X;A", b"X=A", b"X?A", b"X@A", b"X\\A", b"X<A>", b"X\x7fA", b"X\x80A", b"X\xc3\xa9", b"X_A", b"X.A", b"X!A", b"X~A", b"X|A", b"X`A", b"X^A", b"X%41", b"X'A", b"X*A", b"X+A", b"X#A", b"X$A", b"X&A", b"1", b"-", b"_", b"",
    b"\xef\xbb\xbfX-A", b"X-A\xa0", b"X" * 256, b"X" * 257, b"X" * 9000, b"HTTP_HOST", b"HTTP_FENCING_TOKEN", b"REQUEST_METHOD", b":path", b":authority", b":method",
]  # fmt: skip
OPTIONS = [
    b"fencing-token", b"Fencing-Token", b"X-Fencing-Token", b"fencing_token", b"fencing.token", b"fencing-holder", b"host", b"content-length", b"transfer-encoding", b"authorization", b"keep-alive", b"close", b"close, keep-alive", b"keep-alive, close", b"CLOSE", b" close", b"x-probe", b"cookie",
    b'"fencing-token"', b"fencing-token;q=1", b"fencing-token=1", b"fencing token", b"fencing-token\x00", b"(fencing-token)", b"\xa0fencing-token", b"fencing-token/1", b",", b", ,close", b"", b"upgrade", b"Upgrade, HTTP2-Settings", b"te", b"TE, trailers", b"close;q=0", b'"close"', b"closed", b"x\x0bclose", b"via", b"x-forwarded-for", b"connection",
    b"keep-alive, fencing-token", b"close,fencing-token", b"fencing-token,", b"\tfencing-token\t", b"expect", b"trailer", b"upgrade;x", b"[close]", b"fencing-token\xe2\x80\x8b", b"content\xadlength", b"date", b"if-match", b"range",
]  # fmt: skip
EXPECTATIONS = [b"100-continue", b"100-Continue", b"100-continue, 100-continue", b"200-ok", b"100-continue, x", b"", b",", b"100", b"continue", b'"100-continue"', b"100-continue;q=1", b"100-continue\x00", b"x", b"100 -continue", b"100-continue=1"]
UPGRADES = [b"websocket", b"h2c", b"h2c, websocket", b"websocket, h2c", b"HTTP/2.0", b"TLS/1.0", b'"h2c"', b"h2c;q=1", b"", b"h2c\x00", b"H2C", b"h2", b"x/h2c", b"h2c/1", b"websocket;h2c", b"http/1.1", b"h2c websocket", b"(h2c)", b"quic"]
TOKENS = [
    b"", b" ", b"0", b"0.0", b"034", b"34.", b".34", b"1.2.3", b"+34", b"-34", b"3 4", b"34, 99", b"34,34", b"34;v=1", b'"34"', b"0x22", b"3e1", b"34_0", b"18446744073709551615", b"18446744073709551616", b"0018446744073709551615", b"000000000000000000034", b"7.1", b"\xd9\xa3\xd9\xa4", b"34\xa0", b"34\x00", b"34\x0b", b"\xef\xbb\xbf34", b"34\r", b"34\t", b"\t34", b"9" * 10_000,
    b"34#", b"34\xff", b"(34)", b"34 (x)", b"null", b"34\r\n 99", b"34\x7f", b"e30.e30.x", b"1", b"99", b"50",
]  # fmt: skip
TWINS = [
    b"Fencing_Token: 99", b"X_Fencing_Token: 99", b"X-Fencing_Token: 99", b"Fencing-Token: 99", b"X-Fencing-Token: 99", b"fencing-token: 34", b"FENCING_TOKEN: 34", b"Fencing.Token: 99", b"Fencing!Token: 99", b"Fencing-Token : 99", b"Fencing-Token\x00: 99", b"Fencing Token: 99", b" Fencing-Token: 99", b"Fencing-Token:99\r\n", b"HTTP_FENCING_TOKEN: 99",
    b"Fencing_Holder: m", b"Content_Length: 5", b"Transfer_Encoding: chunked", b"Content.Length: 5", b"Authorization_: x", b"Fencing-Mark: 1", b"Fencing_Mark: 1", b"Fencing-Outcome: x", b"X-HTTP-Method-Override: DELETE", b"X_HTTP_Method: DELETE", b"X-Original-URL: /canary", b"X-Rewrite-URL: /canary", b"X.Original.URL: /canary", b"Fencing-Holder: a",
]  # fmt: skip


@fault
def length_beside_coding(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.chunked(b"datum", last=b"0\r\n\r\n" + dice.choice((b"", hidden)))
    length = dice.choice((b"0", b"4", b"5", b"6", b"%d" % len(message.body), b"%d" % (len(message.body) + 1), b"2147483647"))
    message.add(dice, b"Content-Length: " + length)


@fault
def coding_beside_length(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.drop(b"Transfer-Encoding")
    message.body = b"0\r\n\r\n" + hidden
    message.set(b"Content-Length", b"%d" % len(message.body))
    message.add(dice, dice.choice((b"Transfer-Encoding: ", b"Transfer-encoding:", b"TRANSFER-ENCODING:\t", b"Transfer-Encoding : ", b"Transfer_Encoding: ", b" Transfer-Encoding: ", b"X: y\nTransfer-Encoding: ", b"X: y\rTransfer-Encoding: ", b"Transfer-Encoding\x00: ", b"Transfer\xadEncoding: ")) + dice.choice((b"chunked", *CODINGS)))


@fault
def obscured_coding(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.chunked(b"datum", last=b"0\r\n\r\n" + dice.choice((b"", hidden)))
    message.set(b"Transfer-Encoding", dice.choice(CODINGS))


@fault
def obscured_coding_beside_length(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.drop(b"Transfer-Encoding")
    message.body = b"0\r\n\r\n" + hidden
    message.set(b"Content-Length", dice.choice((b"%d" % len(message.body), b"5", b"0")))
    message.add(dice, b"Transfer-Encoding: " + dice.choice(CODINGS))


@fault
def two_codings(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.chunked(b"datum", last=b"0\r\n\r\n" + hidden)
    message.add(dice, b"Transfer-Encoding: " + dice.choice((b"chunked", *CODINGS)))


@fault
def coding_on_1_0(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.version = b"HTTP/1.0"
    message.chunked(b"datum", last=b"0\r\n\r\n" + hidden)
    message.set(b"Connection", b"keep-alive")


@fault
def odd_length(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.drop(b"Transfer-Encoding")
    message.set(b"Content-Length", dice.choice(LENGTHS))
    message.body = dice.choice((b"datum", b"", b"datum" + hidden, hidden))


@fault
def two_lengths(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.drop(b"Transfer-Encoding")
    message.body = b"datum" + hidden
    one, other = dice.choice(((b"5", b"5"), (b"5", b"%d" % len(message.body)), (b"%d" % len(message.body), b"5"), (b"0", b"5"), (b"5", b"05"), (b"5", b"")))
    message.set(b"Content-Length", one)
    message.add(dice, dice.choice((b"Content-Length: ", b"content-length:", b"Content-Length : ", b"Content_Length: ", b"Content-Length\x00: ", b" Content-Length: ")) + other)


@fault
def length_too_long_or_short(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.drop(b"Transfer-Encoding")
    message.body = b"datum" + hidden
    message.set(b"Content-Length", b"%d" % dice.choice((0, 1, 4, 5, len(message.body) - 1, len(message.body), len(message.body) + 1, len(message.body) + 400)))


@fault
def body_without_framing(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.drop(b"Transfer-Encoding")
    message.drop(b"Content-Length")
    message.body = dice.choice((hidden, b"\r\n" + hidden, b"datum" + hidden))


@fault
def odd_chunk_size(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.chunked()
    message.body = dice.choice(CHUNK_SIZES) + b"\r\n" + dice.choice((b"datum", hidden)) + b"\r\n0\r\n\r\n" + dice.choice((b"", hidden))


@fault
def odd_chunk_line_end(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.chunked()
    message.body = b"5" + dice.choice((b"", b";a", b";")) + dice.choice(ENDS) + b"datum" + dice.choice((b"\r\n", *ENDS)) + b"0\r\n\r\n" + hidden


@fault
def canary_in_an_extension(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.chunked()
    one_line = hidden.replace(b"\r\n", dice.choice((b"\n", b"\r", b"\r\n")))
    message.body = b"5;" + dice.choice((b"", b"\n", b"\r", b'"')) + one_line + b"\r\ndatum\r\n0\r\n\r\n"


@fault
def long_extensions(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.chunked()
    message.body = b"".join(b"1;" + b"e" * dice.choice((1, 200, 253, 254, 255, 256, 5000)) + b"\r\nx\r\n" for _ in range(dice.choice((1, 5, 70)))) + b"0\r\n\r\n"


@fault
def chunk_of_another_length(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.chunked()
    message.body = b"%x\r\n" % dice.choice((1, 3, 4, 6, 7, 50)) + b"datum\r\n0\r\n\r\n" + hidden


@fault
def odd_last_chunk(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.chunked(b"datum", last=dice.choice(LAST_CHUNKS) + dice.choice((b"", hidden)))


@fault
def trailers(dice: random.Random, message: Message, hidden: bytes) -> None:
    lines = dice.choices(TRAILERS, k=dice.choice((1, 1, 2, 3)))
    if dice.random() < 0.7:
        message.add(dice, b"Trailer: " + b", ".join(line.partition(b":")[0] for line in lines))
    message.chunked(b"datum", last=b"0\r\n" + b"".join(line + b"\r\n" for line in lines) + dice.choice((b"\r\n", b"\n", b"", b"\r\n" + hidden)))


@fault
def canary_in_trailers(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.chunked(b"datum", last=b"0\r\n" + dice.choice((b"", b"X-Sum: 5\r\n", b"X-Sum: 5\n\n", b"\n", b"X: \r\r\n")) + hidden)


@fault
def odd_line_end(dice: random.Random, message: Message, hidden: bytes) -> None:
    at = dice.randrange(-1, len(message.lines))
    end = dice.choice(ENDS)
    if at < 0:
        message.first_end = end
    else:
        message.lines[at] = message.lines[at].removesuffix(b"\r\n") + end


@fault
def odd_head_end(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.head_end = dice.choice((b"\n", b"\r", b"\r\r\n", b"\n\r\n", b" \r\n", b"\t\r\n\r\n", b"\x00\r\n", b"\r\n\n", b"", b"\x0b\r\n\r\n", b"\n\n"))
    message.after += dice.choice((b"", hidden))


@fault
def control_in_a_line(dice: random.Random, message: Message, hidden: bytes) -> None:
    at = dice.randrange(len(message.lines))
    line = message.lines[at]
    place = dice.randint(0, len(line))
    message.lines[at] = line[:place] + dice.choice(ODD) + line[place:]


@fault
def canary_behind_a_value(dice: random.Random, message: Message, hidden: bytes) -> None:
    end = dice.choice((b"\r", b"\n", b"\n\n", b"\r\r", b"\x00", b"\x85", b"\xc4\x8d\xc4\x8a", b"%0d%0a", b"\\r\\n", b"\xe5\x98\x8d\xe5\x98\x8a", b"\x0b", b"\r\x00\n"))
    one_line = hidden.strip(b"\r\n").replace(b"\r\n", end)
    message.add(dice, b"X-A: b" + end + one_line)


@fault
def folded_line(dice: random.Random, message: Message, hidden: bytes) -> None:
    at = dice.randrange(len(message.lines))
    name, _, value = message.lines[at].removesuffix(b"\r\n").partition(b":")
    fold = dice.choice((b"\r\n ", b"\r\n\t", b"\n ", b"\r ", b"\r\n\x0b", b"\r\n \r\n "))
    cut = dice.randint(0, len(value))
    message.lines[at] = name + b":" + value[:cut] + fold + value[cut:] + b"\r\n"


@fault
def space_at_the_colon(dice: random.Random, message: Message, hidden: bytes) -> None:
    at = dice.randrange(len(message.lines))
    name, _, value = message.lines[at].partition(b":")
    space = dice.choice((b" ", b"\t", b"  ", b"\x0b", b"\x0c", b"\x00", b"\xa0", b"\r", b"\xc2\xa0"))
    message.lines[at] = name + dice.choice((space + b":", b":" + space, b"::", b" " + space + b":")) + value


@fault
def space_before_a_line(dice: random.Random, message: Message, hidden: bytes) -> None:
    at = dice.choice((0, 0, dice.randrange(len(message.lines))))
    message.lines[at] = dice.choice((b" ", b"\t", b"\x0b", b"\x00", b"\r", b"  ", b"\xa0")) + message.lines[at]


@fault
def line_without_a_colon(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.add(dice, dice.choice((b"garbage", b"X-A b", b"X-A", b"X-A;b", b"GET /canary HTTP/1.1", b"HTTP/1.1 200 OK", b":", b": x", b"::", b":x", b"\x00", b"X-A=b", b"--", b"\xef\xbc\x9a")))


@fault
def odd_host(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.set(b"Host", dice.choice(HOSTS))


@fault
def two_hosts(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.add(dice, dice.choice((b"Host: ", b"host:", b"Host : ", b" Host: ", b"Host\x00: ", b"H\x6fst:", b"X: y\nHost: ", b"HOST: ")) + dice.choice((HOST, b"evil.test", *HOSTS)))


@fault
def no_host(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.drop(b"Host")
    message.version = dice.choice((b"HTTP/1.1", b"HTTP/1.0"))


@fault
def absolute_target(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.target = dice.choice(ABSOLUTES).replace(b"%b", message.target).replace(b"%%", b"%")


@fault
def odd_target(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.target = dice.choice(TARGETS)
    # A key of its own, where that leaves the oddity alone.
    if message.target.startswith(b"/k/"):
        message.target = b"/k/%b/" % message.probe + message.target[3:]


@fault
def odd_byte_in_the_target(dice: random.Random, message: Message, hidden: bytes) -> None:
    place = dice.randint(0, len(message.target))
    message.target = message.target[:place] + dice.choice((*ODD, b" ", b"%", b"#", b"?", b"\\", b"|", b";", b"/../", b"//", b"%2f", b"%00", b'"')) + message.target[place:]


@fault
def canary_in_the_target(dice: random.Random, message: Message, hidden: bytes) -> None:
    end = dice.choice((b"\r\n", b"\n", b"\r", b"%0d%0a", b"\x00", b"\xc4\x8d\xc4\x8a", b"\x0b"))
    message.target += b" HTTP/1.1" + end + b"Host: store.test" + end + end + hidden.replace(b"\r\n", end)


@fault
def odd_version(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.version = dice.choice(VERSIONS)
    message.after += dice.choice((b"", b"", hidden))


@fault
def odd_method(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.method = dice.choice(METHODS)


@fault
def odd_spaces_in_the_first_line(dice: random.Random, message: Message, hidden: bytes) -> None:
    space = dice.choice((b"", b"  ", b"\t", b" \t", b"\x0b", b"\x0c", b"\r", b"\xa0", b"\x00", b"   ", b"\r\n "))
    kind = dice.randrange(4)
    if kind == 0:
        message.after_method = space
    elif kind == 1:
        message.after_target = space
    elif kind == 2:
        message.version += space
    else:
        message.target += b" x"


@fault
def bytes_before_the_request(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.before = dice.choice((b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\r\n" * 9, b" ", b"\t", b"\x00", b"\xef\xbb\xbf", b"x", b"\r\n ", b"\n\n", b"\r\r\n", b"0\r\n\r\n", b"\x16\x03\x01\x02\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"PROXY TCP4 6.6.6.6 1.1.1.1 1 2\r\n", b"\r\n\x00", b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"))  # fmt: skip


@fault
def odd_name(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.add(dice, dice.choice(NAMES) + b": " + dice.choice((b"1", b"34", b"chunked")))


@fault
def odd_value(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.add(dice, b"X-A:" + dice.choice((b"", b" ", b"\t\t", b" a  b ", b"\xe9", b"caf\xc3\xa9", b"a" * 20_000, b"\x7f", b"a\x00", b"a\x1bb", b'"a', b"(", b"a\x0b", b"\x01", b"a\x85b", b"\xff\xfe", b"a, b;c=\"d\\\"\"", b"=?utf-8?q?a?=")))


@fault
def many_lines(dice: random.Random, message: Message, hidden: bytes) -> None:
    number = dice.choice((50, 95, 97, 98, 99, 100, 101, 300))
    message.lines += [b"X-%d: %d\r\n" % (at, at) for at in range(number)]


@fault
def large_head(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.lines += [b"X-%d: %b\r\n" % (at, b"v" * 1000) for at in range(dice.choice((10, 40, 70)))]


@fault
def connection_options(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.add(dice, b"Connection: " + dice.choice(OPTIONS))
    if dice.random() < 0.4:
        message.add(dice, b"Connection: " + dice.choice(OPTIONS))
    if dice.random() < 0.3:
        message.after += hidden


@fault
def expectation(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.add(dice, b"Expect: " + dice.choice(EXPECTATIONS))
    if dice.random() < 0.3:
        message.version = b"HTTP/1.0"


@fault
def upgrade(dice: random.Random, message: Message, hidden: bytes) -> None:
    if dice.random() < 0.3:
        # It is no read, whatever its method.
        message.method = b"GET"
        message.drop(b"Fencing-Token")
    message.add(dice, b"Upgrade: " + dice.choice((b"websocket", dice.choice(UPGRADES))))
    if dice.random() < 0.8:
        message.add(dice, b"Connection: " + dice.choice((b"upgrade", b"Upgrade, HTTP2-Settings", b'"upgrade"', b"upgrade;q=1")))
    if dice.random() < 0.5:
        message.add(dice, b"HTTP2-Settings: AAMAAABkAAQAAP__")
    message.after += dice.choice((b"", hidden))


@fault
def odd_token(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.set(b"Fencing-Token", dice.choice(TOKENS))


@fault
def second_token(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.add(dice, dice.choice(TWINS))


@fault
def token_twice(dice: random.Random, message: Message, hidden: bytes) -> None:
    at = message.find(b"Fencing-Token")
    token = b"34" if at is None else message.lines[at].partition(b":")[2].strip()
    names = (b"Fencing-Token", b"X-Fencing-Token", b"fencing-token")
    message.add(dice, dice.choice(names) + b": " + dice.choice((token, b"99", b"1")), *([b"X-Fencing-Token: 34"] if at is None else []))


@fault
def another_path_or_method_beside_it(dice: random.Random, message: Message, hidden: bytes) -> None:
    name = dice.choice((b"X-Original-URL", b"X-Rewrite-URL", b"X_Original_URL", b"X-Original-Url", b"X-HTTP-Method-Override", b"X-HTTP-Method", b"X-Method_Override", b"X-Forwarded-Path", b"X-Forwarded-Host"))
    value = b"DELETE" if b"ethod" in name else dice.choice((b"/canary", b"/k/other", b"http://store.test/canary"))
    message.add(dice, name + b": " + value)


@fault
def stale_on_the_canarys_key(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.method = dice.choice((b"PUT", b"POST", b"DELETE", b"GET"))
    message.target = dice.choice((b"/canary", b"/canar%79", b"/canary/", b"/canary?x", b"http://store.test/canary"))
    message.set(b"Fencing-Token", dice.choice((b"1", b"49", b"0.49", b"049", b"50")))


@fault
def body_on_a_read(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.method = dice.choice((b"GET", b"HEAD", b"OPTIONS", b"GET"))
    if dice.random() < 0.5:
        message.chunked(hidden)
    else:
        message.drop(b"Transfer-Encoding")
        message.set(b"Content-Length", b"%d" % len(hidden))
        message.body = hidden


@fault
def refused_with_its_body_unread(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.method, message.target = b"PUT", b"/canary"
    message.set(b"Fencing-Token", dice.choice((b"1", b"49", b"x", b"")))
    if dice.random() < 0.5:
        message.chunked(hidden, hidden)
    else:
        message.drop(b"Transfer-Encoding")
        message.body = hidden * 3
        message.set(b"Content-Length", b"%d" % len(message.body))


@fault
def pipelined_canary(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.after += dice.choice((b"", b"\r\n", b"\n", b"\r\n\r\n", b"\x00", b"x")) + hidden


@fault
def after_the_last_request(dice: random.Random, message: Message, hidden: bytes) -> None:
    message.set(b"Connection", dice.choice((b"close", b"Close", b"keep-alive, close", b"close, x")))
    if dice.random() < 0.4:
        message.drop(b"Connection")
        message.version = b"HTTP/1.0"
    message.after += hidden


@fault
def cut_short(dice: random.Random, message: Message, hidden: bytes) -> None:
    whole = message.raw()
    message.whole = whole[: dice.randint(1, len(whole))]
    message.after = dice.choice((b"", b"\r\n\r\n", hidden))


@fault
def changed_bytes(dice: random.Random, message: Message, hidden: bytes) -> None:
    whole = bytearray(message.raw())
    for _ in range(dice.choice((1, 1, 2, 3))):
        place = dice.randrange(len(whole))
        odd = dice.choice((*ODD, b"\r\n", b":", b" ", b"0", b",", b";"))
        kind = dice.randrange(3)
        whole[place : place + (kind > 0)] = b"" if kind == 1 else odd
    message.whole, message.after = bytes(whole), b""
