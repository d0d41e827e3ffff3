"""What a disk does, and was asked to do."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path


class Syncs:
    """Makes 4 KiB durable again and again, over a file that was zeroed."""

    BYTES = 4096
    PLACES = 1024

    def __init__(self, directory: Path):
        self._file = (directory / "syncs").open("wb", buffering=0)
        self._file.write(bytes(self.BYTES * self.PLACES))
        os.fsync(self._file.fileno())
        self._count = 0

    def __enter__(self) -> Syncs:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def one_us(self) -> float:
        """How long it takes once, in microseconds."""
        began = time.monotonic()
        os.pwrite(self._file.fileno(), bytes(self.BYTES), self._count % self.PLACES * self.BYTES)
        os.fdatasync(self._file.fileno())
        self._count += 1
        return (time.monotonic() - began) * 1e6


def sync_times_us(directory: Path, seconds: float = 1.0) -> list[float]:
    """How long the disk takes to make 4 KiB durable, one after the other."""
    times = []
    with Syncs(directory) as syncs:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            times.append(syncs.one_us())
    return times


def syncs_per_second(directory: Path) -> float:
    """What one client at a time can get at most."""
    times = sync_times_us(directory)
    return len(times) / sum(times) * 1e6


@dataclass(frozen=True)
class DiskCounts:
    """Flushes of the disk under a directory and bytes written to it, by whomever; `None` where the kernel does not tell.

    What the kernel counts for a process is of no use here: it takes a page that is many blocks for written whole.
    """

    flushes: int | None
    bytes: int | None

    @staticmethod
    def of(directory: Path) -> "DiskCounts":
        """The 16th and the 7th field of the disk's statistics (Linux 5.5 and later). A partition leaves flushes to its disk."""
        device = os.stat(directory).st_dev
        path = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
        disk = path.resolve().parent if (path / "partition").exists() else path
        sectors = field(path, 6)
        return DiskCounts(field(disk, 15), None if sectors is None else sectors * 512)

    def __sub__(self, before: "DiskCounts") -> "DiskCounts":
        return DiskCounts(difference(self.flushes, before.flushes), difference(self.bytes, before.bytes))


def difference(now: int | None, before: int | None) -> int | None:
    return None if now is None or before is None else now - before


def field(device: Path, place: int) -> int | None:
    try:
        return int((device / "stat").read_text().split()[place])
    except (OSError, IndexError, ValueError):
        return None
