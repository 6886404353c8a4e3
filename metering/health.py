"""The verdict over a device: may it hold jobs? From XIDs, ECC, row remapping, lost and silent GPUs. Pure.

`failed` can hold nothing: its jobs are requeued. `draining` lets running jobs finish; then somebody resets the GPU.
What a sample shows (remapping, ECC) is judged anew each time and goes away with the cause. An XID of the hardware stays
in force until an operator resumes the device, or the energy counter proves that the driver was loaded anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from metering.gpus import GpuProblem, GpuSample, ProblemCode
from metering.xids import XID_TABLE, XidClass
from scheduler.clock import iso_utc
from scheduler.core.model import DeviceHealth

_FAILING = frozenset(
    {
        ProblemCode.GPU_LOST,
        ProblemCode.RESET_REQUIRED,
        ProblemCode.INSUFFICIENT_POWER,
        ProblemCode.IRQ_ISSUE,
    }
)
"""Problems after which a GPU computes nothing until somebody acts."""

_SEVERITY = {DeviceHealth.OK: 0, DeviceHealth.DRAINING: 1, DeviceHealth.FAILED: 2}


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """When a GPU that does not answer is given up.

    `missing_rounds` 2: one enumeration without a GPU may fall into a reset of it.
    `silent_ms` one minute, four samples at the default of 15 s, so that one hanging call drains nothing.
    """

    missing_rounds: int = 2
    silent_ms: int = 60_000


@dataclass(frozen=True, slots=True)
class GpuHealth:
    """A verdict. `code` is what to count it under (`xid_79`, `gpu_lost`), `reason` what to show; None when ok."""

    uuid: str
    health: DeviceHealth
    code: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class HealthFacts:
    """All that a verdict depends on. `sample` is the latest; `problem` is of the last round,
    the device's own or the machine's, None if it read well.

    `xids` maps the XIDs in force to when they were last seen; `silent_ms` counts since the last sample.
    """

    uuid: str
    sample: GpuSample | None = None
    problem: GpuProblem | None = None
    xids: Mapping[int, int] = field(default_factory=dict)
    missing_rounds: int = 0
    silent_ms: int = 0


def worse(one: GpuHealth, other: GpuHealth) -> GpuHealth:
    """Returns the worse verdict, the first when they are equally bad."""
    return other if _SEVERITY[other.health] > _SEVERITY[one.health] else one


def judge(facts: HealthFacts, policy: HealthPolicy) -> GpuHealth:
    """Returns the verdict: the first of its failures, else the first of its causes to drain, else ok."""
    verdict = GpuHealth(facts.uuid, DeviceHealth.OK)
    for finding in (_presence(facts, policy), _memory(facts), *_xids(facts)):
        if finding is not None:
            verdict = worse(verdict, finding)
    return verdict


def _presence(facts: HealthFacts, policy: HealthPolicy) -> GpuHealth | None:
    problem = facts.problem
    is_own = problem is not None and problem.uuid == facts.uuid
    if problem is not None and is_own and problem.code in _FAILING:
        return GpuHealth(facts.uuid, DeviceHealth.FAILED, problem.code.value, problem.message)
    if problem is not None and is_own and problem.code is ProblemCode.CORRUPTED_INFOROM:
        return GpuHealth(facts.uuid, DeviceHealth.DRAINING, problem.code.value, problem.message)
    if facts.missing_rounds >= policy.missing_rounds:
        reason = "the driver no longer lists this GPU; look in `dmesg`, check power and seating, reboot the node"
        return GpuHealth(facts.uuid, DeviceHealth.FAILED, "gpu_missing", reason)
    if facts.silent_ms >= policy.silent_ms:
        why = f": {problem.message}" if problem is not None else ""
        reason = f"not read for {facts.silent_ms // 1000} s{why}"
        return GpuHealth(facts.uuid, DeviceHealth.DRAINING, "not_read", reason)
    return None


def _memory(facts: HealthFacts) -> GpuHealth | None:
    sample = facts.sample
    if sample is None:
        return None
    if sample.row_remap_failure:
        reason = "a memory row could not be remapped; have the GPU replaced"
        return GpuHealth(facts.uuid, DeviceHealth.FAILED, "row_remap_failure", reason)
    if sample.ecc_uncorrected_errors:
        reason = f"{sample.ecc_uncorrected_errors} uncorrected memory errors since the driver was loaded; reset the GPU"
        return GpuHealth(facts.uuid, DeviceHealth.DRAINING, "ecc_uncorrected", reason)
    if sample.row_remap_pending:
        reason = "a memory row waits to be remapped; reset the GPU when its jobs have ended"
        return GpuHealth(facts.uuid, DeviceHealth.DRAINING, "row_remap_pending", reason)
    if sample.retired_pages_pending:
        reason = "a memory page waits to be retired; reset the GPU when its jobs have ended"
        return GpuHealth(facts.uuid, DeviceHealth.DRAINING, "page_retirement_pending", reason)
    return None


def _xids(facts: HealthFacts) -> list[GpuHealth]:
    findings = []
    for xid, last_ms in sorted(facts.xids.items()):
        row = XID_TABLE.get(xid)
        if row is None or row.xid_class is XidClass.APPLICATION:
            continue
        health = DeviceHealth.FAILED if row.xid_class is XidClass.FATAL else DeviceHealth.DRAINING
        reason = f"XID {xid} at {iso_utc(last_ms)}, {row.meaning}: {row.action}"
        findings.append(GpuHealth(facts.uuid, health, f"xid_{xid}", reason))
    return findings
