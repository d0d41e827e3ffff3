"""Plots as SVG, with no library: panels of bars, and panels of lines. Each follows the reader's dark or light mode."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from html import escape

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328; }
.title { font-size: 16px; font-weight: 600; }
.panel { font-weight: 600; }
.small { font-size: 11px; fill: #59636e; }
.value { paint-order: stroke; stroke: #ffffff; stroke-width: 3px; }
.back { fill: #ffffff; }
.grid { stroke: #d1d9e0; stroke-width: 1; }
.mark { stroke: #59636e; stroke-width: 1; stroke-dasharray: 3 3; }
.line { fill: none; stroke-width: 2; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .small { fill: #9198a1; }
  .value { stroke: #0d1117; }
  .back { fill: #0d1117; }
  .grid { stroke: #3d444d; }
  .mark { stroke: #9198a1; }
}
"""
# Each has enough contrast on white and on black; the last is fencegate's, which is to be found at once.
COLOURS = {
    "relay": "#8b8f97",
    "nginx": "#2f9e58",
    "nginx-lua": "#7a9a1f",
    "haproxy": "#2b82c9",
    "nginx-large": "#79c694",
    "haproxy-large": "#84b7e2",
    "envoy": "#a05fc4",
    "caddy": "#1a9aa6",
    "fencegate open": "#e0935a",
    "fencegate": "#d9480f",
    "plain": "#b08968",
    "store": "#d9480f",
    "ideal": "#8b8f97",
    "redis": "#c92a3b",
    "etcd": "#2b82c9",
}
MARGIN, TITLE_HEIGHT, GAP = 16, 56, 28
BAR_HEIGHT, BAR_STEP, LABEL_WIDTH, VALUE_WIDTH = 12, 17, 120, 56
PLOT_HEIGHT, AXIS_WIDTH, AXIS_HEIGHT, LEGEND_STEP = 200, 56, 40, 16


@dataclass(frozen=True)
class Bar:
    label: str
    value: float
    colour: str


@dataclass(frozen=True)
class BarPanel:
    title: str
    bars: list[Bar]


@dataclass(frozen=True)
class Line:
    label: str
    points: list[tuple[float, float]]
    colour: str


@dataclass(frozen=True)
class LinePanel:
    """Logarithmic where it says so; a linear axis begins at zero."""

    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    log_x: bool = True
    log_y: bool = False
    y_top: float | None = None


@dataclass
class Canvas:
    """Elements at places that are added to."""

    left: float = 0
    top: float = 0
    parts: list[str] = field(default_factory=list)

    def at(self, left: float, top: float) -> "Canvas":
        return Canvas(self.left + left, self.top + top, self.parts)

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        place = f'x="{self.left + x:.1f}" y="{self.top + y:.1f}"'
        self.parts.append(f'<text {place} class="{kind}" text-anchor="{anchor}">{escape(text)}</text>')

    def bar(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        place = f'x="{self.left + x:.1f}" y="{self.top + y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self.parts.append(f'<rect {place} rx="2" fill="{colour}"/>')

    def rule(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        ends = f'x1="{self.left + x1:.1f}" y1="{self.top + y1:.1f}" x2="{self.left + x2:.1f}" y2="{self.top + y2:.1f}"'
        self.parts.append(f'<line {ends} class="{kind}"/>')

    def curve(self, places: list[tuple[float, float]], colour: str, dots: bool) -> None:
        moved = [(self.left + x, self.top + y) for x, y in places]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in moved)
        self.parts.append(f'<polyline class="line" stroke="{colour}" points="{joined}"/>')
        for x, y in moved if dots else ():
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')

    def document(self, width: float, height: float) -> str:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}">'
        back = f'<rect class="back" width="{width:.0f}" height="{height:.0f}"/>'
        return "\n".join([head, f"<style>{STYLE}</style>", back, *self.parts, "</svg>", ""])


def bar_figure(title: str, note: str, panels: list[BarPanel], limit: float, columns: int = 2, width: int = 960) -> str:
    """Horizontal bars of ratios; 1 is marked, and a bar that would pass the limit is cut and says how long it is."""
    canvas = heading(title, note)
    inner = column_width(width, columns)
    tops = [TITLE_HEIGHT] * columns
    for panel in panels:
        column = tops.index(min(tops))
        draw_bars(canvas.at(MARGIN + column * (inner + GAP), tops[column]), panel, inner, limit)
        tops[column] += 24 + len(panel.bars) * BAR_STEP + GAP
    return canvas.document(width, max(tops))


def draw_bars(canvas: Canvas, panel: BarPanel, width: float, limit: float) -> None:
    canvas.text(0, 14, panel.title, "panel")
    room = width - LABEL_WIDTH - VALUE_WIDTH
    one = LABEL_WIDTH + room / limit
    canvas.rule(one, 20, one, 24 + len(panel.bars) * BAR_STEP, "mark")
    for number, bar in enumerate(panel.bars):
        y = 24 + number * BAR_STEP
        canvas.text(LABEL_WIDTH - 8, y + BAR_HEIGHT - 2, bar.label, "small", "end")
        length = room * min(bar.value, limit) / limit
        canvas.bar(LABEL_WIDTH, y, length, BAR_HEIGHT, bar.colour)
        beyond = " →" if bar.value > limit else ""
        canvas.text(LABEL_WIDTH + length + 5, y + BAR_HEIGHT - 2, f"{bar.value:.2f}{beyond}", "small value")


def line_figure(title: str, note: str, panels: list[LinePanel], columns: int = 2, width: int = 960) -> str:
    canvas = heading(title, note)
    inner = column_width(width, columns)
    legend = max((len(panel.lines) for panel in panels), default=0) * LEGEND_STEP
    step = 40 + PLOT_HEIGHT + AXIS_HEIGHT + legend + GAP
    for number, panel in enumerate(panels):
        left = MARGIN + number % columns * (inner + GAP)
        draw_lines(canvas.at(left, TITLE_HEIGHT + number // columns * step), panel, inner)
    return canvas.document(width, TITLE_HEIGHT + math.ceil(len(panels) / columns) * step)


def draw_lines(canvas: Canvas, panel: LinePanel, width: float) -> None:
    canvas.text(0, 14, panel.title, "panel")
    plot = canvas.at(AXIS_WIDTH, 40)
    room = width - AXIS_WIDTH
    xs = [x for line in panel.lines for x, _ in line.points]
    ys = [y for line in panel.lines for _, y in line.points]
    if not xs:
        plot.text(0, PLOT_HEIGHT / 2, "nothing was measured", "small")
        return
    across, down = Scale.over(xs, panel.log_x, room), Scale.over(ys, panel.log_y, PLOT_HEIGHT, panel.y_top)
    for value in down.ticks():
        y = PLOT_HEIGHT - down.place(value)
        plot.rule(0, y, room, y, "grid")
        plot.text(-6, y + 4, short(value), "small", "end")
    for value in across.ticks():
        plot.text(across.place(value), PLOT_HEIGHT + 16, short(value), "small", "middle")
    plot.text(room / 2, PLOT_HEIGHT + 32, panel.x_label, "small", "middle")
    plot.text(-AXIS_WIDTH, -12, panel.y_label, "small")
    for number, line in enumerate(panel.lines):
        places = [(across.place(x), PLOT_HEIGHT - down.place(y)) for x, y in line.points]
        plot.curve(places, line.colour, dots=len(places) < 20)
        y = PLOT_HEIGHT + AXIS_HEIGHT + number * LEGEND_STEP
        plot.bar(0, y, 14, 4, line.colour)
        plot.text(20, y + 6, line.label, "small")


@dataclass(frozen=True)
class Scale:
    low: float
    high: float
    logarithmic: bool
    room: float

    @staticmethod
    def over(values: list[float], logarithmic: bool, room: float, top: float | None = None) -> "Scale":
        """A logarithmic scale has no place for nothing: its values must be positive."""
        if logarithmic:
            low, high = min(values), max(values)
            return Scale(low, high if high > low else low * 10, True, room)
        return Scale(0, top or max(values) * 1.08 or 1, False, room)

    def place(self, value: float) -> float:
        if self.logarithmic:
            return self.room * math.log(value / self.low) / math.log(self.high / self.low)
        return self.room * (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        if self.logarithmic:
            powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            steps = (1,) if len(powers) > 2 else (1, 2, 5)
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            ticks = [step * 10.0**exponent for exponent in exponents for step in steps]
            return [tick for tick in ticks if self.low * 0.999 <= tick <= self.high * 1.001]
        step = 10 ** math.floor(math.log10(self.high))
        step = next(size for size in (step / 5, step / 2, step, step * 2) if self.high / size <= 6)
        return [number * step for number in range(int(self.high / step) + 1)]


def heading(title: str, note: str) -> Canvas:
    canvas = Canvas()
    canvas.text(MARGIN, 22, title, "title")
    canvas.text(MARGIN, 38, note, "small")
    return canvas


def column_width(width: int, columns: int) -> float:
    return (width - 2 * MARGIN - (columns - 1) * GAP) / columns


def short(value: float) -> str:
    """1500 as 1.5k; no digits that say nothing."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.3g}"
