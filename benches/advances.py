#!/usr/bin/env python3
"""Durable advances: the store, beside an ideal group-commit log, Redis and etcd on the same disk, in turns.

An advance is a token for a key of 40 bytes that is on the disk before it is acknowledged. The store and the ideal log run within
the process that loads them (examples/store_bench.rs), as the store runs within the gateway, and have both cores. Redis
(appendonly, appendfsync always) and etcd (as it comes) have a core of their own, and their load (benches/harness/advance_load.rs)
the other; many advances share a connection, which serves them best. The method stands in benches/README.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

sys.dont_write_bytecode = True

from harness import plots, report
from harness.disk import DiskCounts, syncs_per_second
from harness.lock_peers import LockPeer, LockSite
from harness.lock_story import lock_directory
from harness.machine import REPOSITORY, BenchError, Cores, describe, filesystem_of
from harness.process import pinned_command
from harness.rounds import in_turns, progress, progress_line
from harness.stage import MEMORY_FILESYSTEMS, positive, run_main

EMBEDDED = ("store", "ideal")
SERVERS = ("redis", "etcd")
HEADINGS = ["peer", "advances/s", "spread", "× ideal", "p50 ms", "p99 ms", "syncs/s", "bytes per advance"]


@dataclass(frozen=True)
class Sample:
    """What one turn gave. Syncs are those of the peer where it counts them, or else those of the whole disk, as bytes are."""

    per_second: float
    p50_us: float
    p99_us: float
    syncs_per_second: float | None
    bytes_per_advance: float | None


Samples = dict[str, list[Sample]]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="turns of each (default: %(default)s)")
    parser.add_argument("--seconds", type=positive, default=4, metavar="N", help="of one turn (default: %(default)s)")
    parser.add_argument("--advancers", default="1,64,512,4096", metavar="N,…", help="at once (default: %(default)s)")
    parser.add_argument("--keys", default="hot,random", metavar="KINDS", help="(default: %(default)s)")
    preload = "random keys of the store are among so many that it has; the others start empty (default: %(default)s)"
    parser.add_argument("--preload", type=int, default=2_000_000, metavar="N", help=preload)
    parser.add_argument("--only", metavar="PEERS", help=f"comma-separated, of: {', '.join(EMBEDDED + SERVERS)}")
    parser.add_argument("--scratch", type=Path, default=Path("/var/tmp"), metavar="DIR", help="on a disk")
    examples = REPOSITORY / "target/release/examples"
    parser.add_argument("--bench", type=Path, default=examples / "store_bench", metavar="FILE", help="store and ideal log")
    parser.add_argument("--load", type=Path, default=examples / "advance_load", metavar="FILE", help="the load of the others")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the tables, every sample and a plot go")
    return parser.parse_args()


class Bench:
    """The peers, where they are, and how one turn of each is run."""

    def __init__(self, options: argparse.Namespace, cores: Cores, directory: Path):
        self.options = options
        self.cores = cores
        self.directory = directory
        self.servers: dict[str, LockPeer] = {}

    def turn(self, name: str, keys: str, advancers: int, seconds: float) -> Sample:
        if name in EMBEDDED:
            return self._embedded(name, keys, advancers, seconds)
        return self._server(name, keys, advancers, seconds)

    def _embedded(self, name: str, keys: str, advancers: int, seconds: float) -> Sample:
        where = ["--turn", name, "--path", str(self.directory)]
        what = ["--keys", keys, "--advancers", str(advancers), "--seconds", str(seconds)]
        if name == "store" and keys == "random":
            what += ["--preload", str(self.options.preload)]
        cores = f"{self.cores.proxy},{self.cores.load}"
        found = run(["taskset", "--cpu-list", cores, str(self.options.bench), *where, *what], name)
        return sample(found, found["syncs"], found["bytes"])

    def _server(self, name: str, keys: str, advancers: int, seconds: float) -> Sample:
        peer = self.servers[name]
        peer.require_alive()
        address = f"127.0.0.1:{peer.site.port}"
        what = ["--keys", keys, "--advancers", str(advancers), "--seconds", str(seconds)]
        before = DiskCounts.of(self.directory)
        found = run(pinned_command([str(self.options.load), name, address, *what], self.cores.load), name)
        spent = DiskCounts.of(self.directory) - before
        return sample(found, spent.flushes, spent.bytes)


def run(command: list[str], name: str) -> dict:
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    if done.returncode != 0:
        raise BenchError(f"the turn of {name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def sample(found: dict, syncs: float | None, written: float | None) -> Sample:
    advances, seconds = max(found["advances"], 1), found["seconds"]
    return Sample(
        advances / seconds,
        found["p50_us"],
        found["p99_us"],
        None if syncs is None else syncs / seconds,
        None if written is None else written / advances,
    )


def compare(bench: Bench, names: list[str], keys: str, advancers: int) -> Samples:
    samples: Samples = {name: [] for name in names}
    for name in names:
        bench.turn(name, keys, advancers, 1)
    for number, name in in_turns(names, bench.options.rounds):
        one = bench.turn(name, keys, advancers, bench.options.seconds)
        samples[name].append(one)
        progress(f"{keys} keys, {advancers} at once, round {number}: {name} {one.per_second:,.0f} advances/s")
    return samples


def table(samples: Samples) -> str:
    lines = []
    ideal = [turn.per_second for turn in samples.get("ideal", [])]
    for name, turns in samples.items():
        rates = [turn.per_second for turn in turns]
        ratio = f"{median(mine / best for mine, best in zip(rates, ideal)):.2f}" if ideal else "–"
        times = (f"{median(getattr(turn, figure) for turn in turns) / 1e3:.2f}" for figure in ("p50_us", "p99_us"))
        counts = (known_median(turns, figure) for figure in ("syncs_per_second", "bytes_per_advance"))
        lines.append([name, f"{median(rates):,.0f}", f"{report.spread(rates):.0%}", ratio, *times, *counts])
    return report.markdown_table(HEADINGS, lines)


def known_median(turns: list[Sample], figure: str) -> str:
    known = [value for turn in turns if (value := getattr(turn, figure)) is not None]
    return f"{median(known):,.0f}" if known else "–"


def figure(document: dict) -> str:
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for each in document["advances"]:
        lines = panels.setdefault(f"{each['keys'].capitalize()} keys", {})
        for name, turns in each["samples"].items():
            lines.setdefault(name, []).append((each["advancers"], median(turn["per_second"] for turn in turns)))
    return plots.rates("Durable advances", "medians over the rounds", list(panels.items()), "at once")


def main() -> int:
    options = parse_options()
    wanted = options.only.split(",") if options.only else list(EMBEDDED + SERVERS)
    if unknown := sorted(set(wanted) - set(EMBEDDED + SERVERS)):
        raise BenchError(f"no such peer: {', '.join(unknown)}; there are {', '.join(EMBEDDED + SERVERS)}")
    kinds = options.keys.split(",")
    if unknown := sorted(set(kinds) - {"hot", "random"}):
        raise BenchError(f"no such keys: {', '.join(unknown)}; there are hot and random")
    if filesystem_of(options.scratch) in MEMORY_FILESYSTEMS:
        raise BenchError(f"{options.scratch} is in memory; name a directory on a disk with --scratch")
    for program in (options.bench, options.load):
        if not program.exists():
            raise BenchError(f"{program} is not there: cargo build --release --example {program.name}")
    cores = Cores.choose(None, None)
    document: dict = {"machine": describe(cores), "preload": options.preload, "advances": []}
    with ExitStack() as stack, progress_line():
        if options.out is not None:
            stack.enter_context(report.Tee(options.out / "advances.md"))
        temporary = tempfile.TemporaryDirectory(prefix="fencegate-bench-", dir=options.scratch)
        directory = Path(stack.enter_context(temporary))
        bench = Bench(options, cores, directory)
        for name in (name for name in wanted if name in SERVERS):
            site = LockSite.make(lock_directory(directory, name), 0, cores.proxy, Path())
            bench.servers[name] = stack.enter_context(LockPeer(name, site))
            bench.servers[name].wait_until_ready()
        document["machine"]["versions"] = {name: peer.version() for name, peer in bench.servers.items()}
        syncs = document["syncs_per_second"] = syncs_per_second(directory)
        method = (
            f"the disk makes {syncs:,.0f} writes of 4 KiB a second durable, one after the other; "
            f"rounds: {options.rounds}, turns of {options.seconds} s, in turns; medians over the rounds"
        )
        facts = [fact.replace("proxy on core", "servers on core") for fact in report.machine_facts(document["machine"])]
        report.print_heading("Durable advances, side by side", [*facts, method], {})
        for keys in kinds:
            for advancers in map(int, options.advancers.split(",")):
                samples = compare(bench, wanted, keys, advancers)
                report.print_table(f"{keys.capitalize()} keys, {advancers} at once", table(samples), [])
                turns = {name: [asdict(turn) for turn in each] for name, each in samples.items()}
                document["advances"].append({"keys": keys, "advancers": advancers, "samples": turns})
    if options.out is not None:
        report.write_json(options.out / "advances.json", document)
        (options.out / "advances.svg").write_text(figure(document))
    return 0


run_main(main)
