"""The manifests on a real API server: taken as written, they grant what the code needs, and the check says so.

Wants TURNSTILE_TEST_KUBECONFIG, of an admin of a cluster that may be written to.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.api import Access, Api
from k8s.check import Finding, Verdict, check_cluster
from k8s.names import ALLOCATION
from k8s.podresources import PodRef, owners_on
from k8s.problems import Conflict, NotFound, Right
from k8s.rights import AGENT, DAEMON
from scheduler.clock import LedgerClock
from scheduler.core.model import NodeName
from tests.k8s.test_manifests import DEPLOY, Manifest, rendered

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.skipif("TURNSTILE_TEST_KUBECONFIG" not in os.environ, reason="TURNSTILE_TEST_KUBECONFIG is not set"),
]
PLURALS = {"NetworkPolicy": "networkpolicies"}
NODE = "turnstile-test-gpu-1"


def path_of(manifest: Manifest) -> str:
    """The collection that an object is created in."""
    version, metadata = manifest["apiVersion"], manifest["metadata"]
    root = "/api/v1" if version == "v1" else f"/apis/{version}"
    inside = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
    return f"{root}{inside}/{PLURALS.get(manifest['kind'], manifest['kind'].lower() + 's')}"


@pytest.fixture(scope="module")
def admin() -> Iterator[Api]:
    api = Api.connect(Access(os.environ["TURNSTILE_TEST_KUBECONFIG"]))
    yield api
    api.close()


@pytest.fixture(scope="module")
def deployed(admin: Api) -> Iterator[list[Manifest]]:
    """Everything of the base, on a server of whatever age, and one GPU node; removed afterwards."""
    is_old = admin.server_version() < (1, 21)
    manifests = rendered(
        DEPLOY / "kubernetes" / "overlays" / "before-1.21" if is_old else DEPLOY / "kubernetes" / "base"
    )
    with suppress(Conflict):
        admin.create("/api/v1/nodes", node())
    for manifest in manifests:
        with suppress(Conflict):
            admin.create(path_of(manifest), manifest)
    yield manifests
    for manifest in reversed(manifests):
        with suppress(NotFound):
            admin.delete(f"{path_of(manifest)}/{manifest['metadata']['name']}")
    with suppress(NotFound):
        admin.delete(f"/api/v1/nodes/{NODE}")


def node(**labels: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE, "labels": labels},
        "status": {"capacity": {"nvidia.com/gpu": "8"}, "allocatable": {"nvidia.com/gpu": "8"}},
    }


def as_account(admin: Api, account: str, folder: Path) -> Api:
    """The door as a service account of ours, by a token that the server makes for it."""
    path = f"/api/v1/namespaces/turnstile/serviceaccounts/{account}/token"
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    token = admin.create(path, asked)["status"]["token"]
    config: dict[str, Any] = yaml.safe_load(Path(os.environ["TURNSTILE_TEST_KUBECONFIG"]).read_text(encoding="utf-8"))
    config["users"] = [{"name": "account", "user": {"token": token}}]
    for context in config["contexts"]:
        context["context"]["user"] = "account"
    kubeconfig = folder / f"{account}.kubeconfig"
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_text(yaml.safe_dump(config), encoding="utf-8")
    return Api.connect(Access(str(kubeconfig)))


def by_check(findings: list[Finding]) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for each in findings:
        found.setdefault(each.check, []).append(each)
    return found


def test_the_server_keeps_every_object_as_it_was_written(admin: Api, deployed: list[Manifest]) -> None:
    for manifest in deployed:
        stored = admin.get(f"{path_of(manifest)}/{manifest['metadata']['name']}")
        assert lost(manifest, stored, manifest["kind"]) == []


def lost(written: Any, stored: Any, place: str) -> list[str]:
    """Where what was written is not in what is stored; defaults that the server adds don't count."""
    if isinstance(written, dict):
        if not isinstance(stored, dict):
            return [place]
        return [each for key, value in written.items() for each in lost(value, stored.get(key), f"{place}.{key}")]
    if isinstance(written, list):
        if not isinstance(stored, list) or len(written) != len(stored):
            return [place]
        return [each for n, value in enumerate(written) for each in lost(value, stored[n], f"{place}[{n}]")]
    return [] if written == stored else [place]


def test_the_daemons_account_has_every_right_of_the_table_and_no_other(
    admin: Api, deployed: list[Manifest], tmp_path: Path
) -> None:
    api = as_account(admin, "turnstile", tmp_path)
    allowed = {right for need in DAEMON for right in need.rights()}
    assert [right for right in sorted(allowed, key=str) if not api.may(right)] == []
    resources = [
        "pods",
        "nodes",
        "secrets",
        "services",
        "configmaps",
        "namespaces",
        "serviceaccounts",
        "pods/exec",
        "pods/log",
    ]
    asked = [
        Right(verb, name)
        for name in resources
        for verb in ("get", "list", "watch", "create", "update", "patch", "delete")
    ]
    asked += [Right(verb, "jobs", "batch") for verb in ("update", "deletecollection")]
    asked += [Right("create", "clusterrolebindings", "rbac.authorization.k8s.io"), Right("impersonate", "users")]
    assert [str(right) for right in asked if right not in allowed and api.may(right)] == []
    api.close()


def test_the_check_as_the_daemons_account_finds_no_right_missing_and_names_what_is(
    admin: Api, deployed: list[Manifest], tmp_path: Path
) -> None:
    api = as_account(admin, "turnstile", tmp_path)
    found = by_check(check_cluster(api, LedgerClock()))
    assert [each.verdict for each in found["rights"]] == [Verdict.FINE]
    assert found["clock"][0].verdict is Verdict.FINE
    assert int(found["gpus"][0].message.split()[0]) >= 8, "the server may have the contract suite's nodes too"
    assert (found["gpu_labels"][0].verdict, NODE in found["gpu_labels"][0].message) == (Verdict.LACKS, True)
    admin.merge(f"/api/v1/nodes/{NODE}", {"metadata": {"labels": {"nvidia.com/gpu.product": "NVIDIA-H100"}}})
    assert by_check(check_cluster(api, LedgerClock()))["gpu_labels"][0].verdict is Verdict.FINE
    api.close()


def test_the_agents_account_reads_its_nodes_pods_and_does_nothing_else(
    admin: Api, deployed: list[Manifest], tmp_path: Path
) -> None:
    api = as_account(admin, "turnstile-agent", tmp_path)
    assert all(api.may(right) for need in AGENT for right in need.rights())
    for right in (Right("get", "secrets"), Right("watch", "pods"), Right("delete", "pods"), Right("list", "nodes")):
        assert not api.may(right), right
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "seen",
            "namespace": "default",
            "labels": {ALLOCATION: "01JD8W3Z6Q5K9XN0V4T2R7M1AB"},
        },
        "spec": {"nodeName": NODE, "containers": [{"name": "job", "image": "x"}]},
    }
    # No controller of accounts is needed for a pod that mounts no token.
    body["spec"]["automountServiceAccountToken"] = False  # type: ignore[index]
    admin.create("/api/v1/namespaces/default/pods", body)
    try:
        found = owners_on(api, NodeName(NODE))()
        assert found == {PodRef("default", "seen"): "01JD8W3Z6Q5K9XN0V4T2R7M1AB"}
        assert owners_on(api, NodeName("another"))() == {}
    finally:
        admin.delete("/api/v1/namespaces/default/pods/seen", {"gracePeriodSeconds": 0})
    found_lacking = [each for each in check_cluster(api, LedgerClock()) if each.verdict is Verdict.LACKS]
    assert any("no right to create jobs.batch" in each.message for each in found_lacking)
    api.close()


def test_the_command_says_it_with_its_exit_status(admin: Api, deployed: list[Manifest]) -> None:
    words = [
        sys.executable,
        "-m",
        "cli.main",
        "admin",
        "k8s",
        "check",
        "--kubeconfig",
        os.environ["TURNSTILE_TEST_KUBECONFIG"],
    ]
    admin.merge(f"/api/v1/nodes/{NODE}", {"metadata": {"labels": {"nvidia.com/gpu.product": "NVIDIA-H100"}}})
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "nothing is missing" in done.stderr) == (0, True), done
    admin.merge(f"/api/v1/nodes/{NODE}", {"metadata": {"labels": {"nvidia.com/gpu.product": None}}})
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "install GPU feature discovery" in done.stdout) == (3, True), done
