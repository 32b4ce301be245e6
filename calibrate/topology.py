"""How the devices of this machine are linked: NVLink, NVSwitch or PCIe between GPUs, nodes and caches of the processor.

No name of a host and no address of a bus is kept. What a driver, a library or the system does not say is ``unknown``.
"""

import os
from collections import Counter
from collections.abc import Iterable
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any, Final

_SYSTEM: Final = Path("/sys/devices/system")
UNKNOWN: Final = "unknown"
_NO_SUCH_LINK: Final = (2, 3)
"""NVML's INVALID_ARGUMENT, beyond the last link, and NOT_SUPPORTED, of a GPU without any."""
_MAX_LINKS: Final = 36
_GPU, _SWITCH = 0, 2
"""NVML's kinds of device at the other end of a link."""
_ANCESTORS: Final = {0: "PCIe, one board", 10: "PCIe, one switch", 20: "PCIe, several switches", 30: "PCIe, one host bridge",
                     40: "PCIe, one NUMA node", 50: "PCIe, across sockets"}
_P2P_READ, _P2P_OK = 0, 0


def _asked(nvml: Any, name: str, *args: object) -> Any:
    """Answer of the library, or ``None``: its errors are its own, and older ones lack calls."""
    try:
        return getattr(nvml, name)(*args)
    except Exception:
        return None


class _Gpu:
    """What NVML says of the links of one GPU; ``peers`` is ``None`` where it does not say.

    ``is_sure`` is false where older drivers do not tell GPUs from switches: an address that is no GPU's here may be either's.
    """

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml, self.handle = nvml, nvml.nvmlDeviceGetHandleByIndex(index)
        self.address = self._address(_asked(nvml, "nvmlDeviceGetPciInfo", self.handle))
        self.is_sure = True
        self.links = self._active_links()
        self.peers = None if self.links is None else [self._peer(link) for link in self.links]

    @staticmethod
    def _address(info: Any) -> tuple[int, int, int] | None:
        return None if info is None else (int(info.domain), int(info.bus), int(info.device))

    def _active_links(self) -> list[int] | None:
        found = []
        for link in range(_MAX_LINKS):
            try:
                if self._nvml.nvmlDeviceGetNvLinkState(self.handle, link):
                    found.append(link)
            except Exception as error:
                return found if getattr(error, "value", None) in _NO_SUCH_LINK else None
        return found

    def _peer(self, link: int) -> object:
        """``NVSwitch``, or the address of another GPU, ``None`` where it is not said."""
        kind = _asked(self._nvml, "nvmlDeviceGetNvLinkRemoteDeviceType", self.handle, link)
        if kind == _SWITCH:
            return "NVSwitch"
        address = self._address(_asked(self._nvml, "nvmlDeviceGetNvLinkRemotePciInfo", self.handle, link))
        self.is_sure &= kind == _GPU and address is not None
        return address

    @property
    def link(self) -> str:
        """The kind of its links."""
        if self.peers is None:
            return UNKNOWN
        if not self.peers:
            return "PCIe"
        if "NVSwitch" in self.peers:
            return "NVSwitch"
        return "NVLink" if self.is_sure else UNKNOWN


def _between(nvml: Any, one: _Gpu, two: _Gpu) -> str:
    """How two GPUs reach each other."""
    if one.peers is None or two.peers is None:
        return UNKNOWN
    if "NVSwitch" in one.peers and "NVSwitch" in two.peers:
        return "NVSwitch"
    if None not in (one.address, two.address) and (two.address in one.peers or one.address in two.peers):
        return "NVLink"
    if not (one.is_sure and two.is_sure):
        return UNKNOWN
    ancestor = _asked(nvml, "nvmlDeviceGetTopologyCommonAncestor", one.handle, two.handle)
    return _ANCESTORS.get(ancestor, UNKNOWN)


def _one_of(values: Iterable[object], several: str) -> object:
    """The value that all have."""
    found = set(values)
    return found.pop() if len(found) == 1 else several


def _pcie(nvml: Any, gpu: _Gpu) -> str:
    generation = _asked(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", gpu.handle)
    width = _asked(nvml, "nvmlDeviceGetMaxPcieLinkWidth", gpu.handle)
    return UNKNOWN if generation is None or width is None else f"{generation}.0 x{width}"


def _version(nvml: Any, gpu: _Gpu) -> object:
    if gpu.links == []:
        return None
    version = _asked(nvml, "nvmlDeviceGetNvLinkVersion", gpu.handle, gpu.links[0]) if gpu.links else None
    return UNKNOWN if version is None else version


def gpu_topology(nvml: Any) -> dict[str, object] | str:
    """Return how the GPUs that NVML shows are linked; ``unknown`` where it shows none.

    Keys: ``link``, of all pairs (of one GPU: the kind of its links), ``mixed`` where they differ; ``pairs``, their number by
    kind; ``nvlinks_per_gpu``, those that are up; ``nvlink_version``; ``pcie``, the most that GPU and slot can; ``peer_access``,
    whether pairs read each other's memory: ``all``, ``some``, ``none``.
    """
    try:
        nvml.nvmlInit()
        gpus = [_Gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    except Exception:  # no driver, no device: errors of NVML's own
        return UNKNOWN
    if not gpus:
        return UNKNOWN
    couples = list(combinations(gpus, 2))
    pairs = Counter(_between(nvml, one, two) for one, two in couples)
    access = [_asked(nvml, "nvmlDeviceGetP2PStatus", one.handle, two.handle, _P2P_READ) for one, two in couples]
    found: dict[str, object] = {
        "num_gpus": len(gpus), "link": _one_of(pairs or [gpu.link for gpu in gpus], "mixed"),
        "pairs": dict(sorted(pairs.items())),
        "nvlinks_per_gpu": _one_of([UNKNOWN if gpu.links is None else len(gpu.links) for gpu in gpus], "mixed"),
        "nvlink_version": _one_of([_version(nvml, gpu) for gpu in gpus], "mixed"),
        "pcie": _one_of([_pcie(nvml, gpu) for gpu in gpus], "mixed")}
    if couples:
        found["peer_access"] = UNKNOWN if None in access else _one_of(
            ["all" if status == _P2P_OK else "none" for status in access], "some")
    return found


def _listed(text: str) -> set[int]:
    """Numbers of a list of the kernel's: ``0-3,8``."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            found |= set(range(int(first), int(last or first) + 1))
    return found


def cpu_topology(cores: Iterable[int], system: Path = _SYSTEM) -> dict[str, object] | str:
    """Return NUMA nodes and last-level caches among ``cores``, and the most of them that share such a cache."""
    own = set(cores)
    try:
        nodes = [_listed(file.read_text()) & own for file in system.glob("node/node*/cpulist")]
        shared: set[frozenset[int]] = set()
        for core in own:
            levels = {int((index / "level").read_text()): _listed((index / "shared_cpu_list").read_text())
                      for index in (system / "cpu" / f"cpu{core}" / "cache").glob("index*")}
            shared.add(frozenset(levels[max(levels)] & own))
    except (OSError, ValueError):  # not told, or told in another way
        return UNKNOWN
    return {"num_numa_nodes": len([node for node in nodes if node]) or UNKNOWN, "num_last_level_caches": len(shared),
            "cores_per_last_level_cache": max(map(len, shared))}


def topology(*, is_cuda: bool) -> dict[str, object]:
    """Return links of the processor, and on a GPU those between all GPUs that the driver shows."""
    found: dict[str, object] = {"cpu": cpu_topology(os.sched_getaffinity(0))}
    if is_cuda:
        try:
            found["gpus"] = gpu_topology(import_module("pynvml"))
        except Exception:  # no package, or a library that cannot be loaded
            found["gpus"] = UNKNOWN
    return found
