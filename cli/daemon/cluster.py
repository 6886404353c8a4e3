"""A daemon's Kubernetes cluster, from its settings: the executor over it, and what is said when it cannot work."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cli.daemon.settings import KubernetesSettings, Settings, SettingsProblem
from k8s import rights
from k8s.api import Access, Api, RequestLimits
from k8s.cluster import Cluster
from k8s.gate import Gate
from k8s.jobs import KubernetesExecutor
from k8s.logkeeper import LogKeeper
from k8s.options import GateOptions, NamespaceOptions, NodeOptions, Options, PodOptions, TimeOptions
from k8s.problems import KubernetesProblem, Unreachable
from k8s.traffic import TrafficCollector
from metering.gpu_classes import gpu_class_of
from scheduler.clock import Clock
from scheduler.core.model import GpuClass
from scheduler.executor import Executor
from scheduler.loop import Controller
from scheduler.wire.submission import SubmissionRules

logger = logging.getLogger(__name__)

LIMITS = RequestLimits(tries=3, all_seconds=5.0)
"""The thread that asks also observes every other job, and asks again by itself: it gives up on one request soon."""
NEWS_SECONDS = 1
"""Between two looks for nodes that changed: many change at once when a rack goes, and one reading tells of all."""


def forget_logs(executor: Executor, before_ms: int) -> None:
    """Removes the logs of jobs that ended before."""
    assert isinstance(executor, KubernetesExecutor), "asked only where a cluster runs the jobs"
    executor.forget_logs(before_ms)


def refresh_when_changed(executor: Executor, controller: Controller) -> None:
    """Has the inventory read again when the cluster's watches saw it change."""
    assert isinstance(executor, KubernetesExecutor), "asked only where a cluster runs the jobs"
    if executor.take_inventory_news():
        controller.refresh_inventory()


@dataclass(frozen=True, slots=True)
class OverCluster:
    """What a daemon over a cluster has."""

    executor: KubernetesExecutor
    traffic: TrafficCollector
    gate: Gate | None
    """None where the settings say that users' own pods do not wait."""

    def look_at_gate(self, controller: Controller) -> None:
        """Gives pods that users make themselves their turn. Raises KubernetesProblem, Refused, StoreError."""
        if self.gate is not None:
            self.gate.look(controller)


def over_cluster(settings: Settings, data_dir: Path, clock: Clock, rules: SubmissionRules) -> OverCluster:
    """Returns the executor of a cluster and what goes with it. Raises SettingsProblem, KubernetesProblem.

    A cluster that does not answer now is no reason not to start: the daemon leads as soon as it does.
    """
    given = settings.kubernetes
    options = options_of(given, settings.node.pool)
    api = Api.connect(Access(given.kubeconfig, given.context), LIMITS)
    version: tuple[int, int] | None = None
    try:
        version = api.server_version()
        denied = rights.missing(api, options)
    except Unreachable as problem:
        logger.warning("%s", problem)
    else:
        logger.info("cluster %s, Kubernetes %d.%d", api.host, *version)
        if denied:
            words = "; ".join(str(right) for right in denied)
            raise KubernetesProblem(
                f"Kubernetes does not grant {len(denied)} rights that this daemon needs: {words}; "
                "bind a role with them, as deploy/kubernetes does"
            )
    cluster = Cluster(api, options)
    gate = Gate(api, cluster, options, rules) if options.gate.is_on else None
    if gate is not None and version is not None:
        gate.say()
    executor = KubernetesExecutor(api, clock, options, LogKeeper(api, data_dir / "pod-logs"), cluster)
    return OverCluster(executor, TrafficCollector(api), gate)


def options_of(given: KubernetesSettings, pool: str) -> Options:
    """Returns the adapter's options. Raises SettingsProblem with all that is wrong."""
    problems: list[str] = []
    volumes = dict(_volumes(given.volumes, problems))
    if problems:
        raise SettingsProblem(problems)
    return Options(
        NodeOptions(
            class_of=_class_of,
            classes=given.classes,
            class_label=given.class_label,
            pool=pool,
            pool_label=given.pool_label,
            tolerations=_list(given.tolerations),
            node_selector=given.node_selector,
        ),
        PodOptions(
            must_be_non_root=given.non_root,
            image_pull_policy=given.image_pull_policy,
            image_pull_secrets=_list(given.image_pull_secrets),
            volumes=volumes,
            annotations=given.pod_annotations,
            priority_class=given.priority_class,
            runtime_class=given.runtime_class,
            scheduler_name=given.scheduler_name,
        ),
        NamespaceOptions(
            prefix=given.namespace_prefix,
            may_create=given.create_namespaces,
            pod_security=given.pod_security,
            is_isolated=given.isolate_namespaces,
        ),
        TimeOptions(
            start_seconds=given.start_seconds,
            node_lost_seconds=given.node_lost_seconds,
            finished_seconds=given.finished_seconds,
        ),
        GateOptions(given.gate, given.gate_time_limit_seconds),
        given.installation,
    )


def _class_of(product: str) -> GpuClass:
    """GPU feature discovery writes NVML's product name with dashes for spaces."""
    return gpu_class_of(product.replace("-", " "))


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _volumes(given: Mapping[str, str], problems: list[str]) -> Iterator[tuple[str, dict[str, object]]]:
    for name, text in given.items():
        parts = {key: value for key, _, value in (part.partition("=") for part in _list(text))}
        source = _source(parts)
        mount = parts.pop("mount", "")
        is_read_only = "ro" in parts
        unknown = sorted(parts.keys() - {"claim", "nfs", "host", "ro"})
        if source is None or not mount.startswith("/") or unknown:
            problems.append(
                f"kubernetes.volumes.{name}: {text!r} must be claim=NAME, nfs=HOST:/PATH or host=/PATH, one of them, "
                "then mount=/PATH and perhaps ro, with commas between"
            )
        else:
            yield name, {**source, "mountPath": mount, "readOnly": is_read_only}


def _source(parts: Mapping[str, str]) -> dict[str, object] | None:
    kinds = [kind for kind in ("claim", "nfs", "host") if parts.get(kind)]
    if len(kinds) != 1:
        return None
    value = parts[kinds[0]]
    if kinds[0] == "claim":
        return {"persistentVolumeClaim": {"claimName": value}}
    if kinds[0] == "host":
        return {"hostPath": {"path": value}} if value.startswith("/") else None
    server, colon, path = value.partition(":")
    return {"nfs": {"server": server, "path": path}} if colon and path.startswith("/") else None
