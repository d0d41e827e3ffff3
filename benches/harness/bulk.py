"""Bulk transfers: one body of a gigabyte in each direction, what it costs, and whether memory stays flat."""

from __future__ import annotations

import http.client
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator

from .load import TOKEN
from .machine import BenchError, Cores
from .peers import Peer, Row
from .process import PinnedProcess
from .rounds import Clocks, Failures, in_turns, others_than, progress, rows_of_peers
from .sockets import accepts_connections

MEBIBYTE = 1 << 20
CHUNK_BYTES = MEBIBYTE
TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class Direction:
    title: str
    transfer: Callable[[int, str, int], None]


@dataclass(frozen=True)
class BulkSample:
    """One transfer, CPU per MiB of body. Growth is from before the transfer to the highest resident size during it."""

    user_us: float
    system_us: float
    mebibytes_per_second: float
    growth_bytes: int
    others_share: float
    stolen_share: float

    @property
    def cpu_us(self) -> float:
        return self.user_us + self.system_us


class BulkUpstream(PinnedProcess):
    """A server that gives a sparse file and takes any body."""

    def __init__(self, directory: Path, port: int, core: int, mebibytes: int):
        self.port = port
        sparse = directory / "sparse"
        with sparse.open("wb") as file:
            file.truncate(mebibytes * MEBIBYTE)
        server = Path(__file__).with_name("bulk_server.py")
        command = [sys.executable, str(server), str(port), str(sparse)]
        super().__init__("bulk upstream", command, core, directory / "bulk.log")

    def wait_until_ready(self) -> None:
        self.wait_for(lambda: accepts_connections(self.port), "the listening socket")


def chunks(size: int) -> Iterator[memoryview]:
    """A body made as it is sent."""
    chunk = memoryview(bytes(CHUNK_BYTES))
    while size > 0:
        yield chunk[: min(size, CHUNK_BYTES)]
        size -= CHUNK_BYTES


def upload(port: int, path: str, size: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("PUT", path, chunks(size), {"Content-Length": str(size), "Fencing-Token": str(TOKEN)})
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    if response.status != 200 or answer != str(size).encode():
        raise BenchError(f"PUT {path}: {response.status}, the upstream read {answer[:100]!r} of {size} bytes")


def download(port: int, path: str, size: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", path, headers={"Fencing-Token": str(TOKEN)})
        response = connection.getresponse()
        received, buffer = 0, bytearray(CHUNK_BYTES)
        while count := response.readinto(buffer):
            received += count
    finally:
        connection.close()
    if response.status != 200 or received != size:
        raise BenchError(f"GET {path}: {response.status}, {received} of {size} bytes came")


UPLOAD = Direction("upload", upload)
DOWNLOAD = Direction("download", download)


class BulkTurns:
    """Peers take turns at transferring one body, as they do under load."""

    def __init__(self, rounds: int, mebibytes: int, cores: Cores, upstream: BulkUpstream, peers: dict[str, Peer]):
        self.rounds, self.mebibytes, self.cores, self.upstream, self.peers = rounds, mebibytes, cores, upstream, peers
        self.failures = Failures()

    def compare(self, direction: Direction) -> dict[Row, list[BulkSample]]:
        self.failures.clear()
        rows = rows_of_peers(self.peers)
        samples: dict[Row, list[BulkSample]] = {row: [] for row in rows}
        for number, row in in_turns(rows, self.rounds):
            step = lambda: samples[row].append(self.turn(row, direction))  # noqa: B023 -- taken before the next row
            if row in samples and not self.failures.attempt(row, step):
                del samples[row]
            progress(f"{direction.title}: round {number} of {self.rounds}, {row.label}")
        return samples

    def turn(self, row: Row, direction: Direction) -> BulkSample:
        peer = self.peers[row.peer]
        peer.require_alive()
        peer.reset_peak()
        resident = peer.resident_bytes()
        clocks = Clocks(peer, others_than(peer, self.peers), self.upstream, self.cores)
        started = time.monotonic()
        direction.transfer(peer.port, f"/{row.lane}/bulk/42", self.mebibytes * MEBIBYTE)
        seconds = time.monotonic() - started
        spent = clocks.spent()
        return BulkSample(
            user_us=spent.proxy.user / self.mebibytes * 1e6,
            system_us=spent.proxy.system / self.mebibytes * 1e6,
            mebibytes_per_second=self.mebibytes / seconds,
            growth_bytes=max(0, peer.peak_resident_bytes() - resident),
            others_share=spent.others / seconds,
            stolen_share=spent.stolen / seconds,
        )
