"""The order of a comparison: start everything, say what is compared and where, then one table for each workload."""

from __future__ import annotations

import argparse
from typing import Iterable

from . import report
from .load import Workload
from .machine import describe
from .rounds import Plan, Turns, progress_line
from .stage import Stage, add_common_options, add_load_options, run_main
from .upstream import Upstream


def introduce(title: str, stage: Stage, options: argparse.Namespace) -> tuple[Turns, dict]:
    """Starts upstream and peers and prints the heading; returns what takes the turns, and the machine in words."""
    upstream = stage.start_upstream(Upstream)
    peers = stage.start_peers(upstream.port)
    plan = Plan(options.rounds, options.seconds, options.connections, stage.cores)
    versions = {name: peer.version() for name, peer in peers.items()}
    machine = {**describe(stage.cores), "versions": versions}
    method = (
        f"{plan.connections} keep-alive connections, rounds: {plan.rounds}, turns of {plan.seconds} s, peers taking turns; "
        "medians over the rounds; CPU is the proxy's, per request"
    )
    report.print_heading(title, [*report.machine_facts(machine), method], stage.skipped)
    return Turns(plan, upstream, peers), machine


def compare_workloads(turns: Turns, workloads: Iterable[Workload]) -> list[dict]:
    """Prints a table for each workload as soon as it is measured; returns them for JSON."""
    results = []
    for workload in workloads:
        samples = turns.compare(workload)
        report.print_comparison(workload, samples, turns.plan.connections)
        results.append(report.comparison_as_json(workload, samples, turns.plan.connections))
    return results


def run_comparison(description: str, title: str, workloads: Iterable[Workload], rounds: int, seconds: int) -> None:
    """A script that compares these workloads and does nothing else; ends the process."""

    def main() -> int:
        parser = argparse.ArgumentParser(description=description)
        add_load_options(parser, rounds=rounds, seconds=seconds)
        add_common_options(parser)
        options = parser.parse_args()
        with Stage(options) as stage, progress_line():
            turns, machine = introduce(title, stage, options)
            results = compare_workloads(turns, workloads)
        report.write_json(options.json, {"machine": machine, "workloads": results})
        return 0

    run_main(main)
