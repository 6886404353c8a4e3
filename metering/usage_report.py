"""What a part of the account tree used: the ledger's lines added up by project, user, job, GPU model or day.

The same lines as the CSV files have, rounded where they round: GPU-hours, and amounts before tax, of a report add up to
those of the usage lines, to the last digit. What was idle is told from GPU windows and never changes an amount; it is
None where nothing was measured.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from zoneinfo import ZoneInfo

from sqlalchemy.engine import Connection

from metering.core.quantity import GPU_HOURS_DECIMALS, UNIT_MS_PER_GPU_HOUR, divide
from metering.core.rating import LineType
from metering.core.who_pays import WHO_PAYS
from metering.credit_lines import credit_of
from metering.ledger import has_windows, idle_sums
from metering.timelines import load_prices, timelines
from metering.usage_lines import RatedLine, rated_lines
from scheduler.auth import is_within
from scheduler.core.model import ROOT_ACCOUNT, AccountId, EndReason
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.account_names import present_names

MOST_GROUPS = 10_000
"""Rows of one report: bounds the answer and the memory it takes. A centre's projects, users and days are far fewer."""


class GroupBy(StrEnum):
    """What lines are added up by."""

    PROJECT = "project"
    USER = "user"
    JOB = "job"
    GPU_MODEL = "gpu-model"
    DAY = "day"


@dataclass(slots=True)
class UsageGroup:
    """What one group used in one currency; `currency` is None for use without a price."""

    key: str
    name: str | None
    currency: str | None
    lines: int = 0
    gpu_hours_nano: int = 0
    """Charged GPU-hours in 10**-9, each line rounded as in its file."""
    preempted_hours_nano: int = 0
    """The part of lines that ended by preemption."""
    idle_gpu_ms: int = 0
    measured_gpu_ms: int = 0
    """GPU time whose use is known; what is idle is a part of it."""
    amount_micros: int = 0
    """Less credits; before tax and the invoice's rounding."""

    def add(self, other: "UsageGroup") -> None:
        """Adds another group's numbers to this one's."""
        self.lines += other.lines
        self.gpu_hours_nano += other.gpu_hours_nano
        self.preempted_hours_nano += other.preempted_hours_nano
        self.idle_gpu_ms += other.idle_gpu_ms
        self.measured_gpu_ms += other.measured_gpu_ms
        self.amount_micros += other.amount_micros


@dataclass(frozen=True, slots=True)
class Span:
    """A range of time, and the zone whose days it has."""

    from_ms: int
    to_ms: int
    zone: ZoneInfo


def usage_by(connection: Connection, span: Span, by: GroupBy, account: AccountId = ROOT_ACCOUNT) -> list[UsageGroup]:
    """Returns the use of an account and all below it, by key and currency. Time grows with the range's lines.

    Running jobs count to the end of the span, which the caller's clock has reached. Raises Refused (`too_large`) beyond
    MOST_GROUPS groups, StoreCorrupt when the ledger contradicts itself.
    """
    lines_of = timelines(connection, (span.from_ms, span.to_ms), span.zone, load_prices(connection), account or None)
    names = present_names(connection) if by is GroupBy.PROJECT else {}
    is_measured = has_windows(connection, span.from_ms, span.to_ms)
    groups: dict[tuple[str, str], UsageGroup] = {}
    for rated in rated_lines(connection, lines_of, account or None):
        assert is_within(rated.line.slice.segment.holder, account), "the listing keeps to the account's subtree"
        key, name = _KEYS[by](rated, names)
        currency = rated.line.book.currency if rated.line.book else None
        group = groups.get((key, currency or ""))
        if group is None:
            if len(groups) >= MOST_GROUPS:
                raise Refused(
                    RefusalCode.TOO_LARGE,
                    f"this is more than {MOST_GROUPS} rows by {by}",
                    tries=("a shorter time", "--by project"),
                )
            group = groups[key, currency or ""] = UsageGroup(key, name, currency)
        count_line(group, rated)
        if is_measured and rated.line.type is LineType.USAGE:
            _measure(connection, group, rated)
    return [groups[place] for place in sorted(groups, key=lambda place: (_order(by, place[0]), place[1]))]


def totals_of(groups: list[UsageGroup]) -> list[UsageGroup]:
    """Returns the sum of all groups by currency, in its order; use without a price comes first."""
    totals: dict[str, UsageGroup] = {}
    for group in groups:
        totals.setdefault(group.currency or "", UsageGroup("total", None, group.currency)).add(group)
    return [totals[currency] for currency in sorted(totals)]


def count_line(group: UsageGroup, rated: RatedLine) -> None:
    """Adds a line to a group, rounded as in its file."""
    group.lines += 1
    credit = credit_of(rated, WHO_PAYS)
    group.amount_micros += (rated.line.amount_micros or 0) - (0 if credit is None else credit.amount_micros)
    if rated.line.type is LineType.ENERGY:  # the same hours again, at another price
        return
    nano = divide(rated.line.slice.charged.unit_ms * 10**GPU_HOURS_DECIMALS, UNIT_MS_PER_GPU_HOUR)
    group.gpu_hours_nano += nano
    group.preempted_hours_nano += nano if rated.end_word == EndReason.PREEMPTED.value else 0


def _measure(connection: Connection, group: UsageGroup, rated: RatedLine) -> None:
    piece = rated.line.slice
    # What several tenants did on one GPU cannot be told apart by its counters.
    if not piece.segment.is_share:
        idle_ms, measured_ms = idle_sums(connection, rated.gpus, piece.from_ms, piece.to_ms)
        group.idle_gpu_ms += idle_ms
        group.measured_gpu_ms += measured_ms


Key = Callable[[RatedLine, Mapping[AccountId, str]], tuple[str, str | None]]
_KEYS: dict[GroupBy, Key] = {
    GroupBy.PROJECT: lambda rated, names: (
        rated.line.slice.segment.holder,
        names.get(rated.line.slice.segment.holder),
    ),
    GroupBy.USER: lambda rated, _: (rated.allocation.user, None),
    GroupBy.JOB: lambda rated, _: (str(rated.allocation.job), rated.allocation.job_name),
    GroupBy.GPU_MODEL: lambda rated, _: (rated.line.slice.segment.gpu_class, None),
    GroupBy.DAY: lambda rated, _: (rated.line.slice.stretch.day.isoformat(), None),
}


def _order(by: GroupBy, key: str) -> tuple[int, str]:
    return (int(key), "") if by is GroupBy.JOB else (0, key)
