#!/usr/bin/env python3
"""fencegate beside the proxies people know, on pinned cores: tables, and the same as JSON and as plots.

A whole run writes to docs/bench; one that is narrowed by an option, to target/bench. The method, and how to read the tables,
stand in benches/README.md.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True

from harness import report
from harness.machine import REPOSITORY, BenchError, Cores, describe
from harness.part import Part
from harness.peers import check_names, versions_of
from harness.rounds import progress_line
from harness.stage import RELEASE, add_common_options, add_load_options, peers_wanted, run_main
from parts import bulk, contention, growth, handover, idle, workloads

PARTS = {part.name: part for part in (workloads.PART, bulk.PART, idle.PART, growth.PART, contention.PART, handover.PART)}
# Many short turns: the machine's pace changes within seconds, and the rounds' ratios stand for that.
ROUNDS, SECONDS, CONNECTIONS = 9, 1, 64
NARROWING = ("only", "parts", "workloads", "rounds", "seconds", "connections")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_load_options(parser, ROUNDS, SECONDS, CONNECTIONS)
    parser.add_argument("--parts", metavar="PARTS", help=f"comma-separated, of: {', '.join(PARTS)}")
    parser.add_argument("--workloads", metavar="NAMES", help="comma-separated names of requests; of the other parts, none")
    add_common_options(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where JSON and plots go")
    options = parser.parse_args()
    if options.out is None:
        narrowed = any(getattr(options, name) != parser.get_default(name) for name in NARROWING)
        options.out = REPOSITORY / ("target/bench" if narrowed else "docs/bench")
    return options


def chosen_parts(options: argparse.Namespace) -> list[Part]:
    names = options.parts or ("workloads" if options.workloads else ",".join(PARTS))
    if unknown := sorted(set(names.split(",")) - set(PARTS)):
        raise BenchError(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return [part for name, part in PARTS.items() if name in names.split(",")]


def introduce(options: argparse.Namespace, parts: list[Part]) -> dict:
    """Prints how long it will take, where it runs, what is compared and what is absent."""
    expected = {part.name: part.seconds(options) for part in parts}
    times = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in expected.items())
    print(f"This takes about {sum(expected.values()) / 60:.0f} minutes ({times}); results go to {shown(options.out)}.\n", flush=True)
    names = peers_wanted(options)
    check_names(names)
    versions, absent = versions_of(names, options.fencegate.resolve(), RELEASE)
    if "fencegate" in absent:
        raise BenchError(absent["fencegate"])
    machine = {**describe(Cores.choose(options.proxy_core, options.load_core)), "versions": versions, "absent": absent}
    report.print_heading("The machine, and who is compared", report.machine_facts(machine), absent)
    return machine


def run_part(part: Part, options: argparse.Namespace, machine: dict) -> bool:
    """Whether every row of every table has figures."""
    began = time.monotonic()
    print(flush=True)
    document = part.run(options)
    document["machine"] = machine
    document["minutes"] = round((time.monotonic() - began) / 60, 1)
    report.write_json(options.out / f"{part.name}.json", document)
    for name, figure in part.plots(document).items():
        (options.out / name).write_text(figure)
    return "FAILED: " not in json.dumps(document)


def shown(path: Path) -> Path:
    """The output is committed, and where a checkout stands is nobody's business."""
    return path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path


def main() -> int:
    options = parse_options()
    parts = chosen_parts(options)
    options.out.mkdir(parents=True, exist_ok=True)
    with report.Tee(options.out / "tables.md"), progress_line():
        machine = introduce(options, parts)
        whole = [run_part(part, options, machine) for part in parts]
    return 0 if all(whole) else 1


run_main(main)
