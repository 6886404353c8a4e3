"""What is sent to a cluster for a job, read as a cluster reads it."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8s import names
from k8s.api import Json
from k8s.manifests import jobs, refuse_impossible, service
from k8s.options import NodeOptions, Options, PodOptions
from scheduler.core.model import (
    GPU_UNITS,
    AccountId,
    Allocation,
    AllocationId,
    Booking,
    DeviceId,
    GpuClass,
    Grant,
    JobId,
    NodeName,
    UserName,
)
from scheduler.executor import LaunchSpec, StartOrder, StartRefused

FILER = {"nfs": {"server": "filer", "path": "/d"}, "mountPath": "/data", "readOnly": True}
OPTIONS = Options(NodeOptions(GpuClass), PodOptions(volumes={"data": FILER}))
GIB = 1 << 30


def order(*, nodes: int = 1, gpus: int = 2, resource: str = "nvidia.com/gpu", **spec: object) -> StartOrder:
    grants = tuple(
        Grant(
            NodeName(f"n{rank}"),
            tuple(DeviceId(f"n{rank}/{resource}/{index}") for index in range(gpus)),
            GPU_UNITS,
            (4 + rank) * 1000,
            (16 + rank) * GIB,
        )
        for rank in range(nodes)
    )
    allocation = Allocation(
        AllocationId("01HXXXXXXXXXXXXXXXXXXXXXXX"), JobId(4711), AccountId("Acme/Bild & Ton"), UserName("mei"),
        GpuClass("H100"), Booking.BURST, grants, 1_790_000_000_000, 2, 3_600_000,
    )  # fmt: skip
    launch = LaunchSpec(("train",), "train", image="registry.example/train:1")
    return StartOrder(allocation, replace(launch, **spec))  # type: ignore[arg-type] # fields by name


def pod_of(job: Json) -> Json:
    found: Json = job["spec"]["template"]["spec"]
    return found


def environment(job: Json) -> dict[str, object]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in pod_of(job)["containers"][0]["env"]}


def expanded(text: str) -> str:
    """How Kubernetes reads a text of a container (third_party/forked/golang/expansion): `$$` is `$`, `$(NAME)` goes."""
    out, position = "", 0
    while position < len(text):
        if text[position] == "$" and position + 1 < len(text):
            following = text[position + 1]
            if following == "$":
                out, position = out + "$", position + 2
                continue
            if following == "(" and ")" in text[position:]:
                position = text.index(")", position) + 1
                out += "<replaced>"
                continue
        out, position = out + text[position], position + 1
    return out


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="$()aB \n", max_size=20))
def test_no_text_of_a_user_is_expanded_by_the_cluster(text: str) -> None:
    (job,) = jobs(order(argv=("sh", text), environment={"TEXT": text}), OPTIONS, is_indexed=False)
    assert expanded(pod_of(job)["containers"][0]["command"][1]) == text
    assert expanded(str(environment(job)["TEXT"])) == text


def test_a_gang_is_one_indexed_job_or_one_job_a_rank_with_the_same_hosts() -> None:
    gang = order(nodes=3)
    (indexed,) = jobs(gang, OPTIONS, is_indexed=True)
    each = jobs(gang, OPTIONS, is_indexed=False)
    name = names.gang_name(gang.allocation)
    assert (indexed["spec"]["completions"], indexed["spec"]["completionMode"]) == (3, "Indexed")
    assert [pod_of(job)["hostname"] for job in each] == [f"{name}-{rank}" for rank in range(3)]
    assert (
        {pod_of(job)["subdomain"] for job in [indexed, *each]} == {service(gang, OPTIONS)["metadata"]["name"]} == {name}
    )
    assert {environment(job)["MASTER_ADDR"] for job in [indexed, *each]} == {f"{name}-0.{name}"}
    assert [environment(job)["PET_NODE_RANK"] for job in each] == ["0", "1", "2"]
    assert names.COMPLETION_INDEX in str(environment(indexed)["PET_NODE_RANK"])


def test_an_indexed_job_takes_what_its_least_rank_was_granted_and_one_pod_a_node() -> None:
    (job,) = jobs(order(nodes=2), OPTIONS, is_indexed=True)
    limits = pod_of(job)["containers"][0]["resources"]["limits"]
    assert limits == {"nvidia.com/gpu": "2", "cpu": "4000m", "memory": str(16 * GIB)}
    affinity = pod_of(job)["affinity"]
    terms = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [term["matchFields"][0]["values"] for term in terms] == [["n0"], ["n1"]]
    assert affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]


def test_a_mig_instance_is_asked_for_by_its_own_resource() -> None:
    (job,) = jobs(order(gpus=1, resource="nvidia.com/mig-3g.40gb"), OPTIONS, is_indexed=False)
    assert pod_of(job)["containers"][0]["resources"]["limits"]["nvidia.com/mig-3g.40gb"] == "1"


def test_volumes_secrets_and_shared_memory_are_mounted_as_the_centre_says() -> None:
    (job,) = jobs(order(volumes=("data",), secrets=("hf",), shm_bytes=GIB), OPTIONS, is_indexed=False)
    pod, container = pod_of(job), pod_of(job)["containers"][0]
    assert pod["volumes"] == [
        {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": str(GIB)}},
        {"name": "v-data", "nfs": {"server": "filer", "path": "/d"}},
    ]
    assert container["volumeMounts"][1] == {"name": "v-data", "mountPath": "/data", "readOnly": True}
    assert container["envFrom"] == [{"secretRef": {"name": "hf"}}]


def test_a_job_cannot_name_itself_another_or_choose_its_devices() -> None:
    given = {"TURNSTILE_JOB_ID": "1", "NVIDIA_VISIBLE_DEVICES": "all", "CUDA_VISIBLE_DEVICES": "0", "MASTER_PORT": "7"}
    (job,) = jobs(order(environment=given), OPTIONS, is_indexed=False)
    found = environment(job)
    assert found["TURNSTILE_JOB_ID"] == "4711"
    assert found["MASTER_PORT"] == "7"
    assert "NVIDIA_VISIBLE_DEVICES" not in found
    assert "CUDA_VISIBLE_DEVICES" not in found


def test_slurms_names_are_given_where_asked_for_each_rank_its_own() -> None:
    each = jobs(order(nodes=2, has_slurm_names=True), OPTIONS, is_indexed=False)
    (indexed,) = jobs(order(nodes=2, has_slurm_names=True), OPTIONS, is_indexed=True)
    assert [environment(job)["SLURM_PROCID"] for job in each] == ["0", "1"]
    assert [environment(job)["SLURM_CPUS_ON_NODE"] for job in each] == ["4", "5"]
    assert names.COMPLETION_INDEX in str(environment(indexed)["SLURM_NODEID"])
    assert environment(indexed)["SLURM_NNODES"] == "2"
    (unasked,) = jobs(order(), OPTIONS, is_indexed=False)
    assert not [name for name in environment(unasked) if name.startswith("SLURM_")]


def test_a_checkpoint_signal_is_sent_before_the_grace_and_plain_jobs_need_no_shell() -> None:
    (plain,) = jobs(order(), OPTIONS, is_indexed=False)
    (job,) = jobs(order(stop_signal="SIGUSR1", grace_seconds=90.0), OPTIONS, is_indexed=False)
    assert "lifecycle" not in pod_of(plain)["containers"][0]
    assert "kill -USR1 1" in pod_of(job)["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][2]
    assert pod_of(job)["terminationGracePeriodSeconds"] == 90


def test_the_cluster_itself_ends_a_job_that_no_daemon_ended_and_never_before_its_limit() -> None:
    (job,) = jobs(order(grace_seconds=120.0), OPTIONS, is_indexed=False)
    assert job["spec"]["activeDeadlineSeconds"] >= 3600 + OPTIONS.times.start_seconds + 120


def test_a_share_of_a_whole_gpu_is_refused_and_of_a_mig_instance_is_not() -> None:
    share = order(gpus=1)
    grant = replace(share.allocation.grants[0], units=GPU_UNITS // 2)
    with pytest.raises(StartRefused, match="share of a GPU"):
        refuse_impossible(replace(share, allocation=replace(share.allocation, grants=(grant,))), OPTIONS)
    mig = replace(grant, devices=(DeviceId("n0/nvidia.com/mig-3g.40gb/0"),))
    refuse_impossible(replace(share, allocation=replace(share.allocation, grants=(mig,))), OPTIONS)


@settings(max_examples=100, deadline=None)
@given(first=st.text(min_size=1, max_size=80), second=st.text(min_size=1, max_size=80))
def test_names_are_legal_for_any_account_and_never_shared(first: str, second: str) -> None:
    made = names.namespace_of(AccountId(first.replace("/", "x")), "turnstile-")
    assert len(made) <= 63
    assert made == made.lower()
    assert made.replace("-", "").isascii()
    assert made.replace("-", "").isalnum()
    assert made[-1] != "-"
    other = names.namespace_of(AccountId(second.replace("/", "x")), "turnstile-")
    assert (made == other) == (first.replace("/", "x") == second.replace("/", "x"))
    value = names.label_value(first)
    assert len(value) <= 63
    assert value[0].isalnum()
    assert value[-1].isalnum()
