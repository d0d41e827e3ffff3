"""Load: one wrk process with a fixed request, and what it saw."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .machine import BenchError, require_program
from .process import pinned_command

SCRIPT = Path(__file__).with_name("wrk.lua")
TOKEN = 42


@dataclass(frozen=True)
class Workload:
    """One kind of request, the same for every peer. `kind` is the resource asked for; the upstream knows four."""

    title: str
    method: str
    kind: str
    body_bytes: int
    response_bytes: int

    def path(self, lane: str) -> str:
        return f"/{lane}/{self.kind}/42"


@dataclass(frozen=True)
class LoadResult:
    requests: int
    seconds: float
    received_bytes: int
    p50_us: float
    p99_us: float
    p999_us: float

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.seconds


def run_wrk(url: str, workload: Workload, core: int, connections: int, seconds: float) -> LoadResult:
    """Runs wrk to its end and returns its figures; any error it saw fails the run."""
    wrk = [require_program("wrk"), "--threads", "1", "--connections", str(connections), "--duration", f"{seconds:.0f}s"]
    arguments = ["--script", str(SCRIPT), url, "--", workload.method, str(TOKEN), str(workload.body_bytes)]
    process = subprocess.Popen(
        pinned_command(wrk + arguments, core),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds + 30)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return parse_result(output, url, workload)


def parse_result(output: str, url: str, workload: Workload) -> LoadResult:
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    if len(lines) != 1:
        raise BenchError(f"wrk gave no result for {url}:\n{output}")
    figures = json.loads(lines[0].removeprefix("RESULT "))
    if figures["status_errors"] or figures["socket_errors"] or not figures["requests"]:
        raise BenchError(f"{workload.method} {url}: not every request succeeded: {figures}")
    if figures["bytes"] < figures["requests"] * workload.response_bytes:
        raise BenchError(f"{workload.method} {url}: a response was below {workload.response_bytes} bytes: {figures}")
    return LoadResult(
        requests=figures["requests"],
        seconds=figures["duration_us"] / 1e6,
        received_bytes=figures["bytes"],
        p50_us=figures["p50_us"],
        p99_us=figures["p99_us"],
        p999_us=figures["p999_us"],
    )
