"""Reads fields of the server's JSON with the types that the API promises.

An answer that breaks the promise is the peer's fault: `BrokenAnswer` names the field, and nothing is guessed. Absent
and null are the same here, as additions are allowed and old servers lack them.
"""

from collections.abc import Mapping
from typing import TypeAlias

from cli.errors import CliError

Json: TypeAlias = Mapping[str, object]


class BrokenAnswer(CliError):
    """The server's answer is not what docs/api.md promises."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the server's answer is not understood: {what}", code="broken_answer", tries=("turnstile doctor",)
        )


def mapping(value: object, where: str = "the answer") -> Json:
    """Returns `value` as an object. Raises BrokenAnswer if it is something else."""
    if isinstance(value, dict):
        return value
    raise BrokenAnswer(f"{where} is not an object")


def items(answer: Json, key: str = "items") -> list[Json]:
    """Returns the objects listed under `key`; empty if it is absent."""
    value = answer.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise BrokenAnswer(f"{key} is not a list")
    return [mapping(each, f"an element of {key}") for each in value]


def sub(item: Json, key: str) -> Json | None:
    """Returns the object under `key`, or None if it is absent."""
    value = item.get(key)
    return None if value is None else mapping(value, key)


def text(item: Json, key: str) -> str | None:
    """Returns the text under `key`; a number is shown as it stands."""
    value = item.get(key)
    if value is None:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise BrokenAnswer(f"{key} is not text")


def whole(item: Json, key: str) -> int | None:
    """Returns the integer under `key`."""
    value = item.get(key)
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise BrokenAnswer(f"{key} is not a whole number")


def number(item: Json, key: str) -> str | None:
    """Returns a count as people write it: `8`, or `0.5` where shares of a GPU are counted."""
    value = item.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise BrokenAnswer(f"{key} is not a number")
    return str(value).removesuffix(".0")


def truth(item: Json, key: str) -> bool:
    """Returns the boolean under `key`; absent is False."""
    value = item.get(key)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise BrokenAnswer(f"{key} is not true or false")


def texts(item: Json, key: str) -> list[str]:
    """Returns the list of texts under `key`; empty if it is absent."""
    value = item.get(key)
    if value is None:
        return []
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return [str(each) for each in value]
    raise BrokenAnswer(f"{key} is not a list of texts")


def counts(item: Json, key: str) -> dict[str, int]:
    """Returns whole numbers by name, as in `guarantee {class: gpus}`; empty if it is absent."""
    found = sub(item, key) or {}
    return {name: whole(found, name) or 0 for name in found}


def at(item: Json, path: str) -> object:
    """Returns what stands at a dotted path (`max_cost.amount`, `reasons.0.code`), or None where the path ends early."""
    value: object = item
    for step in path.split("."):
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdigit():
            value = value[int(step)] if int(step) < len(value) else None
        else:
            return None
    return value
