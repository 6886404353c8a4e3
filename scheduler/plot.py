"""A replay drawn over time: GPUs held above, GPUs waited for below; as SVG written by hand, or as PNG."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.figures import Sample

_WIDTH, _HEIGHT = 960, 240
_LEFT, _TOP, _GAP = 70, 30, 60
_SIZE = (_LEFT + _WIDTH + 20, _TOP + 2 * (_HEIGHT + _GAP))
_FILL = "#8fadcc"
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class _Panel:
    """One curve over time, in points of the picture: `steps` are the corners of its area from left to right."""

    title: str
    top: int
    steps: tuple[tuple[float, float], ...]
    values: tuple[tuple[float, str], ...]
    days: tuple[tuple[float, str], ...]

    @property
    def bottom(self) -> int:
        """The line of zero."""
        return self.top + _HEIGHT

    @property
    def area(self) -> list[tuple[float, float]]:
        """The corners of what is under the curve."""
        last = self.steps[-1][1] if self.steps else float(self.bottom)
        right = _LEFT + _WIDTH
        return [(_LEFT, self.bottom), *self.steps, (right, last), (right, self.bottom)]


def draw(samples: Sequence[Sample], capacity_gpus: float) -> bytes:
    """Returns an SVG document of two panels over the same days; empty panels when nothing happened."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_SIZE[0]}" height="{_SIZE[1]}">',
        "<style>text { font: 12px sans-serif }</style>",
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for panel in _panels(samples, capacity_gpus):
        area = " ".join(f"{x:.1f},{y:.1f}" for x, y in panel.area)
        parts += [
            f'<text x="{_LEFT}" y="{panel.top - 8}">{panel.title}</text>',
            f'<polygon points="{area}" fill="{_FILL}"/>',
            f'<path d="M{_LEFT} {panel.top}V{panel.bottom}H{_LEFT + _WIDTH}" fill="none" stroke="black"/>',
        ]
        parts += [f'<text x="{_LEFT - 6}" y="{y:.1f}" text-anchor="end">{text}</text>' for y, text in panel.values]
        parts += [
            f'<text x="{x:.1f}" y="{panel.bottom + 16}" text-anchor="middle">{text}</text>' for x, text in panel.days
        ]
    return ("\n".join([*parts, "</svg>"]) + "\n").encode()


def draw_png(samples: Sequence[Sample], capacity_gpus: float) -> bytes:
    """Returns the same picture as a PNG."""
    from PIL import Image, ImageDraw  # a picture is asked for seldom, and a daemon never needs one

    image = Image.new("RGB", _SIZE, "white")
    canvas = ImageDraw.Draw(image)
    for panel in _panels(samples, capacity_gpus):
        canvas.text((_LEFT, panel.top - 8), panel.title, fill="black", anchor="ls")
        canvas.polygon(panel.area, fill=_FILL)
        corner = (_LEFT, panel.bottom)
        canvas.line([(_LEFT, panel.top), corner, (_LEFT + _WIDTH, panel.bottom)], fill="black")
        for y, text in panel.values:
            canvas.text((_LEFT - 6, y), text, fill="black", anchor="rs")
        for x, text in panel.days:
            canvas.text((x, panel.bottom + 16), text, fill="black", anchor="ms")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _panels(samples: Sequence[Sample], capacity_gpus: float) -> tuple[_Panel, _Panel]:
    span_ms = max((sample.at_ms for sample in samples), default=0) or 1
    waiting = max((sample.waiting_gpus for sample in samples), default=0.0) or 1.0
    held = [(sample.at_ms, sample.held_gpus) for sample in samples]
    asked = [(sample.at_ms, sample.waiting_gpus) for sample in samples]
    return (
        _panel("GPUs held", _TOP, held, (span_ms, capacity_gpus or 1.0)),
        _panel("GPUs that waiting jobs ask for", _TOP + _HEIGHT + _GAP, asked, (span_ms, waiting)),
    )


def _panel(title: str, top: int, points: Sequence[tuple[int, float]], most: tuple[int, float]) -> _Panel:
    span_ms, top_value = most
    bottom = top + _HEIGHT

    def x(at_ms: int) -> float:
        return _LEFT + _WIDTH * at_ms / span_ms

    def y(value: float) -> float:
        return bottom - _HEIGHT * min(value, top_value) / top_value

    steps: list[tuple[float, float]] = []
    before = float(bottom)
    for at_ms, value in points:
        steps += [(x(at_ms), before), (x(at_ms), y(value))]
        before = y(value)
    days = span_ms // _DAY_MS
    every = max(1, days // 12)
    return _Panel(
        title,
        top,
        tuple(steps),
        tuple((y(top_value * part / 4), f"{top_value * part / 4:.0f}") for part in range(5)),
        tuple((x(day * _DAY_MS), f"day {day}") for day in range(0, days + 1, every)),
    )
