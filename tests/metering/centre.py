"""A small GPU centre on the real store: nodes, tenants, jobs that are decided, run, stop and end as told."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from zoneinfo import ZoneInfo

from sqlalchemy.engine import Connection

from metering.admission import BudgetAdmission
from metering.core.tariff import PriceBook
from metering.export import export_usage
from metering.ledger import publish
from metering.manifest import Manifest
from scheduler.clock import ManualClock
from scheduler.core.model import (
    GPU_UNITS,
    Account,
    AccountId,
    AllocationId,
    Booking,
    BookingWanted,
    Device,
    DeviceId,
    EndReason,
    GpuClass,
    Grant,
    Node,
    NodeName,
    PoolName,
    Shape,
    UserName,
)
from scheduler.core.occupancy import Evidence
from scheduler.core.plan import Plan, Start
from scheduler.core.policy import Policy
from scheduler.executor import Ended, LaunchSpec, NodeInventory, Started
from scheduler.store.accounts import SaveAccount
from scheduler.store.allocations import ApplyPlan, MarkStopping
from scheduler.store.centre import accounts
from scheduler.store.database import Database
from scheduler.store.evidence import Learned, RecordEvidence, Said
from scheduler.store.inventory import SetDrain, SyncInventory
from scheduler.store.jobs import JobDraft, SubmitJobs
from scheduler.store.observations import RecordObservations
from scheduler.store.write import Command, Writer
from tests.metering.builders import NOON_MS, book

T = TypeVar("T")
H100 = GpuClass("H100")
SHANGHAI = ZoneInfo("Asia/Shanghai")
NODE_CPU = 64_000
NODE_MEMORY = 512 << 30
SECRET = "hunter2-that-no-export-may-show"


class Centre:
    """Drives the store's own commands with a clock that moves when told."""

    def __init__(self, database: Database, start_ms: int = NOON_MS) -> None:
        self.database = database
        self.clock = ManualClock(start_ms)
        self.admission = BudgetAdmission(SHANGHAI)
        self._writer = Writer(database, self.clock, Policy(), None, self.admission)
        self._nodes: list[NodeInventory] = []

    @property
    def now_ms(self) -> int:
        return self.clock.now_ms()

    def tenant(self, path: str, name: str | None = None) -> None:
        steps = path.split("/")
        for depth in range(1, len(steps) + 1):
            account = "/".join(steps[:depth])
            shown = name if name is not None and depth == len(steps) else account.title()
            self._writer.run(SaveAccount(Account(AccountId(account)), shown))

    def node(self, name: str, gpus: int = 2, gpu_class: str = "H100") -> tuple[DeviceId, ...]:
        devices = tuple(
            Device(DeviceId(f"GPU-{name}-{place}"), NodeName(name), GpuClass(gpu_class)) for place in range(gpus)
        )
        node = Node(NodeName(name), GpuClass(gpu_class), PoolName("main"), NODE_CPU, NODE_MEMORY)
        self._nodes.append(NodeInventory(node, devices))
        self._writer.run(SyncInventory(tuple(self._nodes), Evidence.NODE))
        return tuple(device.id for device in devices)

    def slots(self, name: str, count: int) -> None:
        """A node whose devices are slots, as where the platform chooses the GPUs."""
        devices = tuple(Device(DeviceId(f"{name}/gpu/{place}"), NodeName(name), H100) for place in range(count))
        self._nodes.append(NodeInventory(Node(NodeName(name), H100, PoolName("main"), NODE_CPU, NODE_MEMORY), devices))
        self._writer.run(SyncInventory(tuple(self._nodes), Evidence.NODE))

    def run_command(self, command: Command[T]) -> T:
        """Commits a command of metering's own."""
        value, _ = self._writer.run(command)
        return value

    def lose_node(self, name: str) -> None:
        self._nodes = [inventory for inventory in self._nodes if inventory.node.name != name]
        self._writer.run(SyncInventory(tuple(self._nodes), Evidence.HEARTBEAT))

    def drain(self, name: str, reason: str) -> None:
        self._writer.run(SetDrain(NodeName(name), reason, "ops"))

    def start(
        self,
        *devices: DeviceId,
        account: str = "acme/vision",
        name: str = "train",
        booking: Booking = Booking.BURST,
        units: int = GPU_UNITS,
        memory: int = 0,
        user: str = "mei",
        labels: Mapping[str, str] | None = None,
    ) -> AllocationId:
        """Submits a job and decides that it gets these devices; it is starting."""
        shape, grants = self._gang(devices, units, memory)
        launch = LaunchSpec(("train", "--password", SECRET), name, {"TOKEN": SECRET})
        wanted = BookingWanted.SPOT if booking is Booking.SPOT else BookingWanted.AUTO
        draft = JobDraft(
            AccountId(account), UserName(user), name, shape, 86_400_000, launch, wanted, labels=labels or {}
        )
        (job,), _ = self._writer.run(SubmitJobs((draft,), AccountId(account.split("/", maxsplit=1)[0]), UserName(user)))
        return self._apply(Start(job, shape.gpu_classes[0], booking, grants, draft.account, draft.time_limit_ms))

    def _gang(self, devices: tuple[DeviceId, ...], units: int, memory: int) -> tuple[Shape, tuple[Grant, ...]]:
        node_of = {device.id: inventory.node for inventory in self._nodes for device in inventory.devices}
        by_node: dict[NodeName, list[DeviceId]] = {}
        for device in devices:
            by_node.setdefault(node_of[device].name, []).append(device)
        grants = tuple(Grant(node, tuple(held), units, 1000, memory) for node, held in by_node.items())
        shape = Shape((node_of[devices[0]].gpu_class,), len(grants), units * len(grants[0].devices))
        return shape, grants

    def _apply(self, start: Start) -> AllocationId:
        # The ledger's time, which does not run back when somebody sets the clock: as a daemon's clock has its floor.
        planned_ms = max(self.now_ms, self._writer._floor_ms or 0)
        applied, _ = self._writer.run(ApplyPlan(Plan(1, planned_ms, (start,), terms=self.terms())))
        assert not applied.rejected, applied.rejected
        return applied.started[0].allocation.id

    def terms(self) -> dict[AccountId, Account]:
        """The accounts' terms, as a planner knows them."""
        with self.read() as connection:
            return {record.account.id: record.account for record in accounts(connection)}

    def running(self, allocation: AllocationId) -> None:
        self._writer.run(RecordObservations((Started(allocation, self.now_ms),)))

    def stopping(self, allocation: AllocationId, reason: EndReason = EndReason.CANCELLED) -> None:
        self._writer.run(MarkStopping((allocation,), reason))

    def end(self, allocation: AllocationId, reason: EndReason | None = None, ago_ms: int = 0) -> None:
        exit_code = 0 if reason is None else 1
        self._writer.run(RecordObservations((Ended(allocation, self.now_ms - ago_ms, exit_code, reason),)))

    def lost(self, allocation: AllocationId, ago_ms: int) -> None:
        """The allocation's node is found silent now; its last sign of life was so long ago."""
        self.end(allocation, EndReason.NODE_LOST, ago_ms)

    def learn(self, *said: Said) -> Learned:
        return self._writer.run(RecordEvidence(said))[0]

    def carry_out(self, command: Command[T]) -> T:
        return self._writer.run(command)[0]

    def run(self, *devices: DeviceId, hours: int = 1, reason: EndReason | None = None, **named: object) -> AllocationId:
        """Starts a job, runs it at once for some hours, and ends it."""
        allocation = self.start(*devices, **named)  # type: ignore[arg-type]
        self.running(allocation)
        self.clock.advance(hours=hours)
        self.end(allocation, reason)
        return allocation

    def run_each(self, devices: tuple[DeviceId, ...]) -> None:
        """Runs a job of one GPU on each device for an hour, in as few transactions as may be."""
        shape, _ = self._gang(devices[:1], GPU_UNITS, 0)
        draft = JobDraft(
            AccountId("acme/vision"), UserName("mei"), "each", shape, 86_400_000, LaunchSpec(("x",), "each")
        )
        many, _ = self._writer.run(SubmitJobs((draft,) * len(devices), AccountId("acme"), UserName("mei")))
        to = (draft.account, draft.time_limit_ms)
        starts = tuple(
            Start(job, shape.gpu_classes[0], Booking.BURST, self._gang((device,), GPU_UNITS, 0)[1], *to)
            for job, device in zip(many, devices, strict=True)
        )
        applied, _ = self._writer.run(ApplyPlan(Plan(1, self.now_ms, starts, terms=self.terms())))
        made = [order.allocation.id for order in applied.started]
        self.clock.advance(seconds=1)
        self._writer.run(RecordObservations(tuple(Started(allocation, self.now_ms) for allocation in made)))
        self.clock.advance(hours=1)
        self._writer.run(RecordObservations(tuple(Ended(allocation, self.now_ms, 0, None) for allocation in made)))

    def publish(self, terms: PriceBook | None = None) -> PriceBook:
        terms = book() if terms is None else terms
        with self.database.write() as connection:
            publish(connection, terms, self.now_ms)
        return terms

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with self.database.read() as connection:
            yield connection

    def export(
        self, folder: Path, from_ms: int = NOON_MS, to_ms: int | None = None, tenant: str | None = None
    ) -> Manifest:
        with self.read() as connection:
            return export_usage(
                connection,
                folder,
                from_ms,
                self.now_ms if to_ms is None else to_ms,
                SHANGHAI,
                None if tenant is None else AccountId(tenant),
                known_until_ms=self.now_ms,
            )
