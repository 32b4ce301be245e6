"""When the device began and ended what it was given, on the clock of the host."""

import time

import torch

_FRESH_S = 30.0
"""Events count milliseconds in 32 bits: after so long they still tell 2 us apart, then the zero moves on."""
Laps = list[float] | list[torch.cuda.Event]


class Stopwatch:
    """Events on a GPU, the clock itself on a CPU, whose work is done when a call returns."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        if self._is_cuda:
            torch.cuda.synchronize()
            self._zero = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._zero.record()
            torch.cuda.synchronize()
        self._zero_s = time.perf_counter()

    def start(self) -> Laps:
        """Begin a list of times with that of now."""
        return [self._now()]  # type: ignore[return-value]

    def lap(self, laps: Laps) -> None:
        """Add the time of now, on a GPU that at which it gets here."""
        laps.append(self._now())  # type: ignore[arg-type]

    def _now(self) -> float | torch.cuda.Event:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def read_s(self, laps: Laps) -> list[float]:
        """Times on the host's clock [s]; waits for a GPU to get there."""
        times = []
        for lap in laps:
            if isinstance(lap, float):
                times.append(lap)
            else:
                lap.synchronize()
                elapsed_s = self._zero.elapsed_time(lap) * 1e-3
                times.append(self._zero_s + elapsed_s)
                if elapsed_s > _FRESH_S:
                    self._zero, self._zero_s = lap, times[-1]
        return times
