"""The policy as people write it: a table of the knobs of `core.policy.Policy`, in a policy file or in the settings."""

import ast
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from types import UnionType
from typing import Any, get_args, get_type_hints

from scheduler.core.policy import Policy
from scheduler.refusal import Problem, RefusalCode, Refused


@dataclass(frozen=True, slots=True)
class Knob:
    """A knob as the reference shows it."""

    name: str
    kind: str
    default: object
    why: str


def policy_from(table: Mapping[str, Any]) -> tuple[Policy, tuple[Problem, ...]]:
    """Returns the policy with the knobs that the table sets, and what is wrong with the others, knob by knob."""
    hints = get_type_hints(Policy)
    known = {each.name for each in fields(Policy)}
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            problems.append(Problem(f"unknown key; there are {', '.join(sorted(known))}", key))
            continue
        try:
            values[key] = _typed(key, value, hints[key])
        except Refused as refused:
            problems.append(Problem(refused.message, key))
    return replace(Policy(), **values), tuple(problems)


def value_of_text(name: str, text: str) -> object:
    """Returns what a variable says of a knob, as a file would have it; lists are parted by commas."""
    if text in {"true", "false"}:
        return text == "true"
    if text.isascii() and text.isdigit():
        return int(text)
    is_list = isinstance(getattr(Policy(), name), tuple)
    return [part.strip() for part in text.split(",") if part.strip()] if is_list else text


def knobs() -> tuple[Knob, ...]:
    """Returns every knob with its default and its reason, in the order of `Policy`."""
    body = ast.parse(inspect.getsource(Policy)).body[0]
    assert isinstance(body, ast.ClassDef)
    reasons: dict[str, str] = {}
    for declared, said in zip(body.body, body.body[1:], strict=False):
        if isinstance(declared, ast.AnnAssign) and isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant):
            assert isinstance(declared.target, ast.Name)
            reasons[declared.target.id] = " ".join(str(said.value.value).split())
    hints = get_type_hints(Policy)
    return tuple(Knob(each.name, _kind(hints[each.name]), each.default, reasons[each.name]) for each in fields(Policy))


def choice(name: str, value: str, choices: type[Enum]) -> Enum:
    """Returns the member of that value. Raises Refused with the values that there are."""
    try:
        return choices(value)
    except ValueError:
        listed = ", ".join(str(each.value) for each in choices)
        raise Refused(RefusalCode.INVALID, f"{name}: {value!r} is none of {listed}") from None


def _kind(wanted: Any) -> str:
    options = get_args(wanted) if isinstance(wanted, UnionType) else (wanted,)
    kind = next(each for each in options if each is not type(None))
    off = " or false" if type(None) in options else ""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(str(each.value) for each in kind)
    return {int: "int", bool: "bool"}.get(kind, "list of texts") + off


def _typed(key: str, value: object, wanted: Any) -> object:
    options = get_args(wanted) if isinstance(wanted, UnionType) else (wanted,)
    if value is False and type(None) in options:
        return None  # TOML has no null: false switches a knob off
    kind = next(each for each in options if each is not type(None))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return choice(key, str(value), kind)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if kind not in {int, bool} and isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(value)
    what = {int: "a whole number from 0 up", bool: "true or false"}.get(kind, "a list of texts")
    off = ", or false" if type(None) in options else ""
    raise Refused(RefusalCode.INVALID, f"must be {what}{off}, not {value!r}")
