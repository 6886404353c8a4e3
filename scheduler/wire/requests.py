"""The bodies and query strings of every request but the submission's (`spec`): strict, unknown keys refused by name."""

import re
from typing import Annotated, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from scheduler.auth import Role
from scheduler.clock import parse_utc_ms
from scheduler.core.model import BookingWanted, JobId, JobState
from scheduler.notices import NoticeEvent
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.wire.spec import PriorityWord, invalid
from scheduler.wire.text import MOST_INTEGER, AccountPath, Name, Words, problems_of

MOST_IDS = 50_000
"""Of one bulk action: the promised size of a cancel (50,000 in one request and one transaction)."""
MOST_LISTED = 1000
LIVE_STATES = (JobState.PENDING, JobState.HELD, JobState.STARTING, JobState.RUNNING, JobState.STOPPING)
ENDED_STATES = (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.TIMEOUT)
_REF = re.compile(r"(\d{1,15})(?:_(\d{1,7}))?\Z", re.ASCII)
_STATE_WORDS = ("live", "ended", "all", *(state.value for state in JobState))

M = TypeVar("M", bound=BaseModel)


class Strict(BaseModel):
    """A body whose unknown keys are refused and whose types are taken literally."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


JobCount = Annotated[int, Field(ge=0, le=10_000_000)]
ClassCounts = dict[Name, Annotated[int, Field(ge=0, le=10_000_000)]]


class JobFilterBody(Strict):
    """Which jobs an action is for, in the words of the list's query."""

    state: tuple[str, ...] = Field(("live",), max_length=16)
    user: Name | None = None
    project: AccountPath | None = None
    tenant: AccountPath | None = None
    pool: Name | None = None
    name: Name | None = None
    since: str | None = Field(None, max_length=64)
    array: Annotated[int, Field(ge=1, le=MOST_INTEGER)] | None = None


class JobAction(Strict):
    """Jobs to act on: named one by one, or by a filter; never both, never neither."""

    ids: tuple[Annotated[str, Field(max_length=24)], ...] | None = Field(None, max_length=MOST_IDS)
    filter: JobFilterBody | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "JobAction":
        if (self.ids is None) == (self.filter is None):
            raise ValueError("give ids or a filter, one of them")
        return self


class JobUpdate(BaseModel):
    """Other terms for jobs that wait, another time limit for jobs that run; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    ids: tuple[Annotated[str, Field(max_length=24)], ...] = Field(min_length=1, max_length=MOST_IDS)
    time_limit_seconds: Annotated[int, Field(ge=1, le=MOST_INTEGER)] | None = None
    priority: PriorityWord | None = None
    booking: BookingWanted | None = None
    begin_at: AwareDatetime | None = None
    begins_at_once: bool = Field(False, description="Drop the begin time, and a pause after a failure.")
    deadline_at: AwareDatetime | None = None
    name: Name | None = Field(None, description="Of jobs that wait; of arrays as a whole.")
    project: AccountPath | None = Field(None, description="Of jobs that wait, inside their tenant; as at submission.")

    @model_validator(mode="after")
    def _says_something(self) -> "JobUpdate":
        times = (self.time_limit_seconds, self.begin_at, self.deadline_at)
        terms = (*times, self.priority, self.booking, self.name, self.project)
        if all(term is None for term in terms) and not self.begins_at_once:
            raise ValueError("say what is to change")
        if self.begin_at is not None and self.begins_at_once:
            raise ValueError("begin_at and begins_at_once contradict each other")
        return self


class AccountTerms(Strict):
    """What an account may hold and how its jobs follow one another; GPUs per class, whole."""

    guarantee: ClassCounts = Field(default_factory=dict, max_length=64)
    limit: ClassCounts = Field(default_factory=dict, max_length=64)
    user_limit: ClassCounts = Field(default_factory=dict, max_length=64)
    running_limit: JobCount | None = None
    pending_limit: JobCount | None = None
    high_limit: JobCount | None = None
    limit_weight: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    service_weight: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    slowdown_weight: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    takes_turns: bool = False
    guaranteed_yields: bool = False
    is_suspended: bool = False


class AccountBody(AccountTerms):
    """The terms of an account: GPUs per class, whole."""

    display_name: Name | None = None
    weight: Annotated[int, Field(ge=1, le=1_000_000)] = 1


class SuspendBody(Strict):
    """How an account is suspended."""

    drain: bool = False


class MemberBody(Strict):
    """A user's place in an account."""

    account: AccountPath
    user: Name
    role: Literal["user", "tenant_admin", "billing"] = "user"
    may_use_high: bool = False


class TokenBody(Strict):
    """A token to make. The account is the root, an empty text, for the centre's own people."""

    role: Role
    account: AccountPath | Annotated[str, Field(max_length=0)]
    user: Name
    expires_in_seconds: Annotated[int, Field(ge=1, le=10 * 366 * 86_400)] | None = None


class OwnTokenBody(Strict):
    """A token that somebody makes for itself; without a time it lives as long as the one that it is made with."""

    expires_in_seconds: Annotated[int, Field(ge=1, le=10 * 366 * 86_400)] | None = None


class DrainBody(Strict):
    """Why a node is drained: what people will read in front of the machine."""

    reason: Annotated[Words, Field(min_length=1)]


class PauseBody(Strict):
    """Which pools take no new jobs (or take them again), and why; no pools: all that there are."""

    pools: tuple[Name, ...] | None = Field(None, min_length=1, max_length=1000)
    reason: Words | None = None


class AssignBody(Strict):
    """Nodes to put into a pool."""

    nodes: tuple[Name, ...] = Field(min_length=1, max_length=10_000)


class ReservationBody(Strict):
    """Nodes to keep free: named, or so many of a class. Without an account nobody's jobs run there."""

    name: Name
    start: str | None = Field(None, max_length=64, description="RFC 3339; now by default.")
    duration_seconds: Annotated[int, Field(ge=60, le=366 * 86_400)]
    nodes: tuple[Name, ...] | None = Field(None, min_length=1, max_length=10_000)
    gpu_model: Name | None = None
    count: Annotated[int, Field(ge=1, le=10_000)] | None = None
    pool: Name | None = None
    account: AccountPath | None = None
    reason: Words | None = None

    @model_validator(mode="after")
    def _nodes_or_count(self) -> "ReservationBody":
        if (self.nodes is None) == (self.gpu_model is None) or (self.gpu_model is None) != (self.count is None):
            raise ValueError("give nodes, or gpu_model and count, one of them")
        if self.pool is not None and self.nodes is not None:
            raise ValueError("pool goes with gpu_model and count; nodes are named already")
        return self


class SecretBody(Strict):
    """A secret's value."""

    value: Annotated[str, Field(min_length=1, max_length=65_536, pattern="^[^\\x00]*$")]

    def __repr__(self) -> str:
        """The value is nobody's to read."""
        return "SecretBody()"


class NotifyBody(BaseModel):
    """Where one wants to be told of jobs, and of what; neither address: not at all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    webhook: Annotated[str, Field(max_length=2048)] | None = None
    email: Annotated[Name, Field(max_length=254)] | None = None
    events: tuple[NoticeEvent, ...] = Field(
        (NoticeEvent.END, NoticeEvent.PREEMPT, NoticeEvent.IDLE, NoticeEvent.BUDGET80, NoticeEvent.BUDGET100),
        max_length=32,
    )


class JobListQuery(BaseModel):
    """The query of the job list."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    state: Annotated[list[str], Field(max_length=16)] = Field(default_factory=lambda: ["live"])
    user: Name | None = None
    project: AccountPath | None = None
    tenant: AccountPath | None = None
    pool: Name | None = None
    name: Name | None = None
    since: str | None = Field(None, max_length=64, description="RFC 3339; submitted at or after it.")
    array: Annotated[int, Field(ge=1, le=MOST_INTEGER)] | None = None
    limit: Annotated[int, Field(ge=1, le=MOST_LISTED)] = 200
    page: str | None = Field(None, max_length=64)


def parse(model: type[M], body: bytes) -> M:
    """Returns a body as its model. Raises Refused (`invalid`) with all problems."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid(problems_of(error, tuple(model.model_fields))) from None


def parse_ref(text: str) -> tuple[JobId, int | None] | None:
    """Returns (id, array index) of `4711` or `4711_3`; None when the text is a name."""
    match = _REF.match(text)
    if match is None:
        return None
    return JobId(int(match[1])), None if match[2] is None else int(match[2])


def parse_states(words: list[str] | tuple[str, ...]) -> frozenset[JobState]:
    """Returns the states that the words name: states, `live`, `ended` or `all`. Raises Refused (`invalid`)."""
    states: set[JobState] = set()
    for word in words:
        if word not in _STATE_WORDS:
            raise invalid((Problem(f"must be one of {', '.join(_STATE_WORDS)}", "state"),))
        if word in {"live", "all"}:
            states.update(LIVE_STATES)
        if word in {"ended", "all"}:
            states.update(ENDED_STATES)
        if word not in {"live", "ended", "all"}:
            states.add(JobState(word))
    return frozenset(states)


def parse_time(text: str, field: str) -> int:
    """Returns UTC milliseconds of an RFC 3339 time. Raises Refused (`invalid`)."""
    try:
        # A plus sign that a client did not escape arrives as a space: what was meant is beyond doubt.
        return parse_utc_ms(text.replace(" ", "+") if "T" in text else text)
    except (ValueError, OverflowError) as error:
        words = str(error) if "time zone" in str(error) else "must be a time such as 2026-11-23T12:31:07Z"
        raise invalid((Problem(words, field),)) from None


def not_found(what: str) -> Refused:
    """Returns the refusal for what does not exist or is not the caller's to see."""
    return Refused(RefusalCode.NOT_FOUND, what)
