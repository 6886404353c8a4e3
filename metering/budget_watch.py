"""Money for Prometheus: how much of each tenant's budget is used up, and whether the journal adds up.

Looked at on the daemon's own time and told at scrape time; reads balances, not the journal, whose every entry
`ledger verify` proves. A view, never the bill.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from metering.budgets import standings
from metering.journal import kept_balances
from scheduler.core.model import AccountId, tenant_of
from scheduler.store.database import Database

MICROS = 1_000_000


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the last look found."""

    used_permille: dict[AccountId, int] = field(default_factory=dict)
    overdrawn: int = 0
    """Hard budgets with less left than nothing."""
    wrong_micros: int = 0
    """By how much the balances of a currency miss zero together, over all currencies."""


class BudgetWatch:
    """Reads budgets and the journal's sums at each `look`. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._seen: _Seen | None = None

    @property
    def seen(self) -> _Seen | None:
        """What the last look found; None before it, and while another daemon leads."""
        with self._lock:
            return self._seen

    def look(self, now_ms: int) -> None:
        """Looks anew. Raises StoreError."""
        with self._database.read() as connection:
            found = standings(connection, now_ms)
            sums: Counter[str] = Counter()
            for (_, _, currency), micros in kept_balances(connection).items():
                sums[currency] += micros
        overdrawn = sum(1 for each in found.values() if each.budget.is_hard and each.period and each.left_micros < 0)
        # A label per project would be a label per user's whim: tenants are the centre's own.
        used = {account: each.used_permille for account, each in found.items() if account == tenant_of(account)}
        with self._lock:
            self._seen = _Seen(used, overdrawn, sum(map(abs, sums.values())))

    def forget(self) -> None:
        """Says nothing until the next look: this daemon does not lead."""
        with self._lock:
            self._seen = None


class BudgetCollector(Collector):
    """Shows what a BudgetWatch saw."""

    def __init__(self, watch: BudgetWatch) -> None:
        self._watch = watch

    def describe(self) -> Iterable[Metric]:
        """Returns the families without series, so that registering reads nothing and doubles are refused."""
        return _families()

    def collect(self) -> Iterator[Metric]:
        """Returns the families with the values of the last look."""
        used, overdrawn, imbalance = _families()
        seen = self._watch.seen
        if seen is not None:
            for tenant, permille in seen.used_permille.items():
                used.add_metric((tenant,), permille / 1000)
            overdrawn.add_metric((), seen.overdrawn)
            imbalance.add_metric((), seen.wrong_micros / MICROS)
        yield from (used, overdrawn, imbalance)


def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
    used = GaugeMetricFamily(
        "turnstile_tenant_budget_used_ratio",
        "Part of a tenant's budget that is charged or set aside, in its present period.",
        labels=("tenant",),
    )
    overdrawn = GaugeMetricFamily(
        "turnstile_budgets_overdrawn", "Hard budgets with less left than their overdraft allows. 0 unless one was cut."
    )
    imbalance = GaugeMetricFamily(
        "turnstile_journal_imbalance",
        "Money by which the balances of all ledgers together miss zero. Must be 0.",
    )
    return used, overdrawn, imbalance
