"""A plain reading of a client's bytes: which requests they hold, and what the contract says of each.

It is written from the RFCs and the contract, not from the gateway's code, and does not share its structure: it has all bytes at
once, and is slow. Where the RFCs leave a choice it takes the strict one that the contract names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

TCHAR = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
TOKEN = re.compile(rb"\A" + TCHAR + rb"+\Z")
REQUEST_LINE = re.compile(rb"\A(" + TCHAR + rb"{1,64}) ([\x21\x22\x24-\x7e]+) HTTP/1\.([01])\Z")
FIELD_LINE = re.compile(rb"\A(" + TCHAR + rb"{1,256}):([^\x00-\x08\x0a-\x1f\x7f]*)\Z")
CHUNK_LINE = re.compile(rb"\A([0-9A-Fa-f]{1,16})(;[^\x00-\x08\x0a-\x1f\x7f]{0,255})?\Z")
FENCING_TOKEN = re.compile(rb"\A(?:([0-9]{1,20})\.)?([0-9]{1,20})\Z")
SEGMENT = re.compile(rb"\A(?:[A-Za-z0-9._~!$&'()*+,=:@-]|%[0-9A-Fa-f]{2})*\Z")
HOST = re.compile(rb"\A(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=-]+?\.?)(?::([0-9]*))?\Z")

TOKEN_NAMES = (b"fencing-token", b"x-fencing-token")
GUARDED = (*TOKEN_NAMES, b"fencing-holder", b"host", b"authorization", b"content-length", b"transfer-encoding")
SAFE = (b"GET", b"HEAD", b"OPTIONS", b"PROPFIND", b"REPORT", b"SEARCH")


class Malformed(Exception):
    """What is wrong with the bytes."""


class Incomplete(Exception):
    """The bytes end too early."""


@dataclass
class Request:
    """One request as it stands in the bytes. `body` is None where it is broken or ends too early."""

    method: bytes
    target: bytes
    minor: int
    lines: list[tuple[bytes, bytes]]
    body: bytes | None = None
    last: bool = False

    def values(self, name: bytes) -> list[bytes]:
        return [value for known, value in self.lines if known.lower() == name]

    def options(self) -> list[bytes]:
        return [option.lower() for value in self.values(b"connection") for option in elements(value)]

    @property
    def probe(self) -> str:
        return b",".join(self.values(b"x-probe")).decode("latin-1")


@dataclass
class Reading:
    """The requests at the front of the bytes, and how it goes on behind them: "end", "incomplete" or "malformed"."""

    requests: list[Request] = field(default_factory=list)
    end: str = "end"
    why: str = ""


def read(stream: bytes) -> Reading:
    """All requests of one connection, up to its end or to the first that is broken."""
    reading = Reading()
    at = 0
    while at < len(stream):
        try:
            request, at = read_head(stream, at)
            reading.requests.append(request)
            request.body, at = read_body(request, stream, at)
        except Malformed as why:
            reading.end, reading.why = "malformed", str(why)
            return reading
        except Incomplete:
            reading.end = "incomplete"
            return reading
        if request.last:
            return reading
    return reading


def read_head(stream: bytes, at: int) -> tuple[Request, int]:
    if stream.startswith(b"\r\n", at):
        at += 2
    if at == len(stream) or stream[at:] == b"\r":
        raise Incomplete
    if not TOKEN.match(stream[at : at + 1]):
        raise Malformed("no method")
    first, at = line(stream, at, 66_000)
    found = REQUEST_LINE.match(first)
    if not found or len(found[2]) > 65_534:
        raise Malformed("request line")
    request = Request(found[1], found[2], int(found[3]), [])
    start = at
    while True:
        text, at = line(stream, at, 70_000)
        if not text:
            break
        found = FIELD_LINE.match(text)
        if not found:
            raise Malformed("field line")
        request.lines.append((found[1], found[2].strip(b" \t")))
        if len(request.lines) > 100 or at - start > 64 * 1024:
            raise Malformed("too large")
    check_framing(request)
    options = request.options()
    request.last = b"close" in options or (request.minor == 0 and b"keep-alive" not in options)
    return request, at


def check_framing(request: Request) -> None:
    lengths, codings = request.values(b"content-length"), request.values(b"transfer-encoding")
    if len(request.values(b"host")) > 1:
        raise Malformed("two hosts")
    if len(lengths) + len(codings) > 1:
        raise Malformed("two framings")
    if lengths and not (re.match(rb"\A[0-9]{1,20}\Z", lengths[0]) and int(lengths[0]) < 2**63):
        raise Malformed("length")
    if codings and (codings[0].lower() != b"chunked" or request.minor == 0):
        raise Malformed("coding")


def read_body(request: Request, stream: bytes, at: int) -> tuple[bytes, int]:
    if request.values(b"transfer-encoding"):
        return read_chunks(stream, at)
    length = int((request.values(b"content-length") or [b"0"])[0])
    if at + length > len(stream):
        raise Incomplete
    return stream[at : at + length], at + length


def read_chunks(stream: bytes, at: int) -> tuple[bytes, int]:
    body, extensions = b"", 0
    while True:
        text, at = line(stream, at, 16 + 256)
        found = CHUNK_LINE.match(text)
        if not found:
            raise Malformed("chunk size")
        extensions += len(found[2] or b"")
        if extensions > 16 * 1024:
            raise Malformed("chunk extensions")
        size = int(found[1], 16)
        if size >= 2**63:
            raise Malformed("chunk size")
        if size == 0:
            break
        if at + size + 2 > len(stream):
            if stream[at + size :] not in (b"", b"\r"):
                raise Malformed("chunk end")
            raise Incomplete
        if stream[at + size : at + size + 2] != b"\r\n":
            raise Malformed("chunk end")
        body += stream[at : at + size]
        at += size + 2
    trailers, start = 0, at
    while True:
        text, at = line(stream, at, 16 * 1024)
        if not text:
            return body, at
        trailers += 1
        if not FIELD_LINE.match(text) or trailers > 100 or at - start > 16 * 1024:
            raise Malformed("trailer")


def line(stream: bytes, at: int, most: int) -> tuple[bytes, int]:
    """The line at `at`, which ends in CRLF and has no other LF."""
    end = stream.find(b"\n", at)
    if end < 0:
        if len(stream) - at > most:
            raise Malformed("line too long")
        raise Incomplete
    if stream[end - 1 : end] != b"\r" or end == at:
        raise Malformed("bare LF")
    return stream[at : end - 1], end + 1


def elements(value: bytes) -> list[bytes]:
    return [part.strip(b" \t") for part in value.split(b",") if part.strip(b" \t")]


def alike(name: bytes) -> bytes:
    """The name as servers see it that make a variable of it."""
    return re.sub(rb"[^a-z0-9]", b"-", name.lower())


@dataclass
class Verdict:
    """What the contract says of one request: `refused` says why; `key` and `token` are None where it is not fenced."""

    refused: str = ""
    key: str | None = None
    token: tuple[int, int] | None = None


class Contract:
    """The fence as the contract has it, for the routes of this test; it keeps the marks."""

    OPAQUE = b"/o/"

    def __init__(self) -> None:
        self.marks: dict[str, tuple[int, int]] = {}

    def judge(self, request: Request) -> Verdict:
        for rule in (self.method_and_target, self.host, self.names, self.expectation):
            if refused := rule(request):
                return Verdict(refused)
        path = split_target(request.target)[1].partition(b"?")[0]
        key = read_path(path, strict=not unquote_to_bytes(path).startswith(self.OPAQUE))
        if key is None:
            return Verdict("ambiguous path")
        values = [value for name in TOKEN_NAMES for value in request.values(name)]
        if len(values) > 1:
            return Verdict("two tokens")
        token = read_token(values[0]) if values else None
        if values and token is None:
            return Verdict("malformed token")
        holders = request.values(b"fencing-holder")
        if token is None:
            if request.method not in SAFE or is_tunnel(request):
                return Verdict("no token")
            return Verdict()
        if not key or len(key) > 1024:
            return Verdict("no key")
        if len(holders) > 1:
            return Verdict("two holders")
        name = "objects/" + key.decode("utf-8")
        if token < self.marks.get(name, (0, 0)):
            return Verdict("stale")
        return Verdict(key=name, token=token)

    def raise_mark(self, verdict: Verdict) -> None:
        """To be told of every request that was forwarded."""
        if verdict.key is not None and verdict.token is not None:
            self.marks[verdict.key] = verdict.token

    def method_and_target(self, request: Request) -> str:
        authority, path = split_target(request.target)
        if request.method.upper() in (b"TRACE", b"CONNECT"):
            return "method"
        if authority is None and not path.startswith(b"/"):
            return "target"
        return ""

    def host(self, request: Request) -> str:
        hosts = request.values(b"host")
        if not hosts:
            return "no host" if request.minor else ""
        host = HOST.match(hosts[0])
        if not host or (host[1] and int(host[1]) > 65535):
            return "host"
        authority = split_target(request.target)[0]
        default = 443 if request.target.lower().startswith(b"https:") else 80
        if authority is not None and not same_host(authority, hosts[0], default):
            return "another host"
        return ""

    def names(self, request: Request) -> str:
        for value in request.values(b"connection"):
            for option in elements(value):
                if not TOKEN.match(option):
                    return "connection option"
                if alike(option) in GUARDED:
                    return "guarded option"
        for name, _ in request.lines:
            if alike(name) in GUARDED and name.lower() not in GUARDED:
                return "twin"
        return ""

    def expectation(self, request: Request) -> str:
        expected = [one.lower() for value in request.values(b"expect") for one in elements(value)]
        return "expectation" if any(one != b"100-continue" for one in expected) else ""


def is_tunnel(request: Request) -> bool:
    """Whether the upgrade that it asks for is passed on: to another protocol than HTTP, and one by its form."""
    protocols = [protocol.lower() for value in request.values(b"upgrade") for protocol in elements(value)]
    names = [protocol.partition(b"/")[0] for protocol in protocols]
    well_formed = all(re.match(rb"\A" + TCHAR + rb"+(?:/" + TCHAR + rb"+)?\Z", protocol) for protocol in protocols)
    asked = request.minor == 1 and b"upgrade" in request.options() and bool(request.values(b"upgrade"))
    return asked and well_formed and not {b"h2c", b"h2", b"http", b"tls"}.intersection(names)


def split_target(target: bytes) -> tuple[bytes | None, bytes]:
    """Authority, where there is one, and path with query; without the fragment."""
    target = target.partition(b"#")[0]
    found = re.match(rb"\A(?i:https?)://([^/?]*)(.*)\Z", target)
    if not found:
        return None, target
    rest = found[2]
    return found[1], rest if rest.startswith(b"/") else b"/" + rest


def same_host(one: bytes, other: bytes, default: int) -> bool:
    def parts(text: bytes) -> tuple[bytes, int]:
        found = HOST.match(text)
        port = int(found[1] or 0) if found else -1
        host = text[: found.start(1) - 1] if found and found[1] is not None else text
        return host.lower().removesuffix(b"."), port or default

    return parts(one) == parts(other)


def read_path(path: bytes, *, strict: bool) -> bytes | None:
    """The key that a path makes: decoded once; None where servers would read it in different ways."""
    segments = path.removeprefix(b"/").split(b"/")
    for segment in segments:
        if not SEGMENT.match(segment if strict else segment.replace(b";", b"")):
            return None
    key = unquote_to_bytes(path.removeprefix(b"/"))
    try:
        text = key.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in text):
        return None
    separators = r"[/\\]" if "\\" in text else "/"
    for segment in re.split(separators, text):
        if segment.partition(";")[0] in (".", ".."):
            return None
    if not strict:
        return key
    if key.count(b"/") != path.count(b"/") - 1 or b"\\" in key or b";" in key:
        return None
    if segments[-1] == b"" and len(segments) > 1:
        segments.pop()
        key = key.removesuffix(b"/")
    return None if b"" in segments and len(segments) > 1 else key


def read_token(value: bytes) -> tuple[int, int] | None:
    found = FENCING_TOKEN.match(value)
    if not found:
        return None
    token = (int(found[1] or 0), int(found[2]))
    return token if max(token) < 2**64 and token != (0, 0) else None
