"""One gang makes room for another: on a real controller and store, with a crash in between, and with real processes."""

from dataclasses import replace
from pathlib import Path

from scheduler.core.explain import explain
from scheduler.core.model import AccountId, JobId, JobState, UserName
from scheduler.core.reasons import ReasonCode
from scheduler.executor import LaunchSpec
from scheduler.local import LocalExecutor
from scheduler.loop import Controller
from scheduler.observer import Unobserved
from scheduler.simulated import SimulatedExecutor, SimulatedSettings
from scheduler.spawn import LocalSettings
from scheduler.store.accounts import SaveAccount
from scheduler.store.actions import CancelJobs
from scheduler.store.jobs import JobDraft, SubmitJobs
from scheduler.store.queries import history_of
from tests.builders import account, launch, shape
from tests.loop.conftest import SECONDS, World, until
from tests.loop.test_controller import assert_memory_equals_database, state_of


class Counting(Unobserved):
    """Remembers who was stopped for whom."""

    def __init__(self) -> None:
        self.preempted: list[tuple[AccountId, AccountId, str]] = []

    def jobs_preempted(self, victim: AccountId, preemptor: AccountId, reason: str) -> None:
        self.preempted.append((victim, preemptor, reason))


def _submit(controller: Controller, project: str, spec: LaunchSpec, *, gpus: int = 8, nodes: int = 2) -> JobId:
    tenant = AccountId(project.partition("/")[0])
    plain = JobDraft(AccountId(project), UserName("mei"), "job", shape(gpus=gpus, nodes=nodes), 3_600_000, spec)
    (job,) = controller.carry_out(SubmitJobs((plain,), tenant, UserName("mei"), None, None)).result(SECONDS)
    return job


def _buy(controller: Controller) -> None:
    for each in (account("vip", guarantee=16), account("vip/p"), account("blue"), account("blue/b")):
        controller.carry_out(SaveAccount(each, each.id)).result(SECONDS)


def test_a_claim_outlives_the_daemon_that_made_it(world: World) -> None:
    observer = Counting()
    slow = SimulatedSettings(obeys_stop_after_seconds=3600)
    first = world.leader(ttl_ms=1500, settings=slow, observer=observer)
    _buy(first)
    victim = _submit(first, "acme/nlp", replace(launch("true", seconds=3600), grace_seconds=2.0))
    until(first, lambda: state_of(first, victim) is JobState.RUNNING)
    bought = _submit(first, "vip/p", launch("true", seconds=3600))
    other = _submit(first, "blue/b", launch("true", seconds=3600), gpus=1, nodes=1)
    until(first, lambda: state_of(first, victim) is JobState.STOPPING)
    code = first.ask(lambda state, plan: explain(state, plan, bought).reasons[0].code).result(SECONDS)
    assert code is ReasonCode.PREEMPTING
    assert_memory_equals_database(first)
    first.stop()
    second = world.daemon(holder="second", settings=slow)
    until(second, lambda: second.is_leading and state_of(second, bought) is JobState.RUNNING)
    assert_memory_equals_database(second)
    assert (state_of(second, victim), state_of(second, other)) == (JobState.PENDING, JobState.PENDING)
    assert observer.preempted == [(AccountId("acme"), AccountId("vip"), "guarantee")]
    with second.database.read() as connection:
        told = [each.detail for each in history_of(connection, victim) if each.kind == "stopping"]
    assert [(each["reason"], each.get("by")) for each in told] == [("preempted", None)], "another tenant's id is told"


def test_a_real_process_saves_its_work_makes_room_and_runs_again(world: World, tmp_path: Path) -> None:
    space = tmp_path / "space"

    def real(_: SimulatedExecutor) -> LocalExecutor:
        return LocalExecutor(space, world.clock, lambda: world.nodes, LocalSettings(rescan_seconds=0.2))

    controller = world.leader(wrap=real)
    _buy(controller)
    script = (
        f'echo "$TURNSTILE_ATTEMPT" >> {tmp_path}/attempts; '
        'trap \'touch "$TURNSTILE_CHECKPOINT_FILE"; exit 1\' TERM; touch "$TURNSTILE_CHECKPOINT_FILE"; '
        "sleep 60 & wait"
    )
    filler = _submit(controller, "acme/nlp", LaunchSpec(("sleep", "60"), "filler"), nodes=1)
    until(controller, lambda: state_of(controller, filler) is JobState.RUNNING)
    victim = _submit(controller, "acme/nlp", LaunchSpec(("/bin/sh", "-c", script), "train"), nodes=1)

    def is_saved() -> bool:
        gangs = controller.ask(lambda state, _: list(state.allocations.values())).result(SECONDS)
        return any(gang.job == victim and gang.checkpointed_ms is not None for gang in gangs)

    until(controller, is_saved)
    bought = _submit(controller, "vip/p", LaunchSpec(("true",), "short"), nodes=1)
    until(controller, lambda: state_of(controller, bought) is JobState.COMPLETED)
    until(controller, lambda: (tmp_path / "attempts").read_text() == "1\n2\n")
    assert_memory_equals_database(controller)
    live = controller.ask(lambda state, _: tuple(state.jobs)).result(SECONDS)
    controller.carry_out(CancelJobs(live, "mei")).result(SECONDS)
    until(controller, lambda: controller.ask(lambda state, _: not state.jobs).result(SECONDS))
