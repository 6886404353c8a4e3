"""What our objects in a cluster are called, and the labels by which they are found again.

Names follow from the allocation alone, so a create that is repeated meets itself. Labels carry what is selected by;
what may be any text (account names) stands in annotations, because label values are narrow.
"""

import hashlib
import re
from dataclasses import dataclass

from scheduler.core.model import AccountId, Allocation, AllocationId, DeviceId, JobId, tenant_of

PREFIX = "gpu-turnstile/"
INSTALLATION = PREFIX + "installation"
"""Which Turnstile an object belongs to: two in one cluster must not clean up after each other."""
ALLOCATION = PREFIX + "allocation"
JOB = PREFIX + "job"
RANK = PREFIX + "rank"
SURPLUS = PREFIX + "surplus"
"""The allocation by which an elastic gang holds a node beyond its least; of the others there is no such label."""
TENANT = PREFIX + "tenant"
ACCOUNT = PREFIX + "account"
"""An annotation."""
DIGEST = PREFIX + "order"
"""An annotation: a hash of what was ordered, to compare a name that is taken with what we would make."""
FINALIZER = PREFIX + "recorded"
"""Keeps a Job, deleted by whomever, until its end is in the ledger: without it a Job that vanished while nobody
watched could not be told from one that was never made, and would run twice."""
COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
CONTAINER = "job"
ORIGIN = PREFIX + "origin"
ADOPTED = "adopted"
"""The origin of pods that users made themselves: they are let go and watched, and kept when they are over."""
GATE = PREFIX + "admission"
"""The scheduling gate behind which such a pod waits."""
PROJECT = PREFIX + "project"
"""A label, or an annotation where a label is too narrow: which project of the namespace's tenant a pod is for."""
GANG = PREFIX + "gang"
"""A label: pods of one namespace that share it run together or not at all."""
GANG_SIZE = PREFIX + "gang-size"
USER = PREFIX + "user"
TIME_LIMIT = PREFIX + "time-limit"
GPU_CLASS = PREFIX + "gpu-class"
BOOKING = PREFIX + "booking"
PRIORITY = PREFIX + "priority"
POOL = PREFIX + "pool"
JOB_ID = PREFIX + "job-id"
"""An annotation of ours: the job that waits for this pod's turn."""
STATUS = PREFIX + "status"
"""An annotation of ours: what became of the pod's wish, or what it lacks."""
SERVICE_ACCOUNT = "turnstile-job"
"""What jobs' pods run as: an identity without rights, made with the namespace, so that the first pod need not wait."""

_NOT_DNS = re.compile(r"[^a-z0-9]+")
_NOT_LABEL = re.compile(r"[^A-Za-z0-9_.-]+")
_MOST_LABEL = 63  # RFC 1123; the same for names of namespaces and for label values


def dns_label(text: str, most: int = _MOST_LABEL) -> str:
    """Returns a DNS label for any text: itself where it is one, else a readable part and eight digits of its hash."""
    slug = _NOT_DNS.sub("-", text.lower()).strip("-")
    if slug == text and len(slug) <= most:
        return slug
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{slug[: most - 9].strip('-')}-{digest}".lstrip("-")


def label_value(text: str) -> str:
    """Returns a label value for any text, by the same rule."""
    slug = _NOT_LABEL.sub("-", text).strip("-_.")
    if slug == text and len(slug) <= _MOST_LABEL:
        return slug
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{slug[: _MOST_LABEL - 9].strip('-_.')}-{digest}".lstrip("-")


def namespace_of(account: AccountId, prefix: str) -> str:
    """Returns the namespace of an account's tenant."""
    return prefix + dns_label(tenant_of(account), _MOST_LABEL - len(prefix))


def gang_name(allocation: Allocation) -> str:
    """Returns the name of an allocation's Service, and of its Job where there is one; host names are made of it."""
    return f"job-{allocation.job}-{allocation.id.lower()}"


def rank_name(allocation: Allocation, rank: int) -> str:
    """Returns the name of a rank's own Job, and of its pod's host whoever made the pod."""
    return f"{gang_name(allocation)}-{rank}"


def surplus_name(job: JobId, surplus: AllocationId, rank: int) -> str:
    """Returns the name of the Job of a surplus rank: each surplus makes Jobs anew, whatever is left of those before."""
    return f"job-{job}-{surplus.lower()}-{rank}"


def selector(installation: str) -> str:
    """Returns the label selector that finds all of an installation's objects."""
    return f"{INSTALLATION}={installation}"


def allocation_of(labels: dict[str, str]) -> AllocationId | None:
    """Returns whose object it is; None when it is no allocation's."""
    text = labels.get(ALLOCATION)
    return AllocationId(text) if text else None


def slot(machine: str, resource: str, index: int) -> DeviceId:
    """Returns the id of a node's slot, which the kubelet fills with a device of its own choice."""
    return DeviceId(f"{machine}/{resource}/{index}")


@dataclass(frozen=True, slots=True)
class UserPod:
    """A pod that its user made, as a job remembers it."""

    namespace: str
    name: str
    uid: str

    def __str__(self) -> str:
        """Returns what `user_pod` reads."""
        return f"{self.namespace}/{self.name}/{self.uid}"


def user_pod(text: str) -> UserPod:
    """Returns the reference that was written as a text; neither part holds a slash (RFC 1123)."""
    namespace, name, uid = text.split("/")
    return UserPod(namespace, name, uid)


def machine_of(device: DeviceId) -> str:
    """Returns the Kubernetes node of a slot."""
    return device.partition("/")[0]


def resource_of(device: DeviceId) -> str:
    """Returns the extended resource of a slot, such as `nvidia.com/gpu`."""
    return device.partition("/")[2].rpartition("/")[0]
