"""`GET /v1/quota`: own accounts only, and what the planner itself goes by."""

from tests.api.centre import Centre
from tests.api.conftest import People


def test_everybody_is_told_their_own_accounts_standing_and_no_other(centre: Centre, people: People) -> None:
    centre.has_account("acme", guarantee={"H100": 2}, limit={"H100": 6})
    people.user().submit(gpus_per_node=2, gpu_classes=["H100"])
    people.user().submit(gpus_per_node=3, gpu_classes=["H100"])
    centre.tick()
    everything = people.operator().get("/v1/quota").json()
    assert everything["kind"] == "QuotaList"
    rows = {(item["account"], item["gpu_model"]): item for item in everything["items"]}
    acme = rows["acme", "H100"]
    assert (acme["guarantee"], acme["limit"], acme["held"], acme["is_over_target"]) == (2, 6, 5, False)
    assert acme["target"] == acme["demand"] == 5
    assert (acme["guarantee_bought"], acme["held_guaranteed"], acme["held_burst"]) == (2, 2, 3)
    assert (acme["weight"], acme["effective_weight"]) == (1, "1.000000")
    assert (acme["running_jobs"], acme["waiting_jobs"], acme["running_limit"], acme["pending_limit"]) == (
        2,
        0,
        None,
        None,
    )
    own = people.admin().get("/v1/quota").json()["items"]
    assert {item["account"] for item in own} == {"acme", "acme/vision"}
    assert people.admin("zeta").get("/v1/quota?account=acme").json()["items"] == []
    below = people.operator().get("/v1/quota?account=acme/vision").json()["items"]
    assert {item["account"] for item in below} == {"acme/vision"}
