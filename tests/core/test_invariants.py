"""The twenty invariants of the policy, each with the test that holds it, and those that are about the whole planner.

The harness (`tests.harness.Centre`) asserts I1, I3, I9 and I15 after every tick of every scenario, and that a plan
leaves the state as it was.
"""

import hashlib
import importlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.model import Account, AllocationId, BookingWanted, GpuClass
from scheduler.core.plan import Plan
from scheduler.core.policy import Policy, Preemption
from tests.builders import account, job, node
from tests.harness import Centre

H100 = GpuClass("H100")
CORE = "tests.core."
PARTITION = (
    "tests.store.test_partition."
    "test_any_sequence_of_commands_keeps_the_ledger_a_partition_and_the_database_equal_to_memory"
)
HELD_BY: dict[str, tuple[str, ...]] = {
    "I1 gang atomicity": (
        CORE + "test_properties.test_what_fits_is_permitted_and_delays_no_promise_starts_in_this_tick",
    ),
    "I2 evict only if the preemptor then runs": (
        CORE + "test_preemption.test_nobody_is_stopped_for_a_gang_that_would_not_fit_even_then",
        CORE + "test_preemption.test_preemption_comes_to_an_end_and_every_claim_to_its_job",
    ),
    "I3 freed capacity belongs to the preemptor": (
        CORE + "test_preemption.test_what_was_freed_for_a_job_goes_to_nobody_else",
        CORE + "test_preemption.test_preemption_comes_to_an_end_and_every_claim_to_its_job",
    ),
    "I4 no reclaim cycle": (CORE + "test_preemption.test_preemption_comes_to_an_end_and_every_claim_to_its_job",),
    "I5 the rule holds on the final victims": (
        CORE + "test_preemption.test_victims_are_within_the_rule_and_no_part_of_them_would_do",
    ),
    "I6 minimal victims": (CORE + "test_preemption.test_victims_are_within_the_rule_and_no_part_of_them_would_do",),
    "I7 guarantee safety": (CORE + "test_shares.test_guarantees_are_safe_and_live_without_preemption",),
    "I8 guarantee liveness": (
        CORE + "test_shares.test_guarantees_are_safe_and_live_without_preemption",
        CORE + "test_invariants.test_a_guarantee_is_had_whatever_burst_and_spot_hold",
    ),
    "I9 limits": (CORE + "test_limits.test_what_waits_is_blocked_by_a_limit_exactly_where_counting_by_hand_says_so",),
    "I10 work conservation": (
        CORE + "test_properties.test_what_fits_is_permitted_and_delays_no_promise_starts_in_this_tick",
        CORE + "test_promises.test_what_fits_and_delays_no_promise_starts_in_this_tick",
    ),
    "I11 bounded waiting": (
        CORE + "test_promises.test_a_large_gang_waits_a_bounded_time_behind_an_endless_stream",
        CORE + "test_invariants.test_nobody_waits_for_ever_behind_those_who_keep_coming",
    ),
    "I12 backfill delays no reservation": (
        CORE + "test_promises.test_no_backfill_and_no_order_delays_a_promise",
        CORE + "test_promises.test_who_takes_the_place_of_others_without_a_guarantee_delays_no_promise",
    ),
    "I13 one definition of over target": (
        CORE + "test_shares.test_standings_say_what_the_shares_say",
        CORE + "test_preemption.test_victims_are_within_the_rule_and_no_part_of_them_would_do",
    ),
    "I14 determinism": (
        CORE + "test_properties.test_a_state_built_from_the_same_events_makes_the_same_plan",
        CORE + "test_promises.test_the_same_history_makes_the_same_schedule",
        CORE + "test_invariants.test_plans_are_the_same_bytes_whatever_the_seed_of_hashes",
    ),
    "I15 share conservation": (
        CORE + "test_shares.test_targets_sum_to_what_there_is_or_is_wanted_at_every_level",
        CORE + "test_properties.test_shares_never_add_up_to_more_than_a_gpu",
    ),
    "I16 monotonicity": (
        CORE + "test_shares.test_more_weight_or_guarantee_never_lowers_an_accounts_own_target",
        CORE + "test_shares.test_less_debt_never_lowers_an_accounts_own_target",
        CORE + "test_limits.test_more_weight_or_guarantee_never_lowers_an_accounts_target_under_any_limits",
    ),
    "I17 usage conservation": (PARTITION,),
    "I18 only like units are added": ("tests.metering.core.test_quantity.test_gpu_time_refuses_numbers_and_money",),
    "I19 crash equivalence": (
        PARTITION,
        "tests.acceptance.test_kill.test_kill_dash_nine_at_any_instant_loses_nothing_and_does_nothing_twice",
    ),
    "I20 one dominating reason, true now": (
        CORE + "test_properties.test_every_waiting_job_has_one_dominating_reason",
        CORE + "test_blockers.test_with_all_named_blockers_out_of_the_way_the_job_starts_in_the_next_tick",
        CORE + "test_blockers.test_each_named_blocker_alone_would_keep_the_job_waiting",
    ),
}


@pytest.mark.parametrize("invariant", HELD_BY)
def test_each_invariant_has_a_test_that_holds_it(invariant: str) -> None:
    for path in HELD_BY[invariant]:
        module, _, name = path.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))


def test_the_table_names_all_twenty() -> None:
    assert [each.partition(" ")[0] for each in HELD_BY] == [f"I{number}" for number in range(1, 21)]


def test_what_the_proof_table_names_is_there() -> None:
    root = Path(__file__).parents[2]
    named = set(re.findall(r"`(test_\w+)\.(test_\w+)`", (root / "docs/policy-proof.md").read_text("utf-8")))
    there = {
        (path.stem, name)
        for path in (root / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text("utf-8"), re.MULTILINE)
    }
    assert len(named) > 60
    assert not named - there


# ---- the whole planner ---------------------------------------------------------------------------------------------

PROJECTS = ("x/p", "x/q", "y/p")
asked = st.lists(
    st.tuples(st.sampled_from(PROJECTS), st.integers(1, 8), st.integers(1, 2), st.sampled_from(list(BookingWanted))),
    min_size=1,
    max_size=14,
)
Asked = list[tuple[str, int, int, BookingWanted]]


def _centre(asked: Asked, *accounts: Account, nodes: int = 3, policy: Policy | None = None) -> Centre:
    """A centre with jobs of all kinds, some of them running."""
    centre = Centre(*(node(f"n{index}") for index in range(nodes)), accounts=accounts, policy=policy)
    for project, gpus, count, wanted in asked:
        centre.submit(job(gpus=gpus, nodes=count, project=project, wanted=wanted))
        centre.tick()
        centre.advance(minutes=1)
    return centre


def _grow(centre: Centre, nodes: int) -> None:
    first = len(centre.state.capacity.rooms)
    for index in range(first, first + nodes):
        centre.node(node(f"n{index}"))


@settings(max_examples=60, deadline=None)
@given(asked, st.integers(1, 8), st.integers(1, 3))
def test_a_guarantee_is_had_whatever_burst_and_spot_hold(asked: Asked, gpus: int, nodes: int) -> None:
    """I8: nothing guaranteed is in the way here, so all that runs can yield."""
    burst = [(project, size, count, wanted) for project, size, count, wanted in asked if wanted != "guaranteed"]
    centre = _centre(burst, account("vip", guarantee=24))
    bought = centre.submit(job(gpus=gpus, nodes=nodes, project="vip/p", wanted=BookingWanted.GUARANTEED))
    centre.settle()
    assert bought in centre.running()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(1, 3), st.sampled_from([BookingWanted.AUTO, BookingWanted.GUARANTEED]))
def test_nobody_waits_for_ever_behind_those_who_keep_coming(gpus: int, nodes: int, wanted: BookingWanted) -> None:
    """I11: others keep the queue full with jobs of one GPU that end after an hour; one gang of any shape comes up."""
    terms = (account("vip", guarantee=gpus * nodes), account("vip/p", weight=1))
    centre = Centre(
        *(node(f"n{index}") for index in range(3)), accounts=terms, policy=Policy(preemption=Preemption.OFF)
    )
    for _ in range(30):
        centre.submit(job(project="y/p"))
    centre.tick()
    late = centre.submit(job(gpus=gpus, nodes=nodes, project="vip/p", wanted=wanted))
    for _ in range(60):
        if late in centre.running():
            return
        centre.advance(minutes=10)
        for each in sorted(centre.running())[:4]:
            centre.end(each)
            centre.submit(job(project="y/p"))
        centre.tick()
    raise AssertionError("ten hours, and it has not started")


# ---- determinism across processes ----------------------------------------------------------------------------------


def plan_bytes() -> bytes:
    """A day of a small centre with preemption, limits, shares and lost nodes: every plan as it stands, in its order."""
    terms = (account("x", guarantee=6, limit=14), account("y", weight=3, user_limit=9), account("z/q", running_limit=2))
    inventory = [node(f"n{index}", pool="ab"[index % 2]) for index in range(4)]
    centre = Centre(*inventory, accounts=terms)
    lines = []
    for step in range(70):
        wanted = list(BookingWanted)[step % 3]
        project, user = ("x/p", "y/p", "z/q", "y/r", "x/o")[step % 5], ("mei", "ana", "li")[step * 7 % 3]
        centre.submit(job(gpus=1 + step * 5 % 8, nodes=1 + step % 2, project=project, user=user, wanted=wanted))
        if step % 17 == 5:
            centre.down(inventory[step % 4])
        if step % 17 == 9:
            centre.node(inventory[(step - 4) % 4])
        made = centre.tick()
        lines.append(repr(_told(made)))
        leaving = [each.job for each in centre.state.allocations.values() if each.phase == "stopping"]
        for each in (*leaving, *sorted(centre.running())[: step % 2]):
            allocation = centre.state.allocations[centre.state.jobs[each].allocation or AllocationId("")]
            centre.end(each, allocation.stop_reason)
        centre.advance(minutes=20)
    return "\n".join(lines).encode()


def _told(made: Plan) -> Plan:
    """The plan without its sets, whose order means nothing and is nobody's to see."""
    crowds = {array: repr(sorted(crowd.in_line)) for array, crowd in made.crowds.items()}
    assert not crowds, "no arrays are in this day"
    return replace(made, by_user=frozenset())


def test_plans_are_the_same_bytes_whatever_the_seed_of_hashes() -> None:
    digests = set()
    for seed in ("1", "4242"):
        script = (
            "import hashlib,sys;from tests.core.test_invariants import plan_bytes as p;"
            "sys.stdout.write(hashlib.sha256(p()).hexdigest())"
        )
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=environment, check=True
        )
        digests.add(done.stdout)
    assert digests == {hashlib.sha256(plan_bytes()).hexdigest()}
