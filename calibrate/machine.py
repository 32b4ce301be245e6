"""What machine this is: accelerator, driver, libraries, caches, clocks; no name of the host."""

import os
import platform
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from calibrate.topology import topology

_CPU = Path("/sys/devices/system/cpu")


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def last_level_cache_bytes() -> int:
    """Size of the largest cache that a core of this machine sees [bytes]; 32 MiB where the system does not say."""
    sizes = []
    for file in _CPU.glob("cpu0/cache/index*/size"):
        text = file.read_text(encoding="utf-8").strip()
        with suppress(ValueError):
            sizes.append(int(text[:-1]) * {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1))
    return max(sizes, default=32 * 2**20)


def memory_bytes() -> int:
    """Memory of the host [bytes]."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Nvml:
    """Clock, power and temperature of a GPU, by torch's index; a reading that NVML does not know is ``None``."""

    def __init__(self, index: int | None) -> None:
        self._nvml: Any = None
        if index is None:
            return
        with suppress(Exception):  # no package, no driver: errors of NVML's own
            self._nvml = import_module("pynvml")
            self._nvml.nvmlInit()
            # torch counts the devices that it may use, NVML all: the name that both know is the UUID.
            uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid)

    def _read(self, name: str, *args: object) -> Any:
        if self._nvml is None:
            return None
        try:
            return getattr(self._nvml, name)(self._handle, *args)
        except Exception:  # a counter that this GPU does not have
            return None

    @property
    def clock_mhz(self) -> float | None:
        """Clock of the multiprocessors."""
        clock: float | None = self._read("nvmlDeviceGetClockInfo", getattr(self._nvml, "NVML_CLOCK_SM", 1))
        return clock

    @property
    def power_w(self) -> float | None:
        """Power of the board."""
        power_mw = self._read("nvmlDeviceGetPowerUsage")
        return None if power_mw is None else power_mw * 1e-3

    @property
    def energy_j(self) -> float | None:
        """Counter of energy."""
        energy_mj = self._read("nvmlDeviceGetTotalEnergyConsumption")
        return None if energy_mj is None else energy_mj * 1e-3

    @property
    def temperature_c(self) -> float | None:
        """Of the chip."""
        temperature: float | None = self._read("nvmlDeviceGetTemperature", 0)
        return temperature

    @property
    def throttle_reasons(self) -> int | None:
        """Bits that say why the clock is lower than asked for; idle and the application's own setting left out."""
        reasons = self._read("nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if reasons is None else int(reasons) & ~0x3

    def facts(self) -> dict[str, object]:
        """Driver and limits, which a machine keeps."""
        limit_mw = self._read("nvmlDeviceGetEnforcedPowerLimit")
        driver = None
        if self._nvml is not None:
            with suppress(Exception):
                driver = self._nvml.nvmlSystemGetDriverVersion()
        return {"driver": driver, "power_limit_w": None if limit_mw is None else limit_mw * 1e-3,
                "max_clock_mhz": self._read("nvmlDeviceGetMaxClockInfo", getattr(self._nvml, "NVML_CLOCK_SM", 1))}


def machine_facts(device: torch.device, *, num_threads: int) -> dict[str, object]:
    """Facts that make samples comparable; equal on each run on the same machine with the same software."""
    facts: dict[str, object] = {
        "torch": str(torch.__version__), "python": platform.python_version(), "cpu": _cpu_model(),
        "num_cores": len(os.sched_getaffinity(0)), "host_memory_bytes": memory_bytes(), "device": device.type,
        "topology": topology(is_cuda=device.type == "cuda"),
    }
    if device.type == "cpu":
        return facts | {"name": _cpu_model(), "num_threads": num_threads, "cache_bytes": last_level_cache_bytes(),
                        "mkldnn": torch.backends.mkldnn.is_available()}  # type: ignore[no-untyped-call]
    properties = torch.cuda.get_device_properties(device)
    return facts | {
        "name": properties.name, "cuda": torch.version.cuda, "memory_bytes": properties.total_memory,
        "num_sms": properties.multi_processor_count, "cache_bytes": properties.L2_cache_size,
        "num_gpus": torch.cuda.device_count(), **Nvml(device.index or 0).facts()}
