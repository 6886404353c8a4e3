"""Reading what people wrote into price files, value by value: each reading gathers what is wrong and goes on.

`Reading` is the notebook of one document; the functions beside it read prices, bands and times. Nothing here knows what
a whole book is: that is `metering.core.tariff`.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal

from metering.core.pricebook import ALWAYS, Key, Price, Scale, Tier
from metering.core.quantity import BadDecimal, parse_decimal
from metering.core.timetable import DAYS, MINUTES_A_DAY, MOST_BANDS, Band, faults_of
from scheduler.core.model import Booking, GpuClass
from scheduler.refusal import Problem

MOST_PRICES = 10_000
"""Class × booking prices in one table; far above any centre's, so that a book stays a small value."""
MOST_TIERS = 64
MOST_TEXT = 64
MOST_FAULTS = 20
"""Gaps and overlaps of bands that are told; the rest is counted."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Reading:
    """Notes what is wrong with one document, each with the path of its place: `prices.H100.burst[1].price`."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def wrong(self, field: str, message: str) -> None:
        """Notes a problem."""
        self.problems.append(Problem(message, field))

    def unknown_keys(self, table: Mapping[str, object], known: frozenset[str], prefix: str) -> None:
        """Notes keys that nobody reads. Those that only stored books have (`…_ms`) are not proposed."""
        shown = ", ".join(sorted(key for key in known if not key.endswith("_ms")))
        for key in sorted(table.keys() - known):
            self.wrong(prefix + key, f"unknown key; known are {shown}")

    def text(self, table: Mapping[str, object], key: str, wanted: str, prefix: str = "") -> str:
        """Returns a printable text; empty where there is none that will do."""
        value = table.get(key)
        if value is None:
            self.wrong(prefix + key, f"is missing: {wanted}")
        elif not isinstance(value, str) or not value.strip() or len(value) > MOST_TEXT or not value.isprintable():
            self.wrong(prefix + key, f"must be a printable text of at most {MOST_TEXT} characters: {wanted}")
        else:
            return value
        return ""

    def number(self, value: object, field: str) -> Decimal | None:
        """Returns a plain decimal, exactly as it was written."""
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            self.wrong(field, "must be a decimal number, such as 12.50")
            return None
        try:
            return parse_decimal(value)
        except BadDecimal as error:
            self.wrong(field, str(error))
            return None

    def count(self, value: object, field: str, least: int = 0) -> int | None:
        """Returns a whole number."""
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 10**9:
            self.wrong(field, f"must be a whole number of at least {least}")
            return None
        return value

    def instant(self, table: Mapping[str, object], key: str, prefix: str = "") -> int | None:
        """Returns a time in UTC milliseconds: `key` as people write it, or `key_ms` as it is stored; None if absent."""
        stored = table.get(f"{key}_ms")
        if stored is not None:
            if isinstance(stored, int) and not isinstance(stored, bool) and key not in table:
                return stored
            self.wrong(f"{prefix}{key}_ms", f"must be an integer, and stands instead of `{key}`")
            return None
        value = table.get(key)
        if value is None:
            return None
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                value = None
        if not isinstance(value, datetime) or value.tzinfo is None:
            self.wrong(prefix + key, "must be a time with an offset, such as 2026-11-01T00:00:00+08:00")
            return None
        return (value - _EPOCH) // timedelta(milliseconds=1)

    def tables(self, value: object, field: str) -> list[Mapping[str, object]]:
        """Returns a list of tables; what is none is noted and left out."""
        if not isinstance(value, Sequence) or isinstance(value, str):
            self.wrong(field, f"must be tables, each under [[{field}]]")
            return []
        found = []
        for place, each in enumerate(value):
            if isinstance(each, Mapping):
                found.append(each)
            else:
                self.wrong(f"{field}[{place}]", "must be a table")
        return found

    def class_name(self, gpu_class: str, field: str, seen: dict[str, str]) -> None:
        """Notes a class that has no name to be sold under, or that shares its SKU with another."""
        if not gpu_class.strip() or not gpu_class.isprintable() or len(gpu_class) > MOST_TEXT:
            self.wrong(field, f"a GPU class is a printable name of at most {MOST_TEXT} characters")
        # SKUs are written in lower case, so two classes that differ in case only would share one.
        other = seen.setdefault(gpu_class.lower(), gpu_class)
        if other != gpu_class:
            place = field.rpartition(".")[0]
            self.wrong(field, f"overlaps with {place}.{other}: GPU classes that differ in case only share their SKU")


def read_prices(reading: Reading, table: object, field: str, bands: Sequence[str]) -> dict[Key, Price]:
    """Returns the prices of a table by class and booking."""
    prices: dict[Key, Price] = {}
    if not isinstance(table, Mapping) or not table:
        reading.wrong(field, f"is missing: a table per GPU class, such as [{field}.H100] guaranteed = 12.50")
        return prices
    seen: dict[str, str] = {}
    for gpu_class in sorted(table):
        place = f"{field}.{gpu_class}"
        reading.class_name(gpu_class, place, seen)
        by_booking = table[gpu_class]
        if not isinstance(by_booking, Mapping) or not by_booking:
            reading.wrong(place, f"must be a table with one or more of {', '.join(Booking)}")
            continue
        for booking in sorted(by_booking):
            if booking not in list(Booking):
                reading.wrong(f"{place}.{booking}", f"unknown booking; known are {', '.join(Booking)}")
                continue
            price = _price(reading, by_booking[booking], f"{place}.{booking}", bands)
            if price is not None:
                prices[GpuClass(gpu_class), Booking(booking)] = price
    if len(prices) > MOST_PRICES:
        reading.wrong(field, f"has {len(prices)} prices; at most {MOST_PRICES}")
    return prices


def _price(reading: Reading, value: object, field: str, bands: Sequence[str]) -> Price | None:
    if not isinstance(value, Mapping):
        tiers = _tiers(reading, value, field)
        if tiers is None or len(tiers) > 1:
            return Scale({ALWAYS: tiers}) if tiers else None
        return tiers[0].price
    if not bands:
        reading.wrong(field, "has prices by band, but the book has no [[bands]]")
        return None
    for band in sorted(value.keys() - set(bands)):
        reading.wrong(f"{field}.{band}", f"unknown band; known are {', '.join(bands)}")
    by_band: dict[str, tuple[Tier, ...]] = {}
    for band in bands:
        if band not in value:
            reading.wrong(field, f"has no price in band {band} (a gap)")
            continue
        tiers = _tiers(reading, value[band], f"{field}.{band}")
        if tiers:
            by_band[band] = tiers
    return Scale(by_band)


def _tiers(reading: Reading, value: object, field: str) -> tuple[Tier, ...] | None:
    """Returns a price's tiers: one for a plain number."""
    if not isinstance(value, list):
        price = reading.number(value, field)
        return None if price is None else (Tier(0, price),)
    if not 0 < len(value) <= MOST_TIERS:
        reading.wrong(field, f"has {len(value)} tiers; write 1 to {MOST_TIERS}")
        return None
    tiers: list[Tier] = []
    for place, each in enumerate(value):
        here = f"{field}[{place}]"
        if not isinstance(each, Mapping) or set(each) != {"from_hours", "price"}:
            reading.wrong(
                here, "must be a tier with from_hours and price, such as { from_hours = 1000, price = 11.00 }"
            )
            continue
        start = reading.count(each["from_hours"], f"{here}.from_hours")
        price = reading.number(each["price"], f"{here}.price")
        if start is None or price is None:
            continue
        if not tiers and start:
            reading.wrong(f"{here}.from_hours", f"the first tier begins at 0; there is no price up to {start} (a gap)")
        if tiers and start <= tiers[-1].from_hours:
            reading.wrong(f"{here}.from_hours", f"must be more than {tiers[-1].from_hours}; the tiers overlap")
        tiers.append(Tier(start, price))
    return tuple(tiers) if len(tiers) == len(value) else None


_BAND_KEYS = frozenset({"name", "days", "from", "to"})


def read_bands(reading: Reading, value: object) -> tuple[Band, ...]:
    """Returns the bands of a book, by name, day and hour; notes where they do not partition the week."""
    if value is None:
        return ()
    before = len(reading.problems)
    tables = reading.tables(value, "bands")
    if len(tables) > MOST_BANDS:
        reading.wrong("bands", f"has {len(tables)} bands; at most {MOST_BANDS}")
        return ()
    bands = [
        band for place, each in enumerate(tables) if (band := _band(reading, each, f"bands[{place}].")) is not None
    ]
    if len(reading.problems) == before:
        faults = faults_of(bands)
        for fault in faults[:MOST_FAULTS]:
            reading.wrong("bands", fault)
        if len(faults) > MOST_FAULTS:
            reading.wrong("bands", f"and {len(faults) - MOST_FAULTS} more gaps and overlaps")
    return tuple(sorted(bands, key=lambda band: (band.name, band.days, band.from_minute, band.to_minute)))


def _band(reading: Reading, table: Mapping[str, object], prefix: str) -> Band | None:
    reading.unknown_keys(table, _BAND_KEYS, prefix)
    name = reading.text(table, "name", 'what prices call it, such as "night"', prefix)
    if name and (not name.isascii() or not name.replace("-", "").replace("_", "").isalnum()):
        reading.wrong(f"{prefix}name", f"{name!r} must be letters, digits, - and _: it stands in the names of lines")
        return None
    days = _days(reading, table.get("days", "mon-sun"), f"{prefix}days")
    start, end = (_minute(reading, table.get(key), f"{prefix}{key}") for key in ("from", "to"))
    if not name or days is None or start is None or end is None:
        return None
    if start == MINUTES_A_DAY:
        reading.wrong(f"{prefix}from", "a band begins at 00:00 at the earliest and 23:59 at the latest")
        return None
    return Band(name, days, start, end)


def _days(reading: Reading, value: object, field: str) -> tuple[int, ...] | None:
    """Returns the days of `mon-fri` or `sat,sun`, 0 for Monday; a range may go over Sunday."""
    found: set[int] = set()
    if isinstance(value, str):
        for part in value.lower().replace(" ", "").split(","):
            first, _, last = part.partition("-")
            if first not in DAYS or (last or first) not in DAYS:
                found.clear()
                break
            length = (DAYS.index(last or first) - DAYS.index(first)) % len(DAYS)
            found |= {(DAYS.index(first) + step) % len(DAYS) for step in range(length + 1)}
    if not found:
        reading.wrong(field, f"must be days such as mon-fri or sat,sun; known are {', '.join(DAYS)}")
        return None
    return tuple(sorted(found))


def _minute(reading: Reading, value: object, field: str) -> int | None:
    """Returns the minute of the day of `08:00` to `24:00`."""
    text = value.isoformat() if isinstance(value, time) else value
    if isinstance(text, str) and len(text) == 8:
        text = text.removesuffix(":00")
    if isinstance(text, str) and len(text) == 5 and text[2] == ":" and text.isascii():
        hour, minute = text[:2], text[3:]
        if hour.isdigit() and minute.isdigit() and int(minute) < 60:
            total = int(hour) * 60 + int(minute)
            if total <= MINUTES_A_DAY:
                return total
    reading.wrong(field, "must be a time of day such as 08:00, or 24:00")
    return None
