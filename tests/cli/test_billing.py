"""`turnstile billing`: months as a list, and a month's files in a directory of their own."""

import tarfile

from tests.cli.conftest import Home
from tests.cli.peer import Peer, page
from tests.cli.recorded_money import BILL as MONTH
from tests.cli.test_ledger import tar


def test_months_are_listed_with_the_state_of_their_bills(home: Home, peer: Peer) -> None:
    months = [
        MONTH,
        {**MONTH, "period": "2026-11", "status": "open", "is_draft": True, "has_charges": None, "closed_at": None},
        {**MONTH, "period": "2026-09", "has_charges": False},
    ]
    peer.answers("GET", "/v1/billing", page("BillList", months, tenant="acme"))
    done = home.turnstile("billing", "list")
    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        "MONTH    STATUS  BILL              CLOSED",
        "2026-10  closed  final             2026-11-04T00:00:00Z",
        "2026-11  open    draft             -",
        "2026-09  closed  final: no charge  2026-11-04T00:00:00Z",
    ]


def test_a_months_files_are_unpacked_and_no_name_leads_out_of_their_directory(home: Home, peer: Peer) -> None:
    files = ((tarfile.TarInfo("statement.html"), b"<p>"), (tarfile.TarInfo("../../manifest.json"), b"{}"))
    peer.answers("GET", "/v1/billing/2026-10", tar(*files))
    done = home.turnstile("billing", "download", "2026-10", "october", "--tenant", "acme")
    assert done.code == 0, done.err
    assert sorted(path.name for path in (home.path / "october").iterdir()) == ["manifest.json", "statement.html"]
    (asked,) = peer.requests("GET", "/v1/billing/2026-10")
    assert asked.query == {"tenant": ["acme"]}
    again = home.turnstile("billing", "download", "2026-10", "october")
    assert (again.code, "not empty" in again.err) == (3, True)
