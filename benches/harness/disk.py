"""How fast the disk makes data durable: what an advance, or a lock, can't be faster than."""

from __future__ import annotations

import os
import time
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
