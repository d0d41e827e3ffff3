"""What was measured becomes plots."""

from __future__ import annotations

from statistics import median

from .svg import COLOURS, Bar, BarPanel, Line, LinePanel, bar_figure, line_figure

# Longer bars are cut: they would make the others too short to be compared.
RATIO_LIMIT = 3.0


def name_of(row: dict) -> str:
    """A peer, and fencegate by its lane as well."""
    return "fencegate open" if row["peer"] == "fencegate" and row["lane"] == "open" else row["peer"]


def ratio_bars(rows: list[dict]) -> list[Bar]:
    named = [(name_of(row), row["ratios"]["nginx"]) for row in rows]
    return [Bar(name, ratio, COLOURS[name]) for name, ratio in named if ratio is not None]


def ratios(title: str, results: list[tuple[str, list[dict]]]) -> str:
    """Bars of CPU against nginx's in the same rounds, a panel for each kind of request."""
    panels = [BarPanel(name, bars) for name, rows in results if (bars := ratio_bars(rows))]
    return bar_figure(title, "CPU time as a share of nginx's in the same rounds (medians); shorter is better", panels, RATIO_LIMIT)


def growth(results: list[dict]) -> str:
    """CPU per request over what grows, a panel for each."""
    panels = [LinePanel(each["title"], each["x_label"], "CPU µs", growth_lines(each), log_y=each["wide"]) for each in results]
    return line_figure("What grows, and what a request then costs", "user + system time of the proxy, per request", panels)


def growth_lines(result: dict) -> list[Line]:
    points: dict[str, list[tuple[float, float]]] = {}
    for point in result["points"]:
        for row in point["rows"]:
            points.setdefault(name_of(row), []).append((point["x"], row["cpu_us_median"]))
    return [Line(name, places, COLOURS[name]) for name, places in points.items()]


def rates(title: str, note: str, panels: list[tuple[str, dict[str, list[tuple[float, float]]]]], x_label: str) -> str:
    """What each peer gets through a second, over how many ask at once."""
    figures = [
        LinePanel(name, x_label, "a second", [Line(peer, points, COLOURS[peer]) for peer, points in lines.items()], log_y=True)
        for name, lines in panels
    ]
    return line_figure(title, note, figures)


def distributions(title: str, note: str, results: list[dict]) -> str:
    """The share of times that are no longer than x, a panel for each group of cases."""
    panels: dict[str, list[Line]] = {}
    for result in results:
        panels.setdefault(result["group"], []).append(
            Line(f"{result['case']} (median {median(result['times_us']):.0f} µs)", shares(result["times_us"]), result["colour"])
        )
    return line_figure(
        title, note, [LinePanel(name, "µs", "share", lines, y_top=1.05) for name, lines in panels.items()]
    )


def shares(times: list[float], steps: int = 200) -> list[tuple[float, float]]:
    """The distribution in so many steps."""
    ordered = sorted(times)
    return [(max(ordered[min(len(ordered) - 1, int(len(ordered) * step / steps))], 0.1), step / steps) for step in range(steps + 1)]
