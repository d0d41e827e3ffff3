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
    headings = [*COST_HEADINGS, "requests/s", "p50 ms", "p99 ms", "RSS MiB", "core"]
    lines = []
    for row, samples in all_samples.items():
        lines.append(
            [
                *cost_cells(all_samples, row),
                f"{median(of(samples, lambda each: each.requests_per_second)):,.0f}",
                f"{median(of(samples, lambda each: each.p50_us)) / 1e3:.2f}",
                f"{median(of(samples, lambda each: each.p99_us)) / 1e3:.2f}",
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
    return found


def print_comparison(workload: Workload, all_samples: Samples, connections: int) -> None:
    print_table(workload.title, comparison_table(all_samples), warnings(all_samples, connections))


def print_table(title: str, table: str, notes: list[str]) -> None:
    print(f"\n### {title}\n\n{table}", flush=True)
    for note in notes:
        print(f"\n{note}", flush=True)


def print_heading(title: str, facts: Iterable[str], skipped: dict[str, str]) -> None:
    print(f"## {title}\n")
    for fact in facts:
        print(f"- {fact}")
    for name, reason in skipped.items():
        print(f"- {name} is left out: {reason}")


def machine_facts(machine: dict) -> list[str]:
    versions = dict.fromkeys(version for version in machine["versions"].values() if version)
    return [
        f"{machine['processor']}, Linux {machine['kernel']}; "
        f"proxy on core {machine['proxy_core']}, load and upstream on core {machine['load_core']}",
        f"source at {machine['commit'] or 'an unknown commit'}; {'; '.join(versions)}",
    ]


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


def comparison_as_json(workload: Workload, all_samples: Samples, connections: int) -> dict:
    return {
        "workload": dataclasses.asdict(workload),
        "notes": warnings(all_samples, connections),
        "rows": rows_as_json(all_samples),
    }


def write_json(path: Path | None, document: dict) -> None:
    if path is not None:
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
