"""A statement is the lines' file told to people: the same sums, the same bytes, and nothing that runs."""

import csv
import re
from collections import defaultdict
from dataclasses import replace
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.charts import Series, shares, stacked, step_for
from metering.export import TOTALS_FILE
from metering.ledger import GpuWindow, write_windows
from metering.manifest import MANIFEST, Manifest
from metering.statement import StatementFold
from metering.statement_page import Source, amount_html, statement_page
from metering.statements import statement_name, statements_of, write_statements
from scheduler.core.model import Booking, DeviceId, EndReason
from tests.metering.builders import HOUR_MS, NOON_MS, book
from tests.metering.centre import Centre

A0, A1, B0 = (DeviceId(f"GPU-{place}") for place in ("a-0", "a-1", "b-0"))
HOSTILE = "<script>alert(1)</script>\"'&</td>"
VOID = {"meta", "rect", "line"}


class Page(HTMLParser):
    """Reads a page strictly: each tag is closed, and what could load or run is noted."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: dict[str, int] = defaultdict(int)
        self.dangers: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.dangers += [name for name, _ in attrs if name.startswith("on") or name in {"src", "href", "style"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def folder(centre: Centre, tmp_path: Path) -> Path:
    """Two tenants, one with a hostile project name; a preemption, use without a price, a GPU seen half idle."""
    centre.tenant("acme/nlp", HOSTILE)
    centre.publish(book("v1", 0, prices={"burst": "17.333333", "spot": "5.999999"}, tax="0.06"))
    start_ms = centre.now_ms
    centre.run(A0, B0, hours=2)
    centre.run(A0, hours=15, reason=EndReason.PREEMPTED, account="acme/nlp", user="jon", booking=Booking.SPOT)
    centre.run(A1, hours=1, account="globex/nlp", booking=Booking.GUARANTEED)
    windows = [
        GpuWindow(A0, start_ms, start_ms + HOUR_MS, HOUR_MS, utilization_mean_ppm=1_000_000),
        GpuWindow(A0, start_ms + HOUR_MS, start_ms + 2 * HOUR_MS, HOUR_MS, utilization_mean_ppm=200_000),
    ]
    with centre.database.write() as connection:
        write_windows(connection, windows)
    centre.export(tmp_path / "out")
    return tmp_path / "out"


def pages(folder: Path) -> dict[str, str]:
    return dict(statements_of(folder))


def test_a_statement_has_the_invoices_own_sums(folder: Path) -> None:
    acme, globex = pages(folder).values()
    with (folder / TOTALS_FILE).open(encoding="utf-8-sig", newline="") as stream:
        (totals,) = [row for row in csv.DictReader(stream) if row["currency"]]
    for key in ("subtotal", "tax", "rounding", "payable"):
        assert amount_html(int(totals[key].replace(".", ""))) in acme
    assert "To pay: " in acme
    assert "To pay: " not in globex
    assert "Use without a price" in globex


def test_the_projects_of_a_statement_add_up_to_its_lines(folder: Path) -> None:
    fold = StatementFold("acme")
    (path,) = folder.glob("usage_lines_*.csv")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["tenant_id"] == "acme"]
    for row in rows:
        fold.add(row)
    (section,) = fold.sections
    assert section.payable_micros == sum(Decimal(row["amount"]) for row in rows) * 10**6
    assert sum(each.micros for each in section.groups.values()) == section.subtotal_micros
    assert sum(each.micros for each in section.days.values()) == section.subtotal_micros
    assert sorted(day for day, _ in section.days) == ["2026-10-31", "2026-10-31", "2026-11-01"]


def test_idle_is_the_measured_time_in_which_no_kernel_ran(folder: Path) -> None:
    (acme, _) = pages(folder).values()
    texts = Page(acme).texts
    # One of two GPUs was seen: an hour at 100 %, an hour at 20 %. The line's GPUs share what was seen.
    assert "40 %" in texts
    assert "not measured" in texts


def test_a_statement_runs_and_loads_nothing_whatever_people_are_called(folder: Path) -> None:
    for page in pages(folder).values():
        read = Page(page)
        assert read.dangers == []
        assert {"script", "img", "link", "iframe", "a"} & set(read.tags) == set()
        assert "default-src 'none'" in page
    acme = pages(folder)[statement_name("2026-10-31_2026-11-01", "acme", 0)]
    assert any(HOSTILE in text for text in Page(acme).texts)
    assert "<script" not in acme
    assert "视觉组" in acme


def test_a_statement_has_its_charts_and_says_whose_and_of_when_it_is(folder: Path) -> None:
    acme = pages(folder)["statement_2026-10-31_2026-11-01_acme_r0.html"]
    read = Page(acme)
    assert read.tags["figure"] == 3
    assert "2026-10-31T12:00:00.000+08:00" in read.texts
    assert "Asia/Shanghai" in read.texts
    manifest = Manifest.from_json((folder / MANIFEST).read_text("utf-8"))
    source = next(file for file in manifest.files if file.name.startswith("usage_lines_"))
    assert source.sha256 in read.texts


def test_statements_are_the_same_bytes_each_time(folder: Path, centre: Centre, tmp_path: Path) -> None:
    names = write_statements(folder)
    assert names == ["statement_2026-10-31_2026-11-01_acme_r0.html", "statement_2026-10-31_2026-11-01_globex_r0.html"]
    centre.clock.advance(hours=3)
    centre.export(tmp_path / "again", to_ms=NOON_MS + 18 * HOUR_MS)
    write_statements(tmp_path / "again")
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_tenants_own_export_has_its_own_statement_only(centre: Centre, folder: Path, tmp_path: Path) -> None:
    centre.export(tmp_path / "acme", tenant="acme")
    ((name, page),) = statements_of(tmp_path / "acme")
    assert name == "statement_2026-10-31_2026-11-01_acme_r0.html"
    assert "globex" not in page


def test_a_tenant_without_any_use_has_a_statement_of_nothing(centre: Centre, tmp_path: Path) -> None:
    centre.publish()
    centre.run(A0)
    centre.tenant("idle")
    centre.export(tmp_path / "out", tenant="idle")
    ((_, page),) = statements_of(tmp_path / "out")
    assert "Nothing was used" in page
    Page(page)


def test_only_a_closed_periods_statement_is_no_draft(folder: Path) -> None:
    manifest = Manifest.from_json((folder / MANIFEST).read_text("utf-8"))
    fold, source = StatementFold("acme"), Source("usage_lines.csv", "0" * 64)
    drafts = [statement_page(fold, replace(manifest, period_status=status), source) for status in ("open", "closing")]
    assert all("Draft" in page for page in drafts)
    assert "Draft" not in statement_page(fold, replace(manifest, period_status="closed"), source)


def test_credits_and_corrections_are_listed_one_by_one_and_drawn_below_the_line() -> None:
    fold = StatementFold("acme")
    plain = {
        "tenant_id": "acme",
        "tenant_name": "Acme",
        "project_id": "acme/nlp",
        "project_name": "语言组",
        "gpu_model": "H100",
        "priority_class": "burst",
        "start_local": "2026-11-02T10:00:00.000+08:00",
        "gpu_ms": "3600000",
        "gpu_hours": "1.000000000",
        "list_amount": "18.000000",
        "discount_amount": "0.000000",
        "amount": "18.000000",
        "currency": "CNY",
        "tax_rate": "0.06",
        "gpu_util_avg_pct": "",
        "package_id": "",
        "corrects_line_id": "",
        "line_id": "A/1",
        "line_type": "usage",
    }
    fold.add(plain)
    credit = {"amount": "-7.500000", "list_amount": "-7.500000", "gpu_hours": "", "incident_id": "INC-<7>"}
    fold.add({**plain, **credit, "line_type": "credit", "line_id": "A/1/credit"})
    (section,) = fold.sections
    assert section.payable_micros == 10_500_000
    manifest = Manifest(
        **{  # type: ignore[arg-type]
            **dict.fromkeys(("from_ms", "to_ms", "revision"), 0),
            "zone": "Asia/Shanghai",
            "tzdata_version": "2026a",
            "period": "2026-11",
            "period_status": "closed",
            "tenant": None,
            "files": (),
            "sums": {},
            "price_books": {},
            "packages": {},
            "who_pays": "1",
            "first_sequence": None,
            "last_sequence": None,
            "chain_head": None,
            "focus_version": "1.2",
            "invoice_issuer": "Park",
        }
    )
    read = Page(statement_page(fold, manifest, Source("f", "0")))
    assert {"INC-<7>", "Credits"} <= set(read.texts)
    assert "−" in "".join(read.texts)


@given(st.lists(st.lists(st.integers(-(10**12), 10**12), min_size=4, max_size=4), min_size=1, max_size=12))
def test_a_chart_stays_inside_its_frame_whatever_it_shows(values: list[list[int]]) -> None:
    places = ["a", "b", "c", "d"]
    picture = stacked("t", places, [Series(f"<{i}>", tuple(each)) for i, each in enumerate(values)], 10**6)
    if not any(map(any, values)):
        assert picture == ""
        return
    Page(picture)
    for y, height in re.findall(r'<rect x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', picture):
        assert 8 <= float(y) <= float(y) + float(height) <= 220 - 24 + 0.2


@given(st.integers(1, 10**18), st.sampled_from([1, 10**6, 10**9]))
def test_an_axis_has_five_lines_or_fewer(span: int, unit: int) -> None:
    assert step_for(span, unit) * 5 >= span


def test_percentages_are_drawn_as_they_are_told() -> None:
    picture = shares("t", {"视觉组": 44, "x<y>": None})
    assert 'width="176"' in picture
    assert "x&lt;y&gt;" in picture
    assert "not measured" in picture


def test_tenants_whose_names_lose_letters_keep_their_own_files() -> None:
    names = {statement_name("2026-11", tenant, 0) for tenant in ("a b", "a-b", "a/b", "国科大")}
    assert len(names) == 4
    assert all("/" not in name and " " not in name for name in names)
