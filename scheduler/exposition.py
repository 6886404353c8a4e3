"""Prometheus's text format 0.0.4, written fast: the same bytes as prometheus_client's own, in a tenth of its time.

10,000 GPUs are some 170,000 series, of which the library writes 200,000 a second; a scrape promises to be over sooner.
Most of them are the GPUs', so their families are `Written`: they come as lines, and no value is made for each series.
What our families do not use is not written: timestamps, exemplars, `_created`.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

_PLAIN_BELOW = 1e6
"""Numbers below it are written as Python writes them; from here on the format's exponents differ."""


class Written(Metric):
    """A gauge or counter of many series, kept as the lines that are sent. `name` is a counter's without `_total`."""

    def __init__(self, name: str, words: str, labels: Sequence[str], kind: str = "gauge") -> None:
        # Not the library's: it makes the list of samples that this family has only where somebody asks for it.
        self.name, self.documentation, self.type, self.unit = name, words, kind, ""
        self.label_names = tuple(labels)
        self.lines: list[str] = []
        self._series = f"{name}_total" if kind == "counter" else name

    def add(self, labels: str, value: float) -> None:
        """Adds a series with its labels as `label_text` makes them: sorted, escaped, a space behind."""
        self.lines.append(f"{self._series}{labels}{number(value)}\n")

    @property
    def samples(self) -> list[Sample]:  # type: ignore[override]  # the library keeps a list; this one is read back
        """The series as the library's own values, read back from the lines: for other writers, and slow."""
        found = list(text_string_to_metric_families(render([self])))
        return [sample for family in found for sample in family.samples]


def render(families: Iterable[Metric]) -> str:
    """Returns families as text, in their order, each sample with its labels sorted and escaped."""
    out: list[str] = []
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        words = family.documentation.replace("\\", r"\\").replace("\n", r"\n")
        out.append(f"# HELP {name} {words}\n# TYPE {name} {family.type}\n")
        if isinstance(family, Written):
            out.extend(family.lines)
            continue
        for sample in family.samples:
            assert sample.timestamp is None, "ours are of now"
            out.append(f"{sample.name}{label_text(sample.labels)}{number(sample.value)}\n")
    return "".join(out)


def label_text(labels: Mapping[str, str]) -> str:
    """Returns what stands between a series' name and its value: the labels sorted and escaped, and a space."""
    if not labels:
        return " "
    return "{" + ",".join([f'{key}="{escaped(labels[key])}"' for key in sorted(labels)]) + "} "


def number(value: float) -> str:
    """Returns a value as the format writes it: Go's shortest text."""
    if 0 <= value < _PLAIN_BELOW:
        return repr(float(value))
    return _go(float(value))


@lru_cache(maxsize=1024)
def _go(value: float) -> str:
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]  # the library declares no types for it
    return text


def escaped(value: str) -> str:
    """Returns a label's value so that it ends neither its quotes nor its line."""
    if "\\" in value or "\n" in value or '"' in value:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return value
