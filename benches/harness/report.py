"""Samples become tables: plain text that is Markdown as well, and JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from statistics import median, quantiles
from typing import Callable, Iterable

from .load import Workload
from .peers import Row
from .rounds import Sample

BUSY_SHARE = 0.05
RESUMED_SHARE = 0.95
IDLE_PROXY_SHARE = 0.90
REFERENCES = ("nginx", "haproxy")
COST_HEADINGS = ("peer", "CPU µs", "spread", "user", "system", "× nginx", "middle half", "× HAProxy", "× no fence")
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


def ratios(all_samples: dict[Row, list], row: Row, reference: Row | None) -> list[float]:
    """This row's CPU against the reference's in the same round, for each round."""
    return [mine / theirs for mine, theirs in zip(of(all_samples[row], cpu), of(all_samples.get(reference, []), cpu))]


def reference_row(all_samples: dict[Row, list], peer: str) -> Row | None:
    return next((row for row in all_samples if row.peer == peer), None)


def unfenced_twin(all_samples: dict[Row, list], row: Row) -> Row | None:
    """The route of the same gateway that has no fence."""
    return next((other for other in all_samples if other.peer == row.peer and other.lane != row.lane == "fenced"), None)


def ratio(all_samples: dict[Row, list], row: Row, reference: Row | None) -> float | None:
    """The median of the rounds' ratios: what slows the machine for a while slows both."""
    found = ratios(all_samples, row, reference)
    return median(found) if found else None


def middle_half(found: list[float]) -> str:
    """Between which two the middle half of the rounds' ratios lies."""
    if len(found) < 4:
        return "–"
    low, _, high = quantiles(found, n=4, method="inclusive")
    return f"{low:.2f} to {high:.2f}"


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
    nginx, haproxy = (reference_row(all_samples, peer) for peer in REFERENCES)
    half = middle_half(ratios(all_samples, row, nginx))
    others = [format_ratio(ratio(all_samples, row, other)) for other in (haproxy, unfenced_twin(all_samples, row))]
    return [row.label, total, f"{spread(of(samples, cpu)):.0%}", user, system, format_ratio(ratio(all_samples, row, nginx)), half, *others]


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
            f"BUSY MACHINE: in {len(busy)} of {len(turns)} turns something else took more than {BUSY_SHARE:.0%} "
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
    found += churn_warnings(all_samples, connections)
    for row, samples in all_samples.items():
        refused = max(of(samples, lambda each: each.refused_share))
        if refused:
            found.append(f"REFUSED: {row.label} refused up to {refused:.2%} of the requests in one turn.")
    return found


def churn_warnings(all_samples: Samples, connections: int) -> list[str]:
    """Whether a proxy made connections to the upstream anew that it could have kept."""
    found = []
    for row, samples in all_samples.items():
        opened = max(of(samples, lambda each: each.upstream_connections))
        if row.peer != "relay" and opened > 2 * connections:
            found.append(f"NO KEEP-ALIVE: {row.label} opened up to {opened} upstream connections in one turn.")
    return found


def resumption_warnings(workload: Workload, all_samples: Samples) -> list[str]:
    """A server may decline to resume, and then does more work than the others."""
    found = []
    for row, samples in all_samples.items():
        shares = of(samples, lambda each: each.resumed_share)
        if not workload.resumed and max(shares) > 0:
            found.append(f"RESUMED: {row.label} resumed up to {max(shares):.0%} of the sessions in one turn.")
        if workload.resumed and (share := min(shares)) < RESUMED_SHARE:
            found.append(f"FULL HANDSHAKES: {row.label} resumed no more than {share:.0%} of the sessions in one turn.")
    return found


def notes_on(workload: Workload, all_samples: Samples, connections: int) -> list[str]:
    return warnings(all_samples, connections) + resumption_warnings(workload, all_samples)


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
    if machine["commit"].endswith("-dirty"):
        facts.append("CHANGED SOURCE: files differ from that commit, so nobody else can build what was measured")
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
            "ratios": {peer: ratio(all_samples, row, reference_row(all_samples, peer)) for peer in REFERENCES},
            "times_unfenced": ratio(all_samples, row, unfenced_twin(all_samples, row)),
            "samples": [dataclasses.asdict(sample) for sample in samples],
        }
        for row, samples in all_samples.items()
    ]


class Tee:
    """What is printed goes to a file as well, which takes the place of an older one once it is whole."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._aside = path, path.with_suffix(".new")
        self._file = self._aside.open("w")
        self._stdout = sys.stdout

    def write(self, text: str) -> int:
        self._file.write(text)
        return self._stdout.write(text)

    def flush(self) -> None:
        self._file.flush()
        self._stdout.flush()

    def __enter__(self) -> "Tee":
        sys.stdout = self
        return self

    def __exit__(self, failure: type[BaseException] | None, *_) -> None:
        sys.stdout = self._stdout
        self._file.close()
        if failure is None:
            self._aside.replace(self._path)
        else:
            self._aside.unlink()


def write_json(path: Path, document: dict) -> None:
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
