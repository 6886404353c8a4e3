"""The kinds of text, number and path that requests carry, each with its limit, and the words for what breaks them.

Everything that a person typed ends up on other people's terminals, in spreadsheets and in both databases: control
characters, direction overrides and lone surrogates are refused here, once, and nowhere else.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import AfterValidator, StringConstraints, ValidationError

from scheduler.refusal import Problem

LONGEST_NAME = 128
LONGEST_PATH = 4096  # Linux' PATH_MAX
MOST_INTEGER = 2**53 - 1  # what every JSON reader keeps exact (RFC 8259, section 6)

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_ACCOUNT_STEP = re.compile(r"[^\W_][\w.\-]{0,62}\Z")
_MOST_ACCOUNT_DEPTH = 32
"""Of steps in a path. A tick walks the path of each start, so there is an end to it, far beyond any organisation."""


def is_printable(text: str) -> bool:
    """True when the text holds no control character, line separator, direction override or lone surrogate."""
    return _UNPRINTABLE.search(text) is None


def shown(text: str, longest: int = 64) -> str:
    """Returns what a person typed, fit to stand in a message: unprintable characters replaced, and not long."""
    clean = _UNPRINTABLE.sub("\ufffd", text)
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"


def _line(text: str) -> str:
    if not is_printable(text):
        raise ValueError("must not hold control characters")
    if text != text.strip():
        raise ValueError("must not begin or end with a space")
    return text


def _printable(text: str) -> str:
    if not is_printable(text):
        raise ValueError("must not hold control characters")
    return text


def _without_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not hold a NUL character: no program can be given one")
    return text


def account_path(text: str) -> str:
    """Returns an account path as it is. Raises ValueError in words: steps of letters, digits, `-`, `.`, `_`."""
    steps = text.split("/")
    if len(steps) > _MOST_ACCOUNT_DEPTH:
        raise ValueError(f"may have at most {_MOST_ACCOUNT_DEPTH} steps, as in tenant/project")
    for step in steps:
        if _ACCOUNT_STEP.match(step) is None:
            raise ValueError(
                "is a path such as tenant/project; each step begins with a letter or digit and holds at most 63 "
                "letters, digits, '-', '.' and '_'"
            )
    return text


def _environment_name(text: str) -> str:
    if not text or "=" in text or "\x00" in text:
        raise ValueError("a variable's name must not be empty and must not hold '=' or NUL")
    return text


Name = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_NAME), AfterValidator(_line)]
"""A name that people read: one line, any script."""
SecretName = Annotated[str, StringConstraints(max_length=128, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$")]
"""A variable's name, or on Kubernetes that of a Secret (RFC 1123)."""
Words = Annotated[str, StringConstraints(max_length=512), AfterValidator(_printable)]
"""A short sentence: a reason, a label's value."""
Path = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_PATH), AfterValidator(_printable)]
Argument = Annotated[str, AfterValidator(_without_nul)]
AccountPath = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(account_path)]
EnvironmentName = Annotated[str, StringConstraints(max_length=256), AfterValidator(_environment_name)]

_SENTENCES = {
    "missing": "is required",
    "string_type": "must be a text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "dict_type": "must be an object",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "timezone_aware": "needs a time zone: add Z or an offset such as +08:00",
    "datetime_type": "must be a time such as 2026-11-23T12:31:07Z",
    "datetime_parsing": "must be a time such as 2026-11-23T12:31:07Z",
    "datetime_from_date_parsing": "must be a time such as 2026-11-23T12:31:07Z",
    "datetime_object_invalid": "must be a time such as 2026-11-23T12:31:07Z",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "is too large a number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "string_unicode": "must be text in UTF-8",
    "frozen_set_type": "must be a list",
    "set_type": "must be a list",
}
_BOUNDS = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "enum": "must be one of {expected}",
    "literal_error": "must be one of {expected}",
    "json_invalid": "the body is not JSON ({error})",
}
"""Sentences with the limit that was passed; the names are those of pydantic's contexts."""


def did_you_mean(wrong: str, known: list[str] | tuple[str, ...]) -> str:
    """Returns `, did you mean 'x'?` with the nearest known word, or an empty text when none is near."""
    near = get_close_matches(wrong[:LONGEST_NAME], known, n=1, cutoff=0.6)
    return f", did you mean {near[0]!r}?" if near else ""


def problems_of(error: ValidationError, fields: tuple[str, ...]) -> tuple[Problem, ...]:
    """Returns every problem that a validation found, in words. `fields` are the keys known at the top level.

    A message never holds a value that was sent: it may be a secret.
    """
    found = []
    for each in error.errors(include_url=False, include_context=True, include_input=False):
        place = ".".join(shown(str(step)) for step in each["loc"] if step != "[key]")
        message = words_of(each["type"], each.get("ctx", {}))
        if each["type"] == "extra_forbidden":
            message = "unknown key" + (did_you_mean(place, fields) if len(each["loc"]) == 1 else "")
        found.append(Problem(message, place or None))
    return tuple(found)


def words_of(kind: str, context: Mapping[str, Any]) -> str:
    """Returns what is wrong with a value, as the rest of a sentence that begins with its place.

    `kind` and `context` are pydantic's (docs.pydantic.dev, "Validation Errors"); its own sentences speak to
    programmers, and differ from one version to the next.
    """
    if kind == "value_error":
        return str(context["error"])
    bound = _BOUNDS.get(kind)
    if bound is not None:
        return bound.format_map(context)
    return _SENTENCES.get(kind, "is not what belongs here")


def duration_words(seconds: int) -> str:
    """Returns a duration as `-t` takes it, in the largest unit that divides it: `30d`, `36h`, `90m`, `5s`."""
    for letter, unit in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds and seconds % unit == 0:
            return f"{seconds // unit}{letter}"
    return f"{seconds}s"
