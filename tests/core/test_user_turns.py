"""Projects whose users take turns: who holds the least goes first, whatever the queue looks like."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.events import AccountChanged
from scheduler.core.model import Account, AccountId, GpuClass, Job, JobId
from scheduler.core.policy import Policy
from tests.builders import job, node
from tests.harness import Centre

SHARED = Account(AccountId("a/p"), takes_turns=True)
NO_PROMISES = Policy(promised_jobs=0, promise_after_ms=None)


def of(user: str, gpus: int = 1, *, priority: int = 0) -> Job:
    return job(gpus=gpus, project="a/p", priority=priority, user=user)


def test_a_user_with_a_hundred_jobs_does_not_keep_others_waiting() -> None:
    centre = Centre(node(gpus=2), accounts=(SHARED,))
    crowd = [centre.submit(of("mei")) for _ in range(100)]
    late = centre.submit(of("ana"))
    centre.tick()
    assert centre.running() == {crowd[0], late}


def test_what_a_user_holds_already_counts_in_all_classes() -> None:
    centre = Centre(node("h", gpus=1), node("a", gpus=1, gpu_class="A100"), accounts=(SHARED,))
    other = replace(of("mei"), shape=replace(of("mei").shape, gpu_classes=(GpuClass("A100"),)))
    centre.submit(other)
    centre.tick()
    waits, goes = centre.submit(of("mei")), centre.submit(of("ana"))
    centre.tick()
    assert goes in centre.running()
    assert waits not in centre.running()


def test_priority_comes_before_turns() -> None:
    centre = Centre(node(gpus=2), accounts=(SHARED,), policy=NO_PROMISES)
    centre.submit(of("mei"))
    centre.tick()
    low, high = centre.submit(of("ana")), centre.submit(of("mei", priority=1))
    centre.tick()
    assert high in centre.running()
    assert low not in centre.running()


def test_turns_can_be_switched_on_and_off_while_jobs_wait() -> None:
    centre = Centre(node(gpus=1), accounts=(SHARED,), policy=NO_PROMISES)
    jobs = [centre.submit(of(user)) for user in ("mei", "mei", "ana")]
    for takes_turns in (False, True, False):
        centre.apply(AccountChanged(centre.now_ms, replace(SHARED, takes_turns=takes_turns)))
    centre.tick()
    centre.end(jobs[0])
    centre.tick()
    assert centre.running() == {jobs[1]}


asked = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3), st.integers(0, 1)), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(asked, asked)
def test_the_order_is_that_of_one_who_looks_at_every_job_anew(
    before: list[tuple[str, int, int]], then: list[tuple[str, int, int]]
) -> None:
    """Everything fits, so the order is what the plan starts one after the other."""
    centre = Centre(node("n1", gpus=80), accounts=(SHARED,), policy=NO_PROMISES)
    for user, gpus, _ in before:
        centre.submit(of(user, gpus))
    centre.tick()
    held = {user: sum(gpus for whose, gpus, _ in before if whose == user) for user in "abc"}
    waiting: dict[JobId, tuple[str, int, int]] = {
        centre.submit(of(user, gpus, priority=priority)): (user, gpus, priority) for user, gpus, priority in then
    }
    planned = [start.job for start in centre.tick().starts]
    naive = []
    left = dict(waiting)
    while left:
        first = min(left, key=lambda id_: (-left[id_][2], held[left[id_][0]], id_))
        user, gpus, _ = left.pop(first)
        held[user] += gpus
        naive.append(first)
    assert planned == naive
