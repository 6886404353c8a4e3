"""The daemon's settings: what overrides what, and all problems at once."""

import os
import pwd
from pathlib import Path

import pytest

from cli.daemon.app import submission_rules
from cli.daemon.cluster import options_of
from cli.daemon.settings import SettingsProblem, load, reference
from scheduler.auth import Caller, Rights, Role
from scheduler.core.model import AccountId, GpuClass, NodeName, PoolName, UserName
from scheduler.core.policy import Backfill
from scheduler.planner import FrozenLabels, Offer
from scheduler.refusal import Refused
from scheduler.wire.spec import JobSpec, parse_spec
from scheduler.wire.submission import Centre, draft_of

REFERENCE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_variables_override_the_file_and_flags_override_both(tmp_path: Path) -> None:
    file = tmp_path / "turnstile.toml"
    file.write_text('[server]\nlisten = "127.0.0.1:1"\nbody_limit_bytes = 5\n[node]\npool = "file"\n')
    environment = {"TURNSTILE_SERVER_LISTEN": "127.0.0.1:2", "TURNSTILE_NODE_POOL": "variable", "TURNSTILE_URL": "x"}
    settings = load(file, environment, {"node.pool": "flag"})
    assert (settings.server.listen, settings.server.body_limit_bytes, settings.node.pool) == ("127.0.0.1:2", 5, "flag")


def test_all_problems_are_said_at_once_with_the_nearest_key(tmp_path: Path) -> None:
    file = tmp_path / "turnstile.toml"
    file.write_text('nonsense = 1\n[server]\nlistn = "x"\nbody_limit_bytes = "many"\n[metering]\nzone = "Mars/Base"\n')
    with pytest.raises(SettingsProblem) as found:
        load(file, {"TURNSTILE_SERVER_LISTN": "y"}, {"executor.kind": "magic"})
    assert found.value.problems == [
        "environment: TURNSTILE_SERVER_LISTN names no setting; did you mean TURNSTILE_SERVER_LISTEN?",
        "nonsense: unknown key",
        "server.listn: unknown key, did you mean 'listen'?",
        "server.body_limit_bytes: must be a whole number, not 'many'",
        "executor.kind: must be one of local, kubernetes, simulated, not 'magic'",
        "metering.zone: 'Mars/Base' is not in the tz database; write one such as Asia/Shanghai",
    ]


def test_a_bad_kind_of_executor_does_not_hide_a_bad_simulation() -> None:
    with pytest.raises(SettingsProblem) as found:
        load(None, {}, {"executor.kind": "magic", "executor.sim": "2xH200"})
    kind, sim = found.value.problems
    assert kind == "executor.kind: must be one of local, kubernetes, simulated, not 'magic'"
    assert sim.startswith("executor.sim: ")


def test_a_user_that_no_job_could_run_as_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody_we_know = {"executor.run_as": "nobody-we-know"}
    with pytest.raises(SettingsProblem, match=r"executor\.run_as: no system user 'nobody-we-know'"):
        load(None, {}, nobody_we_know)
    load(None, {}, {**nobody_we_know, "executor.kind": "simulated", "executor.sim": "2x8xH200"})
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(SettingsProblem, match=r"executor\.run_as: the daemon is not root, so it cannot run jobs as"):
        load(None, {}, {"executor.run_as": "root"})


def test_what_the_settings_say_about_jobs_is_what_submissions_get() -> None:
    rules = submission_rules(
        load(None, {}, {"executor.run_as": pwd.getpwuid(os.geteuid()).pw_name, "executor.log_limit_bytes": 4096})
    )
    assert (rules.run_as, rules.log_limit_bytes) == (pwd.getpwuid(os.geteuid()).pw_name, 4096)
    spec = JobSpec.model_validate({"command": ("true",), "gpus_per_node": 1, "time_limit_seconds": 60})
    offer = Offer(GpuClass("H100"), PoolName("main"), 8, 96_000, 1 << 40, 1, FrozenLabels(), frozenset({NodeName("a")}))
    rights = Rights(Caller("t", Role.USER, AccountId("acme/nlp"), UserName("mei"), None))
    launch = draft_of(spec, rights, Centre([offer], rules, 0)).launch
    assert (launch.run_as, launch.log_limit_bytes) == (rules.run_as, 4096)
    with pytest.raises(Refused, match="run_as: unknown key"):
        parse_spec(b'{"command": ["true"], "gpus_per_node": 1, "time_limit_seconds": 60, "run_as": "root"}')


@pytest.mark.parametrize("value", [True, "nan", "inf", "1.5", "", [1]])
def test_a_whole_number_is_a_whole_number(value: object) -> None:
    with pytest.raises(SettingsProblem, match=r"server\.body_limit_bytes: must be a whole number"):
        load(None, {}, {"server.body_limit_bytes": value})


def test_a_missing_file_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(SettingsProblem, match="No such file or directory; check the path given with --config"):
        load(tmp_path / "none.toml", {})


def test_the_reference_page_is_what_the_settings_are() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == reference()


def test_the_policy_is_a_section_of_the_settings_and_of_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "turnstile.toml"
    file.write_text("[policy]\npromised_jobs = 3\npromise_after_ms = false\n", encoding="utf-8")
    environment = {"TURNSTILE_POLICY_TOPOLOGY_LABELS": "rack, spine", "TURNSTILE_POLICY_BACKFILL": "conservative"}

    policy = load(file, environment).policy

    assert (policy.promised_jobs, policy.promise_after_ms) == (3, None)
    assert (policy.topology_labels, policy.backfill) == (("rack", "spine"), Backfill.CONSERVATIVE)


def test_problems_of_the_policy_are_told_with_all_others(tmp_path: Path) -> None:
    file = tmp_path / "turnstile.toml"
    file.write_text('[policy]\npromised_jobs = -1\nplacment = "fgd"\n[server]\nlisten = "here"\n', encoding="utf-8")

    with pytest.raises(SettingsProblem) as caught:
        load(file, {"TURNSTILE_POLICY_ORDRE": "fifo"})

    told = "\n".join(caught.value.problems)
    for part in ("policy.promised_jobs", "policy.placment", "server.listen", "TURNSTILE_POLICY_ORDRE"):
        assert part in told


def test_a_cluster_runs_images_and_what_its_settings_offer_to_mount() -> None:
    volume = {"kubernetes.volumes": {"data": "nfs=filer:/d,mount=/data,ro"}, "executor.kind": "kubernetes"}
    settings = load(None, {}, volume)
    rules = submission_rules(settings)
    assert (rules.runs_images, rules.needs_image, rules.volumes) == (True, True, frozenset({"data"}))
    assert not submission_rules(load(None, {}, {})).needs_image
    source = options_of(settings.kubernetes, "main").pods.volumes["data"]
    assert source == {"nfs": {"server": "filer", "path": "/d"}, "mountPath": "/data", "readOnly": True}


@pytest.mark.parametrize(
    "text", ["mount=/x", "claim=a,nfs=b:/c,mount=/x", "claim=a,mount=x", "claim=a,mount=/x,rw", "host=x,mount=/x"]
)
def test_a_volume_that_cannot_be_meant_is_said_with_what_can(text: str) -> None:
    settings = load(None, {}, {"kubernetes.volumes": {"data": text}, "executor.kind": "kubernetes"})
    with pytest.raises(SettingsProblem, match=r"kubernetes\.volumes\.data: .* must be claim=NAME"):
        options_of(settings.kubernetes, "main")
