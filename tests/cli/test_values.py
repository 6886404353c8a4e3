"""What people type: what is read, what is refused, and in which words."""

import contextlib
from collections.abc import Callable
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli import phrases, values
from cli.errors import UsageProblem
from cli.values import GpuRequest, Last, Named, Numbered


@pytest.mark.parametrize(
    ("typed", "seconds"),
    [
        ("90m", 5400),
        ("12h", 43200),
        ("2d", 172_800),
        ("1w", 604_800),
        ("45s", 45),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("1-12:00:00", 129_600),
        ("1-12", 129_600),
        ("1-12:30", 131_400),
        ("04:00:00", 14_400),
        ("100:00:00", 360_000),
        (" 90M ", 5400),
    ],
)
def test_a_duration_is_read_as_slurm_and_cloud_users_write_it(typed: str, seconds: int) -> None:
    assert values.duration(typed, "-t") == seconds


def test_a_bare_number_is_refused_with_both_readings_as_proposals() -> None:
    with pytest.raises(UsageProblem) as refused:
        values.duration("90", "-t")
    assert refused.value.message == "-t 90 is ambiguous: Slurm reads minutes, other tools seconds"
    assert refused.value.tries == ("-t 90m", "-t 90s")


def test_minutes_and_seconds_or_hours_and_minutes_are_refused_with_both_readings() -> None:
    with pytest.raises(UsageProblem) as refused:
        values.duration("4:30", "-t")
    assert refused.value.tries == ("-t 4:30:00", "-t 00:04:30")


@pytest.mark.parametrize(
    "typed", ["", "h", "12x", "-5m", "1-25:00:00", "1:2:3:4", "0m", "0.0001s", "٣m", "12h ago", "∞"]
)
def test_what_is_no_duration_is_refused(typed: str) -> None:
    with pytest.raises(UsageProblem):
        values.duration(typed, "-t")


@given(st.integers(min_value=1, max_value=10**8))
def test_a_duration_reads_back_as_it_is_written(seconds: int) -> None:
    assert values.duration(phrases.compact(seconds), "-t") == seconds


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("8", GpuRequest(8)),
        ("H100:8", GpuRequest(8, ("H100",))),
        ("H200,H100:8", GpuRequest(8, ("H200", "H100"))),
        ("A100-80GB:2", GpuRequest(2, ("A100-80GB",))),
        ("80GB:2", GpuRequest(2, memory_bytes=80 * 10**9)),
        ("80G:2", GpuRequest(2, memory_bytes=80 * 10**9)),
        ("40GiB:1", GpuRequest(1, memory_bytes=40 * 2**30)),
        ("H200:0.5", GpuRequest(Decimal("0.5"), ("H200",))),
        ("0.25", GpuRequest(Decimal("0.25"))),
    ],
)
def test_gpus_are_read_in_each_of_their_forms(typed: str, expected: GpuRequest) -> None:
    assert values.gpus(typed) == expected


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("H100:eight", "'H100:eight' is not a count"),
        ("H100", "has no count"),
        ("H100:0", "asks for no GPU at all"),
        (":8", "is not the name of a GPU class"),
        ("H100,:8", "is not the name of a GPU class"),
        ("80:2", "GPU memory"),
        ("", "is not a number of GPUs"),
        ("H100:-1", "is not a count"),
        ("1.5", "is not a number of GPUs"),
    ],
)
def test_what_is_no_number_of_gpus_is_refused_with_the_part_that_is_wrong(typed: str, words: str) -> None:
    with pytest.raises(UsageProblem, match=words):
        values.gpus(typed)


@given(
    st.builds(
        GpuRequest,
        count=st.integers(1, 999_999) | st.sampled_from([Decimal("0.5"), Decimal("0.25"), Decimal("0.125")]),
        classes=st.lists(st.from_regex(r"\A[A-Z][A-Za-z0-9._-]{0,8}\Z"), max_size=3).map(tuple),
    )
    | st.builds(GpuRequest, count=st.integers(1, 99), memory_bytes=st.integers(1, 999_999_999))
)
def test_gpus_read_back_as_they_are_written(asked: GpuRequest) -> None:
    assert values.gpus(str(asked)) == asked


@pytest.mark.parametrize(
    ("typed", "amount"),
    [
        ("64G", 64 * 2**30),
        ("64GiB", 64 * 2**30),
        ("64GB", 64 * 10**9),
        ("1.5TiB", 3 * 2**39),
        ("512m", 512 * 2**20),
        ("7B", 7),
    ],
)
def test_sizes_are_binary_unless_they_say_gb(typed: str, amount: int) -> None:
    assert values.size(typed, "-m") == amount


@pytest.mark.parametrize("typed", ["64", "", "G", "64XB", "0G", "0.00001K", "-1G"])
def test_what_is_no_size_is_refused(typed: str) -> None:
    with pytest.raises(UsageProblem):
        values.size(typed, "-m")


@pytest.mark.parametrize("typed", ["0-99%8", "0-99", "7", "1,3,5-9", "0-100:10%2"])
def test_arrays_are_taken_as_slurm_writes_them(typed: str) -> None:
    assert values.array(typed) == typed


@pytest.mark.parametrize("typed", ["", "9-1", "0-9%0", "a-b", "0--9", "1,,2", "0-9:0", "%8", "0-9%"])
def test_an_array_without_elements_or_sense_is_refused(typed: str) -> None:
    with pytest.raises(UsageProblem):
        values.array(typed)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("10482", Numbered(10482)),
        ("10482_7", Numbered(10482, 7)),
        ("@", Last(0)),
        ("@~1", Last(1)),
        ("dpo-run", Named("dpo-run")),
        ("评测", Named("评测")),
        ("10482x", Named("10482x")),
    ],
)
def test_a_job_is_named_by_number_element_age_or_name(typed: str, meant: Numbered | Last | Named) -> None:
    assert values.job_reference(typed) == meant
    assert str(meant) == typed


@pytest.mark.parametrize("typed", ["", " ", "-", "-x", "@~", "@x", "a\x1b[2J"])
def test_what_names_no_job_is_refused(typed: str) -> None:
    with pytest.raises(UsageProblem):
        values.job_reference(typed)


def test_environment_takes_values_as_typed_and_bare_names_from_the_caller() -> None:
    found = values.environment(["A=1=2", "HOME", "A=3", "EMPTY="], {"HOME": "/home/mei"})
    assert found == {"A": "3", "HOME": "/home/mei", "EMPTY": ""}


def test_a_refused_environment_names_the_key_and_never_the_value() -> None:
    for typed in ("BAD KEY=hush-hush", "9=hush-hush", "=hush-hush", "hush hush-hush"):
        with pytest.raises(UsageProblem) as refused:
            values.environment([typed], {})
        assert "hush-hush" not in refused.value.message + "".join(refused.value.tries)
    with pytest.raises(UsageProblem, match="WANDB_API_KEY is not set in your environment"):
        values.environment(["WANDB_API_KEY"], {})


def test_an_environment_file_has_comments_and_no_quoting() -> None:
    assert values.environment_lines("# keys\nA=1\n\nexport B='2'\n  C\n") == ["A=1", "B='2'", "C"]


def test_labels_are_pairs_and_counts_are_by_class() -> None:
    assert values.pair("team=vision=2", "-l") == ("team", "vision=2")
    assert values.gpu_counts(["H100=32,A100=8", "H100=16"], "--limit") == {"H100": 16, "A100": 8}
    for typed in ("team", "=x", " =x"):
        with pytest.raises(UsageProblem):
            values.pair(typed, "-l")
    with pytest.raises(UsageProblem):
        values.gpu_counts(["H100:32"], "--limit")


def test_nodes_are_a_number_or_a_range_the_right_way_up() -> None:
    assert [values.nodes(typed) for typed in ("4", "2-8", " 3-3 ")] == [(4, None), (2, 8), (3, None)]
    with pytest.raises(UsageProblem) as refused:
        values.nodes("8-2")
    assert refused.value.tries == ("-N 2-8",)
    for typed in ("2-", "-8", "0-4", "2-many", "1-2-3", "0"):
        with pytest.raises(UsageProblem):
            values.nodes(typed)


def test_where_one_number_is_meant_a_range_is_refused_with_its_lower_end() -> None:
    with pytest.raises(UsageProblem) as refused:
        values.count("2-8", "-N")
    assert refused.value.tries == ("-N 2",)


_READERS: list[Callable[[str], object]] = [
    lambda text: values.duration(text, "-t"),
    values.gpus,
    lambda text: values.size(text, "-m"),
    values.array,
    values.job_reference,
    lambda text: values.pair(text, "-l"),
    lambda text: values.environment([text], {}),
    lambda text: values.gpu_counts([text], "--limit"),
    lambda text: values.count(text, "-N"),
    values.nodes,
    lambda text: values.choice(text, "--priority", ("low", "high")),
]


@settings(max_examples=100)
@given(st.text(max_size=40) | st.text(alphabet="0123456789.:-_,%@~smhdwKMGTiBH=x ", max_size=24))
def test_any_text_is_read_or_refused_and_nothing_crashes(text: str) -> None:
    for reader in _READERS:
        with contextlib.suppress(UsageProblem):
            assert reader(text) is not None


@pytest.mark.parametrize(
    ("typed", "means"),
    [
        ("17", ("afterok", "17")),
        ("any:17_3", ("afterany", "17_3")),
        ("fail:@~1", ("afternotok", "@~1")),
        ("start:train", ("after", "train")),
        ("afternotok:17", ("afternotok", "17")),
        ("singleton", ("singleton", "")),
    ],
)
def test_what_is_waited_for_is_read_in_our_words_and_in_slurms(typed: str, means: tuple[str, str]) -> None:
    assert values.after(typed) == means


@pytest.mark.parametrize("typed", ["", "anny:17", "any:"])
def test_what_names_no_dependency_is_refused(typed: str) -> None:
    with pytest.raises(UsageProblem):
        values.after(typed)


@pytest.mark.parametrize("typed", ["rack", "required", "near:rack", "required:"])
def test_nearness_without_how_or_label_is_refused(typed: str) -> None:
    with pytest.raises(UsageProblem, match="required:LABEL"):
        values.topology(typed)
