"""The token is sent to the server and shown to nobody: not by any command, not in any failure."""

import json

import pytest

from tests.cli.cases import CASES
from tests.cli.conftest import TOKEN, Home
from tests.cli.peer import Peer, Reply, problem
from tests.cli.recorded import centre
from tests.cli.recorded_money import money

FAILURES = {
    "none": None,
    "a refusal that quotes the token": problem("not_logged_in", 401, f"bad token {TOKEN}", **{"try": [f"not {TOKEN}"]}),
    "a stranger that echoes the request": Reply(f"<p>Authorization: Bearer {TOKEN}</p>".encode(), 502, {}),
    "an answer that is not JSON": Reply(f"{TOKEN}".encode()),
    "a broken connection": Reply(b"", breaks_off=True),
    "an answer of the wrong shape": Reply(json.dumps({"items": TOKEN, "generated_at": TOKEN}).encode()),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("form", ["table", "json"])
def test_no_command_shows_the_token_whatever_the_server_does(failure: str, form: str, home: Home, peer: Peer) -> None:
    for case in CASES.values():
        if case.refused is None:
            continue
        centre(peer)
        money(peer)
        case.prepare(home, peer)
        reply, arguments = FAILURES[failure], case.words
        if reply is not None:
            peer.answers(*case.refused, reply)
        words = arguments if "-o" in arguments or "--" in arguments else (*arguments, "-o", form)
        done = home.turnstile(*words)
        assert TOKEN not in done.out + done.err, arguments
        assert "Traceback" not in done.err
        assert done.code != 1 or failure.startswith("an answer"), (arguments, done.err)
    assert all(each.headers.get("Authorization") == f"Bearer {TOKEN}" for each in peer.asked)


def test_no_command_shows_the_token_when_it_cannot_be_read_or_sent(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.token_file.chmod(0o644)
    assert TOKEN not in (shown := home.turnstile("queue").err)
    assert "can be read by others" in shown
    home.token_file.write_text(f"two {TOKEN}")
    home.token_file.chmod(0o600)
    assert TOKEN not in home.turnstile("queue").err
    monkeypatch.setenv("TURNSTILE_URL", f"http://me:{TOKEN}@127.0.0.1")
    assert TOKEN not in home.turnstile("queue").err
    monkeypatch.setenv("TURNSTILE_URL", TOKEN)
    assert TOKEN not in home.turnstile("queue").err


def test_environment_values_are_sent_and_never_shown(home: Home, peer: Peer) -> None:
    secret = "hf_sentinel-value"
    assert home.turnstile("submit", "-t", "1h", "-e", f"HF_TOKEN={secret}", "x").code == 0
    assert peer.requests("POST", "/v1/jobs")[0].json["env"] == {"HF_TOKEN": secret}
    for arguments in (("-e", f"HF_TOKEN={secret}", "-t", "90", "x"), ("-e", f"9HF={secret}", "-t", "1h", "x")):
        done = home.turnstile("submit", *arguments)
        assert done.code == 2
        assert secret not in done.out + done.err
