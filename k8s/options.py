"""What a centre decides about its cluster: the adapter's settings, as plain values. `cli` fills them from its file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from scheduler.core.model import GpuClass

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """How nodes become inventory."""

    class_of: Callable[[str], GpuClass]
    """From the value of the class label to a GPU class."""
    classes: Mapping[str, str] = field(default_factory=dict)
    """Label values to classes, before `class_of` is asked."""
    class_label: str = "nvidia.com/gpu.product"
    """What GPU feature discovery writes."""
    resource: str = "nvidia.com/gpu"
    mig_prefix: str = "nvidia.com/mig-"
    pool: str = "main"
    pool_label: str | None = None
    tolerations: tuple[str, ...] = ("nvidia.com/gpu",)
    """Taint keys that our pods tolerate: nodes with other taints are drained for us."""
    node_selector: str = ""
    """A label selector of the nodes that are ours to use; empty for all."""


@dataclass(frozen=True, slots=True)
class PodOptions:
    """How pods look."""

    must_be_non_root: bool = False
    """Refuse images that run as root. Off: most CUDA images do, and a container without capabilities is held anyway."""
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    volumes: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Volumes that jobs may name, as Kubernetes writes them, with `mountPath` (and `readOnly`) beside the source."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    priority_class: str | None = None
    runtime_class: str | None = None
    scheduler_name: str | None = None
    ephemeral_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class NamespaceOptions:
    """What a tenant's namespace gets when we make it."""

    prefix: str = "turnstile-"
    may_create: bool = True
    """False where the centre's admins make the namespaces themselves."""
    most_pods: int = 5000
    """A quota against runaways, not a limit on GPUs: those are Turnstile's business."""
    pod_security: str = "baseline"
    """Pod Security level that is enforced. `restricted` asks for runAsNonRoot, which most CUDA images cannot do."""
    is_isolated: bool = True
    """A NetworkPolicy lets pods of the same tenant in, and nobody else's."""


@dataclass(frozen=True, slots=True)
class TimeOptions:
    """How long to wait for what. Seconds."""

    start_seconds: float = 600.0
    """In which all pods of a gang must run, images pulled: a 20 GB image takes 3 minutes at 1 Gbit/s."""
    image_seconds: float = 60.0
    """How long an image may fail to be pulled: the kubelet's second or third try."""
    node_lost_seconds: float = 120.0
    """After the control plane gave a node up (40 s of silence) until its jobs are: a rebooted switch is back then."""
    outage_seconds: float = 30.0
    """Without an answer of the API server until nothing new is placed."""
    finished_seconds: float = 3600.0
    """How long pods of ended jobs stay for their logs."""
    sync_seconds: float = 20.0


@dataclass(frozen=True, slots=True)
class GateOptions:
    """How pods that users make themselves get their turn."""

    is_on: bool = True
    time_limit_seconds: int = 86_400
    """Of a pod that names none: a day, as most runs end within one, and a forgotten pod does not hold its GPUs long."""


@dataclass(frozen=True, slots=True)
class Options:
    """All of it."""

    nodes: NodeOptions
    pods: PodOptions = field(default_factory=PodOptions)
    namespaces: NamespaceOptions = field(default_factory=NamespaceOptions)
    times: TimeOptions = field(default_factory=TimeOptions)
    gate: GateOptions = field(default_factory=GateOptions)
    installation: str = "turnstile"
