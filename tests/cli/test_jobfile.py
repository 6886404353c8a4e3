"""Job files: what they send, what is said of their mistakes, and that schema and reader agree."""

import json
import string
from dataclasses import fields
from pathlib import Path

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli import jobfile, jobkeys, yamlread
from cli.errors import Refusal
from cli.jobfile import FileProblems
from cli.jobflags import JobFlags, layered
from cli.jobkeys import EITHER, KEYS, NOT_IN_FILES, Shape
from cli.yamlread import BrokenFile, Listed, Scalar
from tests.cli.conftest import Home
from tests.cli.peer import Json, Peer, envelope
from tests.cli.recorded import job, on_one_node, stream

EXAMPLE = """\
name: llama-sft
project: nlp
gpus: H100:8          # per node
nodes: 4
time: 12h
image: registry.acme.example/train:2026.11
env: {WANDB_MODE: offline}
secrets: [HF_TOKEN]
command: [torchrun, train.py, --lr, "2e-5"]
notify: [end, fail, preempt, idle]
"""
"""The example of the handbook."""
VALIDATOR = jsonschema_rs.Draft202012Validator(jobkeys.schema())


def loaded(path: Path, content: str) -> jobfile.JobFile:
    path.write_text(content, encoding="utf-8")
    return jobfile.load(str(path))


def problems(path: Path, content: str | bytes) -> list[str]:
    """What is said of a file that is refused, a line of text each."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FileProblems) as refused:
        jobfile.load(str(path))
    assert refused.value.exit_code == 3
    return [f"{each.field}  {each.message}" if each.field else each.message for each in refused.value.problems]


def sent(home: Home, peer: Peer, *arguments: str) -> Json:
    done = home.turnstile("submit", *arguments)
    assert done.code == 0, done.err
    return peer.requests("POST", "/v1/jobs")[-1].json


def test_a_job_file_asks_for_what_the_flags_of_its_keys_would(home: Home, peer: Peer) -> None:
    (home.path / "train.yaml").write_text(EXAMPLE)
    by_file = sent(home, peer, "train.yaml")
    flags = ("-n", "llama-sft", "-A", "nlp", "-g", "H100:8", "-N", "4", "-t", "12h")
    image = ("-i", "registry.acme.example/train:2026.11", "-e", "WANDB_MODE=offline")
    told = ("--notify", "end,fail,preempt", "--notify", "idle", "--secret", "HF_TOKEN")
    assert by_file == sent(home, peer, *flags, *image, *told, "--", "torchrun", "train.py", "--lr", "2e-5")


def test_the_same_job_in_json_is_the_same_job(home: Home, peer: Peer) -> None:
    (home.path / "train.yaml").write_text(EXAMPLE)
    document = {
        "name": "llama-sft", "project": "nlp", "gpus": "H100:8", "nodes": 4, "time": "12h",
        "image": "registry.acme.example/train:2026.11", "env": {"WANDB_MODE": "offline"},
        "command": ["torchrun", "train.py", "--lr", "2e-5"], "notify": ["end", "fail", "preempt", "idle"],
        "secrets": "HF_TOKEN",
    }  # fmt: skip
    (home.path / "train.json").write_text(json.dumps(document, indent="\t"))
    assert sent(home, peer, "train.json") == sent(home, peer, "train.yaml")


def test_flags_override_a_job_file_on_either_side_of_its_name(home: Home, peer: Peer) -> None:
    (home.path / "train.yaml").write_text(EXAMPLE)
    behind = sent(home, peer, "train.yaml", "-t", "4h", "-e", "SEED=3")
    assert behind == sent(home, peer, "-t", "4h", "-e", "SEED=3", "train.yaml")
    assert behind["time_limit_seconds"] == 4 * 3600
    assert behind["env"] == {"WANDB_MODE": "offline", "SEED": "3"}
    other = sent(home, peer, "train.yaml", "--total-gpus", "16", "--", "python", "eval.py", "-t", "x")
    assert other["command"] == ["python", "eval.py", "-t", "x"]
    assert other["total_gpus"] == 16
    assert "gpus_per_node" not in other


def test_all_that_is_wrong_in_a_file_is_said_at_once_with_its_lines(home: Home, peer: Peer) -> None:
    text = "name: llama-sft\ntime: 12h\ncomands: [torchrun]\nnodes: 4\n\ngpus: H100:eight\n"
    (home.path / "train.yaml").write_text(text)
    done = home.turnstile("submit", "train.yaml")
    assert (done.code, done.out) == (3, "")
    assert done.err == (
        "error: train.yaml has 2 problems\n"
        "  line 3  comands: unknown key, did you mean 'command'?\n"
        "  line 6  gpus: 'H100:eight' is not a count; write H100:8\n"
    )
    told = json.loads(home.turnstile("submit", "-o", "json", "train.yaml").out)
    assert [each["field"] for each in told["problems"]] == ["line 3", "line 6"]
    assert peer.requests("POST", "/v1/jobs") == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("time: 90", "line 1  time: 90 is ambiguous: Slurm reads minutes, other tools seconds; write 90m or 90s"),
        ("mem: 64", "line 1  mem: 64 is ambiguous: Slurm reads megabytes, other tools bytes; write 64G or 64M"),
        ("a: 1\n", "line 1  a: unknown key; 'turnstile schema job' lists the keys"),
        ("total_gpus: 8", "line 1  total_gpus: unknown key, did you mean 'total-gpus'?"),
        ("nodes: 2\nnodes: 3", "line 2  nodes: is there twice, first in line 1"),
        ("nodes: 0", "line 1  nodes: '0' is not a whole number of at least 1; write 1"),
        ("nodes: [2]", "line 1  nodes: is a text, not a list"),
        ("hold: perhaps", "line 1  hold: is true or false"),
        ("name:", "line 1  name: has no value; write a text"),
        ("name: ''", "line 1  name: is empty"),
        ("command: python x.py", f"line 1  command: is {Shape.ARGV}; a text for the shell is a script: instead"),
        ("command: [a, {b: c}]", "line 1  command: a word is keys with values"),
        ("command: [a,\n  null]", 'line 2  command: a word is empty; write "" if that is meant'),
        ("command: []", "line 1  command: is a list of words such as [torchrun, train.py]"),
        ("command: [a]\nscript: b", "line 2  script: stands beside command, and they say the same; keep one"),
        ("env: {1A: secret-value}", "line 1  env: '1A' cannot be a name here"),
        ("env:\n  A: 1\n  A: 2", "line 3  env: A is there twice"),
        ("env: {A: [1]}", "line 1  env: A is a list, not a text"),
        ("sweep: {lr: ['1,2']}", "line 1  sweep: a value of lr holds a comma, which parts values"),
        ("name: &a x", "line 1  anchors (&) and aliases (*) are not read; write the value out"),
        ("name: !!python/object:os.system x", "line 1  tags (!) are not read; write the value alone"),
        ("name: x\n---\nname: y", "line 2  begins a second document; submit one job a file"),
        ("- name", "line 1  holds no keys; write 'key: value' lines"),
        ("", "is empty"),
        ("name: [", "line 1  is not YAML: expected the node content, but found '<stream end>'"),
        (b"name: x\nproject: \xff", "line 2  is not UTF-8 text"),
        (b"name: \x00", "holds a character that YAML does not allow"),
        ("a: " * 9 + "b", "line 1  is not YAML: mapping values are not allowed here"),
        ("x: " + "[" * 9 + "]" * 9, "line 1  is nested deeper than 8 levels"),
    ],
)  # fmt: skip
def test_a_mistake_is_said_where_it_stands_with_what_would_be_right(
    content: str | bytes, said: str, tmp_path: Path
) -> None:
    assert problems(tmp_path / "job.yaml", content) == [said]


def test_the_value_of_a_variable_stands_in_no_refusal(tmp_path: Path) -> None:
    assert "secret-value" not in " ".join(problems(tmp_path / "job.yaml", "env: {1A: secret-value}"))


def test_a_bomb_of_aliases_and_a_file_without_end_are_refused_at_once(tmp_path: Path) -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [*{a},*{a},*{a}]\n" for a, b in ("ab", "bc", "cd"))
    assert problems(tmp_path / "job.yaml", bomb) == [
        "line 1  anchors (&) and aliases (*) are not read; write the value out"
    ]
    (said,) = problems(tmp_path / "job.yaml", "name: " + "x" * yamlread.LARGEST_BYTES)
    assert said.endswith("262144 is the most")
    (deep,) = problems(tmp_path / "job.json", "[" * 100_000)
    assert deep.startswith(("is nested deeper", "line 1  is not JSON"))


def test_json_that_is_none_is_refused_with_its_line(tmp_path: Path) -> None:
    (said,) = problems(tmp_path / "job.json", '{\n  "name": "x",\n}')
    assert said.startswith(("line 2  is not JSON: ", "line 3  is not JSON: "))


def test_what_is_not_there_is_refused_and_nothing_is_sent(home: Home, peer: Peer) -> None:
    done = home.turnstile("submit", "none.yaml")
    assert (done.code, done.err) == (4, "error: there is no file none.yaml\n")
    with pytest.raises(Refusal, match="cannot be read: Is a directory"):
        jobfile.load(str(home.path))
    assert peer.requests("POST", "/v1/jobs") == []


def test_a_file_without_a_command_takes_the_command_lines(home: Home, peer: Peer) -> None:
    (home.path / "big.yaml").write_text("gpus: 8\ntime: 2h\n")
    done = home.turnstile("submit", "big.yaml")
    assert (done.code, "has neither command nor script" in done.err) == (2, True)
    assert sent(home, peer, "big.yaml", "--", "./x", "-t")["command"] == ["./x", "-t"]
    done = home.turnstile("submit", "big.yaml", "python", "x")
    assert (done.code, "a command behind --" in done.err) == (2, True)
    assert sent(home, peer, "-t", "1h", "--", "./big.yaml")["command"] == ["./big.yaml"]


def test_text_keeps_the_form_in_which_it_was_typed(tmp_path: Path) -> None:
    text = "time: 04:00:00\nname: no\nimage: 2026.10\ncommand: [x, --lr, 2e-5, 007, 1_000, off, 0x1F, 2026-11-24]\n"
    found = loaded(tmp_path / "job.yaml", text)
    assert found.work == {"command": ["x", "--lr", "2e-5", "007", "1_000", "off", "0x1F", "2026-11-24"]}
    assert (found.flags.time, found.flags.name, found.flags.image) == ("04:00:00", "no", "2026.10")


def test_run_and_quote_and_follow_read_job_files_like_submit(home: Home, peer: Peer) -> None:
    (home.path / "train.yaml").write_text(EXAMPLE)
    peer.answers("GET", "/v1/jobs/10482/logs", stream(b"out\n"))
    on_one_node(peer)
    ended = job(state="failed", exit_code=7, started_at="2026-11-23T11:30:00Z", attempt=1)
    peer.answers("GET", "/v1/jobs/10482/wait", envelope("Job", **ended))
    for verb in (("run",), ("submit", "-q", "-f")):
        done = home.turnstile(*verb, "train.yaml", "-t", "4h")
        assert (done.code, done.out.removeprefix("10482\n")) == (7, "out\n")
    assert home.turnstile("quote", "train.yaml", "-t", "4h").code == 0
    specs = [each.json for each in peer.requests("POST", "/v1/jobs")]
    assert len(specs) == 3
    assert specs[0] == specs[1] == specs[2]
    (home.path / "many.yaml").write_text("time: 1h\nscript: x\narray: 0-3\n")
    assert home.turnstile("run", "many.yaml").code == 2
    assert home.turnstile("submit", "-f", "many.yaml").code == 2


WAYS = (
    ("gpus: 8", JobFlags(total_gpus="16"), JobFlags(total_gpus="16")),
    ("total-gpus: 16", JobFlags(gpus="8"), JobFlags(gpus="8")),
    ("spot: true", JobFlags(booking="auto"), JobFlags(booking="auto")),
    ("booking: guaranteed", JobFlags(spot=True), JobFlags(spot=True)),
    ("node: [a, b]", JobFlags(node=["c"]), JobFlags(node=["c"])),
    ("label: {a: 1, b: 2}", JobFlags(label=["b=3"]), JobFlags(label=["a=1", "b=2", "b=3"])),
    ("hold: true", JobFlags(name="x"), JobFlags(name="x", hold=True)),
)


@pytest.mark.parametrize(("content", "typed", "holds"), WAYS)
def test_what_is_typed_takes_back_what_the_file_says_in_other_words(
    content: str, typed: JobFlags, holds: JobFlags, tmp_path: Path
) -> None:
    below = loaded(tmp_path / "job.yaml", content).flags
    assert layered(typed, below) == holds
    assert layered(JobFlags(), below) == below
    assert layered(typed, JobFlags()) == typed


# ---- schema and reader --------------------------------------------------------------------------------------------


def test_the_published_schema_is_one_and_takes_the_example(home: Home) -> None:
    published = json.loads(home.turnstile("schema", "job").out)
    jsonschema_rs.meta.validate(published)
    assert published["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    by_it = jsonschema_rs.Draft202012Validator(published)
    as_yaml = {
        "name": "llama-sft", "project": "nlp", "gpus": "H100:8", "nodes": 4, "time": "12h",
        "image": "registry.acme.example/train:2026.11", "env": {"WANDB_MODE": "offline"}, "secrets": ["HF_TOKEN"],
        "command": ["torchrun", "train.py", "--lr", "2e-5"], "notify": ["end", "fail", "preempt", "idle"],
    }  # fmt: skip
    assert by_it.is_valid(as_yaml)
    assert not by_it.is_valid(as_yaml | {"comands": []})
    assert not by_it.is_valid(as_yaml | {"script": "x"})


def test_every_flag_that_says_what_to_run_is_a_key_and_every_key_a_flag() -> None:
    flags = {field.name for field in fields(JobFlags)} - NOT_IN_FILES
    assert {key.flag for key in KEYS} - flags == {"command", "script"}
    assert flags <= {key.flag for key in KEYS}
    properties = jobkeys.schema()["properties"]
    assert isinstance(properties, dict)
    assert set(properties) == {key.name for key in KEYS}


@pytest.mark.parametrize("key", KEYS, ids=lambda key: str(key.name))
def test_each_keys_example_is_right_by_the_schema_and_read(key: jobkeys.Key, tmp_path: Path) -> None:
    document = {key.name: key.example}
    assert VALIDATOR.is_valid(document)
    found = loaded(tmp_path / "job.json", json.dumps(document))
    kept = found.work.get(key.name) or getattr(found.flags, key.flag, None)
    assert kept not in (None, []), "the key was read and went nowhere"


WRONG = st.one_of(st.none(), st.just(""), st.just([]), st.just([[]]), st.just([{}]), st.just({"a": {"b": {}}}))


@settings(max_examples=100, deadline=None)
@given(key=st.sampled_from(KEYS), value=WRONG)
def test_what_the_schema_refuses_in_shape_the_reader_refuses_too(
    key: jobkeys.Key, value: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    document = {key.name: value}
    if VALIDATOR.is_valid(document):
        return
    path = tmp_path_factory.mktemp("files") / "job.json"
    path.write_text(json.dumps(document))
    with pytest.raises(FileProblems):
        jobfile.load(str(path))


WORD = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12).filter(str.strip)
GOOD = st.fixed_dictionaries(
    {"command": st.lists(WORD, min_size=1, max_size=4)},
    optional={
        "name": WORD,
        "gpus": st.builds("{}:{}".format, st.sampled_from(["H100", "A100,H200", "80GB"]), st.integers(1, 8)),
        "nodes": st.integers(1, 999),
        "time": st.builds("{}{}".format, st.integers(1, 99), st.sampled_from("smhd")),
        "hold": st.booleans(),
        "env": st.dictionaries(st.text(string.ascii_uppercase, min_size=1, max_size=5), WORD, max_size=3),
        "node": st.lists(WORD, min_size=1, max_size=3),
    },
)


@settings(max_examples=100, deadline=None)
@given(document=GOOD)
def test_whatever_a_json_file_says_is_what_its_flags_hold(
    document: Json, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert VALIDATOR.is_valid(document)
    path = tmp_path_factory.mktemp("files") / "job.json"
    path.write_text(json.dumps(document))  # ASCII with escapes, pairs of surrogates included
    found = jobfile.load(str(path))
    assert found.work == {"command": document["command"]}
    for name, value in document.items():
        if name == "env":
            assert found.flags.env == [f"{key}={each}" for key, each in value.items()]
        elif name != "command":
            assert getattr(found.flags, name) == (value if isinstance(value, bool | list) else str(value))


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=60) | st.text("{}[]:,-&*!|>'\"#%@ \n\tab\\U0", max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused_with_words(data: bytes) -> None:
    for is_json in (False, True):
        try:
            found = yamlread.read(data, is_json=is_json)
        except BrokenFile as broken:
            said = broken.problem.message
        else:
            said = f"keys in line {found.line}"
        assert said


def test_lines_are_those_of_the_file() -> None:
    found = yamlread.read(b"# one\n\na: 1\nb:\n  - x\n  - y\nc: |\n  two\n  lines\n")
    (a, _), (b, listed), (c, text) = found.pairs
    assert (a.line, b.line, c.line) == (3, 4, 7)
    assert isinstance(listed, Listed)
    assert [each.line for each in listed.items] == [5, 6]
    assert isinstance(text, Scalar)
    assert text.text == "two\nlines\n"


def test_pairs_that_exclude_each_other_are_keys() -> None:
    assert {name for pair in EITHER for name in pair} <= {key.name for key in KEYS}
    assert all(key.example is not None for key in KEYS if key.shape is not Shape.TRUTH)
