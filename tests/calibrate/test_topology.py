"""How devices are linked, from what the driver and the system say; what they do not say is unknown, never an error."""

import os
import socket
from types import SimpleNamespace

import msgspec
import pytest
import torch

from calibrate.machine import machine_facts
from calibrate.samples import SampleLog
from calibrate.topology import UNKNOWN, cpu_topology, gpu_topology, topology
from tpplanner.errors import OutputError


class NvmlError(Exception):
    def __init__(self, value):
        super().__init__(value)
        self.value = value


class Library:
    """Answers as NVML does; ``links`` of each GPU are (kind of device, bus), a kind of ``None`` is not told."""

    def __init__(self, links, *, ancestor=50, p2p=0, lacks=()):
        self._links, self._ancestor, self._p2p, self._lacks = links, ancestor, p2p, lacks

    def __getattribute__(self, name):
        if name in object.__getattribute__(self, "_lacks"):
            raise AttributeError(name)
        return object.__getattribute__(self, name)

    def nvmlInit(self):
        pass

    def nvmlDeviceGetCount(self):
        return len(self._links)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetPciInfo(self, handle):
        return SimpleNamespace(domain=0, bus=handle + 1, device=0)

    def nvmlDeviceGetNvLinkState(self, handle, link):
        if not self._links[handle]:
            raise NvmlError(3)
        if link >= len(self._links[handle]):
            raise NvmlError(2)
        return 1

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle, link):
        kind = self._links[handle][link][0]
        if kind is None:
            raise NvmlError(13)
        return kind

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle, link):
        return SimpleNamespace(domain=0, bus=self._links[handle][link][1], device=0)

    def nvmlDeviceGetNvLinkVersion(self, handle, link):
        return 4

    def nvmlDeviceGetTopologyCommonAncestor(self, one, two):
        return self._ancestor

    def nvmlDeviceGetP2PStatus(self, one, two, index):
        return self._p2p

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle):
        return 5

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle):
        return 16


SWITCH, GPU = 2, 0


def test_eight_gpus_behind_switches():
    found = gpu_topology(Library([[(SWITCH, 100)] * 18] * 8))
    assert found == {"num_gpus": 8, "link": "NVSwitch", "pairs": {"NVSwitch": 28}, "nvlinks_per_gpu": 18, "nvlink_version": 4,
                     "pcie": "5.0 x16", "peer_access": "all"}


def test_bridged_pairs_are_mixed():
    # GPUs 0 and 1 have buses 1 and 2, GPUs 2 and 3 have 3 and 4.
    found = gpu_topology(Library([[(GPU, 2)], [(GPU, 1)], [(GPU, 4)], [(GPU, 3)]], ancestor=20))
    assert (found["link"], found["pairs"]) == ("mixed", {"NVLink": 2, "PCIe, several switches": 4})


def test_pcie_across_sockets_without_peer_access():
    found = gpu_topology(Library([[], []], p2p=1))
    assert (found["link"], found["nvlinks_per_gpu"], found["nvlink_version"], found["peer_access"]) == (
        "PCIe, across sockets", 0, None, "none")


@pytest.mark.parametrize(("links", "link"), [([[(SWITCH, 9)]], "NVSwitch"), ([[(GPU, 9)]], "NVLink"), ([[]], "PCIe"),
                                             ([[(None, 9)]], UNKNOWN)])
def test_one_gpu_says_where_its_own_links_go(links, link):
    found = gpu_topology(Library(links))
    assert (found["num_gpus"], found["link"], found["pairs"]) == (1, link, {})
    assert "peer_access" not in found


def test_a_driver_that_does_not_tell_gpus_from_switches_still_tells_its_neighbours():
    assert gpu_topology(Library([[(None, 2)], [(None, 1)]]))["link"] == "NVLink"
    assert gpu_topology(Library([[(None, 100)], [(None, 100)]]))["link"] == UNKNOWN


ALL = tuple(name for name in dir(Library) if name.startswith("nvml"))


@pytest.mark.parametrize("missing", ALL)
def test_a_missing_call_is_unknown_and_no_error(missing):
    found = gpu_topology(Library([[(SWITCH, 100)], [(SWITCH, 100)]], lacks=(missing,)))
    expected = {"nvmlInit": UNKNOWN, "nvmlDeviceGetCount": UNKNOWN, "nvmlDeviceGetHandleByIndex": UNKNOWN}
    if missing in expected:
        assert found == UNKNOWN
    elif missing in ("nvmlDeviceGetNvLinkState", "nvmlDeviceGetNvLinkRemoteDeviceType"):
        assert found["link"] == UNKNOWN
    else:
        assert found["link"] == "NVSwitch"
    unknown = {"nvmlDeviceGetP2PStatus": "peer_access", "nvmlDeviceGetMaxPcieLinkWidth": "pcie",
               "nvmlDeviceGetMaxPcieLinkGeneration": "pcie", "nvmlDeviceGetNvLinkVersion": "nvlink_version"}
    if missing in unknown:
        assert found[unknown[missing]] == UNKNOWN


def test_every_call_missing_and_no_gpu():
    assert gpu_topology(Library([[]], lacks=ALL)) == UNKNOWN
    assert gpu_topology(Library([])) == UNKNOWN


def system(folder, nodes, caches):
    """Make what the kernel shows: CPUs of each node, and of each group of cores their caches."""
    for number, cpus in enumerate(nodes):
        (folder / "node" / f"node{number}").mkdir(parents=True)
        (folder / "node" / f"node{number}" / "cpulist").write_text(f"{cpus}\n")
    for core, (level, shared) in caches.items():
        for index, (one, text) in enumerate([(1, str(core)), (level, shared)]):
            place = folder / "cpu" / f"cpu{core}" / "cache" / f"index{index}"
            place.mkdir(parents=True)
            (place / "level").write_text(f"{one}\n")
            (place / "shared_cpu_list").write_text(f"{text}\n")
    return folder


def test_two_sockets_of_which_a_part_is_ours(tmp_path):
    groups = {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3", 4: "4,5", 5: "4,5"}
    place = system(tmp_path, ["0-3", "4-5"], {core: (3, text) for core, text in groups.items()})
    assert cpu_topology(range(6), place) == {"num_numa_nodes": 2, "num_last_level_caches": 3, "cores_per_last_level_cache": 2}
    assert cpu_topology([0, 2, 3], place) == {"num_numa_nodes": 1, "num_last_level_caches": 2, "cores_per_last_level_cache": 2}


def test_a_system_that_does_not_say(tmp_path):
    assert cpu_topology([0], tmp_path) == UNKNOWN
    assert cpu_topology([0], system(tmp_path / "a", ["0"], {0: ("three", "0")})) == UNKNOWN


def test_facts_hold_the_topology_and_no_name():
    facts = machine_facts(torch.device("cpu"), num_threads=1)
    assert facts["topology"] == topology(is_cuda=False)
    assert set(facts["topology"]) == {"cpu"}
    assert socket.gethostname() not in str(facts)
    cpu = facts["topology"]["cpu"]
    if cpu != UNKNOWN:
        assert 1 <= cpu["cores_per_last_level_cache"] <= len(os.sched_getaffinity(0))


def test_without_a_driver_the_links_of_gpus_are_unknown(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert topology(is_cuda=True)["gpus"] == UNKNOWN


def test_a_folder_of_before_still_resumes_and_one_that_differs_does_not(tmp_path):
    facts = machine_facts(torch.device("cpu"), num_threads=1)
    old = {name: value for name, value in facts.items() if name != "topology"}
    (tmp_path / "machine.json").write_bytes(msgspec.json.encode(old))
    assert SampleLog(tmp_path, facts).done("gemm") == set()
    SampleLog(tmp_path / "new", facts)
    with pytest.raises(OutputError, match=r"\(topology differ\)"):
        SampleLog(tmp_path / "new", facts | {"topology": {"cpu": UNKNOWN}})
