"""Load: one process of wrk (HTTP/1.1), h2load (HTTP/2) or handshake_load.py (TLS handshakes), and what it saw."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .machine import BenchError, require_program
from .process import pinned_command

SCRIPT = Path(__file__).with_name("wrk.lua")
HANDSHAKES = Path(__file__).with_name("handshake_load.py")
HANDSHAKE_CLIENTS = 8
LONGEST_ANSWER_SECONDS = 20
TOKEN = 42


@dataclass(frozen=True)
class Workload:
    """One kind of request, the same for every peer. `kind` is the resource asked for; upstream.py has the list.

    `streams`: requests at once on one connection, by HTTP/2; 0: HTTP/1.1. `fresh`: a connection for each request;
    `resumed`: with a TLS session of before. `keys`: how many are walked over, or by `skew` drawn by Zipf's law;
    `rise_every`: a key's token rises after so many requests on it, 0: never. `connections`: instead of the plan's.
    `peers`: the only ones worth comparing; empty: all. `large`: also those that are set up for large bodies. `fenced_only`: not
    fencegate's other lane. `at_least_seconds`: of a turn, where its beginning takes long. `at`: another path than the lane's.
    """

    name: str
    title: str
    method: str
    kind: str
    body_bytes: int
    response_bytes: int
    tls: bool = False
    streams: int = 0
    fresh: bool = False
    resumed: bool = False
    headers: int = 0
    keys: int = 1
    skew: float = 0
    rise_every: int = 0
    connections: int | None = None
    peers: tuple[str, ...] = ()
    fenced_only: bool = False
    large: bool = False
    at_least_seconds: int = 0
    at: str = ""

    def path(self, lane: str) -> str:
        """Of key 42, whose token stays; with several keys, what stands before their number."""
        return self.at or f"/{lane}/{self.kind}/{self.key_prefix or 42}"

    @property
    def key_prefix(self) -> str:
        """Keys whose tokens rise are not those whose tokens stay."""
        if self.rise_every:
            return f"r{self.keys}-"
        return "k" if self.keys > 1 else ""


@dataclass(frozen=True)
class LoadResult:
    requests: int
    seconds: float
    received_bytes: int
    p50_us: float
    p99_us: float
    p999_us: float
    refused: int = 0
    resumed: int = 0

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.seconds


def run_load(
    workload: Workload, port: int, lane: str, core: int, connections: int, seconds: float, first: int = 0
) -> LoadResult:
    """Runs the workload against a listener to its end and returns its figures; any error it saw fails the run.

    `first`: where a walk over keys begins.
    """
    url = f"{'https' if workload.tls else 'http'}://127.0.0.1:{port}{workload.path(lane)}"
    if workload.streams:
        return run_h2load(url, workload, core, connections, seconds)
    if workload.tls and (workload.fresh or workload.resumed):
        return run_handshakes(url, workload, port, lane, core, seconds)
    return run_wrk(url, workload, core, connections, seconds, first)


def run_wrk(url: str, workload: Workload, core: int, connections: int, seconds: float, first: int) -> LoadResult:
    """A token that rises begins above what an earlier run can have left: at the microseconds of the clock."""
    token = time.time_ns() // 1000 if workload.rise_every else TOKEN
    wrk = [require_program("wrk"), "--threads", "1", "--connections", str(connections), "--duration", f"{seconds:.0f}s"]
    wrk += ["--timeout", f"{LONGEST_ANSWER_SECONDS}s"]
    if workload.fresh:
        wrk += ["--header", "Connection: close"]
    asked = (token, workload.body_bytes, workload.headers, workload.keys, workload.rise_every, workload.skew, first)
    arguments = ["--script", str(SCRIPT), url, "--", workload.method, *map(str, asked)]
    return parse_result(output_of(wrk + arguments, core, seconds), url, workload)


def run_handshakes(url: str, workload: Workload, port: int, lane: str, core: int, seconds: float) -> LoadResult:
    """Few clients: each takes about as long for its side of a handshake as the proxy does."""
    arguments = ("resumed" if workload.resumed else "full", port, workload.path(lane), TOKEN, HANDSHAKE_CLIENTS, seconds)
    command = [sys.executable, str(HANDSHAKES), *map(str, arguments)]
    return parse_result(output_of(command, core, seconds), url, workload)


def run_h2load(url: str, workload: Workload, core: int, connections: int, seconds: float) -> LoadResult:
    """Few connections with many streams: as many requests at once as wrk has, or a connection's worth."""
    clients = max(1, connections // workload.streams)
    with tempfile.NamedTemporaryFile(prefix="h2load-") as log:
        command = [require_program("h2load"), "--clients", str(clients), "--max-concurrent-streams", str(workload.streams)]
        command += ["--duration", f"{seconds:.0f}", "--header", f"Fencing-Token: {TOKEN}", f"--log-file={log.name}", url]
        output = output_of(command, core, seconds)
        times = []
        for line in log.read().decode().splitlines():
            _, status, duration_us = line.split()
            if status != "200":
                raise BenchError(f"{url}: a request was answered with {status}")
            times.append(float(duration_us))
    failed = re.search(r"(\d+) failed, (\d+) errored, (\d+) timeout", output)
    if not times or failed is None or any(map(int, failed.groups())):
        raise BenchError(f"{url}: not every request succeeded:\n{output}")
    times.sort()
    p50, p99, p999 = (times[min(len(times) - 1, int(len(times) * share))] for share in (0.5, 0.99, 0.999))
    return LoadResult(len(times), seconds, len(times) * workload.response_bytes, p50, p99, p999)


def output_of(command: list[str], core: int, seconds: float) -> str:
    process = subprocess.Popen(
        pinned_command(command, core),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds + 30)
    except subprocess.TimeoutExpired:
        raise BenchError(f"{command[0]} did not end") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return output


def parse_result(output: str, url: str, workload: Workload) -> LoadResult:
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    if len(lines) != 1:
        raise BenchError(f"the load gave no result for {url}:\n{output}")
    figures = json.loads(lines[0].removeprefix("RESULT "))
    if figures["status_errors"] or figures["socket_errors"] or not figures["requests"]:
        raise BenchError(f"{workload.method} {url}: not every request succeeded: {figures}")
    if figures["bytes"] < (figures["requests"] - figures["refused"]) * workload.response_bytes:
        raise BenchError(f"{workload.method} {url}: a response was below {workload.response_bytes} bytes: {figures}")
    return LoadResult(
        requests=figures["requests"],
        seconds=figures["duration_us"] / 1e6,
        received_bytes=figures["bytes"],
        p50_us=figures["p50_us"],
        p99_us=figures["p99_us"],
        p999_us=figures["p999_us"],
        refused=figures["refused"],
        resumed=figures.get("resumed", 0),
    )
