"""What each route of prices and bills answers, whole: a contract with scripts, which may only gain fields.

`TURNSTILE_GOLDEN=write` writes the file anew; the diff is then for a person to judge.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from metering.keeping import KeepBudgets
from scheduler.clock import iso_utc
from scheduler.core.model import EndReason
from scheduler.executor import Ended
from scheduler.store.observations import RecordObservations
from tests.api.centre import Centre
from tests.api.conftest import Client, People
from tests.api.test_administration import DAY_MS, book

GOLDEN = Path(__file__).parent / "golden" / "money.json"
OF_TENANTS = (
    *("/v1/prices", "/v1/packages", "/v1/budgets", "/v1/usage?from=2026-09-01&to=2026-12-01", "/v1/usage/forecast"),
    *("/v1/usage?from=2026-09-01&to=2026-12-01&by=job", "/v1/billing"),
)
OF_THE_CENTRE = (
    *("/v1/prices", "/v1/packages", "/v1/admin/prices", "/v1/admin/prices/2026-09", "/v1/admin/packages"),
    *("/v1/admin/ledger/periods", "/v1/admin/ledger/unknown", "/v1/admin/ledger/incidents"),
    *("/v1/admin/ledger/verify", "/v1/billing?tenant=acme"),
)
_MADE_UP = re.compile(r"\b[0-9A-HJKMNP-TV-Z]{26}\b|\b[0-9a-f]{64}\b")
"""ULIDs and hashes differ each time."""


@pytest.fixture
def busy(centre: Centre, people: People) -> Centre:
    """A contract, a package, a fee, a budget; use that ended well, and use that a lost node ended."""
    operator = people.operator()
    terms = book(
        centre,
        zone="Asia/Shanghai",
        tax_rate="0.06",
        contracts=[{"tenant": "acme", "discount": "0.20"}, {"tenant": "zeta", "prices": {"H100": {"burst": "1.11"}}}],
        reserved=[{"account": "zeta/lab", "class": "H100", "gpus": 1, "monthly": "720"}],
    )
    assert operator.post("/v1/admin/prices", json=terms).status_code == 201
    now_ms = centre.clock.now_ms()
    sold = {"id": "q4", "tenant": "acme", "class": "H100", "gpu_hours": 10, "price": "20.00", "currency": "USD"}
    sold |= {"from": iso_utc(now_ms + 1000), "to": iso_utc(now_ms + 90 * DAY_MS)}
    assert operator.post("/v1/admin/packages", json=sold).status_code == 201
    budget = {"period": "month", "limit": {"amount": "500.00", "currency": "USD"}}
    answer = operator.request("PUT", "/v1/admin/budgets/acme", json=budget)
    assert answer.status_code == 200, answer.text
    centre.clock.advance(seconds=1)
    jobs = [people.user().submit(name=name, gpus_per_node=8, gpu_classes=["H100"]) for name in ("good", "unlucky")]
    centre.tick()
    centre.clock.advance(minutes=50)
    centre.ends(jobs[0])
    lost = Ended(centre.allocation_of(jobs[1]), centre.clock.now_ms() - 60_000, None, EndReason.NODE_LOST)
    centre.commit(RecordObservations((lost,)))
    centre.clock.advance(minutes=10)
    centre.commit(KeepBudgets(centre.admission))
    return centre


def answered(client: Client, path: str) -> Any:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return json.loads(_MADE_UP.sub("…", answer.text))


def test_each_route_of_prices_and_bills_answers_as_it_did(busy: Centre, people: People) -> None:
    people_of = {"acme": people.admin("acme"), "zeta": people.admin("zeta"), "centre": people.operator()}
    found = {
        f"{who} {path}": answered(client, path)
        for who, client in people_of.items()
        for path in (OF_THE_CENTRE if who == "centre" else OF_TENANTS)
    }
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    if os.environ.get("TURNSTILE_GOLDEN") == "write":
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text, encoding="utf-8")
    assert found == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_no_answer_to_a_tenant_names_another_or_its_terms(busy: Centre, people: People) -> None:
    for own, others in (("acme", ("zeta", "1.11", "720")), ("zeta", ("acme", "q4", "0.2", "unlucky", "500"))):
        for path in OF_TENANTS:
            text = json.dumps(answered(people.admin(own), path))
            assert not [word for word in others if word in text], (own, path)
