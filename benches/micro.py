#!/usr/bin/env python3
"""Counts the instructions of single steps of a request's way, and prints which changed by more than 5% since the baseline.

Valgrind's callgrind counts what benches/harness/micro.rs runs, so that a busy machine changes nothing. The baseline,
benches/micro.json, has a count for each kind of build; `--write` puts the new counts there. A change never fails the run.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True

from harness.machine import REPOSITORY, BenchError, find_program, first_line_of
from harness.report import markdown_table
from harness.stage import run_main

BASELINE = REPOSITORY / "benches/micro.json"
STEPS = {
    "token_parse": "the token of a request with ten headers",
    "key_from_request": "the key of a request, from its path",
    "lane_admission": "a write through its lane: admitted, in flight, ended",
    "store_read": "a mark that the store has in memory",
}
CALLS = 1000  # as in micro.rs
WORTH_TELLING = 0.05


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", choices=("release", "debug"), default="release", help="whose counts (default: %(default)s)")
    parser.add_argument("--program", type=Path, metavar="FILE", help="default: target/BUILD/examples/micro")
    parser.add_argument("--write", action="store_true", help="make these counts the baseline of this kind of build")
    return parser.parse_args()


def count(program: Path) -> dict[str, float]:
    """Instructions of one call of each step, of everything that it calls included."""
    with tempfile.TemporaryDirectory(prefix="fencegate-micro-") as directory:
        found = Path(directory) / "callgrind.out"
        run("valgrind", "--tool=callgrind", f"--callgrind-out-file={found}", str(program))
        listing = run("callgrind_annotate", "--inclusive=yes", "--threshold=100", "--show=Ir", str(found))
    return {step: instructions_of(step, listing) / CALLS for step in STEPS}


def run(tool: str, *arguments: str) -> str:
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        raise BenchError(f"{tool} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def instructions_of(step: str, listing: str) -> int:
    """A line is `1,234 (5.6%)  file:micro::step [program]`."""
    line = re.search(rf"^\s*([\d,]+)\s.*:micro::{step}(?:::h[0-9a-f]+)?(?:'\d+)?(?: \[|$)", listing, re.MULTILINE)
    if line is None:
        raise BenchError(f"callgrind saw no call of micro::{step}; was it inlined, or were its symbols stripped?")
    return int(line[1].replace(",", ""))


def change(now: float, before: float | None) -> str:
    if not before:
        return "new"
    share = now / before - 1
    return f"{share:+.1%}" + (" CHANGED" if abs(share) > WORTH_TELLING else "")


def table(counts: dict[str, float], before: dict[str, float]) -> str:
    lines = []
    for step, now in counts.items():
        known = f"{before[step]:,.0f}" if step in before else "–"
        lines.append([f"{step}: {STEPS[step]}", f"{now:,.0f}", known, change(now, before.get(step))])
    return markdown_table(["step", "instructions", "baseline", "change"], lines)


def main() -> int:
    options = parse_options()
    program = options.program or REPOSITORY / f"target/{options.build}/examples/micro"
    if find_program("valgrind") is None:
        print("micro: valgrind is not installed, so nothing is counted (Debian: valgrind)")
        return 0
    if not program.exists():
        raise BenchError(f"{program} is not there: cargo build --example micro, with --release for the release build")
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    before = baseline.get(options.build, {})
    counts = count(program)
    compiler = first_line_of("rustc", "--version")
    print(f"Instructions of one call, {options.build} build\n\n{table(counts, before.get('instructions', {}))}")
    if before and before["compiler"] != compiler:
        print(f"\nThe baseline is of another compiler ({before['compiler']}, now {compiler}).")
    if options.write:
        baseline[options.build] = {"compiler": compiler, "instructions": {step: round(each) for step, each in counts.items()}}
        BASELINE.write_text(json.dumps(baseline, indent=2) + "\n")
    return 0


run_main(main)
