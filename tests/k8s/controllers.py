"""The rest of a small cluster: Job controller, kube-scheduler, garbage collector, and a kubelet on every node.

They run inside the store, after each change, until nothing is left to do; only what takes time has a timer. Pods are
steered by the annotations that the driver of fake nodes on a real control plane knows too (prefix `fake.turnstile/`):
`run-seconds` (default: for ever), `exit-code`, `fail`, `term-seconds`; nodes by `gpus` and `state`.
"""

import threading
import uuid
from typing import Any

from tests.k8s.store import Json, Key, Store, is_over

PREFIX = "fake.turnstile/"
GPU = "nvidia.com/gpu"


class Controllers:
    """Attach with `Controllers(store)`; detach by `stop`."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.timers: list[threading.Timer] = []
        self.is_kubelet_on = True
        self.is_scheduler_on = True
        self.timed: set[tuple[str, str]] = set()
        store.settle = self.settle

    def stop(self) -> None:
        self.store.settle = lambda: None
        for timer in self.timers:
            timer.cancel()

    def settle(self) -> None:
        for _ in range(200):
            before = self.store.version
            self._jobs()
            self._collect()
            if self.is_scheduler_on:
                self._schedule()
            if self.is_kubelet_on:
                self._kubelets()
            if self.store.version == before:
                return
        raise AssertionError("the controllers never settle")

    def _jobs(self) -> None:
        for job in self.store.of("jobs.batch"):
            metadata, spec, status = job["metadata"], job["spec"], job.get("status") or {}
            if metadata.get("deletionTimestamp") or status.get("conditions"):
                continue
            pods = self._owned(metadata["uid"])
            over = [pod for pod in pods if is_over(pod)]
            failed = [pod for pod in over if pod["status"]["phase"] == "Failed"]
            key = ("jobs.batch", metadata["namespace"], metadata["name"])
            if failed:
                self.store.update(key, _set_status({"failed": len(failed), "conditions": [_condition("Failed")]}))
                for pod in pods:
                    if not is_over(pod) and not pod["metadata"].get("deletionTimestamp"):
                        self.store.delete(_key(pod), {})
            elif len(over) == spec["completions"]:
                self.store.update(key, _set_status({"succeeded": len(over), "conditions": [_condition("Complete")]}))
            else:
                self._make_pods(job, [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")])

    def _make_pods(self, job: Json, have: list[Json]) -> None:
        metadata, spec = job["metadata"], job["spec"]
        is_indexed = spec.get("completionMode") == "Indexed"
        index_note = "batch.kubernetes.io/job-completion-index"
        taken = {pod["metadata"]["annotations"].get(index_note) for pod in have} if is_indexed else set()
        missing = [str(index) for index in range(spec["completions"])]
        missing = [index for index in missing if index not in taken] if is_indexed else missing[len(have) :]
        for index in missing:
            template = spec["template"]
            labels = {**template["metadata"].get("labels", {}), "job-name": metadata["name"]}
            notes = dict(template["metadata"].get("annotations", {}))
            if is_indexed:
                notes[index_note] = index
            owner = {"kind": "Job", "name": metadata["name"], "uid": metadata["uid"], "controller": True}
            name = f"{metadata['name']}-{index}-{uuid.uuid4().hex[:5]}"
            body = {
                "metadata": {"name": name, "labels": labels, "annotations": notes, "ownerReferences": [owner]},
                "spec": template["spec"],
                "status": {"phase": "Pending"},
            }
            self.store.create("pods", metadata["namespace"], body)

    def _owned(self, uid: str) -> list[Json]:
        return [
            pod
            for pod in self.store.of("pods")
            if any(owner["uid"] == uid for owner in pod["metadata"].get("ownerReferences") or ())
        ]

    def _collect(self) -> None:
        uids = {job["metadata"]["uid"] for job in self.store.of("jobs.batch")}
        for pod in self.store.of("pods"):
            owners = pod["metadata"].get("ownerReferences") or ()
            node = pod["spec"].get("nodeName")
            if node is not None and self.store.find("nodes", "", node) is None:
                self.store.remove(_key(pod))  # as the pod garbage collector does
            elif owners and owners[0]["uid"] not in uids and not pod["metadata"].get("deletionTimestamp"):
                self.store.delete(_key(pod), {})

    def _schedule(self) -> None:
        for pod in self.store.of("pods"):
            if pod["spec"].get("nodeName") or is_over(pod) or pod["metadata"].get("deletionTimestamp"):
                continue
            if pod["spec"].get("schedulingGates"):
                condition = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
                self.store.update(_key(pod), _set_status({"phase": "Pending", "conditions": [condition]}))
                continue
            node = next((node for node in self.store.of("nodes") if self._fits(pod, node)), None)
            if node is not None:
                name = node["metadata"]["name"]
                self.store.update(_key(pod), _set_node(name))
            else:
                words = {"reason": "Unschedulable", "message": "0 nodes are available: Insufficient nvidia.com/gpu"}
                condition = {"type": "PodScheduled", "status": "False", **words}
                self.store.update(_key(pod), _set_status({"phase": "Pending", "conditions": [condition]}))

    def _fits(self, pod: Json, node: Json) -> bool:
        name = node["metadata"]["name"]
        if node["spec"].get("unschedulable") or name not in _wanted_nodes(pod, name):
            return False
        tolerated = {each["key"] for each in pod["spec"].get("tolerations") or ()}
        if any(taint["key"] not in tolerated for taint in node["spec"].get("taints") or ()):
            return False
        there = [each for each in self.store.of("pods") if each["spec"].get("nodeName") == name and not is_over(each)]
        apart = (pod["spec"].get("affinity") or {}).get("podAntiAffinity")
        label = "gpu-turnstile/allocation"
        mine = (pod["metadata"].get("labels") or {}).get(label)
        if apart and any((each["metadata"].get("labels") or {}).get(label) == mine for each in there):
            return False
        used = sum(gpus_of(each) for each in there)
        return used + gpus_of(pod) <= int(node["status"]["allocatable"].get(GPU, 0))

    def _kubelets(self) -> None:
        for node in self.store.of("nodes"):
            gpus = (node["metadata"].get("annotations") or {}).get(PREFIX + "gpus")
            if gpus is not None:
                key = ("nodes", "", node["metadata"]["name"])
                self.store.update(key, _set_gpus(gpus))
        for pod in self.store.of("pods"):
            node_name = pod["spec"].get("nodeName")
            found = None if node_name is None else self.store.find("nodes", "", node_name)
            if found is None or (found["metadata"].get("annotations") or {}).get(PREFIX + "state") == "silent":
                continue
            self._kubelet(pod)

    def _kubelet(self, pod: Json) -> None:
        metadata, status = pod["metadata"], pod.get("status") or {}
        notes = metadata.get("annotations") or {}
        if is_over(pod):
            if metadata.get("deletionTimestamp"):
                self.store.remove(_key(pod))
        elif metadata.get("deletionTimestamp") and status.get("phase") != "Running":
            self.store.remove(_key(pod))
        elif metadata.get("deletionTimestamp"):
            takes, grace = float(notes.get(PREFIX + "term-seconds", 0)), metadata["deletionGracePeriodSeconds"]
            code = 143 if takes <= grace else 137
            self._later(min(takes, grace), metadata["uid"], f"stop {grace}", lambda: self._finish(pod, code, "Error"))
        elif status.get("phase") == "Running":
            if PREFIX + "fail" in notes:
                self._finish(pod, int(notes[PREFIX + "fail"]), notes.get(PREFIX + "why", "Error"))
        elif PREFIX + "waiting" in notes:
            waiting = {"waiting": {"reason": notes[PREFIX + "waiting"], "message": "says the kubelet"}}
            self.store.update(
                _key(pod), _set_status({"phase": "Pending", "containerStatuses": _containers(pod, waiting)})
            )
        else:
            running = {"running": {"startedAt": self.store.stamp()}}
            status = {"phase": "Running", "containerStatuses": _containers(pod, running), "podIP": "10.0.0.1"}
            self.store.update(_key(pod), _set_status(status))
            seconds = notes.get(PREFIX + "run-seconds", "forever")
            if seconds not in {"forever", "inf"}:
                code = int(notes.get(PREFIX + "exit-code", 0))
                words = "Completed" if code == 0 else "Error"
                self._later(float(seconds), metadata["uid"], "end", lambda: self._finish(pod, code, words))

    def _finish(self, pod: Json, code: int, why: str) -> None:
        """The containers ended; a pod that is being deleted then goes for good."""
        current = self.store.find("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])
        if current is None or current["metadata"]["uid"] != pod["metadata"]["uid"] or is_over(current):
            return
        ended = {"exitCode": code, "reason": why, "finishedAt": self.store.stamp()}
        containers = []
        for each in current["status"]["containerStatuses"]:
            running = each["state"].get("running")
            state = {"terminated": ended | {"startedAt": running["startedAt"]}} if running else each["state"]
            containers.append({"name": each["name"], "state": state})
        status = {"phase": "Succeeded" if code == 0 else "Failed", "containerStatuses": containers}
        self.store.update(_key(current), _set_status(status))

    def _later(self, seconds: float, uid: str, what: str, do: Any) -> None:
        if (uid, what) in self.timed:
            return
        self.timed.add((uid, what))

        def run() -> None:
            with self.store.lock:
                do()

        if seconds <= 0:
            run()
            return
        timer = threading.Timer(seconds, run)
        timer.daemon = True
        self.timers.append(timer)
        timer.start()


def gpus_of(pod: Json) -> int:
    return sum(int((each.get("resources") or {}).get("limits", {}).get(GPU, 0)) for each in pod["spec"]["containers"])


def _wanted_nodes(pod: Json, default: str) -> list[str]:
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return [default]
    return [
        value for term in required["nodeSelectorTerms"] for field in term["matchFields"] for value in field["values"]
    ]


def _containers(pod: Json, state: Json) -> list[Json]:
    return [{"name": each["name"], "state": state} for each in pod["spec"]["containers"]]


def _condition(kind: str) -> Json:
    return {"type": kind, "status": "True"}


def _key(item: Json) -> Key:
    return ("pods", item["metadata"]["namespace"], item["metadata"]["name"])


def _set_status(status: Json) -> Any:
    def change(item: Json) -> None:
        item["status"] = {**(item.get("status") or {}), **status}

    return change


def node(name: str, gpus: int = 8, **labels: str) -> Json:
    """A GPU node as its kubelet and GPU feature discovery describe it."""
    sizes = {"cpu": "96", "memory": "960Gi", "pods": "110", GPU: str(gpus)}
    return {
        "metadata": {"name": name, "labels": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", **labels}},
        "spec": {},
        "status": {
            "capacity": dict(sizes),
            "allocatable": dict(sizes),
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def _set_node(name: str) -> Any:
    return lambda item: item["spec"].update(nodeName=name)


def _set_gpus(gpus: str) -> Any:
    return lambda item: item["status"]["allocatable"].update({GPU: gpus})
