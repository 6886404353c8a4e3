"""Runs a driver of fake GPU nodes whose kubelets try again, as real ones do, when the API server does not answer.

    python -m benchmarks.fake_kubelets SCRIPT [the script's own options]

The script (`fake_nodes.py`) forgets a pod's status when an outage catches it; a job that ended in that very second
would then be seen to run until its time limit.
"""

import importlib.util
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

from urllib3.exceptions import HTTPError

AGAIN_SECONDS = 0.5


def loaded(script: Path) -> ModuleType:
    """Returns the script as a module, under a name that does not start it."""
    sys.dont_write_bytecode = True
    spec = importlib.util.spec_from_file_location("fake_nodes", script)
    assert spec is not None, "a Python file"
    assert spec.loader is not None, "a Python file"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Runs the driver until it is told to end."""
    script, sys.argv = Path(sys.argv[1]), sys.argv[1:]
    fake_nodes = loaded(script)
    forget = fake_nodes.Driver.patch
    turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def sends(driver: object, pod: object, status: object) -> bool:
        try:
            forget(driver, pod, status)
        except fake_nodes.ApiError as error:
            if error.status not in {429, 500, 503}:
                raise
            return False
        except (HTTPError, OSError):
            return False
        return True

    def again(turn: threading.Lock, driver: object, pod: object, status: object) -> None:
        while not sends(driver, pod, status):
            time.sleep(AGAIN_SECONDS)
        turn.release()

    def patch(driver: object, pod: Any, status: object) -> None:  # Any: the script has no types
        turn = turns[pod.uid]
        turn.acquire()
        if sends(driver, pod, status):
            turn.release()
        else:  # by a thread of its own: the driver's few have the heartbeats of all nodes to send
            threading.Thread(target=again, args=(turn, driver, pod, status), daemon=True).start()

    fake_nodes.Driver.patch = patch
    fake_nodes.Driver(fake_nodes.parse()).main()


if __name__ == "__main__":
    main()
