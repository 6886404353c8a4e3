"""Price files: every problem with its line; drafts, comparison and publication from the command line."""

import json
import tomllib
from collections.abc import Iterator, Mapping

import pytest

from cli.fieldlines import Places
from tests.cli.conftest import Home
from tests.cli.peer import Peer, envelope, problem

FILE = """\
# prices of December
version = "2026-12"
currency = "USD"
effective = 2026-12-01T00:00:00+08:00

[rounding]
mode = "half_up"

[prices.H100]
guaranteed = "2.00"   # { not a table
burst = [
  { from_hours = 0, price = "2.50" },
  # the second tier
  { from_hours = 1000, price = "2.20" },
]

[prices."A100 80GB"]
burst = { day = "1.00", night = "0.50" }

[[contracts]]
tenant = "acme"
discount = "0.10"

[[contracts]]
tenant = "zeta"
[contracts.prices.H100]
burst = "2.10"
"""


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("version", 2),
        ("rounding.mode", 7),
        ("prices.H100", 9),
        ("prices.H100.guaranteed", 10),
        ("prices.H100.burst", 11),
        ("prices.H100.burst[0].price", 11),
        ("prices.H100.burst[1].from_hours", 11),
        ("prices.A100 80GB.burst.night", 18),
        ("contracts[0].discount", 22),
        ("contracts[1].tenant", 25),
        ("contracts[1].from", 24),
        ("contracts[1].prices.H100.burst", 27),
        ("contracts", 20),
        ("zone", None),
    ],
)
def test_a_value_of_a_toml_file_has_its_line(field: str, line: int | None) -> None:
    assert Places(FILE).line(field) == line


def paths(value: object, path: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from paths(each, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from paths(each, f"{path}[{place}]")
    else:
        yield path


def test_every_value_of_a_file_has_some_line() -> None:
    places = Places(FILE)
    assert all(places.line(path) for path in paths(tomllib.loads(FILE), ""))


def test_problems_are_told_by_line_in_the_order_of_the_file(home: Home, peer: Peer) -> None:
    (home.path / "prices.toml").write_text(FILE)
    wrong = [
        {"field": "contracts[1].prices.H100.burst", "message": "is no number"},
        {"field": "prices.H100.burst[1].from_hours", "message": "the tiers overlap"},
        {"field": "zone", "message": "is missing"},
    ]
    said = problem("invalid", 422, "the price book has 3 problems", problems=wrong)
    peer.answers("POST", "/v1/admin/price-drafts", said)
    done = home.turnstile("admin", "price", "import", "prices.toml")
    assert (done.code, done.err.splitlines()) == (
        3,
        [
            "error: prices.toml has 3 problems",
            "  zone: is missing",
            "  line 11  prices.H100.burst[1].from_hours: the tiers overlap",
            "  line 27  contracts[1].prices.H100.burst: is no number",
        ],
    )


def test_a_file_becomes_a_draft_and_a_draft_is_published(home: Home, peer: Peer) -> None:
    (home.path / "prices.toml").write_text(FILE)
    answer = envelope("PriceBook", version="2026-12", state="draft", effective_ms=0, currency="USD")
    peer.answers("POST", "/v1/admin/price-drafts", answer)
    peer.answers("POST", "/v1/admin/price-drafts/2026-12/publish", answer)
    peer.answers("DELETE", "/v1/admin/price-drafts/2026-12", answer)
    done = home.turnstile("admin", "price", "import", "prices.toml")
    assert (done.code, "is kept as a draft" in done.out) == (0, True)
    assert home.turnstile("admin", "price", "publish", "2026-12").code == 0
    assert home.turnstile("admin", "price", "publish", "2026-12", "--retroactive").code == 2
    assert home.turnstile("admin", "price", "publish", "2026-12", "--reason", "x").code == 2
    assert home.turnstile("admin", "price", "import", "prices.toml", "--allow", "anything").code == 2
    retroactive = home.turnstile("admin", "price", "publish", "2026-12", "--retroactive", "--reason", "late contract")
    assert retroactive.code == 0
    assert home.turnstile("admin", "price", "withdraw", "2026-12").code == 0


def test_a_difference_is_told_price_by_price(home: Home, peer: Peer) -> None:
    one = envelope("PriceBook", version="a", state="published", effective_ms=0, prices={"H100": {"burst": "2.5"}})
    other = envelope("PriceBook", version="b", state="draft", effective_ms=0, prices={"H100": {"spot": "1"}})
    peer.answers("GET", "/v1/admin/prices/a", one)
    peer.answers("GET", "/v1/admin/prices/b", other)
    done = home.turnstile("admin", "price", "diff", "a", "b")
    assert done.out.splitlines() == [
        "prices.H100.burst  2.5 -> -",
        "prices.H100.spot  - -> 1",
        "version  a -> b",
    ]
    found = json.loads(home.turnstile("admin", "price", "diff", "a", "b", "-o", "json").out)
    assert [each["field"] for each in found["changes"]] == ["prices.H100.burst", "prices.H100.spot", "version"]
    shown = home.turnstile("admin", "price", "show", "a")
    assert "prices.H100.burst  2.5" in shown.out.splitlines()


def test_a_package_needs_a_currency(home: Home, peer: Peer) -> None:
    peer.answers("POST", "/v1/admin/packages", envelope("Package", id="package/q4", tenant="acme"))
    words = ("admin", "package", "sell", "q4", "--tenant", "acme", "--class", "H100", "--gpu-hours", "10")
    span = ("--from", "2026-12-01T00:00:00+08:00", "--to", "2027-01-01T00:00:00+08:00")
    assert home.turnstile(*words, "--price", "100", *span).code == 2
    done = home.turnstile(*words, "--price", "100 USD", *span)
    assert done.code == 0, done.err
    (sent,) = peer.requests("POST", "/v1/admin/packages")
    assert (sent.json["price"], sent.json["currency"], sent.json["gpu_hours"]) == ("100", "USD", 10)
