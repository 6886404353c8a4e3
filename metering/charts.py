"""Charts as inline SVG, in whole numbers: the same figures are the same bytes on every machine.

Nothing is loaded and nothing runs. Text is escaped here; colours are chosen to differ on paper too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#1f4e79", "#e08214", "#4d9221", "#8e44ad", "#c0392b", "#16a085", "#7f6000", "#5d6d7e", "#b0b0b0")
"""One for each series; the last is for all others together."""
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 220, 74, 24, 8
_PLOT_WIDTH, _PLOT_HEIGHT = WIDTH - LEFT - 6, HEIGHT - BOTTOM - TOP


@dataclass(frozen=True, slots=True)
class Series:
    """One stack of a chart: its name, and a value for each place, in the chart's smallest unit."""

    name: str
    values: tuple[int, ...]


def stacked(title: str, places: Sequence[str], series: Sequence[Series], unit: int) -> str:
    """Returns a chart of bars, the series on top of each other; what is negative hangs below the line.

    `unit` is how many of the values make one of what the axis tells. No place or no value gives no chart.
    """
    above = [sum(max(each.values[i], 0) for each in series) for i in range(len(places))]
    below = [sum(min(each.values[i], 0) for each in series) for i in range(len(places))]
    if not any(above) and not any(below):
        return ""
    step = step_for(max(above) - min(below), unit)
    high, low = -(-max(above) // step) * step, min(below) // step * step
    axis = _Axis(high, low)
    parts = [_grid(axis, step, unit)]
    slot = _PLOT_WIDTH * 10 // max(len(places), 1)
    for i, place in enumerate(places):
        up, down = 0, 0
        for number, each in enumerate(series):
            value = each.values[i]
            if not value:
                continue
            base = up if value > 0 else down
            edges = sorted((axis.y(base), axis.y(base + value)))
            up, down = (up + value, down) if value > 0 else (up, down + value)
            parts.append(_bar(LEFT * 10 + i * slot, slot, edges, COLOURS[min(number, len(COLOURS) - 1)]))
        if i % max(1, -(-len(places) // 10)) == 0:
            middle = LEFT * 10 + i * slot + slot // 2
            parts.append(f'<text x="{_tenths(middle)}" y="{HEIGHT - 8}" text-anchor="middle">{escape(place)}</text>')
    return _svg(title, HEIGHT, parts) + _legend(series)


def shares(title: str, percents: Mapping[str, int | None]) -> str:
    """Returns bars of percentages with their names; None is told as not measured."""
    row, left = 22, 230
    parts = []
    for i, (name, percent) in enumerate(percents.items()):
        y = i * row + 4
        parts.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(shortened(name))}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="400" height="16" fill="#eee"/>')
        if percent is not None:
            parts.append(f'<rect x="{left}" y="{y}" width="{4 * percent}" height="16" fill="{COLOURS[1]}"/>')
        told = "not measured" if percent is None else f"{percent} %"
        parts.append(f'<text x="{left + 408}" y="{y + 13}">{told}</text>')
    return _svg(title, max(len(percents), 1) * row + 6, parts) if percents else ""


def step_for(span: int, unit: int) -> int:
    """Returns how far the lines of an axis are apart: 1, 2 or 5 times a power of ten, five or fewer of them."""
    step = 1
    while step * 10 * 5 <= span:
        step *= 10
    factor = next(each for each in (1, 2, 5, 10) if step * each * 5 >= span)
    # Below what the axis can tell in two decimals, lines would all be called the same.
    return max(step * factor, unit // 100, 1)


def shortened(name: str, most: int = 28) -> str:
    """Returns a name that fits beside a bar."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


@dataclass(frozen=True, slots=True)
class _Axis:
    high: int
    low: int

    def y(self, value: int) -> int:
        """Where a value stands, in tenths of a unit of the picture."""
        return TOP * 10 + (self.high - value) * _PLOT_HEIGHT * 10 // (self.high - self.low)


def _grid(axis: _Axis, step: int, unit: int) -> str:
    lines = []
    for value in range(axis.low, axis.high + 1, step):
        y = _tenths(axis.y(value))
        colour = "#444" if value == 0 else "#ddd"
        lines.append(f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - 6}" y2="{y}" stroke="{colour}"/>')
        lines.append(
            f'<text x="{LEFT - 6}" y="{_tenths(axis.y(value) + 40)}" text-anchor="end">{_told(value, unit)}</text>'
        )
    return "".join(lines)


def _told(value: int, unit: int) -> str:
    sign, hundredths = ("−" if value < 0 else ""), abs(value) * 100 // unit
    whole, part = divmod(hundredths, 100)
    return f"{sign}{whole:,}" + (f".{part:02d}" if part else "")


def _bar(x: int, slot: int, edges: Sequence[int], colour: str) -> str:
    width = max(slot * 8 // 10, 1)
    left, height = x + (slot - width) // 2, max(edges[1] - edges[0], 1)
    return (
        f'<rect x="{_tenths(left)}" y="{_tenths(edges[0])}" width="{_tenths(width)}" height="{_tenths(height)}"'
        f' fill="{colour}"/>'
    )


def _legend(series: Sequence[Series]) -> str:
    marks = (
        f'<li><svg width="10" height="10" aria-hidden="true"><rect width="10" height="10"'
        f' fill="{COLOURS[min(number, len(COLOURS) - 1)]}"/></svg> {escape(each.name)}</li>'
        for number, each in enumerate(series)
    )
    return f'<ul class="legend">{"".join(marks)}</ul>'


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _tenths(value: int) -> str:
    return f"{value // 10}.{value % 10}" if value % 10 else str(value // 10)
