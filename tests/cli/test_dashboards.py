"""`admin dashboards export` writes what ships, from a checkout and from a wheel, as Grafana and Kubernetes read it."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import ROOT, Home

BOARDS = sorted(path.name for path in (ROOT / "deploy/grafana/boards").glob("*.json"))


def contents(folder: Path) -> dict[str, str]:
    """Returns every file under a folder by its relative path."""
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_boards_are_exported_as_they_ship(home: Home) -> None:
    done = home.turnstile("admin", "dashboards", "export", "out")
    assert (done.code, done.err) == (0, "")
    written = contents(home.path / "out")
    assert [Path(name).name for name in written if name.startswith("dashboards/")] == BOARDS
    for name in BOARDS:
        shipped = (ROOT / "deploy/grafana/boards" / name).read_text()
        assert written[f"dashboards/{name}"] == shipped.replace("docs/runbooks", "runbooks")
    assert {"provisioning/dashboards.yaml", "rules/alerts.yaml", "rules/recording.yaml", "prometheus.yaml"} <= set(
        written
    )


def test_links_to_runbooks_lead_to_exported_files_or_where_they_are_served(home: Home) -> None:
    home.turnstile("admin", "dashboards", "export", "near")
    home.turnstile("admin", "dashboards", "export", "far", "--runbooks-url", "https://wiki.example/turnstile/")
    for folder, base in (("near", "runbooks"), ("far", "https://wiki.example/turnstile")):
        rules = yaml.safe_load((home.path / folder / "rules/alerts.yaml").read_text())
        urls = [rule["annotations"]["runbook_url"] for group in rules["groups"] for rule in group["rules"]]
        assert len(urls) == 25
        for url in urls:
            assert url.startswith(f"{base}/")
            assert (home.path / folder / "runbooks" / url.removeprefix(f"{base}/").partition("#")[0]).is_file()


def test_config_maps_hold_the_same_boards_and_the_operators_rules(home: Home) -> None:
    home.turnstile("admin", "dashboards", "export", "files")
    done = home.turnstile("admin", "dashboards", "export", "k8s", "--format", "configmap")
    assert done.code == 0
    made = {path.name: yaml.safe_load(path.read_text()) for path in (home.path / "k8s").glob("*.yaml")}
    boards = {name: each for name, each in made.items() if each["kind"] == "ConfigMap"}
    assert len(boards) == 5
    for each in boards.values():
        assert each["apiVersion"] == "v1"
        assert each["metadata"]["labels"]["grafana_dashboard"] == "1"
        ((name, text),) = each["data"].items()
        assert text == (home.path / "files/dashboards" / name).read_text()
    rules = {name: each for name, each in made.items() if each["kind"] == "PrometheusRule"}
    assert sorted(rules) == ["turnstile-alerts.yaml", "turnstile-recording.yaml"]
    for name, each in rules.items():
        plain = home.path / "files/rules" / name.removeprefix("turnstile-")
        assert each["spec"] == yaml.safe_load(plain.read_text())


def test_a_second_export_replaces_the_first_and_both_formats_of_telling_stay(home: Home) -> None:
    home.turnstile("admin", "dashboards", "export", "out")
    (home.path / "out/rules/alerts.yaml").write_text("old")
    done = home.turnstile("admin", "dashboards", "export", "out", "-o", "json")
    answer = json.loads(done.out)
    assert (answer["kind"], answer["format"], answer["directory"]) == ("DashboardExport", "files", "out")
    assert sorted(answer["files"]) == sorted(contents(home.path / "out"))
    assert (home.path / "out/rules/alerts.yaml").read_text() != "old"


def test_what_cannot_be_meant_or_written_is_said(home: Home) -> None:
    wrong = home.turnstile("admin", "dashboards", "export", "out", "--format", "helm")
    assert wrong.code == 2
    assert "--format files" in wrong.err
    (home.path / "taken").write_text("")
    refused = home.turnstile("admin", "dashboards", "export", "taken")
    assert refused.code == 3
    assert "taken" in refused.err
    assert "Traceback" not in refused.err


def test_a_wheel_carries_the_same_files(tmp_path: Path) -> None:
    """Builds the wheel as pip would; without a package index there is no build backend, and the test says so."""
    build = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps", "-w"]
    built = subprocess.run([*build, str(tmp_path), str(ROOT)], capture_output=True, text=True, timeout=150, check=False)
    if built.returncode != 0 and "No matching distribution" in built.stderr:
        print(built.stderr)
        pytest.skip("no wheel without a package index: hatchling cannot be had")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    for source, place in ((tmp_path / "site", "wheel"), (ROOT, "checkout")):
        command = [sys.executable, "-m", "cli.main", "admin", "dashboards", "export", place]
        environment = {**os.environ, "PYTHONPATH": str(source)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "wheel") == contents(tmp_path / "checkout")
    assert len(contents(tmp_path / "wheel")) == 15
