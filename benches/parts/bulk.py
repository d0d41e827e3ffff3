"""One large body in each direction: what a MiB costs, and whether memory stays flat."""

from __future__ import annotations

import argparse
from statistics import median

from harness import plots, report
from harness.bulk import DOWNLOAD, UPLOAD, BulkSample, BulkTurns, BulkUpstream
from harness.part import START_SECONDS, Part
from harness.peers import Row
from harness.rounds import rows_of_peers
from harness.stage import Stage, peers_wanted

BODY_MEBIBYTES = 1024
ROUNDS = 5
FLAT_BYTES = 32 * report.MEBIBYTE
# What a peer takes for the body, most of it the core that load and upstream share.
TRANSFER_SECONDS = 2.0

BulkSamples = dict[Row, list[BulkSample]]


def seconds(options: argparse.Namespace) -> float:
    return START_SECONDS + 2 * min(ROUNDS, options.rounds) * len(rows_of_peers(peers_wanted(options))) * TRANSFER_SECONDS


def table(all_samples: BulkSamples) -> str:
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


def run(options: argparse.Namespace) -> dict:
    results = []
    with Stage(options) as stage:
        upstream = stage.start_upstream(
            lambda directory, port, core: BulkUpstream(directory, port, core, BODY_MEBIBYTES)
        )
        peers = stage.start_peers(upstream.port, large_bodies=True)
        turns = BulkTurns(min(ROUNDS, options.rounds), BODY_MEBIBYTES, stage.cores, upstream, peers)
        report.print_heading("One large body", [f"{BODY_MEBIBYTES} MiB each way; CPU per MiB of body"], stage.skipped)
        for direction in (UPLOAD, DOWNLOAD):
            samples = turns.compare(direction)
            title = f"One body of {BODY_MEBIBYTES} MiB, {direction.title}"
            notes = turns.failures + flatness(samples) + (report.machine_warnings(samples) if samples else [])
            report.print_table(title, table(samples), notes)
            results.append({"title": title, "notes": notes, "rows": report.rows_as_json(samples)})
    return {"bulk": results}


def figures(document: dict) -> dict[str, str]:
    return {"bulk.svg": plots.ratios("CPU time of one large body", [(each["title"], each["rows"]) for each in document["bulk"]])}


PART = Part("bulk", seconds, run, figures)
