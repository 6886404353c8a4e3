"""The files of a simulation: what they mean, and what is said of bad ones."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.traces import gang
from scheduler.core.model import GPU_UNITS, GpuClass
from scheduler.refusal import Refused
from scheduler.scenario import DEFAULT_LIMIT_MS, read_cluster, read_jobs

CLASSES = (GpuClass("A100"), GpuClass("H100"))
CLUSTER = """
[[nodes]]
count = 3
name = "n"
gpu_class = "H100"
gpus = 8
cpus = 96
memory_gib = 960
labels = {rack = "r1"}
"""


def _jobs(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "jobs.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_of_nodes_makes_as_many_as_it_counts(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(CLUSTER, encoding="utf-8")
    nodes = read_cluster(path)
    assert [inventory.node.name for inventory in nodes] == ["n-0", "n-1", "n-2"]
    assert {len(inventory.devices) for inventory in nodes} == {8}
    assert nodes[0].node.cpu_millicores == 96_000
    assert nodes[0].node.labels == {"rack": "r1"}


def test_empty_fields_mean_the_default_and_unknown_columns_are_labels(tmp_path: Path) -> None:
    path = _jobs(
        tmp_path,
        "job_id,submit_seconds,tenant,project,gpus,gpu_class,time_limit_seconds,duration_seconds,model\n"
        "7,1.5,acme,nlp,0.5,,,60,bert\n,0,,,16,H100|A100,30,60,\n",
    )
    later, first = sorted(read_jobs(path, CLASSES), key=lambda job: -job.submit_ms)
    assert (later.submit_ms, later.account, later.shape.gpu_units) == (1500, "acme/nlp", GPU_UNITS // 2)
    assert later.shape.gpu_classes == CLASSES
    assert later.time_limit_ms == DEFAULT_LIMIT_MS
    assert later.labels == {"model": "bert"}
    assert (first.account, first.shape.gpu_classes, first.shape.gpu_units) == (
        "tenant/main",
        ("H100", "A100"),
        16 * GPU_UNITS,
    )


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    path = _jobs(
        tmp_path,
        "submit_seconds,duration_seconds,gpus,priority,booking\n"
        "0,1,x,,\n-1,1,1,,\n0,nan,1,,\n0,1,1.5,,\n0,1,1,urgent,\n0,1,1,,always\n0,1,1,,\n",
    )
    with pytest.raises(Refused) as refused:
        read_jobs(path, CLASSES)
    assert [problem.field for problem in refused.value.problems] == [f"line {number}" for number in range(2, 8)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no [[nodes]]"),
        ("[[nodes]]\n", "must be a whole number from 1 up, not None"),
        ("[[nodes]]\ngpus = -8\nflavour = 1\n", "unknown key"),
        ('[[nodes]]\nname = "a"\ngpus = 1\n[[nodes]]\nname = "a"\ngpus = 1\n', "two nodes are named a"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(Refused) as refused:
        read_cluster(path)
    assert words in [problem.message for problem in refused.value.problems]


def test_a_file_that_is_not_there_or_not_its_kind_is_refused(tmp_path: Path) -> None:
    for read in (lambda: read_cluster(tmp_path / "none"), lambda: read_jobs(tmp_path / "none", CLASSES)):
        with pytest.raises(Refused, match="No such file or directory"):
            read()
    with pytest.raises(Refused, match="the header lacks duration_seconds, submit_seconds"):
        read_jobs(_jobs(tmp_path, "a,b\n1,2\n"), CLASSES)


@given(st.integers(1, 200))
def test_a_trace_s_gang_keeps_its_total_and_fits_its_nodes(gpus: int) -> None:
    nodes, per_node = gang(gpus)
    assert nodes * per_node == gpus
    assert 1 <= per_node <= 8
