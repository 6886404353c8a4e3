"""Exports say what the ledger says, to the byte, again and again; every byte that is changed in one is found."""

import csv
import gc
import hashlib
import json
import random
import tempfile
import tracemalloc
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from metering import export, verify_holders
from metering.capacity_rows import CAPACITY_COLUMNS
from metering.csv_files import BOM, CsvFile, harmless
from metering.export import TOTALS_COLUMNS, usage_file_name
from metering.findings import Check, Report
from metering.ledger import GpuWindow, write_windows
from metering.manifest import Manifest, tzdata_version
from metering.usage_columns import USAGE_COLUMNS
from metering.usage_lines import gpu_share, sku
from scheduler.clock import parse_utc_ms
from scheduler.core.model import GPU_UNITS, AccountId, Booking, DeviceId, EndReason
from scheduler.refusal import RefusalCode, Refused
from scheduler.store import ledger_allocations, ledger_rows
from scheduler.store.database import StoreCorrupt
from scheduler.store.ledger_tables import ACCOUNT_NAME, OCCUPANCY
from scheduler.store.tables import JOB
from tests.metering.builders import DAY_MS, HOUR_MS, NOON_MS, book
from tests.metering.centre import SECRET, Centre
from tests.metering.in_parts import verify, verify_export

A0, A1, B0, B1 = (DeviceId(f"GPU-{place}") for place in ("a-0", "a-1", "b-0", "b-1"))
MIDNIGHT_MS = parse_utc_ms("2026-10-31T16:00Z")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def usage_of(folder: Path) -> list[dict[str, str]]:
    (path,) = folder.glob("usage_lines_*.csv")
    return rows_of(path)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def billed(centre: Centre) -> Centre:
    """Two days of two tenants: gangs, shares, a change of prices, jobs that go on."""
    centre.publish(book("v1", 0, tax="0.06"))
    centre.publish(book("v2", MIDNIGHT_MS + 2 * HOUR_MS, prices={"burst": "17.333333"}, tax="0.06"))
    centre.run(A0, B0, hours=1)
    centre.run(A0, hours=2, reason=EndReason.OOM, account="globex/nlp", name="=SUM(A1:A9)")
    centre.running(centre.start(A0, B0, name="大模型"))
    share = centre.start(A1, units=GPU_UNITS // 7, account="globex/nlp")
    centre.running(share)
    centre.running(centre.start(A1, units=GPU_UNITS // 2, booking=Booking.SPOT))
    centre.clock.advance(hours=20)
    centre.end(share)
    return centre


def test_a_line_says_what_was_held_and_what_it_costs(centre: Centre, tmp_path: Path) -> None:
    centre.publish(book(tax="0.06"))
    allocation = centre.start(A0, B0, memory=256 << 30)
    centre.clock.advance(minutes=1)
    centre.running(allocation)
    centre.clock.advance(minutes=30)
    centre.end(allocation)
    centre.export(tmp_path / "out")
    line, tax = usage_of(tmp_path / "out")  # 19.08 is a whole number of fen, so nothing is rounded
    assert line == {
        "line_id": f"{allocation}/1/2026-10-31/2026-10",
        "period": "2026-10",
        "period_status": "open",
        "tenant_id": "acme",
        "tenant_name": "Acme",
        "project_id": "acme/vision",
        "project_name": "视觉组",
        "user_id": "mei",
        "job_id": "1",
        "job_name": "train",
        "segment_no": "1",
        "end_reason": "completed",
        "gpu_model": "H100",
        "gpu_share": "1",
        "gpu_count": "2",
        "priority_class": "burst",
        "start_local": "2026-10-31T12:01:00.000+08:00",
        "end_local": "2026-10-31T12:31:00.000+08:00",
        "start_utc": "2026-10-31T04:01:00.000Z",
        "duration_ms": "1800000",
        "gpu_ms": "3600000",
        # Half of each node's memory is one of its two GPUs: what is held and what is charged agree here.
        "gpu_hours": "1.000000000",
        "sku": "gpu.h100.whole",
        "price_book": "2026-10",
        "unit_price": "18.00",
        "list_amount": "18.000000",
        "discount_amount": "0.000000",
        "amount": "18.000000",
        "currency": "CNY",
        "tax_rate": "0.06",
        "line_type": "usage",
        "corrects_line_id": "",
        "package_id": "",
        "gpu_util_avg_pct": "",
        "energy_kwh": "",
        "evidence": "node",
        "list_price": "18.00",
        "price_band": "",
        "effective_amount": "18.000000",
        "incident_id": "",
    }
    assert list(line) == list(USAGE_COLUMNS)
    assert (tax["line_type"], tax["amount"], tax["tax_rate"]) == ("tax", "1.080000", "0.06")


def test_an_element_of_an_array_is_named_as_people_type_it(centre: Centre, tmp_path: Path) -> None:
    centre.publish(book())
    centre.run(A0)
    with centre.database.write() as connection:
        connection.execute(sa.update(JOB).values(array_id=4711, array_index=3))
    centre.export(tmp_path / "out")
    assert [row["job_id"] for row in usage_of(tmp_path / "out") if row["line_type"] == "usage"] == ["4711_3"]


def test_the_columns_are_the_contract() -> None:
    contract = (
        "line_id period period_status tenant_id tenant_name project_id project_name user_id job_id job_name segment_no"
        " end_reason gpu_model gpu_share gpu_count priority_class start_local end_local start_utc duration_ms gpu_ms"
        " gpu_hours sku price_book unit_price list_amount discount_amount amount currency tax_rate line_type"
        " corrects_line_id package_id gpu_util_avg_pct energy_kwh evidence list_price price_band effective_amount"
        " incident_id"
    )
    assert list(USAGE_COLUMNS) == contract.split()


def test_a_job_that_makes_memory_unavailable_pays_for_its_gpus(centre: Centre, tmp_path: Path) -> None:
    centre.publish()
    centre.run(A0, memory=512 << 30)
    centre.export(tmp_path / "out")
    (line,) = usage_of(tmp_path / "out")
    assert (line["gpu_ms"], line["gpu_hours"], line["amount"]) == ("3600000", "2.000000000", "36.000000")


def test_exporting_again_gives_the_same_bytes(billed: Centre, tmp_path: Path) -> None:
    billed.export(tmp_path / "one")
    billed.export(tmp_path / "two")
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


def test_a_range_that_is_over_gives_the_same_bytes_when_its_running_jobs_have_ended(
    billed: Centre, tmp_path: Path
) -> None:
    to_ms = MIDNIGHT_MS
    billed.export(tmp_path / "early", to_ms=to_ms)
    with billed.read() as connection:
        live = [row[0] for row in connection.exec_driver_sql("SELECT id FROM allocation WHERE ended_ms IS NULL")]
    assert len(live) == 2
    for allocation in live:
        billed.stopping(allocation)
        billed.clock.advance(seconds=9)
        billed.end(allocation, EndReason.EXIT_NONZERO)
    billed.clock.advance(hours=30)
    billed.run(B1)
    billed.export(tmp_path / "late", to_ms=to_ms)
    assert bytes_of(tmp_path / "early") == bytes_of(tmp_path / "late")


def test_lines_of_two_days_are_the_lines_of_both(billed: Centre, tmp_path: Path) -> None:
    billed.export(tmp_path / "whole")
    billed.export(tmp_path / "first", to_ms=MIDNIGHT_MS)
    billed.export(tmp_path / "second", from_ms=MIDNIGHT_MS)
    whole = {row["line_id"]: row for row in usage_of(tmp_path / "whole") if row["line_type"] == "usage"}
    halves = [*usage_of(tmp_path / "first"), *usage_of(tmp_path / "second")]
    assert {row["line_id"]: row for row in halves if row["line_type"] == "usage"} == whole
    assert len(whole) == sum(row["line_type"] == "usage" for row in halves)


def test_lines_tax_and_rounding_are_what_is_payable(billed: Centre, tmp_path: Path) -> None:
    manifest = billed.export(tmp_path / "out")
    sums: dict[str, int] = defaultdict(int)
    for row in usage_of(tmp_path / "out"):
        sums[row["tenant_id"]] += int(row["amount"].replace(".", "")) if row["amount"] else 0
    totals = rows_of(tmp_path / "out" / "invoice_totals.csv")
    assert [row["tenant_id"] for row in totals] == ["acme", "globex"]
    for row in totals:
        assert sums[row["tenant_id"]] == int(row["payable"].replace(".", ""))
        assert row["payable"].endswith("0000")
        assert int(row["payable_minor_units"]) * 10_000 == int(row["payable"].replace(".", ""))
    total = sum(int(row["payable_minor_units"]) for row in totals)
    assert manifest.sums["payable"] == {"CNY": f"{total // 100}.{total % 100:02d}0000"}


def test_use_without_a_price_is_a_line_without_an_amount_and_is_counted(billed: Centre, tmp_path: Path) -> None:
    manifest = billed.export(tmp_path / "out")
    unpriced = [row for row in usage_of(tmp_path / "out") if row["line_type"] == "usage" and not row["amount"]]
    assert {(row["priority_class"], row["price_book"], row["unit_price"]) for row in unpriced} == {("spot", "", "")}
    assert manifest.unpriced_lines == len(unpriced) == 1


def test_without_any_price_book_time_is_told_and_money_is_not(centre: Centre, tmp_path: Path) -> None:
    centre.run(A0)
    manifest = centre.export(tmp_path / "out")
    (line,) = usage_of(tmp_path / "out")
    assert (line["gpu_hours"], line["amount"], line["currency"]) == ("1.000000000", "", "")
    assert (manifest.unpriced_lines, manifest.sums["payable"]) == (1, {})
    assert verify_export(tmp_path / "out").is_proved


def test_capacity_adds_up_to_every_devices_day(billed: Centre, tmp_path: Path) -> None:
    manifest = billed.export(tmp_path / "out")
    days: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in rows_of(tmp_path / "out" / "capacity.csv"):
        days[row["device_id"], row["day"]].append(row)
    assert {device for device, _ in days} == {A0, A1, B0, B1}
    for (_, day), states in days.items():
        length_ms = 12 * HOUR_MS if day == "2026-10-31" else billed.now_ms - MIDNIGHT_MS
        assert sum(int(row["state_unit_ms"]) for row in states) == GPU_UNITS * length_ms
        assert sum(int(row["state_ms"]) for row in states) == length_ms
        assert {int(row["capacity_unit_ms"]) for row in states} == {GPU_UNITS * length_ms}
    assert manifest.sums["capacity_unit_ms"] == 4 * GPU_UNITS * (billed.now_ms - NOON_MS)


def test_billed_capacity_is_what_the_lines_hold(billed: Centre, tmp_path: Path) -> None:
    manifest = billed.export(tmp_path / "out")
    billed_sum = sum(int(row["billed_unit_ms"]) for row in rows_of(tmp_path / "out" / "capacity.csv"))
    assert billed_sum == manifest.sums["held_unit_ms"] > 0


def test_stopping_that_began_before_the_range_is_billed_in_it(centre: Centre, tmp_path: Path) -> None:
    centre.publish()
    allocation = centre.start(A0)
    centre.running(allocation)
    centre.clock.advance(hours=11)
    centre.stopping(allocation)
    centre.clock.advance(hours=3)
    centre.end(allocation, EndReason.EXIT_NONZERO)
    never_ran = centre.start(A1)
    centre.stopping(never_ran)
    centre.clock.advance(hours=1)
    centre.end(never_ran, EndReason.EXIT_NONZERO)
    centre.export(tmp_path / "out", from_ms=MIDNIGHT_MS)
    (line,) = usage_of(tmp_path / "out")
    assert (line["gpu_ms"], line["end_reason"]) == (str(2 * HOUR_MS), "cancelled")


def test_a_tenants_export_has_its_own_lines_only_and_no_capacity(billed: Centre, tmp_path: Path) -> None:
    billed.tenant("acme-labs/x")
    billed.run(B1, account="acme-labs/x")
    manifest = billed.export(tmp_path / "out", tenant="acme")
    assert {row["tenant_id"] for row in usage_of(tmp_path / "out")} == {"acme"}
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [
        "focus_2026-10-31_2026-11-01_acme_r0.csv",
        "invoice_totals.csv",
        "manifest.json",
        "usage_lines_2026-10-31_2026-11-01_acme_r0.csv",
    ]
    assert manifest.tenant == "acme"
    with billed.read() as connection:
        assert verify_export(tmp_path / "out", connection).is_proved
    with pytest.raises(Refused, match="no tenant 'acne'") as refused:
        billed.export(tmp_path / "typo", tenant="acne")
    assert refused.value.code is RefusalCode.NOT_FOUND
    assert sorted(path.name for path in tmp_path.iterdir() if "typo" in path.name) == []


def test_no_command_environment_or_secret_is_exported(billed: Centre, tmp_path: Path) -> None:
    billed.export(tmp_path / "out")
    for content in bytes_of(tmp_path / "out").values():
        assert SECRET.encode() not in content
        assert b"--password" not in content


def test_files_are_what_spreadsheets_in_china_expect(billed: Centre, tmp_path: Path) -> None:
    billed.export(tmp_path / "out")
    for name, content in bytes_of(tmp_path / "out").items():
        if name.endswith(".csv"):
            assert content.startswith(BOM) is not name.startswith("focus_")  # FOCUS forbids it
            assert b"\r" not in content
    assert "大模型" in (tmp_path / "out" / usage_file_name("2026-10-31_2026-11-01", None, 0)).read_text("utf-8-sig")
    names = {row["job_name"] for row in usage_of(tmp_path / "out")}
    assert "'=SUM(A1:A9)" in names


def test_utilisation_and_energy_are_told_when_they_are_known(centre: Centre, tmp_path: Path) -> None:
    centre.publish()
    centre.running(centre.start(A0))
    centre.running(centre.start(A1))
    centre.running(centre.start(B0, units=GPU_UNITS // 2))
    centre.clock.advance(hours=1)
    with centre.database.write() as connection:
        for device, parts in ((A0, 6), (A1, 3), (B0, 6)):
            length_ms = HOUR_MS // 6
            starts = [NOON_MS + part * length_ms for part in range(parts)]
            windows = [
                GpuWindow(
                    device,
                    start,
                    start + length_ms,
                    length_ms,
                    500_000 + 100_000 * place,
                    energy_millijoules=3_600_000_000,
                )
                for place, start in enumerate(starts)
            ]
            write_windows(connection, windows)
    centre.export(tmp_path / "out")
    told = {(row["gpu_util_avg_pct"], row["energy_kwh"]) for row in usage_of(tmp_path / "out")}
    # The second is known for half of its time: its mean is told, a sum with a hole is not. A share's use is nobody's.
    assert told == {("75.00", "6.000000"), ("60.00", ""), ("", "")}


def test_the_range_must_be_known_and_not_empty(centre: Centre, tmp_path: Path) -> None:
    for from_ms, to_ms in ((NOON_MS, NOON_MS), (NOON_MS + 1, NOON_MS), (-1, NOON_MS), (NOON_MS, centre.now_ms + 1)):
        with pytest.raises(Refused) as refused:
            centre.export(tmp_path / "out", from_ms=from_ms, to_ms=to_ms)
        assert refused.value.code is RefusalCode.INVALID
    assert not (tmp_path / "out").exists()


def test_an_export_never_writes_over_another(billed: Centre, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    billed.export(tmp_path / "empty")
    before = bytes_of(tmp_path / "empty")
    with pytest.raises(Refused, match="not empty") as refused:
        billed.export(tmp_path / "empty")
    assert refused.value.code is RefusalCode.CONFLICT
    assert bytes_of(tmp_path / "empty") == before


def test_nothing_half_written_is_ever_seen(billed: Centre, tmp_path: Path) -> None:
    with billed.database.write() as connection:
        connection.exec_driver_sql("DROP TRIGGER occupancy_no_update")
        connection.execute(OCCUPANCY.update().where(OCCUPANCY.c.device == B0).values(units=5))
    with pytest.raises(StoreCorrupt, match="run the ledger's verification"):
        billed.export(tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_sound_export_is_proved_with_and_without_the_ledger(billed: Centre, tmp_path: Path) -> None:
    billed.export(tmp_path / "out")
    alone = verify_export(tmp_path / "out")
    assert alone.is_proved, alone.findings
    with billed.read() as connection:
        report = verify_export(tmp_path / "out", connection)
        assert report.is_proved, report.findings
        assert verify(connection, billed.now_ms).is_proved


def test_any_changed_byte_of_any_file_is_found(billed: Centre, tmp_path: Path) -> None:
    billed.export(tmp_path / "out")
    chooser = random.Random(7)
    for path in sorted((tmp_path / "out").glob("*.csv")):
        content = path.read_bytes()
        for place in [0, 3, len(content) - 1, *(chooser.randrange(len(content)) for _ in range(40))]:
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            findings = verify_export(tmp_path / "out").findings
            assert any(finding.where == f"{path.name} sha256" for finding in findings)
        path.write_bytes(content)
    assert verify_export(tmp_path / "out").is_proved


def reseal(folder: Path) -> None:
    """Writes the manifest's hashes anew, as somebody would who changes files with care."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    for name, file in manifest["files"].items():
        file["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(manifest), encoding="utf-8")


def resealed(billed: Centre, folder: Path, name: str, old: str, new: str, *, with_ledger: bool) -> Report:
    billed.export(folder)
    (path,) = folder.glob(name)
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8", newline="")
    reseal(folder)
    if not with_ledger:
        return verify_export(folder)
    with billed.read() as connection:
        return verify_export(folder, connection)


@pytest.mark.parametrize(
    ("name", "old", "new", "check"),
    [
        ("usage_*", ",17.333333,", ",17.333334,", Check.RERATING),
        ("usage_*", ",18.00,36.000000,0.000000,36.000000,", ",18.00,35.000000,0.000000,35.000000,", Check.ARITHMETIC),
        ("usage_*", ",18.00,36.000000,0.000000,36.000000,", ",18.00,36.000000,1.000000,36.000000,", Check.ARITHMETIC),
        ("usage_*", ",3600000,", ",3600001,", Check.ARITHMETIC),
        ("usage_*", ",7200000,", ",7200001,", Check.ARITHMETIC),
        ("usage_*", "2026-10-31T13:00:00.000+08:00", "2026-10-31T13:00:01.000+08:00", Check.ARITHMETIC),
        ("usage_*", "acme/vision", "acme/robots", Check.RERATING),
        ("usage_*", ",usage,", ",gift,", Check.FILE),
        ("usage_*", "line_id,", "line,", Check.FILE),
        ("usage_*", ",36.000000,CNY", ",NaN,CNY", Check.FILE),
        ("usage_*", ",CNY,", ",CNY,,", Check.FILE),
        ("invoice*", "acme,", "acmf,", Check.ARITHMETIC),
        ("invoice*", ",CNY,0.06,", ",CNY,0.06,9", Check.ARITHMETIC),
        ("capacity*", ",idle,", ",draining,", Check.RERATING),
        ("capacity*", f",{GPU_UNITS},", f",{GPU_UNITS + 1},", Check.CONSERVATION),
        ("capacity*", ",12600,2026-10-31,allocated,", ",12600,2026-10-31,allocated,9", Check.CONSERVATION),
        ("manifest*", '"unpriced_lines": 1', '"unpriced_lines": 2', Check.ARITHMETIC),
        ("manifest*", '"chain_head": "', '"chain_head": "0', Check.RERATING),
        ("manifest*", '"v1": "', '"v1": "0', Check.RERATING),
        ("manifest*", '"format": 3', '"format": 4', Check.FILE),
        ("manifest*", '"zone": "Asia/Shanghai"', '"zone": "Asia/Nowhere"', Check.RERATING),
        ("manifest*", '"revision": 0', '"revision": "x"', Check.FILE),
    ],
)
def test_a_careful_forgery_is_found(
    billed: Centre, tmp_path: Path, name: str, old: str, new: str, check: Check
) -> None:
    needs_ledger = check is Check.RERATING
    report = resealed(billed, tmp_path / "out", name, old, new, with_ledger=needs_ledger)
    assert check in {finding.check for finding in report.findings}, report.findings


def test_a_file_too_few_or_too_many_is_found(billed: Centre, tmp_path: Path) -> None:
    billed.export(tmp_path / "out")
    (tmp_path / "out" / "note.txt").write_text("x")
    assert [finding.where for finding in verify_export(tmp_path / "out").findings] == ["note.txt"]
    (tmp_path / "out" / "note.txt").unlink()
    (tmp_path / "out" / "capacity.csv").unlink()
    assert [finding.where for finding in verify_export(tmp_path / "out").findings] == ["capacity.csv"]
    (tmp_path / "out" / "manifest.json").unlink()
    assert [finding.where for finding in verify_export(tmp_path / "out").findings] == ["manifest.json"]


def test_a_price_changed_in_the_database_is_found_by_rerating(billed: Centre, tmp_path: Path) -> None:
    billed.export(tmp_path / "out")
    with billed.database.write() as connection:
        connection.exec_driver_sql("DROP TRIGGER price_book_no_update")
        connection.exec_driver_sql("UPDATE price_book SET body = replace(body, '\"18\"', '\"19\"')")
        findings = verify_export(tmp_path / "out", connection).findings
    assert any(finding.check is Check.RERATING and "usage_lines" in finding.where for finding in findings)


def test_a_ledger_written_anew_is_found_by_the_chain_head_of_an_earlier_export(billed: Centre, tmp_path: Path) -> None:
    manifest = billed.export(tmp_path / "out")
    with billed.database.write() as connection:
        connection.exec_driver_sql("DROP TRIGGER occupancy_no_update")
        connection.execute(
            OCCUPANCY.update().where(OCCUPANCY.c.sequence == manifest.last_sequence).values(hash="0" * 64)
        )
        findings = verify_export(tmp_path / "out", connection).findings
    assert [finding.where for finding in findings] == ["manifest.json chain_head"]


def test_memory_does_not_grow_with_the_number_of_lines(
    centre: Centre, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_allocations, "PAGE_ALLOCATIONS", 16)
    monkeypatch.setattr(export, "ALLOCATIONS_AT_ONCE", 16)
    monkeypatch.setattr(verify_holders, "ALLOCATIONS_AT_ONCE", 16)
    monkeypatch.setattr(ledger_rows, "PAGE_ROWS", 64)
    centre.publish()
    gpus = centre.node("big", gpus=64)
    peaks, lines = [], []
    for rounds in (2, 6):
        for _ in range(rounds):
            centre.run_each(gpus)
        centre.export(tmp_path / f"warm-{rounds}")
        # CPython keeps up to 2000 freed tuples of each length; filled beforehand, they do not count as growth.
        for length in range(1, 21):
            _ = [tuple(range(place, place + length)) for place in range(2001)]
        gc.collect()  # or the peak depends on when the collector happens to run
        tracemalloc.start()
        manifest = centre.export(tmp_path / f"out-{rounds}")
        with centre.read() as connection:
            assert verify(connection, centre.now_ms).is_proved
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        lines.append(int(manifest.sums["usage_lines"]))
    assert lines == [128, 512]
    assert peaks[1] < 1.3 * peaks[0]


TEXT = st.text(st.characters(exclude_categories=()), max_size=12)


@given(TEXT)
def test_no_text_is_run_or_hides_anything(text: str) -> None:
    shown = harmless(text)
    assert not shown.startswith(("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠"))
    assert not any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in shown)
    assert "\u202e" not in shown
    shown.encode()  # no half of a surrogate pair is left


@pytest.mark.parametrize("text", ["", "训练 8 卡", "llama-sft v2", "a,b", 'say "hi"', "naïve", "👩\u200d💻"])
def test_harmless_text_stays_as_it_is(text: str) -> None:
    assert harmless(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("-5", "'-5"),
        ("\t=1", "'␉=1"),
        ("a\nb", "a␊b"),
        ("\x00", "␀"),
        ("\x7f", "␡"),
        ("\ud800", "\ufffd"),
    ],
)
def test_harmful_text_is_shown_and_not_run(text: str, shown: str) -> None:
    assert harmless(text) == shown


@given(st.lists(st.lists(TEXT.map(harmless), min_size=3, max_size=3), max_size=5))
def test_a_csv_file_is_read_back_as_it_was_written(rows: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.csv"
        with CsvFile(path, ("a", "b", "c")) as file:
            for row in rows:
                file.row(row)
        with path.open(encoding="utf-8-sig", newline="") as stream:
            assert list(csv.reader(stream)) == [["a", "b", "c"], *rows]
        assert file.finished.rows == len(rows)


def test_names_of_files_carry_no_path(tmp_path: Path) -> None:
    assert usage_file_name("2026-11", AccountId("../../etc/passwd"), 3) == "usage_lines_2026-11_------etc-passwd_r3.csv"
    assert usage_file_name("2026-11", AccountId("国科 大"), 0) == "usage_lines_2026-11_国科-大_r0.csv"


def test_skus_and_shares_are_stable_words() -> None:
    assert sku("A100 80GB/PCIe", is_share=False) == "gpu.a100-80gb-pcie.whole"
    assert (gpu_share(GPU_UNITS, 1), gpu_share(GPU_UNITS // 2, 1)) == ("1", "0.5")
    assert (gpu_share(GPU_UNITS // 7, 1), gpu_share(16 * GPU_UNITS, 16)) == ("0.142857143", "1")


def test_a_manifest_is_read_back_as_it_was_written(billed: Centre, tmp_path: Path) -> None:
    manifest = billed.export(tmp_path / "out")
    text = (tmp_path / "out" / "manifest.json").read_text("utf-8")
    assert Manifest.from_json(text) == manifest
    assert manifest.to_json() == text
    assert manifest.price_books.keys() == {"v1", "v2"}
    assert manifest.tzdata_version == tzdata_version("Asia/Shanghai") != ""


def test_the_release_of_the_zone_database_is_the_one_in_use(tmp_path: Path) -> None:
    assert tzdata_version("Asia/Shanghai", [str(tmp_path)]) == import_module("tzdata").IANA_VERSION
    (tmp_path / "UTC").write_bytes(b"")
    assert tzdata_version("UTC", [str(tmp_path)]) == "unknown"
    (tmp_path / "tzdata.zi").write_text("# version 2031z\nR x\n")
    assert tzdata_version("UTC", [str(tmp_path)]) == "2031z"


def test_renaming_an_account_changes_no_past_export_and_names_what_comes_after(billed: Centre, tmp_path: Path) -> None:
    closed = (NOON_MS, billed.now_ms)
    billed.export(tmp_path / "before", *closed)
    billed.clock.advance(hours=1)
    renamed_ms = billed.now_ms
    billed.tenant("acme/vision", "Optik")
    billed.tenant("acme", "Acme Nouveau")
    billed.run(B1)
    billed.export(tmp_path / "again", *closed)
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path / "before")
    with billed.read() as connection:
        assert verify_export(tmp_path / "before", connection).is_proved
    billed.export(tmp_path / "later", renamed_ms)
    named = {(row["tenant_name"], row["project_name"]) for row in usage_of(tmp_path / "later") if row["project_id"]}
    # What runs since before the range has a line that begins with the range, at the instant of the new name.
    assert ("Acme Nouveau", "Optik") in named
    assert not {each for each in named if each[0] == "Acme"}
    (acme,) = [row for row in rows_of(tmp_path / "later" / "invoice_totals.csv") if row["tenant_id"] == "acme"]
    assert acme["tenant_name"] == "Acme Nouveau"


def test_what_an_account_was_called_is_never_rewritten(billed: Centre) -> None:
    for change in (sa.update(ACCOUNT_NAME).values(name="x"), sa.delete(ACCOUNT_NAME)):
        with pytest.raises(StoreCorrupt, match="append-only"), billed.database.write() as connection:
            connection.execute(change)


def test_a_part_of_a_month_is_not_named_like_the_month(centre: Centre, tmp_path: Path) -> None:
    centre.clock.advance(hours=24 * 31)
    week = centre.export(tmp_path / "week", MIDNIGHT_MS, MIDNIGHT_MS + 7 * DAY_MS)
    assert week.period == "2026-11-01_2026-11-07"
    assert centre.export(tmp_path / "day", MIDNIGHT_MS - HOUR_MS, MIDNIGHT_MS).period == "2026-10-31_2026-10-31"
    assert centre.export(tmp_path / "short", MIDNIGHT_MS, MIDNIGHT_MS + 30 * DAY_MS - 1).period == (
        "2026-11-01_2026-11-30"
    )
    assert (tmp_path / "week" / usage_file_name("2026-11-01_2026-11-07", None, 0)).is_file()


def test_a_month_is_named_by_its_month_and_a_longer_range_by_its_days(centre: Centre, tmp_path: Path) -> None:
    centre.clock.advance(hours=24 * 31)
    november = (MIDNIGHT_MS, MIDNIGHT_MS + 30 * DAY_MS)
    assert centre.export(tmp_path / "month", *november).period == "2026-11"
    assert centre.export(tmp_path / "more", november[0] - 1, november[1]).period == "2026-10-31_2026-11-30"
    assert list(rows_of(tmp_path / "month" / "capacity.csv")[0]) == list(CAPACITY_COLUMNS)
    assert (tmp_path / "month" / "invoice_totals.csv").read_text("utf-8-sig") == ",".join(TOTALS_COLUMNS) + "\n"
