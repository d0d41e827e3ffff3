"""Samples become tables: plain text that is Markdown as well, and JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from statistics import median
from typing import Callable, Iterable

from .load import Workload
from .peers import Row
from .rounds import Sample

BUSY_SHARE = 0.05
RESUMED_SHARE = 0.95
IDLE_PROXY_SHARE = 0.90
REFERENCES = ("nginx", "haproxy")
COST_HEADINGS = ("peer", "CPU µs", "spread", "user", "system", "× nginx", "× HAProxy")
MEBIBYTE = 1 << 20

Samples = dict[Row, list[Sample]]


def markdown_table(headings: list[str], lines: list[list[str]]) -> str:
    """Columns padded to one width; the first is text, the others are figures and stand right."""
    widths = [max(len(line[column]) for line in [headings, *lines]) for column in range(len(headings))]

    def render(cells: list[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *[cell.rjust(width) for cell, width in zip(cells[1:], widths[1:])]]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *["-" * (width - 1) + ":" for width in widths[1:]]]
    return "\n".join([render(headings), render(rule), *map(render, lines)])


def of(samples: list, figure: Callable) -> list[float]:
    return [figure(sample) for sample in samples]


def cpu(sample) -> float:
    return sample.cpu_us


def ratio(all_samples: dict[Row, list], row: Row, reference: str) -> float | None:
    """The median over rounds of this row's CPU against the reference's in the same round."""
    for other, samples in all_samples.items():
        if other.peer == reference:
            return median(mine / theirs for mine, theirs in zip(of(all_samples[row], cpu), of(samples, cpu)))
    return None


def spread(values: list[float]) -> float:
    """Highest less lowest, as a share of the median."""
    return (max(values) - min(values)) / median(values)


def format_ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def cost_cells(all_samples: dict[Row, list], row: Row, digits: int = 1) -> list[str]:
    """The row's name, its CPU figures and its ratios; the columns of COST_HEADINGS."""
    samples = all_samples[row]
    figures = (cpu, lambda each: each.user_us, lambda each: each.system_us)
    total, user, system = [f"{median(of(samples, figure)):.{digits}f}" for figure in figures]
    ratios = [format_ratio(ratio(all_samples, row, reference)) for reference in REFERENCES]
    return [row.label, total, f"{spread(of(samples, cpu)):.0%}", user, system, *ratios]


def comparison_table(all_samples: Samples) -> str:
    headings = [*COST_HEADINGS, "requests/s", "p50 ms", "p99 ms", "p99.9 ms", "RSS MiB", "core"]
    lines = []
    for row, samples in all_samples.items():
        lines.append(
            [
                *cost_cells(all_samples, row),
                f"{median(of(samples, lambda each: each.requests_per_second)):,.0f}",
                f"{median(of(samples, lambda each: each.p50_us)) / 1e3:.2f}",
                f"{median(of(samples, lambda each: each.p99_us)) / 1e3:.2f}",
                f"{median(of(samples, lambda each: each.p999_us)) / 1e3:.2f}",
                f"{max(of(samples, lambda each: each.resident_bytes)) / MEBIBYTE:.1f}",
                f"{median(of(samples, lambda each: each.proxy_core_share)):.0%}",
            ]
        )
    return markdown_table(headings, lines)


def machine_warnings(all_samples: dict[Row, list]) -> list[str]:
    """Whether the machine had other work during the turns."""
    turns = [sample for samples in all_samples.values() for sample in samples]
    found = []
    busy = [sample.others_share for sample in turns if sample.others_share > BUSY_SHARE]
    if busy:
        found.append(
            f"BUSY MACHINE: in {len(busy)} of {len(turns)} turns other processes took more than {BUSY_SHARE:.0%} "
            f"of a core (up to {max(busy):.0%}); repeat on an idle one."
        )
    stolen = max(sample.stolen_share for sample in turns)
    if stolen > BUSY_SHARE:
        found.append(f"STOLEN TIME: the hypervisor gave up to {stolen:.0%} of a core to others.")
    return found


def warnings(all_samples: Samples, connections: int) -> list[str]:
    """What a reader must know before believing the table."""
    found = machine_warnings(all_samples)
    shares = {row: median(of(samples, lambda each: each.proxy_core_share)) for row, samples in all_samples.items()}
    waiting = [f"{row.label} {share:.0%}" for row, share in shares.items() if share < IDLE_PROXY_SHARE]
    if waiting:
        found.append(
            f"LOAD IS THE LIMIT: the proxy's core was not busy throughout ({'; '.join(waiting)}), "
            "so requests/s is not what the proxy can do."
        )
    for row, samples in all_samples.items():
        opened = max(of(samples, lambda each: each.upstream_connections))
        if row.peer != "relay" and opened > 2 * connections:
            found.append(f"NO KEEP-ALIVE: {row.label} opened up to {opened} upstream connections in one turn.")
        refused = max(of(samples, lambda each: each.refused_share))
        if refused:
            found.append(f"REFUSED: {row.label} refused up to {refused:.2%} of the requests in one turn.")
    return found


def resumption_warnings(all_samples: Samples) -> list[str]:
    """A server may decline to resume, and then does more work than the others."""
    found = []
    for row, samples in all_samples.items():
        share = min(of(samples, lambda each: each.resumed_share))
        if share < RESUMED_SHARE:
            found.append(f"FULL HANDSHAKES: {row.label} resumed no more than {share:.0%} of the sessions in one turn.")
    return found


def notes_on(workload: Workload, all_samples: Samples, connections: int) -> list[str]:
    found = warnings(all_samples, connections)
    return found + resumption_warnings(all_samples) if workload.resumed else found


def comparison(workload: Workload, all_samples: Samples, connections: int, failures: list[str]) -> dict:
    """Prints the table of a workload and returns it for JSON."""
    notes = [*failures]
    if all_samples:
        notes += notes_on(workload, all_samples, workload.connections or connections)
    table = comparison_table(all_samples) if all_samples else "(no peer got through)"
    print_table(workload.title, table, notes)
    return {"workload": dataclasses.asdict(workload), "notes": notes, "rows": rows_as_json(all_samples)}


def print_table(title: str, table: str, notes: list[str]) -> None:
    print(f"\n### {title}\n\n{table}", flush=True)
    for note in notes:
        print(f"\n{note}", flush=True)


def print_heading(title: str, facts: Iterable[str], skipped: dict[str, str]) -> None:
    print(f"## {title}\n")
    for fact in facts:
        print(f"- {fact}")
    print_skipped(skipped)


def print_skipped(skipped: dict[str, str]) -> None:
    for name, reason in skipped.items():
        print(f"- ABSENT: {name}: {reason}", flush=True)


def machine_facts(machine: dict) -> list[str]:
    versions = dict.fromkeys(version for version in machine["versions"].values() if version)
    facts = [
        f"{machine['processor']}, Linux {machine['kernel']}; "
        f"proxy on core {machine['proxy_core']}, load and upstream on core {machine['load_core']}",
        f"source at {machine['commit'] or 'an unknown commit'}; {'; '.join(versions)}",
    ]
    if machine["proxy_core"] == machine["load_core"]:
        facts.append("ONE CORE: proxy and load share it, so the figures are not those of a proxy that has one for itself")
    if machine["busy_share"] > BUSY_SHARE:
        facts.append(
            f"BUSY MACHINE: before anything began, others took {machine['busy_share']:.0%} of one of the cores "
            f"(load average {machine['load_average']:.1f}); stop them and repeat"
        )
    return facts


def rows_as_json(all_samples: dict[Row, list]) -> list[dict]:
    return [
        {
            **dataclasses.asdict(row),
            "cpu_us_median": median(of(samples, cpu)),
            "cpu_us_spread": spread(of(samples, cpu)),
            "ratios": {reference: ratio(all_samples, row, reference) for reference in REFERENCES},
            "samples": [dataclasses.asdict(sample) for sample in samples],
        }
        for row, samples in all_samples.items()
    ]


def write_json(path: Path, document: dict) -> None:
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
