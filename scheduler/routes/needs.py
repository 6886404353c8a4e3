"""What the routes need of the controller, and the settings of the API."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from scheduler.clock import Clock
from scheduler.core.model import AllocationId
from scheduler.core.plan import Plan
from scheduler.core.policy import Policy
from scheduler.core.state import ClusterState
from scheduler.executor import Enterable, LogChunk
from scheduler.store.database import Database
from scheduler.store.write import Command
from scheduler.wire.fitting import Offer
from scheduler.wire.submission import SubmissionRules

T = TypeVar("T")


class Controller(Protocol):
    """The controller as routes see it. Every method may be called from any thread."""

    @property
    def offers(self) -> Sequence[Offer]:
        """The sizes of node that exist; replaced as a whole when nodes change."""
        ...

    @property
    def is_leading(self) -> bool:
        """True while this daemon may write."""
        ...

    @property
    def leader_url(self) -> str | None:
        """Where the leader answers; None when it is not known. Reads the store."""
        ...

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        ...

    @property
    def clock(self) -> Clock:
        """The ledger's clock."""
        ...

    @property
    def database(self) -> Database:
        """The store, for reads."""
        ...

    def carry_out(self, command: Command[T]) -> Future[T]:
        """Commits a command with others. The future fails with Refused, StoreUnavailable or Fenced; Refused is raised
        at once when too many wait (`too_many`) or this daemon does not lead (`unavailable`)."""
        ...

    def ask(self, question: Callable[[ClusterState, Plan], T]) -> Future[T]:
        """Answers a question from the state between two ticks. The question must be quick and change nothing.
        Raises Refused (`unavailable`) where no state is: this daemon does not lead."""
        ...

    def logs(self, allocation: AllocationId, node_rank: int, offset: int, limit_bytes: int) -> LogChunk:
        """Returns bytes of a rank's log. Raises KeyError when there is none, ExecutorError."""
        ...

    @property
    def entrance(self) -> Enterable | None:
        """The way into running jobs; None where the executor offers none."""
        ...

    def health(self) -> list[str]:
        """Returns what is wrong, in words; empty when all is well."""
        ...

    def on_change(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Calls `listener`, which must be quick and never raise, after every applied batch; returns how to stop."""
        ...


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """What the API allows. Sizes in bytes, times in seconds."""

    version: str
    most_body_bytes: int = 1 << 20
    """Of a request: 50,000 job ids are half of it, the largest command an eighth."""
    requests_per_second: float = 300.0
    """Of one token, sustained. A third of what one core answers, so that one clumsy client leaves room for others."""
    requests_burst: int = 3000
    """What a token may send at once after a rest: a script that submits a sweep."""
    failed_logins_per_second: float = 5.0
    failed_logins_burst: int = 50
    """Of one client address without a valid token: each costs a look-up."""
    read_threads: int = 8
    """Queries at once: as many as the database keeps connections for."""
    most_reads_waiting: int = 512
    """Beyond it a query is refused with `too_many`: they are milliseconds each, so it is about a second's work."""
    aside_threads: int = 4
    """For what may block and is no query: logs, health, rendering metrics."""
    most_streams: int = 256
    """Log streams open at once: each polls its log once a second when it is quiet."""
    most_streams_per_token: int = 32
    most_guests: int = 128
    """Programs and terminals inside jobs at once, over this daemon."""
    most_guests_per_token: int = 16
    most_tunnels: int = 1024
    """Connections to jobs' ports at once; a browser on a notebook opens a dozen."""
    most_tunnels_per_token: int = 128
    most_waits: int = 10_000
    """Long polls open at once. All of them together cost one query a change, at most 20 a second."""
    most_waits_per_token: int = 1000
    longest_wait_seconds: int = 60
    """Of a long poll: less than the idle timeouts of common proxies."""
    is_metrics_open: bool = False
    """Whether `/metrics` answers those who are neither on this machine nor operators. Off: it names tenants."""
    rules: SubmissionRules = field(default_factory=SubmissionRules)
