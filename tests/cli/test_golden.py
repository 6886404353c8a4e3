"""What each command prints, byte for byte: commands × {ok, error} × {table, json}, in a pipe and on a terminal.

`TURNSTILE_GOLDEN=write` writes the files anew; the diff is then for a person to judge.
"""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Home
from tests.cli.peer import NOW, Peer, Reply, envelope, page, problem
from tests.cli.recorded import ACCOUNTS, FAILED, RUNNING, UNSOUND, job

GOLDEN = Path(__file__).parent / "golden"
WRITES = os.environ.get("TURNSTILE_GOLDEN") == "write"
ENDED = page("JobList", [FAILED])
DRAINED = page("JobActionList", [{"id": 10400, "did": "already_ended", "state": "failed"}])
SUBMIT = ("-g", "H100:8", "-N", "8", "-t", "12h", "-n", "dpo-run")

COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, str]]] = {
    "submit": (("submit", *SUBMIT, "--", "torchrun", "train.py"), ("POST", "/v1/jobs")),
    "submit-dry-run": (("submit", "--dry-run", *SUBMIT, "--", "torchrun"), ("POST", "/v1/jobs")),
    "quote": (("quote", *SUBMIT), ("POST", "/v1/jobs")),
    "queue": (("queue",), ("GET", "/v1/jobs")),
    "queue-wide": (("queue", "-o", "wide"), ("GET", "/v1/jobs")),
    "show": (("show", "10482"), ("GET", "/v1/jobs/10482")),
    "why": (("why", "10482"), ("GET", "/v1/jobs/10482/why")),
    "history": (("history", "--since", "2026-11-16"), ("GET", "/v1/jobs")),
    "history-of-one": (("history", "10431"), ("GET", "/v1/jobs/10431/events")),
    "report": (("report", "10431"), ("GET", "/v1/jobs/10431/report")),
    "wait": (("wait", "10482"), ("GET", "/v1/jobs/10482/wait")),
    "cancel": (("cancel", "-y", "10482"), ("POST", "/v1/jobs/cancel")),
    "hold": (("hold", "-y", "10482"), ("POST", "/v1/jobs/hold")),
    "release": (("release", "-y", "10482"), ("POST", "/v1/jobs/release")),
    "requeue": (("requeue", "-y", "10482"), ("POST", "/v1/jobs/requeue")),
    "checkpoint": (("checkpoint", "10482"), ("POST", "/v1/jobs/checkpoint")),
    "update": (("update", "10482", "-t", "2h"), ("POST", "/v1/jobs/update")),
    "gpus": (("gpus",), ("GET", "/v1/gpus")),
    "nodes": (("nodes",), ("GET", "/v1/nodes")),
    "whoami": (("whoami",), ("GET", "/v1/whoami")),
    "admin-tenant-list": (("admin", "tenant", "list"), ("GET", "/v1/admin/accounts")),
    "admin-tenant-show": (("admin", "tenant", "show", "acme"), ("GET", "/v1/admin/accounts")),
    "admin-tenant-set": (("admin", "tenant", "set", "acme", "--weight", "3"), ("PUT", "/v1/admin/accounts/acme")),
    "admin-tenant-suspend": (("admin", "tenant", "suspend", "acme"), ("POST", "/v1/admin/accounts/acme/suspend")),
    "admin-project-remove": (("admin", "project", "remove", "acme/old"), ("DELETE", "/v1/admin/accounts/acme/old")),
    "admin-quota-set": (("admin", "quota", "set", "acme", "--running", "200"), ("PUT", "/v1/admin/accounts/acme")),
    "admin-quota-list": (("admin", "quota", "list", "-o", "wide"), ("GET", "/v1/admin/accounts")),
    "admin-user-create": (("admin", "user", "create", "ana", "-A", "acme"), ("POST", "/v1/admin/tokens")),
    "admin-user-list": (("admin", "user", "list"), ("GET", "/v1/admin/users")),
    "admin-user-set": (("admin", "user", "set", "mei", "-A", "acme", "--high"), ("PUT", "/v1/admin/users")),
    "admin-user-remove": (("admin", "user", "remove", "mei", "-A", "acme"), ("DELETE", "/v1/admin/users")),
    "admin-project-list": (("admin", "project", "list"), ("GET", "/v1/admin/accounts")),
    "admin-token-create": (
        ("admin", "token", "create", "-u", "ops", "--role", "operator"),
        ("POST", "/v1/admin/tokens"),
    ),
    "admin-token-list": (("admin", "token", "list"), ("GET", "/v1/admin/tokens")),
    "admin-token-revoke": (("admin", "token", "revoke", "01JDT"), ("DELETE", "/v1/admin/tokens/01JDT")),
    "token-create": (("token", "create", "--expires", "30d"), ("POST", "/v1/tokens")),
    "token-list": (("token", "list"), ("GET", "/v1/tokens")),
    "token-revoke": (("token", "revoke", "01JDT"), ("DELETE", "/v1/tokens/01JDT")),
    "admin-job-boost": (("admin", "job", "boost", "10482"), ("POST", "/v1/jobs/update")),
    "admin-price-list": (("admin", "price", "list"), ("GET", "/v1/admin/prices")),
    "admin-node-drain": (("admin", "node", "drain", "gpu-017", "-r", "fan"), ("POST", "/v1/admin/nodes/gpu-017/drain")),
    "admin-node-resume": (("admin", "node", "resume", "gpu-017"), ("POST", "/v1/admin/nodes/gpu-017/resume")),
    "admin-node-history": (("admin", "node", "history", "gpu-017"), ("GET", "/v1/admin/nodes/gpu-017/history")),
    "admin-agent-list": (("admin", "agent", "list"), ("GET", "/v1/admin/agents")),
    "admin-pool-list": (("admin", "pool", "list"), ("GET", "/v1/pools")),
    "admin-pool-set": (
        ("admin", "pool", "set", "h100-ib", "--node", "gpu-001", "--node", "gpu-002"),
        ("PUT", "/v1/admin/pools/h100-ib/nodes"),
    ),
    "admin-pause": (("admin", "pause", "a100", "-r", "power works"), ("POST", "/v1/admin/pause")),
    "admin-resume": (("admin", "resume"), ("POST", "/v1/admin/resume")),
    "admin-defrag": (("admin", "defrag"), ("GET", "/v1/admin/defrag")),
    "admin-reserve-create": (
        ("admin", "reserve", "create", "switch-works", "--node", "gpu-001", "--node", "gpu-002", "--for", "4h"),
        ("POST", "/v1/admin/reservations"),
    ),
    "admin-reserve-list": (("admin", "reserve", "list"), ("GET", "/v1/reservations")),
    "admin-reserve-cancel": (
        ("admin", "reserve", "cancel", "switch-works"),
        ("DELETE", "/v1/admin/reservations/switch-works"),
    ),
    "admin-ledger-verify": (("admin", "ledger", "verify"), ("GET", "/v1/admin/ledger/verify")),
    "admin-ledger-periods": (("admin", "ledger", "periods"), ("GET", "/v1/admin/ledger/periods")),
    "admin-ledger-close": (("admin", "ledger", "close", "--period", "2026-10"), ("POST", "/v1/admin/ledger/close")),
    "admin-ledger-correct": (
        ("admin", "ledger", "correct", "--period", "2026-10"),
        ("POST", "/v1/admin/ledger/correct"),
    ),
    "admin-ledger-unknown": (("admin", "ledger", "unknown"), ("GET", "/v1/admin/ledger/unknown")),
    "admin-ledger-reclassify": (
        ("admin", "ledger", "reclassify", "--allocation", "A", "--ended-at", "2026-11-02T09:00:00Z", "-r", "journal"),
        ("POST", "/v1/admin/ledger/reclassify"),
    ),
}
REFUSED = problem("not_allowed", 403, "a token with the role user may not do this", **{"try": ["ask mei@acme.example"]})


def prepare(name: str, peer: Peer) -> None:
    """What the peer answers where the recorded centre would not be telling."""
    if name == "history":
        peer.answers("GET", "/v1/jobs", ENDED)


def normalised(text: str, peer: Peer) -> str:
    """Text without what differs from run to run: the peer's port, and the client's own clock."""
    text = text.replace(peer.url, "http://turnstile.test").replace("\r\n", "\n")
    return re.sub(r'"generated_at": "(?!' + NOW + r')[^"]*"', '"generated_at": "NOW"', text)


def check(name: str, shown: str) -> None:
    """Compares with the golden file of that name."""
    path = GOLDEN / f"{name}.txt"
    if WRITES:
        path.write_text(shown, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == shown


@pytest.mark.parametrize("is_json", [False, True], ids=["table", "json"])
@pytest.mark.parametrize("is_refused", [False, True], ids=["ok", "error"])
@pytest.mark.parametrize("name", COMMANDS)
def test_in_a_pipe_each_command_prints_what_is_written_down(
    name: str, is_refused: bool, is_json: bool, home: Home, peer: Peer
) -> None:
    arguments, asked = COMMANDS[name]
    prepare(name, peer)
    if is_refused:
        peer.answers(*asked, REFUSED)
    if is_json:
        at = 1 + sum(
            word in {"admin", "tenant", "project", "token", "price", "node", "pool", "agent", "ledger"}
            for word in arguments[:2]
        )
        arguments = (*arguments[:at], "-o", "json", *(word for word in arguments[at:] if word not in {"-o", "wide"}))
    done = home.turnstile(*arguments)
    shown = f"exit {done.code}\n--- stdout\n{done.out}--- stderr\n{done.err}"
    check(f"{name}-{'error' if is_refused else 'ok'}-{'json' if is_json else 'table'}", normalised(shown, peer))
    assert done.code == (5 if is_refused else 3 if name == "wait" else 0)
    if is_json:
        document = json.loads(done.out)
        assert document["apiVersion"] == "turnstile/v1"
        assert (document["kind"] == "Error") == is_refused


@pytest.mark.parametrize("is_refused", [False, True], ids=["ok", "error"])
@pytest.mark.parametrize(
    "name", ["submit", "quote", "queue", "show", "why", "cancel", "gpus", "nodes", "admin-tenant-list"]
)
def test_on_a_terminal_each_command_prints_what_is_written_down(
    name: str, is_refused: bool, home: Home, peer: Peer
) -> None:
    arguments, asked = COMMANDS[name]
    prepare(name, peer)
    if is_refused:
        peer.answers(*asked, REFUSED)
    code, shown = on_a_terminal(arguments)
    check(f"{name}-{'error' if is_refused else 'ok'}-terminal", normalised(f"exit {code}\n{shown}", peer))


def on_a_terminal(arguments: tuple[str, ...], typed: str = "") -> tuple[int, str]:
    """Runs the command with a terminal for all of its streams; returns its exit status and what the terminal shows."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "cli.main", *arguments], stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True
    ) as process:
        os.close(theirs)
        if typed:
            os.write(ours, typed.encode())
        shown, deadline = b"", time.monotonic() + 30
        while time.monotonic() < deadline and select.select([ours], [], [], 30)[0]:
            try:
                block = os.read(ours, 65_536)
            except OSError:  # the other side is closed: this is how Linux says end of file on a terminal
                break
            if not block:
                break
            shown += block
        os.close(ours)
        return process.wait(30), shown.decode()


def test_json_is_the_same_on_a_terminal_and_in_a_pipe(home: Home, peer: Peer) -> None:
    _, shown = on_a_terminal(("queue", "-o", "json"))
    assert shown.replace("\r\n", "\n") == home.turnstile("queue", "-o", "json").out


def test_colour_is_for_terminals_that_want_it_and_for_those_who_ask(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\x1b[32mrunning" in on_a_terminal(("queue",))[1]
    assert "\x1b[" not in on_a_terminal(("queue", "--color", "never"))[1]
    assert "\x1b[" not in home.turnstile("queue").out
    assert "\x1b[32mrunning" in home.turnstile("queue", "--color", "always").out
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patched:
            patched.setenv(name, value)
            assert "\x1b[" not in on_a_terminal(("queue",))[1]


def test_a_list_has_one_item_a_line_in_jsonl_one_name_in_q_and_rows_alone_without_header(home: Home) -> None:
    lines = home.turnstile("queue", "-o", "jsonl").out.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [10431, 10482, "10490_7", 10493]
    assert home.turnstile("queue", "-q").out == "10431\n10482\n10490_7\n10493\n"
    assert home.turnstile("queue", "-o", "name").out == "10431\n10482\n10490_7\n10493\n"
    assert len(home.turnstile("queue", "--no-header").out.splitlines()) == 4


def test_csv_has_the_fields_and_neutralises_formulas(home: Home, peer: Peer) -> None:
    peer.answers("GET", "/v1/jobs", ENDED)
    header, row = home.turnstile("history", "-o", "csv").out.splitlines()
    found = dict(zip(header.split(","), row.split(","), strict=True))
    assert (found["id"], found["name"], found["exit_code"]) == ("10400", "'=HYPERLINK(1)", "3")
    assert home.turnstile("history", "-o", "csv", "--no-header").out.splitlines() == [row]


def test_a_hostile_name_moves_no_cursor(home: Home, peer: Peer) -> None:
    peer.answers("GET", "/v1/jobs", page("JobList", [job(name="x\x1b]0;owned\x07\x1b[2J\n\u202egpj")]))
    for form in ("table", "wide"):
        shown = home.turnstile("queue", "-o", form).out
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert len(shown.splitlines()) == 2


def test_long_rows_are_never_cut_in_a_pipe(home: Home, peer: Peer) -> None:
    nodes = [f"node-{n}-{'x' * 40}" for n in "abcdefgh"]
    peer.answers("GET", "/v1/jobs", page("JobList", [RUNNING | {"node_names": nodes}]))
    assert ",".join(nodes) in home.turnstile("queue").out


def test_an_unsound_ledger_is_exit_1_and_says_where(home: Home, peer: Peer) -> None:
    peer.answers("GET", "/v1/admin/ledger/verify", UNSOUND)
    done = home.turnstile("admin", "ledger", "verify")
    assert done.code == 1
    assert "NOT SOUND" in done.out
    assert "chain: sequence 17  expected ab, found cd" in done.out


def test_a_finished_job_is_cancelled_with_a_note_and_exit_0(home: Home, peer: Peer) -> None:
    peer.answers("POST", "/v1/jobs/cancel", DRAINED)
    done = home.turnstile("cancel", "10400")
    assert (done.code, done.err) == (0, "note: 10400 has already ended (failed)\n")


@pytest.mark.parametrize(
    ("verb", "did", "state", "code"),
    [
        *(
            ("hold", "already_ended", "failed", 6),
            ("hold", "unchanged", "running", 6),
            ("hold", "unchanged", "held", 0),
        ),
        *(("release", "already_ended", "failed", 6), ("release", "unchanged", "pending", 0)),
        *(("requeue", "already_ended", "failed", 6), ("requeue", "unchanged", "pending", 0)),
    ],
)
def test_what_the_state_of_a_named_job_does_not_allow_is_exit_6(
    home: Home, peer: Peer, verb: str, did: str, state: str, code: int
) -> None:
    peer.answers("POST", f"/v1/jobs/{verb}", page("JobActionList", [{"id": 10400, "did": did, "state": state}]))
    assert home.turnstile(verb, "10400").code == code
    assert home.turnstile(verb, "-u", "mei").code == 0


@pytest.mark.parametrize(
    ("did", "state", "code"),
    [("changed", "pending", 0), ("unchanged", "held", 0), ("unchanged", "running", 6), ("already_ended", "failed", 6)],
)
def test_only_jobs_that_wait_get_other_terms(home: Home, peer: Peer, did: str, state: str, code: int) -> None:
    peer.answers("POST", "/v1/jobs/update", page("JobActionList", [{"id": 10400, "did": did, "state": state}]))
    done = home.turnstile("update", "10400", "-t", "2h", "--priority", "high", "--begin", "now")
    assert done.code == code
    assert peer.requests("POST", "/v1/jobs/update")[-1].json == {
        "ids": ["10400"],
        "time_limit_seconds": 7200,
        "priority": "high",
        "begins_at_once": True,
    }


@pytest.mark.parametrize(
    ("answered", "code"),
    [
        (problem("policy", 422, "there is no way into running jobs here"), 3),
        (problem("not_found", 404, "no job 10482 in tenant acme"), 4),
        (problem("not_allowed", 403, "job 10482 is ana's"), 5),
        (problem("wrong_state", 409, "job 10482 is pending; only a running job can be entered"), 6),
        (problem("unavailable", 503, "no daemon leads at the moment"), 7),
    ],
)
@pytest.mark.parametrize("words", [("exec", "10482", "--", "true"), ("port-forward", "10482", "0:8888")], ids="-".join)
def test_a_refused_entry_is_told_like_any_other_refusal(
    home: Home, peer: Peer, words: tuple[str, ...], answered: Reply, code: int
) -> None:
    path = "exec" if words[0] == "exec" else "port"
    peer.answers("GET", f"/v1/jobs/10482/{path}", answered)
    told = home.turnstile(*words)
    assert (told.code, told.out) == (code, "")
    assert told.err.startswith("error: ")
    as_json = home.turnstile(words[0], "-o", "json", *words[1:])
    assert (as_json.code, json.loads(as_json.out)["kind"]) == (code, "Error")


def test_an_update_without_terms_says_what_is_missing(home: Home) -> None:
    done = home.turnstile("update", "10400")
    assert (done.code, "say what is to change" in done.err) == (2, True)


def test_a_reader_that_went_away_ends_the_command_quietly(home: Home, peer: Peer) -> None:
    many = page("JobList", [job(id=n) for n in range(20_000, 23_000)])
    peer.answers("GET", "/v1/jobs", many)
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m cli.main queue --limit 3000 | head -1; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "141"
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr


def test_the_envelope_of_an_error_is_the_contracts(home: Home, peer: Peer) -> None:
    detail = "no node has 16 H100 (largest: 8), so this job could never start"
    peer.answers("POST", "/v1/jobs", problem("never_fits", 422, detail, **{"try": ["-g H100:8 -N 2"]}))
    done = home.turnstile("submit", "-o", "json", "-g", "H100:16", "-t", "4h", "--", "./train.sh")
    assert done.code == 3
    document = json.loads(done.out)
    assert {key: document[key] for key in ("apiVersion", "kind", "code", "message", "try")} == {
        "apiVersion": "turnstile/v1",
        "kind": "Error",
        "code": "never_fits",
        "message": detail,
        "try": ["-g H100:8 -N 2"],
    }
    told = home.turnstile("submit", "-g", "H100:16", "-t", "4h", "--", "./train.sh")
    assert told.err == f"error: {detail}\n  try   -g H100:8 -N 2\n  code  never_fits\n"
    assert told.out == ""


def test_several_problems_are_listed_with_their_places(home: Home, peer: Peer) -> None:
    wrong = [{"field": "nodes", "message": "must be at least 1"}, {"field": None, "message": "is too large"}]
    peer.answers("POST", "/v1/jobs", problem("invalid", 422, "the request has 2 problems", problems=wrong))
    done = home.turnstile("submit", "-t", "1h", "x")
    assert done.err == "error: the request has 2 problems\n  -N  must be at least 1\n  is too large\n"


def test_accounts_are_changed_as_a_whole_from_what_they_were(home: Home, peer: Peer) -> None:
    home.turnstile("admin", "tenant", "set", "acme", "--limit", "A100=8", "--guarantee", "H100=0")
    (sent,) = peer.requests("PUT", "/v1/admin/accounts/acme")
    assert sent.json == {
        "display_name": "Acme Robotics",
        "weight": 2,
        "guarantee": {"H100": 0},
        "limit": {"H100": 128, "A100": 8},
        "user_limit": {"H100": 16},
        "running_limit": 200,
        "pending_limit": None,
        "high_limit": None,
        "limit_weight": 0,
        "takes_turns": False,
        "is_suspended": False,
    }
    home.turnstile("admin", "quota", "set", "acme", "--limit", "H100=none", "--running", "none", "--pending", "9")
    sent = peer.requests("PUT", "/v1/admin/accounts/acme")[-1]
    assert (sent.json["limit"], sent.json["running_limit"], sent.json["pending_limit"]) == ({}, None, 9)
    home.turnstile("admin", "project", "create", "acme/vision", "--limit", "H100=16")
    (made,) = peer.requests("PUT", "/v1/admin/accounts/acme/vision")
    assert made.json["limit"] == {"H100": 16}
    home.turnstile("admin", "tenant", "suspend", "acme", "--drain")
    assert peer.requests("POST", "/v1/admin/accounts/acme/suspend")[-1].json == {"drain": True}
    assert home.turnstile("admin", "tenant", "suspend", "acme", "--resume").out == "acme: starts jobs again\n"
    assert home.turnstile("admin", "tenant", "suspend", "acme", "--resume", "--drain").code == 2
    assert home.turnstile("admin", "tenant", "create", "acme").code == 3
    assert home.turnstile("admin", "tenant", "set", "nobody", "--weight", "2").code == 4
    assert home.turnstile("admin", "tenant", "create", "acme/vision").code == 2
    assert home.turnstile("admin", "project", "create", "vision").code == 2
    assert ACCOUNTS["items"][0]["weight"] == 2


def test_a_price_book_keeps_the_digits_that_were_written(home: Home, peer: Peer) -> None:
    book = 'version = "2026-12"\ncurrency = "USD"\neffective = 2026-12-01T00:00:00+08:00\n[prices.H100]\nburst = 2.50\n'
    (home.path / "prices.toml").write_text(book)
    assert home.turnstile("admin", "price", "import", "prices.toml", "--publish").code == 0
    (sent,) = peer.requests("POST", "/v1/admin/prices")
    assert sent.json["prices"] == {"H100": {"burst": "2.50"}}
    assert sent.json["effective"] == "2026-12-01T00:00:00+08:00"
    (home.path / "bad.toml").write_text("version =")
    assert home.turnstile("admin", "price", "import", "bad.toml").code == 3
    assert home.turnstile("admin", "price", "import", "none.toml").code == 3


def test_a_new_token_goes_to_a_private_file_or_alone_to_stdout(home: Home, peer: Peer) -> None:
    assert home.turnstile("admin", "token", "create", "-u", "ops").out == "tst_made-just-now\n"
    done = home.turnstile(
        "admin", "token", "create", "-u", "ops", "--expires", "90d", "--out", "ops.token", "-o", "json"
    )
    assert "tst_made-just-now" not in done.out + done.err
    written = home.path / "ops.token"
    assert (written.read_text(), written.stat().st_mode & 0o777) == ("tst_made-just-now\n", 0o600)
    assert peer.requests("POST", "/v1/admin/tokens")[-1].json["expires_in_seconds"] == 90 * 86_400


def test_why_says_when_nothing_blocks(home: Home, peer: Peer) -> None:
    peer.answers("GET", "/v1/jobs/10482/why", envelope("Explanation", job_id=10482, state="pending", reasons=[]))
    assert "nothing blocks it" in home.turnstile("why", "10482").out
    peer.answers("GET", "/v1/jobs/10431/why", envelope("Explanation", job_id=10431, state="running", reasons=[]))
    assert "it does not wait: its state is running (gpu-[011-014])" in home.turnstile("why", "10431").out
