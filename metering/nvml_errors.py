"""What NVML's return codes mean to a person: our exceptions, each with the next step. No NVML in here.

    NvmlError            anything that NVML refused; `code` counts it, the message says what to do
      NvmlUnavailable    nothing on this machine can be read until somebody acts
      GpuFault           this GPU cannot be read until somebody acts; the others can
      NotOffered         this GPU, driver or user has no such field; absent, not broken

Codes are those of `nvmlReturn_t` in NVIDIA's header nvml.h, 13.5.37.
"""

from metering.gpus import ProblemCode


class NvmlError(Exception):
    """NVML refused a call. `code` is the countable reason, `str()` the message for a person."""

    def __init__(self, code: ProblemCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class NvmlUnavailable(NvmlError):
    """Nothing on this machine can be read until somebody acts."""


class GpuFault(NvmlError):
    """This GPU cannot be read until somebody acts; the others can."""


class NotOffered(NvmlError):
    """This GPU, driver or user has no such field."""


_REASONS: dict[int, tuple[type[NvmlError], ProblemCode, str]] = {
    1: (NvmlUnavailable, ProblemCode.UNINITIALIZED, "NVML was shut down under the reader; the reader starts it again"),
    2: (NotOffered, ProblemCode.INVALID_ARGUMENT, "the driver does not take this question for this GPU"),
    3: (NotOffered, ProblemCode.NOT_SUPPORTED, "this GPU does not offer it"),
    4: (
        NotOffered,
        ProblemCode.NO_PERMISSION,
        "this process's user may not read it; give it access to /dev/nvidia*, or run the agent as root",
    ),
    6: (NotOffered, ProblemCode.NOT_FOUND, "there is nothing at this place"),
    8: (
        GpuFault,
        ProblemCode.INSUFFICIENT_POWER,
        "the GPU's external power cables are not connected properly; check them, then reboot the node",
    ),
    9: (
        NvmlUnavailable,
        ProblemCode.DRIVER_NOT_LOADED,
        "the NVIDIA kernel driver is not loaded; load it with `modprobe nvidia`, or look for its error with `dmesg`",
    ),
    10: (NvmlError, ProblemCode.TIMEOUT, "the driver did not answer in its own time"),
    11: (
        GpuFault,
        ProblemCode.IRQ_ISSUE,
        "the kernel has trouble with the GPU's interrupts; look in `dmesg`, check the BIOS settings, reboot the node",
    ),
    12: (
        NvmlUnavailable,
        ProblemCode.LIBRARY_NOT_FOUND,
        "libnvidia-ml.so.1 was not found; install the NVIDIA driver (in a container: use the NVIDIA runtime)",
    ),
    13: (NotOffered, ProblemCode.FUNCTION_NOT_FOUND, "the installed driver is too old to offer it; upgrade the driver"),
    14: (
        GpuFault,
        ProblemCode.CORRUPTED_INFOROM,
        "the GPU's infoROM is corrupted; its health records cannot be trusted, have it serviced",
    ),
    15: (
        GpuFault,
        ProblemCode.GPU_LOST,
        "the GPU is lost: it has fallen off the bus; drain and reboot the node, check power, cooling and seating",
    ),
    16: (
        GpuFault,
        ProblemCode.RESET_REQUIRED,
        "the GPU must be reset before it can be used; end what runs on it, then `nvidia-smi --gpu-reset -i UUID`",
    ),
    17: (
        NvmlError,
        ProblemCode.OPERATING_SYSTEM,
        "the operating system blocked the request (a control group or sandbox)",
    ),
    18: (
        NvmlUnavailable,
        ProblemCode.VERSION_MISMATCH,
        "the driver was upgraded but the old one is still loaded; drain the node, then reload the driver or reboot",
    ),
    19: (NvmlError, ProblemCode.IN_USE, "something else holds the GPU"),
    20: (NvmlError, ProblemCode.OUT_OF_MEMORY, "the machine is out of memory"),
    21: (NotOffered, ProblemCode.NO_DATA, "the driver has no value for it yet"),
    25: (NotOffered, ProblemCode.ARGUMENT_VERSION, "driver and binding disagree about a structure; upgrade the driver"),
    27: (
        GpuFault,
        ProblemCode.NOT_READY,
        "the GPU is not ready yet; it is tried again, look in `dmesg` if it stays so",
    ),
    28: (
        GpuFault,
        ProblemCode.GPU_NOT_FOUND,
        "no GPU answers here; check `lspci | grep -i nvidia` and that the container was given its device",
    ),
    29: (
        GpuFault,
        ProblemCode.INVALID_STATE,
        "the GPU is in the wrong state for this, often after a MIG change that waits for a reset; reset the GPU",
    ),
    999: (
        NvmlError,
        ProblemCode.UNKNOWN,
        "the driver failed without a reason; look in `dmesg` for NVRM lines, and reset the GPU if it persists",
    ),
}


def nvml_error(return_code: int, asked: str, *, at_start: bool = False) -> NvmlError:
    """Returns our exception for a return code of NVML; `asked` says what was wanted, such as `power`.

    `at_start` is for the initialisation: whatever goes wrong there is an NvmlUnavailable.
    """
    kind, code, advice = _REASONS.get(
        return_code,
        (
            NvmlError,
            ProblemCode.UNKNOWN,
            f"NVML answered {return_code}, which is not known; look in `dmesg` for NVRM lines",
        ),
    )
    if at_start:
        return NvmlUnavailable(code, f"cannot start NVML: {advice}")
    return kind(code, f"cannot read {asked}: {advice}")
