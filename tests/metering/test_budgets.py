"""Budgets end to end on the store: refusals, holds, charges, extensions, stops. H100 burst costs 18 CNY an hour."""

import pytest

from metering.budgets import end_budget, set_budget
from metering.core.budget import Budget, BudgetKind
from metering.core.journal import Ledger
from metering.journal import balance_below, charged_lines, folded_balances, kept_balances
from metering.verify import verify
from scheduler.core.events import HeadroomChanged, HoldPriced
from scheduler.core.model import AccountId, EndReason
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.database import Database
from scheduler.store.history_tables import JOB_EVENT
from scheduler.store.tables import JOB
from tests.metering.builders import HOUR_MS, book
from tests.metering.purse import ACME, MICROS, VISION, PurseCentre


@pytest.fixture
def purse(database: Database) -> PurseCentre:
    made = PurseCentre(database)
    made.tenant("acme/vision")
    made.tenant("acme/nlp")
    made.tenant("globex/nlp")
    made.node("a")
    made.node("b")
    made.publish()
    return made


def owed(purse: PurseCentre, account: AccountId = ACME) -> int:
    """What a tenant owes: its receivable less what is set aside out of it, in micro-units."""
    with purse.read() as connection:
        receivable = balance_below(connection, Ledger.RECEIVABLE, account, "CNY")
        return receivable + balance_below(connection, Ledger.HOLD, account, "CNY")


def test_a_submission_that_may_cost_more_than_is_left_is_refused_with_the_longest_limit_that_fits(
    purse: PurseCentre,
) -> None:
    purse.budget("acme/vision", 100)
    with pytest.raises(Refused) as refused:
        purse.submit(hours=10)
    assert refused.value.code is RefusalCode.OVER_BUDGET
    assert str(refused.value) == ("may cost 180.00 CNY, but project acme/vision has 100.00 left until 1 November")
    assert refused.value.tries[0] == "-t 333m (99.90)"
    assert len(purse.submit(hours=5.5)) == 1
    assert len(purse.submit(hours=10, account="acme/nlp")) == 1


def test_all_elements_of_an_array_count(purse: PurseCentre) -> None:
    purse.budget("acme", 100)
    with pytest.raises(Refused, match=r"may cost 108\.00 CNY, but tenant acme has 100\.00 left"):
        purse.submit(hours=1, count=6)
    assert len(purse.submit(hours=1, count=5)) == 5


def test_a_soft_budget_only_warns(purse: PurseCentre) -> None:
    purse.budget("acme/vision", 10, is_hard=False)
    (job,) = purse.submit(hours=10)
    with purse.read() as connection:
        found = connection.execute(JOB_EVENT.select().where(JOB_EVENT.c.kind == "budget")).one()
    assert found.job_id == job
    assert "soft budget of acme/vision has 10.00 CNY left" in found.detail["warning"]
    assert not isinstance(purse.try_start(job), str) or purse.left("acme/vision") == 10 * MICROS


def test_a_start_sets_an_hour_and_its_grace_aside_and_tells_the_planner(purse: PurseCentre) -> None:
    purse.budget("acme", 100)
    (job,) = purse.submit(hours=5, grace=60)
    purse.try_start(job)
    assert purse.left("acme") == 100 * MICROS - 18_300_000
    assert [event.micros for event in purse.events if isinstance(event, HoldPriced)] == [18 * MICROS]
    assert [event for event in purse.events if isinstance(event, HeadroomChanged)] == [
        HeadroomChanged(purse.now_ms, ACME, 81_700_000)
    ]
    assert owed(purse) == 0


def test_a_start_for_which_there_is_too_little_is_rejected_and_writes_nothing(purse: PurseCentre) -> None:
    purse.budget("acme", 30)
    first, second = (*purse.submit(hours=1), *purse.submit(hours=1))
    purse.try_start(first)
    left = purse.left("acme")
    assert purse.try_start(second, "GPU-a-1") == "acme has 11.85 CNY left, and 18.00 are to be set aside"
    assert purse.left("acme") == left
    assert HeadroomChanged(purse.now_ms, ACME, left) in purse.events
    assert [event.micros for event in purse.events if isinstance(event, HoldPriced)] == [18 * MICROS]


def test_what_was_used_is_charged_to_the_line_and_the_rest_is_let_go(purse: PurseCentre) -> None:
    purse.budget("acme/vision", 100)
    gang = purse.run_job(hours=3)
    purse.clock.advance(minutes=30)
    purse.end(gang)
    kept = purse.keep()
    assert (kept.settled, kept.looked_at) == (1, 1)
    assert purse.left("acme/vision") == 91 * MICROS
    assert owed(purse) == 9 * MICROS
    with purse.read() as connection:
        assert verify(connection, purse.now_ms).is_proved
        (line,) = charged_lines(connection, [gang])[gang].values()
        assert line.micros == 9 * MICROS
        assert kept_balances(connection) == folded_balances(connection)
        assert balance_below(connection, Ledger.HOLD, AccountId(""), "CNY") == 0
    assert purse.keep().looked_at == 0


def test_a_long_gang_is_charged_as_it_runs_and_has_more_set_aside_in_time(purse: PurseCentre) -> None:
    purse.budget("acme", 1000)
    gang = purse.run_job(hours=24)
    for _ in range(40):
        purse.clock.advance(minutes=10)
        purse.keep()
        with purse.read() as connection:
            assert -balance_below(connection, Ledger.HOLD, ACME, "CNY") >= 18 * MICROS // 6
    purse.end(gang)
    purse.keep()
    assert 1000 * MICROS - purse.left("acme") == 400 * 300_000
    assert owed(purse) == 120 * MICROS


def test_a_gang_for_which_there_is_no_more_is_warned_and_stopped_before_its_money_ends(purse: PurseCentre) -> None:
    purse.budget("acme", 50)
    (job,) = purse.submit(hours=2.5)
    gang = purse.try_start(job)
    purse.running(gang)  # type: ignore[arg-type]
    purse.budget("acme", 27)
    stopped: list[int] = []
    for minute in range(1, 120):
        purse.clock.advance(minutes=1)
        if purse.keep().stopped:
            stopped.append(minute)
            break
    assert 80 <= stopped[0] <= 89
    with purse.read() as connection:
        assert connection.execute(JOB.select().where(JOB.c.id == job)).one().state == "stopping"
        kinds = [row.kind for row in connection.execute(JOB_EVENT.select().where(JOB_EVENT.c.job_id == job))]
    assert kinds.count("budget100") == 1
    purse.clock.advance(seconds=30)
    purse.end(gang, EndReason.BUDGET_STOP)  # type: ignore[arg-type]
    purse.keep()
    assert 0 <= purse.left("acme") < 2 * MICROS


def test_a_top_up_saves_a_gang_that_was_warned(purse: PurseCentre) -> None:
    purse.budget("acme", 60)
    gang = purse.run_job(hours=3)
    purse.budget("acme", 20)
    purse.clock.advance(minutes=50)
    assert not purse.keep().stopped
    purse.top_up("acme", 100)
    assert purse.left("acme") > 99 * MICROS
    for _ in range(12):
        purse.clock.advance(minutes=10)
        assert not purse.keep().stopped
    purse.end(gang)


def test_a_top_up_of_a_monthly_limit_is_gone_with_the_month(purse: PurseCentre) -> None:
    purse.budget("acme", 100)
    purse.top_up("acme", 50)
    assert purse.left("acme") == 150 * MICROS
    purse.clock.advance(hours=24)  # into November
    assert purse.left("acme") == 100 * MICROS


def test_money_paid_ahead_is_used_up_and_never_resets(purse: PurseCentre) -> None:
    purse.budget("acme", kind=BudgetKind.PREPAID)
    with pytest.raises(Refused, match=r"tenant acme has 0\.00 left$"):
        purse.submit(hours=1)
    purse.top_up("acme", 100)
    gang = purse.run_job(hours=2)
    purse.clock.advance(hours=1)
    purse.end(gang)
    purse.keep()
    purse.clock.advance(hours=24)
    assert purse.left("acme") == 82 * MICROS
    with purse.read() as connection:
        assert balance_below(connection, Ledger.PREPAID, ACME, "CNY") == -82 * MICROS
        assert balance_below(connection, Ledger.RECEIVABLE, ACME, "CNY") == 100 * MICROS
        assert balance_below(connection, Ledger.REVENUE, ACME, "CNY") == -18 * MICROS


def test_an_overdraft_may_be_used_and_no_more(purse: PurseCentre) -> None:
    purse.budget("acme", 10, overdraft_micros=8 * MICROS)
    assert len(purse.submit(hours=1)) == 1
    with pytest.raises(Refused):
        purse.submit(hours=1.1)


def test_a_tenants_budget_binds_its_projects_and_a_projects_its_own_jobs(purse: PurseCentre) -> None:
    purse.budget("acme", 40)
    purse.budget("acme/nlp", 20)
    with pytest.raises(Refused, match="project acme/nlp has"):
        purse.submit(hours=2, account="acme/nlp")
    purse.run_job(hours=1, account="acme/nlp")
    with pytest.raises(Refused, match="tenant acme has 21"):
        purse.submit(hours=2)
    assert purse.left("acme") == 40 * MICROS - 18_150_000
    assert purse.left("acme/nlp") == 20 * MICROS - 18_150_000


def test_an_earlier_end_that_is_learned_later_gives_back_what_was_charged(purse: PurseCentre) -> None:
    purse.budget("acme", 100)
    gang = purse.run_job(hours=3)
    purse.clock.advance(minutes=50)
    purse.keep()
    assert owed(purse) == 15 * MICROS
    purse.clock.advance(minutes=10)
    purse.end(gang, EndReason.NODE_LOST, ago_ms=30 * 60_000)
    purse.keep()
    assert owed(purse) == 9 * MICROS
    assert purse.left("acme") == 91 * MICROS


def test_accounts_without_a_budget_are_charged_without_a_hold(purse: PurseCentre) -> None:
    gang = purse.run_job(hours=5, account="globex/nlp")
    assert not [event for event in purse.events if isinstance(event, HeadroomChanged | HoldPriced)]
    purse.clock.advance(hours=2)
    purse.keep()
    assert owed(purse, AccountId("globex")) == 36 * MICROS
    purse.end(gang)
    purse.keep()
    assert owed(purse, AccountId("globex")) == 36 * MICROS


def test_what_costs_nothing_needs_no_money(purse: PurseCentre) -> None:
    purse.publish(book("free", purse.now_ms + 1, prices={"burst": "0"}))
    purse.clock.advance(seconds=1)
    purse.budget("acme", 0)
    gang = purse.run_job(hours=5)
    purse.clock.advance(hours=2)
    assert not purse.keep().stopped
    purse.end(gang)
    purse.keep()
    assert owed(purse) == 0


def test_a_job_may_not_cost_more_than_its_owner_said_even_when_prices_rise(purse: PurseCentre) -> None:
    with pytest.raises(Refused, match=r"may cost 180\.00 CNY, but --max-cost allows 100 CNY"):
        purse.submit(hours=10, max_cost="100")
    gang = purse.run_job(hours=5, max_cost="90")
    purse.clock.advance(minutes=10)
    purse.publish(book("dear", purse.now_ms, prices={"burst": "180"}))
    stops: list[str] = []
    for _ in range(60):
        purse.clock.advance(minutes=1)
        stops += purse.keep().stopped
        if stops:
            break
    assert stops == [gang]
    purse.clock.advance(seconds=30)
    purse.end(gang, EndReason.BUDGET_STOP)
    purse.keep()
    assert 80 * MICROS < owed(purse) <= 90 * MICROS


def test_use_before_a_budget_was_set_counts_in_its_period(purse: PurseCentre) -> None:
    purse.end(purse.run_job(hours=2))
    gang = purse.run_job(hours=2)
    purse.clock.advance(hours=1)
    purse.end(gang)
    purse.keep()
    purse.budget("acme", 100)
    assert purse.left("acme") == 82 * MICROS
    with purse.database.write() as connection:
        assert end_budget(connection, ACME, purse.now_ms, "ops")
        assert not end_budget(connection, ACME, purse.now_ms, "ops")
    purse.keep(is_whole=True)


def test_a_budget_that_is_used_up_to_80_percent_is_told_once_in_its_period(purse: PurseCentre) -> None:
    purse.budget("acme", 20)
    gang = purse.run_job(hours=1)
    assert [(notice.account, notice.percent) for notice in purse.keep(is_whole=True).notices] == [(ACME, 80)]
    assert purse.keep(is_whole=True).notices == ()
    purse.end(gang)
    purse.keep()


def test_a_fixed_budget_is_for_its_time_only(purse: PurseCentre) -> None:
    from_ms = purse.now_ms + HOUR_MS
    purse.budget("acme/vision", 100, kind=BudgetKind.FIXED, from_ms=from_ms, to_ms=from_ms + HOUR_MS)
    assert purse.left("acme/vision") == 0
    purse.clock.advance(hours=1)
    assert purse.left("acme/vision") == 100 * MICROS
    purse.clock.advance(hours=1)
    assert purse.left("acme/vision") == 0
    assert VISION == "acme/vision"


def test_a_longer_limit_of_what_runs_needs_the_money_for_it_and_sets_it_aside(purse: PurseCentre) -> None:
    purse.budget("acme", 100)
    (job,) = purse.submit(hours=0.5)
    gang = purse.try_start(job)
    purse.running(gang)  # type: ignore[arg-type]
    left = purse.left("acme")
    with pytest.raises(Refused) as refused:
        purse.give(job, hours=10)
    assert refused.value.code is RefusalCode.OVER_BUDGET
    assert refused.value.message.startswith(f"job {job} may cost 170.85 CNY more, but tenant acme has 90.85 left until")
    purse.give(job, hours=5)
    purse.keep()
    assert left - purse.left("acme") == 9 * MICROS, "the hold grew from half an hour to one"


def test_a_longer_limit_may_not_pass_what_the_jobs_owner_lets_it_cost(purse: PurseCentre) -> None:
    (job,) = purse.submit(hours=1, max_cost="20")
    purse.running(purse.try_start(job))  # type: ignore[arg-type]
    with pytest.raises(Refused, match=r"its --max-cost leaves"):
        purse.give(job, hours=3)


def test_a_budget_in_another_currency_than_prices_is_told_and_its_jobs_wait_without_being_tried_again(
    database: Database,
) -> None:
    """It could be set before the first price book, which was then published in another currency."""
    centre = PurseCentre(database)
    centre.tenant("acme/vision")
    centre.node("a")
    (early,) = centre.submit()
    dollars = Budget(ACME, BudgetKind.MONTH, "USD", "Asia/Shanghai", 10**12)
    with centre.database.write() as connection:
        set_budget(connection, dollars, centre.now_ms, "ops")
    centre.publish()
    with pytest.raises(Refused, match="the budget of tenant acme is in USD, which pays for nothing here") as refused:
        centre.submit()
    assert refused.value.tries == ("ask a tenant admin or the operator for a budget in CNY",)
    assert centre.try_start(early) == "acme has 0.00 USD left, and 18.00 are to be set aside"
    told = [event for event in centre.events if isinstance(event, HeadroomChanged)]
    assert [(event.account, event.left_micros) for event in told] == [(ACME, 0)], (
        "the planner knows that it need not try"
    )
    centre.budget("acme", 10_000)
    assert "left" not in centre.try_start(early)
