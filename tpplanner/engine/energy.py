"""Energy of the GPUs, by the counters of NVML where there are any."""

from importlib import import_module
from typing import Any


class EnergyMeter:
    """Joules that all GPUs of this machine drew since the meter was made; ``None`` where nothing counts them."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        try:
            nvml = import_module("pynvml")
            nvml.nvmlInit()
            self._handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
            self._nvml = nvml
            self._begin_mj = self._now_mj()
        except Exception:  # no package, no driver, or a GPU that does not count: all of them NVML errors of their own
            self._nvml = None

    def _now_mj(self) -> int:
        return sum(int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) for handle in self._handles)

    def joules(self) -> float | None:
        """Energy since the beginning [J]; the counter moves every 20 to 100 ms."""
        if self._nvml is None or not self._handles:
            return None
        return (self._now_mj() - self._begin_mj) * 1e-3
