#!/usr/bin/env python3
"""Locks by fencegate, etcd and Redis, side by side: the holder that stalls, and acquire + release per second.

Each service runs on one pinned core and keeps its data on the same disk, and each grant is there before it is told
(etcd as it comes, Redis with appendfsync always). benches/harness/lock_load.rs is the load, on the other core: every client takes
and gives back a lock of its own, again and again. The method, and what the services can do, stand in benches/README.md.
"""

import argparse
import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median

sys.dont_write_bytecode = True

from harness import plots, report
from harness.disk import syncs_per_second
from harness.lock_peers import COMMANDS, LockPeer, LockSample, LockSite, lock_turn
from harness.lock_story import Resource, lock_directory, stalled_holder
from harness.machine import REPOSITORY, BenchError, Cores, describe, filesystem_of
from harness.rounds import in_turns, progress, progress_line
from harness.stage import MEMORY_FILESYSTEMS, positive, run_main

HEADINGS = ["peer", "pairs/s", "spread", "× etcd", "p50 ms", "p99 ms", "acquire p50", "acquire p99", "CPU µs", "core"]
WARM_UP_SECONDS = 1

Samples = dict[str, list[LockSample]]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="turns of each (default: %(default)s)")
    parser.add_argument("--seconds", type=positive, default=4, metavar="N", help="of one turn (default: %(default)s)")
    parser.add_argument("--clients", default="1,16,128", metavar="N,…", help="how many at once (default: %(default)s)")
    parser.add_argument("--only", metavar="PEERS", help=f"comma-separated, of: {', '.join(COMMANDS)}")
    parser.add_argument("--part", choices=("story", "speed"), help="one of the two parts alone")
    parser.add_argument("--scratch", type=Path, default=Path("/var/tmp"), metavar="DIR", help="on a disk")
    release = REPOSITORY / "target/release"
    parser.add_argument("--fencegate", type=Path, default=release / "fencegate", metavar="FILE", help="the binary")
    parser.add_argument("--load", type=Path, default=release / "examples/lock_load", metavar="FILE", help="the load")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the tables, every sample and a plot go")
    return parser.parse_args()


def compare(peers: dict[str, LockPeer], clients: int, options: argparse.Namespace, cores: Cores) -> Samples:
    samples: Samples = {name: [] for name in peers}
    for peer in peers.values():
        lock_turn(peer, options.load, cores.load, clients, WARM_UP_SECONDS)
    for number, name in in_turns(list(peers), options.rounds):
        sample = lock_turn(peers[name], options.load, cores.load, clients, options.seconds)
        samples[name].append(sample)
        progress(f"{clients} clients, round {number}: {name} {sample.pairs_per_second:,.0f} pairs/s")
    return samples


def table(samples: Samples) -> str:
    lines = []
    for name, turns in samples.items():
        rates = [turn.pairs_per_second for turn in turns]
        theirs = [turn.pairs_per_second for turn in samples.get("etcd", [])]
        ratio = f"{median(mine / other for mine, other in zip(rates, theirs)):.1f}" if theirs else "–"
        times = ("pair_p50_us", "pair_p99_us", "acquire_p50_us", "acquire_p99_us")
        lines.append(
            [
                name,
                f"{median(rates):,.0f}",
                f"{report.spread(rates):.0%}",
                ratio,
                *(f"{median(getattr(turn, figure) for turn in turns) / 1e3:.2f}" for figure in times),
                f"{median(turn.cpu_us for turn in turns):.0f}",
                f"{median(turn.core_share for turn in turns):.0%}",
            ]
        )
    return report.markdown_table(HEADINGS, lines)


def tell_stories(peers: dict[str, LockPeer], resource: Resource) -> dict:
    stories = {}
    print("\n### A holder stalls past its lease, and writes when it goes on")
    for name, peer in peers.items():
        lines, lost = stalled_holder(peer, resource)
        verdict = "the stale write landed: B's work is lost" if lost else "the stale write was refused"
        print(f"\n{name}: {verdict}\n", *(f"    {line}" for line in lines), sep="\n", flush=True)
        stories[name] = {"lost": lost, "timeline": lines}
    return stories


def figure(document: dict) -> str:
    lines: dict[str, list[tuple[float, float]]] = {}
    for each in document["speed"]:
        for name, turns in each["samples"].items():
            lines.setdefault(name, []).append((each["clients"], median(turn["pairs_per_second"] for turn in turns)))
    return plots.rates("Locks taken and given back", "medians over the rounds", [("Pairs", lines)], "clients")


def main() -> int:
    options = parse_options()
    wanted = options.only.split(",") if options.only else list(COMMANDS)
    if unknown := sorted(set(wanted) - set(COMMANDS)):
        raise BenchError(f"no such peer: {', '.join(unknown)}; there are {', '.join(COMMANDS)}")
    if filesystem_of(options.scratch) in MEMORY_FILESYSTEMS:
        raise BenchError(f"{options.scratch} is in memory; name a directory on a disk with --scratch")
    if options.part != "story" and not options.load.exists():
        raise BenchError(f"{options.load} is not there: cargo build --release --example lock_load")
    cores = Cores.choose(None, None)
    document: dict = {"machine": describe(cores), "speed": []}
    with ExitStack() as stack, progress_line():
        if options.out is not None:
            stack.enter_context(report.Tee(options.out / "locks.md"))
        stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores.load})
        temporary = tempfile.TemporaryDirectory(prefix="fencegate-bench-", dir=options.scratch)
        directory = Path(stack.enter_context(temporary))
        resource = stack.enter_context(Resource())
        peers = {}
        for name in wanted:
            site = LockSite.make(lock_directory(directory, name), resource.port, cores.proxy, options.fencegate.resolve())
            peers[name] = stack.enter_context(LockPeer(name, site))
            peers[name].wait_until_ready()
        document["machine"]["versions"] = {name: peer.version() for name, peer in peers.items()}
        syncs = syncs_per_second(directory)
        method = (
            f"the disk makes {syncs:,.0f} writes of 4 KiB a second durable, one after the other; "
            f"rounds: {options.rounds}, turns of {options.seconds} s, in turns; medians over the rounds"
        )
        facts = [fact.replace("proxy on core", "service on core") for fact in report.machine_facts(document["machine"])]
        report.print_heading("Locks, side by side", [*facts, method], {})
        document["syncs_per_second"] = syncs
        if options.part != "speed":
            document["stories"] = tell_stories(peers, resource)
        if options.part != "story":
            for clients in map(int, options.clients.split(",")):
                samples = compare(peers, clients, options, cores)
                report.print_table(f"Acquire and release, {clients} clients", table(samples), [])
                turns = {name: [asdict(turn) for turn in each] for name, each in samples.items()}
                document["speed"].append({"clients": clients, "samples": turns})
    if options.out is not None:
        report.write_json(options.out / "locks.json", document)
        (options.out / "locks.svg").write_text(figure(document))
    return 0


run_main(main)
