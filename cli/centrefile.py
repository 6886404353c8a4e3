"""Centre files: `turnstile admin apply -f centre.toml`. Read whole, with all that is wrong in them told by line.

A section is a row of SECTIONS: where it stands in the file, which keys its entries have, and how the API calls them.
Whoever adds a section to the API adds its row here.
"""

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

from cli import moments, values
from cli.errors import CliError, ExitCode, Problem, Refusal, UsageProblem, unreadable
from cli.tomllines import Path as Place
from cli.tomllines import line_of, lines_of
from cli.values import closest

LARGEST_BYTES = 16 * 1024 * 1024
NONE = "none"
"""What stands in the place of a limit that there shall not be."""
Entry = dict[str, object]


class CentreFileProblems(CliError):
    """A centre file has problems; `problems` has them all, in the order of their lines."""

    exit_code = ExitCode.REFUSED

    def __init__(
        self, name: str, problems: tuple[Problem, ...], code: str = "invalid", notes: tuple[str, ...] = ()
    ) -> None:
        many = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{name} has {many}", code=code, problems=problems, notes=notes)


class WrongValue(Exception):
    """What is wrong with a value, as the rest of a sentence that begins with its key."""


@dataclass(frozen=True, slots=True)
class Doubtful:
    """A value that the centre will refuse, with all else that it finds wrong; `wrong` is what to say beforehand."""

    value: object
    wrong: str


@dataclass(frozen=True, slots=True)
class Key:
    """A key of an entry: its name in the API, and how its value is read. Readers raise WrongValue."""

    wire: str
    read: Callable[[object], object]


@dataclass(frozen=True, slots=True)
class SectionForm:
    """How a section stands in a file: tables by name (`named_by`, an API field), or an array of tables."""

    name: str
    keys: Mapping[str, Key]
    named_by: str | None = None
    required: tuple[str, ...] = ()


def _text(value: object) -> object:
    if not isinstance(value, str) or not value.strip():
        raise WrongValue("must be a text")
    return value


def _truth(value: object) -> object:
    if not isinstance(value, bool):
        raise WrongValue("must be true or false")
    return value


def _number(least: int) -> Callable[[object], object]:
    def read(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, int):
            raise WrongValue("must be a whole number")
        if value < least:
            raise WrongValue(f"must be at least {least}, and {value} is not")
        return value

    return read


def _weight(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and value < 1:
        return Doubtful(value, f"must be at least 1, and {value} is not")
    return _number(1)(value)


def _limit(value: object) -> object:
    if value == NONE:
        return None
    try:
        return _number(0)(value)
    except WrongValue as problem:
        raise WrongValue(f"{problem}, or 'none'") from None


def _gpus(value: object) -> object:
    if not isinstance(value, dict):
        raise WrongValue("must be a table of GPUs by class, as in { H100 = 32 }")
    for gpu_class, count in value.items():
        try:
            _number(0)(count)
        except WrongValue as problem:
            raise WrongValue(f"{gpu_class} {problem}") from None
    return value


def _nodes(value: object) -> object:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise WrongValue('must be a list of nodes, as in ["gpu-001", "gpu-002"]')
    return value


def _money(value: object) -> object:
    """Reads `5000`, `"1250.50"` and `"5000 EUR"`; a number with a point has been rounded before anybody sees it."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not is_number and not isinstance(value, str):
        raise WrongValue('must be an amount: 5000, "1250.50" or "5000 EUR"')
    try:
        amount, currency = values.money(str(value), "")
    except UsageProblem:
        raise WrongValue(f'{value!r} is not an amount: say 5000, "1250.50" or "5000 EUR"') from None
    return {"amount": f"{amount:f}", "currency": currency}


def _moment(value: object) -> object:
    """Reads a TOML date or time, or the text of one; without an offset it is the caller's, as `--from` takes it."""
    if not isinstance(value, str | date):
        raise WrongValue("must be a time, as in 2026-11-01")
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        raise WrongValue(f"{str(value)!r} is not a time; say 2026-11-01") from None
    return moments.write(found.astimezone(UTC))


def _hard(value: object) -> object:
    return not _truth(value)


SECTIONS: tuple[SectionForm, ...] = (
    SectionForm(
        "accounts",
        {
            "title": Key("display_name", _text),
            "weight": Key("weight", _weight),
            "guarantee": Key("guarantee", _gpus),
            "limit": Key("limit", _gpus),
            "user_limit": Key("user_limit", _gpus),
            "running": Key("running_limit", _limit),
            "pending": Key("pending_limit", _limit),
            "high": Key("high_limit", _limit),
            "limit_weight": Key("limit_weight", _number(0)),
            "service_weight": Key("service_weight", _number(0)),
            "slowdown_weight": Key("slowdown_weight", _number(0)),
            "takes_turns": Key("takes_turns", _truth),
            "guaranteed_yields": Key("guaranteed_yields", _truth),
            "suspended": Key("is_suspended", _truth),
        },
        named_by="id",
    ),
    SectionForm(
        "users",
        {
            "name": Key("user", _text),
            "account": Key("account", _text),
            "role": Key("role", _text),
            "high": Key("may_use_high", _truth),
        },
        required=("name", "account"),
    ),
    SectionForm(
        "pools",
        {
            "name": Key("name", _text),
            "nodes": Key("nodes", _nodes),
            "paused": Key("is_paused", _truth),
            "reason": Key("reason", _text),
        },
        required=("name",),
    ),
    SectionForm(
        "budgets",
        {
            "account": Key("account", _text),
            "period": Key("period", _text),
            "limit": Key("limit", _money),
            "overdraft": Key("overdraft", _money),
            "currency": Key("currency", _text),
            "soft": Key("hard", _hard),
            "from": Key("from_at", _moment),
            "to": Key("to_at", _moment),
        },
        required=("account",),
    ),
)
ELSEWHERE: Mapping[str, str] = {
    "price_book": "another verb does this: turnstile admin prices import, then publish",
    "prices": "another verb does this: turnstile admin prices import, then publish",
}
"""What people look for in a centre file and another verb does."""


@dataclass(slots=True)
class CentreFile:
    """What a file declares, as the API takes it, and where each entry stands."""

    name: str
    sections: dict[str, list[Entry]] = field(default_factory=dict)
    lines: Mapping[Place, int] = field(default_factory=dict)
    places: dict[tuple[str, int], Place] = field(default_factory=dict)
    """Of each entry by section and number."""
    doubtful: list[tuple[int, str]] = field(default_factory=list)
    """What the centre will refuse: lines and words, for when it is not asked, or says nothing of it."""
    wrong: list[tuple[int, str]] = field(default_factory=list)
    """What is wrong with its form: lines and words. `sections` has what could be read beside it."""
    is_torn: bool = False
    """True when a section could not be read at all: what refers to its entries says nothing then."""
    unread_gpus: set[str] = field(default_factory=set)
    """Accounts of which a guarantee or limit could not be read."""

    def require_no_doubts(self) -> None:
        """Raises CentreFileProblems for what the centre should have refused."""
        if self.doubtful:
            raise CentreFileProblems(self.name, by_line(self.doubtful))

    def is_certain(self, field_name: str) -> bool:
        """Tells whether what the centre says of a field holds whatever the unreadable guarantees and limits shall be.

        They bind accounts above and below each other.
        """
        section, _, rest = field_name.partition(".")
        index = rest.partition(".")[0]
        place = self.places.get((section, int(index))) if index.isdigit() else None
        if section != "accounts" or place is None:
            return True
        name = f"{place[-1]}/"
        return not any(name.startswith(f"{each}/") or f"{each}/".startswith(name) for each in self.unread_gpus)

    def located(self, field_name: str) -> tuple[int, str]:
        """Returns the line and the name of what the API calls `accounts.0.limit.H100`."""
        section, _, rest = field_name.partition(".")
        index, _, term = rest.partition(".")
        place = self.places.get((section, int(index))) if index.isdigit() else None
        form = next((each for each in SECTIONS if each.name == section), None)
        if place is None or form is None:
            return line_of(self.lines, (section,)), field_name
        wire, _, inner = term.partition(".")
        key = next((name for name, each in form.keys.items() if each.wire == wire), wire)
        steps: Place = (*place, key, *((inner,) if inner else ()))
        whose = str(place[-1]) if form.named_by else f"{section} {place[-1]}"
        said = ".".join(part for part in (key, inner) if part and key != form.named_by)
        return line_of(self.lines, steps), f"{whose}: {said}" if said else whose


def load(name: str) -> CentreFile:
    """Returns what a file declares, with what is wrong with its form. Raises Refusal if it cannot be read at all."""
    path = Path(name).expanduser()
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise Refusal(f"{name} is too large for a centre file")
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except OSError as problem:
        raise unreadable(name, problem) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise Refusal(f"{name} is not TOML: {problem}") from None
    return _Reading(CentreFile(name, lines=lines_of(text))).of(document)


class _Reading:
    """Reads one file and keeps what is wrong with it."""

    def __init__(self, file: CentreFile) -> None:
        self._file = file

    def of(self, document: Mapping[str, object]) -> CentreFile:
        forms = {form.name: form for form in SECTIONS}
        for name, content in document.items():
            form = forms.get(name)
            if name in ELSEWHERE:
                self._file.wrong.append((line_of(self._file.lines, (name,)), f"{name}: {ELSEWHERE[name]}"))
            elif form is None:
                self._say((name,), f"{name}: unknown section{_hint(name, forms)}")
            else:
                self._file.sections[name] = self._section(form, content)
        return self._file

    def _section(self, form: SectionForm, content: object) -> list[Entry]:
        found: list[Entry] = []
        for place, entry in self._entries(form, content):
            read = self._entry(form, place, entry)
            if all(form.keys[name].wire in read for name in form.required):
                self._file.places[form.name, len(found)] = place
                found.append(read)
        return found

    def _entries(self, form: SectionForm, content: object) -> list[tuple[Place, object]]:
        if form.named_by is not None and isinstance(content, dict):
            return [((form.name, name), entry) for name, entry in content.items()]
        if form.named_by is None and isinstance(content, list):
            return [((form.name, index), entry) for index, entry in enumerate(content)]
        shown = f"[{form.name}.NAME]" if form.named_by else f"[[{form.name}]]"
        self._say((form.name,), f"{form.name}: its entries are tables, as in {shown}")
        return []

    def _entry(self, form: SectionForm, place: Place, content: object) -> Entry:
        if not isinstance(content, dict):
            self._say(place, f"{place[-1]}: must be a table")
            return {} if form.named_by is None else {form.named_by: place[-1]}
        found: Entry = {} if form.named_by is None else {form.named_by: place[-1]}
        for name, value in content.items():
            key = form.keys.get(name)
            if key is None:
                self._say((*place, name), f"{name}: unknown key{_hint(name, form.keys)}")
                continue
            try:
                found[key.wire] = self._read(key, value, (*place, name))
            except WrongValue as problem:
                self._say((*place, name), f"{name}: {problem}")
                if key.read is _gpus:
                    self._file.unread_gpus.add(str(place[-1]))
        for name in form.required:
            if name not in content:
                self._say(place, f"{name}: is required")
        return found

    def _read(self, key: Key, value: object, place: Place) -> object:
        found = key.read(value)
        if isinstance(found, Doubtful):
            self._file.doubtful.append((line_of(self._file.lines, place), f"{place[-1]}: {found.wrong}"))
            return found.value
        return found

    def _say(self, place: Place, said: str) -> None:
        self._file.wrong.append((line_of(self._file.lines, place), said))
        self._file.is_torn |= len(place) == 1


def by_line(wrong: Iterable[tuple[int, str]]) -> tuple[Problem, ...]:
    """Returns problems told by their lines, in the order of these."""
    return tuple(Problem(f"line {line}", said) for line, said in sorted(wrong))


def _hint(name: str, known: Mapping[str, object]) -> str:
    near = closest(name, known)
    return f", did you mean '{near[0]}'?" if near else f"; there are {', '.join(known)}"
