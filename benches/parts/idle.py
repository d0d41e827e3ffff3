"""What a connection costs that has asked once and then stays idle: memory, and CPU."""

from __future__ import annotations

import argparse
import socket
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from harness import report
from harness.load import TOKEN
from harness.machine import BenchError
from harness.part import START_SECONDS, Part
from harness.peers import Peer, Row
from harness.handshake_load import client_context
from harness.rounds import Failures, progress, rows_of_peers
from harness.stage import Stage, most_connections, peers_wanted
from harness.upstream import Upstream

TLS_CONNECTIONS = 2_500
GROUP = 50
# An idle connection is one that has been idle for a while: peers may give back then what they needed to answer.
SETTLE_SECONDS = 3.0
IDLE_SECONDS = 1.0
TIMEOUT_SECONDS = 20
# What one connection takes to be opened and asked over.
PLAIN_SECONDS, TLS_SECONDS = 0.0004, 0.0015
HEADINGS = ["peer", "KiB each", "× nginx", "RSS before MiB", "RSS with them MiB", "CPU while idle"]
# A relay has a connection to the upstream for each of its clients: what it holds is another thing.
COMPARED = ("nginx", "nginx-lua", "haproxy", "envoy", "caddy", "fencegate")


@dataclass(frozen=True)
class Held:
    """Idle connections of one peer. `core_share`: of its core while nothing happened."""

    before_bytes: int
    with_them_bytes: int
    connections: int
    core_share: float

    @property
    def each_bytes(self) -> float:
        return (self.with_them_bytes - self.before_bytes) / self.connections


def seconds(options: argparse.Namespace) -> float:
    peers = len([name for name in peers_wanted(options) if name in COMPARED])
    each = most_connections() * PLAIN_SECONDS + TLS_CONNECTIONS * TLS_SECONDS + 2 * (SETTLE_SECONDS + IDLE_SECONDS)
    return 2 * START_SECONDS + peers * each


class Client:
    """Opens connections and asks over each. Leaving the `with` block closes them."""

    def __init__(self, port: int, path: str, tls: bool):
        self._port, self._tls = port, client_context() if tls else None
        self._request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nFencing-Token: {TOKEN}\r\n\r\n".encode()
        self._stack = ExitStack()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def open(self, count: int) -> None:
        """In groups that are asked over at once, so that the proxy's answers and the next questions overlap."""
        for first in range(0, count, GROUP):
            group = [self._connect() for _ in range(min(GROUP, count - first))]
            for connection in group:
                connection.sendall(self._request)
            for connection in group:
                check_answer(connection.recv(4096))

    def _connect(self) -> socket.socket:
        plain = self._stack.enter_context(socket.create_connection(("127.0.0.1", self._port), timeout=TIMEOUT_SECONDS))
        return self._stack.enter_context(self._tls.wrap_socket(plain)) if self._tls else plain


def check_answer(answer: bytes) -> None:
    """It is small, and so comes whole in one read."""
    if not answer.startswith(b"HTTP/1.1 200"):
        raise BenchError(f"a connection that is to stay was answered {answer[:200]!r}")


def hold(peer: Peer, row: Row, count: int, tls: bool) -> Held:
    """The measure begins after a group of connections, since a first one takes what later ones share."""
    where = (peer.tls_port if tls else peer.port, f"/{row.lane}/small/42", tls)
    with Client(*where) as first:
        first.open(GROUP)
    before = peer.resident_bytes()
    with Client(*where) as client:
        client.open(count)
        time.sleep(SETTLE_SECONDS)
        resident, cpu = peer.resident_bytes(), peer.cpu_time()
        time.sleep(IDLE_SECONDS)
        return Held(before, resident, count, (peer.cpu_time() - cpu).total / IDLE_SECONDS)


def table(found: dict[Row, Held]) -> str:
    nginx = next((held.each_bytes for row, held in found.items() if row.peer == "nginx"), None)
    lines = []
    for row, held in found.items():
        lines.append(
            [
                row.label,
                f"{held.each_bytes / 1024:.1f}",
                report.format_ratio(held.each_bytes / nginx if nginx else None),
                f"{held.before_bytes / report.MEBIBYTE:.1f}",
                f"{held.with_them_bytes / report.MEBIBYTE:.1f}",
                f"{held.core_share:.1%}",
            ]
        )
    return report.markdown_table(HEADINGS, lines)


def measure(options: argparse.Namespace, title: str, count: int, tls: bool) -> dict:
    """With peers of its own: memory that was freed and not given back would hide what a connection takes."""
    found: dict[Row, Held] = {}
    failures = Failures()
    with Stage(options) as stage:
        upstream = stage.start_upstream(Upstream)
        peers = stage.start_peers(upstream.port, COMPARED)
        for row in [row for row in rows_of_peers(peers) if row.lane == "fenced"]:
            progress(f"{title}: {row.label}")
            failures.attempt(row, lambda: found.update({row: hold(peers[row.peer], row, count, tls)}))
        notes = [*failures, *(f"ABSENT: {name}: {reason}" for name, reason in stage.skipped.items())]
    report.print_table(title, table(found), notes)
    rows = [{**asdict(row), **asdict(held), "each_bytes": held.each_bytes} for row, held in found.items()]
    return {"title": title, "notes": notes, "rows": rows}


def run(options: argparse.Namespace) -> dict:
    report.print_heading("Idle connections", ["each has asked once; memory is the proxy's own, without the kernel's"], {})
    count = most_connections()
    plain = measure(options, f"{count:,} idle connections", count, tls=False)
    return {"idle": [plain, measure(options, f"{TLS_CONNECTIONS:,} idle connections by TLS", TLS_CONNECTIONS, tls=True)]}


PART = Part("idle", seconds, run, lambda document: {})
