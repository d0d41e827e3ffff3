"""What a disk does, and was asked to do."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path


def sync_times_us(directory: Path, seconds: float = 1.0) -> list[float]:
    """How long the disk takes to make 4 KiB durable, over a file that was zeroed, one after the other."""
    times = []
    with (directory / "syncs").open("wb", buffering=0) as file:
        file.write(bytes(4 << 20))
        os.fsync(file.fileno())
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            os.pwrite(file.fileno(), bytes(4096), len(times) % 1024 * 4096)
            os.fdatasync(file.fileno())
            times.append((time.monotonic() - began) * 1e6)
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
