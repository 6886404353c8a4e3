"""Every knob of the policy: its unit, its default, and why that default. The daemon's settings fill one of these in."""

from dataclasses import dataclass
from enum import StrEnum

from scheduler.core.debt import HALF_LIFE_MS


class QueueOrder(StrEnum):
    """Who is considered next. `fair` is the product's; the others are the literature's, for comparison.

    `finish-time`: whoever has as much left as the whole backlog takes goes first, for all would end later for it
    (McNaughton, Management Science 6(1), 1959); the others by submit time and `finish_stretch` times what is left.
    """

    FAIR = "fair"
    FIFO = "fifo"
    SJF = "sjf"
    LEAST_SERVICE = "least-service"
    SRTF = "srtf"
    FINISH_TIME = "finish-time"


class Backfill(StrEnum):
    """Who may pass a job that cannot start: nobody, those that delay no promise to the first, or to any.

    `easy-before` is what RLScheduler simulates under the name of EASY (Zhang et al., SC 2020): one promise, and others
    pass, first come first, only if they end before it.
    """

    NONE = "none"
    EASY = "easy"
    EASY_BEFORE = "easy-before"
    CONSERVATIVE = "conservative"


class Placement(StrEnum):
    """Where a gang goes of the places that hold it."""

    BEST_FIT = "best-fit"
    FGD = "fgd"
    RANDOM = "random"


class Preemption(StrEnum):
    """Who may take whose place: nobody; a guarantee what is beyond others'; or also whoever has less than its share."""

    OFF = "off"
    GUARANTEE = "guarantee"
    FAIR = "fair"


@dataclass(frozen=True, slots=True)
class Policy:
    """The knobs that the core reads. Immutable: a change of policy is a new value, seen by the next tick."""

    most_attempts: int = 16
    """Starts of one job before it is failed for good. Node losses do not count against a job's retries, so something
    else must end a job that kills every node it touches; 16 outlives any plausible run of bad luck."""

    backoff_first_ms: int = 10_000
    """Wait before the second start after a failure; doubles each time. Long enough for a node's drain to be seen."""

    backoff_most_ms: int = 600_000
    """The longest such wait. Ten minutes is what a person who watches a queue tolerates."""

    most_starts_per_tick: int = 4096
    """Starts in one plan. Bounds the transaction that commits them; what is left starts in the next tick, at once."""

    default_grace_ms: int = 30_000
    """Between SIGTERM and SIGKILL where the job names none: Kubernetes' and Slurm's customary half minute."""

    debt_half_life_ms: int = HALF_LIFE_MS
    """In which an account's debt halves. A day: see `debt.HALF_LIFE_MS`. The state is made with the same value."""

    order: QueueOrder = QueueOrder.FAIR
    """The queue order. Only replays choose another."""

    backfill: Backfill = Backfill.EASY
    """`easy` promises a start to the first jobs of the order only: the more promises, the fewer holes are left to fill
    (Mu'alem and Feitelson, IEEE TPDS 12(6), 2001)."""

    placement: Placement = Placement.BEST_FIT
    """Best fit keeps whole nodes free. `fgd` weighs what a placement breaks up against the recent mix of jobs, which
    pays where jobs share GPUs; `random` is for comparison."""

    topology_labels: tuple[str, ...] = ()
    """Node labels that say what is near, the nearest first, such as rack and spine: a gang of several nodes goes into
    the lowest level that holds it. None by default, for only the centre knows its labels."""

    seed: int = 0
    """For placement at random."""

    finish_stretch: int = 4
    """Under the order `finish-time`, the hours that a job may take to finish for each hour of work: whoever is nearest
    to that goes first. On the Shockwave trace the worst finish-time ratio is below 1 with 2 as with 4."""

    promised_jobs: int = 1
    """First blocked jobs of the order, in each GPU class, that get a promised start under `easy` backfill. More
    promises leave fewer holes: on the Philly trace (160 nodes, shortest limit first) two made the mean wait 7 % longer
    than one, four 20 %."""

    keeps_first_promises: bool = True
    """False: under `easy` the first of the order are promised a start anew in each tick, as textbooks do, so that a job
    that comes before them may put them off. Promises to jobs that waited too long are kept all the same."""

    promise_after_ms: int | None = 129_600_000
    """Jobs that waited longer than this get a promised start too, wherever the order has them, and nodes are emptied
    for it; None: never. 36 hours: on the Philly trace 24 made the mean wait 9 % longer and 48 the worst tenant's
    slowdown 40 % worse."""

    promised_old_jobs: int = 32
    """The most such promises in a class, so that a backlog of many days leaves backfill its holes and a tick its cost.
    The oldest come first, so every job's turn comes."""

    most_promises: int = 1000
    """The most promised starts in a class under `conservative` backfill, where every waiting job has one."""

    preemption: Preemption = Preemption.FAIR
    """`guarantee`: a job that fits its guarantee may take burst and spot. `fair`: besides, a burst job may take spot,
    and burst of accounts over their target while its own stays within; and within a project the higher priority the
    lower. On by default: what was bought is worth nothing if it is had only when others finish."""

    min_run_ms: int = 600_000
    """How long a gang runs at least before it is stopped for another that has no guarantee. Ten minutes, the epoch of
    the effective weights: shorter, and gangs would start and stop within one and the same division."""

    guarantee_overrides_min_run: bool = True
    """Whether a guarantee may take what runs for less long; the ledger then credits what was used in vain."""

    weigh_every_ms: int = 10_000
    """Between two looks at who, without a guarantee, may take whose place in a class. The targets of 400 accounts cost
    10 ms: once in ten seconds that is nothing, and nobody who waits for minutes notices."""

    most_evictions: int = 20
    """Gangs of a class stopped within `eviction_window_ms`, guarantees apart, from which on no more are: what the alert
    on storms takes for one. The last gang admitted may exceed it, so that a large one is not shut out."""

    eviction_window_ms: int = 600_000
    """See `most_evictions`; at most a day. Ten minutes, as `min_run_ms`."""

    preemption_attempts: int = 4
    """First blocked jobs of the order, in a tick, for which it is sought whom to stop. Each may cost a look at all that
    runs in its class; those behind them have their turn in a later tick."""

    claim_timeout_ms: int = 600_000
    """After which freed GPUs are given to others if their job could not start. Ten minutes is longer than any customary
    grace: whatever has not ended by then has lost its node."""

    def backoff_ms(self, attempts: int) -> int:
        """Returns the wait after the given number of starts, in milliseconds."""
        doublings = min(max(attempts - 1, 0), 30)
        return min(self.backoff_first_ms << doublings, self.backoff_most_ms)
