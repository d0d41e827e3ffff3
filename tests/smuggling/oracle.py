"""Compares what a client sent and was told with what the gateway logged and what the upstream parsed."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field

import reference
from client import Response
from servers import Seen

# What the gateway adds, or makes anew.
ADDED = {"via", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "connection", "transfer-encoding", "content-length", "host"}


# After so many cases nothing comes any more.
LATEST = 5


@dataclass
class Sent:
    """A request that the gateway logged as forwarded, and that a plain reading of the client's bytes finds."""

    index: int
    request: reference.Request
    verdict: reference.Verdict
    logged: dict
    seen: Seen | None = None
    age: int = 0

    @property
    def lost(self) -> bool:
        return self.logged.get("status") == 200 and not (self.seen and self.seen.complete)


@dataclass
class Exchange:
    """All that is known of one case."""

    reading: reference.Reading
    responses: list[Response]
    end: str
    logged: list[dict]
    seen: list[Seen]


@dataclass
class Judged:
    findings: list[str] = field(default_factory=list)
    forwarded: int = 0
    answered: int = 0


class Oracle:
    """Keeps what outlives a case: the marks, and what may still come late."""

    def __init__(self) -> None:
        self.contract = reference.Contract()
        self.late: list[Sent] = []
        # How often the gateway refused what the contract lets pass, and upstreams what it forwarded: of interest, no error.
        self.stricter: Counter[str] = Counter()
        self.malformed: Counter[str] = Counter()

    def judge(self, exchange: Exchange) -> Judged:
        judged = Judged()
        sent = self.match(exchange, judged)
        self.compare_seen(exchange, sent, judged)
        self.compare_answers(exchange, sent, judged)
        self.late = [one for one in [*self.late, *sent] if not one.seen][-50:]
        for one in self.late:
            one.age += 1
        judged.findings += self.lost(LATEST)
        return judged

    def lost(self, age: int = 0) -> list[str]:
        """What was answered 200 so many cases ago, and seen by no upstream. Servers of several threads log out of order."""
        lost = [one for one in self.late if one.lost and one.age >= age]
        self.late = [one for one in self.late if one not in lost]
        return [f"LOST: answered 200, and no upstream saw it: {one.logged['method']} {one.logged['path']}" for one in lost]

    def match(self, exchange: Exchange, judged: Judged) -> list[Sent]:
        """Which request of the client's bytes each line of the log is about."""
        lines = [line for line in exchange.logged if line.get("decision") in ("admitted", "unfenced")]
        sent = []
        for index, request in enumerate(exchange.reading.requests):
            verdict = self.contract.judge(request)
            line = lines[0] if lines and is_about(lines[0], request) else None
            if verdict.refused:
                if line and not later_fits(exchange.reading.requests[index + 1 :], line):
                    judged.findings.append(f"LENIENT: forwarded {request.method!r} {request.target!r}, to be refused: {verdict.refused}")
                    sent.append(Sent(index, request, verdict, lines.pop(0)))
                continue
            if not line:
                if index < len(exchange.responses) and exchange.responses[index].by_gateway:
                    self.stricter[reason_of(exchange.responses[index])] += 1
                continue
            sent.append(Sent(index, request, verdict, lines.pop(0)))
            judged.forwarded += 1
            self.contract.raise_mark(verdict)
            if verdict.key is not None and line.get("key") is not None and unescape(line["key"]) != cut(verdict.key):
                judged.findings.append(f"KEY: the gateway decided on {line['key']!r}, a plain reading has {verdict.key!r}")
            if token_of(line.get("token")) != verdict.token:
                judged.findings.append(f"TOKEN: the gateway decided by {line.get('token')!r}, a plain reading has {verdict.token!r}")
        for line in lines:
            judged.findings.append(f"LENIENT: forwarded what a plain reading does not find: {line['method']} {line['path']}")
        return sent

    def compare_seen(self, exchange: Exchange, sent: list[Sent], judged: Judged) -> None:
        for seen in exchange.seen:
            if seen.malformed:
                self.malformed[seen.malformed[:120]] += 1
            candidates = [one for one in [*sent, *self.late] if not one.seen]
            match = next((one for one in candidates if seen.malformed or is_same(one, seen)), None)
            if match is None:
                other = candidates[0] if candidates else None
                what = f"{seen.method!r} {seen.target!r} token {seen.tokens} probe {seen.probe!r} {seen.malformed}"
                instead = f"; it logged {other.logged['method']} {other.logged['path']}" if other else ""
                judged.findings.append(f"UNLOGGED: the upstream saw what the gateway did not log: {what}{instead}")
                continue
            match.seen = seen
            if seen.complete:
                judged.findings += differences(match, seen)

    def compare_answers(self, exchange: Exchange, sent: list[Sent], judged: Judged) -> None:
        requests = exchange.reading.requests
        by_index = {one.index: one for one in sent}
        for index, response in enumerate(exchange.responses):
            saw = response.value("x-saw-probe")
            if index >= len(requests):
                if index > len(requests) or exchange.reading.end == "end" or saw is not None or not response.by_gateway:
                    judged.findings.append(f"ANSWER: response {index + 1} ({response.status}, to {response.value('x-saw')!r}) answers no request")
                continue
            request = requests[index]
            judged.answered += 1
            one = by_index.get(index)
            if saw is None:
                if not response.by_gateway and not one:
                    judged.findings.append(f"ANSWER: response {index + 1} ({response.status}) is by nobody, to {request.method!r} {request.target!r}")
                continue
            tells = len(request.values(b"x-probe")) <= 1 and b"x-probe" not in request.options()
            if tells and (printable(saw) or "-") != (printable(request.probe) or "-"):
                judged.findings.append(f"ANSWER: the request with probe {request.probe!r} got the answer to {saw!r}")
            elif not one:
                judged.findings.append(f"ANSWER: {request.method!r} {request.target!r} was answered by the upstream, and is not logged as forwarded")
            said = (response.value("x-saw") or "").split(" ")
            if len(said) > 1 and printable(said[0]) != printable(request.method.decode("latin-1")):
                judged.findings.append(f"ANSWER: {request.method!r} was answered as {said[0]!r}")
        if exchange.end == "silent":
            judged.findings.append("HANG: neither an answer nor the end of the connection")
        elif exchange.end.startswith("garbage"):
            judged.findings.append(f"ANSWER: {exchange.end}")
        closed = bool(exchange.responses) and (exchange.responses[-1].closes or exchange.responses[-1].by_gateway)
        waiting = requests[len(exchange.responses) :]
        if waiting and not closed and waiting[0].body is not None and exchange.end in ("closed", "reset"):
            judged.findings.append(f"UNANSWERED: the connection ended before the answer to {waiting[0].method!r} {waiting[0].target!r}")


def is_about(line: dict, request: reference.Request) -> bool:
    path = reference.split_target(request.target)[1].partition(b"?")[0].decode("latin-1")
    return line["method"] == request.method.decode("latin-1") and unescape(line["path"]) == cut(path)


def later_fits(requests: list[reference.Request], line: dict) -> bool:
    return any(is_about(line, request) for request in requests)


def is_same(one: Sent, seen: Seen) -> bool:
    path = seen.target.partition("?")[0]
    return seen.method == one.logged["method"] and cut(path) == unescape(one.logged["path"])


def differences(one: Sent, seen: Seen) -> list[str]:
    """In what the upstream's reading of a request differs from the client's bytes and the gateway's decision."""
    request, found = one.request, []

    def differ(what: str, upstream: object, expected: object) -> None:
        if upstream != expected:
            found.append(f"DISAGREE: {what}: the upstream read {upstream!r}, expected {expected!r}")

    differ("target", seen.target, reference.split_target(request.target)[1].decode("latin-1"))
    tokens = {reference.read_token(token.encode("latin-1")) for token in seen.tokens}
    differ("tokens", tokens, {one.verdict.token} if one.verdict.token else set())
    hosts = request.values(b"host")
    if hosts:
        differ("host", seen.host, hosts[0].decode("latin-1"))
    if request.body is None:
        found.append("DISAGREE: the upstream read a whole request where its body is broken")
    elif seen.hash:
        differ("body", (seen.length, seen.hash), (len(request.body), hashlib.sha256(request.body).hexdigest()))
    if one.verdict.key is not None and seen.path is not None and not request.target.lower().startswith((b"/o/", b"/%6f", b"http")):
        key = "objects" + seen.path.removesuffix("/")
        differ("path as the upstream normalises it", key, one.verdict.key.removesuffix("/"))
    if seen.lines is not None:
        known = {name.decode("latin-1").lower() for name, _ in request.lines} | ADDED
        differ("names of fields", sorted({name.lower() for name, _ in seen.lines} - known), [])
        twins = [name for name, _ in seen.lines if reference.alike(name.encode("latin-1")) in reference.GUARDED and name.lower().encode() not in reference.GUARDED]
        differ("twins of guarded fields", twins, [])
    guarded = [name for name, _ in seen.trailers if reference.alike(name.encode("latin-1")) in reference.GUARDED]
    differ("guarded fields in trailers", guarded, [])
    return found


def token_of(text: str | None) -> tuple[int, int] | None:
    return reference.read_token(text.encode()) if text else None


def reason_of(response: Response) -> str:
    found = re.search(rb'"reason":"([^"]*)"', response.body)
    detail = re.search(rb'"detail":"([^"]{0,60})', response.body)
    return f"{found[1].decode() if found else response.status}: {detail[1].decode('utf-8', 'replace') if detail else ''}"


def cut(text: str) -> str:
    """As the log cuts long texts."""
    return text[:256] + "…" if len(text) > 256 else text


def unescape(text: str) -> str:
    """As the log escapes what is not printable."""
    return re.sub(r"\\u\{([0-9a-f]+)\}", lambda found: chr(int(found[1], 16)), text)


def printable(text: str) -> str:
    return re.sub(r"[^\x21-\x7e]", "?", text)
