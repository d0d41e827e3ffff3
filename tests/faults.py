#!/usr/bin/env python3
"""Breaks each guarantee on purpose and shows which test notices, level by level: `make faults`.

A row of tests/faults.tsv names a fault (filters/src/fault.rs), a level, and a test that must notice it. There are two kinds:
`env`: the test passes as it is and must fail with the fault planted in its process and in the gateways that it starts;
`own`: the test plants the fault itself and passes only when it was noticed. Nothing here is a timed test: a test that hangs
because of its fault has noticed it too, and is stopped. A run that did not go as it must, on a machine that was busy with the
other runs, is repeated once by itself when they are over, and told of either way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEVELS = ("unit", "model", "schedules", "store", "simulation", "black box")
LONGEST_S = 120
# How long each run took, by what ran and which fault was planted.
TOOK: dict[tuple[str, str | None], float] = {}


def main() -> int:
    rows = read_rows(ROOT / "tests" / "faults.tsv")
    only = sys.argv[1:]
    if only:
        rows = [row for row in rows if row["fault"] in only or row["level"] in only]
    binaries = {}
    for features in sorted({row["features"] for row in rows}):
        names = {row["binary"] for row in rows if row["features"] == features}
        binaries |= {(features, name): path for name, path in build(features, names).items()}
    with ThreadPoolExecutor(max_workers=int(os.environ.get("FAULT_JOBS", "8"))) as pool:
        runs = {}
        for row in rows:
            binary = binaries[row["features"], row["binary"]]
            for planted in [None] if row["kind"] == "own" else [None, row["fault"]]:
                # A test that plants several faults itself is run once for all of them.
                name = (binary, row["test"], planted)
                if name not in runs:
                    runs[name] = pool.submit(run, row, binary, planted)
        results = [verdict(row, binaries[row["features"], row["binary"]], runs) for row in rows]
    for place, (row, why) in enumerate(zip(rows, results)):
        if why is not None:
            print(f"AGAIN: {row['fault']} by {row['test']} ({row['level']}): {why}")
            results[place] = again(row, binaries[row["features"], row["binary"]])
    show(rows, results)
    missed = [(row, why) for row, why in zip(rows, results) if why is not None]
    for row, why in missed:
        print(f"\nNOT NOTICED: {row['fault']} by {row['test']} ({row['level']}): {why}")
    slowest = sorted(TOOK.items(), key=lambda took: -took[1])[:5]
    told = ", ".join(f"{test} with {planted or 'none'} {seconds:.0f} s" for (test, planted), seconds in slowest)
    print(f"\n{len(TOOK)} runs took {sum(TOOK.values()):.0f} s one after the other; the longest: {told}")
    print(f"\n{len(rows) - len(missed)} passed, {len(missed)} failed")
    return 1 if missed else 0


def read_rows(path: Path) -> list[dict[str, str]]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    columns = lines[0].split("\t")
    return [dict(zip(columns, line.split("\t"), strict=True)) for line in lines[1:]]


def build(features: str, names: set[str]) -> dict[str, str]:
    """Builds these test binaries with these features; their paths by name."""
    command = ["cargo", "test", "--workspace", "--no-run", "--features", features, "--message-format=json"]
    # The tests inside a crate have its name.
    crates = {"fencegate", "fencegate_filters"}
    command += ["--lib"] if names & crates else []
    for name in sorted(names - crates):
        command += ["--test", name]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    binaries = {}
    for line in built.splitlines():
        message = json.loads(line)
        # The program has the library's name, and no tests of its own.
        if message.get("executable") and message["profile"]["test"] and message["target"]["kind"] != ["bin"]:
            binaries[message["target"]["name"]] = message["executable"]
    return binaries


def again(row: dict[str, str], binary: str) -> str | None:
    with_fault = None if row["kind"] == "own" else run(row, binary, row["fault"])
    return judge(row, run(row, binary, None), with_fault)


def verdict(row: dict[str, str], binary: str, runs: dict) -> str | None:
    plain = runs[binary, row["test"], None].result()
    with_fault = None if row["kind"] == "own" else runs[binary, row["test"], row["fault"]].result()
    return judge(row, plain, with_fault)


def judge(row: dict[str, str], plain: int | None, with_fault: int | None) -> str | None:
    """Why the fault was not noticed; `None` where it was. A status of `None` is that of a test that had to be stopped."""
    if plain != 0:
        return f"it fails without the fault as well (exit {plain})"
    return "it passes with the fault" if row["kind"] == "env" and with_fault == 0 else None


def run(row: dict[str, str], binary: str, planted: str | None) -> int | None:
    """The exit status of a test; `None` where it had to be stopped."""
    environment = {name: value for name, value in os.environ.items() if name != "FENCEGATE_FAULT"}
    # What a planted fault does is no case to be remembered.
    environment["PROPTEST_DISABLE_FAILURE_PERSISTENCE"] = "1"
    environment["CARGO_MANIFEST_DIR"] = str(ROOT / ("filters" if row["package"] == "filters" else ""))
    if planted:
        environment["FENCEGATE_FAULT"] = planted
    command = [binary, "--exact", row["test"]]
    if row["ignored"] == "yes":
        command.append("--ignored")
    began = time.monotonic()
    with subprocess.Popen(
        command, cwd=environment["CARGO_MANIFEST_DIR"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, text=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            return None
        finally:
            TOOK[row["test"], planted] = time.monotonic() - began
    if "running 1 test" not in output:
        raise SystemExit(f"there is no test {row['test']} in {row['binary']}")
    return process.returncode


def show(rows: list[dict[str, str]], results: list[str | None]) -> None:
    faults = list(dict.fromkeys(row["fault"] for row in rows))
    width = max(len(fault) for fault in faults)
    for fault in faults:
        print(fault)
        for level in LEVELS:
            for row, why in zip(rows, results):
                if (row["fault"], row["level"]) == (fault, level):
                    print(f"    {level:12} {'caught by' if why is None else 'MISSED BY'} {row['test']}")
    print()
    print(" " * width + "  " + "  ".join(LEVELS))
    for fault in faults:
        cells = []
        for level in LEVELS:
            outcomes = [why for row, why in zip(rows, results) if (row["fault"], row["level"]) == (fault, level)]
            cells.append(("-" if not outcomes else "caught" if None in outcomes else "MISSED").center(len(level)))
        print(f"{fault:{width}}  {'  '.join(cells)}")


if __name__ == "__main__":
    sys.exit(main())
