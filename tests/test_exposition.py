"""The text that Prometheus reads: byte for byte what the library would write of the same values."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from scheduler.exposition import Written, label_text, render

LABELS = ("zone", "node", "gpu")
NAMES = st.text(st.sampled_from('aZ09 _-"\\\n,={}\t\N{SNOWMAN}é'), max_size=8)
SERIES = st.dictionaries(
    st.tuples(NAMES, NAMES, NAMES),
    st.floats() | st.integers(-(2**60), 2**60) | st.booleans() | st.sampled_from((0, -0.0, 1e6, 999_999.5, 1e-7, 1e22)),
    max_size=5,
)


class Made(Collector):
    """Families as they were made."""

    def __init__(self, made: Sequence[Metric]) -> None:
        self._made = made

    def collect(self) -> Sequence[Metric]:
        return self._made


def library(*families: Metric) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Made(families))
    return generate_latest(registry)


@given(NAMES, SERIES, st.sampled_from(("gauge", "counter")))
def test_lines_are_what_the_library_writes_of_the_same_labels_and_values(
    words: str, series: dict[tuple[str, str, str], float], kind: str
) -> None:
    made = GaugeMetricFamily if kind == "gauge" else CounterMetricFamily
    theirs = made("turnstile_odd", words, labels=LABELS)
    ours = Written("turnstile_odd", words, LABELS, kind)
    for values, value in series.items():
        theirs.add_metric(values, value)
        ours.add(label_text(dict(zip(LABELS, values, strict=True))), value)
    text = render([ours])
    assert text.encode() == library(theirs) == render([theirs]).encode()
    assert library(ours) == text.encode(), "a writer that wants values reads the same back"
    assert len(ours.samples) == len(series)


def test_a_hostile_label_is_one_label_of_one_series() -> None:
    hostile = 'x",node="forged"} 1\nturnstile_odd{node="other\\'
    ours = Written("turnstile_odd", "Odd.", ("node",))
    ours.add(label_text({"node": hostile}), 1)
    (family,) = text_string_to_metric_families(render([ours]))
    assert [(sample.name, sample.labels, sample.value) for sample in family.samples] == [
        ("turnstile_odd", {"node": hostile}, 1)
    ]
