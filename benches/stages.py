#!/usr/bin/env python3
"""Where the instructions of one request go: fencegate under callgrind, counted by the code that they were written in.

Counts of instructions repeat where times do not, so this tells what a change did on any machine, busy or not. Inlined code
counts for the file it comes from (the release profile keeps line tables for that), but that of Rust's own libraries for the function
that it was inlined in. The kernel is not seen.
"""

from __future__ import annotations

import argparse
import http.client
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

sys.dont_write_bytecode = True

from harness.machine import BenchError, require_program
from harness.report import markdown_table
from harness.stage import Stage, add_common_options, positive, run_main
from harness.upstream import SMALL_BODY, Upstream

WARM_UP = 50
RUST = r"/rustc/|/library/"
# The first that matches a source file's path names the stage.
STAGES = (
    ("hyper", r"/registry/.*/hyper-\d"),
    ("httparse", r"/registry/.*/httparse-"),
    ("http: headers, URIs, extensions", r"/registry/.*/(http|hashbrown|fnv)-\d"),
    ("bytes", r"/registry/.*/bytes-\d"),
    ("tokio", r"/registry/.*/(tokio|mio|want|futures-[a-z]+)-\d"),
    ("allocator", r"/registry/.*mimalloc"),
    ("other crates", r"/registry/"),
    ("Rust's libraries", RUST),
    ("copies and comparisons of memory (libc)", r"/string/|memmove|memcpy|memcmp|memset"),
    ("ours: guard of raw bytes", r"/src/(wire/|outbox|tls/)"),
    ("ours: connection", r"/src/(server|clock|timer|net|stop)"),
    ("ours: access line, counts", r"/src/(access|metrics|logging)"),
    ("ours: intake, limits, route, key", r"/src/(intake|route|guard|limits|key|policy|names|passage)"),
    ("ours: token, trust, claim", r"/src/(trust|signed|spool|token|claim|strip)"),
    ("ours: fence and store", r"/src/(fence|fault|store|marks|sync)"),
    ("ours: hop-by-hop and forwarded fields", r"/src/(hop_by_hop|forwarding)"),
    ("ours: exchange, upstream", r"/src/(exchange|upstream|forward|body)"),
    ("ours: the rest", r"/src/"),
    ("libc and the loader", r""),
)
REQUESTS = (("GET", "fenced"), ("GET", "open"), ("PUT", "fenced"))
# Where callgrind compresses a name, it stands behind a number the first time and is left out after that.
NAME = re.compile(r"\((\d+)\)(?: (.*))?")
# A function of the allocator, and behind it who called it, innermost first.
ALLOCATION = re.compile(r"(?:mi_(?:malloc|zalloc|calloc|realloc)(?:_aligned)?|malloc)(?:'(.*))?")
CALLERS = 3
ALLOCATORS = ("mi_malloc", "mi_malloc_aligned", "mi_zalloc", "mi_zalloc_aligned", "mi_realloc", "mi_realloc_aligned")


class Counted:
    """A file of callgrind's: instructions by source file, and calls of the allocator."""

    def __init__(self, path: Path):
        self.by_file: Counter[str] = Counter()
        self.allocations: Counter[str] = Counter()
        names: dict[tuple[str, str], str] = {}
        outer = file = called = ""
        lines = iter(path.read_text().splitlines())
        for line in lines:
            kind, is_entry, value = line.partition("=")
            if is_entry and kind in ("fl", "fi", "fe"):
                file = self._name(names, "file", value)
                outer = file if kind == "fl" else outer
            elif is_entry and kind in ("fn", "cfn"):
                called = self._name(names, "function", value)
            elif is_entry and kind in ("cfi", "cfl"):
                self._name(names, "file", value)
            elif kind == "calls":
                next(lines)  # What the call cost, which its own function counts.
                if allocation := ALLOCATION.fullmatch(called):
                    self.allocations[readable(allocation[1] or "?")] += int(value.split()[0])
            elif line and (line[0].isdigit() or line[0] in "+-*"):
                self.by_file[outer if re.search(RUST, file) else file] += int(line.split()[1])

    @staticmethod
    def _name(names: dict[tuple[str, str], str], kind: str, value: str) -> str:
        number, name = NAME.fullmatch(value).groups()
        return names.setdefault((kind, number), name or "")

    def by_stage(self) -> Counter[str]:
        stages: Counter[str] = Counter()
        for file, instructions in self.by_file.items():
            stages[next(stage for stage, pattern in STAGES if re.search(pattern, file))] += instructions
        return stages


def readable(callers: str) -> str:
    """Rust's names without what the compiler adds to them, innermost first."""
    names = (re.sub(r"::h[0-9a-f]{16}|<impl |::\{\{closure\}\}", "", name) for name in callers.split("'"))
    # Of `<a::b::Type<T> as c::d::Trait<U>>::call` what tells it from others: `Type::call`.
    return " < ".join("::".join(re.sub(r"<([\w:]+)[^ ]* as .*>(?=::)", r"\1", name).split("::")[-2:]) for name in names)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_options(parser)
    parser.add_argument("--requests", type=positive, default=1000, metavar="N", help="counted (default: %(default)s)")
    parser.add_argument("--allocations", action="store_true", help="also list who allocates in a fenced GET")
    return parser.parse_args()


def send(port: int, method: str, lane: str, count: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    kind, body = ("small", None) if method == "GET" else ("upload", b"x" * 64)
    for _ in range(count):
        connection.request(method, f"/{lane}/{kind}/42", body, {"Fencing-Token": "42"})
        response = connection.getresponse()
        if response.read() != SMALL_BODY.encode():
            raise BenchError(f"{method} on the lane {lane} gave {response.status}")
    connection.close()


def count(options: argparse.Namespace, binary: Path, method: str, lane: str) -> Counted:
    """Runs a gateway of its own under callgrind, and counts only what these requests cost it."""
    with Stage(options) as stage:
        wrapper = stage.directory / "counted"
        output = stage.directory / "callgrind.out"
        told_apart = " ".join(f"--separate-callers{CALLERS}={name}" for name in ALLOCATORS)
        command = f"{require_program('valgrind')} --tool=callgrind --instr-atstart=no {told_apart} --callgrind-out-file={output}"
        wrapper.write_text(f'#!/bin/sh\nexec {command} {binary} "$@"\n')
        wrapper.chmod(0o755)
        stage.fencegate = wrapper
        upstream = stage.start_upstream(Upstream)
        peer = stage.start_peers(upstream.port)["fencegate"]
        send(peer.port, method, lane, WARM_UP)
        switch("on", peer.process_ids()[0])
        send(peer.port, method, lane, options.requests)
        switch("off", peer.process_ids()[0])
        peer.stop()
        return Counted(output)


def switch(state: str, process: int) -> None:
    subprocess.run([require_program("callgrind_control"), "-i", state, str(process)], check=True, capture_output=True)


def main() -> int:
    options = parse_options()
    options.only = "fencegate"
    binary = options.fencegate.resolve()
    counts = {f"{method}, {lane}": count(options, binary, method, lane) for method, lane in REQUESTS}
    columns = {name: counted.by_stage() for name, counted in counts.items()}
    lines = []
    for stage in dict.fromkeys(stage for stage, _ in STAGES):
        figures = [column[stage] / options.requests for column in columns.values()]
        if any(figures):
            lines.append([stage, *[f"{figure:,.0f}" for figure in figures]])
    lines.append(["in all", *[f"{sum(column.values()) / options.requests:,.0f}" for column in columns.values()]])
    lines.append(["allocations", *[f"{counted.allocations.total() / options.requests:.1f}" for counted in counts.values()]])
    print(markdown_table(["instructions per request", *columns], lines))
    if options.allocations:
        (name, counted), *_ = counts.items()
        rows = [[f"`{who}`", f"{calls / options.requests:.1f}"] for who, calls in counted.allocations.most_common()]
        print("\n" + markdown_table([f"who allocates in a request ({name})", "times"], [row for row in rows if row[1] != "0.0"]))
    return 0


if __name__ == "__main__":
    run_main(main)
