#!/usr/bin/env python3
"""Runs what CI has no time for, and adds up what was run in docs/soak.txt: `make soak`.

SOAK_SECONDS says for how long each level goes on (600 by default), SOAK_LEVELS which (all by default). For the simulation,
SOAK_SEEDS may say how many seeds instead. It goes on behind the last seed of the file, so that no seed is run twice.
A level that fails says how to replay what failed, and is not counted.
"""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COUNTS = ROOT / "docs" / "soak.txt"
HEAD = "# What `make soak` has run without finding anything, in all. level, what, number; `last` ones are not sums.\n"
FIRST_SEED = 1_000_001

Counts = dict[tuple[str, str], str]


def main() -> int:
    seconds = int(os.environ.get("SOAK_SECONDS", "600"))
    wanted = os.environ.get("SOAK_LEVELS", " ".join(LEVELS)).split()
    failed = []
    for level in wanted:
        counts = read()
        ran = LEVELS[level](seconds, counts)
        if ran is None:
            failed.append(level)
            continue
        add(counts, level, ran)
        write(counts)
        print(f"{level}: {ran}")
    print(f"\n{len(wanted) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


def simulation(seconds: int, counts: Counts) -> dict[str, float] | None:
    """Seeds that nobody has run yet."""
    first = int(counts.get(("simulation", "last seed"), FIRST_SEED - 1)) + 1
    environment = {**os.environ, "FENCEGATE_SEED": str(first), "FENCEGATE_SEEDS": os.environ.get("SOAK_SEEDS", "1")}
    if "SOAK_SEEDS" not in os.environ:
        environment["FENCEGATE_SECONDS"] = str(seconds)
    command = ["cargo", "test", "--profile", "soak", "--features", "sim", "--test", "simulation"]
    output = run([*command, "--", "--exact", "seeds", "--nocapture"], environment)
    found = output and re.search(r"(\d+) seeds up to (\d+): ([\d.]+) h simulated, .* (\d+) ends of the gateway", output)
    if not found:
        return None
    seeds, last, hours, ends = found.groups()
    return {"seeds": int(seeds), "last seed": int(last), "simulated hours": float(hours), "ends of the gateway": int(ends)}


def crash(_seconds: int, _counts: Counts) -> dict[str, float] | None:
    """All that can be hit, and more kills: it takes as long as it takes."""
    output = run(["sh", "tests/soak_crash.sh"], dict(os.environ))
    if output is None:
        return None
    sums = {"kills": r"(\d+) kills, ", "system calls hit": r"(\d+) points in", "crashes of the store": r"opened after (\d+) kills"}
    return {what: sum(map(int, re.findall(pattern, output))) for what, pattern in sums.items()}


def smuggling(seconds: int, _counts: Counts) -> dict[str, float] | None:
    """Malformed requests of a new seed before each of four servers, and slow clients."""
    if run(["cargo", "build"], dict(os.environ)) is None:
        return None
    environment = {**os.environ, "FENCEGATE_BIN": str(ROOT / "target" / "debug" / "fencegate")}
    command = [sys.executable, "tests/smuggling/differential.py", "--toys", "--cases", "10000000", "--seconds", str(seconds)]
    output = run(command, environment)
    slow = run([sys.executable, "tests/smuggling/slow.py", "--seconds", "40"], environment)
    if output is None or slow is None:
        return None
    found = re.findall(r"^\w+: (\d+) cases, (\d+) requests forwarded", output, re.MULTILINE)
    return {"malformed requests": sum(int(cases) for cases, _ in found), "of which forwarded": sum(int(sent) for _, sent in found)}


def stop(_seconds: int, _counts: Counts) -> dict[str, float] | None:
    """The gateway stands still for a minute, and goes on."""
    test = "concurrency::what_was_unsent_while_the_gateway_stood_still_is_compared_again"
    command = ["cargo", "test", "--test", "suite", "--", "--exact", test, "--nocapture"]
    output = run(command, {**os.environ, "FENCEGATE_STOP_MS": "60000"})
    found = output and re.search(r"stood still for ([\d.]+) s", output)
    return {"stops": 1, "seconds stopped": float(found[1])} if found else None


def bodies(_seconds: int, _counts: Counts) -> dict[str, float] | None:
    """A body of 1 GiB each way."""
    test = "exhaustion::memory_stays_flat_with_large_bodies"
    command = ["cargo", "test", "--test", "suite", "--", "--exact", test, "--nocapture"]
    output = run(command, {**os.environ, "FENCEGATE_BODY_MIB": "1024"})
    found = output and re.search(r"(\d+) MiB each way: \d+ KiB more", output)
    return {"MiB each way": int(found[1])} if found else None


def locks(_seconds: int, counts: Counts) -> dict[str, float] | None:
    """A hundred storms of 400 operations, behind those that were run before."""
    first = int(counts.get(("locks", "last seed"), 0)) + 1
    runs = int(os.environ.get("SOAK_LOCK_RUNS", "100"))
    test = "lock_storms::effects_of_two_holders_never_mix_although_clients_stall_and_the_gateway_dies"
    command = ["cargo", "test", "--test", "suite", "--", "--exact", test, "--nocapture"]
    output = run(command, {**os.environ, "FENCEGATE_SEED": str(first), "FENCEGATE_LOCK_RUNS": str(runs)})
    found = output and re.search(r"clients: (\d+) operations, (\d+) grants, (\d+) writes", output)
    if not found:
        return None
    operations, grants, writes = map(int, found.groups())
    return {"storms": runs, "last seed": first + runs - 1, "operations": operations, "grants": grants, "writes": writes}


def run(command: list[str], environment: dict[str, str]) -> str | None:
    """What it printed; `None` where it failed."""
    lines = []
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return "".join(lines) if process.returncode == 0 else None


def read() -> Counts:
    if not COUNTS.exists():
        return {}
    lines = [line for line in COUNTS.read_text().splitlines() if line and not line.startswith("#")]
    return {(level, what): number for level, what, number in (line.split("\t") for line in lines)}


def add(counts: Counts, level: str, ran: dict[str, float]) -> None:
    for what, number in ran.items():
        before = 0.0 if what.startswith("last ") else float(counts.get((level, what), 0))
        counts[level, what] = f"{before + number:.2f}".removesuffix(".00")
    counts[level, "last run"] = datetime.date.today().isoformat()


def write(counts: Counts) -> None:
    lines = [f"{level}\t{what}\t{number}\n" for (level, what), number in sorted(counts.items())]
    COUNTS.write_text(HEAD + "".join(lines))


LEVELS = {"simulation": simulation, "crash": crash, "stop": stop, "smuggling": smuggling, "locks": locks, "bodies": bodies}

if __name__ == "__main__":
    sys.exit(main())
