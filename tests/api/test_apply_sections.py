"""Pools and budgets of a declared centre: shown, made in one transaction, the same again nothing, wrong all at once."""

from typing import Any

from metering.ledger import publish
from scheduler.auth import Role
from tests.api.centre import Centre
from tests.api.conftest import Client, People
from tests.builders import node
from tests.metering.builders import book

Sections = dict[str, list[dict[str, Any]]]


OWN_POOL = node("h2").node.pool


def apply(client: Client, sections: Sections, **more: Any) -> Any:
    return client.post("/v1/admin/apply", json={"sections": sections, **more})


def told(answer: Any) -> list[tuple[str, str, dict[str, Any]]]:
    assert answer.status_code == 200, answer.text
    return [
        (each["change"], each["id"], {field["name"]: field["after"] for field in each["fields"]})
        for each in answer.json()["items"]
    ]


def wrong(answer: Any) -> dict[str, str]:
    assert answer.status_code == 422, answer.text
    return {each["field"]: each["message"] for each in answer.json()["problems"]}


def test_pools_take_their_nodes_from_each_other_pause_and_are_the_same_a_second_time(people: People) -> None:
    ops = people.operator()
    first: Sections = {"pools": [{"name": "ib", "nodes": ["h1", "h2"], "is_paused": True, "reason": "cables"}]}
    assert told(ops.post("/v1/admin/apply?dry_run=true", json={"sections": first})) == told(apply(ops, first))
    assert told(apply(ops, first)) == []
    moved: Sections = {"pools": [{"name": "ib", "nodes": ["h1"], "is_paused": False}, {"name": "eth", "nodes": ["h2"]}]}
    assert told(apply(ops, moved)) == [
        ("change", "ib", {"nodes": "h1", "is_paused": False, "reason": None}),
        ("create", "eth", {"nodes": "h2"}),
    ]
    rows = {each["name"]: each for each in ops.get("/v1/pools").json()["items"]}
    assert [(rows[name]["nodes"], rows[name]["is_paused"]) for name in ("ib", "eth")] == [(1, False), (1, False)]
    assert told(apply(ops, {"pools": [{"name": "eth", "nodes": []}]})) == [("change", "eth", {"nodes": None})]
    rows = {each["name"]: each for each in ops.get("/v1/pools").json()["items"]}
    assert (rows["eth"]["nodes"], rows[OWN_POOL]["nodes"]) == (0, 1), "it is where it says itself"


def test_a_new_project_its_pool_and_its_budget_are_made_at_once_and_prune_ends_a_budget(
    people: People, centre: Centre
) -> None:
    with centre.database.write() as connection:
        publish(connection, book(), centre.clock.now_ms())
    ops = people.operator()
    limit = {"account": "acme/new", "limit": {"amount": "5000"}, "hard": False}
    file: Sections = {"accounts": [{"id": "acme/new"}], "budgets": [limit]}
    [_, (change, account, fields)] = told(apply(ops, file))
    assert (change, account, fields["limit"], fields["hard"]) == ("create", "acme/new", "5000.00 CNY", False)
    assert told(apply(ops, file)) == []
    more = {"amount": {"amount": "10"}, "reason": "more"}
    assert ops.post("/v1/admin/budgets/acme/new/topup", json=more).status_code == 201
    assert told(apply(ops, file)) == [], "a top-up is no part of the terms"
    file["budgets"][0]["limit"]["amount"] = "6000"
    assert told(apply(ops, file)) == [("change", "acme/new", {"limit": "6000.00 CNY"})]
    [budget] = [each for each in ops.get("/v1/budgets").json()["items"] if each["account"] == "acme/new"]
    assert budget["left"]["amount"] == "6010.00"
    fixed = {**limit, "period": "fixed", "from_at": "2026-11-01T00:00:00Z", "to_at": "2027-02-01T00:00:00Z"}
    assert told(apply(ops, {"budgets": [fixed]}))[0][2]["to_at"] == "2027-02-01T00:00:00.000Z"
    assert told(apply(ops, {"budgets": []}, prune=True)) == [("remove", "acme/new", {})]
    assert ops.get("/v1/budgets").json()["items"] == []


def test_all_that_is_wrong_in_all_sections_is_told_at_once_with_numbers_and_nothing_is_made(
    people: People, centre: Centre
) -> None:
    with centre.database.write() as connection:
        publish(connection, book(), centre.clock.now_ms())
    ops = people.operator()
    found = wrong(
        apply(
            ops,
            {
                "accounts": [
                    {"id": "acme", "weight": 0},
                    {"id": "zeta", "weight": -3, "guarantee": {"H100": 900}},
                    {"id": "ok", "weight": 7},
                ],
                "users": [{"account": "absent", "user": "mei"}],
                "pools": [
                    {"name": "a", "nodes": ["h1", "h9"], "reason": "why"},
                    {"name": "b", "nodes": ["h1"]},
                    {"name": "b"},
                ],
                "budgets": [
                    {"account": "acme", "limit": {"amount": "1"}, "currency": "EUR"},
                    {"account": "gone", "limit": {"amount": "1"}},
                    {"account": "zeta"},
                ],
            },
        )
    )
    assert found["accounts.0.weight"] == "a weight must be at least 1, and 0 is not"
    assert found["accounts.1.weight"] == "a weight must be at least 1, and -3 is not"
    assert "900" in found["accounts.1.guarantee.H100"]
    assert found["users.0.account"] == "there is no account absent"
    assert found["pools.0.nodes"] == "there is no node h9"
    assert found["pools.0.reason"] == "only a pool that is paused has one"
    assert found["pools.1.nodes"] == "h1 stands in a already"
    assert found["pools.2.name"] == "b is declared twice"
    assert found["budgets.0.limit.currency"] == "prices are in CNY"
    assert found["budgets.1.account"] == "there is no account gone"
    assert found["budgets.2.limit"] == "a limit is needed, but for prepaid money, which has none"
    assert "ok" not in {each["id"] for each in ops.get("/v1/admin/accounts").json()["items"]}


def test_a_tenants_admin_declares_budgets_below_its_own_account_and_no_pool(people: People, centre: Centre) -> None:
    with centre.database.write() as connection:
        publish(connection, book(), centre.clock.now_ms())
    admin = people.with_role(Role.TENANT_ADMIN, "acme", "mei")
    terms = {"limit": {"amount": "10"}}
    assert set(
        wrong(
            apply(
                admin,
                {
                    "pools": [{"name": "ib", "nodes": ["h1"]}],
                    "budgets": [
                        {"account": "acme", **terms},
                        {"account": "zeta", **terms},
                        {"account": "acme/nlp", "period": "prepaid"},
                        {"account": "acme/nlp", **terms, "overdraft": {"amount": "1"}},
                    ],
                },
            )
        )
    ) == {"pools.0.name", *(f"budgets.{index}.account" for index in range(4))}
    assert told(apply(admin, {"budgets": [{"account": "acme/nlp", **terms}]}))[0][:2] == ("create", "acme/nlp")
    ops = people.operator()
    assert told(apply(ops, {"budgets": [{"account": "acme/vision", "period": "prepaid"}]}))[0][0] == "create"
    assert told(apply(ops, {"budgets": [{"account": "zeta", **terms}]}))[0][0] == "create"
    taken = apply(admin, {"budgets": [{"account": "acme/vision", **terms}]})
    assert list(wrong(taken)) == ["budgets.0.account"]
    assert [each[:2] for each in told(apply(admin, {"budgets": []}, prune=True))] == [
        ("remove", "acme/nlp"),
        ("keep", "acme/vision"),
    ]
    assert [each["account"] for each in ops.get("/v1/budgets").json()["items"]] == ["acme/vision", "zeta"]
