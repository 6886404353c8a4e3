"""Which allocation computes on which GPU of a node, by two witnesses: the kubelet, and processes.

The kubelet says what it gave (`scheduler.executor.DeviceWitness`). The processes that NVML sees say what is used: they
stand in where the kubelet is silent, and where they contradict it, that is a problem of the node to be told, because
somebody computes on a GPU that is another's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from metering.agent import GpuSnapshot
from scheduler.core.model import AllocationId
from scheduler.executor import DeviceWitness, ExecutorError

BY_KUBELET, BY_PROCESS = "podresources", "cgroup"


class ProcessWitness(Protocol):
    """Tells of which allocations processes are."""

    def owners(self, process_ids: Mapping[str, Sequence[int]]) -> Mapping[str, frozenset[AllocationId | None]]:
        """Returns, by device, whose processes compute on it: None stands for anybody without an allocation.

        Processes that have ended meanwhile are left out. Raises ExecutorError when none can be told apart.
        """
        ...


@dataclass(frozen=True, slots=True)
class Held:
    """A GPU is in an allocation's hands, by the word of `witness`."""

    device: str
    allocation: AllocationId
    witness: str


class HolderWatch:
    """Asks both witnesses, as far as they are there. For one thread at a time."""

    def __init__(self, kubelet: DeviceWitness | None = None, processes: ProcessWitness | None = None) -> None:
        self._kubelet = kubelet
        self._processes = processes

    def look(self, snapshot: GpuSnapshot) -> tuple[list[Held], list[str]]:
        """Returns who holds what, by device, and what is wrong, in words."""
        problems: list[str] = []
        given = self._given(problems)
        held = {device: Held(device, allocation, BY_KUBELET) for device, allocation in (given or {}).items()}
        for device, owners in sorted(self._using(snapshot, problems).items()):
            mine = held.get(device)
            if given is None:
                allocations = [owner for owner in owners if owner is not None]
                if len(allocations) == 1:
                    held[device] = Held(device, allocations[0], BY_PROCESS)
                continue
            strangers = owners - {mine.allocation if mine is not None else None}
            if strangers:
                problems.append(_contradiction(device, mine, strangers))
        return [held[device] for device in sorted(held)], problems

    def _given(self, problems: list[str]) -> Mapping[str, AllocationId] | None:
        if self._kubelet is None:
            return None
        try:
            return self._kubelet.holders()
        except ExecutorError as problem:
            problems.append(f"who holds which GPU is not known: {problem}")
            return None

    def _using(self, snapshot: GpuSnapshot, problems: list[str]) -> Mapping[str, frozenset[AllocationId | None]]:
        if self._processes is None:
            return {}
        seen = {
            each.identity.uuid: each.sample.process_ids
            for each in snapshot.devices
            if each.sample is not None and each.sample.process_ids and not each.identity.is_mig_parent
        }
        if not seen:
            return {}
        try:
            return self._processes.owners(seen)
        except ExecutorError as problem:
            problems.append(f"whose processes compute is not known: {problem}")
            return {}


def _contradiction(device: str, mine: Held | None, strangers: frozenset[AllocationId | None]) -> str:
    names = sorted(f"allocation {owner}" if owner is not None else "no allocation" for owner in strangers)
    whose = f"allocation {mine.allocation}" if mine is not None else "nobody of ours"
    return f"GPU {device}: processes of {' and of '.join(names)} compute on it; the kubelet gave it to {whose}"
