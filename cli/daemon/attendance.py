"""The daemon's side of agents: what they say laid over the inventory, silence noticed, their windows counted."""

from collections.abc import Mapping, Sequence

from metering.agent_routes import agent_routes
from metering.agent_store import SaveAgents, agents
from metering.agents import AgentWatch, attended
from metering.inbox import WindowInbox
from metering.windows import SampleWindow
from metering.witness import ledger_devices
from scheduler.core.model import AllocationId, EndReason, NodeName
from scheduler.executor import Executor, ExecutorError, LogChunk, NodeInventory, Observation, StartOrder, start_all
from scheduler.loop import Controller
from scheduler.routes.app import MoreRoutes

LOOK_SECONDS = 5
"""Between two looks for agents that fell silent: how late it is noticed at most."""
ANSWER_SECONDS = 30.0


class Attendance:
    """What the daemon knows of agents, and the work that follows from it."""

    def __init__(self) -> None:
        self.watch = AgentWatch()
        self._inbox = WindowInbox()

    @property
    def routes(self) -> MoreRoutes:
        """The routes of agents."""
        return lambda door: agent_routes(self.watch, self._inbox, door)

    def look(self, controller: Controller) -> None:
        """Stores which agents fell silent, and has the inventory read again. Raises Refused, StoreError."""
        if not controller.is_leading:
            self.watch.unload()
            return
        now_ms = controller.clock.now_ms()
        if not self.watch.is_loaded:
            with controller.database.read() as connection:
                known = agents(connection)
            self.watch.load(known, now_ms)
        fallen = self.watch.look(now_ms)
        if fallen:
            states = tuple(each.state for each in fallen)
            events = tuple(event for each in fallen for event in each.events)
            controller.carry_out(SaveAgents(states, events)).result(timeout=ANSWER_SECONDS)
        if self.watch.take_change():
            controller.refresh_inventory()

    def own_windows(self, windows: Sequence[SampleWindow]) -> tuple[SampleWindow, ...]:
        """Returns the windows of this daemon's own reader that no agent measures too."""
        measured = self.watch.measured()
        return tuple(window for window in windows if window.uuid not in measured)

    def agents_windows(self, controller: Controller) -> list[SampleWindow]:
        """Returns what agents delivered since the last call, by the ledger's devices. Raises StoreError."""

        def device_of(gpus: Sequence[tuple[NodeName, str]]) -> Mapping[str, str]:
            with controller.database.read() as connection:
                return ledger_devices(connection, gpus, controller.clock.now_ms())

        return self._inbox.drain(device_of)


class AttendedExecutor:
    """An executor whose inventory has laid over it what agents say of nodes and GPUs; all else is the executor's."""

    def __init__(self, executor: Executor, watch: AgentWatch) -> None:
        self._executor = executor
        self._watch = watch

    def inventory(self) -> Sequence[NodeInventory]:
        """Returns the executor's nodes, none of them healthier than it says. Raises ExecutorError."""
        return attended(self._executor.inventory(), self._watch.states())

    def recover(self, live: Sequence[StartOrder]) -> None:
        """As the executor."""
        self._executor.recover(live)

    def start(self, order: StartOrder) -> None:
        """As the executor."""
        self._executor.start(order)

    def start_many(self, orders: Sequence[StartOrder]) -> Mapping[AllocationId, ExecutorError]:
        """As the executor."""
        return start_all(self._executor, orders)

    def stop(self, allocation: AllocationId, grace_seconds: float, reason: EndReason) -> None:
        """As the executor."""
        self._executor.stop(allocation, grace_seconds, reason)

    def shrink(self, allocation: AllocationId, nodes: int, grace_seconds: float, reason: EndReason) -> None:
        """As the executor."""
        self._executor.shrink(allocation, nodes, grace_seconds, reason)

    def acknowledge_shrunk(self, allocation: AllocationId) -> None:
        """As the executor."""
        self._executor.acknowledge_shrunk(allocation)

    def extend(self, allocation: AllocationId, time_limit_ms: int) -> None:
        """As the executor."""
        self._executor.extend(allocation, time_limit_ms)

    def observe(self) -> Sequence[Observation]:
        """As the executor."""
        return self._executor.observe()

    def acknowledge(self, allocation: AllocationId) -> None:
        """As the executor."""
        self._executor.acknowledge(allocation)

    def wait_for_news(self, timeout_seconds: float) -> bool:
        """As the executor."""
        return self._executor.wait_for_news(timeout_seconds)

    def wake(self) -> None:
        """As the executor."""
        self._executor.wake()

    def logs(self, allocation: AllocationId, node_rank: int, offset: int, limit_bytes: int) -> LogChunk:
        """As the executor."""
        return self._executor.logs(allocation, node_rank, offset, limit_bytes)

    def close(self) -> None:
        """As the executor."""
        self._executor.close()
