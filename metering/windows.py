"""Samples of one device folded into windows: utilisation, energy, idle time. Pure arithmetic on integers.

A window runs from one sample to a later one, and the next begins where it ended, so sums over windows are the same
however a stretch of time is cut. Utilisation holds for the interval that ends at its sample, for NVML reports the past;
an interval longer than the gap limit counts as unmeasured. Energy is the difference of the driver's counter, which also
spans gaps. When the counter goes down the driver was loaded anew: a new epoch begins with a window of its own, and what
the counter shows by then was used since, so it counts; what was used between the last sample and the reload nobody
read, and it is never guessed. (A counter that was reset and has already overtaken its old value looks like a small
difference; the sum is then too low, never too high.)
"""

from dataclasses import dataclass

from metering.gpus import GpuSample


@dataclass(frozen=True, slots=True)
class SampleWindow:
    """What is known of a device from `from_ms` to `to_ms`. Sums add up over adjacent windows; None means not measured.

    `measured_ms` is the time that utilisation covers; `utilization_percent_ms` is percent times milliseconds over it.
    `energy_millijoules` is an estimate by NVIDIA's own sensor (±5 % at best), not a meter to sell by.
    """

    uuid: str
    from_ms: int
    to_ms: int
    samples: int
    measured_ms: int
    utilization_percent_ms: int
    memory_utilization_percent_ms: int
    utilization_max_percent: int | None
    memory_used_max_bytes: int | None
    energy_millijoules: int | None
    counter_resets: int
    """1 where a new life of the driver begins with this window, else 0: a window lies in one."""
    idle_ms: int
    """Part of `measured_ms` at or below the idle threshold."""
    idle_since_ms: int | None
    """When the idle spell began in which the window ends; None if it ends busy or unmeasured."""

    @property
    def utilization_mean_percent(self) -> float | None:
        """Time-weighted mean over the measured time; for people and graphs, never for sums."""
        return self.utilization_percent_ms / self.measured_ms if self.measured_ms else None

    @property
    def coverage_ratio(self) -> float:
        """Share of the window that utilisation covers."""
        return self.measured_ms / (self.to_ms - self.from_ms)


MOST_MILLIWATTS = 3_000_000
"""More than any GPU of today can draw (1,400 W at most). A counter that fell, and shows more than that since the last
sample, did not begin at nothing: it only jumped back."""


class WindowFold:
    """Takes a device's samples in order and closes windows. `gap_ms` and `idle_percent`: see the module."""

    def __init__(self, uuid: str, *, gap_ms: int, idle_percent: int) -> None:
        self.uuid = uuid
        self.idle_since_ms: int | None = None
        self._gap_ms = gap_ms
        self._idle_percent = idle_percent
        self._last_ms: int | None = None
        self._counter_millijoules: int | None = None
        self._from_ms = 0
        self._samples = self._measured_ms = self._percent_ms = self._memory_percent_ms = 0
        self._idle_ms = self._resets = 0
        self._utilization_max: int | None = None
        self._memory_max: int | None = None
        self._energy: int | None = None
        self._done: list[SampleWindow] = []
        """Windows that ended where a new life of the driver began, and were not asked for yet."""

    def add(self, sample: GpuSample) -> bool:
        """Takes the next sample, unless it is not later than the last. Returns whether the energy counter was reset."""
        is_reset = False
        if self._last_ms is None:
            self._from_ms = sample.at_ms
        elif sample.at_ms <= self._last_ms:
            return False
        else:
            is_reset = self._is_reset(sample, self._last_ms)
            if is_reset:
                self._end_window()
                self._resets = 1
            self._add_interval(sample, self._last_ms)
        self._samples += 1
        self._last_ms = sample.at_ms
        if sample.utilization_percent is not None:
            self._utilization_max = max(self._utilization_max or 0, sample.utilization_percent)
        if sample.memory_used_bytes is not None:
            self._memory_max = max(self._memory_max or 0, sample.memory_used_bytes)
        self._add_energy(sample.energy_millijoules, is_reset=is_reset)
        return is_reset

    def close(self) -> tuple[SampleWindow, ...]:
        """Returns the windows up to the last sample and begins the next there; none when no time has passed."""
        self._end_window()
        done, self._done = tuple(self._done), []
        return done

    def _end_window(self) -> None:
        if self._last_ms is None or self._last_ms == self._from_ms:
            return
        window = SampleWindow(
            uuid=self.uuid,
            from_ms=self._from_ms,
            to_ms=self._last_ms,
            samples=self._samples,
            measured_ms=self._measured_ms,
            utilization_percent_ms=self._percent_ms,
            memory_utilization_percent_ms=self._memory_percent_ms,
            utilization_max_percent=self._utilization_max,
            memory_used_max_bytes=self._memory_max,
            energy_millijoules=self._energy,
            counter_resets=self._resets,
            idle_ms=self._idle_ms,
            idle_since_ms=self.idle_since_ms,
        )
        self._clear(from_ms=self._last_ms)
        self._done.append(window)

    def _clear(self, from_ms: int) -> None:
        self._from_ms = from_ms
        self._samples = self._measured_ms = self._percent_ms = self._memory_percent_ms = 0
        self._idle_ms = self._resets = 0
        self._utilization_max = self._memory_max = self._energy = None

    def _add_interval(self, sample: GpuSample, since_ms: int) -> None:
        elapsed_ms = sample.at_ms - since_ms
        percent = sample.utilization_percent
        if percent is None or elapsed_ms > self._gap_ms:
            self.idle_since_ms = None
            return
        self._measured_ms += elapsed_ms
        self._percent_ms += percent * elapsed_ms
        self._memory_percent_ms += (sample.memory_utilization_percent or 0) * elapsed_ms
        if percent > self._idle_percent:
            self.idle_since_ms = None
            return
        self._idle_ms += elapsed_ms
        if self.idle_since_ms is None:
            self.idle_since_ms = since_ms

    def _is_reset(self, sample: GpuSample, since_ms: int) -> bool:
        counter, base = sample.energy_millijoules, self._counter_millijoules
        if counter is None or base is None or counter >= base:
            return False
        return counter * 1000 <= MOST_MILLIWATTS * (sample.at_ms - since_ms)

    def _add_energy(self, counter: int | None, *, is_reset: bool) -> None:
        base = self._counter_millijoules
        if counter is None:
            return
        self._counter_millijoules = counter
        used = counter if is_reset else None if base is None else counter - base
        if used is not None and used >= 0:
            self._energy = (self._energy or 0) + used
