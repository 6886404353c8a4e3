"""Answers about quotas, budgets, use, bills, prices, secrets and notices, in the shapes of docs/api.md."""

from typing import Any

from tests.cli.peer import Json, Peer, envelope, page


def amount(digits: str) -> Json:
    """An amount of money as the API writes it."""
    return {"amount": digits, "currency": "USD"}


QUOTA_ROW: Json = {
    "account": "acme/nlp",
    "gpu_model": "H100",
    "guarantee": 32,
    "guarantee_bought": 32,
    "limit": 128,
    "held": 40,
    "held_guaranteed": 32,
    "held_burst": 8,
    "held_spot": 0,
    "demand": 104,
    "target": 36,
    "is_over_target": True,
    "debt_credits": "1250.40",
    "weight": 2,
    "effective_weight": "1.6000",
    "user_limit": 16,
    "running_jobs": 5,
    "running_limit": 200,
    "waiting_jobs": 3,
    "pending_limit": None,
}
BUDGET_ROW: Json = {
    "account": "acme/nlp",
    "period": "month",
    "is_hard": True,
    "paid": amount("8841.00"),
    "used": amount("4531.03"),
    "held": amount("80.00"),
    "left": amount("4229.97"),
    "overdraft": amount("0.00"),
    "used_ratio": 0.52,
    "period_begins_at": "2026-10-31T16:00:00Z",
    "period_ends_at": "2026-11-30T16:00:00Z",
    "zone": "Asia/Shanghai",
}


def used(key: str, hours: str, idle: str | None, cost: str, **more: Any) -> Json:
    """A row of `usage`."""
    found: Json = {
        "key": key,
        "name": None,
        "lines": 3,
        "gpu_hours": hours,
        "preempted_gpu_hours": "12.000000000",
        "measured_gpu_hours": hours if idle else "0.000000000",
        "idle_gpu_hours": idle,
        "idle_percent": 5 if idle else None,
        "cost": amount(cost),
    }
    return found | more


USAGE = page(
    "UsageList",
    [
        used("acme/nlp", "1812.412345678", "96.200000000", "4531.030864"),
        used("acme/vision", "463.700000000", None, "1159.25"),
    ],
    totals=[used("total", "2276.112345678", "96.200000000", "5690.280864")],
    **{"from": "2026-11-01T00:00:00Z", "to": "2026-11-23T12:31:07Z", "zone": "UTC", "by": "project"},
)
FORECAST_ROW: Json = {
    "account": "acme/nlp",
    "so_far": amount("4531.030864"),
    "low": amount("8120.200000"),
    "high": amount("8900.400000"),
    "until": "2026-12-01T00:00:00Z",
    "days": 7,
}
BILL: Json = {
    "period": "2026-10",
    "status": "closed",
    "from": "2026-09-30T16:00:00Z",
    "to": "2026-10-31T16:00:00Z",
    "zone": "Asia/Shanghai",
    "is_draft": False,
    "has_charges": True,
    "closed_at": "2026-11-04T00:00:00Z",
    "manifest_sha256": "ab" * 32,
}
BOOK: Json = envelope(
    "PriceBook",
    version="2026-12",
    state="draft",
    effective_ms=1796054400000,
    currency="USD",
    prices={"H100": {"burst": "2.50"}},
)
PACKAGE: Json = {
    "id": "package/acme-q4",
    "tenant": "acme",
    "class": "H100",
    "gpu_hours": "10000.000000000",
    "left_gpu_hours": "8120.500000000",
    "price": amount("90000.00"),
    "from": "2026-12-01T00:00:00Z",
    "to": "2027-04-01T00:00:00Z",
}
SECRET: Json = {"name": "HF_TOKEN", "account": "acme/nlp", "updated_at": "2026-11-20T08:00:00Z", "updated_by": "mei"}
DELIVERY: Json = {
    "id": "01JDD",
    "made_at": "2026-11-23T12:00:00Z",
    "event": "end",
    "job_id": 10431,
    "channel": "webhook",
    "tries": 2,
    "done_at": None,
    "error": "the server answered 502",
}
TARGET: Json = {"webhook": "https://hooks.acme.example/t", "email": None, "events": ["end", "preempt"]}
CHANGES: list[Json] = [
    {
        "section": "accounts",
        "change": "change",
        "id": "acme",
        "fields": [{"name": "guarantee.H100", "before": 16, "after": 32}],
        "note": None,
    }
]


def money(peer: Peer) -> None:
    """Lets a peer answer what the small centre says of money, secrets and notices."""
    peer.answers("GET", "/v1/quota", page("QuotaList", [QUOTA_ROW]))
    peer.answers("GET", "/v1/budgets", page("BudgetList", [BUDGET_ROW]))
    peer.answers("PUT", "/v1/admin/budgets/acme/nlp", envelope("Budget", **BUDGET_ROW))
    peer.answers("POST", "/v1/admin/budgets/acme/nlp/topup", envelope("Budget", **BUDGET_ROW))
    peer.answers("DELETE", "/v1/admin/budgets/acme/nlp", envelope("BudgetEnded", account="acme/nlp"))
    peer.answers("GET", "/v1/usage", USAGE)
    total = FORECAST_ROW | {"account": None}
    peer.answers("GET", "/v1/usage/forecast", page("ForecastList", [FORECAST_ROW], totals=[total]))
    peer.answers("GET", "/v1/billing", page("BillList", [BILL], tenant="acme"))
    peer.answers("GET", "/v1/admin/prices/2026-11", BOOK | {"version": "2026-11", "prices": {"H100": {"burst": "2"}}})
    peer.answers("GET", "/v1/admin/prices/2026-12", BOOK)
    peer.answers("POST", "/v1/admin/price-drafts", BOOK)
    peer.answers("POST", "/v1/admin/price-drafts/2026-12/publish", BOOK | {"state": "published"})
    peer.answers("DELETE", "/v1/admin/price-drafts/2026-12", BOOK)
    peer.answers("GET", "/v1/admin/packages", page("PackageList", [PACKAGE]))
    peer.answers("POST", "/v1/admin/packages", envelope("Package", **PACKAGE))
    peer.answers("GET", "/v1/secrets", page("SecretList", [SECRET]))
    peer.answers("PUT", "/v1/secrets/HF_TOKEN", envelope("Secret", name="HF_TOKEN", account="acme/nlp", is_new=True))
    peer.answers("DELETE", "/v1/secrets/HF_TOKEN", envelope("SecretRemoved", name="HF_TOKEN", account="acme/nlp"))
    peer.answers("GET", "/v1/notify", envelope("Notify", **TARGET, deliveries=[DELIVERY]))
    told = envelope("Notify", **TARGET, secret="whsec_made-just-now")
    peer.answers("PUT", "/v1/notify", told)
    peer.answers("POST", "/v1/notify/test", envelope("NotifyTest", deliveries=["01JDD"]))
    changes = page("CentreChangeList", CHANGES, digest="d1", is_applied=False, changes=1)
    peer.answers("POST", "/v1/admin/apply", changes)
