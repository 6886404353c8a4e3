"""Which server, as whom: what overrides what, and what is refused."""

from pathlib import Path

import pytest

from cli import contexts
from cli.contexts import Overrides
from cli.errors import ConfigProblem, NotLoggedIn, UsageProblem


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a system file, a user file, and a work directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "etc"))
    system, user = tmp_path / "etc/turnstile", tmp_path / ".config/turnstile"
    for folder in (system, user, tmp_path / "work/deep"):
        folder.mkdir(parents=True)
    (system / "config.toml").write_text(
        'current = "park"\n[contexts.park]\nurl = "https://park.example"\n[contexts.lab]\nurl = "https://old.example"\n'
    )
    (user / "config.toml").write_text('[contexts.lab]\nurl = "https://lab.example"\ntoken_file = "lab.token"\n')
    token = user / "lab.token"
    token.write_text("tst_lab\n")
    token.chmod(0o600)
    return tmp_path


def chosen_url(place: Path, environment: dict[str, str], **flags: str) -> str:
    return contexts.endpoint(contexts.load(environment, place / "work/deep"), Overrides(**flags), environment).url


def test_flags_beat_environment_beats_project_beats_user_beats_system(place: Path) -> None:
    assert chosen_url(place, {}) == "https://park.example"
    user = place / ".config/turnstile/config.toml"
    user.write_text('current = "lab"\n' + user.read_text() + '[contexts.home]\nurl = "https://home.example"\n')
    assert chosen_url(place, {}) == "https://lab.example"
    (place / "work/.turnstile.toml").write_text('context = "home"\nproject = "nlp"\n')
    assert chosen_url(place, {}) == "https://home.example"
    assert chosen_url(place, {"TURNSTILE_CONTEXT": "park"}) == "https://park.example"
    assert chosen_url(place, {"TURNSTILE_CONTEXT": "park"}, context="lab") == "https://lab.example"
    assert chosen_url(place, {"TURNSTILE_URL": "http://env.example/"}) == "http://env.example"
    assert (
        chosen_url(place, {"TURNSTILE_URL": "http://env.example"}, url="http://flag.example") == "http://flag.example"
    )
    assert (
        chosen_url(place, {"TURNSTILE_URL": "http://env.example"}, context="lab", url="http://f.example")
        == "http://f.example"
    )
    assert contexts.load({}, place / "work/deep").project == "nlp"
    assert contexts.load({"TURNSTILE_PROJECT": "vision"}, place / "work/deep").project == "vision"


def test_a_project_file_may_choose_a_context_but_not_where_a_token_goes(place: Path) -> None:
    for line in ('url = "https://evil.example"', 'token_file = "/x"', '[contexts.lab]\nurl = "https://evil.example"'):
        (place / "work/.turnstile.toml").write_text(line)
        with pytest.raises(ConfigProblem, match="unknown key"):
            contexts.load({}, place / "work")


def test_a_contexts_token_goes_to_its_own_server_only(place: Path) -> None:
    known = contexts.load({}, place)
    assert contexts.endpoint(known, Overrides("lab"), {}).token == "tst_lab"
    assert contexts.endpoint(known, Overrides("lab", "https://lab.example/sub"), {}).token == "tst_lab"
    assert contexts.endpoint(known, Overrides("lab", "https://evil.example"), {}).token is None
    assert contexts.endpoint(known, Overrides("lab", "http://lab.example"), {}).token is None
    environment = {"TURNSTILE_CONTEXT": "lab", "TURNSTILE_URL": "https://evil.example"}
    assert contexts.endpoint(contexts.load(environment, place), Overrides(), environment).token is None
    environment = {"TURNSTILE_CONTEXT": "lab", "TURNSTILE_URL": "https://lab.example"}
    assert contexts.endpoint(contexts.load(environment, place), Overrides(), environment).token == "tst_lab"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604, 0o620])
def test_a_token_file_that_others_can_read_or_write_is_refused(place: Path, mode: int) -> None:
    token = place / ".config/turnstile/lab.token"
    token.chmod(mode)
    with pytest.raises(ConfigProblem, match=rf"can be read by others \(mode {mode:04o}\)") as refused:
        contexts.read_token(token)
    assert refused.value.tries == ("chmod 600 ~/.config/turnstile/lab.token",)


def test_a_token_file_that_is_missing_empty_or_no_token_is_refused_without_its_content(place: Path) -> None:
    token = place / "token"
    with pytest.raises(NotLoggedIn, match="there is no token file ~/token"):
        contexts.read_token(token)
    token.touch(0o600)
    with pytest.raises(NotLoggedIn, match="is empty"):
        contexts.read_token(token)
    for content in ("two words", "naïve", "a\x00b"):
        token.write_text(content)
        with pytest.raises(ConfigProblem, match="does not hold a token") as refused:
            contexts.read_token(token)
        assert content not in refused.value.message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x =", "is not TOML"),
        ("colour = 1", "unknown key 'colour'"),
        ("contexts = 1", "contexts is not a table"),
        ("[contexts]\nlab = 1", "contexts.lab is not a table"),
        ("[contexts.lab]", "has no url"),
        ('[contexts.lab]\nurl = "https://x"\ntoken = "tst_x"', "unknown key 'token'"),
        ("current = 1", "current is not text"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_the_file(place: Path, content: str, words: str) -> None:
    (place / ".config/turnstile/config.toml").write_text(content)
    with pytest.raises(ConfigProblem, match=words) as refused:
        contexts.load({}, place)
    assert "~/.config/turnstile/config.toml" in refused.value.message
    assert "tst_x" not in refused.value.message


def test_an_unknown_context_is_named_with_what_asked_for_it(place: Path) -> None:
    environment = {"TURNSTILE_CONTEXT": "prd"}
    with pytest.raises(ConfigProblem, match=r"no context 'prd' \(named by TURNSTILE_CONTEXT\)"):
        contexts.endpoint(contexts.load(environment, place), Overrides(), environment)


@pytest.mark.parametrize(
    "url", ["", "turnstile.example", "ftp://x", "https://", "https://u:p@x", "https://x/?q", "http://[", "http://x:y"]
)
def test_what_is_no_servers_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(UsageProblem) as refused:
        contexts.checked_url(url)
    assert "u:p" not in refused.value.message + "".join(refused.value.tries)
