"""How long a newer token takes to the upstream: with nothing to drain, and with one older write under way."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field

from harness import plots, report
from harness.disk import Syncs
from harness.handover import OpenUpstream, Story
from harness.part import START_SECONDS, Part
from harness.peers import FENCING
from harness.rounds import progress
from harness.stage import Stage, peers_wanted
from harness.svg import COLOURS

TIMES_EACH_ROUND = 300
WARM_UP_TIMES = 50
# What one time of all cases takes.
CASES_SECONDS = 0.008
HEADINGS = ["case", "p50 µs", "p90 µs", "p99 µs", "p99.9 µs", "highest"]
TO_UPSTREAM, AFTER_END, DISK = "From the client to the upstream", "After the older write's end", "The disk"
SYNC = "one sync of 4 KiB"


@dataclass
class Case:
    group: str
    case: str
    colour: str
    times_us: list[float] = field(default_factory=list)


def seconds(options: argparse.Namespace) -> float:
    peers = len([name for name in peers_wanted(options) if name in FENCING])
    return START_SECONDS + 1 + peers * (options.rounds * TIMES_EACH_ROUND + WARM_UP_TIMES) * CASES_SECONDS


def quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def table(cases: list[Case]) -> str:
    lines = []
    for case in cases:
        ordered = sorted(case.times_us)
        figures = [quantile(ordered, share) for share in (0.5, 0.9, 0.99, 0.999)]
        lines.append([f"{case.group}: {case.case}", *(f"{figure:,.0f}" for figure in [*figures, ordered[-1]])])
    return report.markdown_table(HEADINGS, lines)


def fencegate_cases(upstream: OpenUpstream, port: int, times: int, syncs: Syncs) -> list[Case]:
    """All cases in turns, so that what the machine does meanwhile meets all of them. So does the disk: it is slower after a
    pause than without one, and each advance comes after a pause."""
    unfenced = Case(TO_UPSTREAM, "fencegate, no fence", COLOURS["fencegate open"])
    equal = Case(TO_UPSTREAM, "fencegate, an equal token", COLOURS["haproxy"])
    advance = Case(TO_UPSTREAM, "fencegate, an advance, nothing to drain", COLOURS["fencegate"])
    told = Case(AFTER_END, "to the older write's client", COLOURS["nginx"])
    newer = Case(AFTER_END, "to the newer write at the upstream", COLOURS["fencegate"])
    disk = Case(DISK, SYNC, COLOURS["relay"])
    with Story(upstream, port, "fenced") as fenced, Story(upstream, port, "open") as opened:
        for number in range(-WARM_UP_TIMES, times):
            found = [syncs.one_us()]
            # What comes right behind the sync is slower for it, and not told.
            opened.equal()
            found += [opened.equal(), fenced.equal(), fenced.advance(), *fenced.handover()]
            if number >= 0:
                for case, time_us in zip((disk, unfenced, equal, advance, newer, told), found):
                    case.times_us.append(time_us)
    return [unfenced, equal, advance, told, newer, disk]


def lua_cases(upstream: OpenUpstream, port: int, times: int, syncs: Syncs) -> list[Case]:
    """Its mark is in memory, and it drains nothing: a newer token never waits. It has the same rests as the other, since a
    core that has rested wakes up late, under a hypervisor by hundreds of microseconds."""
    equal = Case(TO_UPSTREAM, "nginx + Lua, an equal token", COLOURS["relay"])
    advance = Case(TO_UPSTREAM, "nginx + Lua, an advance", COLOURS["nginx-lua"])
    with Story(upstream, port, "fenced") as story:
        for number in range(-WARM_UP_TIMES, times):
            syncs.one_us()
            story.equal()
            found = (story.equal(), story.advance())
            time.sleep(Story.SETTLED_SECONDS)
            if number >= 0:
                equal.times_us.append(found[0])
                advance.times_us.append(found[1])
    return [equal, advance]


def in_syncs(cases: list[Case]) -> list[str]:
    """What an advance costs above an equal token, in syncs of the disk."""
    by_name = {case.case: sorted(case.times_us) for case in cases}
    equal, advance = by_name.get("fencegate, an equal token"), by_name.get("fencegate, an advance, nothing to drain")
    syncs = by_name.get(SYNC)
    if not equal or not advance or not syncs:
        return []
    found = []
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        more, sync = quantile(advance, share) - quantile(equal, share), quantile(syncs, share)
        found.append(f"{more:,.0f} µs at {name}, {more / sync:.1f} times what a sync takes there")
    return ["An advance takes longer than an equal token by " + "; ".join(found) + "."]


MEASURES = {"fencegate": fencegate_cases, "nginx-lua": lua_cases}


def run(options: argparse.Namespace) -> dict:
    times = options.rounds * TIMES_EACH_ROUND
    cases: list[Case] = []
    with Stage(options) as stage, OpenUpstream() as upstream, Syncs(stage.directory) as syncs:
        peers = stage.start_peers(upstream.port, FENCING)
        facts = [f"{times:,} times each case, one request at a time; client and upstream read one clock"]
        report.print_heading("Handover", facts, stage.skipped)
        for name in peers:
            progress(f"handover: {name}")
            cases += MEASURES[name](upstream, peers[name].port, times, syncs)
    notes = in_syncs(cases)
    report.print_table("A newer token on its way", table(cases), notes)
    return {"handover": [vars(case) for case in cases], "notes": notes}


def figures(document: dict) -> dict[str, str]:
    note = "the share of times that are no longer than so many µs"
    return {"handover.svg": plots.distributions("A newer token on its way", note, document["handover"])}


PART = Part("handover", seconds, run, figures)
