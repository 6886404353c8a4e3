"""Every knob of the policy: its unit, its default, and why that default. The daemon's settings fill one of these in."""

from dataclasses import dataclass

from scheduler.core.debt import HALF_LIFE_MS


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

    def backoff_ms(self, attempts: int) -> int:
        """Returns the wait after the given number of starts, in milliseconds."""
        doublings = min(max(attempts - 1, 0), 30)
        return min(self.backoff_first_ms << doublings, self.backoff_most_ms)
