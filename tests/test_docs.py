"""The documentation names only what is there: pages, headings, files, commands and flags; and every dependency."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from cli.main import VERBS
from cli.verbs import group

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]
)
FILES = sorted(
    path
    for top in ("benchmarks", "cli", "deploy", "docs", "k8s", "metering", "scheduler", "tests")
    for path in (ROOT / top).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
)
SOURCES = [
    *(path for path in FILES if path.suffix in {".py", ".toml", ".yaml", ".json"}),
    ROOT / "pyproject.toml",
    ROOT / "Makefile",
]
ENDINGS = "md|py|toml|ya?ml|json|svg|html"
MADE_ELSEWHERE = {"/v1/openapi.json", "manifest.json"}
"""What has a file's name, and is answered by the daemon or written by an export."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """Returns a page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Returns what a link can name behind `#`: the headings, as GitHub spells them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_of_the_documentation_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)\s#]+)", page.read_text("utf-8"))
        waiting += [(page.parent / link).resolve() for link in links if "://" not in link]
    assert sorted(name(page) for page in set(PAGES) - seen) == []


def test_every_file_that_a_page_or_a_source_names_is_there() -> None:
    paths = [name(path) for path in FILES] + [path.name for path in ROOT.iterdir()]
    known = {path[at:] for path in paths for at in (0, *(found.end() for found in re.finditer("/", path)))}
    by_page = dict.fromkeys(PAGES, rf"`([\w./-]+\.(?:{ENDINGS}))`")
    by_source = dict.fromkeys(SOURCES, rf"\b((?:docs|deploy|benchmarks)/[\w./-]+\.(?:{ENDINGS}))\b")
    missing = [
        f"{name(file)}: {named}"
        for file, pattern in {**by_source, **by_page}.items()
        for named in re.findall(pattern, file.read_text("utf-8"))
        if named not in known | MADE_ELSEWHERE
    ]
    assert missing == []


def typed_commands(page: Path) -> Iterator[list[str]]:
    """Yields the words of every `turnstile …` of a page, in blocks and in sentences, up to its `--` or end."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```(?:sh|console|)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(turnstile [^`\n]+)`", prose(page))
    for line in lines:
        for piece in re.split(r"&&|\|\s|;|\$\(", line):
            found = re.match(r"\s*\$?\s*(?:sudo )?turnstile (.*)", piece)
            if found is None:
                continue
            try:
                words = shlex.split(found[1].removesuffix(")"), comments=True)
            except ValueError:  # a quotation that ends on another line
                words = found[1].split("'")[0].split('"')[0].split()
            yield list(takewhile(lambda word: word not in {"--", ">", "<", "…", "..."}, words))


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """Returns the command that words name, and what stands behind its name. Fails when there is none of that name."""
    command: Any = group("turnstile", VERBS, "")
    for at, word in enumerate(words):
        if not hasattr(command, "table"):
            return command, words[at:]
        if word.startswith(("-", "<")) or word.isupper():  # a flag of all verbs, or a word that stands for any verb
            return command, []
        found = [command.get_command(None, each) for each in word.split("|")]
        assert None not in found, f"no command {' '.join(words[: at + 1])!r}"
        command = found[0]
    return command, []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_that_a_page_types_exists_with_its_flags(page: Path) -> None:
    for words in typed_commands(page):
        command, rest = command_of(words)
        known = {"-h", "--help"} | {each for param in command.params for each in (*param.opts, *param.secondary_opts)}
        for word in rest:
            flag = word.partition("=")[0] if word.startswith("--") else word[:2]
            assert not re.match(r"--?[a-zA-Z]", word) or flag in known, f"{flag} in {' '.join(words)!r}"


def test_every_dependency_has_its_reason_in_the_first_decision() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [each for extra in project["optional-dependencies"].values() for each in extra]
    declared = {re.split(r"[^\w-]", each)[0].lower() for each in [*project["dependencies"], *extras]}
    reasons = (ROOT / "docs/decisions/0001-dependencies.md").read_text("utf-8").lower()
    assert sorted(each for each in declared if not re.search(rf"\b{each}\b", reasons)) == []


def test_every_decision_has_a_number_of_its_own_and_a_line_in_the_index() -> None:
    folder = ROOT / "docs/decisions"
    records = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    assert [path.name[:4] for path in records] == [f"{number:04}" for number in range(1, len(records) + 1)]
    assert [int(path.read_text("utf-8")[2:].partition(".")[0]) for path in records] == list(range(1, len(records) + 1))
    assert re.findall(r"\]\((\S+)\)", (folder / "README.md").read_text("utf-8")) == [path.name for path in records]
