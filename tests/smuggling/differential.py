#!/usr/bin/env python3
"""Sends malformed and odd requests through fencegate to nginx, Apache, Node and h11, and compares what everybody made of them.

    python3 tests/smuggling/differential.py                       2,000 cases through each, with a new seed
    python3 tests/smuggling/differential.py --cases 300           fewer
    python3 tests/smuggling/differential.py --upstream node --seed 7 --case 123 -v

Each case is one client connection: malformed bytes, often with another request hidden in them, and a good request behind. Then a
good request over another connection must get its own answer, whatever the first left on the gateway's connections. The upstreams
are as lenient as they can be told to be, and log what they parsed. What must hold:

- the upstream parsed no request that the gateway did not log as forwarded, and no more than it logged;
- what it parsed is what the gateway decided on: method, target, Host, token, key, body, and no field that was not sent;
- the gateway forwards nothing that a plain, strict reading of the bytes (reference.py) does not find, or must refuse;
- every answer belongs to the request that it comes back for.

The same is asked of proxies that are lenient on purpose (toys.py), which must be found out: `--toys`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import corpus
import reference
from client import Connection, Ended, Response
from oracle import Exchange, Judged, Oracle
from servers import PATIENCE, UPSTREAMS, Gateway, Missing, Seen, Upstream
from toys import TOYS, Toy


# Lenient proxies are found out soon, and hang often.
TOY_CASES = 40
# Always the same, so that being found out is no matter of luck.
TOY_SEED = 1
# What a failure shows of an access line.
LOGGED = ("method", "path", "status", "decision", "reason", "key", "token", "outcome")


@dataclass
class Report:
    """What came of a run through one proxy before one upstream."""

    upstream: str
    cases: int = 0
    forwarded: int = 0
    answered: int = 0
    seconds: float = 0.0
    findings: list[str] = field(default_factory=list)
    kinds: Counter = field(default_factory=Counter)
    stricter: Counter = field(default_factory=Counter)
    malformed: Counter = field(default_factory=Counter)


class Stage:
    """A proxy before an upstream, a client, and a connection for the requests between the cases."""

    def __init__(self, proxy: Gateway | Toy, upstream: Upstream, patience: float = PATIENCE) -> None:
        self.proxy, self.upstream, self.patience = proxy, upstream, patience
        self.oracle = Oracle()
        self.between: Connection | None = None
        self.count = 0
        self.rest: tuple[list[dict], list[Seen]] = ([], [])
        self.barrier()
        self.prepare()

    def prepare(self) -> None:
        """Raises the mark of the canary's key, so that most canaries are stale where they are seen at all."""
        raw = b"PUT /canary HTTP/1.1\r\nHost: store.test\r\nX-Probe: c-mark\r\nFencing-Token: 50\r\nContent-Length: 0\r\n\r\n"
        case = corpus.Case(0, 0, (), raw, corpus.follower("mark"), True, ())
        judged, exchange = self.run(case)
        if isinstance(self.proxy, Gateway) and (judged.findings or judged.forwarded != 2):
            raise RuntimeError(f"a good request did not pass: {judged} {exchange}")

    def run(self, case: corpus.Case) -> tuple[Judged, Exchange]:
        responses, end = self.talk(case)
        trouble = self.barrier()
        reading = reference.read(case.raw + case.follower)
        logged, seen = self.rest
        exchange = Exchange(reading, responses, end, logged, seen)
        judged = self.oracle.judge(exchange)
        judged.findings += trouble
        if not self.proxy.alive():
            judged.findings.append("DEAD: the gateway ended")
        return judged, exchange

    def finish(self) -> list[str]:
        """What is still missing when all has been waited for."""
        trouble = self.barrier() if self.proxy.alive() else []
        logged, seen = self.rest
        judged = self.oracle.judge(Exchange(reference.Reading(), [], "closed", logged, seen))
        return [*trouble, *judged.findings, *self.oracle.lost()]

    def talk(self, case: corpus.Case) -> tuple[list[Response], str]:
        reading = reference.read(case.raw + case.follower)
        requests = reading.requests
        responses: list[Response] = []
        with Connection(self.proxy.port, self.patience) as connection:
            connection.send(case.raw, case.cuts)
            first = len(requests)
            if case.pipelined or reference.read(case.raw).end != "end":
                connection.send(case.follower)
            else:
                first = len(reference.read(case.raw).requests)
            try:
                while len(responses) < len(requests):
                    if len(responses) == first:
                        connection.send(case.follower)
                    request = requests[len(responses)]
                    if request.body is None and reading.end == "incomplete":
                        connection.finish()
                    responses.append(connection.response(head=request.method == b"HEAD"))
                if first == len(requests) == len(responses) and not case.pipelined and reading.end != "malformed":
                    connection.send(case.follower if first < len(requests) else b"")
                if reading.end != "malformed":
                    connection.finish()
                while True:
                    responses.append(connection.response())
            except Ended as end:
                return responses, str(end)

    def barrier(self) -> list[str]:
        """A good request between two cases: everything that was logged before it belongs to the case before."""
        self.count += 1
        probe = f"b-{self.count}"
        raw = f"PUT /between HTTP/1.1\r\nHost: store.test\r\nX-Probe: {probe}\r\nFencing-Token: 5\r\nContent-Length: 2\r\n\r\nhi".encode()
        trouble = []
        for _ in range(2):
            if self.between is None:
                self.between = Connection(self.proxy.port, self.patience)
            try:
                self.between.send(raw)
                response = self.between.response()
                break
            except Ended:
                # An idle connection may have been closed meanwhile.
                self.between.socket.close()
                self.between = None
        else:
            return ["BETWEEN: a good request on another connection got no answer"]
        if response.value("x-saw-probe") != probe:
            saw = response.value("x-saw-probe")
            trouble.append(f"BETWEEN: a good request on another connection got {response.status}, the answer to {saw!r}: {response.body[:200]!r}")
        logged, seen = [], []
        deadline = time.monotonic() + self.patience
        waits_for_log = waits_for_seen = True
        while (waits_for_log or waits_for_seen) and time.monotonic() < deadline:
            for line in self.proxy.logged():
                if line.get("path") == "/between" and waits_for_log:
                    waits_for_log = False
                else:
                    logged.append(line)
            for request in self.upstream.seen():
                if request.probe == probe:
                    waits_for_seen = False
                else:
                    seen.append(request)
            if waits_for_log or waits_for_seen:
                time.sleep(0.0003)
        if waits_for_log or waits_for_seen:
            trouble.append("BETWEEN: a good request on another connection is not in the log of " + ("the gateway" if waits_for_log else "the upstream"))
        self.rest = (logged, seen)
        return trouble


def run(upstream: str, seed: int, cases: list[int], seconds: float, toy: str | None, verbose: bool) -> Report:
    report = Report(upstream)
    began = time.monotonic()
    with UPSTREAMS[upstream](upstream) as behind, (TOYS[toy] if toy else Gateway)(behind.port) as proxy:
        stage = Stage(proxy, behind, 0.5 if toy else PATIENCE)
        for index in cases:
            if seconds and time.monotonic() - began > seconds:
                break
            case = corpus.draw(seed, index)
            judged, exchange = stage.run(case)
            report.cases += 1
            report.forwarded += judged.forwarded
            report.answered += judged.answered
            for finding in judged.findings:
                report.kinds[finding.partition(":")[0]] += 1
            if judged.findings and len(report.findings) < 20:
                report.findings.append(describe(upstream, case, judged, exchange, toy))
            if verbose:
                show(case, judged, exchange)
            if not proxy.alive():
                break
        for finding in stage.finish():
            report.kinds[finding.partition(":")[0]] += 1
            report.findings.append(f"seed {seed}, one of the last cases before {upstream}\n    {finding}")
        report.stricter, report.malformed = stage.oracle.stricter, stage.oracle.malformed
        if not toy and proxy.alive() and (code := proxy.terminate()):
            report.findings.append(f"{upstream}: the gateway ended with {code}")
    report.seconds = time.monotonic() - began
    return report


def describe(upstream: str, case: corpus.Case, judged: Judged, exchange: Exchange, toy: str | None) -> str:
    command = f"python3 tests/smuggling/differential.py --upstream {upstream} --seed {case.seed} --case {case.index} -v"
    command += f" --toy {toy}" if toy else ""
    told = [f"response {response.status} {response.value('x-saw') or response.body[:160]}" for response in exchange.responses]
    told += [f"logged {json.dumps({name: line.get(name) for name in LOGGED})}" for line in exchange.logged]
    told += [f"seen {seen}" for seen in exchange.seen]
    lines = [f"seed {case.seed} case {case.index} before {upstream} ({', '.join(case.faults)})", *(f"    {finding}" for finding in judged.findings)]
    lines += [f"  bytes: {case.raw!r}", f"  behind them: {case.follower!r}", *(f"  {one}" for one in told), f"  again: {command}"]
    return "\n".join(lines)


def show(case: corpus.Case, judged: Judged, exchange: Exchange) -> None:
    print(f"case {case.name}: {', '.join(case.faults)}{', pipelined' if case.pipelined else ''}, cut at {case.cuts}")
    print(f"  bytes    {case.raw!r}")
    print(f"  behind   {case.follower!r}")
    print(f"  reading  {exchange.reading.end} {exchange.reading.why}")
    for request in exchange.reading.requests:
        print(f"           {request}")
    for what, entries in (("response", exchange.responses), ("logged  ", exchange.logged), ("seen    ", exchange.seen)):
        for entry in entries:
            print(f"  {what} {json.dumps(entry) if isinstance(entry, dict) else entry}")
    print(f"  end      {exchange.end}")
    print(f"  findings {judged.findings}")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--upstream", action="append", choices=list(UPSTREAMS))
    arguments.add_argument("--seed", type=int, default=int(os.environ.get("FENCEGATE_SEED", random.randrange(1, 1_000_000))))
    arguments.add_argument("--cases", type=int, default=2000)
    arguments.add_argument("--seconds", type=float, default=0, help="stop after so many, whatever is left")
    arguments.add_argument("--least", type=int, default=0, help="how many cases must have been tried before each upstream by then")
    arguments.add_argument("--case", type=int, help="this one alone")
    arguments.add_argument("--toys", action="store_true", help="also make sure that lenient proxies are found out")
    arguments.add_argument("--toy", choices=list(TOYS), help="this lenient proxy instead of fencegate")
    arguments.add_argument("-v", "--verbose", action="store_true")
    options = arguments.parse_args()
    cases = [options.case] if options.case is not None else list(range(options.cases))
    upstreams = options.upstream or list(UPSTREAMS)
    print(f"seed {options.seed}", flush=True)
    if options.verbose:
        reports = [run(name, options.seed, cases, options.seconds, options.toy, True) for name in upstreams]
    else:
        with ProcessPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
            running = [pool.submit(run, name, options.seed, cases, options.seconds, options.toy, False) for name in upstreams]
            toys = [pool.submit(run, "h11", TOY_SEED, list(range(TOY_CASES)), 0, toy, False) for toy in TOYS] if options.toys else []
            reports = [one.result() for one in running]
            if not found_out([one.result() for one in toys]):
                return 1
    return tell(reports, options.least)


def found_out(reports: list[Report]) -> bool:
    """Whether each toy was found out, and for what it does."""
    blind = False
    for (name, toy), report in zip(TOYS.items(), reports, strict=False):
        missed = [kind for kind in toy.caught_as if not report.kinds[kind]]
        told = ", ".join(f"{kind} {number}" for kind, number in sorted(report.kinds.items()))
        print(f"lenient proxy {name}: {told} in {report.cases} cases{'; NOT FOUND OUT: ' + ', '.join(missed) if missed else ''}")
        blind |= bool(missed)
    return not blind


def tell(reports: list[Report], least: int) -> int:
    failed = 0
    for report in reports:
        for finding in report.findings:
            print(f"\n{finding}")
        kinds = ", ".join(f"{kind} {number}" for kind, number in sorted(report.kinds.items()))
        print(f"{report.upstream}: {report.cases} cases, {report.forwarded} requests forwarded, {report.answered} answered, in {report.seconds:.1f} s: {kinds or 'nothing found'}")
        for what, counter in (("refused beyond the contract", report.stricter), ("forwarded, malformed to it", report.malformed)):
            for text, number in counter.most_common(12):
                print(f"    {what}: {number} x {text}")
        if few := report.cases < least:
            print(f"    too few: {least} cases were to be tried at the least")
        failed += few or bool(report.findings)
    print(f"{len(reports) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Missing as missing:
        print(missing, file=sys.stderr)
        sys.exit(2)
