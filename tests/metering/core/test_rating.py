"""Costs are exact, lines are rounded to six decimals, an invoice rounds once and adds up to the last digit."""

from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from metering.core.quantity import GpuMs, Rounding
from metering.core.rating import MICROS, Line, cost, invoices_of, rate
from metering.core.tariff import PriceBook
from metering.core.usage import segments_of, slices_of, stretches_of
from scheduler.core.model import GPU_UNITS, Booking
from tests.metering.builders import DAY_MS, HOUR_MS, NOON_MS, book, holding

UTC_ZONE = ZoneInfo("UTC")


def line(
    length_ms: int = HOUR_MS,
    *,
    units: int = GPU_UNITS,
    terms: PriceBook | None = None,
    holder: str = "acme/vision",
    booking: Booking = Booking.BURST,
) -> Line:
    (segment,) = segments_of(
        [holding(from_ms=NOON_MS, to_ms=NOON_MS + length_ms, charged=units, holder=holder, booking=booking)]
    )
    books = [book() if terms is None else terms]
    (piece,) = slices_of(segment, stretches_of(NOON_MS - DAY_MS, NOON_MS + DAY_MS, UTC_ZONE, books))[:1]
    return rate(piece)


def test_a_gpu_hour_costs_its_price() -> None:
    assert line().amount_micros == 18 * MICROS


def test_charged_time_is_priced_not_held_time() -> None:
    assert line(units=4 * GPU_UNITS).amount_micros == 4 * 18 * MICROS


def test_what_has_no_price_has_no_amount_and_no_invoice() -> None:
    unpriced = line(booking=Booking.SPOT, terms=book(prices={"burst": "18"}))
    assert (unpriced.price, unpriced.amount_micros, unpriced.exact_cost) == (None, None, None)
    before_the_first_book = line(terms=book(effective_ms=NOON_MS + DAY_MS))
    assert before_the_first_book.amount_micros is None
    assert invoices_of([unpriced, before_the_first_book]) == []


@given(st.integers(1, 10**8), st.integers(1, 8 * GPU_UNITS), st.decimals(0, 1000, places=9))
def test_an_amount_is_the_exact_product_in_six_decimals(length_ms: int, units: int, price: Decimal) -> None:
    rated = line(min(length_ms, HOUR_MS), units=units, terms=book(prices={"burst": str(format(price, "f"))}))
    exact = Fraction(price) * units * min(length_ms, HOUR_MS) / (GPU_UNITS * HOUR_MS)
    assert rated.exact_cost is not None
    assert rated.exact_cost.amount == exact == cost(GpuMs(units * min(length_ms, HOUR_MS)), price)
    assert rated.amount_micros is not None
    nearest = Fraction(rated.amount_micros, MICROS)
    assert abs(nearest - exact) * 2 <= Fraction(1, MICROS)
    if (exact * MICROS).denominator == 2:
        assert rated.amount_micros % 2 == 0


LINES = st.lists(
    st.builds(
        lambda length_ms, units, holder, price: line(
            length_ms, units=units, holder=holder, terms=book(prices={"burst": price}, tax="0.06")
        ),
        st.integers(1, HOUR_MS),
        st.integers(1, 3 * GPU_UNITS),
        st.sampled_from(["acme/vision", "acme/nlp", "acme", "globex/a"]),
        st.sampled_from(["0.000001", "12.5", "17.333333", "0"]),
    ),
    max_size=30,
)


@given(LINES)
def test_lines_and_tax_and_rounding_are_the_payable_exactly(lines: list[Line]) -> None:
    invoices = invoices_of(lines)
    for invoice in invoices:
        assert invoice.subtotal_micros + invoice.tax_micros + invoice.rounding_micros == invoice.payable_micros
        assert invoice.payable_micros % (MICROS // 100) == 0
        assert abs(invoice.rounding_micros) * 200 <= MICROS
        tax = Decimal(invoice.subtotal_micros).scaleb(-6) * Decimal("0.06")
        assert Decimal(invoice.tax_micros).scaleb(-6) == tax.quantize(Decimal("0.000001"), ROUND_HALF_EVEN)
    assert sum(invoice.subtotal_micros for invoice in invoices) == sum(row.amount_micros or 0 for row in lines)
    assert sum(invoice.lines for invoice in invoices) == len(lines)
    assert invoices_of(list(reversed(lines))) == invoices


def test_an_invoice_rounds_once_and_not_each_line() -> None:
    # Three lines of 0.004: rounded one by one they would be nothing, together they are a cent.
    lines = [line(terms=book(prices={"burst": "0.004"})) for _ in range(3)]
    (invoice,) = invoices_of(lines)
    assert (invoice.subtotal_micros, invoice.rounding_micros, invoice.payable_micros) == (12_000, -2_000, 10_000)


def test_the_book_says_how_an_invoice_is_rounded() -> None:
    payable = {
        mode: invoices_of([line(terms=book(prices={"burst": "1.125"}, rounding=mode))])[0].payable_micros
        for mode in Rounding
    }
    assert payable == {
        Rounding.HALF_EVEN: 1_120_000,
        Rounding.HALF_UP: 1_130_000,
        Rounding.UP: 1_130_000,
        Rounding.DOWN: 1_120_000,
    }
    five_cents = invoices_of([line(terms=book(prices={"burst": "1.13"}, unit="0.05"))])
    assert five_cents[0].payable_micros == 1_150_000


def test_the_latest_book_rounds_whatever_order_lines_come_in() -> None:
    early = line(terms=book("v1", 0, prices={"burst": "0.001"}, rounding=Rounding.UP))
    late = line(terms=book("v2", 5, prices={"burst": "0.001"}, rounding=Rounding.DOWN))
    assert [invoice.payable_micros for invoice in invoices_of([late, early])] == [0]
    assert invoices_of([late, early]) == invoices_of([early, late])


def test_tenants_and_currencies_have_invoices_of_their_own() -> None:
    lines = [
        line(holder="acme/vision"),
        line(holder="acme/nlp"),
        line(holder="acme/nlp", terms=book(currency="USD")),
        line(holder="acme-labs/x"),
    ]
    keys = [(invoice.tenant, invoice.currency, invoice.lines) for invoice in invoices_of(lines)]
    assert keys == [("acme", "CNY", 2), ("acme", "USD", 1), ("acme-labs", "CNY", 1)]


def test_each_line_is_taxed_at_the_rate_of_its_book() -> None:
    lines = [line(terms=book("v1", tax="0.06")), line(terms=book("v2", tax="0.13"))]
    (invoice,) = invoices_of(lines)
    assert invoice.tax_micros == 18 * MICROS * 19 // 100
    assert invoice.tax_rates == (Decimal("0.06"), Decimal("0.13"))
