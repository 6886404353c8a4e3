"""Logging in and out, contexts, versions, doctor."""

import json
import tomllib
from importlib import metadata

import pytest

from cli import moments
from cli.commands import doctor, you
from tests.cli.conftest import TOKEN, Home
from tests.cli.peer import Asked, Peer, Reply, envelope, problem, said


@pytest.fixture
def fresh(home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home whose environment names no server."""
    monkeypatch.delenv("TURNSTILE_URL")
    monkeypatch.delenv("TURNSTILE_TOKEN_FILE")
    return home


def test_a_token_from_stdin_is_checked_and_kept_where_only_its_owner_reads_it(fresh: Home, peer: Peer) -> None:
    done = fresh.turnstile("login", peer.url, "--context", "prod", "-A", "nlp", stdin=f"{TOKEN}\n")
    assert done.code == 0, done.err
    assert f"logged in to {peer.url} as mei  user of acme" in done.err
    config = fresh.path / ".config/turnstile/config.toml"
    document = tomllib.loads(config.read_text())
    assert document == {
        "current": "prod",
        "contexts": {"prod": {"url": peer.url, "token_file": "tokens/prod.token", "project": "nlp"}},
    }
    token = config.parent / "tokens/prod.token"
    assert (token.read_text(), token.stat().st_mode & 0o777) == (f"{TOKEN}\n", 0o600)
    assert fresh.turnstile("whoami").code == 0
    assert peer.requests("GET", "/v1/whoami")[-1].headers["Authorization"] == f"Bearer {TOKEN}"
    fresh.turnstile("submit", "-t", "1h", "x")
    assert peer.requests("POST", "/v1/jobs")[-1].json["project"] == "nlp"


def test_a_token_that_the_server_refuses_is_not_kept(fresh: Home, peer: Peer) -> None:
    peer.answers("GET", "/v1/whoami", problem("not_logged_in", 401, "the token is not valid"))
    assert fresh.turnstile("login", peer.url, "--token-file", str(fresh.token_file)).code == 5
    assert not (fresh.path / ".config/turnstile").exists()


def test_contexts_are_listed_chosen_and_explained(fresh: Home, peer: Peer) -> None:
    for name in ("prod", "lab"):
        fresh.turnstile("login", peer.url, "--context", name, "--token-file", str(fresh.token_file))
    assert fresh.turnstile("context", "list", "-q").out == "lab\nprod\n"
    listed = json.loads(fresh.turnstile("context", "list", "-o", "json").out)
    assert [(each["name"], each["is_current"]) for each in listed["items"]] == [("lab", True), ("prod", False)]
    assert fresh.turnstile("context", "use", "prod").code == 0
    assert fresh.turnstile("context", "show").out.startswith(f"prod  {peer.url}\n")
    assert fresh.turnstile("context", "use", "nowhere").code == 2
    assert fresh.turnstile("queue", "--context", "nowhere").code == 2


def test_logging_out_removes_the_token_from_this_machine(fresh: Home, peer: Peer) -> None:
    fresh.turnstile("login", peer.url, "--token-file", str(fresh.token_file))
    assert fresh.turnstile("logout").code == 0
    assert not list((fresh.path / ".config/turnstile/tokens").iterdir())
    assert "no token is kept" in fresh.turnstile("logout").err
    refused = fresh.turnstile("queue")
    assert refused.code == 5
    assert "turnstile login" in refused.err


def test_without_a_server_the_command_says_how_to_name_one(fresh: Home) -> None:
    done = fresh.turnstile("queue")
    assert done.code == 2
    assert done.err == "error: no server is configured\n  try   turnstile login https://turnstile.example\n"


def test_versions_are_told_with_and_without_a_server(home: Home, fresh: Home) -> None:
    done = fresh.turnstile("version", "-o", "json")
    assert done.code == 0
    assert json.loads(done.out)["server"] is None
    by_habit, by_verb = home.turnstile("--version"), home.turnstile("version")
    assert (by_habit.code, by_habit.out) == (0, by_verb.out)
    assert by_habit.out.startswith(f"client {you.installed_version()}\n")


def healthy(peer: Peer, version: str | None = None, skew_seconds: float = 0) -> None:
    """Lets the peer tell the present time and a version."""

    def now(_: Asked) -> Reply:
        from datetime import timedelta

        at = moments.write(moments.current() + timedelta(seconds=skew_seconds))
        known = version or you.installed_version()
        return said(envelope("Version", version=known) | {"generated_at": at})

    peer.answers("GET", "/v1/version", now)


def test_doctor_finds_nothing_where_all_is_well(home: Home, peer: Peer) -> None:
    healthy(peer)
    done = home.turnstile("doctor", "-o", "json")
    found = {each["check"]: each["is_ok"] for each in json.loads(done.out)["items"]}
    assert done.code == 0, done.out
    assert set(found) == {"configuration", "server", "clock", "versions", "ready", "token", "packages"}


@pytest.mark.parametrize(
    ("broken", "check", "code"),
    [
        ("clock", "clock", 6),
        ("version", "versions", 6),
        ("ready", "ready", 7),
        ("token", "token", 5),
        ("server", "server", 7),
        ("mode", "configuration", 2),
    ],
)
def test_doctor_names_what_is_wrong(
    broken: str, check: str, code: int, home: Home, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda: "0.1.0")
    healthy(peer, "9.9.9" if broken == "version" else "0.1.3", 3600 if broken == "clock" else 0)
    if broken == "ready":
        peer.answers("GET", "/readyz", problem("unavailable", 503, "the database does not answer"))
    if broken == "token":
        peer.answers("GET", "/v1/whoami", problem("not_logged_in", 401, "the token is not valid"))
    if broken == "server":
        peer.answers("GET", "/v1/version", Reply(b"", breaks_off=True))
    if broken == "mode":
        home.token_file.chmod(0o644)
    done = home.turnstile("doctor", "-o", "json")
    wrong = [each["check"] for each in json.loads(done.out)["items"] if not each["is_ok"]]
    assert (wrong, done.code) == ([check], code)


def test_doctor_finds_another_distribution_with_a_package_of_our_name(
    home: Home, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy(peer)
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"scheduler": ["gpu-turnstile", "other-thing"]})
    done = home.turnstile("doctor")
    assert done.code == 2
    assert "other-thing provides a package 'scheduler' too" in done.out


def test_this_environment_has_no_other_distribution_with_our_packages() -> None:
    assert [each.is_ok for each in doctor._packages()] == [True]


def test_a_completion_script_is_printed_for_each_shell(home: Home) -> None:
    for shell in ("bash", "zsh", "fish"):
        done = home.turnstile("completion", shell)
        assert done.code == 0
        assert "_TURNSTILE_COMPLETE" in done.out
    assert home.turnstile("completion", "tcsh").code == 2


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("turnstile qu", {"queue", "quota", "quote"}),
        ("turnstile admin te", {"tenant"}),
        ("turnstile admin tenant s", {"show", "set", "suspend"}),
        ("turnstile queue --st", {"--state"}),
    ],
)
def test_a_shell_is_told_how_a_word_could_go_on(
    words: str, offered: set[str], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_TURNSTILE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    done = home.turnstile()
    assert (done.code, set(done.out.split())) == (0, offered)
