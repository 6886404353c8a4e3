"""What several `#SBATCH` lines say together: CPUs and memory of a node, GPUs of tasks, whole nodes, lists of hosts.

Each is translated where the lines fix it exactly. Where Slurm would choose by itself (how many tasks a node gets), the
option is named with what is missing.
"""

from collections.abc import Iterator

from cli.slurmwords import Found

_ONCE = "the command starts once on each node, as torchrun wants"


def summed(found: Found) -> Iterator[tuple[str, str]]:
    """Puts into `found.flags` what its counts come to; yields the options that cannot be kept, each with its reason."""
    yield from _hosts(found)
    tasks, why = _tasks_per_node(found)
    if why is not None:
        yield "--ntasks", why
    yield from _gpus(found, tasks)
    yield from _cpus(found, tasks)
    yield from _memory(found)
    yield from _whole_nodes(found)
    error, output = found.error, found.flags.get("output")
    if error is not None and error != output:
        yield "--error", "output and errors are one stream here; leave it out, or name the file of -o"
    if found.flags.get("notify") and "array" in found.flags and not found.counts.get("ARRAY_TASKS"):
        found.flags["notify_when"] = "last"


def _hosts(found: Found) -> Iterator[tuple[str, str]]:
    """A list of hosts is exact where the job takes all of them: Slurm adds others of its choice to a larger job."""
    named = found.flags.get("node")
    if not isinstance(named, list):
        return
    if found.flags.setdefault("nodes", str(len(named))) != str(len(named)):
        del found.flags["node"]
        yield "--nodelist", f"names {len(named)} nodes of {found.flags['nodes']}; it must name all of them"


def _tasks_per_node(found: Found) -> tuple[int | None, str | None]:
    """Returns how many tasks a node has, None where nothing says it; and why `--ntasks` cannot be kept."""
    each, total = found.counts.get("--ntasks-per-node"), found.counts.get("--ntasks")
    nodes = found.flags.get("nodes", "1" if total == 1 else None)
    if each is not None or total not in {None, 1}:
        found.notes["tasks"] = f"tasks count for CPUs, GPUs and memory alone: {_ONCE}"
    if total is None:
        return each or 1, None
    if total == 1:
        found.flags.setdefault("nodes", "1")
    if not isinstance(nodes, str) or not nodes.isdigit():
        return each, "says how many nodes there are only together with -N"
    if each is not None:
        return each, None if each * int(nodes) == total else f"is not {nodes} nodes × {each} tasks"
    if int(nodes) in {1, total}:
        return total // int(nodes), None
    return None, "which node gets how many is Slurm's choice; write --ntasks-per-node"


def _gpus(found: Found, tasks: int | None) -> Iterator[tuple[str, str]]:
    kind = found.flags.pop("gpu_kind", None)
    of_task = found.counts.get("--gpus-per-task")
    if of_task is not None and tasks is None:
        yield "--gpus-per-task", "how many tasks a node has is not said; write --ntasks-per-node"
    elif of_task is not None and tasks is not None:
        text = str(of_task * tasks) if kind is None else f"{kind}:{of_task * tasks}"
        if found.flags.setdefault("gpus", text) != text:
            yield "--gpus-per-task", f"comes to {text} a node, and {found.flags['gpus']} are asked for"
    if "gpus" in found.flags and "total_gpus" in found.flags:
        # Slurm takes the total as a bound on how the per-node count may be met; the per-node count says it all.
        del found.flags["total_gpus"]
        found.notes["total"] = "--gpus beside a count per node: the count per node holds"


def _gpu_count(found: Found) -> int | None:
    """Returns the GPUs of a node, where the lines say it."""
    text = found.flags.get("gpus")
    return int(text.rpartition(":")[2]) if isinstance(text, str) else None


def _cpus(found: Found, tasks: int | None) -> Iterator[tuple[str, str]]:
    of_task, of_gpu, gpus = found.counts.get("--cpus-per-task"), found.counts.get("--cpus-per-gpu"), _gpu_count(found)
    if of_task is not None and tasks is None:
        yield "--cpus-per-task", "how many tasks a node has is not said; write --ntasks-per-node"
    elif of_task is not None and tasks is not None:
        found.flags["cpus"] = str(of_task * tasks)
    if of_gpu is None:
        return
    if of_task is not None or gpus is None:
        yield "--cpus-per-gpu", "goes with a count of GPUs per node, and without --cpus-per-task"
    else:
        found.flags["cpus"] = str(of_gpu * gpus)


def _memory(found: Found) -> Iterator[tuple[str, str]]:
    cpus = found.flags.get("cpus")
    counts = {"--mem-per-gpu": _gpu_count(found), "--mem-per-cpu": int(cpus) if isinstance(cpus, str) else None}
    for option, size in found.sizes.items():
        count = counts[option]
        if "mem" in found.flags:
            yield option, "says what --mem says already, or another option of its kind"
        elif count is None:
            yield option, f"goes with a count of {option.rpartition('-')[2].upper()}s per node"
        else:
            found.flags["mem"] = f"{int(size[:-1]) * count}{size[-1]}"


def _whole_nodes(found: Found) -> Iterator[tuple[str, str]]:
    """Slurm gives a job with `--exclusive` all GPUs of its nodes, however few it names; ours takes the class alone."""
    if "exclusive" not in found.flags:
        return
    if "total_gpus" in found.flags and "nodes" not in found.flags:
        del found.flags["exclusive"]
        yield "--exclusive", "with a total of GPUs the nodes are not counted; write -N"
        return
    for name in ("gpus", "total_gpus"):
        counted = found.flags.pop(name, None)
        if not isinstance(counted, str):
            continue
        kind = counted.rpartition(":")[0]
        if kind:
            found.flags["gpus"] = kind
        found.notes["exclusive"] = f"--exclusive: all GPUs of each node, not {counted}"
