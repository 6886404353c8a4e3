"""The tutorials' commands, run as they stand by a shell against a real daemon."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]
READY_SECONDS = 60.0
DOCS = ("tutorials/admin.md", "tutorials/engineer.md", "tutorials/billing.md", "slurm.md", "recipes.md")
"""In this order on one daemon: the admin's imports the price book that the others' money needs."""
_EXIT = re.compile(r"^(?P<command>.*\S)\s+# exit (?P<code>[0-9]+)$")


@dataclass(frozen=True)
class Centre:
    """A daemon with eight simulated GPUs, and the home of the person who started it."""

    url: str
    home: Path
    environment: dict[str, str]


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Centre]:
    """`turnstile serve --dev --sim 1x8xH200` in a home of its own; one for all tutorials."""
    home = tmp_path_factory.mktemp("home")
    (home / "bin").mkdir()
    wrapper = home / "bin/turnstile"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -m cli.main "$@"\n')
    wrapper.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TURNSTILE_", "XDG_"))}
    environment = kept | {"HOME": str(home), "PATH": f"{home}/bin:{kept['PATH']}", "PYTHONPATH": str(ROOT), "TZ": "UTC"}
    log = home / "serve.log"
    with log.open("wb") as opened:
        daemon = subprocess.Popen(
            ["turnstile", "serve", "--dev", "--sim", "1x8xH200", "--listen", "127.0.0.1:0"],
            env=environment, stdout=opened, stderr=opened, executable=str(wrapper),
        )  # fmt: skip
    try:
        yield Centre(_url(daemon, log), home, environment)
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(60)


def _url(daemon: "subprocess.Popen[bytes]", log: Path) -> str:
    """Where the daemon answers, once it has made its contexts; whoever believes its first words is not turned away."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and daemon.poll() is None:
        if found := re.search(r"answers at (http://\S+);", log.read_text(errors="replace")):
            with urllib.request.urlopen(f"{found[1]}/healthz", timeout=READY_SECONDS) as answer:
                assert answer.status == 200
            if "contexts dev" in log.read_text(errors="replace"):
                return found[1]
        time.sleep(0.01)
    pytest.fail(f"the daemon did not become ready:\n{log.read_text(errors='replace')[-3000:]}")


def shell_of(page: str) -> str:
    """The `sh` blocks of a page as one script; a line that ends in `# exit N` must exit so."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    lines = ["set -euo pipefail"]
    for line in "".join(blocks).splitlines():
        if expected := _EXIT.match(line):
            lines += [
                f"code=0; ( {expected['command']} ) || code=$?",
                f'[ "$code" = {expected["code"]} ] || {{ echo "exit $code, not {expected["code"]}" >&2; exit 99; }}',
            ]
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", DOCS)
def test_a_tutorials_commands_do_what_it_says(name: str, centre: Centre, tmp_path: Path) -> None:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8").replace("http://127.0.0.1:8470", centre.url)
    script = shell_of(page)
    assert script.count("turnstile ") >= 5
    done = subprocess.run(
        ["bash", "-xc", script], env=centre.environment, cwd=tmp_path, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n--- stderr\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr
    assert "this is a bug" not in done.stderr


def test_a_line_that_should_fail_and_does_not_fails_the_page() -> None:
    script = shell_of("```sh\ntrue   # exit 3\n```\n")
    assert subprocess.run(["bash", "-c", script], capture_output=True, check=False).returncode == 99
    script = shell_of("```sh\nfalse\ntrue\n```\n```text\nexit 5\n```\n")
    assert subprocess.run(["bash", "-c", script], capture_output=True, check=False).returncode == 1
