"""The ledger, as billing keeps it: `admin ledger verify`, `admin ledger export` and `admin ledger check-focus`.

The first two ask the server, unless a database is named: then they work on that, without a server, and load the
server's packages to do so. What is named with --copy is not written to, not even by the database's own bookkeeping.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer

from cli import answers, moments, phrases, values
from cli.answers import Json, text
from cli.errors import ExitCode, NotFound, Refusal, UsageProblem, unreadable
from cli.exports import as_parquet, require_parquet, unpacked
from cli.faults import ApiError
from cli.layout import Column, View
from cli.render import LINE_WIDTH, envelope
from cli.session import Session
from cli.verbs import Verb
from cli.waiting import ended_by_term, waiting

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from metering.findings import Report
    from scheduler.store.readers import Readers

DatabaseUrl = Annotated[
    str | None, typer.Option("--database", metavar="URL", help="Work on this database, without a server.")
]
Copy = Annotated[
    str | None, typer.Option("--copy", metavar="FILE", help="Work on this copy: a SQLite file, or an export.")
]
_FOCUS_VERSIONS = ("1.2", "1.3")
Processes = Annotated[
    str | None,
    typer.Option("--processes", metavar="N", help="That read at once, without a server; by default one a core, to 4."),
]
_MOST_PROCESSES = 64
_LARGE_EXPORT_BYTES = 64 << 20
"""Files that one process proves in some seconds; starting others takes one."""
MOST_SHOWN = 50
"""Findings that people are shown; `-o json` has them all."""

_MONTH = re.compile(r"(2\d{3})-(0[1-9]|1[0-2])\Z", re.ASCII)


def verify(
    ctx: typer.Context,
    export_dir: Annotated[
        str | None,
        typer.Argument(metavar="[DIR]", help="Prove the files of this export (against the ledger, if named)."),
    ] = None,
    period: Annotated[
        str | None, typer.Option("--period", metavar="YYYY-MM", help="Of closed periods, prove only this one.")
    ] = None,
    database: DatabaseUrl = None,
    copy: Copy = None,
    processes: Processes = None,
) -> int:
    """Prove the ledger: its chain, its partition of time, its sums. Exit 1 and what does not hold, if it does not.

    Examples:
      turnstile admin ledger verify
      turnstile admin ledger verify --copy turnstile-backup.db --period 2026-11
      turnstile admin ledger verify november/ --database postgresql://ledger@db/turnstile
    """
    session: Session = ctx.obj
    if period is not None and not _MONTH.match(period):
        raise UsageProblem(f"--period {period!r} is not a month", "--period 2026-11")
    asked = _processes(processes)
    if copy is not None and export_dir is None and Path(copy).expanduser().is_dir():
        export_dir, copy = copy, None
    with waiting(session.screen, "proving the export" if export_dir is not None else "proving the ledger"):
        if _is_asked(database, copy, export_dir, asked):
            answer = session.client.get("/v1/admin/ledger/verify", {"period": period})
        else:
            answer = _verified(export_dir, database, copy, period, asked)
    sound = answers.truth(answer, "is_sound")
    failures = answers.items(answer, "failures")
    counts = answers.sub(answer, "counts") or {}
    told = _counted("sound" if sound else "NOT SOUND", counts)
    told += [f"  {_finding(each)}" for each in failures[:MOST_SHOWN]]
    failed = answers.whole(answer, "failure_count") or len(failures)
    if failed > MOST_SHOWN:
        told.append(f"  … and {failed - MOST_SHOWN} more; -o json lists {len(failures)} of them")
    session.screen.document(answer, _REPORT, told)
    return ExitCode.DONE if sound else ExitCode.BUG


def export(
    ctx: typer.Context,
    out_dir: Annotated[str, typer.Argument(metavar="DIR", help="A directory that is new or empty.")],
    start: Annotated[str | None, typer.Option("--from", metavar="TIME", help="2026-11-01, or with a time.")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Where it ends, exclusive.")] = None,
    month: Annotated[str | None, typer.Option("--month", metavar="YYYY-MM", help="Instead of --from and --to.")] = None,
    zone: Annotated[str | None, typer.Option("--zone", metavar="NAME", help="Civil days are of this zone.")] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", metavar="NAME", help="Only what is this tenant's.")] = None,
    focus: Annotated[str | None, typer.Option("--focus", metavar="VERSION", help="Of FOCUS: 1.2 or 1.3.")] = None,
    issuer: Annotated[
        str | None, typer.Option("--issuer", metavar="NAME", help="The centre's name, as invoices have it.")
    ] = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="Each file as Parquet too (extra `parquet`).")] = False,
    database: DatabaseUrl = None,
    copy: Copy = None,
    processes: Processes = None,
) -> None:
    """Write usage, FOCUS charges, totals and capacity of a time as CSV, with a manifest of their hashes.

    Of a closed month in the centre's zone these are the sealed files, byte by byte, whatever became known since. A
    statement for each tenant, an HTML page that prints well, is made of the same lines and stands beside them.

    Examples:
      turnstile admin ledger export november/ --month 2026-11 --zone Asia/Shanghai
      turnstile admin ledger export acme/ --from 2026-11-01 --to 2026-11-08 --zone UTC --tenant acme
      turnstile admin ledger export november/ --month 2026-11 --zone Asia/Shanghai --parquet
    """
    session: Session = ctx.obj
    known_zone = _zone(zone)
    since, until = _range(start, end, month, known_zone)
    if focus is not None and focus not in _FOCUS_VERSIONS:
        raise UsageProblem(f"--focus {focus!r} is not written", *(f"--focus {each}" for each in _FOCUS_VERSIONS))
    if issuer is not None and (not issuer.strip() or not issuer.isprintable()):
        raise UsageProblem("--issuer is no name that can be read", '--issuer "Park GPU Centre"')
    asked = _processes(processes)
    is_served = _is_asked(database, copy, None, asked)
    folder = Path(out_dir).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refusal(f"{out_dir} is there and not empty", "a directory that is new", code="conflict")
    if parquet:
        require_parquet()
    with waiting(session.screen, "rating and writing"), ended_by_term():
        if is_served:
            query = {"from": moments.write(since), "to": moments.write(until), "zone": zone, "tenant": tenant}
            query |= {"focus": focus, "issuer": issuer}
            names = _download(session, query, folder)
        else:
            wanted = _Wanted((since, until), known_zone, tenant, focus, issuer, asked)
            names = _exported(_source(database, copy), folder, wanted)
    if parquet:
        names = sorted([*names, *as_parquet(folder)])
    answer = envelope(
        "LedgerExport",
        {"directory": str(folder), "files": names, "from": moments.write(since), "to": moments.write(until)},
    )
    session.screen.document(answer, _EXPORT, phrases.files(folder, names))


def check_focus(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A FOCUS file of any provider, as CSV.")],
    second: Annotated[
        str | None,
        typer.Option("--second-opinion", metavar="PROGRAM", help="Ask the official focus-validator too."),
    ] = None,
) -> int:
    """Check a FOCUS 1.2 or 1.3 file against the rules of its specification. Exit 1 and what it breaks, if it does.

    Examples:
      turnstile admin ledger check-focus november/focus_2026-11_all_r0.csv
      turnstile admin ledger check-focus focus.csv --second-opinion /opt/focus-validator/bin/focus-validator
    """
    from metering.focus_check import check_focus as check

    session: Session = ctx.obj
    try:
        report = check(Path(file).expanduser())
        opinion = None if second is None else _opinion(Path(file).expanduser(), second)
    except OSError as problem:
        raise unreadable(file, problem) from None
    answer = envelope(
        "FocusReport",
        {
            "is_sound": report.is_sound and not (opinion and opinion["failures"]),
            "rows": report.rows,
            "failures": [
                {"rule": each.rule, "where": each.where, "what": f"{each.says}, found {each.found}"}
                for each in report.breaks
            ],
            "failure_count": report.failures,
            "second_opinion": opinion,
        },
    )
    told = [f"{'sound' if report.is_sound else 'NOT SOUND'}: {report.rows} rows"]
    told += [f"  {each}" for each in report.breaks[:MOST_SHOWN]]
    if report.failures > MOST_SHOWN:
        told.append(f"  … and {report.failures - MOST_SHOWN} more; -o json lists {len(report.breaks)} of them")
    told += [] if opinion is None else _opinion_lines(opinion)
    session.screen.document(answer, _REPORT, told)
    return ExitCode.DONE if answers.truth(answer, "is_sound") else ExitCode.BUG


def _opinion(file: Path, program: str) -> Json:
    from metering.focus_official import NoOpinion, second_opinion

    try:
        found = second_opinion(file, program)
    except UnicodeDecodeError:
        raise Refusal(f"{file} is not UTF-8, which the validator is not asked about") from None
    except NoOpinion as none:
        raise Refusal(str(none), *none.tries) from None
    return {
        "passed": found.passed,
        "skipped": found.skipped,
        "known_contradictions": list(found.known),
        "failures": [{"rule": each.rule, "what": each.says, "rows": each.violations} for each in found.failures],
    }


def _opinion_lines(opinion: Json) -> list[str]:
    failures = answers.items(opinion, "failures")
    known = len(answers.texts(opinion, "known_contradictions"))
    word = "NOT SOUND" if failures else "sound"
    looked = f"{opinion['passed']} of its rules hold, {opinion['skipped']} it does not look at"
    lines = [f"{word} by focus-validator: {looked}, {known} contradict the specification"]
    return lines + [
        f"  {text(each, 'rule')}: {each['rows']} rows: {text(each, 'what')}" for each in failures[:MOST_SHOWN]
    ]


LEDGER = (
    Verb("verify", __name__, "verify", "LEDGER", "Prove the ledger, or the files of an export"),
    Verb("export", __name__, "export", "LEDGER", "Write usage, FOCUS, totals and capacity as CSV"),
    Verb("check-focus", __name__, "check_focus", "LEDGER", "Check a FOCUS file against its rules"),
    Verb("periods", "cli.commands.periods", "periods", "LEDGER", "List billing periods: open, closing, closed"),
    Verb("close", "cli.commands.periods", "close", "LEDGER", "Close a period: prove, write and seal its files"),
    Verb("correct", "cli.commands.periods", "correct", "LEDGER", "Correct a closed period in the open one"),
    Verb("incidents", "cli.commands.unknown", "incidents", "LEDGER", "List lost nodes and GPUs, and whom that hit"),
    Verb("unknown", "cli.commands.unknown", "unknown", "LEDGER", "List GPU time that nobody can account for yet"),
    Verb("reclassify", "cli.commands.unknown", "reclassify", "LEDGER", "Say what unknown time was, with the reason"),
)
_REPORT = View(
    columns=(Column("WHERE", lambda each: text(each, "where")),),
    name=lambda each: "sound" if answers.truth(each, "is_sound") else "unsound",
    fields=("is_sound", "failures.0.where", "failures.0.what"),
)
_EXPORT = View((), lambda each: text(each, "directory"), ("directory", "files", "from", "to"))


def _finding(failure: Json) -> str:
    check, where = text(failure, "check"), text(failure, "where") or "?"
    return f"{f'{check}: ' if check else ''}{where}  {text(failure, 'what') or '?'}"


def _zone(name: str | None) -> ZoneInfo | None:
    try:
        return None if name is None else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UsageProblem(f"--zone {name!r} is not a time zone", "--zone Asia/Shanghai", "--zone UTC") from None


def _range(start: str | None, end: str | None, month: str | None, zone: ZoneInfo | None) -> tuple[datetime, datetime]:
    if (month is None) == (start is None and end is None) or (month is None and (start is None or end is None)):
        raise UsageProblem("say which time", "--month 2026-11", "--from 2026-11-01 --to 2026-12-01")
    if month is not None:
        written = _MONTH.match(month)
        if written is None:
            raise UsageProblem(f"--month {month!r} is not a month", "--month 2026-11")
        year, number = int(written[1]), int(written[2])
        following = (year + number // 12, number % 12 + 1)
        since, until = (_moment(f"{y:04d}-{m:02d}-01", "--from", zone) for y, m in ((year, number), following))
        return since, until
    since, until = _moment(start or "", "--from", zone), _moment(end or "", "--to", zone)
    if since >= until:
        raise UsageProblem(f"--from {start} is not before --to {end}", f"--from {end} --to {start}")
    return since, until


def _processes(typed: str | None) -> int | None:
    found = None if typed is None else values.count(typed, "--processes")
    if found is not None and found > _MOST_PROCESSES:
        raise UsageProblem(f"--processes {found} are more than read at once", f"--processes {_MOST_PROCESSES}")
    return found


def _is_asked(database: str | None, copy: str | None, export_dir: str | None, processes: int | None) -> bool:
    """Says whether the server does it. Refuses to tell it how many processes: its settings say that."""
    is_asked = database is None and copy is None and export_dir is None
    if is_asked and processes is not None:
        raise UsageProblem(
            "--processes is for work without a server, which has metering.processes", "--copy FILE", "--database URL"
        )
    return is_asked


def _moment(typed: str, flag: str, zone: ZoneInfo | None) -> datetime:
    try:
        found = datetime.fromisoformat(typed)
        if found.tzinfo is None and zone is not None:
            found = found.replace(tzinfo=zone)
        return moments.parse(found.astimezone().isoformat() if found.tzinfo is None else found.isoformat())
    except (ValueError, OverflowError):
        raise UsageProblem(f"{flag} {typed!r} is not a time", f"{flag} 2026-11-01") from None


def _download(session: Session, query: dict[str, str | None], folder: Path) -> list[str]:
    with tempfile.TemporaryFile() as kept:
        session.client.save("/v1/admin/ledger/export", query, kept)
        return unpacked(kept, folder)


def _source(database: str | None, copy: str | None) -> tuple[str, bool]:
    if database is not None and copy is not None:
        raise UsageProblem("--database and --copy both name the ledger", "--copy FILE")
    if copy is not None:
        if not Path(copy).expanduser().is_file():
            raise NotFound(f"there is no file {copy}")
        return copy, True
    return database or "", False


@contextmanager
def _readers(source: tuple[str, bool], processes: int | None) -> "Iterator[Readers[Connection]]":
    """Readers of a snapshot of a database; of a copy of a copy where the person said that it is one."""
    from metering.together import reading_ledger
    from scheduler.refusal import Refused
    from scheduler.store.database import Database, StoreError, StoreUnavailable

    place, is_copy = source
    with tempfile.TemporaryDirectory(prefix="turnstile-ledger-") as scratch:
        url = place
        if is_copy:
            # Opening a SQLite file writes to it (its journal mode, its -wal): the evidence stays as it is.
            original, twin = Path(place).expanduser(), Path(scratch) / "ledger.db"
            try:
                for suffix in ("", "-wal"):
                    if Path(f"{original}{suffix}").is_file():
                        shutil.copyfile(f"{original}{suffix}", f"{twin}{suffix}")
            except OSError as problem:
                raise Refusal(f"{place} cannot be copied aside: {problem.strerror}") from None
            url = f"sqlite:///{twin}"
        elif url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).is_file():
            raise NotFound(f"there is no file {url.removeprefix('sqlite:///')}")
        try:
            database = Database.open(url)
        except ValueError as problem:
            raise UsageProblem(str(problem)) from None
        try:
            with reading_ledger(database, processes) as readers:
                yield readers
        except StoreUnavailable as problem:
            raise ApiError("unavailable", str(problem)) from None
        except StoreError as problem:
            raise Refusal(f"there is no ledger that can be read: {problem}", "name a database of Turnstile's") from None
        except Refused as refused:
            # The exit status is the one that the server's refusal would have.
            raise ApiError(str(refused.code), refused.message, tries=refused.tries) from None
        finally:
            database.dispose()


def _verified(
    export_dir: str | None, database: str | None, copy: str | None, period: str | None, processes: int | None
) -> Json:
    from metering.together import processes_of
    from metering.verify import verify as verify_ledger
    from metering.verify import verify_export
    from scheduler.store.database import StoreUnavailable
    from scheduler.store.readers import working

    if export_dir is not None:
        _check_is_export(export_dir)
    if database is None and copy is None:
        assert export_dir is not None  # something was named
        folder = Path(export_dir).expanduser()
        try:
            with working(processes_of(processes) if _is_large(folder) else 1) as files:
                return _report(verify_export(folder, readers=files))
        except StoreUnavailable as problem:
            raise ApiError("unavailable", str(problem)) from None
    with _readers(_source(database, copy), processes) as readers:
        if export_dir is not None:
            return _report(verify_export(Path(export_dir).expanduser(), readers.source, readers=readers))
        return _report(verify_ledger(readers.source, period=period, readers=readers))


def _is_large(folder: Path) -> bool:
    return sum(path.stat().st_size for path in folder.glob("*.csv")) >= _LARGE_EXPORT_BYTES


def _counted(verdict: str, counts: Json) -> list[str]:
    """Returns what was looked at, in lines that no terminal breaks; no count is cut in two."""
    parts = [f"{answers.number(counts, key)} {key.replace('_', ' ')}" for key in sorted(counts)] or ["nothing counted"]
    lines = [f"{verdict}: {parts[0]}"]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 3 > LINE_WIDTH:
            lines[-1] += ","
            lines.append(f"  {part}")
        else:
            lines[-1] += f", {part}"
    return lines


def _check_is_export(named: str) -> None:
    from metering.manifest import MANIFEST

    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise NotFound(f"there is no directory {named}")
    if not (folder / MANIFEST).is_file():
        raise Refusal(f"{named} is no export: it has no {MANIFEST}", "the directory that `ledger export` wrote")


def _report(report: "Report") -> Json:
    return envelope(
        "LedgerReport",
        {
            "is_sound": report.is_proved,
            "failures": [
                {
                    "check": str(each.check),
                    "where": each.where,
                    "what": f"expected {each.expected}, found {each.found}",
                }
                for each in report.findings
            ],
            "failure_count": report.failures,
            "counts": dict(sorted(report.counted.items())),
        },
    )


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What an export is of."""

    span: tuple[datetime, datetime]
    zone: ZoneInfo | None
    tenant: str | None
    focus: str | None
    issuer: str | None
    processes: int | None


def _exported(source: tuple[str, bool], folder: Path, wanted: _Wanted) -> list[str]:
    from metering.focus import FocusTerms
    from metering.sealed import export_known
    from metering.statements import write_statements
    from scheduler.core.model import AccountId

    if wanted.zone is None:
        raise UsageProblem("say in which zone civil days begin", "--zone Asia/Shanghai", "--zone UTC")
    since, until = (round(each.timestamp() * 1000) for each in wanted.span)
    whose = None if wanted.tenant is None else AccountId(wanted.tenant)
    terms = None
    if wanted.focus is not None or wanted.issuer is not None:
        terms = FocusTerms(wanted.focus or _FOCUS_VERSIONS[0], wanted.issuer or FocusTerms().issuer)
    if folder.is_dir():
        folder.rmdir()  # empty, as was checked; the export takes its place in one step
    try:
        with _readers(source, wanted.processes) as readers:
            span = (since, until)
            export_known(readers.source, folder, span, wanted.zone, whose, focus=terms, readers=readers)
        write_statements(folder)
    except OSError as problem:
        raise Refusal(f"{folder} cannot be written: {problem.strerror}") from None
    return sorted(each.name for each in folder.iterdir())
