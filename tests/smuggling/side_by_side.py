#!/usr/bin/env python3
"""Sends the same malformed requests to fencegate, nginx and HAProxy, and writes a table of what each did into docs/SECURITY-TESTS.md.

    python3 tests/smuggling/side_by_side.py                fails where fencegate is less strict, or breaks a valid request
    python3 tests/smuggling/side_by_side.py --write        also writes the table
    python3 tests/smuggling/side_by_side.py --class trailers -v

Each of the three stands before an upstream that keeps the bytes it got. A request is *refused* where nothing of it reached the upstream
whole and the client got an error; *closed* where it got no answer; *repaired* where the upstream got a request without what was wrong
about it; *passed on* where it got what was wrong. Of a request that was refused while its body was on its way, the head may have
reached the upstream; it counts as refused, since no upstream got it whole.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import classes
import marked
import reference
from client import Connection, Ended, Response
from recorder import Received, Recorder
from servers import Gateway, HaproxyProxy, Missing, NginxProxy, Server, binary, program

PROXIES = {"fencegate": Gateway, "nginx": NginxProxy, "HAProxy": HaproxyProxy}
# How long to wait for more of an answer, or for bytes at the upstream that should not come.
SILENCE = 0.5
REFUSED, CLOSED, REPAIRED, PASSED = "refused", "closed", "repaired", "passed on"
STRICTNESS = {REFUSED: 2, CLOSED: 2, REPAIRED: 1, PASSED: 0}


@dataclass
class Sent:
    """What came of one request through one proxy."""

    responses: list[Response]
    end: str
    received: list[Received]


class Lane:
    """One proxy before a recorder of its own."""

    def __init__(self, stack: ExitStack, name: str) -> None:
        self.recorder = stack.enter_context(Recorder())
        self.proxy: Server = stack.enter_context(PROXIES[name](self.recorder.port))

    def send(self, raw: bytes) -> Sent:
        self.recorder.take()
        responses = []
        with Connection(self.proxy.port, SILENCE) as connection:
            connection.send(raw)
            head = raw.lstrip(b"\r\n").startswith(b"HEAD ")
            try:
                while True:
                    responses.append(connection.response(head=head))
                    connection.finish()
            except Ended as ended:
                end = str(ended)
        return Sent(responses, end, self.settle())

    def settle(self) -> list[Received]:
        """What the upstream got, once nothing more comes."""
        received = self.recorder.take()
        deadline = time.monotonic() + SILENCE
        while time.monotonic() < deadline:
            time.sleep(0.005)
            more = self.recorder.take()
            if not more:
                break
            received += more
        return received


def to_all(lanes: dict[str, Lane], raw: bytes) -> dict[str, Sent]:
    """At once, since each mostly waits for what should not come."""
    with ThreadPoolExecutor(len(lanes)) as threads:
        return dict(zip(lanes, threads.map(lambda lane: lane.send(raw), lanes.values()), strict=True))


def judge(sent: Sent, odd: classes.Odd) -> str:
    raw = b"".join(one.raw for one in sent.received)
    answered = [response for response in sent.responses if response.value("x-recorder")]
    if not raw or not answered:
        return REFUSED if sent.responses and sent.responses[0].status >= 400 else CLOSED
    return PASSED if odd(raw) else REPAIRED


def passes(sent: Sent, raw: bytes) -> bool:
    """Whether the upstream got this request and no other, and the client its answer."""
    if len(sent.responses) != 1 or sent.responses[0].status != 200 or sent.responses[0].value("x-recorder") is None:
        return False
    whole = [request for one in sent.received for request in one.reading.requests]
    return [made_of(request) for request in whole] == [made_of(request) for request in reference.read(raw).requests]


def made_of(request: reference.Request) -> tuple[bytes, bytes, bytes | None]:
    return request.method, reference.split_target(request.target)[1], request.body


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--write", action="store_true")
    arguments.add_argument("--class", dest="only", default="", help="only classes with this in their name")
    arguments.add_argument("-v", "--verbose", action="store_true")
    options = arguments.parse_args()
    with ExitStack() as stack:
        lanes = {name: Lane(stack, name) for name in PROXIES}
        table, laxer = strictness(lanes, options)
        valid, broken = validity(lanes, options) if not options.only else ([], [])
    lines = ["| malformed | " + " | ".join(PROXIES) + " |", "| --- |" + " --- |" * len(PROXIES), *table, "", *valid]
    print("\n".join(lines))
    for finding in [*laxer, *broken]:
        print(finding)
    if options.write and not options.only:
        marked.write("side-by-side", [versions(), "", *lines], "python3 tests/smuggling/side_by_side.py --write")
    print(f"{len(table) + len(valid) - len(laxer) - len(broken)} passed, {len(laxer) + len(broken)} failed")
    return 1 if laxer or broken else 0


def strictness(lanes: dict[str, Lane], options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """A row for each class, and where fencegate is less strict than another."""
    table, laxer = [], []
    for one in classes.malformed():
        if options.only not in one.name:
            continue
        counts = {name: Counter() for name in lanes}
        for raw, odd in one.variants:
            verdicts = {name: judge(sent, odd) for name, sent in to_all(lanes, raw).items()}
            for name, verdict in verdicts.items():
                counts[name][verdict] += 1
            ours = STRICTNESS[verdicts["fencegate"]]
            if ours < max(STRICTNESS[verdict] for verdict in verdicts.values()):
                laxer.append(f"LESS STRICT: {one.name}: {verdicts}: {raw!r}")
            if options.verbose:
                print(verdicts, raw)
        cells = [", ".join(f"{number} {verdict}" for verdict in STRICTNESS if (number := counts[name][verdict])) for name in lanes]
        table.append(f"| {one.name} | " + " | ".join(cells) + " |")
    return table, laxer


def validity(lanes: dict[str, Lane], options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """How many valid requests each passes on, and which fencegate breaks that both others pass on."""
    requests = classes.valid()
    counts: Counter[str] = Counter()
    broken = []
    for raw in requests:
        sent = to_all(lanes, raw)
        passed = {name: passes(one, raw) for name, one in sent.items()}
        counts.update(name for name, fine in passed.items() if fine)
        if not passed["fencegate"]:
            told = [(response.status, response.body[:200]) for response in sent["fencegate"].responses]
            if passed["nginx"] and passed["HAProxy"]:
                broken.append(f"BROKEN: {raw!r}: {told} {sent['fencegate'].end}")
            elif options.verbose:
                print(f"not passed on: {raw!r}: {told}")
    numbers = ", ".join(f"{name} {counts[name]}" for name in lanes)
    return [f"Of {len(requests)} odd requests that are valid, passed on: {numbers}."], broken


def versions() -> str:
    def first(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return (done.stdout + done.stderr).splitlines()[0]

    nginx = first(program("nginx"), "-v").rpartition("/")[2]
    haproxy = first(program("haproxy"), "-v").split(" ")[2]
    return f"{first(binary(), '--version')}, nginx {nginx}, HAProxy {haproxy}."


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Missing as missing:
        print(missing, file=sys.stderr)
        sys.exit(2)
