"""The one table of XIDs: what an error number of the NVIDIA driver means for health, billing and alerts.

Sources: the recommended actions in NVIDIA's XID catalogue (docs.nvidia.com/deploy/xid-errors) and its note on memory
errors (docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt); the application's own XIDs are those that NVIDIA's Kubernetes
device plugin does not count against a GPU. A number that is not listed is counted and shown, and decides nothing.
Whoever changes a row raises XID_TABLE_VERSION: lines of the ledger name the version that judged them.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

XID_TABLE_VERSION = 1


class XidClass(StrEnum):
    """What follows from an XID. `application`: nothing for the GPU. `fatal`: it can hold nothing until it is reset.

    `memory` and `restart_app`: running jobs may finish (the one that was hit by `restart_app` is dead already), then
    the GPU wants a reset.
    """

    APPLICATION = "application"
    FATAL = "fatal"
    MEMORY = "memory"
    RESTART_APP = "restart_app"


@dataclass(frozen=True, slots=True)
class XidMeaning:
    """A row of the table. `action` is an instruction to the operator, or to the job's owner for `application`."""

    xid: int
    xid_class: XidClass
    meaning: str
    action: str


_ROWS = (
    XidMeaning(
        13, XidClass.APPLICATION, "exception in the graphics engine", "check the program for bad array accesses"
    ),
    XidMeaning(31, XidClass.APPLICATION, "memory page fault", "check the program for bad addresses"),
    XidMeaning(43, XidClass.APPLICATION, "the program's channel stopped", "check the program; the GPU is well"),
    XidMeaning(45, XidClass.APPLICATION, "clean-up after the program was ended", "look for what ended it before"),
    XidMeaning(48, XidClass.FATAL, "uncorrectable memory error", "drain the node and reset the GPU"),
    XidMeaning(
        62, XidClass.FATAL, "the GPU's internal controller halted", "reset the GPU; if it recurs, have it serviced"
    ),
    XidMeaning(63, XidClass.MEMORY, "a memory row was marked for remapping", "reset the GPU when its jobs have ended"),
    XidMeaning(
        64, XidClass.FATAL, "a memory row could not be remapped", "reset the GPU; if it recurs, have it replaced"
    ),
    XidMeaning(68, XidClass.APPLICATION, "exception in the video processor", "check the program; the GPU is well"),
    XidMeaning(74, XidClass.FATAL, "NVLink error", "reset the GPU; check the links and the other end of this one"),
    XidMeaning(
        79, XidClass.FATAL, "the GPU has fallen off the bus", "reboot the node; check power, cooling and seating"
    ),
    XidMeaning(
        92, XidClass.MEMORY, "many corrected memory errors", "reset the GPU when its jobs have ended; run diagnostics"
    ),
    XidMeaning(
        94, XidClass.RESTART_APP, "contained memory error: one job was hit", "restart the job; reset the GPU when idle"
    ),
    XidMeaning(95, XidClass.FATAL, "uncontained memory error", "reset the GPU before anything else runs on it"),
    XidMeaning(109, XidClass.APPLICATION, "context switch timed out", "check the program; the GPU is well"),
    XidMeaning(119, XidClass.FATAL, "the GPU's system processor does not answer", "reset the GPU or reboot the node"),
    XidMeaning(120, XidClass.FATAL, "error in the GPU's system processor", "reset the GPU or reboot the node"),
)

XID_TABLE = {row.xid: row for row in _ROWS}

PREEMPTIVE_CLEANUP_XID = 45
"""The driver's clean-up: whose fault it is depends on what came with it."""


def is_hardware_xid(xid: int) -> bool:
    """Returns whether the table blames the GPU. A number that is not listed blames nobody."""
    row = XID_TABLE.get(xid)
    return row is not None and row.xid_class is not XidClass.APPLICATION


def is_application_xid(xid: int, others_in_window: Collection[int] = ()) -> bool:
    """Returns whether the program caused the XID, so that its tenant pays to the exit.

    45 is the program's, unless one of `others_in_window` (same GPU, same window) is the hardware's.
    """
    row = XID_TABLE.get(xid)
    if row is None or row.xid_class is not XidClass.APPLICATION:
        return False
    return xid != PREEMPTIVE_CLEANUP_XID or not any(is_hardware_xid(other) for other in others_in_window)
