"""What starting the command costs, and what it never loads."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Home

SERVER_LIBRARIES = frozenset({
    "sqlmodel", "sqlalchemy", "kubernetes", "apscheduler", "pynvml", "prometheus_client", "fastapi", "starlette",
    "pydantic", "uvicorn", "alembic", "psycopg", "httpx", "rich", "websockets", "scheduler", "metering", "k8s",
})  # fmt: skip


def loaded(*arguments: str) -> set[str]:
    """All modules that are there after a command has run: more than `-X importtime` lists, which misses late ones."""
    code = (
        "import sys; from cli.main import run; code = run(sys.argv[1:]);"
        "print('MODULES', *sys.modules, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return set(done.stderr.partition("MODULES ")[2].split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("queue",),
        ("submit", "-t", "1h", "x"),
        ("quote", "-t", "1h"),
        ("--no-header", "queue"),
        ("show", "10482"),
        ("queue", "--help"),
        ("admin", "tenant", "list"),
    ],
    ids=" ".join,
)
def test_the_tenants_commands_load_no_server_library(arguments: tuple[str, ...], home: Home) -> None:
    found = {name.partition(".")[0] for name in loaded(*arguments)}
    assert "typer" in found  # the listing of imports was understood
    assert not found & SERVER_LIBRARIES


def test_a_yaml_reader_is_loaded_for_job_files_alone(home: Home) -> None:
    (home.path / "train.yaml").write_text("time: 1h\ncommand: [x]\n")
    assert not loaded("submit", "-t", "1h", "x") & {"yaml", "cli.jobfile", "cli.slurm", "cli.sweeps"}
    of_file = loaded("submit", "train.yaml")
    assert "yaml" in of_file
    assert not {name.partition(".")[0] for name in of_file} & SERVER_LIBRARIES


def test_only_the_module_of_the_verb_that_was_typed_is_loaded(home: Home) -> None:
    assert {name for name in loaded("queue") if name.startswith("cli.commands.")} == {"cli.commands.jobs"}


def test_every_verb_and_sub_verb_has_help_with_an_example(home: Home) -> None:
    from cli import commands, verbs
    from cli.main import VERBS

    assert commands.__doc__ is not None
    seen = []

    def visit(table: tuple[verbs.Verb, ...], words: tuple[str, ...]) -> None:
        for verb in table:
            if not verbs._exists(verb.module) or verb.module.startswith(_LEADS):
                continue
            module = __import__(verb.module, fromlist=[verb.function])
            target = getattr(module, verb.function)
            if isinstance(target, tuple):
                visit(target, (*words, verb.name))
                continue
            done = home.turnstile(*words, verb.name, "--help")
            assert done.code == 0
            assert "Examples:" in done.out, (*words, verb.name)
            assert "turnstile" in done.out.partition("Examples:")[2]
            seen.append((*words, verb.name))

    visit(VERBS, ())
    assert ("admin", "tenant", "set") in seen
    assert len(seen) > 40


_LEADS = ("cli.commands.serve", "cli.commands.demo", "cli.commands.simulate", "cli.commands.agent")
"""Commands that start servers: their tests run them."""
_PRINTERS = {"print", "echo", "secho"}


def client_files() -> list[Path]:
    """The client's own modules: not the daemon's, nor the commands that start it."""
    names = {each.rpartition(".")[2] for each in _LEADS}
    top = [each for each in (ROOT / "cli").glob("*.py") if each.name not in {"render.py", "main.py"}]
    return top + [each for each in (ROOT / "cli/commands").glob("*.py") if each.stem not in names]


def test_nothing_prints_outside_the_renderer() -> None:
    for path in client_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in {"stdout", "stderr", *_PRINTERS}:
                raise AssertionError(f"{path.name}:{node.lineno} reaches for {node.attr}")
            if isinstance(node, ast.Name) and node.id in _PRINTERS:
                raise AssertionError(f"{path.name}:{node.lineno} calls {node.id}")


def test_a_verb_whose_module_is_not_there_is_not_offered(home: Home) -> None:
    from cli.main import VERBS
    from cli.verbs import Verb, group

    made = group("t", (*VERBS, Verb("gone", "cli.commands.no_such_module", "gone", "X", "Not there")), "x")
    context = made.make_context("t", [], resilient_parsing=True)
    assert "gone" not in made.list_commands(context)
    assert made.get_command(context, "gone") is None


def test_a_bug_of_ours_is_a_sentence_and_a_private_file_and_exit_1(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from cli import phrases
    from tests.cli.conftest import TOKEN

    def broken(_: object) -> str:
        raise RuntimeError(f"a bug that quotes {TOKEN}")

    monkeypatch.setattr(phrases, "size", broken)
    done = home.turnstile("nodes")
    assert done.code == 1
    assert "this is a bug, report " in done.err
    assert "Traceback" not in done.err
    (kept,) = (home.path / ".local/state/turnstile/reports").iterdir()
    assert "Traceback" in kept.read_text()
    assert TOKEN not in kept.read_text() + done.err
    assert os.stat(kept).st_mode & 0o777 == 0o600  # noqa: PTH116  (the mode of the file itself)
