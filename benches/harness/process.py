"""Processes on one core each: started, measured from /proc, and stopped by their id whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from .machine import TICKS_PER_SECOND, BenchError

STOP_SECONDS = 10.0


@dataclass(frozen=True)
class CpuTime:
    """Seconds of CPU."""

    user: float = 0.0
    system: float = 0.0

    @property
    def total(self) -> float:
        return self.user + self.system

    def __add__(self, other: "CpuTime") -> "CpuTime":
        return CpuTime(self.user + other.user, self.system + other.system)

    def __sub__(self, other: "CpuTime") -> "CpuTime":
        return CpuTime(self.user - other.user, self.system - other.system)


def pinned_command(command: list[str], core: int) -> list[str]:
    """The command on one core, and with a SIGTERM should this process die before it can stop it.

    Both helpers replace themselves, so the process id stays the command's own.
    """
    return ["setpriv", "--pdeathsig", "TERM", "taskset", "--cpu-list", str(core), *command]


class PinnedProcess:
    """A process and its descendants on one core. Use it in a `with` block: leaving it stops them."""

    def __init__(self, name: str, command: list[str], core: int, log: Path):
        self.name = name
        self.log = log
        self._stopped = False
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                pinned_command(command, core),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this program alone, which then stops the others in order
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        """It leads a group of its own, of which nothing is left: not even workers whose master has died."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                kill_group(self._process.pid)
                self._process.wait()
        if not self._stopped:
            self._stopped = True
            kill_group(self._process.pid)

    def wait_until_ready(self) -> None:
        """Waits until it can be used; what is more than a process says when that is."""
        self.require_alive()

    def require_alive(self) -> None:
        status = self._process.poll()
        if status is not None:
            raise BenchError(f"{self.name} ended with status {status}:\n{self.last_lines()}")

    def wait_for(self, condition, what: str, seconds: float = 20.0) -> None:
        """Waits until the condition holds; the process must live that long."""
        deadline = time.monotonic() + seconds
        while not condition():
            self.require_alive()
            if time.monotonic() > deadline:
                raise BenchError(f"{self.name}: {what} did not come within {seconds:.0f} s:\n{self.last_lines()}")
            time.sleep(0.02)

    def last_lines(self, count: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])

    def process_ids(self) -> list[int]:
        """The process and its descendants, e.g. nginx's master and worker."""
        return descendants_of(self._process.pid) if self._process.poll() is None else []

    def cpu_time(self) -> CpuTime:
        """User and system time of all threads of all these processes, ended threads included."""
        return sum((cpu_time_of(process_id) for process_id in self.process_ids()), CpuTime())

    def resident_bytes(self) -> int:
        return sum(status_bytes(process_id, "VmRSS") for process_id in self.process_ids())

    def peak_resident_bytes(self) -> int:
        """The highest resident size since `reset_peak`."""
        return sum(status_bytes(process_id, "VmHWM") for process_id in self.process_ids())

    def reset_peak(self) -> None:
        for process_id in self.process_ids():
            Path(f"/proc/{process_id}/clear_refs").write_text("5")


def kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        pass


def stat_fields(process_id: int) -> list[str]:
    """The fields of /proc/PID/stat from the third (state) on; the second, the name, may hold blanks and brackets."""
    return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()


def cpu_time_of(process_id: int) -> CpuTime:
    fields = stat_fields(process_id)
    return CpuTime(int(fields[11]) / TICKS_PER_SECOND, int(fields[12]) / TICKS_PER_SECOND)


def status_bytes(process_id: int, field: str) -> int:
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def descendants_of(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int(stat_fields(int(entry.name))[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for process_id in found:
        found.extend(children.get(process_id, []))
    return found
