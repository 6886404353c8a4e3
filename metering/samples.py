"""From the sampler's windows to the ledger's: the command that keeps what was measured of each GPU."""

from dataclasses import dataclass

from metering.ledger import GpuWindow, write_windows
from metering.windows import SampleWindow
from scheduler.core.model import DeviceId
from scheduler.store.transaction import Transaction

PPM_PER_PERCENT = 10_000


@dataclass(frozen=True, slots=True)
class StoreWindows:
    """Keeps windows; those that are there already (device and start) stay as they are, so a repeat is harmless."""

    windows: tuple[SampleWindow, ...]

    def execute(self, tx: Transaction) -> int:
        """Returns how many windows were new."""
        return write_windows(tx.connection, [gpu_window(window) for window in self.windows])


def gpu_window(window: SampleWindow) -> GpuWindow:
    """Returns a sampler's window as the ledger keeps it."""
    measured = window.measured_ms
    return GpuWindow(
        device=DeviceId(window.uuid),
        from_ms=window.from_ms,
        to_ms=window.to_ms,
        coverage_ms=measured,
        utilization_mean_ppm=window.utilization_percent_ms * PPM_PER_PERCENT // measured if measured else None,
        utilization_max_ppm=_ppm(window.utilization_max_percent),
        memory_max_bytes=window.memory_used_max_bytes,
        energy_millijoules=window.energy_millijoules,
        counter_resets=window.counter_resets,
    )


def _ppm(percent: int | None) -> int | None:
    return None if percent is None else percent * PPM_PER_PERCENT
