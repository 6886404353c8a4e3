"""A daemon of one job for the tests to kill: `python -m tests.executor.daemon BASE ALLOCATION DECIDED_MS COMMAND`.

Says that it is about to start the job on a LocalExecutor, then when its start was observed, and waits to be killed.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

from scheduler.core.model import AllocationId
from tests.executor.rigs import LocalRig, shell


def main() -> None:
    """Runs until killed."""
    base, allocation, decided_ms, command = sys.argv[1:]
    rig = LocalRig(Path(base))
    order = shell(command, decided_ms=int(decided_ms))
    order = replace(order, allocation=replace(order.allocation, id=AllocationId(allocation)))
    print("starting", flush=True)
    rig.executor.start(order)
    print(rig.until_started(order).at_ms, flush=True)
    time.sleep(3600)


if __name__ == "__main__":
    main()
