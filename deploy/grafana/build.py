"""Makes Grafana's JSON of boards.toml: `python deploy/grafana/build.py` writes boards/*.json.

The files are committed, and a test holds them against this builder's output: whoever installs needs neither. Panels
flow from left to right, twelve columns wide if nothing else is said, and never overlap.
"""

import json
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCHEMA_VERSION = 39
"""Of Grafana 10.4, the oldest version that the boards are written for."""
COLUMNS = 24
HEIGHT = {"stat": 5, "gauge": 5}
USUAL_HEIGHT = 8
SNAPSHOTS = ("stat", "gauge", "bargauge", "table")
"""Panels that show one instant; the others show the time range."""
RUNBOOKS = "docs/runbooks"
"""Where links to runbooks lead; `turnstile admin dashboards export --runbooks-url` puts another place there."""
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
VARIABLES: dict[str, dict[str, Any]] = {
    "pool": {"label": "Pool", "query": "label_values(turnstile_gpus, pool)", "multi": True, "includeAll": True},
    "tenant": {"label": "Tenant", "query": "label_values(turnstile_jobs, tenant)", "multi": False, "includeAll": False},
}
LINKS = {
    "tenant": {
        "title": "Tenant ${__field.labels.tenant}",
        "url": "/d/turnstile-tenant?var-datasource=${datasource}&var-tenant=${__field.labels.tenant}"
        "&${__url_time_range}",
    },
    "xid": {
        "title": "What to do about XID ${__data.fields.xid}",
        "url": f"{RUNBOOKS}/gpus.md#xid-${{__data.fields.xid}}",
        "targetBlank": True,
    },
}


def build() -> dict[str, str]:
    """Returns the text of each board's file by the file's name."""
    boards = tomllib.loads((HERE / "boards.toml").read_text(encoding="utf-8"))["board"]
    return {f"{board['uid']}.json": json.dumps(_board(board), indent=2, ensure_ascii=False) + "\n" for board in boards}


def _board(board: dict[str, Any]) -> dict[str, Any]:
    return {
        "uid": board["uid"],
        "title": board["title"],
        "description": board["description"],
        "tags": ["turnstile"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "timezone": "browser",
        "time": {"from": "now-6h", "to": "now"},
        "links": [
            {"type": "dashboards", "title": "Turnstile", "tags": ["turnstile"], "asDropdown": True, "keepTime": True},
            {"type": "link", "title": "Runbooks", "url": f"{RUNBOOKS}/README.md", "icon": "doc", "targetBlank": True},
        ],
        "templating": {"list": [_datasource(), *(_variable(name) for name in board.get("variables", []))]},
        "annotations": {"list": []},
        "panels": _panels(board["panel"]),
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0}


def _variable(name: str) -> dict[str, Any]:
    settings = VARIABLES[name]
    query = {"query": settings["query"], "refId": f"variable-{name}"}
    return {"name": name, "type": "query", "datasource": SOURCE, "refresh": 2, "sort": 1, **settings, "query": query}


def _panels(wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lays panels out in rows, each as high as its highest."""
    panels: list[dict[str, Any]] = []
    x = y = row_height = 0
    for number, panel in enumerate(wanted, start=1):
        width, height = panel.get("width", COLUMNS // 2), HEIGHT.get(panel["kind"], USUAL_HEIGHT)
        if x + width > COLUMNS:
            x, y, row_height = 0, y + row_height, 0
        panels.append(_panel(panel, number, {"x": x, "y": y, "w": width, "h": height}))
        x, row_height = x + width, max(row_height, height)
    return panels


def _panel(panel: dict[str, Any], number: int, place: dict[str, int]) -> dict[str, Any]:
    kind = panel["kind"]
    made: dict[str, Any] = {
        "id": number,
        "title": panel["title"],
        "description": panel["description"],
        "type": kind,
        "datasource": SOURCE,
        "gridPos": place,
        "targets": [_target(kind, "ABCDEF"[place], *query) for place, query in enumerate(panel["queries"])],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
    }
    if kind == "table":
        made["transformations"] = _columns(panel["names"])
    return made


def _target(kind: str, ref: str, expr: str, legend: str) -> dict[str, Any]:
    is_instant = kind in SNAPSHOTS
    return {
        "refId": ref,
        "datasource": SOURCE,
        "expr": expr,
        "legendFormat": legend,
        "instant": is_instant,
        "range": not is_instant,
        "format": "table" if kind == "table" else "time_series",
    }


def _defaults(panel: dict[str, Any]) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "unit": panel["unit"],
        "noValue": panel["empty"],
        "thresholds": {"mode": "absolute", "steps": _steps(panel.get("red", {}))},
    }
    if panel["kind"] == "timeseries":
        stacking = {"mode": "normal" if panel.get("stack") else "none", "group": "A"}
        shown = "dashed" if "red" in panel else "off"
        fill = 30 if panel.get("stack") else 0
        defaults["custom"] = {"stacking": stacking, "fillOpacity": fill, "thresholdsStyle": {"mode": shown}}
    else:
        defaults["color"] = {"mode": "thresholds"}
    if panel["unit"] == "percentunit":
        defaults["min"] = 0
    if panel["kind"] == "gauge":
        defaults["max"] = 1
    if "links" in panel:
        defaults["links"] = [LINKS[panel["links"]]]
    return defaults


def _steps(red: dict[str, float]) -> list[dict[str, Any]]:
    if "below" in red:
        return [{"color": "red", "value": None}, {"color": "green", "value": red["below"]}]
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if "above" in red:
        # A threshold holds from its value on; what may not exceed nothing is red from the smallest thing that counts.
        steps.append({"color": "red", "value": red["above"] or 0.001})
    return steps


def _options(panel: dict[str, Any]) -> dict[str, Any]:
    if panel["kind"] == "timeseries":
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    if panel["kind"] == "table":
        return {"showHeader": True, "cellHeight": "sm"}
    options: dict[str, Any] = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    if panel["kind"] == "bargauge":
        options |= {"orientation": "horizontal", "displayMode": "basic"}
    if panel["kind"] == "stat":
        options["textMode"] = "name" if panel.get("text") else "auto"
    return options


def _columns(names: list[str]) -> list[dict[str, Any]]:
    """One row a label set, one column a query; a single query's column is called Value, several get their letter."""
    values = ["Value"] if len(names) == 1 else [f"Value #{'ABCDEF'[place]}" for place in range(len(names))]
    renamed = dict(zip(values, names, strict=True))
    merge: list[dict[str, Any]] = [{"id": "merge", "options": {}}] if len(names) > 1 else []
    return [*merge, {"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": renamed}}]


def main() -> None:
    """Writes the boards beside this file."""
    for name, text in build().items():
        (HERE / "boards" / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
