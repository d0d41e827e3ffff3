"""The machine under the benchmark: its cores, what else they were doing, and which programs are installed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
LOOK_SECONDS = 1.0
REPOSITORY = Path(__file__).resolve().parents[2]


class BenchError(Exception):
    """A benchmark that can't go on; the text says what to do."""


@dataclass(frozen=True)
class Cores:
    """The proxy has one core for itself; load generator and upstream share the other."""

    proxy: int
    load: int

    @property
    def shared(self) -> bool:
        """There is only one: the figures then say little about a proxy that has a core for itself."""
        return self.proxy == self.load

    @staticmethod
    def choose(proxy: int | None, load: int | None) -> "Cores":
        """The first two cores that this process may use, unless they are named; the only one twice where there is one."""
        allowed = sorted(os.sched_getaffinity(0))
        for named in (proxy, load):
            if named is not None and named not in allowed:
                raise BenchError(f"core {named} is not one of those this process may use: {allowed}")
        free = [core for core in allowed if core not in (proxy, load)]
        if proxy is None:
            proxy = free.pop(0) if free else load
        if load is None:
            load = free.pop(0) if free else proxy
        return Cores(proxy, load)


@dataclass(frozen=True)
class CoreTimes:
    """Seconds since boot that one core was busy, and that the hypervisor gave to others.

    Interrupts count as busy: most kernels charge them to the process that they interrupt as well.
    """

    busy: float
    stolen: float

    @staticmethod
    def read(core: int) -> "CoreTimes":
        for line in Path("/proc/stat").read_text().splitlines():
            name, *fields = line.split()
            if name == f"cpu{core}":
                user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
                return CoreTimes((user + nice + system + irq + softirq) / TICKS_PER_SECOND, steal / TICKS_PER_SECOND)
        raise BenchError(f"/proc/stat has no core {core}")


def busy_share(cores: Cores, seconds: float) -> float:
    """What others take of the busier of the two cores while the benchmark does nothing."""
    used = (cores.proxy, cores.load)
    before = [CoreTimes.read(core) for core in used]
    time.sleep(seconds)
    after = [CoreTimes.read(core) for core in used]
    return max(now.busy + now.stolen - then.busy - then.stolen for now, then in zip(after, before)) / seconds


def find_program(name: str) -> str | None:
    """The path of an installed program, the system directories included that are not on every user's PATH."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def require_program(name: str) -> str:
    path = find_program(name)
    if path is None:
        raise BenchError(f"{name} is not installed: run benches/setup.sh")
    return path


def first_line_of(*command: str) -> str:
    """The first line a command prints on either stream, or an empty string if it fails."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=10, cwd=REPOSITORY
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().partition("\n")[0] if done.returncode == 0 else ""


def processor_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def source_version() -> str:
    """The commit the figures belong to, with `-dirty` where files differ from it, other than what benchmarks write."""
    commit = first_line_of("git", "rev-parse", "--short=12", "HEAD")
    changed = first_line_of("git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)docs/bench")
    return f"{commit}-dirty" if changed else commit


def filesystem_of(directory: Path) -> str:
    return first_line_of("stat", "--file-system", "--format=%T", str(directory))


def describe(cores: Cores) -> dict:
    return {
        "processor": processor_name(),
        "kernel": platform.release(),
        "proxy_core": cores.proxy,
        "load_core": cores.load,
        "commit": source_version(),
        "busy_share": busy_share(cores, LOOK_SECONDS),
        "load_average": os.getloadavg()[0],
    }
