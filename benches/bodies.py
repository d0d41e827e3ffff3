#!/usr/bin/env python3
"""What bodies cost through fencegate, nginx, HAProxy and a raw TCP relay: many of middle size, and one of a gigabyte.

The gigabyte also shows whether a proxy's memory stays flat. Method and reading: benches/README.md.
"""

import argparse
import sys
from statistics import median

sys.dont_write_bytecode = True

from harness import report
from harness.bulk import DOWNLOAD, UPLOAD, BulkSample, BulkTurns, BulkUpstream
from harness.load import Workload
from harness.peers import Row
from harness.rounds import progress_line
from harness.stage import Stage, add_common_options, add_load_options, positive, run_main
from harness.suite import compare_workloads, introduce
from harness.upstream import LARGE_BYTES, SMALL_BODY

WORKLOADS = (
    Workload("GET, 1 MiB response", "GET", "large", 0, LARGE_BYTES),
    Workload("PUT, 64 KiB body", "PUT", "upload", 64 << 10, len(SMALL_BODY)),
)
FLAT_BYTES = 32 * report.MEBIBYTE

BulkSamples = dict[Row, list[BulkSample]]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_load_options(parser, rounds=5, seconds=4)
    parser.add_argument(
        "--bulk-rounds", type=int, default=3, metavar="N", help="turns with it; 0: none (default: %(default)s)"
    )
    parser.add_argument(
        "--bulk-mib", type=positive, default=1024, metavar="N", help="size of the one large body (default: %(default)s)"
    )
    add_common_options(parser)
    return parser.parse_args()


def bulk_table(all_samples: BulkSamples) -> str:
    headings = [*report.COST_HEADINGS, "MiB/s", "RSS growth MiB"]
    headings[1] = "CPU µs/MiB"
    lines = []
    for row, samples in all_samples.items():
        lines.append(
            [
                *report.cost_cells(all_samples, row, digits=0),
                f"{median(sample.mebibytes_per_second for sample in samples):,.0f}",
                f"{max(sample.growth_bytes for sample in samples) / report.MEBIBYTE:.1f}",
            ]
        )
    return report.markdown_table(headings, lines)


def flatness(all_samples: BulkSamples) -> list[str]:
    """Whether fencegate kept within the promised growth."""
    fencegate = [samples for row, samples in all_samples.items() if row.peer == "fencegate"]
    if not fencegate:
        return []
    growth = max(sample.growth_bytes for samples in fencegate for sample in samples)
    verdict = "flat" if growth <= FLAT_BYTES else "NOT FLAT"
    grown, limit = growth / report.MEBIBYTE, FLAT_BYTES // report.MEBIBYTE
    return [f"fencegate's memory is {verdict}: it grew by {grown:.1f} MiB at most (limit {limit} MiB)."]


def compare_bulk(options: argparse.Namespace) -> list[dict]:
    results = []
    with Stage(options) as stage:
        upstream = stage.start_upstream(
            lambda directory, port, core: BulkUpstream(directory, port, core, options.bulk_mib)
        )
        peers = stage.start_peers(upstream.port, large_bodies=True)
        turns = BulkTurns(options.bulk_rounds, options.bulk_mib, stage.cores, upstream, peers)
        for direction in (UPLOAD, DOWNLOAD):
            samples = turns.compare(direction)
            title = f"One body of {options.bulk_mib} MiB, {direction.title}"
            notes = flatness(samples) + report.machine_warnings(samples)
            report.print_table(title, bulk_table(samples), notes)
            results.append({"title": title, "notes": notes, "rows": report.rows_as_json(samples)})
    return results


def main() -> int:
    options = parse_options()
    document = {"workloads": [], "bulk": []}
    with progress_line():
        with Stage(options) as stage:
            turns, document["machine"] = introduce("Bodies, side by side", stage, options)
            document["workloads"] = compare_workloads(turns, WORKLOADS)
        if options.bulk_rounds:
            document["bulk"] = compare_bulk(options)
    report.write_json(options.json, document)
    return 0


run_main(main)
