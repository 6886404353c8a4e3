"""The boards: made by their builder, laid out without overlap, and every query about metrics that exist."""

import importlib.util
import json
import re
from itertools import combinations
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.dashboards.conftest import repository
from tests.dashboards.queries import Catalogue, labels_of, problems_of

GRAFANA = repository() / "deploy/grafana"
FILES = sorted((GRAFANA / "boards").glob("*.json"))
Board = dict[str, Any]  # Any: JSON
KINDS = {"timeseries", "stat", "gauge", "bargauge", "table", "state-timeline"}
UNITS = {"none", "percentunit", "s", "h", "celsius", "watt", "kwatth", "reqps"}
PANELS = {
    "turnstile-overview": 11,
    "turnstile-queue": 9,
    "turnstile-tenant": 8,
    "turnstile-gpus": 10,
    "turnstile-daemon": 8,
}
INNER_VARIABLES = {"__rate_interval", "__range", "__url_time_range", "__field", "__data"}


def boards() -> list[Board]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in FILES]


def panels() -> list[Any]:
    return [
        pytest.param(board, panel, id=f"{board['uid']}: {panel['title']}")
        for board in boards()
        for panel in board["panels"]
    ]


def builder() -> ModuleType:
    found = importlib.util.spec_from_file_location("build_boards", GRAFANA / "build.py")
    assert found is not None
    assert found.loader is not None
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    return made


def test_the_committed_files_are_what_the_builder_makes() -> None:
    assert {path.name: path.read_text(encoding="utf-8") for path in FILES} == builder().build()


def test_there_are_five_boards_with_the_panels_of_the_contract() -> None:
    assert {board["uid"]: len(board["panels"]) for board in boards()} == PANELS
    assert len({board["title"] for board in boards()}) == 5


@pytest.mark.parametrize("board", boards(), ids=lambda board: board["uid"])
def test_a_board_is_whole(board: Board) -> None:
    assert board["schemaVersion"] >= 39
    assert len(board["uid"]) <= 40
    assert {"id", "__inputs", "__requires"}.isdisjoint(board)
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    variables = {each["name"]: each for each in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board))) - INNER_VARIABLES
    assert used == variables.keys(), "each variable is used, and what is used is one"
    assert any(link.get("tags") == ["turnstile"] for link in board["links"])


@pytest.mark.parametrize("board", boards(), ids=lambda board: board["uid"])
def test_no_two_panels_overlap_and_none_leaves_the_grid(board: Board) -> None:
    places = [panel["gridPos"] for panel in board["panels"]]
    for place in places:
        assert place["x"] >= 0
        assert place["w"] > 0
        assert place["h"] > 0
        assert place["x"] + place["w"] <= 24
    for one, other in combinations(places, 2):
        is_beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        is_above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert is_beside or is_above, (one, other)


@pytest.mark.parametrize(("board", "panel"), panels())
def test_a_panel_says_what_it_shows_and_what_to_do(board: Board, panel: Board) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    assert panel["type"] in KINDS
    assert panel["title"]
    assert len(panel["description"].split()) >= 10
    assert defaults["unit"] in UNITS
    assert defaults["noValue"]
    assert not re.match(r"no (XIDs|errors|problems)\b", defaults["noValue"]), "states only what is known"
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert panel["datasource"] == source
    assert [target["datasource"] for target in panel["targets"]] == [source] * len(panel["targets"])
    letters = [target["refId"] for target in panel["targets"]]
    assert letters == ["A", "B", "C", "D"][: len(letters)]
    if any(step["color"] == "red" for step in defaults["thresholds"]["steps"]):
        assert re.search(r"\b[Rr]ed\b|\bAny\b|Not 0|:", panel["description"]), "says what red asks for"


@pytest.mark.parametrize(("board", "panel"), panels())
def test_every_query_is_about_metrics_and_labels_that_the_daemon_has(
    board: Board, panel: Board, catalogue: Catalogue
) -> None:
    for target in panel["targets"]:
        assert problems_of(target["expr"], catalogue) == []
        shown = set(re.findall(r"\{\{\s*(\w+)\s*\}\}", target["legendFormat"]))
        assert shown <= labels_of(target["expr"], catalogue), "a legend names labels of the result"


@pytest.mark.parametrize("board", boards(), ids=lambda board: board["uid"])
def test_variables_ask_for_labels_that_exist(board: Board, catalogue: Catalogue) -> None:
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
            assert asked is not None
            found = catalogue.series(asked[1])
            assert found is not None
            assert asked[2] in found[1]


def test_rows_of_tenants_lead_to_their_board_and_rows_of_xids_to_the_runbook(catalogue: Catalogue) -> None:
    for board in boards():
        for panel in board["panels"]:
            links = panel["fieldConfig"]["defaults"].get("links", [])
            labels = labels_of(panel["targets"][0]["expr"], catalogue)
            if "tenant" in labels:
                assert [link["url"].partition("?")[0] for link in links] == ["/d/turnstile-tenant"]
                assert "var-tenant=${__field.labels.tenant}" in links[0]["url"]
            elif "xid" in labels:
                assert [link["url"].partition("#")[2] for link in links] == ["xid-${__data.fields.xid}"]
            else:
                assert links == []


def test_provisioning_files_are_what_grafana_reads() -> None:
    providers = yaml.safe_load((GRAFANA / "provisioning/dashboards.yaml").read_text(encoding="utf-8"))
    assert providers["apiVersion"] == 1
    (provider,) = providers["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"].startswith("/")
    sources = yaml.safe_load((GRAFANA / "provisioning/datasource.yaml").read_text(encoding="utf-8"))
    assert [source["type"] for source in sources["datasources"]] == ["prometheus"]
