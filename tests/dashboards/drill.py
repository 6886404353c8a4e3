"""A daemon whose faults are told by a file: `python -m tests.dashboards.drill serve …` is `turnstile serve …`.

The file, named by DRILL_FILE, is JSON and is read at each sample and tick:

    {"gpus": {"h200-05/3": {"xid": 79}}, "silent": ["h200-06"], "idle": ["h200-07"], "tick_seconds": 6}

What stands in for hardware (the simulated reader) shows what it is told; the planner is the real one behind a pause.
DRILL_DAYS_BACK sets the machine's clock back by so many days, for as long as the daemon runs.
Everything else is the daemon as it ships, put together by its own composition root.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cli import main as command_line
from cli.daemon import app, gpus
from metering.gpus import GpuProblem, GpuSample, ProblemCode, ThrottleReason
from metering.simulated import SimulatedReader
from scheduler import planner
from scheduler.clock import LedgerClock
from scheduler.core.plan import Plan
from scheduler.routes import scrapes

MONEY_SECONDS = 1
"""Between two looks at budgets, and at billing periods, where the daemon takes a minute."""
PATIENCE_SECONDS = 0.3
"""Of a scrape with a tick that hangs: it comes each second here, and may take no longer."""
VARIABLE = "DRILL_FILE"
DAYS_BACK = "DRILL_DAYS_BACK"
DAY_MS = 86_400_000


def told() -> Mapping[str, Any]:  # Any: JSON
    """Returns what the file says now; nothing where there is none yet."""
    path = Path(os.environ[VARIABLE])
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def tell(path: Path, faults: Mapping[str, object]) -> None:
    """Writes the file, whole at every instant."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(faults), encoding="utf-8")
    new.replace(path)


class ClockSetBack(LedgerClock):
    """The clock of a machine that is DRILL_DAYS_BACK days behind; right where the variable is not there."""

    def __init__(self) -> None:
        self._back_ms = int(os.environ.get(DAYS_BACK, "0")) * DAY_MS
        super().__init__()

    def now_ms(self) -> int:
        """Returns UTC milliseconds since 1970, so many days ago."""
        return super().now_ms() - self._back_ms

    def raise_floor(self, floor_ms: int) -> None:
        """Makes sure that no later answer is less than `floor_ms`."""
        super().raise_floor(floor_ms + self._back_ms)


@dataclass(slots=True)
class DrilledReader(SimulatedReader):
    """A simulated node whose GPUs show the faults of the file."""

    _reported: set[tuple[str, int]] = field(default_factory=set)

    def sample(self) -> tuple[Sequence[GpuSample], Sequence[GpuProblem]]:
        """Returns samples with what is told of each GPU; a silent node answers nothing."""
        faults = told()
        if self.node.name in faults.get("silent", ()):
            return [], [GpuProblem(ProblemCode.DRIVER_NOT_LOADED, "the driver does not answer (drill)")]
        own = {
            gpu.uuid: faults.get("gpus", {}).get(f"{self.node.name}/{index}", {})
            for index, gpu in enumerate(self.node.identities())
        }
        for uuid, fault in own.items():
            if fault.get("lost"):
                self.lose(uuid)
            if (xid := fault.get("xid")) is not None and (uuid, xid) not in self._reported:
                self._reported.add((uuid, xid))
                self.inject_xid(uuid, xid)
        samples, problems = SimulatedReader.sample(self)
        is_idle = self.node.name in faults.get("idle", ())
        return [_shown(each, own[each.uuid], is_idle=is_idle) for each in samples], problems


def _shown(sample: GpuSample, fault: Mapping[str, Any], *, is_idle: bool) -> GpuSample:
    throttled = (ThrottleReason(fault["throttled"]),) if "throttled" in fault else None
    return replace(
        sample,
        utilization_percent=0 if is_idle else sample.utilization_percent,
        temperature_celsius=fault.get("celsius", sample.temperature_celsius),
        throttle_reasons=throttled or sample.throttle_reasons,
        ecc_uncorrected_errors=fault.get("ecc", 0),
        row_remap_pending=bool(fault.get("remap_pending")),
        row_remap_failure=bool(fault.get("remap_failure")),
    )


_PLANNER = vars(planner)
_plan: Callable[..., Plan] = _PLANNER["plan"]


def _slow_plan(*arguments: Any) -> Plan:  # Any: what the planner gives it
    time.sleep(float(told().get("tick_seconds", 0)))
    return _plan(*arguments)


if __name__ == "__main__":
    vars(gpus)["SimulatedReader"] = DrilledReader
    _PLANNER["plan"] = _slow_plan
    vars(scrapes)["PATIENCE_SECONDS"] = PATIENCE_SECONDS
    vars(app)["LedgerClock"] = ClockSetBack
    vars(app)["WHOLE_SECONDS"] = MONEY_SECONDS
    vars(app)["PERIODS_SECONDS"] = MONEY_SECONDS
    command_line.main()
