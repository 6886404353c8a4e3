"""Draws the five boards from the answers of a real Prometheus, which scraped a daemon with simulated GPUs meanwhile.

    python -m benchmarks.pictures --prometheus /usr/bin/prometheus [--minutes 3] [--into docs/pictures]

What is drawn is each panel's own query over the time of the run, by this script and not by Grafana: colours, axes and
fonts are ours. Each picture says so. Four tenants submit jobs of their own sizes to eight nodes; after half of the time
some GPUs are made ill.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import httpx

from benchmarks.daemon import free_port, wait_until_ready
from tests.dashboards import drill

BOARDS = Path(__file__).parents[1] / "deploy/grafana/boards"
TENANTS = {"acme": (1, 2), "blue": (4, 8), "gamma": (8, 16), "zeta": (1, 8)}
"""Each with the sizes of its jobs, in GPUs."""
COLUMN, ROW, PAD = 44, 24, 8
COLOURS = ("#3274d9", "#e0752d", "#299c46", "#b877d9", "#c4162a", "#8f8f1f", "#0a9396", "#6e6e6e")
MOST_LINES = 8
STEP_SECONDS = 2
PRICES = {
    "version": "now", "currency": "USD", "effective": "2020-01-01T00:00:00+00:00",
    "prices": {"H200": {"guaranteed": "3", "burst": "3", "spot": "1"}},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Centre:
    """A daemon and a Prometheus that scrapes it."""

    url: str
    token: str
    prometheus: str

    def send(self, method: str, path: str, body: object) -> Any:  # Any: JSON
        """One request to the daemon as its operator. Raises httpx.HTTPError."""
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = httpx.request(method, self.url + path, json=body, headers=headers, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def ask(self, query: str, begin: float, end: float) -> list[Any]:  # Any: JSON
        """Returns the series of a query over a time, a point each two seconds."""
        asked: dict[str, str | float] = {"query": query, "start": begin, "end": end, "step": STEP_SECONDS}
        answer = httpx.get(f"{self.prometheus}/api/v1/query_range", params=asked, timeout=60)
        answer.raise_for_status()
        found: list[Any] = answer.json()["data"]["result"]
        return found


@contextmanager
def centre(prometheus: str, folder: Path) -> Iterator[Centre]:
    """Runs both in a folder until the block ends."""
    port, asked = free_port(), free_port()
    settings = {
        "TURNSTILE_METERING_SAMPLE_SECONDS": "1", "TURNSTILE_METERING_WINDOW_SECONDS": "1",
        "TURNSTILE_EXECUTOR_KIND": "simulated", "TURNSTILE_LOGGING_LEVEL": "warning",
        drill.VARIABLE: str(folder / "faults.json"),
    }  # fmt: skip
    serve = ["-m", "tests.dashboards.drill", "serve", "--data-dir", str(folder / "data"), "--sim", "8x8xH200"]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "5s"},
        "scrape_configs": [{"job_name": "turnstile", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}],
    }
    (folder / "prometheus.yaml").write_text(json.dumps(config))
    flags = ["--config.file=prometheus.yaml", "--storage.tsdb.path=tsdb", f"--web.listen-address=127.0.0.1:{asked}"]
    daemon = subprocess.Popen([sys.executable, *serve, "--listen", f"127.0.0.1:{port}"], env={**os.environ, **settings})
    server = subprocess.Popen([prometheus, *flags, "--log.level=error"], cwd=folder)
    try:
        wait_until_ready(daemon, port)
        token = (folder / "data/operator.token").read_text(encoding="ascii").strip()
        yield Centre(f"http://127.0.0.1:{port}", token, f"http://127.0.0.1:{asked}")
    finally:
        for process in (server, daemon):
            process.terminate()
            process.wait(timeout=30)


def live(made: Centre, folder: Path, seconds: float) -> None:
    """Lets the tenants work for so long; some GPUs fall ill half-way."""
    chance = random.Random(4)
    made.send("POST", "/v1/admin/prices", PRICES)
    for tenant in TENANTS:
        terms = {"display_name": tenant, "guarantee": {"H200": 12}, "limit": {"H200": 48}}
        made.send("PUT", f"/v1/admin/accounts/{tenant}", terms)
        made.send("PUT", f"/v1/admin/accounts/{tenant}/main", {"display_name": "main"})
        made.send("PUT", f"/v1/admin/budgets/{tenant}", {"limit": {"amount": "2000", "currency": "USD"}})
    began, is_ill = time.monotonic(), False
    while (elapsed := time.monotonic() - began) < seconds:
        tenant = chance.choice(sorted(TENANTS))
        gpus = chance.choice(TENANTS[tenant])
        spec = {
            "project": f"{tenant}/main", "command": ["sleep", str(chance.randint(4, 40))], "time_limit_seconds": 600,
            "nodes": max(1, gpus // 8), "gpus_per_node": min(gpus, 8),
            "booking": chance.choice(("auto", "auto", "spot")), "grace_seconds": 1,
        }  # fmt: skip
        made.send("POST", "/v1/jobs", spec)
        if elapsed > seconds / 2 and not is_ill:
            is_ill = True
            faults = {"h200-08/0": {"xid": 79}, "h200-08/1": {"lost": True}, "h200-07/3": {"celsius": 91}}
            drill.tell(folder / "faults.json", {"gpus": faults, "idle": ["h200-06"]})
        time.sleep(chance.uniform(0.3, 1.4))


def picture(made: Centre, board: Mapping[str, Any], span: tuple[float, float]) -> str:
    """Returns a board as SVG: every panel in its place."""
    panels = [panel for panel in board["panels"] if "targets" in panel]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) * ROW + 54
    drawn = "".join(_panel(made, panel, span) for panel in panels)
    words = f"{board['title']}: {span[1] - span[0]:.0f} s of a simulated centre, as a real Prometheus answered"
    note = "Drawn by benchmarks/pictures.py from the boards' own queries. Not a Grafana screenshot."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {24 * COLUMN} {height}" font-family="sans-serif">'
        f'<rect width="100%" height="100%" fill="#f4f5f5"/>'
        f'<text x="{PAD}" y="20" font-size="15" font-weight="bold">{escape(words)}</text>'
        f'<text x="{PAD}" y="38" font-size="12" fill="#555">{escape(note)}</text>'
        f'<g transform="translate(0 46)">{drawn}</g></svg>\n'
    )


def _panel(made: Centre, panel: Mapping[str, Any], span: tuple[float, float]) -> str:
    place, defaults = panel["gridPos"], panel["fieldConfig"]["defaults"]
    width, height = place["w"] * COLUMN - PAD, place["h"] * ROW - PAD
    series: list[tuple[str, list[tuple[float, float]]]] = []
    for target in panel["targets"]:
        query = target["expr"].replace("$__rate_interval", "10s").replace("$__range", "1h")
        for found in made.ask(query.replace("$tenant", "acme").replace("$pool", ".*"), *span):
            points = [(at, float(value)) for at, value in found["values"] if value not in {"NaN", "+Inf", "-Inf"}]
            if points:
                series.append((_named(target.get("legendFormat", ""), found["metric"]), points))
    unit = defaults.get("unit", "none")
    if not series:
        body = f'<text x="8" y="44" font-size="13" fill="#777">{escape(defaults.get("noValue", "no data"))}</text>'
    elif panel["type"] == "timeseries":
        body = _lines(series[:MOST_LINES], span, (width, height), unit)
    else:
        body = _rows(
            series[: max(1, int((height - 30) // 18))], (width, height), unit, is_bar=panel["type"] == "bargauge"
        )
    return (
        f'<g transform="translate({place["x"] * COLUMN + PAD / 2} {place["y"] * ROW})">'
        f'<rect width="{width}" height="{height}" fill="#fff" stroke="#dcdcdc" rx="3"/>'
        f'<text x="8" y="18" font-size="12.5" font-weight="bold">{escape(panel["title"])}</text>{body}</g>'
    )


def _named(form: str, labels: Mapping[str, str]) -> str:
    """Returns a series' name as the board has it, such as `{{pool}} median`."""
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), form) or " ".join(labels.values())


def _lines(
    series: Sequence[tuple[str, list[tuple[float, float]]]],
    span: tuple[float, float],
    size: tuple[float, float],
    unit: str,
) -> str:
    left, top, bottom = 52.0, 28.0, size[1] - 14 - 14 * -(-len(series) // 3)
    most = max(value for _, points in series for _, value in points) or 1.0

    def spot(at: float, value: float) -> str:
        x = left + (size[0] - left - 10) * (at - span[0]) / (span[1] - span[0])
        return f"{x:.0f},{bottom - (bottom - top) * value / most:.1f}"

    out = [
        f'<line x1="{left}" x2="{size[0] - 10}" y1="{y}" y2="{y}" stroke="#e5e5e5"/>'
        f'<text x="{left - 4}" y="{y + 4}" font-size="10" text-anchor="end" fill="#666">{shown(value, unit)}</text>'
        for y, value in ((top, most), ((top + bottom) / 2, most / 2), (bottom, 0.0))
    ]
    for place, (label, points) in enumerate(series):
        colour = COLOURS[place % len(COLOURS)]
        for part in _unbroken(points):
            path = " ".join(spot(at, value) for at, value in part)
            out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
        x, y = left + place % 3 * (size[0] - left) / 3, bottom + 16 + 14 * (place // 3)
        out.append(f'<text x="{x:.0f}" y="{y:.0f}" font-size="10.5" fill="{colour}">{escape(label[:40])}</text>')
    return "".join(out)


def _unbroken(points: Sequence[tuple[float, float]]) -> Iterator[list[tuple[float, float]]]:
    """Yields the stretches of a series between which it was not there."""
    stretch: list[tuple[float, float]] = []
    for at, value in points:
        if stretch and at - stretch[-1][0] > 2 * STEP_SECONDS:
            yield stretch
            stretch = []
        stretch.append((at, value))
    yield stretch


def _rows(
    series: Sequence[tuple[str, list[tuple[float, float]]]], size: tuple[float, float], unit: str, *, is_bar: bool
) -> str:
    last = [(label, points[-1][1]) for label, points in series]
    if len(last) == 1 and not is_bar:
        y = round(size[1] / 2) + 16
        return f'<text x="8" y="{y}" font-size="26" fill="{COLOURS[0]}">{shown(last[0][1], unit)}</text>'
    most = max(abs(value) for _, value in last) or 1.0
    out = []
    for place, (label, value) in enumerate(last):
        y = 38 + 18 * place
        if is_bar:
            width = (size[0] - 16) * abs(value) / most
            out.append(f'<rect x="8" y="{y - 12}" width="{width:.0f}" height="15" fill="#cfe0f8"/>')
        out.append(f'<text x="10" y="{y}" font-size="11">{escape(label[:46])}</text>')
        out.append(f'<text x="{size[0] - 10}" y="{y}" font-size="11" text-anchor="end">{shown(value, unit)}</text>')
    return "".join(out)


def shown(value: float, unit: str) -> str:
    """Returns a value with its unit, short."""
    if unit == "percentunit":
        return f"{100 * value:.0f} %"
    for step, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= step:
            return f"{value / step:.1f}{letter}"
    words = {"s": " s", "celsius": " °C", "watt": " W", "kwatth": " kWh", "h": " h", "reqps": "/s"}.get(unit, "")
    return f"{value:.3g}{words}"


def main() -> None:
    """Runs a centre, and writes a picture of each board."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", required=True, help="the program")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--into", type=Path, default=Path("docs/pictures"))
    given = parser.parse_args()
    given.into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="turnstile-pictures-") as name:
        folder = Path(name)
        with centre(str(Path(given.prometheus).absolute()), folder) as made:
            began = time.time()
            live(made, folder, 60 * given.minutes)
            span = (began + 5, time.time())
            for path in sorted(BOARDS.glob("*.json")):
                board = json.loads(path.read_text(encoding="utf-8"))
                into = given.into / f"{path.stem.removeprefix('turnstile-')}.svg"
                into.write_text(picture(made, board, span), encoding="utf-8")
                print(f"{into}: {into.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
