"""The ledger from the command line: through the server, and offline on a database, a copy, an export."""

import hashlib
import io
import json
import sqlite3
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler.store.database import Database
from tests.cli.conftest import Home
from tests.cli.peer import Peer, Reply
from tests.databases import new_sqlite
from tests.metering.centre import Centre

SPAN = ("--from", "2026-11-01", "--to", "2026-11-02", "--zone", "Asia/Shanghai")


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[tuple[Path, Centre]]:
    """A database in which a job ran for an hour, and the centre that it is of."""
    path = tmp_path / "turnstile.db"
    database = Database.open(new_sqlite(path))
    centre = Centre(database)
    centre.tenant("acme/vision")
    devices = centre.node("a")
    centre.publish()
    centre.run(*devices)
    yield path, centre
    database.dispose()


def span_of(centre: Centre) -> tuple[str, ...]:
    """Flags for the hour up to the centre's present."""
    from scheduler.clock import iso_utc

    start, end = (iso_utc(centre.now_ms - ago) for ago in (3_600_000, 0))
    return ("--from", start, "--to", end, "--zone", "Asia/Shanghai")


def test_a_copy_is_proved_offline_and_not_touched(home: Home, peer: Peer, kept: tuple[Path, Centre]) -> None:
    path, centre = kept
    centre.database.dispose()
    before = {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in path.parent.glob("turnstile.db*")}
    done = home.turnstile("admin", "ledger", "verify", "--copy", str(path), "-o", "json")
    assert done.code == 0, done.out
    report = json.loads(done.out)
    assert (report["kind"], report["is_sound"], report["failures"]) == ("LedgerReport", True, [])
    assert report["counts"]
    after = {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in path.parent.glob("turnstile.db*")}
    assert before == after
    assert peer.asked == []


def test_a_tampered_ledger_is_exit_1_and_says_where(home: Home, kept: tuple[Path, Centre]) -> None:
    path, centre = kept
    centre.database.dispose()
    with sqlite3.connect(path) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f'DROP TRIGGER "{name}"')
        connection.execute("UPDATE occupancy SET units = units - 1 WHERE sequence = 1")
    connection.close()
    for source in (("--copy", str(path)), ("--database", f"sqlite:///{path}")):
        done = home.turnstile("admin", "ledger", "verify", *source)
        assert done.code == 1
        assert done.out.startswith("NOT SOUND")
        assert "chain: sequence 1  expected" in done.out


def test_a_number_of_processes_is_taken_and_what_is_none_is_refused(home: Home, kept: tuple[Path, Centre]) -> None:
    path, centre = kept
    source = ("--copy", str(path))
    for verb in (("export", "out", *span_of(centre)), ("verify",)):
        done = home.turnstile("admin", "ledger", *verb, *source, "--processes", "2")
        assert done.code == 0, done.err
        for wrong in ("0", "65", "all"):
            refused = home.turnstile("admin", "ledger", *verb, *source, "--processes", wrong)
            assert (refused.code, "--processes" in refused.err) == (2, True), refused.err
        served = home.turnstile("admin", "ledger", *verb, "--processes", "2")
        assert (served.code, "metering.processes" in served.err) == (2, True), served.err


def test_an_export_made_offline_is_proved_with_and_without_its_ledger(home: Home, kept: tuple[Path, Centre]) -> None:
    path, centre = kept
    made = home.turnstile("admin", "ledger", "export", "out", "--copy", str(path), *span_of(centre))
    assert made.code == 0, made.err
    assert "manifest.json" in made.out
    for source in ((), ("--copy", str(path))):
        assert home.turnstile("admin", "ledger", "verify", "out", *source).code == 0
        assert home.turnstile("admin", "ledger", "verify", "out", *source, "--processes", "2").code == 0
    usage = next(home.path.glob("out/*.csv"))
    usage.write_bytes(usage.read_bytes() + b"x")
    done = home.turnstile("admin", "ledger", "verify", "out")
    assert done.code == 1
    assert usage.name in done.out


def test_an_export_that_cannot_be_is_refused_with_the_reason(home: Home, kept: tuple[Path, Centre]) -> None:
    path, centre = kept
    (home.path / "full").mkdir()
    (home.path / "full/x").touch()
    copy = ("--copy", str(path))
    for arguments, code, words in (
        (("full", *copy, *span_of(centre)), 3, "is there and not empty"),
        (("out", *copy, "--from", "2099-01-01", "--to", "2099-01-02", "--zone", "UTC"), 3, "nothing is known yet"),
        (("out", *copy, "--from", "2026-01-01", "--to", "2026-01-02"), 2, "say in which zone"),
        (("out", *copy, *SPAN[:-1], "Mars/Olympus"), 2, "is not a time zone"),
        (("out", *copy), 2, "say which time"),
        (("out", *copy, *SPAN, "--tenant", "acne"), 3, "nothing is known yet"),
        (("out", *copy, *span_of(centre), "--tenant", "acne"), 4, "there is no tenant 'acne'"),
        (("out", *copy, "--from", "2026-01-02", "--to", "2026-01-01", "--zone", "UTC"), 2, "is not before"),
        (("out", "--copy", "none.db", *SPAN), 4, "there is no file none.db"),
        (("out", "--database", "sqlite:////none.db", *SPAN), 4, "there is no file /none.db"),
        (("out", "--database", "mysql://x/y", *SPAN), 2, "cannot keep a ledger"),
        (("out", "--database", "sqlite:///x", *copy, *SPAN), 2, "both name the ledger"),
    ):
        done = home.turnstile("admin", "ledger", "export", *arguments)
        assert (done.code, words in done.err) == (code, True), (arguments, done.err)
        assert "Traceback" not in done.err
    assert not (home.path / "out").exists()


def test_what_is_no_ledger_or_no_export_is_told_apart_from_one_that_is_unsound(
    home: Home, kept: tuple[Path, Centre]
) -> None:
    path, centre = kept
    centre.database.dispose()
    (home.path / "text.db").write_text("not a database, though it is long enough to look like one" * 40)
    (home.path / "empty.db").touch()
    whole = path.read_bytes()
    (home.path / "damaged.db").write_bytes(whole[:4096] + bytes(len(whole) - 4096))
    (home.path / "folder").mkdir()
    verify = ("admin", "ledger", "verify", "-o", "json")
    for arguments, exit_code, code, words in (
        (("--copy", "none.db"), 4, "not_found", "there is no file none.db"),
        (("--database", "sqlite:////none.db"), 4, "not_found", "there is no file /none.db"),
        (("none",), 4, "not_found", "there is no directory none"),
        (("folder",), 3, "invalid", "folder is no export: it has no manifest.json"),
        (("--copy", "text.db"), 3, "invalid", "file is not a database"),
        (("--database", f"sqlite:///{home.path / 'text.db'}"), 3, "invalid", "file is not a database"),
        (("--copy", "empty.db"), 3, "invalid", "no such table"),
        (("--copy", "damaged.db"), 3, "invalid", "damaged"),
    ):
        done = home.turnstile(*verify, *arguments)
        assert done.code == exit_code, (arguments, done.out, done.err)
        error = json.loads(done.out)
        assert (error["code"], words in error["message"]) == (code, True), (arguments, error)


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> Reply:
    """An export as the server sends it."""
    kept = io.BytesIO()
    with tarfile.open(fileobj=kept, mode="w") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return Reply(kept.getvalue(), headers={"Content-Type": "application/x-tar"})


def test_an_export_from_the_server_is_unpacked_into_a_directory_of_its_own(home: Home, peer: Peer) -> None:
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    peer.answers(
        "GET",
        "/v1/admin/ledger/export",
        tar((tarfile.TarInfo("usage.csv"), b"a,b\n"), (tarfile.TarInfo("../../manifest.json"), b"{}"), (link, b"")),
    )
    done = home.turnstile("admin", "ledger", "export", "november", "--month", "2026-11", "--zone", "Asia/Shanghai")
    assert done.code == 0, done.err
    assert {each.name: each.read_bytes() for each in (home.path / "november").iterdir()} == {
        "usage.csv": b"a,b\n",
        "manifest.json": b"{}",
    }
    (asked,) = peer.requests("GET", "/v1/admin/ledger/export")
    assert asked.query == {
        "from": ["2026-10-31T16:00:00Z"],
        "to": ["2026-11-30T16:00:00Z"],
        "zone": ["Asia/Shanghai"],
    }


def test_a_month_ends_where_the_next_begins_in_december_too(home: Home, peer: Peer) -> None:
    peer.answers("GET", "/v1/admin/ledger/export", tar((tarfile.TarInfo("usage.csv"), b"")))
    assert home.turnstile("admin", "ledger", "export", "d", "--month", "2026-12", "--zone", "UTC").code == 0
    (asked,) = peer.requests("GET", "/v1/admin/ledger/export")
    assert (asked.query["from"], asked.query["to"]) == (["2026-12-01T00:00:00Z"], ["2027-01-01T00:00:00Z"])
    for typed in ("2026-13", "2026-11-01", "2026-1", "november", "2026-00"):
        done = home.turnstile("admin", "ledger", "export", "e", "--month", typed, "--zone", "UTC")
        assert done.code == 2
        assert f"--month '{typed}' is not a month" in done.err
        assert "--month 2026-11\n" in done.err


def test_an_export_that_is_no_tar_or_breaks_off_is_an_error(home: Home, peer: Peer) -> None:
    for reply, code in ((Reply(b"hello"), 1), (Reply(b"half", breaks_off=True), 7)):
        peer.answers("GET", "/v1/admin/ledger/export", reply)
        assert home.turnstile("admin", "ledger", "export", "out", *SPAN).code == code


def test_an_exports_focus_file_is_checked_and_a_broken_one_is_exit_1(home: Home, kept: tuple[Path, Centre]) -> None:
    path, centre = kept
    flags = ("--copy", str(path), *span_of(centre), "--focus", "1.3", "--issuer", "Park GPU Centre")
    assert home.turnstile("admin", "ledger", "export", "out", *flags).code == 0
    (written,) = (home.path / "out").glob("focus_*.csv")
    text = written.read_text("utf-8")
    assert text.count("Park GPU Centre") >= 5
    done = home.turnstile("admin", "ledger", "check-focus", str(written))
    assert (done.code, done.out.splitlines()[0]) == (0, "sound: 1 rows")
    written.write_text(text.replace("GPU-Hours", "gpu-hours", 1), encoding="utf-8")
    done = home.turnstile("admin", "ledger", "check-focus", str(written))
    assert done.code == 1
    assert "PricingUnit.unit: row 1" in done.out
    found = json.loads(home.turnstile("admin", "ledger", "check-focus", str(written), "-o", "json").out)
    assert (found["kind"], found["is_sound"], found["failures"][0]["rule"]) == (
        "FocusReport",
        False,
        "PricingUnit.unit",
    )
    assert home.turnstile("admin", "ledger", "check-focus", "nowhere.csv").code == 4
    assert home.turnstile("admin", "ledger", "export", "more", *flags[:-4], "--focus", "0.5").code == 2


_TOLD = """
=== Validation Results ===
Total: 578 | Pass: 570 | Fail: {fail} | Skipped: 6
--- Failures ---
- InvoiceId-C-005-C: violations=47; InvoiceId MUST NOT be NULL.
  MustSatisfy: InvoiceId MUST NOT be null when the charge is associated with an issued invoice.
{more}"""
_NEGATIVE = "- ListUnitPrice-C-006-C: violations=2; ListUnitPrice MUST be a valid, non-negative decimal.\n"


@pytest.mark.parametrize(
    ("told", "code", "says"),
    [
        (
            _TOLD.format(fail=1, more=""),
            0,
            "sound by focus-validator: 570 of its rules hold, 6 it does not look at, 1 con",
        ),
        (_TOLD.format(fail=2, more=_NEGATIVE), 1, "ListUnitPrice-C-006-C: 2 rows: ListUnitPrice MUST be a valid"),
        (_TOLD.format(fail=3, more=_NEGATIVE), 3, "the validator's answer cannot be read"),
        ("ImportError: pyarrow requires NumPy 2.0", 3, "it ends with: ImportError: pyarrow requires NumPy 2.0"),
    ],
    ids=("known", "new", "half", "broken"),
)
def test_a_second_opinion_is_told_and_its_known_contradictions_are_no_failures(
    home: Home, kept: tuple[Path, Centre], told: str, code: int, says: str
) -> None:
    """The program stands in for one of 660 MB, whose words these are; it exits with 0 whatever fails, as that does."""
    path, centre = kept
    flags = ("--copy", str(path), *span_of(centre), "--issuer", "园区")
    assert home.turnstile("admin", "ledger", "export", "out", *flags).code == 0
    (written,) = (home.path / "out").glob("focus_*.csv")
    program = home.path / "focus-validator"
    (home.path / "told").write_text(told, encoding="utf-8")
    program.write_text(f'#!/bin/sh\nLC_ALL=C grep -q "[^ -~]" "$2" && exit 9\ncat {home.path}/told\n', encoding="utf-8")
    program.chmod(0o755)
    done = home.turnstile("admin", "ledger", "check-focus", str(written), "--second-opinion", str(program))
    assert (done.code, says in done.out + done.err) == (code, True), done
    if code == 1:
        assert "InvoiceId-C-005-C" not in done.out


def test_a_second_opinion_that_is_not_installed_says_how_it_is(home: Home, kept: tuple[Path, Centre]) -> None:
    (home.path / "f.csv").write_text("BilledCost\n1\n", encoding="utf-8")
    done = home.turnstile("admin", "ledger", "check-focus", "f.csv", "--second-opinion", "no-such-program")
    assert done.code == 3
    assert "there is no program no-such-program" in done.err
    assert "pip install focus-validator==2.2.1" in done.err


@pytest.mark.parametrize(
    "typed",
    [
        ("close", "--period", "november"),
        ("close", "--period", "2026-13"),
        ("verify", "--period", "2026-1"),
        ("correct", "--period", "2026-10", "--line", "a/1"),
        ("correct", "--period", "2026-10", "--line", "a/1", "--amount", "much", "-r", "x"),
        ("reclassify", "-r", "x"),
        ("reclassify", "-r", "x", "--device", "G", "--from", "today", "--to", "2026-11-02T09:00Z", "--as", "idle"),
        ("reclassify", "-r", "x", "--allocation", "A", "--ended-at", "2026-11-02T09:00"),
    ],
    ids=lambda typed: " ".join(typed[:3]),
)
def test_what_cannot_be_meant_is_a_usage_problem_and_asks_nobody(
    home: Home, peer: Peer, typed: tuple[str, ...]
) -> None:
    assert home.turnstile("admin", "ledger", *typed).code == 2
    assert peer.asked == []


def test_a_copy_that_is_a_directory_is_an_export(home: Home, kept: tuple[Path, Centre]) -> None:
    path, centre = kept
    assert home.turnstile("admin", "ledger", "export", "out", "--copy", str(path), *span_of(centre)).code == 0
    done = home.turnstile("admin", "ledger", "verify", "--copy", "out", "-o", "json")
    assert (done.code, json.loads(done.out)["counts"]["files"]) == (0, 4)


def test_an_amount_less_is_sent_as_it_was_typed(home: Home, peer: Peer) -> None:
    from tests.cli.recorded import centre as whole

    whole(peer)
    flags = ("--period", "2026-10", "--line", "a/1/2026-10-31/b", "--amount", "-12.30", "-r", "goodwill")
    assert home.turnstile("admin", "ledger", "correct", *flags).code == 0
    (asked,) = peer.requests("POST", "/v1/admin/ledger/correct")
    assert json.loads(asked.body) == {
        "period": "2026-10",
        "line_id": "a/1/2026-10-31/b",
        "amount": "-12.30",
        "reason": "goodwill",
    }
