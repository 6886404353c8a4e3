"""A tenant's secrets reach the jobs that name them, and nothing else: no answer, no log, no other tenant."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.daemons import Daemon, Ran, environment

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(150)]
VALUE = "hf_sentinel-4711 with spaces"


def keep(daemon: Daemon, name: str, value: str, who: str = "mei") -> Ran:
    own = {"TURNSTILE_URL": daemon.url, "TURNSTILE_TOKEN_FILE": str(daemon.token(who))}
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "secret", "set", name],
        env=environment(daemon.folder, own),
        input=f"{value}\n".encode(),
        capture_output=True,
        check=False,
        timeout=60,
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


def test_a_job_finds_its_secrets_as_variables_and_nobody_else_does(daemon: Daemon, tmp_path: Path) -> None:
    kept = keep(daemon, "HF_TOKEN", VALUE)
    assert (kept.code, VALUE in kept.out + kept.err) == (0, False), kept
    listed = daemon.turnstile("secret", "list", "-o", "json", who="mei")
    assert [(each["name"], each["account"]) for each in listed.json["items"]] == [("HF_TOKEN", "acme/nlp")]
    out = tmp_path / "seen"
    script = f'printf %s "$HF_TOKEN" > {out}'
    daemon.turnstile("run", "-g", "1", "-t", "1m", "--secret", "HF_TOKEN", "--", "/bin/sh", "-c", script, who="mei")
    assert out.read_text() == VALUE
    job = daemon.turnstile("show", "@", "-o", "json", who="mei")
    for shown in (job.out, listed.out, daemon.log):
        assert VALUE not in shown
    daemon.turnstile("secret", "rm", "HF_TOKEN", who="mei")
    gone = daemon.turnstile("submit", "-g", "1", "-t", "1m", "--secret", "HF_TOKEN", "--", "true", who="mei", code=3)
    assert "there is no secret HF_TOKEN for acme/nlp" in gone.err
    daemon.assert_no_trace_in_log()


def test_another_tenant_cannot_name_list_or_remove_them(daemon: Daemon) -> None:
    assert keep(daemon, "HF_TOKEN", VALUE).code == 0
    for path in ("zeta", "zeta/lab"):
        assert daemon.request("PUT", f"/v1/admin/accounts/{path}", {}).status == 200
    daemon.turnstile("admin", "token", "create", "-u", "zoe", "-A", "zeta/lab", "--out", str(daemon.token("zoe")))
    assert daemon.turnstile("secret", "list", "-o", "json", who="zoe").json["items"] == []
    daemon.turnstile("secret", "rm", "HF_TOKEN", who="zoe", code=4)
    daemon.turnstile("secret", "list", "-A", "acme/nlp", who="zoe", code=4)
    daemon.turnstile("submit", "-g", "1", "-t", "1m", "--secret", "HF_TOKEN", "--", "true", who="zoe", code=3)
    daemon.turnstile("secret", "list", who="operator", code=5)
