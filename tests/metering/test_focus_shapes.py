"""A row that is taken for sound without asking the rules breaks none of them, whatever stands in its cells."""

from collections.abc import Iterator, Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from metering.focus_check import FocusChecker
from metering.focus_columns import FOCUS_1_2
from metering.focus_rules import REPEATING_RULES, VARYING, VARYING_RULES, Rule
from metering.focus_shapes import ACCOUNTS, CLASS, PERIODS, Shapes

HEADER = [column.name for column in FOCUS_1_2]
NUMBERS = (
    *("1.000000", "2.500000", "0.000000", "", "3600.000", "3600.002", "3600.003", "9000.000", "1.0", "-1.000000"),
    *("01.0", "1e3", "1.000000000", "1.0E-2", "²", "x"),
)
TEXTS = ("", "job/1", "none", "=1", "  ", "夜间", "null")


def row(**changes: str) -> dict[str, str]:
    usage = dict.fromkeys(HEADER, "") | {
        **dict.fromkeys(("BilledCost", "EffectiveCost", "PricingCurrencyEffectiveCost"), "1.000000"),
        **dict.fromkeys(("ListCost", "ContractedCost"), "2.500000"),
        **dict.fromkeys(("ListUnitPrice", "ContractedUnitPrice"), "2.50"),
        **dict.fromkeys(("PricingCurrencyListUnitPrice", "PricingCurrencyContractedUnitPrice"), "2.50"),
        **dict.fromkeys(("InvoiceIssuerName", "ProviderName", "PublisherName"), "Park"),
        **dict.fromkeys(("BillingCurrency", "PricingCurrency"), "CNY"),
        **dict.fromkeys(("BillingPeriodStart", "ChargePeriodStart"), "2026-11-01T00:00:00Z"),
        **dict.fromkeys(("BillingPeriodEnd", "ChargePeriodEnd"), "2026-12-01T00:00:00Z"),
        "BillingAccountId": "acme",
        "BillingAccountType": "Tenant",
        "ChargeCategory": "Usage",
        "ChargeFrequency": "Usage-Based",
        "ConsumedQuantity": "3600.000",
        "ConsumedUnit": "GPU-Seconds",
        "PricingCategory": "Standard",
        "PricingQuantity": "1.000000000",
        "PricingUnit": "GPU-Hours",
        "ResourceId": "job/1",
        "ResourceType": "GPU Job",
        "ServiceCategory": "Compute",
        "ServiceName": "GPU Compute",
        "SkuId": "gpu.h100.whole",
        "SkuPriceId": "gpu.h100.whole/1",
        "Tags": '{"a": "b"}',
    }
    return usage | changes


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        **{name: st.sampled_from(NUMBERS) for name in sorted(VARYING) if name.endswith(("Cost", "Quantity"))},
        **{name: st.sampled_from(TEXTS) for name in ("ChargeDescription", "ResourceId", "ResourceName")},
        "Tags": st.sampled_from(("", "{}", '{"a": {}}', "[", '{"a": "b"}')),
        CLASS: st.sampled_from(("", "Correction")),
        "ChargeCategory": st.sampled_from(("Usage", "Purchase", "Credit")),
        "ListUnitPrice": st.sampled_from(("", "2.50", "1.0", "0.1")),
        "ConsumedUnit": st.sampled_from(("", "GPU-Seconds")),
        "SubAccountId": st.sampled_from(("", "acme/a")),
        "SubAccountType": st.sampled_from(("", "Project")),
        "ChargePeriodEnd": st.sampled_from(("2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z")),
        "ProviderName": st.sampled_from(("Park", "Other")),
    },
)


@settings(max_examples=100, deadline=None)
@given(st.lists(CHANGES, min_size=1, max_size=12))
def test_what_shapes_hold_for_sound_no_rule_finds_broken(changes: list[dict[str, str]]) -> None:
    place = {name: at for at, name in enumerate(HEADER)}
    shapes = Shapes(FOCUS_1_2, place)
    for made in (row(), *(row(**each) for each in changes)):
        cells = [made[name] for name in HEADER]
        alone = FocusChecker(HEADER)  # has proved no shape yet, and asks every rule
        alone.row(cells)
        if shapes.holds(cells):
            assert alone.report.is_sound, alone.report.breaks
        elif alone.report.is_sound:
            shapes.learn(cells)
            has_sign = any("-" in made[name] or "E" in made[name] for name in VARYING if name.endswith("Cost"))
            assert shapes.holds(cells) or has_sign or "-" in made["ConsumedQuantity"] + made["PricingQuantity"]


class Kept(Mapping[str, str]):
    """A row of which only some columns may be read."""

    def __init__(self, columns: frozenset[str]) -> None:
        self._columns = columns

    def __getitem__(self, name: str) -> str:
        assert name in self._columns, f"reads {name}"
        return {"ChargeCategory": "Usage", "ListUnitPrice": "1.0", "PricingQuantity": "1.0"}.get(name, "")

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


def reads_only(rule: Rule, columns: frozenset[str]) -> bool:
    try:
        rule.holds(Kept(columns))
    except AssertionError:
        return False
    return True


def test_no_rule_asks_about_periods_or_accounts_and_anything_else() -> None:
    rest = frozenset(HEADER) - PERIODS - ACCOUNTS
    for rule in REPEATING_RULES:
        assert any(reads_only(rule, columns) for columns in (PERIODS | {CLASS}, ACCOUNTS, rest)), rule.id
    for rule in VARYING_RULES:
        assert reads_only(rule, rest), rule.id


def test_seconds_and_hours_may_differ_by_two_milliseconds() -> None:
    checker = FocusChecker(HEADER)
    for seconds, is_sound in (("3600.000", True), ("3600.002", True), ("3599.998", True), ("3600.003", False)):
        before = checker.report.failures
        checker.row([row(ConsumedQuantity=seconds)[name] for name in HEADER])
        assert (checker.report.failures == before) is is_sound, seconds
