"""A real gang of real processes loses its surplus nodes to a guarantee, and runs on: from plan to process and back."""

from pathlib import Path

from scheduler.core.model import AccountId, JobId, JobState, UserName
from scheduler.executor import LaunchSpec
from scheduler.local import LocalExecutor
from scheduler.loop import Controller
from scheduler.simulated import SimulatedExecutor
from scheduler.spawn import LocalSettings
from scheduler.store.accounts import SaveAccount
from scheduler.store.actions import CancelJobs
from scheduler.store.jobs import JobDraft, SubmitJobs
from scheduler.store.queries import history_of
from tests.builders import account, node, shape
from tests.loop.conftest import SECONDS, World, until
from tests.loop.test_controller import assert_memory_equals_database, state_of

TRAIN = """
echo "$TURNSTILE_NODES $TURNSTILE_NODES_MIN $PET_NNODES" > {folder}/size-$TURNSTILE_NODE_RANK
trap 'echo "$TURNSTILE_NODE_RANK" >> {folder}/left; exit 0' TERM
sleep 600 & wait
"""


def _submit(controller: Controller, project: str, script: str, *, nodes: int, most: int | None = None) -> JobId:
    tenant = AccountId(project.partition("/")[0])
    spec = LaunchSpec(("/bin/sh", "-c", script), "train")
    draft = JobDraft(
        AccountId(project), UserName("mei"), "job", shape(gpus=8, nodes=nodes, most_nodes=most), 3_600_000, spec
    )
    (job,) = controller.carry_out(SubmitJobs((draft,), tenant, UserName("mei"), None, None)).result(SECONDS)
    return job


def test_real_processes_lose_their_surplus_nodes_and_run_on(world: World, tmp_path: Path) -> None:
    world.nodes = [node("n1"), node("n2"), node("n3")]
    space = tmp_path / "space"

    def real(_: SimulatedExecutor) -> LocalExecutor:
        return LocalExecutor(space, world.clock, lambda: world.nodes, LocalSettings(rescan_seconds=0.2))

    controller = world.leader(wrap=real)
    for each in (account("vip", guarantee=16), account("vip/p")):
        controller.carry_out(SaveAccount(each, each.id)).result(SECONDS)
    train = _submit(controller, "acme/nlp", TRAIN.format(folder=tmp_path), nodes=1, most=3)
    until(controller, lambda: state_of(controller, train) is JobState.RUNNING)
    until(controller, lambda: all((tmp_path / f"size-{rank}").exists() for rank in range(3)))
    assert {(tmp_path / f"size-{rank}").read_text() for rank in range(3)} == {"3 1 3\n"}
    assert_memory_equals_database(controller)
    bought = _submit(controller, "vip/p", "sleep 600", nodes=2)
    until(controller, lambda: state_of(controller, bought) is JobState.RUNNING)
    assert state_of(controller, train) is JobState.RUNNING
    assert sorted((tmp_path / "left").read_text().split()) == ["1", "2"], "the ranks of the surplus nodes, and no other"
    assert_memory_equals_database(controller)
    with controller.database.read() as connection:
        assert [each.kind for each in history_of(connection, train)][-2:] == ["shrinking", "shrunk"]
    controller.carry_out(CancelJobs((train, bought), "mei")).result(SECONDS)
    until(controller, lambda: controller.ask(lambda state, _: not state.jobs).result(SECONDS))
    assert sorted((tmp_path / "left").read_text().split()) == ["0", "1", "2"]
