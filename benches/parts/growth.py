"""What a request costs as something grows: connections, routes, keys, headers, bodies."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from statistics import median

from harness import plots, report
from harness.load import Workload
from harness.part import START_SECONDS, Part
from harness.rounds import Plan, Turns, rows_of, seconds_of
from harness.stage import Stage, most_connections, peers_wanted
from harness.upstream import FILES, KIBIBYTE, MEBIBYTE, Upstream
from harness.workloads import SMALL

TURN_SECONDS = 1
ROUNDS = 3
COMPARED = ("nginx", "fencegate")
WITH_MARKS = ("nginx-lua", "fencegate")
SMALL_GET = Workload("growth", "growth", *SMALL, peers=COMPARED, fenced_only=True)


@dataclass(frozen=True)
class Point:
    x: int
    workload: Workload
    more_routes: int = 0


@dataclass(frozen=True)
class Axis:
    """Something that grows. `wide`: the cost grows with it by orders of magnitude."""

    name: str
    title: str
    x_label: str
    points: list[Point]
    wide: bool = False


def connection_points() -> list[Point]:
    """To open the most takes a good part of a turn."""
    most = most_connections()
    points = [Point(count, replace(SMALL_GET, connections=count)) for count in (10, 100, 1000)]
    return [*points, Point(most, replace(SMALL_GET, connections=most, at_least_seconds=4))]


def route_points() -> list[Point]:
    """The route that is asked for is the last of many."""
    counts = (1, 10, 100, 1000, 10_000)
    return [Point(count, replace(SMALL_GET, at=f"/more/{count - 1}/42"), count) for count in counts]


def key_points() -> list[Point]:
    return [Point(count, replace(SMALL_GET, keys=count, peers=WITH_MARKS)) for count in (1, 100, 10_000, 100_000)]


def header_points() -> list[Point]:
    return [Point(count, replace(SMALL_GET, headers=count)) for count in (1, 10, 40, 80)]


def body_point(size: int, workload: Workload) -> Point:
    """So few connections that even the largest bodies come through many times in a turn."""
    return Point(size, replace(workload, connections=16, at_least_seconds=2 if size > MEBIBYTE else 0))


def response_points() -> list[Point]:
    return [body_point(size, replace(SMALL_GET, kind=kind, response_bytes=size)) for kind, size in FILES.items()]


def upload_points() -> list[Point]:
    """Beyond what nginx collects in memory, it is the kind that nginx streams."""
    sizes = ((KIBIBYTE, "upload"), (16 * KIBIBYTE, "upload"), (64 * KIBIBYTE, "upload"), (MEBIBYTE, "blob"), (4 * MEBIBYTE, "blob"))
    return [body_point(size, replace(SMALL_GET, method="PUT", kind=kind, body_bytes=size)) for size, kind in sizes]


def axes() -> list[Axis]:
    return [
        Axis("connections", "Connections", "connections", connection_points()),
        Axis("routes", "Routes", "routes", route_points()),
        Axis("keys", "Keys in use", "keys", key_points()),
        Axis("headers", "Headers of a request, beside the usual", "headers", header_points()),
        Axis("responses", "Bytes of a response, 16 connections", "bytes", response_points(), wide=True),
        Axis("uploads", "Bytes of an upload, 16 connections", "bytes", upload_points(), wide=True),
    ]


def rounds_of(options: argparse.Namespace) -> int:
    """There are many points, and what counts is how they lie to each other."""
    return min(ROUNDS, options.rounds)


def seconds(options: argparse.Namespace) -> float:
    names, total = peers_wanted(options), START_SECONDS
    for point in (point for axis in axes() for point in axis.points):
        turns = seconds_of(point.workload, rounds_of(options), TURN_SECONDS)
        total += len(rows_of(names, point.workload)) * turns + (1 if point.more_routes else 0)
    return total


def measure(axis: Axis, stage: Stage, upstream: Upstream, shared: Turns) -> dict:
    """Every point of an axis. Another number of routes needs peers of its own."""
    points: list[dict] = []
    failures: list[str] = []
    all_samples: report.Samples = {}
    for point in axis.points:
        with ExitStack() as stack:
            turns = shared
            if point.more_routes:
                peers = stack.enter_context(stage.some_peers(upstream.port, COMPARED, more_routes=point.more_routes))
                turns = Turns(shared.plan, upstream, peers)
                failures += [f"ABSENT at {point.x:,}: {name}: {stage.skipped.pop(name)}" for name in list(stage.skipped)]
            samples = turns.compare(point.workload)
        found = [*turns.failures, *report.churn_warnings(samples, point.workload.connections or shared.plan.connections)]
        failures += [f"at {point.x:,}: {each}" for each in found]
        for row, each in samples.items():
            all_samples.setdefault(row, []).extend(each)
        points.append({"x": point.x, "workload": asdict(point.workload), "rows": report.rows_as_json(samples)})
    notes = failures + (report.machine_warnings(all_samples) if all_samples else [])
    return {"name": axis.name, "title": axis.title, "x_label": axis.x_label, "wide": axis.wide, "notes": notes, "points": points}


def table(axis: dict) -> str:
    """A line for each point, and CPU, answers and memory of each peer."""
    names = list(dict.fromkeys(row["peer"] for point in axis["points"] for row in point["rows"]))
    headings = [axis["x_label"]]
    for name in names:
        headings += [f"{name} CPU µs", "requests/s", "p99 ms", "RSS MiB"]
    lines = []
    for point in axis["points"]:
        by_name = {row["peer"]: row for row in point["rows"]}
        cells = [cell for name in names for cell in row_cells(by_name.get(name))]
        lines.append([f"{point['x']:,}", *cells])
    return report.markdown_table(headings, lines)


def row_cells(row: dict | None) -> list[str]:
    if row is None:
        return ["–"] * 4
    rate, p99, resident = (
        median(sample[figure] for sample in row["samples"]) for figure in ("requests_per_second", "p99_us", "resident_bytes")
    )
    return [f"{row['cpu_us_median']:.1f}", f"{rate:,.0f}", f"{p99 / 1e3:.2f}", f"{resident / MEBIBYTE:.1f}"]


def run(options: argparse.Namespace) -> dict:
    results = []
    with Stage(options) as stage:
        upstream = stage.start_upstream(Upstream)
        plan = Plan(rounds_of(options), TURN_SECONDS, options.connections, stage.cores)
        turns = Turns(plan, upstream, stage.start_peers(upstream.port, COMPARED + WITH_MARKS))
        report.print_heading("Growth", [f"rounds: {plan.rounds}, turns of {TURN_SECONDS} s; fencegate is fenced"], stage.skipped)
        for axis in axes():
            result = measure(axis, stage, upstream, turns)
            report.print_table(axis.title, table(result), result["notes"])
            results.append(result)
    return {"axes": results}


def figures(document: dict) -> dict[str, str]:
    return {"growth.svg": plots.growth(document["axes"])}


PART = Part("growth", seconds, run, figures)
