"""The manifests: every one parses, is bounded, probed and confined, and grants exactly what the code asks for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.daemon.settings import load
from k8s.podresources import DEFAULT_SOCKET
from k8s.rights import AGENT, DAEMON, LEASE_NAMESPACE, Need, rules

DEPLOY = Path(__file__).parents[2] / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
Manifest = dict[str, Any]


def documents(path: Path) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def rendered(folder: Path) -> list[Manifest]:
    """What kustomize makes of a folder, as far as ours use it: resources, images, JSON patches."""
    (kustomization,) = documents(folder / "kustomization.yaml")
    known = {"apiVersion", "kind", "resources", "images", "patches"}
    assert kustomization.keys() <= known, f"the resolver of this test knows {known}"
    found: list[Manifest] = []
    for name in kustomization["resources"]:
        place = (folder / name).resolve()
        found += rendered(place) if place.is_dir() else documents(place)
    for patch in kustomization.get("patches", ()):
        (target,) = (m for m in found if (m["kind"], m["metadata"]["name"]) == tuple(patch["target"].values()))
        for change in yaml.safe_load((folder / patch["path"]).read_text()):
            _apply(target, change)
    for image in kustomization.get("images", ()):
        for container in (container for manifest in found for container in containers(manifest)):
            if container["image"] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
    return found


def _apply(target: Any, change: Manifest) -> None:  # Any: JSON
    """Applies one operation of a JSON patch (RFC 6902): `replace` of a member, `add` of one or at a list's end."""
    *way, last = change["path"].removeprefix("/").split("/")
    for key in way:
        target = target[int(key)] if isinstance(target, list) else target[key]
    if isinstance(target, list):
        assert (change["op"], last) == ("add", "-"), change
        target.append(change["value"])
    else:
        assert (change["op"] == "replace") == (last in target), change
        target[last] = change["value"]


def pod_spec(manifest: Manifest) -> Manifest:
    spec: Manifest = manifest.get("spec", {}).get("template", {}).get("spec", {})
    return spec


def containers(manifest: Manifest) -> Iterator[Manifest]:
    yield from pod_spec(manifest).get("containers", ())


def of(kind: str, name: str) -> Manifest:
    (found,) = (m for m in rendered(BASE) if (m["kind"], m["metadata"]["name"]) == (kind, name))
    return found


WORKLOADS = [("Deployment", "turnstile"), ("DaemonSet", "turnstile-agent")]


def test_every_file_belongs_to_a_kustomization_and_no_object_is_named_twice() -> None:
    for folder in (BASE, *(DEPLOY / "kubernetes" / "overlays").iterdir()):
        (kustomization,) = documents(folder / "kustomization.yaml")
        named = {*kustomization["resources"], *(patch["path"] for patch in kustomization.get("patches", ()))}
        assert {path.name for path in folder.iterdir()} - {"kustomization.yaml"} == {n for n in named if "/" not in n}
        places = [
            (m["apiVersion"], m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"])
            for m in rendered(folder)
        ]
        assert len(places) == len(set(places))


@pytest.mark.parametrize(("kind", "name"), WORKLOADS)
def test_every_container_is_bounded_probed_and_confined(kind: str, name: str) -> None:
    spec = pod_spec(of(kind, name))
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    for container in spec["containers"]:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert not security.get("privileged")
        for part in ("requests", "limits"):
            assert container["resources"][part].keys() == {"cpu", "memory"}
        ports = {port["name"] for port in container["ports"]}
        for probe in ("livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] in ports
        assert container["image"].startswith("registry.example/turnstile:")
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_the_daemon_runs_as_nobody_and_has_no_host_folder() -> None:
    spec = pod_spec(of("Deployment", "turnstile"))
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert not [volume for volume in spec["volumes"] if "hostPath" in volume]
    assert of("Deployment", "turnstile")["spec"]["replicas"] == 2


def test_no_secret_is_in_the_manifests_or_in_a_variable() -> None:
    for manifest in rendered(BASE):
        assert manifest["kind"] != "Secret"
        for container in containers(manifest):
            for variable in container.get("env", ()):
                assert "secretKeyRef" not in variable.get("valueFrom", {})


def test_the_daemons_settings_are_settings_that_it_knows(tmp_path: Path) -> None:
    path = tmp_path / "turnstile.toml"
    path.write_text(of("ConfigMap", "turnstile")["data"]["turnstile.toml"])
    settings = load(path, {})
    assert settings.executor.kind == "kubernetes"
    spec = pod_spec(of("Deployment", "turnstile"))
    (container,) = spec["containers"]
    assert settings.port == container["ports"][0]["containerPort"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert settings.data_dir in mounts
    assert str(Path(settings.database.url_file or "").parent) in mounts


def test_the_agents_flags_are_flags_and_lead_to_what_is_mounted() -> None:
    from typer.models import OptionInfo

    from cli.commands.agent import NODE_VARIABLE, agent

    names = {
        name
        for hint in agent.__annotations__.values()
        for info in getattr(hint, "__metadata__", ())
        if isinstance(info, OptionInfo)
        for name in (info.default, *(info.param_decls or ()))
        if isinstance(name, str)
    }
    (container,) = containers(of("DaemonSet", "turnstile-agent"))
    flags = dict(argument.partition("=")[::2] for argument in container["args"][1:])
    assert container["args"][0] == "agent"
    assert flags.keys() <= names | {"--url", "--token-file"}
    assert flags["--kubelet"] == DEFAULT_SOCKET
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    for flag in ("--token-file", "--spool", "--kubelet"):
        assert any(flags[flag].startswith(mount) for mount in mounts), flag
    assert NODE_VARIABLE in {variable["name"] for variable in container["env"]}


def granted(manifests: list[Manifest], account: str) -> list[tuple[str | None, str, str, str]]:
    """Each right of a service account: namespace of the Role (None: all), group, resource, verb."""
    roles = {(m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]): m for m in manifests}
    found = []
    for binding in (m for m in manifests if m["kind"] in {"ClusterRoleBinding", "RoleBinding"}):
        if account not in {subject["name"] for subject in binding["subjects"]}:
            continue
        namespace = binding["metadata"].get("namespace")
        role = roles[binding["roleRef"]["kind"], namespace, binding["roleRef"]["name"]]
        for rule in role["rules"]:
            assert rule.keys() == {"apiGroups", "resources", "verbs"}
            found += [(namespace, g, r, v) for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]]
    return found


def needed(needs: tuple[Need, ...]) -> list[tuple[str | None, str, str, str]]:
    return [(need.namespace, need.group, need.resource, verb) for need in needs for verb in need.verbs]


@pytest.mark.parametrize(("account", "needs"), [("turnstile", DAEMON), ("turnstile-agent", AGENT)])
def test_the_manifests_grant_exactly_the_rights_of_the_table(account: str, needs: tuple[Need, ...]) -> None:
    rights = granted(rendered(BASE), account)
    assert sorted(rights, key=str) == sorted(needed(needs), key=str)
    assert "*" not in {part for right in rights for part in right}
    assert not [right for right in rights if right[2] == "secrets"]


def test_the_table_as_rules_is_what_rbac_writes() -> None:
    assert rules(DAEMON, LEASE_NAMESPACE) == [
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get"]}
    ]
    assert of("ClusterRole", "turnstile")["rules"] == rules(DAEMON)


def test_selectors_find_what_they_are_meant_for() -> None:
    for manifest in rendered(DEPLOY / "kubernetes" / "overlays" / "monitoring"):
        selector = manifest.get("spec", {}).get("selector")
        if selector is None:
            continue
        labels = selector.get("matchLabels", selector)
        workload = "DaemonSet" if labels["app.kubernetes.io/component"] == "agent" else "Deployment"
        name = "turnstile-agent" if workload == "DaemonSet" else "turnstile"
        found = of(workload, name)["spec"]["template"]["metadata"]["labels"]
        assert labels.items() <= found.items(), manifest["kind"]


def test_the_overlay_for_old_clusters_changes_the_budgets_version_only() -> None:
    base, old = rendered(BASE), rendered(DEPLOY / "kubernetes" / "overlays" / "before-1.21")
    changed = [(a, b) for a, b in zip(base, old, strict=True) if a != b]
    assert [(a["kind"], a["apiVersion"], b["apiVersion"]) for a, b in changed] == [
        ("PodDisruptionBudget", "policy/v1", "policy/v1beta1")
    ]


def test_the_second_witness_costs_the_agents_sight_of_the_host_and_nothing_more() -> None:
    base, changed = rendered(BASE), rendered(DEPLOY / "kubernetes" / "overlays" / "second-witness")
    (pair,) = [(a, b) for a, b in zip(base, changed, strict=True) if a != b]
    spec, seeing = pod_spec(pair[0]), pod_spec(pair[1])
    assert seeing.pop("hostPID") is True
    assert seeing["containers"][0]["args"].pop() == "--proc=/proc"
    assert seeing == spec


def test_the_image_runs_as_nobody_and_holds_what_the_agent_needs() -> None:
    lines = (DEPLOY / "Containerfile").read_text(encoding="utf-8").splitlines()
    assert "USER 10001:10001" in lines
    assert 'ENTRYPOINT ["turnstile"]' in lines
    assert any("[kubernetes-agent]" in line for line in lines)
    for line in lines:
        if line.startswith("COPY") and "--from" not in line:
            assert all((DEPLOY.parent / name).exists() for name in line.split()[1:-1]), line
