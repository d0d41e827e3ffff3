"""Peers take turns, round after round, under the same load; each turn gives one sample."""

from __future__ import annotations

import http.client
import os
import resource
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable, Iterable, Iterator, TypeVar

from .load import HANDSHAKE_CLIENTS, TOKEN, LoadResult, Workload, run_load
from .machine import BenchError, CoreTimes, Cores
from .peers import FOR_LARGE_BODIES, ROWS, Peer, Row
from .process import CpuTime, PinnedProcess, cpu_time_of
from .suites import Suites, negotiated
from .upstream import Upstream

T = TypeVar("T")

WARM_UP_SECONDS = 1
# What a turn takes beside the load itself.
TURN_OVERHEAD_SECONDS = 0.25
# How many keys a peer is sure to see for the first time in a second.
FIRST_SIGHTS_PER_SECOND = 15_000


@dataclass(frozen=True)
class Plan:
    rounds: int
    seconds: float
    connections: int
    cores: Cores


@dataclass(frozen=True)
class Sample:
    """What one turn of one peer cost and gave. Shares are of one core, 0 to 1."""

    user_us: float
    system_us: float
    requests_per_second: float
    p50_us: float
    p99_us: float
    p999_us: float
    resident_bytes: int
    proxy_core_share: float
    others_share: float
    stolen_share: float
    upstream_connections: int
    refused_share: float = 0.0
    resumed_share: float = 0.0

    @property
    def cpu_us(self) -> float:
        return self.user_us + self.system_us


@dataclass(frozen=True)
class Spent:
    """CPU seconds of one turn: the proxy's, and the worse of the two cores' for what was not the benchmark's."""

    proxy: CpuTime
    others: float
    stolen: float


class Clocks:
    """CPU times before and after a turn. A core's time less that of the benchmark's own processes is the others'."""

    def __init__(self, peer: Peer, idle: list[Peer], upstream: PinnedProcess, cores: Cores):
        self._peer, self._idle, self._upstream, self._cores = peer, idle, upstream, cores
        self._proxy, self._others, self._stolen = self._read()

    def _read(self) -> tuple[CpuTime, list[float], list[float]]:
        cores = [CoreTimes.read(self._cores.proxy), CoreTimes.read(self._cores.load)]
        proxy = self._peer.cpu_time()
        own = [
            proxy.total + sum(each.cpu_time().total for each in self._idle),
            self._upstream.cpu_time().total + cpu_time_of(os.getpid()).total + ended_children_seconds(),
        ]
        if self._cores.proxy == self._cores.load:
            own = [sum(own)] * 2
        return proxy, [core.busy - mine for core, mine in zip(cores, own)], [core.stolen for core in cores]

    def spent(self) -> Spent:
        proxy, others, stolen = self._read()
        return Spent(
            proxy - self._proxy,
            # Below nothing where the kernel's clocks of processes and cores differ: that is left for a reader to see.
            max(now - before for now, before in zip(others, self._others)),
            max(now - before for now, before in zip(stolen, self._stolen)),
        )


def ended_children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Failures(list[str]):
    """Why rows are left out of a table."""

    def attempt(self, row: Row, step: Callable[[], object]) -> bool:
        """Takes the step; where it fails, notes why and returns false."""
        try:
            step()
        except (BenchError, OSError) as error:
            self.append(f"FAILED: {row.label}: {error}")
            return False
        return True


class Turns:
    """Everything that runs during a comparison: the upstream, and every peer that could be started."""

    def __init__(self, plan: Plan, upstream: Upstream, peers: dict[str, Peer]):
        self.plan, self.upstream, self.peers = plan, upstream, peers
        self.failures = Failures()
        self.suites = Suites()

    def compare(self, workload: Workload) -> dict[Row, list[Sample]]:
        """All rounds of one workload, after a short load on each row that is not counted.

        A row that fails is left out, with the reason in `failures`: the others' figures are still good.
        """
        self.failures.clear()
        self.suites.clear()
        attempt = self.failures.attempt
        rows = [row for row in rows_of(self.peers, workload) if attempt(row, lambda: self._prepare(row, workload))]
        samples: dict[Row, list[Sample]] = {row: [] for row in rows}
        for number, row in in_turns(rows, self.plan.rounds):
            if row in samples and not attempt(row, lambda: samples[row].append(self.turn(row, workload))):
                del samples[row]
            progress(f"{workload.title}, round {number} of {self.plan.rounds}: {row.label}")
        return samples

    def _prepare(self, row: Row, workload: Workload) -> None:
        peer = self.peers[row.peer]
        check_answer(peer.port, workload, row.lane)
        if workload.tls:
            self.suites[row.peer] = negotiated(peer.tls_port)
        self._warm_up(row, workload)

    def turn(self, row: Row, workload: Workload) -> Sample:
        peer = self.peers[row.peer]
        connections_before, requests_before = self.upstream.counters()
        clocks = Clocks(peer, others_than(peer, self.peers), self.upstream, self.plan.cores)
        result = self._load(row, workload, self.plan.seconds)
        spent = clocks.spent()
        connections_after, requests_after = self.upstream.counters()
        self._check_counts(row, workload, result, requests_after - requests_before - 1)
        admitted = result.requests - result.refused
        return Sample(
            user_us=spent.proxy.user / result.requests * 1e6,
            system_us=spent.proxy.system / result.requests * 1e6,
            requests_per_second=result.requests_per_second,
            p50_us=result.p50_us,
            p99_us=result.p99_us,
            p999_us=result.p999_us,
            resident_bytes=peer.resident_bytes(),
            proxy_core_share=spent.proxy.total / result.seconds,
            others_share=spent.others / result.seconds,
            stolen_share=spent.stolen / result.seconds,
            upstream_connections=connections_after - connections_before - 1,
            refused_share=1 - admitted / result.requests,
            # Each client has nothing to resume at first.
            resumed_share=min(1.0, (result.resumed + HANDSHAKE_CLIENTS) / result.requests) if result.resumed else 0.0,
        )

    def _warm_up(self, row: Row, workload: Workload) -> None:
        """A short load; where tokens stay, one in which every key gets its mark, which is then not what is measured."""
        asked = self._load(row, workload, WARM_UP_SECONDS).requests
        while workload.keys > 1 and not workload.skew and not workload.rise_every and asked < workload.keys:
            asked += self._load(row, workload, WARM_UP_SECONDS, first=asked).requests

    def _load(self, row: Row, workload: Workload, seconds: float, first: int = 0) -> LoadResult:
        peer = self.peers[row.peer]
        peer.require_alive()
        port = peer.tls_port if workload.tls else peer.port
        connections = connections_of(workload, self.plan)
        seconds = max(seconds, workload.at_least_seconds)
        return run_load(workload, port, row.lane, self.plan.cores.load, connections, seconds, first)

    def _check_counts(self, row: Row, workload: Workload, result: LoadResult, at_upstream: int) -> None:
        """Each admitted request reached the upstream once.

        Those that a load left unfinished at its end may have, too: this turn's, and late ones of the turn before.
        """
        admitted = result.requests - result.refused
        unfinished = 2 * max(connections_of(workload, self.plan), workload.streams)
        if not admitted <= at_upstream <= admitted + unfinished:
            raise BenchError(f"{row.label}: {admitted} requests were answered, the upstream saw {at_upstream}")


def connections_of(workload: Workload, plan: Plan) -> int:
    return workload.connections or plan.connections


def seconds_of(workload: Workload, plan_rounds: int, plan_seconds: float) -> float:
    """What all turns of one row take, the one that is not counted included."""
    lengths = [WARM_UP_SECONDS, *[plan_seconds] * plan_rounds]
    turns = sum(max(length, workload.at_least_seconds) + TURN_OVERHEAD_SECONDS for length in lengths)
    first_sights = 0 if workload.rise_every else workload.keys / FIRST_SIGHTS_PER_SECOND
    return turns + first_sights


def rows_of(names: Iterable[str], workload: Workload) -> list[Row]:
    """The relay passes TLS on to an upstream that has none, and its upstream speaks no HTTP/2."""
    wanted = set(names) & set(workload.peers or names)
    if workload.tls or workload.streams:
        wanted.discard("relay")
    if not workload.large:
        wanted -= set(FOR_LARGE_BODIES)
    return [row for row in rows_of_peers(wanted) if row.lane == "fenced" or not workload.fenced_only]


def rows_of_peers(names: Iterable[str]) -> list[Row]:
    return [row for row in ROWS if row.peer in names]


def others_than(peer: Peer, peers: dict[str, Peer]) -> list[Peer]:
    return [each for each in peers.values() if each is not peer]


def in_turns(rows: list[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Every row once a round, rounds counted from 1. Another row begins each round, so that none is always first."""
    for number in range(rounds):
        first = number % max(1, len(rows))
        for row in rows[first:] + rows[:first]:
            yield number + 1, row


def ask(port: int, method: str, path: str, body: bytes | None, token: int | None) -> tuple[int, bytes]:
    """Status and body of one request by hand."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, {} if token is None else {"Fencing-Token": str(token)})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def check_answer(port: int, workload: Workload, lane: str) -> None:
    """One request before the load: status 200 and the length of body the upstream gives."""
    path = workload.path(lane)
    status, received = ask(port, workload.method, path, b"x" * workload.body_bytes or None, TOKEN)
    if status != 200 or len(received) != workload.response_bytes:
        text = received[:300].decode(errors="replace")
        raise BenchError(f"{workload.method} {path} gave {status} and {len(received)} bytes: {text}")


def check_fence(peer: Peer) -> None:
    """A peer that is said to fence refuses what it should, so that its figures are those of a fence."""
    for token, expected in ((2, 200), (1, 409), (2, 200), (None, 428), (10**19, 200), (10**19 - 1, 409)):
        status, _ = ask(peer.port, "PUT", "/fenced/upload/fence-check", b"x", token)
        if status != expected:
            raise BenchError(f"{peer.name} answered a PUT with token {token} by {status} and not {expected}")


def progress(text: str) -> None:
    """One line that overwrites itself on a terminal; nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


@contextmanager
def progress_line() -> Iterator[None]:
    try:
        yield
    finally:
        progress("")
