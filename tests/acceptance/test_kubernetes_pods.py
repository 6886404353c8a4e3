"""A daemon over a cluster, as its people meet it there: pods that they make themselves, on the command line.

The cluster is the API server of `tests/k8s`; the daemon, its database and what is typed are real.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from k8s import names
from k8s.api import Api
from tests.acceptance.conftest import MakeDaemon
from tests.acceptance.daemons import Daemon, until
from tests.k8s.controllers import GPU, PREFIX
from tests.k8s.grounds import Ground, memory_ground

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]
NAMESPACE = "turnstile-acme"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with memory_ground(tmp_path) as built:
        yield built


@pytest.fixture
def centre(make_daemon: MakeDaemon, ground: Ground) -> Daemon:
    config = ground.folder / "turnstile.toml"
    lines = f'[executor]\nkind = "kubernetes"\n[kubernetes]\nkubeconfig = "{ground.kubeconfig}"\n'
    config.write_text(lines, encoding="utf-8")
    return make_daemon("centre", "--config", str(config)).start().set_up()


def made_by_mei(admin: Api, name: str, gpus: int) -> None:
    """Makes a gated pod that runs until it is stopped."""
    container = {"name": "train", "image": "train:1", "resources": {"limits": {GPU: str(gpus)}}}
    notes = {names.USER: "mei", names.TIME_LIMIT: "4h", PREFIX + "run-seconds": "forever"}
    metadata = {"name": name, "labels": {names.PROJECT: "nlp"}, "annotations": notes}
    spec = {"containers": [container], "schedulingGates": [{"name": names.GATE}], "restartPolicy": "Never"}
    admin.create(PODS, {"metadata": metadata, "spec": spec})


def test_pods_that_a_user_makes_stand_in_the_queue_are_explained_metered_and_cancelled(
    centre: Daemon, ground: Ground
) -> None:
    admin = ground.api()
    labels = {names.INSTALLATION: "turnstile"}
    admin.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE, "labels": labels}})
    for index in range(5):  # four nodes
        made_by_mei(admin, f"own-{index}", 8)

    def states() -> dict[str, str]:
        listed = centre.turnstile("queue", "-o", "json", who="mei").json["items"]
        return {each["name"]: each["state"] for each in listed}

    until(lambda: sorted(states().values()) == ["pending", *["running"] * 4], "four run and one waits")
    (last,) = (name for name, state in states().items() if state == "pending")
    shown = centre.turnstile("show", last, "-o", "json", who="mei").json
    assert (shown["labels"]["origin"], shown["labels"]["pods"]) == ("adopted", f"{NAMESPACE}/{last}")
    assert "32 GPUs" in centre.turnstile("why", last, who="mei").out or shown["reasons"], shown
    centre.turnstile("cancel", "own-0", who="mei")
    freed = centre.wait_for(shown["id"], "running")
    assert freed["node_names"], freed
    assert {each["metadata"]["name"] for each in admin.list_all(PODS)[0]} == {f"own-{n}" for n in range(1, 5)}
    centre.turnstile("cancel", last, who="mei")
    centre.wait_for(shown["id"], "cancelled")
    used = centre.turnstile("history", "-o", "json", who="mei").json["items"]
    assert {each["name"]: each["gpus_total"] for each in used}[last] == 8
    centre.turnstile("admin", "ledger", "verify")
    centre.assert_no_trace_in_log()
    admin.close()
