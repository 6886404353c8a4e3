"""Prices, as an operator keeps them: `admin price` and `admin package`. A book is a draft until it is published."""

import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer

from cli import answers, moments, phrases
from cli.answers import Json, number, sub, text
from cli.client import step
from cli.errors import Problem, Refusal, UsageProblem, unreadable
from cli.faults import ApiError
from cli.fieldlines import Places
from cli.layout import Column, View
from cli.render import envelope
from cli.session import Session
from cli.values import count
from cli.verbs import Verb

_LARGEST_BOOK_BYTES = 4 * 1024 * 1024
_NEW = ("new-class", "new-currency")
_Version = Annotated[str, typer.Argument(metavar="VERSION")]
_Allow = Annotated[
    list[str] | None, typer.Option("--allow", metavar="WHAT", help=f"New on purpose: {', '.join(_NEW)}. Repeatable.")
]


def price_list(ctx: typer.Context) -> None:
    """List the price books and drafts, and from when each is in force.

    Examples:
      turnstile admin price list
    """
    session: Session = ctx.obj
    session.screen.listing(session.client.listing("/v1/admin/prices"), _BOOKS)


def price_show(ctx: typer.Context, version: _Version) -> None:
    """Show a price book or a draft, price by price.

    Examples:
      turnstile admin price show 2026-12
    """
    session: Session = ctx.obj
    book = session.client.get(f"/v1/admin/prices/{step(version)}")
    session.screen.document(book, _BOOKS, [f"{name}  {value}" for name, value in _flat(_content(book))])


def price_import(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE.toml")],
    is_published: Annotated[bool, typer.Option("--publish", help="Publish it at once: no draft.")] = False,
    allow: _Allow = None,
) -> None:
    """Check a price file and keep it as a draft. All that is wrong with it is said at once, with its lines.

    Examples:
      turnstile admin price import prices-2026-12.toml
      turnstile admin price import prices-2026-12.toml --publish
    """
    session: Session = ctx.obj
    content = _read(Path(file).expanduser(), file)
    book = _parsed(content, file)
    where = "/v1/admin/prices" if is_published else "/v1/admin/price-drafts"
    try:
        answer = session.client.post(where + _query(allow), book)
    except ApiError as refused:
        raise _placed(refused, file, Places(content)) from None
    version = text(answer, "version") or file
    said = "is published" if is_published else "is kept as a draft: `admin price publish` puts it in force"
    session.screen.document(answer, _BOOKS, [f"price book {version} {said}"])


def price_publish(
    ctx: typer.Context,
    version: _Version,
    is_retroactive: Annotated[
        bool, typer.Option("--retroactive", help="It prices what was used before now; needs --reason.")
    ] = False,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why, for the auditor.")] = None,
    allow: _Allow = None,
) -> None:
    """Publish a draft. It never changes after that; it is in force from the time that it names.

    Examples:
      turnstile admin price publish 2026-12
      turnstile admin price publish 2026-11b --retroactive --reason "contract of 3 November, signed late"
    """
    session: Session = ctx.obj
    if is_retroactive != (reason is not None and bool(reason.strip())):
        raise UsageProblem(
            "a retroactive book has a reason, and no other has", '--retroactive --reason "contract 4411"'
        )
    query = _query(allow, reason)
    answer = session.client.post(f"/v1/admin/price-drafts/{step(version)}/publish{query}", {})
    session.screen.document(answer, _BOOKS, [f"price book {version} is published"])


def price_withdraw(ctx: typer.Context, version: _Version) -> None:
    """Withdraw a draft. Published books stay.

    Examples:
      turnstile admin price withdraw 2026-12
    """
    session: Session = ctx.obj
    answer = session.client.delete(f"/v1/admin/price-drafts/{step(version)}")
    session.screen.document(answer, _BOOKS, [f"draft {version} is withdrawn"])


def price_diff(
    ctx: typer.Context,
    old: Annotated[str, typer.Argument(metavar="OLD")],
    new: Annotated[str, typer.Argument(metavar="NEW")],
) -> None:
    """Tell what one price book says otherwise than another: changed, added and dropped prices and terms.

    Examples:
      turnstile admin price diff 2026-11 2026-12
    """
    session: Session = ctx.obj
    one, other = (dict(_flat(_content(session.client.get(f"/v1/admin/prices/{step(each)}")))) for each in (old, new))
    changes = [
        {"field": name, "old": one.get(name), "new": other.get(name)}
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    ]
    told = [f"{each['field']}  {each['old'] or '-'} -> {each['new'] or '-'}" for each in changes]
    answer = envelope("PriceDiff", {"old": old, "new": new, "changes": changes})
    session.screen.document(answer, _DIFF, told or [f"{old} and {new} say the same"])


def package_list(ctx: typer.Context) -> None:
    """List packages of GPU-hours, and what is left of each.

    Examples:
      turnstile admin package list
    """
    session: Session = ctx.obj
    session.screen.listing(session.client.listing("/v1/admin/packages"), PACKAGES)


def package_sell(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called on lines, unique for ever.")],
    tenant: Annotated[str, typer.Option("--tenant", metavar="NAME", help="Who buys it.")],
    gpu_class: Annotated[str, typer.Option("--class", metavar="CLASS", help="The GPU class it pays for.")],
    hours: Annotated[str, typer.Option("--gpu-hours", metavar="N", help="How many GPU-hours.")],
    price: Annotated[str, typer.Option("--price", metavar="AMOUNT", help="Of all of it: '90000 CNY', before tax.")],
    start: Annotated[str, typer.Option("--from", metavar="TIME", help="When it begins: a time with an offset.")],
    end: Annotated[str, typer.Option("--to", metavar="TIME", help="When it expires.")],
) -> None:
    """Sell a tenant GPU-hours, which its use of the class draws down before money.

    Examples:
      turnstile admin package sell acme-q4 --tenant acme --class H100 --gpu-hours 10000 --price "90000 CNY" \\
        --from 2026-12-01T00:00:00+08:00 --to 2027-04-01T00:00:00+08:00
    """
    session: Session = ctx.obj
    amount, _, currency = price.strip().partition(" ")
    if not currency:
        raise UsageProblem(f"--price {price!r} has no currency", "--price '90000 CNY'")
    body = {"id": name, "tenant": tenant, "class": gpu_class, "gpu_hours": count(hours, "--gpu-hours"), "price": amount}
    body |= {"currency": currency.strip(), "from": start, "to": end}
    answer = session.client.post("/v1/admin/packages", body)
    session.screen.document(answer, PACKAGES, [f"{text(answer, 'id') or name} is sold to {tenant}"])


PRICE = (
    Verb("list", __name__, "price_list", "PRICES", "List the price books and drafts"),
    Verb("show", __name__, "price_show", "PRICES", "Show a price book"),
    Verb("import", __name__, "price_import", "PRICES", "Check a price file and keep it as a draft"),
    Verb("diff", __name__, "price_diff", "PRICES", "Tell what one book says otherwise than another"),
    Verb("publish", __name__, "price_publish", "PRICES", "Publish a draft"),
    Verb("withdraw", __name__, "price_withdraw", "PRICES", "Withdraw a draft"),
)
PACKAGE = (
    Verb("list", __name__, "package_list", "PACKAGES", "List packages, and what is left of each"),
    Verb("sell", __name__, "package_sell", "PACKAGES", "Sell a tenant GPU-hours"),
)


def _query(allow: list[str] | None, reason: str | None = None) -> str:
    from urllib.parse import urlencode

    for each in allow or ():
        if each not in _NEW:
            raise UsageProblem(f"--allow {each!r} is not known", *(f"--allow {word}" for word in _NEW))
    pairs = [("allow", each) for each in allow or ()] + ([("reason", reason)] if reason is not None else [])
    return f"?{urlencode(pairs)}" if pairs else ""


def _read(path: Path, typed: str) -> str:
    try:
        if path.stat().st_size > _LARGEST_BOOK_BYTES:
            raise Refusal(f"{typed} is too large for a price book")
        return path.read_text(encoding="utf-8")
    except OSError as problem:
        raise unreadable(typed, problem) from None
    except UnicodeDecodeError as problem:
        raise Refusal(f"{typed} is not TOML: {problem}") from None


def _parsed(content: str, typed: str) -> dict[str, object]:
    try:
        # Prices keep the digits that were written: they never pass through a float.
        document = tomllib.loads(content, parse_float=str)
    except tomllib.TOMLDecodeError as problem:
        raise Refusal(f"{typed} is not TOML: {problem}") from None
    return {key: _as_json(value) for key, value in document.items()}


def _as_json(value: object) -> object:
    """A TOML value as JSON: times become RFC 3339 texts."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_as_json(each) for each in value]
    return value.isoformat() if isinstance(value, datetime | date | time) else value


def _placed(refused: ApiError, typed: str, places: Places) -> ApiError:
    """Returns what the server said with the file's lines, in their order."""
    if not refused.problems:
        return refused
    lined = sorted(((places.line(each.field) or 0, each) for each in refused.problems), key=lambda pair: pair[0])
    problems = tuple(Problem(f"line {line}" if line else "", f"{each.field}: {each.message}") for line, each in lined)
    many = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return ApiError(refused.code, f"{typed} has {many}", tries=refused.tries, problems=problems)


_OUTSIDE = frozenset(
    (
        *("kind", "apiVersion", "generated_at", "sha256", "published_at", "saved_at", "state"),
        "retroactive_reason",
    )
)


def _content(book: Json) -> Json:
    """Returns a book without what the answer says about it."""
    return {key: value for key, value in book.items() if key not in _OUTSIDE}


def _flat(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields the leaves of a document with their paths."""
    if isinstance(value, Mapping):
        for key in sorted(value):
            yield from _flat(value[key], f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from _flat(each, f"{path}[{place}]")
    elif path.endswith("_ms") and isinstance(value, int):
        yield path.removesuffix("_ms"), moments.write(datetime.fromtimestamp(value / 1000, UTC))
    else:
        yield path, str(value)


def _effective(book: Json) -> str | None:
    at_ms = answers.whole(book, "effective_ms")
    return None if at_ms is None else moments.write(datetime.fromtimestamp(at_ms / 1000, UTC))


_BOOKS = View(
    columns=(
        Column("VERSION", lambda each: text(each, "version")),
        Column("IN FORCE FROM", _effective),
        Column("CURRENCY", lambda each: text(each, "currency")),
        Column("STATE", lambda each: text(each, "state")),
        Column("RETROACTIVE", lambda each: text(each, "retroactive_reason"), is_wide=True),
        Column("SHA-256", lambda each: text(each, "sha256"), is_wide=True),
    ),
    name=lambda each: text(each, "version"),
    fields=("version", "effective_ms", "currency", "state", "sha256"),
    empty="no price book: jobs cost nothing until one is published",
)


def _hours(package: Json, key: str) -> str | None:
    """Returns `8,120.5` of a decimal; `-o json` has every digit."""
    found = number(package, key) or text(package, key)
    return None if found is None else phrases.quantity(Decimal(found), 1)


def _since(package: Json) -> str:
    return " to ".join((text(package, key) or "-").partition("T")[0] for key in ("from", "to"))


_DIFF = View((), lambda each: text(each, "new"), ("old", "new", "changes"))
PACKAGES = View(
    columns=(
        Column("PACKAGE", lambda each: text(each, "id")),
        Column("TENANT", lambda each: text(each, "tenant")),
        Column("CLASS", lambda each: text(each, "class")),
        Column("GPU-HOURS", lambda each: _hours(each, "gpu_hours"), is_right=True),
        Column("LEFT", lambda each: _hours(each, "left_gpu_hours"), is_right=True),
        Column("PRICE", lambda each: phrases.money(sub(each, "price")), is_right=True),
        Column("VALID (UTC)", _since),
    ),
    name=lambda each: text(each, "id"),
    fields=("id", "tenant", "class", "gpu_hours", "left_gpu_hours", "price.amount", "price.currency", "from", "to"),
    empty="no packages were sold",
)
