"""`--sweep lr=1e-5,2e-5`: one job for each combination of values. Pure: a job asked for in, jobs asked for out."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from cli import values
from cli.errors import Refusal, UsageProblem

MOST_JOBS = 1000
"""The most that one sweep submits: each is a request, and a slip of the finger in one list multiplies the others."""
_LONGEST_NAME = 128
"""The most characters that the API takes in a name."""

Spec = Mapping[str, object]


def combinations(sweeps: Sequence[str]) -> list[dict[str, str]]:
    """Returns what the variables are in each job: the cross product, the last variable changing fastest.

    Raises UsageProblem for what is no sweep or names a variable twice, Refusal for more than MOST_JOBS.
    """
    read = [values.sweep(each) for each in sweeps]
    names = [name for name, _ in read]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageProblem(f"--sweep {twice[0]} is there twice", f"--sweep {twice[0]}=1,2")
    many = math.prod(len(several) for _, several in read)
    if many > MOST_JOBS:
        raise Refusal(
            f"--sweep makes {many:,} jobs; {MOST_JOBS:,} is the most", "an array: -a 0-9999", code="too_large"
        )
    return [dict(zip(names, each, strict=True)) for each in itertools.product(*(several for _, several in read))]


def swept(spec: Spec, sweeps: Sequence[str]) -> Iterator[dict[str, object]]:
    """Yields the job of each combination: its variables in the name, in the environment, and for `{lr}` in what runs.

    Raises as `combinations` does, before it yields anything.
    """
    found = combinations(sweeps)
    return (_one(spec, each) for each in found)


def _one(spec: Spec, chosen: Mapping[str, str]) -> dict[str, object]:
    made = dict(spec)
    for key in ("command", "script"):
        if key in made:
            made[key] = _filled(made[key], chosen)
    environment = made.get("env")
    made["env"] = {**(environment if isinstance(environment, dict) else {}), **chosen}
    suffix = "-".join(f"{name}={value}" for name, value in chosen.items())
    made["name"] = f"{_base_name(spec)}-{suffix}"[:_LONGEST_NAME].rstrip()
    return made


def _base_name(spec: Spec) -> str:
    name, command = spec.get("name"), spec.get("command")
    if isinstance(name, str):
        return name
    return str(command[0]).rpartition("/")[2] if isinstance(command, list) else "script"


def _filled(work: object, chosen: Mapping[str, str]) -> object:
    """Braces around a variable of the sweep become its value; others are the program's own."""
    if isinstance(work, list):
        return [_filled(word, chosen) for word in work]
    pattern = "|".join(re.escape(name) for name in chosen)
    return re.sub(r"\{(" + pattern + r")\}", lambda match: chosen[match[1]], str(work))
