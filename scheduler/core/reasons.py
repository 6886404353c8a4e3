"""Why a pending job does not run: a closed list of codes, safe as a metric label, each with Slurm's word beside it.

A reason is a value with its numbers (`need`, `free`), so that it can be counted, compared and explained; sentences are
made where people read them. Exactly one reason of a job dominates: the first in DOMINANCE among those that hold.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class ReasonCode(StrEnum):
    """The closed list. The order of definition is the order of dominance."""

    SUSPENDED = "suspended"
    HELD_ADMIN = "held_admin"
    HELD_USER = "held_user"
    DEPENDENCY = "dependency"
    BEGIN_TIME = "begin_time"
    BACKOFF = "backoff"
    ARRAY_LIMIT = "array_limit"
    POOL_CLOSED = "pool_closed"
    CONSTRAINT = "constraint"
    NODES_DOWN = "nodes_down"
    QUOTA_TENANT = "quota_tenant"
    QUOTA_PROJECT = "quota_project"
    QUOTA_USER = "quota_user"
    BUDGET = "budget"
    GUARANTEE = "guarantee"
    PREEMPTING = "preempting"
    RESERVATION = "reservation"
    FRAGMENTATION = "fragmentation"
    CAPACITY = "capacity"
    ORDER = "order"


SLURM_WORDS: dict[ReasonCode, str] = {
    ReasonCode.SUSPENDED: "AccountNotAllowed",
    ReasonCode.HELD_ADMIN: "JobHeldAdmin",
    ReasonCode.HELD_USER: "JobHeldUser",
    ReasonCode.DEPENDENCY: "Dependency",
    ReasonCode.BEGIN_TIME: "BeginTime",
    ReasonCode.BACKOFF: "BeginTime",
    ReasonCode.ARRAY_LIMIT: "JobArrayTaskLimit",
    ReasonCode.POOL_CLOSED: "PartitionDown",
    ReasonCode.CONSTRAINT: "BadConstraints",
    ReasonCode.NODES_DOWN: "ReqNodeNotAvail",
    ReasonCode.QUOTA_TENANT: "QOSGrpGRES",
    ReasonCode.QUOTA_PROJECT: "AssocGrpGRES",
    ReasonCode.QUOTA_USER: "QOSMaxGRESPerUser",
    ReasonCode.BUDGET: "AssocGrpBillingMinutes",
    ReasonCode.GUARANTEE: "Resources",
    ReasonCode.PREEMPTING: "Resources",
    ReasonCode.RESERVATION: "Reservation",
    ReasonCode.FRAGMENTATION: "Resources",
    ReasonCode.CAPACITY: "Resources",
    ReasonCode.ORDER: "Priority",
}
"""Slurm's word for each code (squeue's REASON column), shown by `-o wide`."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that keeps a job from starting, with its numbers; GPUs where a unit is not named.

    `need` and `free` are whole GPUs (rounded up and down) for capacity, fragmentation and quota; for times, `until_ms`.
    """

    code: ReasonCode
    need: int | None = None
    free: int | None = None
    until_ms: int | None = None
    unit: Literal["jobs"] | None = None
    """What `need` and `free` count where it is not GPUs."""
    detail: str | None = None
    """A short fact for people: a node's drain reason, how many nodes are free. Never another tenant's name."""
