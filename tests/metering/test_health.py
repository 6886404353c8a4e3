import pytest

from metering.gpus import GpuProblem, GpuSample, ProblemCode
from metering.health import GpuHealth, HealthFacts, HealthPolicy, judge, worse
from metering.xids import XID_TABLE, XidClass
from scheduler.core.model import DeviceHealth

POLICY = HealthPolicy()
OK, DRAINING, FAILED = DeviceHealth.OK, DeviceHealth.DRAINING, DeviceHealth.FAILED


def sample(**fields: bool | int) -> GpuSample:
    return GpuSample("GPU-1", 1_000, **fields)  # type: ignore[arg-type] # the tests name one field each


def verdict(
    of: GpuSample | None = None,
    problem: GpuProblem | None = None,
    xids: dict[int, int] | None = None,
    missing_rounds: int = 0,
    silent_ms: int = 0,
) -> GpuHealth:
    return judge(HealthFacts("GPU-1", of, problem, xids or {}, missing_rounds, silent_ms), POLICY)


def test_a_gpu_that_reads_well_is_ok_without_a_reason() -> None:
    assert verdict(sample(ecc_uncorrected_errors=0, row_remap_pending=False)) == GpuHealth("GPU-1", OK)


@pytest.mark.parametrize("xid", sorted(XID_TABLE))
def test_an_xid_in_force_decides_by_its_class_and_its_reason_says_what_to_do(xid: int) -> None:
    row = XID_TABLE[xid]
    judged = verdict(sample(), xids={xid: 1_790_000_000_000})
    expected = {
        XidClass.APPLICATION: OK,
        XidClass.FATAL: FAILED,
        XidClass.MEMORY: DRAINING,
        XidClass.RESTART_APP: DRAINING,
    }[row.xid_class]
    assert judged.health is expected
    if expected is not OK:
        assert judged.code == f"xid_{xid}"
        assert judged.reason == f"XID {xid} at 2026-09-21T14:13:20.000Z, {row.meaning}: {row.action}"


def test_an_xid_that_is_not_listed_decides_nothing() -> None:
    assert verdict(sample(), xids={9999: 1}).health is OK


@pytest.mark.parametrize(
    ("fields", "health", "code"),
    [
        ({"row_remap_failure": True}, FAILED, "row_remap_failure"),
        ({"row_remap_pending": True}, DRAINING, "row_remap_pending"),
        ({"retired_pages_pending": True}, DRAINING, "page_retirement_pending"),
        ({"ecc_uncorrected_errors": 1}, DRAINING, "ecc_uncorrected"),
        ({"retired_pages": 5}, OK, None),
    ],
)
def test_what_memory_shows_decides(fields: dict[str, bool | int], health: DeviceHealth, code: str | None) -> None:
    judged = verdict(sample(**fields))
    assert (judged.health, judged.code) == (health, code)


@pytest.mark.parametrize("code", [ProblemCode.GPU_LOST, ProblemCode.RESET_REQUIRED, ProblemCode.INSUFFICIENT_POWER])
def test_a_gpu_that_computes_nothing_fails_with_the_problems_own_words(code: ProblemCode) -> None:
    judged = verdict(problem=GpuProblem(code, "what to do", uuid="GPU-1"))
    assert (judged.health, judged.code, judged.reason) == (FAILED, code.value, "what to do")


def test_another_problem_drains_only_when_it_lasts() -> None:
    problem = GpuProblem(ProblemCode.UNKNOWN, "no reason given", uuid="GPU-1")
    assert verdict(problem=problem, silent_ms=POLICY.silent_ms - 1).health is OK
    judged = verdict(problem=problem, silent_ms=POLICY.silent_ms)
    assert (judged.health, judged.reason) == (DRAINING, "not read for 60 s: no reason given")


def test_a_problem_of_the_whole_machine_fails_no_gpu() -> None:
    assert verdict(sample(), GpuProblem(ProblemCode.GPU_LOST, "some GPU is lost")).health is OK


def test_a_gpu_that_is_no_longer_listed_fails_after_two_rounds() -> None:
    assert verdict(sample(), missing_rounds=1).health is OK
    assert verdict(sample(), missing_rounds=2).code == "gpu_missing"


def test_the_worst_finding_wins() -> None:
    judged = verdict(sample(row_remap_pending=True), xids={94: 1, 79: 2})
    assert (judged.health, judged.code) == (FAILED, "xid_79")
    draining, other = GpuHealth("GPU-1", DRAINING, "a"), GpuHealth("GPU-1", DRAINING, "b")
    assert worse(draining, other) is draining
    assert worse(GpuHealth("GPU-1", OK), draining) is draining
