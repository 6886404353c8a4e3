"""A small centre on a real control plane, with everything going wrong; `benchmarks.kubernetes` runs the large one.

Wants TURNSTILE_TEST_KUBECONFIG in the state directory of a control plane that may be restarted, and the scripts that
play its nodes.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.daemons import SOURCES, environment
from tests.k8s.grounds import KUBECONFIG, scripts, why_no_real_ground

pytestmark = [pytest.mark.acceptance, pytest.mark.kubernetes, pytest.mark.timeout(600)]


@pytest.mark.skipif(why_no_real_ground() is not None, reason=f"NOT run at scale: {why_no_real_ground()}")
def test_an_outage_a_dead_node_and_a_killed_daemon_lose_and_double_nothing(tmp_path: Path) -> None:
    folder = scripts()
    assert folder is not None, "asked before"
    cluster = Path(os.environ[KUBECONFIG]).parent
    sizes = ["--nodes", "8", "--jobs", "60", "--tenants", "4", "--run-seconds", "8", "--outage-seconds", "5"]
    words = [sys.executable, "-m", "benchmarks.kubernetes", "--cluster", str(cluster), "--scripts", str(folder)]
    done = subprocess.run(
        [*words, *sizes, "--limit-seconds", "400"],
        cwd=SOURCES,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NO " not in done.stdout
    assert "kills the daemon" in done.stdout
