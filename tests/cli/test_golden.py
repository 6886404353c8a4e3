"""What each command prints, byte for byte: verbs × {ok, error} × {table, json} × {pipe, terminal}.

One file for each command line of `cases.py`, its runs one below the other. Clock and width stand still.
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
from collections.abc import Iterator
from pathlib import Path
from unicodedata import east_asian_width

import pytest

from cli.commands.you import installed_version
from cli.main import VERBS
from cli.verbs import Verb
from tests.cli.cases import CASES, NEVER_PLAIN, Case
from tests.cli.conftest import ROOT, Home, Outcome
from tests.cli.peer import Peer, Reply, envelope, page, problem
from tests.cli.recorded import ACCOUNTS, FAILED, RUNNING, UNSOUND, centre, job
from tests.cli.recorded_money import money

GOLDEN = Path(__file__).parent / "golden"
WRITES = os.environ.get("TURNSTILE_GOLDEN") == "write"
NOW_SECONDS = 1795437067.0
"""The client's clock: the peer's NOW."""
MOST_COLUMNS = 100
ENDED = page("JobList", [FAILED])
DRAINED = page("JobActionList", [{"id": 10400, "did": "already_ended", "state": "failed"}])
REFUSED = problem("not_allowed", 403, "a token with the role user may not do this", **{"try": ["ask mei@acme.example"]})


def leaves(table: tuple[Verb, ...] = VERBS, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields the words of every verb that does something, aliases left out."""
    for verb in table:
        target = getattr(__import__(verb.module, fromlist=[verb.function]), verb.function)
        if isinstance(target, tuple):
            yield from leaves(target, (*words, verb.name))
        elif not verb.is_hidden:
            yield (*words, verb.name)


LEAVES = frozenset(leaves())


def verb_of(words: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the words of the verb that a command line begins with."""
    return next(words[:n] for n in range(len(words), 0, -1) if words[:n] in LEAVES)


def as_json(words: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the command line with `-o json` behind its verb, in the place of another format."""
    kept = verb_of(words) if words[:1] != ("schema",) else words[:2]
    rest = tuple(word for word in words[len(kept) :] if word not in {"-o", "wide"})
    return (*kept, "-o", "json", *rest)


class Runs:
    """Carries a case out, each time in a home of its own and against a centre that has not been asked before."""

    def __init__(self, case: Case, folder: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
        self._case, self._folder, self._peer, self._monkeypatch = case, folder, peer, monkeypatch
        monkeypatch.setenv("COLUMNS", str(MOST_COLUMNS))
        monkeypatch.setattr(time, "time", lambda: NOW_SECONDS)

    def carry_out(self, *, is_error: bool, is_json: bool, is_terminal: bool) -> Outcome:
        """Returns what is seen of one run, without what differs from machine to machine."""
        case, peer = self._case, self._peer
        path = self._folder / f"{'error' if is_error else 'ok'}{is_json:d}{is_terminal:d}"
        path.mkdir()
        home = Home(path, peer, self._monkeypatch)
        centre(peer)
        money(peer)
        case.prepare(home, peer)
        words = case.wrong if is_error and case.wrong is not None else case.words
        if is_error and case.refused is not None:
            peer.answers(*case.refused, REFUSED)
        words = tuple(peer.url if word == "PEER" else word for word in words)
        typed = as_json(words) if is_json else words
        done = home.at_a_terminal(*typed) if is_terminal else home.turnstile(*typed)
        return Outcome(done.code, self._clean(done.out, path), self._clean(done.err, path))

    def _clean(self, text: str, path: Path) -> str:
        text = text.replace(self._peer.url, "http://turnstile.test").replace(str(path), "HOME")
        return text.replace(installed_version(), "VERSION") if installed_version() != "unknown" else text


@pytest.mark.parametrize("name", CASES)
def test_each_command_prints_what_is_written_down(
    name: str, tmp_path: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, shown = CASES[name], []
    runs = Runs(case, tmp_path, peer, monkeypatch)
    for is_error in (False, True) if name not in NEVER_PLAIN else (True,):
        code = case.code if not is_error else case.wrong_code if case.wrong else 5
        kind = "error" if is_error else "ok"
        piped = runs.carry_out(is_error=is_error, is_json=False, is_terminal=False)
        shown.append(f"=== {kind}, in a pipe: exit {piped.code}\n--- stdout\n{piped.out}--- stderr\n{piped.err}")
        seen = runs.carry_out(is_error=is_error, is_json=False, is_terminal=True)
        shown.append(f"=== {kind}, at a terminal: exit {seen.code}\n{seen.out}")
        told = runs.carry_out(is_error=is_error, is_json=True, is_terminal=False)
        shown.append(f"=== {kind}, -o json: exit {told.code}\n--- stdout\n{told.out}--- stderr\n{told.err}")
        at_terminal = runs.carry_out(is_error=is_error, is_json=True, is_terminal=True)
        assert told.out in at_terminal.out, "JSON is the same on a terminal"
        assert [each.code for each in (piped, seen, told, at_terminal)] == [code] * 4
        document = json.loads(told.out)
        if name != "schema-job" or is_error:
            assert document["apiVersion"] == "turnstile/v1"
            assert (document["kind"] == "Error") == (is_error and name != "doctor")
        wide = [line for line in seen.out.splitlines() if columns_of(line) > MOST_COLUMNS]
        assert is_error or not wide or "wide" in case.words or name in {"completion", "schema-job"}, wide
    check(name, "".join(shown))


def columns_of(line: str) -> int:
    """Returns how many columns of a terminal a line takes."""
    bare = re.sub(r"\x1b\[[0-9;]*m", "", line)
    return sum(2 if east_asian_width(each) in "WF" else 1 for each in bare)


def check(name: str, shown: str) -> None:
    """Compares with the golden file of that name."""
    path = GOLDEN / f"{name}.txt"
    if WRITES:
        path.write_text(shown, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == shown


def test_every_verb_has_its_golden_file_and_every_file_its_verb() -> None:
    covered = {verb_of(case.words) for case in CASES.values()}
    assert covered == LEAVES
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)
    assert set(NEVER_PLAIN) <= set(CASES)
    for name, case in CASES.items():
        assert (case.refused is None) != (case.wrong is None), f"{name} has one way to go wrong"


CELLS = frozenset(
    (kind, where, form)
    for kind in ("ok", "error")
    for where in ("in a pipe", "at a terminal")
    for form in ("table", "json")
)
"""Every way in which a command is run: {ok, error} × {pipe, terminal} × {table, json}."""


def cells_of(golden: str) -> set[tuple[str, str, str]]:
    """The cells that a golden file has; JSON stands in it once, and is held to be the same at a terminal."""
    found = set()
    for kind, how in re.findall(
        r"^=== (ok|error), (in a pipe|at a terminal|-o json): exit [0-9]+$", golden, re.MULTILINE
    ):
        wheres = ("in a pipe", "at a terminal") if how == "-o json" else (how,)
        found |= {(kind, where, "json" if how == "-o json" else "table") for where in wheres}
    return found


def test_each_verb_has_all_of_its_cells_written_down() -> None:
    written: dict[tuple[str, ...], set[tuple[str, str, str]]] = {}
    for name, case in CASES.items():
        golden = (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")
        written.setdefault(verb_of(case.words), set()).update(cells_of(golden))
    proved_elsewhere = {verb_of(CASES[name].words) for name in NEVER_PLAIN}
    for verb in sorted(LEAVES):
        expected = {cell for cell in CELLS if cell[0] == "error"} if verb in proved_elsewhere else CELLS
        assert written[verb] == expected, f"{' '.join(verb)} lacks {sorted(expected - written[verb])}"


def test_what_is_proved_elsewhere_is_proved_there() -> None:
    """A reason in NEVER_PLAIN names files or folders of tests, and they are there and run the verb."""
    for name, why in NEVER_PLAIN.items():
        places = [
            Path("tests") / "cli" / each if "/" not in each else Path(each)
            for each in re.findall(r"[\w/]*test[\w/.]*", why)
        ]
        known = [ROOT / each for each in places if (ROOT / each).exists()]
        sources = [file for each in known for file in ([each] if each.is_file() else each.glob("**/*.py"))]
        words = verb_of(CASES[name].words)
        run = [file for file in sources if all(f'"{word}"' in file.read_text(encoding="utf-8") for word in words)]
        assert run, f"{' '.join(words)}: {why}"


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
        "service_weight": 0,
        "slowdown_weight": 0,
        "takes_turns": False,
        "guaranteed_yields": False,
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


@pytest.mark.parametrize(
    ("flags", "weights", "takes_turns"),
    [
        ("--order shortest", (24, 0, 0), False),
        ("--order shortest --limit-weight 3", (3, 0, 0), False),
        ("--order least-service", (0, 24, 0), False),
        ("--order least-slowdown --order-weight 4", (0, 0, 4), False),
        ("--order fair-user --limit-weight 5", (5, 0, 0), True),
        ("--order submit-time", (0, 0, 0), False),
        ("--weight 2", (0, 0, 0), False),
    ],
)
def test_a_projects_own_order_has_a_name_and_a_weight(
    home: Home, peer: Peer, flags: str, weights: tuple[int, int, int], takes_turns: bool
) -> None:
    assert home.turnstile("admin", "quota", "set", "acme", *flags.split()).code == 0
    (sent,) = peer.requests("PUT", "/v1/admin/accounts/acme")
    names = ("limit_weight", "service_weight", "slowdown_weight")
    assert (tuple(sent.json[name] for name in names), sent.json["takes_turns"]) == (weights, takes_turns)


@pytest.mark.parametrize("flags", ["--order longest", "--order-weight 4", "--order least-service --order-weight 0"])
def test_an_order_that_there_is_not_is_refused(home: Home, peer: Peer, flags: str) -> None:
    assert home.turnstile("admin", "quota", "set", "acme", *flags.split()).code == 2
    assert peer.requests("PUT", "/v1/admin/accounts/acme") == []


def test_a_price_book_keeps_the_digits_that_were_written(home: Home, peer: Peer) -> None:
    book = 'version = "2026-12"\ncurrency = "USD"\neffective = 2026-12-01T00:00:00+08:00\n[prices.H100]\nburst = 2.50\n'
    (home.path / "prices.toml").write_text(book)
    assert home.turnstile("admin", "price", "import", "prices.toml", "--publish").code == 0
    (sent,) = peer.requests("POST", "/v1/admin/prices")
    assert sent.json["prices"] == {"H100": {"burst": "2.50"}}
    assert sent.json["effective"] == "2026-12-01T00:00:00+08:00"
    (home.path / "bad.toml").write_text("version =")
    assert home.turnstile("admin", "price", "import", "bad.toml").code == 3
    assert home.turnstile("admin", "price", "import", "none.toml").code == 4


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
