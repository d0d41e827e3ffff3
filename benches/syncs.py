#!/usr/bin/env python3
"""What it costs to make 4 KiB durable, by how the file was prepared and which call makes it so; all ways in turns, on one disk.

The store's log overwrites blocks that were zeroed in advance, and calls fdatasync (docs/adr/0001). This tells what that is worth beside a
file that grows, blocks that were only allocated, and the calls that write and sync in one.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Callable

sys.dont_write_bytecode = True

from harness.disk import DiskCounts
from harness.report import Tee, markdown_table
from harness.stage import positive, run_main

BLOCK = bytes(4096)
BLOCKS = 4096


def zeroed(file: int) -> None:
    os.write(file, BLOCK * BLOCKS)


def allocated(file: int) -> None:
    os.posix_fallocate(file, 0, len(BLOCK) * BLOCKS)


def empty(_: int) -> None:
    pass


def written(file: int, offset: int) -> None:
    os.pwrite(file, BLOCK, offset)


def written_and_synced(file: int, offset: int) -> None:
    os.pwritev(file, [BLOCK], offset, os.RWF_DSYNC)


@dataclass(frozen=True)
class Way:
    name: str
    prepare: Callable[[int], None]
    write: Callable[[int, int], None] = written
    sync: Callable[[int], None] = os.fdatasync
    flags: int = 0


def nothing(_: int) -> None:
    pass


WAYS = (
    Way("zeroed in advance, fdatasync (the store's)", zeroed),
    Way("zeroed in advance, fsync", zeroed, sync=os.fsync),
    Way("zeroed in advance, opened with O_DSYNC", zeroed, sync=nothing, flags=os.O_DSYNC),
    Way("zeroed in advance, pwritev2 with RWF_DSYNC", zeroed, write=written_and_synced, sync=nothing),
    Way("allocated in advance, fdatasync", allocated),
    Way("growing, fdatasync", empty),
    Way("growing, fsync", empty, sync=os.fsync),
)


@dataclass(frozen=True)
class Turn:
    times_us: list[float]
    flushes: float | None
    bytes: float | None


def turn(way: Way, directory: Path, seconds: float) -> Turn:
    """A file of its own, no block of it written twice."""
    path = directory / "file"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | way.flags, 0o600)
    try:
        way.prepare(file)
        os.fsync(file)
        before = DiskCounts.of(directory)
        times: list[float] = []
        end = time.monotonic() + seconds
        while len(times) < BLOCKS and (began := time.monotonic()) < end:
            way.write(file, len(times) * len(BLOCK))
            way.sync(file)
            times.append((time.monotonic() - began) * 1e6)
        counts = DiskCounts.of(directory) - before
    finally:
        os.close(file)
        path.unlink()
    share = lambda count: None if count is None else count / len(times)
    return Turn(times, share(counts.flushes), share(counts.bytes))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=positive, default=7, metavar="N", help="turns of each (default: %(default)s)")
    parser.add_argument("--seconds", type=positive, default=1, metavar="N", help="of one turn (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, default=Path("/var/tmp"), metavar="DIR", help="on a disk (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the table goes as well")
    return parser.parse_args()


def main() -> int:
    options = parse_options()
    turns: dict[str, list[Turn]] = {way.name: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="fencegate-syncs-", dir=options.scratch) as directory:
        for round_ in range(options.rounds):
            start = round_ % len(WAYS)
            for way in WAYS[start:] + WAYS[:start]:
                turns[way.name].append(turn(way, Path(directory), options.seconds))
    usual = [median(taken.times_us) for taken in turns[WAYS[0].name]]
    rows = []
    for name, taken in turns.items():
        medians = [median(one.times_us) for one in taken]
        ratio = median(own / first for own, first in zip(medians, usual))
        p99 = median(quantiles(one.times_us, n=100)[-1] for one in taken)
        rows.append([name, f"{median(medians):.0f}", f"{p99:.0f}", f"{ratio:.2f}", *map(told, ("flushes", "bytes"), [taken] * 2)])
    with ExitStack() as stack:
        if options.out is not None:
            stack.enter_context(Tee(options.out / "syncs.md"))
        print(markdown_table(["4 KiB made durable", "p50 µs", "p99 µs", "× the store's", "flushes", "bytes written"], rows))
    return 0


def told(field: str, taken: list[Turn]) -> str:
    values = [getattr(one, field) for one in taken]
    return "–" if None in values else f"{median(values):,.{1 if field == 'flushes' else 0}f}"


if __name__ == "__main__":
    run_main(main)
