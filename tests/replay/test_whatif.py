"""What-if runs: files and options in, figures, schedule and plot out."""

import csv
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from scheduler.core.policy import Backfill, Placement, Policy, QueueOrder
from scheduler.refusal import Refused
from scheduler.whatif import Question, read_policy, simulate, with_options


@pytest.fixture
def files(tmp_path: Path) -> Question:
    """One node of 8 GPUs; a long job of half, then a wide one, then short ones that could pass it."""
    (tmp_path / "cluster.toml").write_text('[[nodes]]\nname = "n"\ngpus = 8\n')
    rows = ["a,0,4,3600,3600", "wide,10,8,600,600", *(f"s{index},20,2,60,{60 + index}" for index in range(4))]
    header = "job_id,submit_seconds,gpus,duration_seconds,time_limit_seconds"
    (tmp_path / "jobs.csv").write_text("\n".join([header, *rows]) + "\n")
    return Question(tmp_path / "cluster.toml", tmp_path / "jobs.csv")


def _ask(files: Question, **changes: Any) -> dict[str, Any]:
    return simulate(replace(files, **changes))


def test_backfill_lets_short_jobs_pass_and_none_does_not(files: Question) -> None:
    strict = _ask(files, order="fifo", backfill="none")["wait_seconds"]
    easy = _ask(files, order="fifo", backfill="easy")["wait_seconds"]
    assert strict["p50"] > 3600
    assert easy["p50"] <= 60
    assert easy["max"] <= strict["max"]


def test_two_policies_are_compared_on_the_same_jobs(files: Question, tmp_path: Path) -> None:
    (tmp_path / "strict.toml").write_text('[policy]\nbackfill = "none"\norder = "fifo"\n')
    report = _ask(files, against=tmp_path / "strict.toml")
    assert report["against"]["jobs"] == report["jobs"] == 6
    assert report["changes"]["wait_seconds"]["mean"] == pytest.approx(
        report["wait_seconds"]["mean"] - report["against"]["wait_seconds"]["mean"]
    )
    assert report["changes"]["wait_seconds"]["mean"] < 0


def test_the_schedule_has_a_row_per_allocation_and_is_the_same_each_time(files: Question, tmp_path: Path) -> None:
    first, second = tmp_path / "one.csv", tmp_path / "two.csv"
    for path in (first, second):
        _ask(files, schedule=path)
    assert first.read_bytes() == second.read_bytes()
    rows = list(csv.DictReader(first.read_text().splitlines()))
    assert [row["job_id"] for row in rows][:1] == ["a"]
    assert {row["end_reason"] for row in rows} == {"completed"}
    assert len(rows) == 6


def test_the_plot_is_a_drawing_of_both_panels(files: Question, tmp_path: Path) -> None:
    _ask(files, plot=tmp_path / "plot.svg")
    drawn = ElementTree.parse(tmp_path / "plot.svg").getroot()
    texts = [each.text for each in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "GPUs held" in texts
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}polygon"))) == 2


def test_a_policy_file_names_all_its_problems_at_once(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('backfill = "sometimes"\npromised_jobs = -1\npromise_after = 3\ntopology_labels = "rack"\n')
    with pytest.raises(Refused) as refused:
        read_policy(path)
    assert {problem.field for problem in refused.value.problems} == {
        "backfill",
        "promised_jobs",
        "promise_after",
        "topology_labels",
    }
    assert "easy" in next(each.message for each in refused.value.problems if each.field == "backfill")


def test_a_policy_file_sets_knobs_and_false_switches_one_off(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('[policy]\npromise_after_ms = false\nplacement = "fgd"\ntopology_labels = ["rack", "spine"]\n')
    assert read_policy(path) == Policy(
        promise_after_ms=None, placement=Placement.FGD, topology_labels=("rack", "spine")
    )


def test_flags_override_the_policy_and_the_literatures_names_mean_its_rules(files: Question) -> None:
    asked = replace(files, order="sjf", backfill="easy", placement="random", seed=7)
    policy = with_options(Policy(), asked)
    assert (policy.order, policy.backfill) == (QueueOrder.SJF, Backfill.EASY_BEFORE)
    assert (policy.placement, policy.seed) == (Placement.RANDOM, 7)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"order": "lifo"}, "fair, fifo, sjf, least-service, srtf, finish-time"),
        ({"preemption": "always"}, "off, guarantee, fair"),
        ({"backfill": "some"}, "none, easy"),
        ({"restart_cost_seconds": -1}, "0 or more"),
        ({"plot": Path("plot.pdf")}, "SVG or PNG"),
        ({"schedule": Path("/nowhere/at/all.csv")}, "cannot be written"),
        ({"policy": Path("missing.toml")}, "missing.toml"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(files: Question, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        _ask(files, **changes)


def test_the_plot_is_a_png_where_one_is_asked_for(files: Question, tmp_path: Path) -> None:
    _ask(files, plot=tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image:
        assert (image.format, image.size) == ("PNG", (1050, 630))
        assert len(image.convert("RGB").getcolors() or ()) > 2, "it shows something"


def test_shortest_remaining_time_first_stops_who_has_more_left(tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text('[[nodes]]\nname = "n"\ngpus = 8\n')
    header = "job_id,submit_seconds,gpus,duration_seconds,time_limit_seconds,checkpoint_seconds"
    rows = ["long,0,8,1000,1000,0", "short,100,4,50,50,0", "late,990,8,500,500,0"]
    (tmp_path / "jobs.csv").write_text("\n".join([header, *rows]) + "\n")
    question = Question(tmp_path / "cluster.toml", tmp_path / "jobs.csv", order="srtf", schedule=tmp_path / "s.csv")
    report: dict[str, Any] = simulate(question)
    assert report["preemptions"] == 1
    ran = [row.split(",") for row in (tmp_path / "s.csv").read_text().splitlines()[1:]]
    assert [(row[0], row[1], row[2], row[5]) for row in ran] == [
        ("long", "0", "100", "preempted"),
        ("short", "100", "150", "completed"),
        ("long", "150", "1050", "completed"),
        ("late", "1050", "1550", "completed"),
    ]
    plain: dict[str, Any] = simulate(replace(question, preemption="off"))
    assert plain["preemptions"] == 0
    costly: dict[str, Any] = simulate(replace(question, restart_cost_seconds=60))
    assert costly["makespan_seconds"] == report["makespan_seconds"] + 60


def test_finish_time_first_lets_no_short_job_delay_the_end_of_all_nor_a_long_one_the_deadlines(tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text('[[nodes]]\nname = "n"\ngpus = 2\n')
    header = "job_id,submit_seconds,gpus,duration_seconds,time_limit_seconds,checkpoint_seconds"
    short = [f"short{index},0,1,100,100,0" for index in range(10)]
    (tmp_path / "jobs.csv").write_text("\n".join([header, *short, "long,0,1,1000,1000,0"]) + "\n")
    question = Question(tmp_path / "cluster.toml", tmp_path / "jobs.csv", order="srtf")
    shortest: dict[str, Any] = simulate(question)
    balanced: dict[str, Any] = simulate(replace(question, order="finish-time"))
    assert shortest["makespan_seconds"] == 1500, "the long job runs alone in the end"
    assert balanced["makespan_seconds"] == 1000, "which is all work over all GPUs"


def test_a_gang_of_a_replay_has_started_so_that_others_may_take_its_place(tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text('[[nodes]]\nname = "n"\ngpus = 8\n')
    header = "job_id,submit_seconds,tenant,gpus,duration_seconds,time_limit_seconds,checkpoint_seconds"
    rows = [f"red{index},0,red,4,9000,9000,0" for index in range(2)] + ["blue,1000,blue,4,100,100,0"]
    (tmp_path / "jobs.csv").write_text("\n".join([header, *rows]) + "\n")
    report: dict[str, Any] = simulate(Question(tmp_path / "cluster.toml", tmp_path / "jobs.csv"))
    assert report["preemptions"] == 1, "red holds all, half of which is blue's share"


def test_srtf_never_waits_longer_on_average_than_sjf_when_stopping_is_free(tmp_path: Path) -> None:
    random = Random(7)
    (tmp_path / "cluster.toml").write_text("[[nodes]]\ngpus = 4\n")
    header = "job_id,submit_seconds,gpus,duration_seconds,time_limit_seconds,checkpoint_seconds"
    rows = []
    for index in range(300):
        length = random.choice([10, 100, 1000])
        rows.append(f"j{index},{random.randint(0, 20_000)},4,{length},{length},0")
    (tmp_path / "jobs.csv").write_text("\n".join([header, *rows]) + "\n")
    question = Question(tmp_path / "cluster.toml", tmp_path / "jobs.csv", backfill="none")
    completion = {
        order: simulate(replace(question, order=order))["completion_seconds"]["mean"]  # type: ignore[index]
        for order in ("fifo", "sjf", "srtf")
    }
    assert completion["srtf"] <= completion["sjf"] <= completion["fifo"]
