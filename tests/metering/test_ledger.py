"""Price books are published once and never re-price; windows of samples are stored once; admission knows prices."""

from dataclasses import replace
from decimal import Decimal

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli.daemon.migrate import head
from metering.admission import BudgetAdmission
from metering.ledger import (
    MOST_WINDOW_MS,
    GpuWindow,
    current_book,
    has_windows,
    price_books,
    sum_windows,
    windows_of,
    write_windows,
)
from metering.tables import GPU_WINDOW, PRICE_BOOK
from scheduler.admission import Admission, CostQuestion
from scheduler.core.model import GPU_UNITS, AccountId, Booking, DeviceId, GpuClass
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.database import Database, StoreError
from tests.metering.builders import HOUR_MS, NOON_MS, book
from tests.metering.centre import Centre

GPU = DeviceId("GPU-a-0")


def test_the_migrations_make_the_tables_as_the_models_say(database: Database) -> None:
    with database.read() as connection:
        inspector = sa.inspect(connection)
        for table in (PRICE_BOOK, GPU_WINDOW):
            columns = {column["name"]: column for column in inspector.get_columns(table.name)}
            assert list(columns) == [column.name for column in table.columns]
            for column in table.columns:
                assert columns[column.name]["nullable"] == column.nullable
                assert str(columns[column.name]["type"]) == str(column.type.compile(connection.dialect))
            assert inspector.get_pk_constraint(table.name)["constrained_columns"] == [
                column.name for column in table.primary_key
            ]
    assert head() >= "0002"


def test_a_published_book_is_read_back_and_in_force_from_its_time(centre: Centre) -> None:
    first, second = book("v1", NOON_MS), book("v2", NOON_MS + HOUR_MS, prices={"burst": "20"})
    centre.publish(second)
    centre.publish(first)
    with centre.read() as connection:
        assert [row.book for row in price_books(connection)] == [first, second]
        assert [row.sha256 for row in price_books(connection)] == [first.sha256, second.sha256]
        assert current_book(connection, NOON_MS - 1) is None
        assert current_book(connection, NOON_MS) == first
        assert current_book(connection, NOON_MS + HOUR_MS) == second


def test_publishing_the_same_book_again_changes_nothing(centre: Centre) -> None:
    terms = centre.publish()
    centre.clock.advance(hours=1)
    assert centre.publish() == terms
    with centre.read() as connection:
        assert len(price_books(connection)) == 1


def test_a_version_or_an_effective_time_is_taken_once(centre: Centre) -> None:
    terms = centre.publish(book("v1", NOON_MS))
    with pytest.raises(Refused, match="never change") as other_content:
        centre.publish(replace(terms, tax_rate=Decimal("0.06")))
    with pytest.raises(Refused, match=r"effective from 2026-10-31T04:00:00\.000Z too") as same_time:
        centre.publish(book("v2", NOON_MS))
    assert {other_content.value.code, same_time.value.code} == {RefusalCode.CONFLICT}


def test_the_first_book_may_price_what_ran_before_it(centre: Centre) -> None:
    centre.run(GPU)
    centre.publish(book("v1", NOON_MS))
    with centre.read() as connection:
        assert len(price_books(connection)) == 1


@pytest.mark.parametrize("is_open", [False, True])
def test_a_book_never_changes_the_price_of_use_that_has_one(centre: Centre, is_open: bool) -> None:
    centre.publish(book("v1", 0))
    if is_open:
        centre.running(centre.start(GPU))
        centre.clock.advance(hours=1)
    else:
        centre.run(GPU)
    with pytest.raises(Refused, match="H100 burst was used") as refused:
        centre.publish(book("v2", NOON_MS + HOUR_MS // 2))
    assert refused.value.code is RefusalCode.POLICY
    centre.publish(book("v3", centre.now_ms))


def test_a_book_in_the_past_is_taken_when_nothing_priced_was_used_since(centre: Centre) -> None:
    centre.publish(book("v1", 0, prices={"spot": "6"}))
    centre.run(GPU)  # burst, which has no price
    centre.publish(book("v2", NOON_MS))
    centre.clock.advance(hours=1)
    centre.publish(book("v3", NOON_MS + HOUR_MS))  # nothing ran since
    with centre.read() as connection:
        assert len(price_books(connection)) == 3


def test_the_database_refuses_to_change_a_published_book(centre: Centre) -> None:
    centre.publish()
    for statement in (PRICE_BOOK.update().values(currency="USD"), PRICE_BOOK.delete()):
        with pytest.raises(StoreError, match="append-only"), centre.database.write() as connection:
            connection.execute(statement)


def window(start_ms: int, length_ms: int = 60_000, **named: object) -> GpuWindow:
    return replace(GpuWindow(GPU, start_ms, start_ms + length_ms, length_ms), **named)  # type: ignore[arg-type]


def test_a_window_that_comes_twice_is_stored_once(database: Database) -> None:
    first = window(0, utilization_mean_ppm=500_000, energy_millijoules=7)
    with database.write() as connection:
        assert write_windows(connection, [first, window(60_000)]) == 2
        assert write_windows(connection, [replace(first, energy_millijoules=9), window(120_000)]) == 1
        assert windows_of(connection, GPU, 0, 60_000) == [first]
        assert has_windows(connection, 0, 1)
        assert not has_windows(connection, 180_000, 10**12)


@pytest.mark.parametrize(
    "broken",
    [
        window(0, 0),
        window(5, -1),
        window(0, MOST_WINDOW_MS + 1),
        window(0, coverage_ms=60_001),
        window(0, coverage_ms=-1),
    ],
)
def test_an_impossible_window_is_refused(database: Database, broken: GpuWindow) -> None:
    with pytest.raises(ValueError, match="a window lasts"), database.write() as connection:
        write_windows(connection, [broken])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 50), st.none() | st.integers(0, 1_000_000)), max_size=12),
    edges=st.tuples(st.integers(0, 300), st.integers(1, 300)),
)
def test_windows_count_by_the_part_inside(
    database: Database, lengths: list[tuple[int, int | None]], edges: tuple[int, int]
) -> None:
    windows, start_ms = [], 0
    for length_ms, ppm in lengths:
        windows.append(window(start_ms, length_ms, utilization_mean_ppm=ppm, energy_millijoules=ppm))
        start_ms += length_ms
    first_ms, last_ms = edges[0], edges[0] + edges[1]
    with database.write() as connection:
        connection.execute(GPU_WINDOW.delete())
        write_windows(connection, windows)
        sums = sum_windows(connection, [GPU], first_ms, last_ms)
    use = time = energy = 0
    for one in windows:
        inside = min(one.to_ms, last_ms) - max(one.from_ms, first_ms)
        if inside > 0 and one.utilization_mean_ppm is not None:
            use += one.utilization_mean_ppm * inside
            time += inside
            energy += one.utilization_mean_ppm * inside // (one.to_ms - one.from_ms)
    assert (sums.utilization_ppm_ms, sums.utilization_ms) == (use, time)
    assert (sums.energy_millijoules, sums.energy_ms) == (energy, time)


def question(hours: int = 10, gpus: int = 16, booking: Booking = Booking.BURST) -> CostQuestion:
    return CostQuestion(AccountId("acme/vision"), GpuClass("H100"), booking, gpus * GPU_UNITS, hours * HOUR_MS)


def test_a_quote_is_the_price_in_force_times_the_most_gpu_hours(centre: Centre) -> None:
    admission: Admission = BudgetAdmission()
    centre.publish(book("v1", NOON_MS, prices={"burst": "2.5"}))
    centre.publish(book("v2", NOON_MS + HOUR_MS, prices={"burst": "3"}))
    with centre.read() as connection:
        quote = admission.most_cost(connection, question(), NOON_MS)
        assert quote is not None
        assert (quote.most.amount, quote.most.currency) == ("400.00", "CNY")
        assert (quote.gpu_hours, quote.unit_price, quote.price_book) == ("160.000000000", "2.50", "v1")
        later = admission.most_cost(connection, question(), NOON_MS + HOUR_MS)
        assert later is not None
        assert later.most.amount == "480.00"
        assert admission.most_cost(connection, question(), NOON_MS - 1) is None
        assert admission.most_cost(connection, question(booking=Booking.SPOT), NOON_MS) is None


def test_a_quote_is_never_less_than_what_can_be_charged(centre: Centre) -> None:
    centre.publish(book("v1", NOON_MS, prices={"burst": "0.001"}))
    with centre.read() as connection:
        quote = BudgetAdmission().most_cost(connection, question(hours=1, gpus=1), NOON_MS)
    assert quote is not None
    assert quote.most.amount == "0.01"


def test_a_stored_body_that_is_no_price_book_is_refused_not_guessed(centre: Centre) -> None:
    centre.publish()
    with centre.database.write() as connection:
        connection.exec_driver_sql("DROP TRIGGER price_book_no_update")
        connection.execute(PRICE_BOOK.update().values(body={"version": "x"}))
    with pytest.raises(Refused, match="price book has"), centre.read() as connection:
        current_book(connection, NOON_MS)
