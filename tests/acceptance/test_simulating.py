"""`admin state dump|load` and `admin simulate`, typed against a real daemon: its state in a file, and what if."""

import json

import pytest

from tests.acceptance.daemons import Daemon

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(180)]
CLUSTER = '[[nodes]]\ncount = 2\nname = "n"\ngpu_class = "H200"\ngpus = 4\ncpus = 64\nmemory_gib = 512\n'
JOBS = (
    "job_id,submit_seconds,tenant,project,user,nodes,gpus,gpu_class,time_limit_seconds,duration_seconds\n"
    "1,0,acme,nlp,mei,2,4,H200,3600,1800\n"
    "2,10,acme,nlp,mei,1,4,H200,3600,600\n"
)


def test_a_live_state_goes_into_a_file_and_on_from_there(daemon: Daemon) -> None:
    running = daemon.submit("sleep", "600", gpus_per_node=4, nodes=2, time_limit_seconds=600, env={"KEY": "geheim"})[
        "id"
    ]
    daemon.wait_for(running, "running")
    daemon.submit("sleep", "60", gpus_per_node=4)
    told = daemon.turnstile("admin", "state", "dump", "now.json")
    assert told.out.startswith("wrote now.json: the state of ")
    for line in ("  2 nodes\n", "  8 gpus\n", "  2 jobs\n", "  1 allocations\n"):
        assert line in told.out
    file = daemon.folder / "now.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert "geheim" not in file.read_text()
    dumped = daemon.turnstile("admin", "state", "dump", "now.json", "-o", "json").json
    loaded = daemon.turnstile("admin", "state", "load", "now.json", "-o", "json", who=None).json
    assert (loaded["kind"], loaded["jobs"]) == ("StateFile", 2)
    assert {**loaded, "generated_at": None} == {**dumped, "generated_at": None}
    assert daemon.turnstile("admin", "state", "load", "now.json", who=None).out.startswith("now.json is sound: ")
    report = daemon.turnstile("admin", "simulate", "--state", "now.json", "-o", "json", who=None).json
    assert (report["kind"], report["jobs"], report["unplaced_jobs"]) == ("SimulationReport", 2, 0)
    assert report["makespan_seconds"] > 600, "the second job waits for the first"
    file.write_text(file.read_text()[:-20])
    assert daemon.turnstile("admin", "state", "load", "now.json", who=None, code=3).out == ""


def test_the_same_files_give_the_same_schedule_and_a_pipe_the_whole_report(daemon: Daemon) -> None:
    (daemon.folder / "c.toml").write_text(CLUSTER)
    (daemon.folder / "j.csv").write_text(JOBS)
    words = ("admin", "simulate", "--cluster", "c.toml", "--jobs", "j.csv")
    first = daemon.turnstile(*words, "--schedule", "1.csv", "-o", "json", who=None)
    again = daemon.turnstile(*words, "--schedule", "2.csv", who=None)
    assert (daemon.folder / "1.csv").read_bytes() == (daemon.folder / "2.csv").read_bytes()
    assert json.loads(first.out)["makespan_seconds"] == 2400
    assert "makespan seconds       2,400" in again.out
    assert daemon.turnstile(*words[:-1], "none.csv", who=None, code=4).err.startswith(
        "error: there is no file none.csv"
    )
