"""How fast the disk makes data durable: what an advance, or a lock, can't be faster than."""

from __future__ import annotations

import os
import time
from pathlib import Path


def syncs_per_second(directory: Path, seconds: float = 1.0) -> float:
    """How often the disk makes 4 KiB durable, over a file that was zeroed: what one client at a time can get at most."""
    with (directory / "syncs").open("wb", buffering=0) as file:
        file.write(bytes(4 << 20))
        os.fsync(file.fileno())
        began, count = time.monotonic(), 0
        while (now := time.monotonic()) < began + seconds:
            os.pwrite(file.fileno(), bytes(4096), count % 1024 * 4096)
            os.fdatasync(file.fileno())
            count += 1
    return count / (now - began)
