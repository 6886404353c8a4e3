"""The process that may hang: opens a reader and answers requests, one line each, until its input ends.

Started by `reader_process` as `python -m metering.reader_child MODULE:FUNCTION ARGUMENTS`. A thread waits for the end
of the input, which comes when the parent closes it or dies in whatever way, and ends the process even while a call of
the driver hangs (ctypes lets go of the interpreter lock). Only a call stuck inside the kernel outlives that.
"""

import importlib
import json
import os
import queue
import sys
import threading
from typing import Any

from metering.gpus import GpuProblem, GpuReader, ProblemCode
from metering.nvml_errors import NvmlError
from metering.reader_wire import decode, encode, to_rows

EXIT_NOT_STARTED = 3
"""Exit status after a reader that could not be opened; the reason was sent before."""


def main(factory: str, arguments: str) -> int:
    """Opens the reader that `factory` makes of the JSON object `arguments` and serves it. Returns the exit status."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever the driver's library prints must not end up between the answers
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    try:
        reader = _open(factory, json.loads(arguments))
    except NvmlError as error:
        answers.write(encode({"failed": to_rows([GpuProblem(error.code, str(error))])}))
        return EXIT_NOT_STARTED
    except Exception as error:  # noqa: BLE001 -- the edge of the process: the parent shows the reason
        problem = GpuProblem(
            ProblemCode.UNKNOWN, f"the reader {factory} did not start: {type(error).__name__}: {error}"
        )
        answers.write(encode({"failed": to_rows([problem])}))
        return EXIT_NOT_STARTED
    answers.write(encode({"ready": True, "driver_version": reader.driver_version}))
    while True:
        answers.write(encode(_answer(reader, decode(requests.get()))))


def _listen(requests: queue.SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(0)


def _open(factory: str, arguments: dict[str, Any]) -> GpuReader:
    module, _, function = factory.partition(":")
    reader: GpuReader = getattr(importlib.import_module(module), function)(**arguments)
    return reader


def _answer(reader: GpuReader, request: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"problems": []}
    if request["call"] == "xids":
        answer["items"] = to_rows(reader.xids(int(request["wait_ms"])))
    else:
        items, problems = reader.identities() if request["call"] == "identities" else reader.sample()
        answer["items"], answer["problems"] = to_rows(items), to_rows(problems)
    answer["driver_version"] = reader.driver_version
    return answer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
