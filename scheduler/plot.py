"""A replay drawn over time: GPUs held above, GPUs waited for below. SVG written by hand, for a page or a mail."""

from collections.abc import Sequence

from scheduler.figures import Sample

_WIDTH, _HEIGHT = 960, 240
_LEFT, _TOP, _GAP = 70, 30, 60
_DAY_MS = 86_400_000


def draw(samples: Sequence[Sample], capacity_gpus: float) -> str:
    """Returns an SVG document of two panels over the same days; empty panels when nothing happened."""
    span_ms = max((sample.at_ms for sample in samples), default=0) or 1
    waiting = max((sample.waiting_gpus for sample in samples), default=0.0) or 1.0
    height = _TOP + 2 * (_HEIGHT + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 20}" height="{height}">',
        "<style>text { font: 12px sans-serif }</style>",
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    held = [(sample.at_ms, sample.held_gpus) for sample in samples]
    asked = [(sample.at_ms, sample.waiting_gpus) for sample in samples]
    parts += _panel("GPUs held", _TOP, held, (span_ms, capacity_gpus or 1.0))
    parts += _panel("GPUs that waiting jobs ask for", _TOP + _HEIGHT + _GAP, asked, (span_ms, waiting))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(title: str, top: int, points: Sequence[tuple[int, float]], most: tuple[int, float]) -> list[str]:
    span_ms, top_value = most
    bottom = top + _HEIGHT

    def x(at_ms: int) -> str:
        return f"{_LEFT + _WIDTH * at_ms / span_ms:.1f}"

    def y(value: float) -> str:
        return f"{bottom - _HEIGHT * min(value, top_value) / top_value:.1f}"

    steps: list[str] = []
    before = f"{bottom}"
    for at_ms, value in points:
        steps += [f"{x(at_ms)},{before}", f"{x(at_ms)},{y(value)}"]
        before = y(value)
    area = " ".join([f"{_LEFT},{bottom}", *steps, f"{_LEFT + _WIDTH},{before}", f"{_LEFT + _WIDTH},{bottom}"])
    parts = [
        f'<text x="{_LEFT}" y="{top - 8}">{title}</text>',
        f'<polygon points="{area}" fill="#4477aa" fill-opacity="0.6"/>',
        f'<path d="M{_LEFT} {top}V{bottom}H{_LEFT + _WIDTH}" fill="none" stroke="black"/>',
    ]
    for part in range(5):
        value = top_value * part / 4
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value)}" text-anchor="end">{value:.0f}</text>')
    days = span_ms // _DAY_MS
    every = max(1, days // 12)
    return parts + [
        f'<text x="{x(day * _DAY_MS)}" y="{bottom + 16}" text-anchor="middle">day {day}</text>'
        for day in range(0, days + 1, every)
    ]
