"""A dumped state: the same bytes for the same state, the same state again from the bytes, and a replay from there."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scheduler.core.debt import HALF_LIFE_MS
from scheduler.core.events import RatesChanged
from scheduler.core.model import Account, AccountId, Booking, NodeName
from scheduler.core.policy import Backfill, Policy
from scheduler.refusal import Refused
from scheduler.replay import Replay
from scheduler.snapshot import Snapshot, decode, encode, take
from scheduler.store.accounts import SaveAccount
from scheduler.store.rates import ChangeRates
from scheduler.store.reservations import MakeReservation
from scheduler.whatif import Question, simulate
from tests.store.harness import H200, PROJECT, Centre, draft

HOUR_MS = 3_600_000


def busy(centre: Centre) -> Snapshot:
    """A centre with everything in it: terms, rates, a reservation, what runs, what waits, what ended."""
    centre.do(SaveAccount(Account(AccountId("zeta"), 3, {H200: 2}, {H200: 6}), "Zeta"))
    centre.do(ChangeRates({(H200, Booking.BURST): 700, (H200, Booking.SPOT): 100}))
    ended = centre.run("n0/3")
    centre.started(ended)
    gang = centre.run("n0/0", "n0/1")
    centre.started(gang)
    centre.clock.advance(minutes=20)
    centre.ended(ended)
    centre.submit(draft(4), draft(2, array_indexes=(0, 1)), draft(8))
    now_ms = centre.clock.now_ms()
    centre.do(MakeReservation("works", now_ms + HOUR_MS, now_ms + 2 * HOUR_MS, (NodeName("n1"),), None, None, "root"))
    with centre.database.read() as connection:
        return take(connection, Policy(promise_after_ms=None, backfill=Backfill.CONSERVATIVE), now_ms)


def test_a_state_comes_back_from_its_file_as_it_was(centre: Centre) -> None:
    snapshot = busy(centre)
    content = encode(snapshot)
    assert encode(snapshot) == content
    again = decode(content, "now.json")
    assert again == snapshot
    assert again.state().facts() == centre.rebuilt().facts()
    assert isinstance(again.parts.rates[0], RatesChanged)
    assert again.policy.debt_half_life_ms == HALF_LIFE_MS


def test_a_dump_holds_no_command_environment_or_label(centre: Centre) -> None:
    secret = draft(labels={"plan": "sentinel-label"})
    launch = replace(secret.launch, argv=("sentinel-command",), environment={"KEY": "sentinel-value"})
    centre.submit(replace(secret, launch=launch, name="sentinel-name"))
    with centre.database.read() as connection:
        assert b"sentinel" not in encode(take(connection, Policy(), centre.clock.now_ms()))


def test_a_replay_goes_on_from_the_state(centre: Centre) -> None:
    snapshot = busy(centre)
    replay = Replay.of_state(snapshot, (), snapshot.policy, 0, used_percent=50).run()
    report = replay.report()
    assert (report["jobs"], report["completed_jobs"]) == (5, 4)  # a gang of 8 fits no node of 4
    first = min(replay.schedule, key=lambda run: run.end_ms)
    assert first.start_ms < snapshot.at_ms
    assert first.end_ms == first.start_ms + HOUR_MS // 2
    assert all(run.end_ms >= snapshot.at_ms for run in replay.schedule)
    blocked = [run for run in replay.schedule if "n1" in run.nodes]
    reserved = range(snapshot.at_ms + HOUR_MS, snapshot.at_ms + 2 * HOUR_MS)
    assert not any(run.start_ms in reserved for run in blocked)


def test_simulate_takes_a_state_and_compares_policies_from_it(centre: Centre, tmp_path: Path) -> None:
    path = tmp_path / "now.json"
    path.write_bytes(encode(busy(centre)))
    (tmp_path / "strict.toml").write_text('backfill = "none"\n')
    question = Question(None, None, state=path, against=tmp_path / "strict.toml", schedule=tmp_path / "schedule.csv")
    report: dict[str, Any] = simulate(question)
    assert report["jobs"] == report["against"]["jobs"] == 5
    rows = (tmp_path / "schedule.csv").read_text().splitlines()
    assert any(row.split(",")[1].startswith("-") for row in rows[1:]), "what ran already began before"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found | {"format": "turnstile/state/v9"}, "no state of this version"),
        (lambda found: {key: value for key, value in found.items() if key != "parts"}, "has no parts"),
        (lambda found: found | {"policy": {"promised_jobs": -1}}, "policy has 1 problem"),
        (lambda found: found | {"parts": found["parts"] | {"jobs": [{"id": "x"}]}}, "was changed"),
        (lambda found: found | {"parts": found["parts"] | {"nodes": []}}, "contradicts itself"),
    ],
)
def test_a_file_that_was_changed_is_refused_in_words(centre: Centre, change: Any, words: str) -> None:
    content = json.dumps(change(json.loads(encode(busy(centre)))))
    with pytest.raises(Refused, match=words):
        decode(content.encode(), "now.json")
    with pytest.raises(Refused, match="is not JSON"):
        decode(b"{", "now.json")
    assert PROJECT in content or words


@pytest.mark.parametrize(
    ("terms", "order"),
    [
        ("", "long wide short"),
        ("limit_weight = 24", "wide short long"),
        ("service_weight = 24", "short long wide"),
        ("slowdown_weight = 24", "short wide long"),
        ("takes_turns = true", "long wide short"),
    ],
)
def test_a_cluster_file_says_in_which_order_a_projects_jobs_go(tmp_path: Path, terms: str, order: str) -> None:
    """GPU hours: 9 x 15 = 135, 16 x 10 = 160, 9 x 13 = 117; times the root of the GPUs: 45, 40, 39."""
    (tmp_path / "cluster.toml").write_text(f'[[nodes]]\ngpus = 16\n[[accounts]]\nid = "big/main"\n{terms}\n')
    header = "job_id,submit_seconds,tenant,gpus,duration_seconds,time_limit_seconds"
    rows = ["all,0,big,16,60,60", "long,1,big,9,60,54000", "wide,1,big,16,60,36000", "short,1,big,9,60,46800"]
    (tmp_path / "jobs.csv").write_text("\n".join([header, *rows]) + "\n")
    schedule = tmp_path / "schedule.csv"
    simulate(Question(tmp_path / "cluster.toml", tmp_path / "jobs.csv", schedule=schedule))
    assert [row.partition(",")[0] for row in schedule.read_text().splitlines()[2:]] == order.split()


def test_accounts_of_a_cluster_file_have_their_terms(tmp_path: Path) -> None:
    text = '[[nodes]]\ngpus = 8\n[[accounts]]\nid = "big"\nweight = 3\nguarantee = { GPU = 6 }\n'
    (tmp_path / "cluster.toml").write_text(text)
    rows = [f"{tenant}{index},0,{tenant},1,600,600" for tenant in ("big", "small") for index in range(12)]
    header = "job_id,submit_seconds,tenant,gpus,duration_seconds,time_limit_seconds"
    (tmp_path / "jobs.csv").write_text("\n".join([header, *rows]) + "\n")
    schedule = tmp_path / "schedule.csv"
    simulate(Question(tmp_path / "cluster.toml", tmp_path / "jobs.csv", schedule=schedule))
    first = [row.split(",") for row in schedule.read_text().splitlines()[1:9]]
    assert sum(row[4] == "guaranteed" for row in first) == 6
    wrong = 'weight = 0\nname = "x"\nservice_weight = -1\ntakes_turns = 1\n'
    (tmp_path / "cluster.toml").write_text(f"[[nodes]]\ngpus = 8\n[[accounts]]\n{wrong}")
    with pytest.raises(Refused, match="has 5 problems"):
        simulate(Question(tmp_path / "cluster.toml", tmp_path / "jobs.csv"))
