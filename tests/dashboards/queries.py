"""Checks a PromQL query against a catalogue of metrics: names, labels, label values, counters, histograms.

`problems_of(query, catalogue)` walks the syntax tree and returns sentences; `labels_of` the labels of its result. Only
what this project's queries use is understood; anything else is a problem, so that nobody believes it was checked.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import promql_parser as promql

COUNTING = frozenset({"rate", "increase", "irate"})
OVER_TIME = frozenset({"max_over_time", "min_over_time", "avg_over_time"})
PLAIN = frozenset({"abs", "clamp_min", "clamp_max", "absent", "vector", "time"})
KEEPS_ALL = frozenset({"topk", "bottomk"})
SET_OPERATORS = frozenset({"and", "or", "unless"})
LEVELS = frozenset({"turnstile_gpu_ecc_uncorrected_errors_total"})
"""Counters whose level is the news: errors since the driver was loaded, of which one is too many."""
_VARIABLES = {"$__rate_interval": "5m", "$__range": "6h", "$__interval": "1m"}


@dataclass(frozen=True, slots=True)
class Family:
    """A metric family as the daemon declares it. `kind` is gauge, counter or histogram; `name` is without suffix."""

    name: str
    kind: str
    labels: frozenset[str]

    def series(self) -> dict[str, tuple[str, frozenset[str]]]:
        """Returns the names that queries see, each with its kind and labels; parts of histograms are counters."""
        if self.kind == "histogram":
            return {
                f"{self.name}_bucket": ("counter", self.labels | {"le"}),
                f"{self.name}_sum": ("counter", self.labels),
                f"{self.name}_count": ("counter", self.labels),
            }
        return {self.name + ("_total" if self.kind == "counter" else ""): (self.kind, self.labels)}


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All families, and the values that labels of closed sets may have, by metric and label."""

    families: Mapping[str, Family]
    values: Mapping[tuple[str, str], Collection[str]] = field(default_factory=dict)

    def series(self, name: str) -> tuple[str, frozenset[str]] | None:
        """Returns kind and labels of a series name; None when no family has it."""
        for suffix in ("", "_total", "_bucket", "_sum", "_count"):
            family = self.families.get(name.removesuffix(suffix) if suffix else name)
            if family is not None and name in family.series():
                return family.series()[name]
        return None


def without_variables(query: str) -> str:
    """Returns the query as Prometheus would get it, with something in place of Grafana's variables."""
    for name, value in _VARIABLES.items():
        query = query.replace(name, value)
    return re.sub(r"\$\w+", "any", query)


def problems_of(query: str, catalogue: Catalogue) -> list[str]:
    """Returns what is wrong with a query, as sentences; nothing when it is right."""
    return _walked(query, catalogue).problems


def labels_of(query: str, catalogue: Catalogue) -> frozenset[str]:
    """Returns the labels that a query's result has."""
    walk = _Walk(catalogue)
    return walk.visit(promql.parse(without_variables(query)))


def _walked(query: str, catalogue: Catalogue) -> "_Walk":
    walk = _Walk(catalogue)
    try:
        tree = promql.parse(without_variables(query))
    except ValueError as error:
        walk.problems.append(f"does not parse: {error}")
    else:
        walk.visit(tree)
    return walk


class _Walk:
    """One walk over a tree; `visit` returns the labels of an expression's result."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.problems: list[str] = []
        self._catalogue = catalogue

    def visit(self, node: Any) -> frozenset[str]:  # Any: the parser has no types
        visits: dict[str, Callable[[Any], frozenset[str]]] = {
            "NumberLiteral": lambda _: frozenset(),
            "ParenExpr": lambda node: self.visit(node.expr),
            "UnaryExpr": lambda node: self.visit(node.expr),
            "VectorSelector": lambda node: self._selector(node, "raw"),
            "AggregateExpr": self._aggregate,
            "BinaryExpr": self._binary,
            "Call": self._call,
        }
        kind = type(node).__name__
        if kind not in visits:
            self.problems.append(f"{kind} is not checked: {node}")
            return frozenset()
        return visits[kind](node)

    def _selector(self, node: Any, use: str) -> frozenset[str]:
        found = self._catalogue.series(node.name or "")
        if found is None:
            self.problems.append(f"{node.name} is no metric of the daemon")
            return frozenset()
        kind, labels = found
        if use == "raw" and kind == "counter" and node.name not in LEVELS:
            self.problems.append(f"{node.name} is a counter and is used without rate() or increase()")
        if use == "counted" and kind != "counter":
            self.problems.append(f"{node.name} is a {kind}; rate() and increase() are for counters")
        for matcher in node.matchers.matchers:
            if matcher.name not in labels:
                self.problems.append(f"{node.name} has no label {matcher.name}")
            self._check_values(node.name, matcher.name, matcher.value)
        return labels

    def _check_values(self, metric: str, label: str, value: str) -> None:
        known = self._catalogue.values.get((metric, label))
        if known is None or value == "any":
            return
        for one in value.split("|"):
            if not any(re.fullmatch(one, each) for each in known):
                self.problems.append(f"{metric}{{{label}}} is never {one!r}")

    def _call(self, node: Any) -> frozenset[str]:
        name = node.func.name
        if name in COUNTING:
            return self._range(node.args[0], "counted")
        if name in OVER_TIME:
            return self._range(node.args[0], "raw")
        if name == "histogram_quantile":
            return self._quantile(node)
        if name not in PLAIN:
            self.problems.append(f"{name}() is not checked")
        labels = [self.visit(argument) for argument in node.args]
        return labels[0] if labels else frozenset()

    def _range(self, node: Any, use: str) -> frozenset[str]:
        if type(node).__name__ == "SubqueryExpr":
            if use == "counted":
                self.problems.append(f"rate() or increase() of a subquery: {node}")
            return self.visit(node.expr)
        return self._selector(node.vector_selector, use)

    def _quantile(self, node: Any) -> frozenset[str]:
        labels = self.visit(node.args[1])
        names = re.findall(r"turnstile_\w+", str(node.args[1]))
        if not names or not all(name.endswith("_bucket") for name in names):
            self.problems.append(f"histogram_quantile() of what has no buckets: {node.args[1]}")
        if "le" not in labels:
            self.problems.append(f"histogram_quantile() of what has lost le: {node.args[1]}")
        return labels - {"le"}

    def _aggregate(self, node: Any) -> frozenset[str]:
        inner = self.visit(node.expr)
        if node.modifier is None:
            return inner if str(node.op) in KEEPS_ALL else frozenset()
        if "Exclude" in repr(node.modifier.type) or "Without" in repr(node.modifier.type):
            self.problems.append(f"without() is not checked: {node}")
        kept = frozenset(node.modifier.labels)
        self._has(inner, kept, node)
        return inner if str(node.op) in KEEPS_ALL else kept

    def _binary(self, node: Any) -> frozenset[str]:
        left, right = self.visit(node.lhs), self.visit(node.rhs)
        scalars = ("NumberLiteral", "UnaryExpr")
        if _is_scalar(node.rhs, scalars):
            return left
        if _is_scalar(node.lhs, scalars):
            return right
        operator = str(node.op)
        modifier = node.modifier
        if modifier is None or modifier.matching is None:
            if operator not in SET_OPERATORS and left != right:
                self.problems.append(f"sides with other labels never match: {sorted(left)} {operator} {sorted(right)}")
            return left
        matched = frozenset(modifier.matching.labels)
        self._has(left, matched, node)
        self._has(right, matched, node)
        if operator in SET_OPERATORS:
            return left
        grouped = frozenset(modifier.group_labels or ())
        if grouped:
            self._has(right, grouped, node)
            return left | grouped
        return matched

    def _has(self, labels: frozenset[str], wanted: frozenset[str], node: Any) -> None:
        for name in sorted(wanted - labels):
            self.problems.append(f"there is no label {name} in {str(node)[:120]}")


def _is_scalar(node: Any, scalars: tuple[str, ...]) -> bool:
    is_time = type(node).__name__ == "Call" and node.func.name == "time"
    return type(node).__name__ in scalars or is_time
