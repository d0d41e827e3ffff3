"""Requests of each kind through each peer."""

from __future__ import annotations

import argparse

from harness import plots, report
from harness.part import START_SECONDS, TURN_OVERHEAD_SECONDS, Part, plan_of
from harness.peers import COMMANDS, FENCING
from harness.rounds import WARM_UP_SECONDS, Plan, Turns, check_fence, rows_of
from harness.stage import Stage
from harness.upstream import Upstream
from harness.workloads import chosen

# How many keys a peer is sure to see for the first time in a second.
FIRST_SIGHTS_PER_SECOND = 15_000


def seconds(options: argparse.Namespace) -> float:
    names = options.only.split(",") if options.only else list(COMMANDS)
    total = START_SECONDS
    for workload in chosen(options.workloads):
        turns = options.rounds * (options.seconds + TURN_OVERHEAD_SECONDS) + WARM_UP_SECONDS + TURN_OVERHEAD_SECONDS
        first_sights = 0 if workload.rise_every else workload.keys / FIRST_SIGHTS_PER_SECOND
        total += len(rows_of(names, workload)) * (turns + first_sights)
    return total


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
        for name in FENCING:
            if name in peers:
                check_fence(peers[name])
        turns = Turns(plan, upstream, peers)
        report.print_heading("Requests, side by side", [method(plan)], {})
        for workload in chosen(options.workloads):
            samples = turns.compare(workload)
            results.append(report.comparison(workload, samples, plan.connections, turns.failures))
    return {"workloads": results}


def figures(document: dict) -> dict[str, str]:
    results = [(each["workload"]["title"], each["rows"]) for each in document["workloads"]]
    return {"workloads.svg": plots.ratios("CPU time of a request", results)}


PART = Part("workloads", seconds, run, figures)
