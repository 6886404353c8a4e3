"""`#SBATCH` lines: Slurm's meaning in our flags, and nothing passed over in silence."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli import slurm, slurmwords, values
from cli.jobflags import JobFlags
from tests.cli.conftest import Home
from tests.cli.peer import Json, Peer


def said(*options: str) -> slurm.Directives:
    """What a script with these `#SBATCH` lines asks for."""
    return slurm.read(["#!/bin/bash\n", *(f"#SBATCH {option}\n" for option in options), "srun x\n"])


def flags(*options: str) -> dict[str, object]:
    """The flags that lines are read as, those alone that say something."""
    found = said(*options)
    assert found.unsupported == ()
    return {f.name: value for f in fields(JobFlags) if (value := getattr(found.flags, f.name)) != f.default}


@pytest.mark.parametrize(
    ("option", "read_as"),
    [
        ("-J train", {"name": "train"}),
        ("--job-name='a b'", {"name": "a b"}),
        ("-N 2", {"nodes": "2"}),
        ("-N2", {"nodes": "2"}),
        ("--nodes=2-2", {"nodes": "2"}),
        ("-t 90", {"time": "1h30m"}),
        ("-t 90:30", {"time": "1h30m30s"}),
        ("-t 04:00:00", {"time": "4h"}),
        ("--time=1-12", {"time": "1d12h"}),
        ("--time 1-12:30", {"time": "1d12h30m"}),
        ("--time 1-12:30:15", {"time": "1d12h30m15s"}),
        ("-p h100-ib", {"pool": "h100-ib"}),
        ("-A nlp", {"project": "nlp"}),
        ("-a 0-99%8", {"array": "0-99%8"}),
        ("-d afterok:17:18_3,singleton", {"after": ["afterok:17,afterok:18_3,singleton"]}),
        ("--gpus=16", {"total_gpus": "16"}),
        ("-G h100:16", {"total_gpus": "H100:16"}),
        ("--gpus-per-node=h100:8", {"gpus": "H100:8"}),
        ("--gres=gpu:h100:8", {"gpus": "H100:8"}),
        ("--gres=gpu:8", {"gpus": "8"}),
        ("--gres=gpu", {"gpus": "1"}),
        ("--gres=gpu:A100-80G", {"gpus": "A100-80G:1"}),
        ("--gres=gpu:a100", {"gpus": "A100:1"}),
        ("-c 12", {"cpus": "12"}),
        ("--mem=64000", {"mem": "64000M"}),
        ("--mem=64G", {"mem": "64G"}),
        ("--mem=64gb", {"mem": "64G"}),
        ("-o slurm-%A_%a.out", {"output": "slurm-%j_%a.out"}),
        ("-o out-%j-%x", {"output": "out-%j-%x"}),
        ("--begin=now+90", {"begin": "now+90s"}),
        ("--begin=now+2hours", {"begin": "now+7200s"}),
        ("--begin=noon", {"begin": "12:00"}),
        ("--begin=16:00", {"begin": "16:00"}),
        ("--begin=now", {}),
        ("-H", {"hold": True}),
        ("--requeue", {}),
        ("--signal=B:USR1@120", {"checkpoint_signal": "USR1", "grace": "120s"}),
        ("--signal=12", {"checkpoint_signal": "USR2", "grace": "60s"}),
        ("--exclusive", {"exclusive": True}),
        ("--exclusive -N 2 --gres=gpu:h100:4", {"nodes": "2", "gpus": "H100", "exclusive": True}),
        ("--exclusive --gpus=h100:16 -N 2", {"nodes": "2", "gpus": "H100", "exclusive": True}),
        ("-x gpu-[011-013,020]-ib,login1", {"exclude": [*(f"gpu-0{n}-ib" for n in (11, 12, 13, 20)), "login1"]}),
        ("-w gpu-[1-2]", {"node": ["gpu-1", "gpu-2"], "nodes": "2"}),
        ("-N 1 --nodelist=gpu-7", {"node": ["gpu-7"], "nodes": "1"}),
        ("-D /data/run", {"workdir": "/data/run"}),
        ("--chdir=/data/run", {"workdir": "/data/run"}),
        ("--export=NONE", {}),
        ("--export=HOME,LR=3e-4", {"env": ["HOME", "LR=3e-4"]}),
        ("--mail-type=END,FAIL", {"notify": ["end", "fail"]}),
        ("--mail-type=all", {"notify": ["start", "end", "fail", "requeue"]}),
        ("--mail-type=NONE", {}),
        ("--mail-type=END -a 0-9", {"notify": ["end"], "notify_when": "last", "array": "0-9"}),
        ("--mail-type=END,ARRAY_TASKS -a 0-9", {"notify": ["end"], "array": "0-9"}),
        ("-n 1 -c 4", {"nodes": "1", "cpus": "4"}),
        ("-N 2 -n 2 -c 4", {"nodes": "2", "cpus": "4"}),
        ("-N 1 -n 8 -c 4", {"nodes": "1", "cpus": "32"}),
        ("-N 2 -n 16 --tasks-per-node=8 -c 4", {"nodes": "2", "cpus": "32"}),
        ("-N 2 --ntasks-per-node=8 --gpus-per-task=h100:1", {"nodes": "2", "gpus": "H100:8"}),
        ("--gres=gpu:8 --mem-per-gpu=64G --cpus-per-gpu=12", {"gpus": "8", "cpus": "96", "mem": "512G"}),
        ("-c 8 --mem-per-cpu=4000", {"cpus": "8", "mem": "32000M"}),
        ("-o x-%A_%a -e x-%A_%a", {"output": "x-%j_%a"}),
        ("--deadline=now+2hours", {"deadline": "now+7200s"}),
        ("--kill-on-invalid-dep=yes", {}),
        ("--parsable -Q --verbose", {}),
        ("-N 2 -t 90 # two nodes, ninety minutes", {"nodes": "2", "time": "1h30m"}),
    ],
)
def test_an_option_keeps_slurms_meaning(option: str, read_as: Json) -> None:
    assert flags(option) == read_as


def test_cpus_are_those_of_all_tasks_of_a_node() -> None:
    assert flags("-c 4", "--ntasks-per-node=8") == {"cpus": "32"}
    assert flags("--ntasks-per-node=8") == {}
    (note,) = said("--ntasks-per-node=8").notes
    assert "starts once on each node" in note


def test_a_range_of_nodes_is_an_elastic_gang() -> None:
    assert flags("-N 2-8") == {"nodes": "2-8"}
    assert flags("-N 2-2") == {"nodes": "2"}


def test_a_later_line_wins_and_a_count_per_node_says_more_than_a_total() -> None:
    assert flags("-t 10", "-t 20") == {"time": "20m"}
    found = said("--gpus=16", "--gres=gpu:8")
    assert (found.flags.gpus, found.flags.total_gpus) == ("8", None)
    assert any("count per node holds" in note for note in found.notes)


@pytest.mark.parametrize(
    ("option", "shown", "why"),
    [
        ("--qos=high", "--qos=high", "not supported here"),
        ("--mail-type LUNCH", "--mail-type=LUNCH", "not LUNCH"),
        ("--mail-user=mei@acme.example", "--mail-user=mei@acme.example", "turnstile notify set --email"),
        ("-n 16", "--ntasks", "only together with -N"),
        ("-N 3 -n 16", "--ntasks", "write --ntasks-per-node"),
        ("-N 2 -n 15 --ntasks-per-node=8", "--ntasks", "is not 2 nodes × 8 tasks"),
        ("-N 3 -n 6 --gpus-per-task=1 --ntasks-per-node=2 --gres=gpu:4", "--gpus-per-task", "comes to 2 a node, and 4"),
        ("-e err.log", "--error", "output and errors are one stream here"),
        ("--exclusive=user", "--exclusive=user", "--exclusive alone is"),
        ("--exclusive --gpus=16", "--exclusive", "the nodes are not counted; write -N"),
        ("-N 3 -w gpu-[1-2]", "--nodelist", "names 2 nodes of 3"),
        ("-x gpu-[1-", "--exclude=gpu-[1-", "is no list of hosts"),
        ("-x gpu-[9-1]", "--exclude=gpu-[9-1]", "is no range of at most"),
        ("-x n[0-999999999]", "--exclude=n[0-999999999]", "is no range of at most"),
        ("-x ./hosts", "--exclude=./hosts", "is no host or range"),
        ("--export=ALL,A=1", "--export=ALL,A=1", "not passed on"),
        ("--export=a-b", "--export=a-b", "is no variable"),
        ("--mem-per-gpu=8G", "--mem-per-gpu", "a count of GPUs per node"),
        ("--mem-per-cpu=8G", "--mem-per-cpu", "a count of CPUs per node"),
        ("-c 2 --mem-per-cpu=8G --mem=4G", "--mem-per-cpu", "--mem says already"),
        ("--cpus-per-gpu=8", "--cpus-per-gpu", "a count of GPUs per node"),
        ("--kill-on-invalid-dep=no", "--kill-on-invalid-dep=no", "always ends here"),
        ("-C a100", "--constraint=a100", "LABEL=VALUE"),
        ("--deadline=now", "--deadline=now", "is now"),
        ("-d afterok:17?afterok:18", "--dependency=afterok:17?afterok:18", "one of several is not offered"),
        ("-d expand:17", "--dependency=expand:17", "after, afterok, afterany, afternotok and singleton"),
        ("-d afterok:job", "--dependency=afterok:job", "does not name a job"),
        ("--signal=KILL@120", "--signal=KILL@120", "of signals, HUP, INT, USR1, USR2, TERM are offered"),
        ("-N 4-2", "--nodes=4-2", "is neither a number of nodes nor a range such as 2-8"),
        ("-t 0", "--time=0", "every job has one here"),
        ("-t UNLIMITED", "--time=UNLIMITED", "every job has one here"),
        ("-t soon", "--time=soon", "is not a time"),
        ("--mem=0", "--mem=0", "all of a node's memory"),
        ("--mem=lots", "--mem=lots", "is not a size"),
        ("--gpus=h100", "--gpus=h100", "is not a count of GPUs"),
        ("--gpus=0", "--gpus=0", "is not a count of GPUs"),
        ("--gres=gpu:1,license:1", "--gres=gpu:1,license:1", "GPUs alone are known"),
        ("--gres=shard:4", "--gres=shard:4", "GPUs alone are known"),
        ("-o slurm-%t.out", "--output=slurm-%t.out", "%t is not known"),
        ("--begin=fika", "--begin=fika", "is not a time that is read here"),
        ("-c 0", "--cpus-per-task=0", "is not a whole number"),
        ("-N", "--nodes", "has no value"),
        ("-H 3", "3", "is no option"),
        ("-J 'x", "-J 'x", "a quote without its other half"),
    ],
)
def test_what_cannot_be_kept_is_named_with_its_line_and_its_reason(option: str, shown: str, why: str) -> None:
    (problem,) = said("-J x", option).unsupported
    assert problem.field == "line 3"
    assert problem.message.startswith(f"{shown}: ")
    assert why in problem.message


def test_lines_behind_the_first_command_and_doubled_signs_are_comments_as_for_sbatch() -> None:
    lines = ["#!/bin/bash\n", "##SBATCH -N 9\n", "# SBATCH -N 8\n", "\n", "#SBATCH -N 2\n", "cd /x\n", "#SBATCH -t 5\n"]
    assert slurm.read(lines).flags == JobFlags(nodes="2")
    assert slurm.read(["#SBATCHING is fun\n"]).is_empty


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 99), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_a_time_says_the_same_in_each_of_slurms_forms(days: int, hours: int, minutes: int, seconds: int) -> None:
    whole = days * 86_400 + hours * 3600 + minutes * 60 + seconds
    assert slurmwords.seconds_of(f"{days}-{hours}:{minutes:02}:{seconds:02}") == whole
    assert slurmwords.seconds_of(f"{days * 24 + hours}:{minutes:02}:{seconds:02}") == whole
    assert slurmwords.seconds_of(f"{whole // 60}:{seconds:02}") == (whole if whole // 60 < 10**7 else None)
    assert slurmwords.seconds_of(str(whole // 60)) == whole // 60 * 60


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("-=:%,#\"' aN19thgpusrem", max_size=20), max_size=4))
def test_any_line_is_read_or_named(options: list[str]) -> None:
    found = slurm.read([f"#SBATCH {option}\n" for option in options])
    assert all(re.fullmatch(r"line [0-9]+", problem.field) and problem.message for problem in found.unsupported)
    if found.flags.time is not None:
        assert values.duration(found.flags.time, "-t") > 0
    if found.flags.mem is not None:
        assert values.size(found.flags.mem, "-m") > 0
    for text, reader in ((found.flags.gpus, values.gpus), (found.flags.total_gpus, values.total_gpus)):
        assert text is None or reader(text).count


SCRIPT = """#!/bin/bash
#SBATCH -J sft
#SBATCH -N 2
#SBATCH --gres=gpu:h100:8
#SBATCH -t 90
#SBATCH --mem=512000
#SBATCH --ntasks-per-node=8
torchrun train.py
"""


def script(folder: Path, content: str) -> None:
    (folder / "job.sh").write_text(content)
    (folder / "job.sh").chmod(0o755)


def test_a_script_is_submitted_as_its_lines_say_and_they_are_printed_back(home: Home, peer: Peer) -> None:
    script(home.path, SCRIPT)
    done = home.turnstile("sbatch", "job.sh", "--lr", "3")
    assert (done.code, done.out) == (0, "10482\n")
    assert done.err.startswith("read from job.sh: -n sft -N 2 -g H100:8 -t 1h30m -m 512000M\nnote: tasks count")
    assert peer.requests("POST", "/v1/jobs")[-1].json == {
        "command": [str(home.path / "job.sh"), "--lr", "3"],
        "workdir": str(home.path),
        "name": "sft",
        "nodes": 2,
        "gpus_per_node": 8,
        "gpu_classes": ["H100"],
        "time_limit_seconds": 5400,
        "memory_bytes_per_node": 512_000 * 2**20,
    }


def test_flags_win_over_a_scripts_lines(home: Home, peer: Peer) -> None:
    script(home.path, SCRIPT)
    assert home.turnstile("submit", "-t", "4h", "--total-gpus", "4", "./job.sh").code == 0
    spec = peer.requests("POST", "/v1/jobs")[-1].json
    assert (spec["time_limit_seconds"], spec["total_gpus"], spec["nodes"]) == (4 * 3600, 4, 2)
    assert "gpus_per_node" not in spec


def test_what_is_not_supported_stops_the_submission_unless_one_is_lenient(home: Home, peer: Peer) -> None:
    script(home.path, SCRIPT.replace("torchrun", "#SBATCH --qos=high\n#SBATCH -C a100\ntorchrun"))
    done = home.turnstile("submit", "job.sh")
    assert done.code == 3
    assert done.err.startswith(
        "error: job.sh has 2 #SBATCH options that are not supported\n"
        "  line 8  --qos=high: not supported here\n"
        "  line 9  --constraint=a100: features have other names here; write --constraint LABEL=VALUE\n"
    )
    assert peer.requests("POST", "/v1/jobs") == []
    lenient = home.turnstile("submit", "--lenient", "job.sh")
    assert lenient.code == 0
    assert "note: left out, line 8: --qos=high: not supported here" in lenient.err
    assert peer.requests("POST", "/v1/jobs")[-1].json["nodes"] == 2


def test_a_command_behind_dashes_is_not_read(home: Home, peer: Peer) -> None:
    script(home.path, SCRIPT)
    assert home.turnstile("submit", "-t", "1h", "--", "./job.sh").code == 0
    assert "nodes" not in peer.requests("POST", "/v1/jobs")[-1].json
