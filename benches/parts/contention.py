"""Many clients on few keys, while tokens rise: how many get through, and what it costs."""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import median

from harness import report
from harness.load import Workload
from harness.part import START_SECONDS, Part, plan_of
from harness.peers import FENCING
from harness.rounds import Sample, Turns, rows_of, seconds_of
from harness.stage import Stage, peers_wanted
from harness.upstream import Upstream
from harness.workloads import ANSWER

CLIENTS = 1000
RISE_EVERY = 100
ONE_KEY = Workload(
    "one-key", f"{CLIENTS:,} clients on one key, a higher token every {RISE_EVERY} requests", "PUT", "upload", 64, ANSWER,
    rise_every=RISE_EVERY, connections=CLIENTS, peers=FENCING, fenced_only=True,
)
MANY_KEYS = replace(
    ONE_KEY, name="zipf", keys=1000, skew=1.0,
    title=f"{CLIENTS:,} clients on 1,000 keys by Zipf's law, a higher token every {RISE_EVERY} requests on a key",
)
WORKLOADS = (ONE_KEY, MANY_KEYS)
HEADINGS = ["peer", "admitted/s", "spread", "refused", "CPU µs", "p50 ms", "p99 ms", "p99.9 ms", "RSS MiB", "core"]


def seconds(options: argparse.Namespace) -> float:
    names = peers_wanted(options)
    each = [len(rows_of(names, workload)) * seconds_of(workload, options.rounds, options.seconds) for workload in WORKLOADS]
    return START_SECONDS + sum(each)


def admitted(sample: Sample) -> float:
    return sample.requests_per_second * (1 - sample.refused_share)


def table(all_samples: report.Samples) -> str:
    lines = []
    for row, samples in all_samples.items():
        rates = [admitted(sample) for sample in samples]
        figures = (lambda each: each.p50_us, lambda each: each.p99_us, lambda each: each.p999_us)
        times = [median(report.of(samples, figure)) / 1e3 for figure in figures]
        lines.append(
            [
                row.label,
                f"{median(rates):,.0f}",
                f"{report.spread(rates):.0%}",
                f"{median(sample.refused_share for sample in samples):.1%}",
                f"{median(report.of(samples, report.cpu)):.1f}",
                *(f"{time:.2f}" for time in times),
                f"{max(sample.resident_bytes for sample in samples) / report.MEBIBYTE:.1f}",
                f"{median(sample.proxy_core_share for sample in samples):.0%}",
            ]
        )
    return report.markdown_table(HEADINGS, lines)


def run(options: argparse.Namespace) -> dict:
    results = []
    with Stage(options) as stage:
        upstream = stage.start_upstream(Upstream)
        plan = plan_of(options, stage)
        turns = Turns(plan, upstream, stage.start_peers(upstream.port, FENCING))
        facts = [
            "refused: a newer token came first, also while the older one waited for a drain",
            f"rounds: {plan.rounds}, turns of {plan.seconds} s; CPU is per request, a refused one included",
            "the check in Lua does not wait for older writes and keeps nothing: it answers sooner, and may let a late write land",
        ]
        report.print_heading("Contention", facts, stage.skipped)
        for workload in WORKLOADS:
            samples = turns.compare(workload)
            notes = [*turns.failures, *report.churn_warnings(samples, CLIENTS)] + (report.machine_warnings(samples) if samples else [])
            report.print_table(workload.title, table(samples), notes)
            results.append({"title": workload.title, "notes": notes, "rows": report.rows_as_json(samples)})
    return {"contention": results}


PART = Part("contention", seconds, run, lambda document: {})
