"""Requests of each kind through each peer."""

from __future__ import annotations

import argparse

from harness import plots, report
from harness.part import START_SECONDS, Part, plan_of
from harness.peers import FENCING
from harness.rounds import Plan, Turns, check_fence, rows_of, seconds_of
from harness.stage import Stage, peers_wanted
from harness.upstream import Upstream
from harness.workloads import chosen


def seconds(options: argparse.Namespace) -> float:
    names = peers_wanted(options)
    each = [
        len(rows_of(names, workload)) * seconds_of(workload, options.rounds, options.seconds)
        for workload in chosen(options.workloads)
    ]
    return START_SECONDS + sum(each)


def method(plan: Plan) -> str:
    return (
        f"{plan.connections} keep-alive connections, rounds: {plan.rounds}, turns of {plan.seconds} s, peers taking turns; "
        "medians over the rounds; CPU is the proxy's, per request"
    )


def run(options: argparse.Namespace) -> dict:
    results = []
    with Stage(options) as stage:
        upstream = stage.start_upstream(Upstream)
        plan = plan_of(options, stage)
        peers = stage.start_peers(upstream.port)
        for name in (*FENCING, "plain"):
            if name in peers:
                check_fence(peers[name])
        turns = Turns(plan, upstream, peers)
        report.print_heading("Requests, side by side", [method(plan)], stage.skipped)
        for workload in chosen(options.workloads):
            samples = turns.compare(workload)
            results.append(report.comparison(workload, samples, plan.connections, [*turns.failures, *turns.suites.notes()]))
    return {"workloads": results}


def figures(document: dict) -> dict[str, str]:
    results = [(each["workload"]["title"], each["rows"]) for each in document["workloads"]]
    return {"workloads.svg": plots.ratios("CPU time of a request", results)}


PART = Part("workloads", seconds, run, figures)
