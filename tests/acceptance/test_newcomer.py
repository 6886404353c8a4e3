"""Somebody who installs the wheel: what is in it, what it gets in the way of, and whether it does what it says."""

import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import HeaderParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.acceptance.conftest import MakeDaemon
from tests.acceptance.daemons import SOURCES, Daemon, environment, typed

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(180)]

PACKAGES = {"cli", "k8s", "metering", "scheduler"}
DISTRIBUTION = "gpu-turnstile"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources; skips, saying why, where the build's tools cannot be had."""
    if not (Path(SOURCES) / "pyproject.toml").is_file():
        pytest.skip(f"no wheel is built here: {SOURCES} has no pyproject.toml")
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy, so that nothing is written beside the sources, and without what no checkout holds.
    source = folder / "source"
    shutil.copytree(
        SOURCES, source, ignore=shutil.ignore_patterns(".*", "__pycache__", "node_modules", "dist", "build")
    )
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
        cwd=folder,
    )
    if done.returncode != 0 and ("hatchling" in done.stderr or "No module named pip" in done.stderr):
        pytest.skip(f"the build's tools cannot be had from here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console script in an environment of its own: the wheel alone, its dependencies borrowed from the tests'."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    site = next(home.glob("lib/python*/site-packages"))
    # As a .pth the borrowed directory comes after the installed wheel, and its own .pth files are not read.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    ask = [str(python), "-c", "import cli; print(cli.__file__)"]
    where = subprocess.run(ask, env=environment(home, {"PYTHONPATH": ""}), capture_output=True, text=True, check=True)
    assert where.stdout.startswith(str(site)), "not the copy of the checkout"
    return home / "bin" / "turnstile"


def test_the_wheel_holds_the_four_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        (entries,) = [name for name in names if name.endswith(".dist-info/entry_points.txt")]
        described = HeaderParser().parsestr(archive.read(metadata).decode())
        scripts = archive.read(entries).decode()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    assert len(tops) == len(PACKAGES) + 1
    strange = [name for name in names if "__pycache__" in name or Path(name).name.startswith(("test_", "conftest"))]
    assert strange == []
    assert any(name.startswith("cli/daemon/migrations/versions/") for name in names), "a daemon needs its migrations"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert (described["Name"], described["License-Expression"]) == (DISTRIBUTION, "Apache-2.0")
    assert "turnstile = cli.main:main" in scripts
    every = {f"{Path(path).relative_to(SOURCES)}" for top in PACKAGES for path in Path(SOURCES, top).rglob("*.py")}
    assert every == {name for name in names if name.endswith(".py")}


def test_no_other_installed_distribution_provides_a_package_of_ours() -> None:
    providers = packages_distributions()
    assert {name: set(providers.get(name, [])) - {DISTRIBUTION} for name in PACKAGES} == {
        name: set() for name in PACKAGES
    }


def test_the_installed_command_serves_submits_and_finds_itself_well(
    wheel: Path, installed: Path, make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    shown = typed(tmp_path, "--help", command=[str(installed)], more={"PYTHONPATH": ""}).out
    assert "Submit GPU jobs" in shown
    daemon = make_daemon("centre")
    daemon.command, daemon.sources = (str(installed),), ""
    daemon.start().set_up()
    ran = daemon.turnstile("run", "-g", "1", "-t", "1m", "--", "/bin/sh", "-c", "echo here; exit 3", who="mei", code=3)
    assert ran.out == "here\n"
    report = daemon.turnstile("doctor", "-o", "json", who="mei").json["items"]
    assert [each["check"] for each in report if not each["is_ok"]] == []
    found = {each["check"]: each["detail"] for each in report}
    assert found["packages"] == "no other distribution provides one of ours"
    version = wheel.name.split("-")[1]
    assert found["versions"] == f"client {version}, server {version}"
    assert "mei, user of acme/nlp" in found["token"]
    daemon.terminate()
    daemon.assert_no_trace_in_log()


def test_doctor_names_the_distribution_that_provides_a_package_of_ours_too(
    installed: Path, daemon: Daemon, tmp_path: Path
) -> None:
    """Somebody else's `k8s` in the same environment, as an installed distribution that says so."""
    other = tmp_path / "elsewhere"
    (other / "k8s").mkdir(parents=True)
    (other / "k8s" / "__init__.py").touch()
    about = other / "somebodys_k8s-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys-k8s\nVersion: 1.0\n", encoding="utf-8")
    (about / "RECORD").write_text("k8s/__init__.py,,\n", encoding="utf-8")
    speaks = {"TURNSTILE_URL": daemon.url, "TURNSTILE_TOKEN_FILE": str(daemon.token("mei")), "PYTHONPATH": str(other)}
    told = typed(tmp_path, "doctor", code=2, command=[str(installed)], more=speaks)
    assert "somebodys-k8s provides a package 'k8s' too" in told.out
    assert "install gpu-turnstile in an environment of its own" in told.out


def test_the_demo_ends_well_and_leaves_a_ledger_that_proves_itself(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    # Simulated GPUs by name, so that it is the same demo on a machine that has some.
    shown = typed(tmp_path, "demo", "--keep", str(kept), "--sim", "2x8xH200").out
    assert f"database and files are in {kept}" in shown
    assert "NOT SOUND" in shown, "it shows that tampering is found"
    ledger = kept / "data" / "turnstile.db"
    usage = list((kept / "files").glob("usage_lines_*.csv"))
    assert ledger.is_file()
    assert len(usage) == 1
    before = ledger.read_bytes()

    verify = ("admin", "ledger", "verify")
    assert typed(tmp_path, *verify, "--copy", str(ledger)).out.startswith("sound")
    assert typed(tmp_path, *verify, str(kept / "files")).out.startswith("sound")
    assert typed(tmp_path, *verify, str(kept / "files"), "--copy", str(ledger)).out.startswith("sound")
    tampered = typed(tmp_path, *verify, "--copy", str(kept / "tampered.db"), code=1).out
    assert tampered.startswith("NOT SOUND")
    assert re.search(r"^  chain:? sequence \d+ ", tampered, re.MULTILINE), "the chain of hashes is broken at a row"
    assert ledger.read_bytes() == before, "what is proved is not written to"

    text = usage[0].read_bytes()
    assert b",24.00," in text
    usage[0].write_bytes(text.replace(b",24.00,", b",20.00,", 1))
    assert typed(tmp_path, *verify, str(kept / "files"), code=1).out.startswith("NOT SOUND")
    usage[0].unlink()
    assert typed(tmp_path, *verify, str(kept / "files"), code=1).out.startswith("NOT SOUND")


def test_the_demo_refuses_a_directory_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious", encoding="utf-8")
    refused = typed(tmp_path, "demo", "--keep", str(tmp_path / "mine"), code=None)
    assert refused.code != 0
    assert "is not empty" in refused.err
    assert (tmp_path / "mine" / "thesis.tex").read_text(encoding="utf-8") == "precious"
