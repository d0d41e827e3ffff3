#!/usr/bin/env python3
"""What a request costs through fencegate, nginx, HAProxy and a raw TCP relay, side by side on pinned cores.

The method, and how to read the tables, stand in benches/README.md.
"""

import argparse
import sys

sys.dont_write_bytecode = True

from harness import report
from harness.load import Workload
from harness.rounds import progress_line
from harness.stage import Stage, add_common_options, add_load_options, run_main
from harness.suite import compare_workloads, introduce
from harness.upstream import SMALL_BODY

WORKLOADS = (
    Workload(f"GET, {len(SMALL_BODY)}-byte response", "GET", "small", 0, len(SMALL_BODY)),
    Workload("PUT, 64-byte body", "PUT", "upload", 64, len(SMALL_BODY)),
)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_load_options(parser, rounds=7, seconds=4)
    add_common_options(parser)
    return parser.parse_args()


def main() -> int:
    options = parse_options()
    with Stage(options) as stage, progress_line():
        turns, machine = introduce("A request, side by side", stage, options)
        results = compare_workloads(turns, WORKLOADS)
    report.write_json(options.json, {"machine": machine, "workloads": results})
    return 0


run_main(main)
