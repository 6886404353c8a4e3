"""Jobs that wait for their turn, in groups, with the indexes that make a walk of the order cheap.

A group is all pending jobs of one project, one shape, one wanted booking and one time limit, in that project's order;
of one user too, where an account of the path limits what each user may hold.
Jobs of one group differ in nothing that placement, limits or backfill ask, so a tick looks at the first of a group and
at no other. The first jobs of a project's groups are kept in order too, so that it finds where to look.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from math import isqrt
from typing import NamedTuple

from sortedcontainers import SortedList

from scheduler.core.demand import Demand
from scheduler.core.model import GPU_UNITS, AccountId, BookingWanted, Job, JobId, OrderWeights, Shape, UserName, lineage

QueueKey = tuple[int, int, int]  # (-priority, rank_ms, id): a job's place inside its project


class Group(NamedTuple):
    """What pending jobs share that wait in one line."""

    account: AccountId
    shape: Shape
    wanted: BookingWanted
    time_limit_ms: int
    user: UserName | None = None
    """Named where a limit per user binds: others share their line with everybody."""


def group_of(job: Job, by_user: Collection[AccountId]) -> Group:
    """Returns the group that a job waits in when it is pending. `by_user` are the accounts with a limit per user."""
    is_own = bool(by_user) and any(account in by_user for account in lineage(job.account))
    return Group(job.account, job.shape, job.wanted, job.time_limit_ms, job.user if is_own else None)


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A group with the places of its jobs. `shape_number` stands for its shape where hashing one would cost.

    `kind` is that and the time limit: all that room asks about a job, whoever it belongs to.
    """

    group: Group
    shape_number: int
    kind: tuple[int, int]
    line: SortedList[QueueKey] = field(default_factory=SortedList)


Head = tuple[QueueKey, Row]  # the first job of a group and the group; keys are unique, so rows are never compared


def queue_key(job: Job, weights: OrderWeights) -> QueueKey:
    """Returns a job's place inside its project: priority, then submit time, then id.

    With a weight (of its project) its size comes in: each hour of it counts as so many hours of a later submission. So
    small jobs go first, and however large a job is, those that come later than its size is worth go behind it. A share
    of a GPU counts as that part of one, an elastic gang as its fewest nodes; what asks for no GPU has a limit only.
    """
    rank_ms = job.submitted_ms + weights.limit * job.time_limit_ms
    if weights.service:
        rank_ms += weights.service * job.time_limit_ms * job.shape.total_units // GPU_UNITS
    if weights.slowdown:
        rank_ms += weights.slowdown * isqrt(job.time_limit_ms**2 * job.shape.total_units // GPU_UNITS)
    return (-job.priority, rank_ms, job.id)


class Waiting:
    """Pending jobs that nothing but the planner keeps from starting."""

    def __init__(self) -> None:
        self.groups: dict[AccountId, dict[Group, Row]] = {}
        self.heads: dict[BookingWanted, dict[AccountId, SortedList[Head]]] = {each: {} for each in BookingWanted}
        """The first of each group, by wanted booking and project, in the project's order."""
        self.of_shape: dict[Shape, dict[Group, Row]] = {}
        """The same groups by their shape."""
        self.kinds: dict[BookingWanted, Counter[tuple[int, int]]] = {each: Counter() for each in BookingWanted}
        """How many groups there are of each kind (see `Row`), by wanted booking."""
        self.ages: SortedList[tuple[int, JobId]] = SortedList()
        """(submitted_ms, id) of the jobs in groups, the oldest first."""
        self.shapes: list[Shape] = []
        """Every shape that a job ever had; its place is its number."""
        self.demand = Demand()
        self.by_user: set[AccountId] = set()
        """Accounts with a limit per user, or whose users take turns. It changes while no job of theirs waits here."""
        self.by_turns: set[AccountId] = set()
        """Projects whose users take turns; all of them are in `by_user` too."""
        self.binding: set[AccountId] = set()
        """Accounts whose terms can keep a job from starting: suspended ones, and those with a limit."""
        self.yielding: set[AccountId] = set()
        """Accounts in whose projects guaranteed gangs give way to higher priority."""
        self._numbers: dict[Shape, int] = {}

    def intern(self, shape: Shape) -> Shape:
        """Returns the one object that stands for all equal shapes, and gives it a number."""
        number = self._numbers.get(shape)
        if number is None:
            self._numbers[shape] = len(self.shapes)
            self.shapes.append(shape)
            return shape
        return self.shapes[number]

    def forget_shapes(self, count: int) -> list[Shape]:
        """Forgets the shapes numbered `count` and above, of which no job is left; returns them."""
        gone = self.shapes[count:]
        del self.shapes[count:]
        for shape in gone:
            del self._numbers[shape]
        return gone

    def add(self, job: Job, key: QueueKey) -> None:
        """Puts a job into its group."""
        groups = self.groups.setdefault(job.account, {})
        group = self.group_of(job)
        row = groups.get(group)
        if row is None:
            number = self._numbers[job.shape]
            row = groups[group] = Row(group, number, (number, job.time_limit_ms))
            self.of_shape.setdefault(job.shape, {})[group] = row
            self.kinds[group.wanted][row.kind] += 1
        head = row.line[0] if row.line else None
        row.line.add(key)
        if head is None or key < head:
            self._move_head(row, head, key)
        self.ages.add((job.submitted_ms, job.id))
        self._want(job, group.user, +1)

    def remove(self, job: Job, key: QueueKey) -> None:
        """Takes a job out of its group."""
        groups = self.groups[job.account]
        group = self.group_of(job)
        row = groups[group]
        head = row.line[0]
        row.line.remove(key)
        if key == head:
            self._move_head(row, head, row.line[0] if row.line else None)
        self.ages.remove((job.submitted_ms, job.id))
        if not row.line:
            del groups[group]
            kinds = self.kinds[group.wanted]
            kinds[row.kind] -= 1
            if not kinds[row.kind]:
                del kinds[row.kind]
            alike = self.of_shape[job.shape]
            del alike[group]
            if not alike:
                del self.of_shape[job.shape]
            if not groups:
                del self.groups[job.account]
        self._want(job, group.user, -1)

    def has(self, job: Job, key: QueueKey) -> bool:
        """Tells whether a job stands in line."""
        row = self.groups.get(job.account, {}).get(self.group_of(job))
        return row is not None and key in row.line

    def group_of(self, job: Job) -> Group:
        """Returns the group that a job waits in, or would."""
        return group_of(job, self.by_user)

    def number_of(self, shape: Shape) -> int:
        """Returns the number of a shape that was interned: an order that replays of the same jobs repeat."""
        return self._numbers[shape]

    def jobs_of(self, account: AccountId) -> list[JobId]:
        """Returns the jobs that wait in one project."""
        return [JobId(key[2]) for row in self.groups.get(account, {}).values() for key in row.line]

    def lines(self) -> Iterator[tuple[Group, SortedList[QueueKey]]]:
        """Yields each group with the places of its jobs; accounts and groups in no particular order."""
        for groups in self.groups.values():
            for group, row in groups.items():
                yield group, row.line

    def facts(self) -> dict[str, object]:
        """Returns every index in values that two histories of the same jobs share, for comparison."""
        return {
            "ages": list(self.ages),
            "of_shape": {shape: set(groups) for shape, groups in self.of_shape.items()},
            "kinds": {
                (wanted, self.shapes[number], limit_ms): count
                for wanted, kinds in self.kinds.items()
                for (number, limit_ms), count in kinds.items()
            },
            "lines": {group: list(line) for group, line in self.lines()},
            "heads": {
                (wanted, account): [(key, row.group) for key, row in heads]
                for wanted, projects in self.heads.items()
                for account, heads in projects.items()
            },
        }

    def _move_head(self, row: Row, old: QueueKey | None, new: QueueKey | None) -> None:
        projects = self.heads[row.group.wanted]
        heads = projects.get(row.group.account)
        if heads is None:
            heads = projects[row.group.account] = SortedList()
        if old is not None:
            heads.remove((old, row))
        if new is not None:
            heads.add((new, row))
        if not heads:
            del projects[row.group.account]

    def _want(self, job: Job, user: UserName | None, sign: int) -> None:
        if job.wanted is not BookingWanted.SPOT:
            units = sign * job.shape.largest_units
            is_guaranteed_only = job.wanted is BookingWanted.GUARANTEED
            self.demand.add(job.account, job.shape, units, is_guaranteed_only=is_guaranteed_only, user=user)
