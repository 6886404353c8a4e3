"""Whether a gang could ever start: its size and classes against the sizes of node that exist, with numbers.

Checked without any lock, against drained nodes too: what is impossible only for now waits with a reason instead. Every
refusal has its numbers and the nearest request that would work.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from scheduler.core.model import GPU_UNITS, GpuClass, NodeName, PoolName
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.wire.spec import JobSpec, invalid, parse_topology
from scheduler.wire.text import did_you_mean

MEMORY_LABEL = "gpu_memory_bytes"
"""The node label by which an executor says how much memory each GPU of the node has."""


class Offer(Protocol):
    """A size of node that exists, with how many there are; GPUs, CPU and memory as of one such node when empty."""

    @property
    def gpu_class(self) -> GpuClass: ...
    @property
    def pool(self) -> PoolName: ...
    @property
    def gpus(self) -> int: ...
    @property
    def cpu_millicores(self) -> int: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def nodes(self) -> int: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def names(self) -> frozenset[NodeName]: ...
    @property
    def device_units(self) -> int: ...
    @property
    def pressure(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Ask:
    """The size of the gang that a spec asks for, its defaults filled in."""

    nodes: int
    units: int
    """Capacity units per node: of whole devices, or of the part of one."""
    classes: tuple[GpuClass, ...]
    most_nodes: int | None = None
    """Of an elastic gang: the most nodes that it may have."""


def size_of(spec: JobSpec, offers: Sequence[Offer]) -> Ask:
    """Returns the gang's size and classes. Raises Refused: `invalid` for names that do not exist, `never_fits`, and
    `unavailable` while no node has registered yet."""
    if not offers:
        raise Refused(RefusalCode.UNAVAILABLE, "no node has registered yet, so nothing can be said about any size")
    _check_names(spec, offers)
    eligible = _eligible(spec, offers)
    nodes, gpus = _gang(spec, eligible)
    _check_gpus(spec, eligible, nodes, gpus)
    _check_cpu_and_memory(spec, eligible, gpus)
    fitting = [offer for offer in eligible if _holds(offer, spec, gpus)]
    if not fitting:
        raise _never(
            f"no {_class_words(spec)} node has {gpus} GPUs, {_words_of_sides(spec)} at once",
            tries=(),
            field="gpus_per_node",
        )
    _check_named(spec, nodes)
    counts = _nodes_by_class(spec, fitting)
    enough = {gpu_class for gpu_class, count in counts.items() if count >= nodes}
    if not enough:
        raise _too_many_nodes(spec, counts, nodes, gpus)
    _check_topology(spec, fitting, nodes, enough)
    named = tuple(GpuClass(name) for name in dict.fromkeys(spec.gpu_classes))
    if not named or spec.gpu_memory_bytes is not None:
        named = tuple(name for name in named or _by_pressure(fitting) if name in enough)
    return _elastic(spec, _sized(spec, nodes, gpus, {name: _units_of(name, fitting) for name in named}))


def _by_pressure(offers: Sequence[Offer]) -> list[GpuClass]:
    """Returns the classes, those first for which others ask least: who names none leaves alone what others name."""
    pressures = {offer.gpu_class: offer.pressure for offer in offers}
    return sorted(pressures, key=lambda name: (pressures[name], name))


def _elastic(spec: JobSpec, ask: Ask) -> Ask:
    """Returns the ask with the most nodes of an elastic gang. More than there are is allowed: some may come yet."""
    if spec.nodes_max is None or spec.nodes_max <= ask.nodes:
        return ask
    if ask.units < GPU_UNITS:
        name = ask.classes[0]
        what = f"an elastic gang has whole GPUs, and {name} is part of one"
        tried = f"-g {name}:1 -N {ask.nodes}"
        raise Refused(RefusalCode.INVALID, what, tries=(tried,), problems=(Problem(what, "nodes_max"),))
    return replace(ask, most_nodes=spec.nodes_max)


def _units_of(gpu_class: GpuClass, offers: Sequence[Offer]) -> int:
    """Returns the capacity units of the smallest device of a class; a GPU's where its nodes do not agree."""
    return min((offer.device_units for offer in offers if offer.gpu_class == gpu_class), default=0) or GPU_UNITS


def _sized(spec: JobSpec, nodes: int, gpus: int, sizes: Mapping[GpuClass, int]) -> Ask:
    """Returns the ask in capacity units. MIG instances are devices of less than a GPU: one to a node of a gang."""
    sliced = {name for name, units in sizes.items() if units < GPU_UNITS}
    if sliced and not spec.gpu_classes and len(sliced) < len(sizes):
        sizes = {name: units for name, units in sizes.items() if name not in sliced}  # a GPU is a whole one
        sliced = set()
    if not sliced:
        share = None if spec.gpus_per_node is None or spec.gpus_per_node >= 1 else round(spec.gpus_per_node * 100)
        return Ask(nodes, gpus * GPU_UNITS if share is None else share * GPU_UNITS // 100, tuple(sizes))
    name = min(sliced)
    if spec.gpus_per_node is not None and spec.gpus_per_node < 1:
        what, tried = f"{name} is part of a GPU already and is not shared", f"-g {name}:1"
    elif len(set(sizes.values())) > 1:
        what, tried = f"{', '.join(sizes)} are not of one size; name one of them", f"-g {name}:{gpus}"
    elif gpus > 1:
        what, tried = f"a job has one {name} on a node at most, not {gpus}", f"-g {name}:1 -N {nodes * gpus}"
    else:
        return Ask(nodes, sizes[name], tuple(sizes))
    raise Refused(RefusalCode.INVALID, what, tries=(tried,), problems=(Problem(what, "gpus_per_node"),))


def _check_names(spec: JobSpec, offers: Sequence[Offer]) -> None:
    problems = []
    classes = sorted({offer.gpu_class for offer in offers})
    for name in spec.gpu_classes:
        if name not in classes:
            hint = did_you_mean(name, tuple(classes)) or f"; there are {', '.join(classes)}"
            problems.append(Problem(f"no GPU class {name!r}{hint}", "gpu_classes"))
    pools = sorted({offer.pool for offer in offers})
    if spec.pool is not None and spec.pool not in pools:
        hint = did_you_mean(spec.pool, tuple(pools)) or f"; there are {', '.join(pools)}"
        problems.append(Problem(f"no pool {spec.pool!r}{hint}", "pool"))
    names = frozenset[str]().union(*(offer.names for offer in offers))
    for name in spec.only_nodes:
        if name not in names:
            hint = did_you_mean(name, sorted(names))
            problems.append(Problem(f"no node {name!r}{hint}", "only_nodes"))
    if problems:
        refused = invalid(tuple(problems))
        known = [name for name in dict.fromkeys(spec.gpu_classes) if name in classes]
        if known and len(known) < len(set(spec.gpu_classes)):
            refused.tries = (f"-g {','.join(known)}:{spec.gpus_per_node or 1:g}",)
        raise refused


def _eligible(spec: JobSpec, offers: Sequence[Offer]) -> list[Offer]:
    """Returns the offers of the right class, pool, labels and GPU memory, whatever their size."""
    found = [offer for offer in offers if not spec.gpu_classes or offer.gpu_class in spec.gpu_classes]
    if spec.pool is not None:
        in_pool = [offer for offer in found if offer.pool == spec.pool]
        if not in_pool:
            others = sorted({offer.pool for offer in found})
            raise _never(
                f"pool {spec.pool} has no {_class_words(spec)}; it is in {', '.join(others)}",
                tries=tuple(f"-p {pool}" for pool in others[:3]),
                field="pool",
            )
        found = in_pool
    for key, value in sorted(spec.constraints.items()):
        found = [offer for offer in found if offer.labels.get(key) == value]
        if not found:
            raise _never(f"no such node has the label {key}={value}", tries=(), field="constraints")
    among = [offer for offer in found if _allowed(spec, offer)]
    if not among:
        raise _never_by_name(spec)
    found = among
    return found if spec.gpu_memory_bytes is None else _with_memory(spec.gpu_memory_bytes, found)


def _allowed(spec: JobSpec, offer: Offer) -> int:
    """Returns how many of the offer's nodes the spec's own lists of names leave."""
    left = offer.names & frozenset(spec.only_nodes) if spec.only_nodes else offer.names
    return len(left - frozenset(spec.exclude_nodes))


def _never_by_name(spec: JobSpec) -> Refused:
    if spec.only_nodes:
        what = f"none of the nodes named is one of the {_class_words(spec)} nodes asked for"
        return _never(what, tries=(), field="only_nodes")
    return _never(f"every {_class_words(spec)} node is excluded", tries=(), field="exclude_nodes")


def _check_named(spec: JobSpec, nodes: int) -> None:
    left = len(set(spec.only_nodes) - set(spec.exclude_nodes))
    if spec.only_nodes and left < nodes:
        raise _never(f"asks {nodes} nodes and names {left}", tries=(f"-N {left}",), field="only_nodes")


def _with_memory(wanted_bytes: int, offers: Sequence[Offer]) -> list[Offer]:
    known = [(offer, memory_of(offer)) for offer in offers]
    stated = [memory for _, memory in known if memory is not None]
    if not stated:
        raise Refused(
            RefusalCode.POLICY,
            "the nodes of this centre do not say how much memory their GPUs have; name a class instead",
            tries=tuple(f"-g {name}:1" for name in sorted({offer.gpu_class for offer in offers})[:3]),
        )
    found = [offer for offer, memory in known if memory is not None and memory >= wanted_bytes]
    if not found:
        raise _never(
            f"no GPU has {_size(wanted_bytes)} of memory (largest: {_size(max(stated))})",
            tries=(),
            field="gpu_memory_bytes",
        )
    return found


def memory_of(offer: Offer) -> int | None:
    """Returns the memory of one GPU of the offer, in bytes; None when its nodes do not say."""
    text = offer.labels.get(MEMORY_LABEL, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def _gang(spec: JobSpec, eligible: Sequence[Offer]) -> tuple[int, int]:
    """Returns (nodes, GPUs per node); a share touches one.

    `total_gpus` alone takes the fewest nodes over which it divides evenly.
    """
    if spec.exclusive:
        return spec.nodes or 1, _whole_node(spec, eligible)
    if spec.gpus_per_node is not None:
        return spec.nodes or 1, max(1, int(spec.gpus_per_node))
    assert spec.total_gpus is not None, "parse_spec lets no spec pass that names no count of GPUs"
    if spec.nodes is not None:
        return spec.nodes, spec.total_gpus // spec.nodes
    largest = max((offer.gpus for offer in eligible), default=0)
    per_node = _largest_divisor(spec.total_gpus, largest)
    return (spec.total_gpus // per_node, per_node) if per_node else (1, spec.total_gpus)


def _whole_node(spec: JobSpec, eligible: Sequence[Offer]) -> int:
    """Returns the GPUs of a node, where all that may be meant have as many. Raises Refused (`invalid`) otherwise."""
    whole = [offer for offer in eligible if offer.device_units == GPU_UNITS]
    sizes: dict[int, GpuClass] = {}
    for offer in eligible if spec.gpu_classes or not whole else whole:
        if offer.gpus:
            sizes.setdefault(offer.gpus, offer.gpu_class)
    if len(sizes) == 1:
        return next(iter(sizes))
    counts = sorted(sizes, reverse=True)
    told = " or ".join(str(each) for each in counts)
    what = (
        f"the {_class_words(spec)} nodes are not of one size: they have {told} GPUs; say which nodes, or how many GPUs"
    )
    if not sizes:
        what = f"no {_class_words(spec)} node has a GPU"
    several = {offer.gpu_class for offer in eligible if offer.gpus} if not spec.gpu_classes else set()
    tries = tuple(f"-g {sizes[each]} --exclusive" for each in counts) if len(several) == len(counts) else ()
    tries = tries or tuple(f"-g {sizes[each]}:{each}" for each in counts)
    raise Refused(RefusalCode.INVALID, what, tries=tries[:3], problems=(Problem(what, "exclusive"),))


def _largest_divisor(total: int, largest: int) -> int:
    """Returns the greatest divisor of `total` that is at most `largest`; 0 when `largest` is 0."""
    return next((count for count in range(min(largest, total), 0, -1) if total % count == 0), 0)


def _check_gpus(spec: JobSpec, eligible: Sequence[Offer], nodes: int, gpus: int) -> None:
    largest = max((offer.gpus for offer in eligible), default=0)
    if gpus <= largest:
        return
    tries = []
    per_node = _largest_divisor(nodes * gpus, largest)
    name = next((each for each in spec.gpu_classes), None)
    prefix = f"{name}:" if name else ""
    total_nodes = sum(_allowed(spec, offer) for offer in eligible if offer.gpus >= max(per_node, 1))
    if per_node and nodes * gpus // per_node <= total_nodes:
        tries.append(f"-g {prefix}{per_node} -N {nodes * gpus // per_node}")
    elif largest:
        tries.append(f"-g {prefix}{largest}" + (f" -N {nodes}" if nodes > 1 else ""))
    words = _class_words(spec)
    raise _never(f"no node has {gpus} {words} (largest: {largest})", tries=tuple(tries), field="gpus_per_node")


def _check_cpu_and_memory(spec: JobSpec, eligible: Sequence[Offer], gpus: int) -> None:
    holding = [offer for offer in eligible if offer.gpus >= gpus]
    cpus = max(offer.cpu_millicores for offer in holding) // 1000
    if spec.cpus_per_node is not None and spec.cpus_per_node > cpus:
        raise _never(
            f"no {_class_words(spec)} node has {spec.cpus_per_node} CPUs (largest: {cpus})",
            tries=(f"-c {cpus}",),
            field="cpus_per_node",
        )
    memory = max(offer.memory_bytes for offer in holding)
    if spec.memory_bytes_per_node is not None and spec.memory_bytes_per_node > memory:
        wanted = _size(spec.memory_bytes_per_node)
        raise _never(
            f"no {_class_words(spec)} node has {wanted} of memory (largest: {_size(memory)})",
            tries=(f"-m {memory >> 30}G",) if memory >> 30 else (),
            field="memory_bytes_per_node",
        )


def _holds(offer: Offer, spec: JobSpec, gpus: int) -> bool:
    return (
        offer.gpus >= gpus
        and offer.cpu_millicores >= (spec.cpus_per_node or 0) * 1000
        and offer.memory_bytes >= (spec.memory_bytes_per_node or 0)
    )


def _nodes_by_class(spec: JobSpec, offers: Sequence[Offer]) -> dict[GpuClass, int]:
    counts: dict[GpuClass, int] = {}
    for offer in offers:
        counts[offer.gpu_class] = counts.get(offer.gpu_class, 0) + _allowed(spec, offer)
    return counts


def _too_many_nodes(spec: JobSpec, counts: Mapping[GpuClass, int], nodes: int, gpus: int) -> Refused:
    most = max(counts.values())
    best = min(name for name, count in counts.items() if count == most)
    return _never(
        f"asks {nodes} nodes with {gpus} {_class_words(spec)} each; there are {most} such nodes",
        tries=(f"-g {best}:{gpus} -N {most}",),
        field="nodes",
    )


def _check_topology(spec: JobSpec, offers: Sequence[Offer], nodes: int, classes: Collection[GpuClass]) -> None:
    """Refuses a gang that must be near each other where no group of nodes with one value of the label is so large."""
    asked = None if spec.topology is None else parse_topology(spec.topology)
    if asked is None:
        return
    label, is_required = asked
    groups: dict[tuple[GpuClass, PoolName, str], int] = {}
    for offer in offers:
        value = offer.labels.get(label)
        if value is not None and offer.gpu_class in classes:
            key = (offer.gpu_class, offer.pool, value)
            groups[key] = groups.get(key, 0) + _allowed(spec, offer)
    if not groups:
        hint = did_you_mean(label, sorted({name for offer in offers for name in offer.labels}))
        raise invalid((Problem(f"no such node has a label {label!r}{hint}", "topology"),))
    most = max(groups.values())
    if is_required and nodes > most:
        raise _never(
            f"asks {nodes} nodes that share one {label}; at most {most} do",
            tries=(f"--topology preferred:{label}", f"-N {most}"),
            field="topology",
        )


def _class_words(spec: JobSpec) -> str:
    return " or ".join(spec.gpu_classes) if spec.gpu_classes else "GPU"


def _size(count_bytes: int) -> str:
    """Returns a size in words that lose none of it as far as people count: GiB with two digits, or bytes below one."""
    if count_bytes < 1 << 30:
        return f"{count_bytes} bytes"
    whole, hundredths = divmod(count_bytes * 100 >> 30, 100)
    return f"{whole:,}.{hundredths:02d} GiB"


def _words_of_sides(spec: JobSpec) -> str:
    sides = []
    if spec.cpus_per_node is not None:
        sides.append(f"{spec.cpus_per_node} CPUs")
    if spec.memory_bytes_per_node is not None:
        sides.append(f"{_size(spec.memory_bytes_per_node)} of memory")
    return " and ".join(sides)


def _never(what: str, tries: tuple[str, ...], field: str) -> Refused:
    return Refused(
        RefusalCode.NEVER_FITS, f"{what}, so this job could never start", tries=tries, problems=(Problem(what, field),)
    )
