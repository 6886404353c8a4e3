"""The keys of a job file: one table from which the reader and the JSON Schema are made.

A key has the name of the flag that says the same, the shape of its value, and the reader of that flag in `cli.values`.
`example` values are right by the reader and by the schema; the tests hold both to them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from cli import moments, values


class Shape(StrEnum):
    """What stands behind a key."""

    TEXT = "a text"
    TRUTH = "true or false"
    WORDS = "a list of words"
    """A list; one word alone will do."""
    ARGV = "a list of words such as [torchrun, train.py]"
    PAIRS = "keys with values"
    CHOICES = "keys with lists of values"


Check = Callable[[str, str], object]
"""Takes the text and the name to repeat in the refusal. Raises UsageProblem."""
Schema = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Key:
    """One key: where it ends up, what may stand there, and what says so to an editor."""

    name: str
    shape: Shape
    about: str
    example: object
    check: Check | None = None
    schema: Schema = field(default_factory=dict)
    """What narrows the shape's own schema."""

    @property
    def flag(self) -> str:
        """The field of JobFlags, which has underscores."""
        return self.name.replace("-", "_")


def _words(*allowed: str) -> tuple[Check, Schema]:
    return lambda text, name: values.choice(text, name, allowed), {"enum": list(allowed)}


def _count(least: int) -> tuple[Check, Schema]:
    return lambda text, name: values.count(text, name, least=least), {"type": ["integer", "string"], "minimum": least}


def _moment(text: str, name: str) -> object:
    return moments.ahead(text, name, moments.current())


def _pair(text: str, name: str) -> object:
    return values.pair(text, name)


def _variable(text: str, name: str) -> object:
    key, equals, value = text.partition("=")
    # Names alone are passed on from the caller's environment, which is looked up when the job is put together.
    return values.environment([text], {} if equals else {key: value}, name)


_NUMBER: Schema = {"type": ["integer", "number", "string"]}
_BOOKING, _PRIORITY = _words("auto", "guaranteed", "spot"), _words("low", "normal", "high")
_WHEN = _words("each", "last")
_COMPAT = _words("slurm")
_ONE, _NONE = _count(1), _count(0)

KEYS = (
    Key("command", Shape.ARGV, "What runs on each node: argv, no shell.", ["torchrun", "train.py", "--lr", "2e-5"]),
    Key("script", Shape.TEXT, "Instead of a command: text that /bin/sh runs.", "make data && python train.py"),
    Key("name", Shape.TEXT, "Name of the job.", "llama-sft"),
    Key("project", Shape.TEXT, "Who it is for.", "nlp"),
    Key("gpus", Shape.TEXT, "GPUs per node: H100:8, 8, H200,H100:8, 80GB:2, H200:0.5.", "H100:8", values.gpus, _NUMBER),
    Key(
        "nodes",
        Shape.TEXT,
        "Nodes; 1 unless it says otherwise. 2-8: at least 2, and up to 8 where they are free.",
        "2-8",
        values.nodes,
        {"type": ["integer", "string"], "minimum": 1},
    ),
    Key("total-gpus", Shape.TEXT, "GPUs in all, instead of gpus.", "H100:32", values.total_gpus, _NUMBER),
    Key("exclusive", Shape.TRUTH, "Whole nodes, all their GPUs; gpus then names the class alone.", False),
    Key("cpus", Shape.TEXT, "CPU cores per node.", 64, *_ONE),
    Key("mem", Shape.TEXT, "Memory per node: 512G (1024-based), 512GB (1000-based).", "512G", values.size),
    Key("pool", Shape.TEXT, "Nodes of this pool only.", "h100-ib"),
    Key("node", Shape.WORDS, "Only these nodes.", ["gpu-011", "gpu-012"]),
    Key("exclude", Shape.WORDS, "Not these nodes.", ["gpu-013"]),
    Key("constraint", Shape.PAIRS, "Nodes with these labels only.", {"zone": "a"}, _pair),
    Key(
        "topology",
        Shape.TEXT,
        "Nodes near each other: required:LABEL, preferred:LABEL.",
        "required:rack",
        values.topology,
    ),
    Key("time", Shape.TEXT, "The most it may run: 90m, 12h, 2d, 1-12:00:00, 04:00:00.", "12h", values.duration),
    Key("booking", Shape.TEXT, "How its GPUs are held.", "auto", *_BOOKING),
    Key("spot", Shape.TRUTH, "Short for booking: spot.", False),
    Key("image", Shape.TEXT, "Container image.", "registry.acme.example/train:2026.11"),
    Key("volume", Shape.WORDS, "What the centre offers to mount, by name.", ["datasets"]),
    Key("shm", Shape.TEXT, "Size of the container's /dev/shm.", "64G", values.size),
    Key("workdir", Shape.TEXT, "Where it runs; where it is submitted unless image is given.", "/data/nlp"),
    Key("env", Shape.PAIRS, "Environment; a name without a value passes yours on.", {"WANDB_MODE": "off"}, _variable),
    Key("env-file", Shape.TEXT, "A file of K=V lines, no quoting.", "train.env"),
    Key("secrets", Shape.WORDS, "Secrets, by name.", ["HF_TOKEN"]),
    Key("output", Shape.TEXT, "A file for its output, besides the kept log.", "out-%j.log"),
    Key("label", Shape.PAIRS, "Labels.", {"team": "vision"}, _pair),
    Key(
        "after",
        Shape.WORDS,
        "Jobs to wait for: 17, any:17, fail:17_3, start:17, singleton.",
        ["17", "any:18"],
        values.after,
    ),
    Key("begin", Shape.TEXT, "Not before: now+2h, 20:00, 2026-11-24T08:00.", "now+2h", _moment),
    Key("deadline", Shape.TEXT, "Of no use after this time.", "now+3d", _moment),
    Key("priority", Shape.TEXT, "Its place in its project.", "normal", *_PRIORITY),
    Key("hold", Shape.TRUTH, "Wait until it is released.", False),
    Key(
        "array",
        Shape.TEXT,
        "0-99%8: a hundred, eight at once at most.",
        "0-99%8",
        values.array,
        {"type": ["integer", "string"]},
    ),
    Key("sweep", Shape.CHOICES, "A job for each combination of these values.", {"lr": ["1e-5", "2e-5"]}, values.sweep),
    Key("retries", Shape.TEXT, "Start again so often after a failure.", 2, *_NONE),
    Key("retry-on", Shape.TEXT, "Only after these failures: exit_nonzero, oom …", "oom,exit_nonzero", values.retry_on),
    Key("grace", Shape.TEXT, "Between SIGTERM and SIGKILL: 120s.", "120s", values.duration),
    Key("checkpoint-signal", Shape.TEXT, "Instead of TERM, before the grace.", "USR1", values.checkpoint_signal),
    Key("idle-stop", Shape.TEXT, "End it when all its GPUs were idle for so long.", "30m", values.duration),
    Key("compat", Shape.TEXT, "Its environment has SLURM_* variables too.", "slurm", *_COMPAT),
    Key("notify", Shape.WORDS, "Events to be told of.", ["end", "preempt", "idle"], values.notice_events),
    Key("notify-when", Shape.TEXT, "Of an array: each element, or the last.", "last", *_WHEN),
    Key("max-cost", Shape.TEXT, "Refuse it if it may cost more than this.", "960 USD", values.money, _NUMBER),
)
"""In the order in which people write them."""

EITHER = (("command", "script"), ("gpus", "total-gpus"))
"""Keys of which a file has one at most."""

NOT_IN_FILES = frozenset({"dry_run", "lenient", "yes"})
"""Fields of JobFlags that say how to submit, and not what."""

_OF_SHAPE: Mapping[Shape, Schema] = {
    Shape.TEXT: {"type": "string", "minLength": 1},
    Shape.TRUTH: {"type": "boolean"},
    Shape.WORDS: {
        "type": ["array", "string", "number"],
        "items": {"type": ["string", "number"], "minLength": 1},
        "minItems": 1,
        "minLength": 1,
    },
    Shape.ARGV: {"type": "array", "items": {"type": ["string", "number", "boolean"]}, "minItems": 1},
    Shape.PAIRS: {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "null"]}},
    Shape.CHOICES: {
        "type": "object",
        "additionalProperties": {"type": "array", "items": {"type": ["string", "number", "boolean"]}, "minItems": 1},
    },
}


def schema() -> dict[str, object]:
    """Returns the JSON Schema (draft 2020-12) of job files, for the completion of editors and the checks of CI."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:turnstile:schema:job:v1",
        "title": "A Turnstile job",
        "description": "What 'turnstile submit FILE' reads: the names of its flags, without the dashes before them.",
        "type": "object",
        "additionalProperties": False,
        "properties": {key.name: _property(key) for key in KEYS},
        "not": {"anyOf": [{"required": list(pair)} for pair in EITHER]},
    }


def _property(key: Key) -> dict[str, object]:
    return {"description": key.about, **_OF_SHAPE[key.shape], **key.schema, "examples": [key.example]}
