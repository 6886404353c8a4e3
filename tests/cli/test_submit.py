"""What `submit` and `run` send, for what was typed."""

import json
from pathlib import Path

import pytest

from cli import scripts
from cli.errors import Refusal, UsageProblem
from tests.cli.conftest import Home
from tests.cli.peer import Json, Peer, Reply, page, problem
from tests.cli.recorded import SUBMITTED, job


def sent(home: Home, peer: Peer, *arguments: str) -> Json:
    """The job that a submission asked the peer for."""
    done = home.turnstile("submit", *arguments)
    assert done.code == 0, done.err
    return peer.requests("POST", "/v1/jobs")[-1].json


def test_every_flag_becomes_the_field_that_the_api_names(
    home: Home, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    (home.path / "env").write_text("# shared\nA=1\nB=2\n")
    spec = sent(
        home,
        peer,
        *("-g", "H200,H100:8", "-N", "4", "-c", "64", "-m", "512G", "-p", "h100-ib", "-t", "1-12:00:00", "--spot"),
        *(
            "--node",
            "n1,n2",
            "--exclude",
            "n3",
            "--constraint",
            "zone=a",
            "-i",
            "reg/train:1",
            "-n",
            "sft",
            "-A",
            "nlp",
        ),
        *(
            "-w",
            "/data",
            "-e",
            "B=3",
            "-e",
            "WANDB_MODE",
            "--env-file",
            "env",
            "--output",
            "out-%j.log",
            "-l",
            "team=x",
        ),
        *("--begin", "2026-11-24T08:00Z", "--deadline", "2026-12-01T00:00+08:00", "--priority", "high", "--hold"),
        *(
            "-a",
            "0-99%8",
            "--retries",
            "2",
            "--retry-on",
            "oom",
            "--topology",
            "required:rack",
            "--after",
            "17,any:18_3",
            "--grace",
            "2m",
            "--",
            "python",
            "train.py",
            "--lr",
            "2e-5",
        ),
    )
    assert spec == {
        "command": ["python", "train.py", "--lr", "2e-5"],
        "gpus_per_node": 8,
        "gpu_classes": ["H200", "H100"],
        "nodes": 4,
        "cpus_per_node": 64,
        "memory_bytes_per_node": 512 * 2**30,
        "pool": "h100-ib",
        "time_limit_seconds": 129_600,
        "booking": "spot",
        "only_nodes": ["n1", "n2"],
        "exclude_nodes": ["n3"],
        "constraints": {"zone": "a"},
        "image": "reg/train:1",
        "name": "sft",
        "project": "nlp",
        "workdir": "/data",
        "env": {"A": "1", "B": "3", "WANDB_MODE": "offline"},
        "output": "out-%j.log",
        "labels": {"team": "x"},
        "begin_at": "2026-11-24T08:00:00Z",
        "deadline_at": "2026-11-30T16:00:00Z",
        "priority": "high",
        "hold": True,
        "array": "0-99%8",
        "retries": 2,
        "retry_on": ["oom"],
        "topology": "required:rack",
        "after": ["afterok:17", "afterany:18_3"],
        "grace_seconds": 120,
    }


def test_what_was_not_asked_for_is_not_sent_so_that_the_servers_defaults_hold(home: Home, peer: Peer) -> None:
    assert sent(home, peer, "-t", "1h", "./x") == {
        "command": ["./x"],
        "time_limit_seconds": 3600,
        "workdir": str(home.path),
    }


@pytest.mark.parametrize(
    ("typed", "fields"),
    [
        (("-g", "80GB:2"), {"gpus_per_node": 2, "gpu_memory_bytes": 80 * 10**9}),
        (("-g", "H200:0.5"), {"gpus_per_node": 0.5, "gpu_classes": ["H200"]}),
        (("--total-gpus", "64"), {"total_gpus": 64}),
        (("--retries", "0"), {"retries": 0}),
    ],
)
def test_gpus_are_asked_for_by_class_memory_share_or_total(
    home: Home, peer: Peer, typed: tuple[str, ...], fields: Json
) -> None:
    spec = sent(home, peer, *typed, "-t", "1h", "./x")
    assert {
        key: value for key, value in spec.items() if key not in {"command", "workdir", "time_limit_seconds"}
    } == fields


def test_flags_stand_before_the_command_with_and_without_dashes(home: Home, peer: Peer) -> None:
    with_dashes = sent(home, peer, "-g", "H100:8", "-t", "1h", "--", "python", "train.py", "--lr", "3")
    without = sent(home, peer, "-g", "H100:8", "-t", "1h", "python", "train.py", "--lr", "3")
    assert with_dashes == without
    assert sent(home, peer, "-t", "1h", "x", "a", "--", "b")["command"] == ["x", "a", "--", "b"]


def test_a_flag_of_ours_behind_the_command_goes_to_it_with_a_note(home: Home, peer: Peer) -> None:
    done = home.turnstile("submit", "-t", "1h", "./x", "--gpus", "8", "-N", "2", "--lr=3", "-c", "1")
    assert "note: --gpus stands behind the command and goes to ./x" in done.err
    assert "note: -N stands behind" in done.err
    assert "--lr" not in done.err
    assert "-c " not in done.err
    assert peer.requests("POST", "/v1/jobs")[-1].json["command"][1] == "--gpus"
    assert "note:" not in home.turnstile("submit", "-t", "1h", "--", "./x", "--gpus", "8").err


def test_an_unknown_flag_before_the_command_is_an_error_and_nothing_is_sent(home: Home, peer: Peer) -> None:
    done = home.turnstile("submit", "--gpu", "8", "./x")
    assert done.code == 2
    assert "--gpus" in done.err
    assert peer.requests("POST", "/v1/jobs") == []


def test_stdout_is_the_id_alone_unless_json_is_asked_for(home: Home, peer: Peer) -> None:
    assert home.turnstile("submit", "-t", "1h", "x").out == "10482\n"
    quiet = home.turnstile("submit", "-q", "-t", "1h", "x")
    assert (quiet.out, quiet.err) == ("10482\n", "")
    assert json.loads(home.turnstile("submit", "-o", "json", "-t", "1h", "x").out) == SUBMITTED
    element = job(id="10490_0", array_id=10490, array_index=0)
    peer.answers("POST", "/v1/jobs", page("JobList", [element], array_size=96))
    array = home.turnstile("submit", "-t", "1h", "-a", "0-95", "x")
    assert array.out == "10490\n"
    assert "96 elements" in array.err


def test_each_submission_has_a_key_of_its_own_and_keeps_it_when_repeated(home: Home, peer: Peer) -> None:
    peer.answers("POST", "/v1/jobs", Reply(b"", breaks_off=True), SUBMITTED)
    assert home.turnstile("submit", "-t", "1h", "x").code == 0
    assert home.turnstile("submit", "-t", "1h", "x").code == 0
    first, again, other = (each.headers["Idempotency-Key"] for each in peer.requests("POST", "/v1/jobs"))
    assert first == again != other


def test_a_submission_whose_fate_is_unknown_says_how_to_find_out(home: Home, peer: Peer) -> None:
    peer.answers("POST", "/v1/jobs", Reply(b"", breaks_off=True))
    done = home.turnstile("submit", "-t", "1h", "x")
    assert done.code == 7
    assert "if it arrived after all, 'turnstile queue -u me' shows it" in done.err


def test_a_dry_run_says_so_to_the_server_and_prints_no_id(home: Home, peer: Peer) -> None:
    peer.answers("POST", "/v1/jobs", page("JobList", [job(id=None)], is_new=False))
    done = home.turnstile("submit", "--dry-run", "-t", "12h", "x")
    assert peer.requests("POST", "/v1/jobs")[0].query == {"dry_run": ["true"]}
    assert done.out.startswith("Would submit dpo-run\n")
    assert home.turnstile("run", "--dry-run", "-t", "12h", "x").out == done.out
    many = ("--sweep", "lr=1,2", "-n", "s")
    for more in ((), many):
        asked = home.turnstile("submit", "-q", "--dry-run", "-t", "12h", *more, "x")
        assert (asked.code, asked.out) == (0, ""), "what is not submitted has no number"


def test_a_contexts_project_is_not_sent_with_another_token(
    home: Home, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = home.path / ".config/turnstile"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(
        f'current = "dev"\n[contexts.dev]\nurl = "{peer.url}"\ntoken_file = "{home.token_file}"\nproject = "dev/main"\n'
    )
    assert sent(home, peer, "-t", "1h", "x").get("project") is None  # the environment names a token
    monkeypatch.delenv("TURNSTILE_TOKEN_FILE")
    assert sent(home, peer, "-t", "1h", "x")["project"] == "dev/main"
    assert sent(home, peer, "--token-file", str(home.token_file), "-t", "1h", "x").get("project") is None


def test_the_project_comes_from_flag_environment_or_project_file(
    home: Home, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home.path / ".turnstile.toml").write_text('project = "file"\n')
    assert sent(home, peer, "-t", "1h", "x")["project"] == "file"
    monkeypatch.setenv("TURNSTILE_PROJECT", "environment")
    assert sent(home, peer, "-t", "1h", "x")["project"] == "environment"
    assert sent(home, peer, "-t", "1h", "-A", "flag", "x")["project"] == "flag"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-t", "90", "x"), "ambiguous"),
        (("-g", "H100:eight", "x"), "'H100:eight' is not a count"),
        ((), "there is nothing to run"),
        (("-g", "8", "--total-gpus", "8", "x"), "both say how many GPUs"),
        (("--spot", "--booking", "guaranteed", "x"), "contradict each other"),
        (("--priority", "hgh", "x"), "is not one of low, normal, high"),
        (("-e", "NOT_SET_ANYWHERE", "x"), "is not set in your environment"),
        (("--env-file", ".env", "x"), "is not text in UTF-8"),
        (("-f", "-a", "0-3", "x"), "an array is many"),
        (("--exclusive", "-g", "H200:8", "x"), "-g H200:8 counts GPUs, and --exclusive takes all of a node"),
        (("--exclusive", "--total-gpus", "8", "x"), "--total-gpus counts them"),
        (("--compat", "lsf", "x"), "is not one of slurm"),
    ],
)
def test_what_cannot_be_meant_is_exit_2_and_nothing_is_sent(
    home: Home, peer: Peer, arguments: tuple[str, ...], words: str
) -> None:
    (home.path / ".env").write_bytes(b"A=\xff")
    done = home.turnstile("submit", *arguments)
    assert done.code == 2
    assert words in done.err
    assert peer.requests("POST", "/v1/jobs") == []


def argv(*words: str, dashes: bool = False) -> list[str]:
    return scripts.argv_of(scripts.Typed(words, dashes))


def script(path: Path, content: str, mode: int) -> Path:
    path.write_text(content)
    path.chmod(mode)
    return path


def test_an_executable_script_is_run_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = script(tmp_path / "train.sh", "#!/bin/sh\necho\n", 0o755)
    assert argv("train.sh", "--lr", "3") == argv("./train.sh", "--lr", "3") == [str(made), "--lr", "3"]
    assert argv("train.sh", dashes=True) == ["train.sh"]


def test_a_script_without_the_bit_is_run_by_the_interpreter_that_it_names(tmp_path: Path) -> None:
    made = script(tmp_path / "train.py", "#!/usr/bin/env -S python3 -u\n", 0o644)
    assert argv(str(made), "x") == ["/usr/bin/env", "-S", "python3", "-u", str(made), "x"]


def test_a_file_that_cannot_be_run_is_refused_with_what_would_do(tmp_path: Path) -> None:
    made = script(tmp_path / "notes.txt", "hello\n", 0o644)
    with pytest.raises(Refusal, match="neither executable nor begins with #!") as refused:
        argv(str(made))
    assert refused.value.tries == (f"chmod +x {made}", f"bash {made}")
    assert refused.value.exit_code == 3


def test_a_command_that_is_no_file_stands_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert argv("python", "train.py") == ["python", "train.py"]
    script(tmp_path / "ls", "not a script", 0o644)
    assert argv("ls", "-l") == ["ls", "-l"]


def test_there_must_be_something_to_run() -> None:
    with pytest.raises(UsageProblem, match="there is nothing to run"):
        scripts.typed_command([], ("-g", "8"))


def test_slurms_words_do_the_same(home: Home, peer: Peer) -> None:
    assert home.turnstile("sbatch", "-t", "1h", "x").out == "10482\n"
    assert home.turnstile("squeue").out == home.turnstile("ps").out == home.turnstile("queue").out
    assert home.turnstile("sinfo").out == home.turnstile("gpus").out
    assert home.turnstile("sacct").out == home.turnstile("history").out
    assert home.turnstile("seff", "10431").out == home.turnstile("report", "10431").out
    assert home.turnstile("scancel", "10482").err == "cancelled 10482\n"
    peer.answers("POST", "/v1/jobs", problem("policy", 422, "no"))
    assert home.turnstile("srun", "-t", "1h", "x").code == 3
    assert "sbatch" not in home.turnstile("--help").out


def test_whole_nodes_are_asked_for_by_their_class_alone_from_flags_and_files(home: Home, peer: Peer) -> None:
    asked = sent(home, peer, "-t", "1h", "--exclusive", "-g", "H200,H100", "-N", "2", "--compat", "slurm", "x")
    assert (asked["exclusive"], asked["gpu_classes"], asked["nodes"]) == (True, ["H200", "H100"], 2)
    assert asked["compat"] == "slurm"
    assert "gpus_per_node" not in asked
    (home.path / "whole.yaml").write_text("gpus: 80GB\nexclusive: true\ncompat: slurm\ntime: 1h\ncommand: [x]\n")
    from_file = sent(home, peer, "whole.yaml")
    assert (from_file["exclusive"], from_file["gpu_memory_bytes"], from_file["compat"]) == (True, 80 * 10**9, "slurm")
    (home.path / "whole.yaml").write_text("gpus: H100:8\nexclusive: true\ntime: 1h\ncommand: [x]\n")
    refused = home.turnstile("submit", "whole.yaml")
    assert (refused.code, "line 1  gpus: H100:8 counts GPUs" in refused.err) == (3, True), refused.err


def test_what_the_server_refuses_is_told_by_the_flags_that_were_typed(home: Home, peer: Peer) -> None:
    wrong = [{"field": "time_limit_seconds", "message": "is required"}]
    peer.answers("POST", "/v1/jobs", problem("invalid", 422, "time_limit_seconds: is required", problems=wrong))
    assert home.turnstile("submit", "-g", "1", "x").err == "error: -t is required\n  try   -t 90m   or   -t 12h\n"
    both = [*wrong, {"field": "env.9X", "message": "is not a name"}]
    peer.answers("POST", "/v1/jobs", problem("invalid", 422, "the request has 2 problems", problems=both))
    told = home.turnstile("submit", "-g", "1", "x").err
    wanted = "error: the request has 2 problems\n  -t  is required\n  -e  is not a name\n  try   -t 90m   or   -t 12h\n"
    assert told == wanted


def test_each_field_of_the_api_that_a_flag_fills_has_its_flag_named() -> None:
    from cli.jobflags import FLAGS_OF_FIELDS
    from scheduler.wire.spec import SPEC_FIELDS

    assert set(SPEC_FIELDS) - set(FLAGS_OF_FIELDS) == {"script", "hold"}


def test_a_dash_is_no_job_file(home: Home, peer: Peer) -> None:
    done = home.turnstile("submit", "-", stdin="command: [x]")
    assert (done.code, "a job is not read from standard input" in done.err) == (2, True)
    assert peer.requests("POST", "/v1/jobs") == []


def test_a_refusal_by_the_server_reads_as_a_sentence_about_the_flag_that_was_typed(home: Home, peer: Peer) -> None:
    said = {
        "-p: no pool 'x'; there are main": ("pool", "no pool 'x'; there are main"),
        "-t is required": ("time_limit_seconds", "is required"),
        "-g is required: how many GPUs on each node": (
            "gpus_per_node", "say how many GPUs: gpus_per_node or total_gpus, one of them",
        ),
    }  # fmt: skip
    for sentence, (field, message) in said.items():
        why = problem("invalid", 422, f"{field}: {message}", problems=[{"field": field, "message": message}])
        peer.answers("POST", "/v1/jobs", why)
        assert home.turnstile("submit", "--", "x").err.splitlines()[0] == f"error: {sentence}"
    assert "--total-gpus 16" in home.turnstile("submit", "--", "x").err
