"""Every profile that comes with the package, against facts typed by hand from datasheets."""

import time

import pytest

from tpplanner.domain.engine import SamplingPolicy
from tpplanner.domain.hardware import CollectiveOp
from tpplanner.domain.quantity import Provenance
from tpplanner.io.profile_check import check_profile, load_profile
from tpplanner.io.profile_engine import known_engines, load_engine
from tpplanner.io.profile_files import fold
from tpplanner.io.profile_hardware import known_hardware, load_hardware
from tpplanner.units import GIB, MIB

MACHINES = {
    "a100-sxm-40", "a100-sxm", "a100-pcie", "h100-sxm", "h100-pcie", "h100-nvl", "h200", "h20", "h20-141",
    "b200", "b300", "gb200", "gb300", "l4", "l40s", "a10g", "rtx-4090", "rtx-pro-6000", "mi300x", "mi325x",
}  # fmt: skip
ENGINES = {"vllm-0.11", "vllm", "albireo", "sglang", "trtllm", "sequential", "overlapped"}

DATASHEETS = [
    # machine, dotted field, SI value, where it is printed
    ("h100-sxm", "peak_flop_s.bf16", 989.4e12, "H100 datasheet, SXM: 1,979 TFLOPS with sparsity / 2"),
    ("h100-sxm", "peak_flop_s.fp8", 1978.9e12, "H100 datasheet, SXM: 3,958 TFLOPS with sparsity / 2"),
    ("h100-sxm", "hbm_bytes_s", 3.35e12, "H100 datasheet, SXM: 3.35 TB/s"),
    ("h100-sxm", "power.board_w", 700.0, "H100 datasheet, SXM: up to 700 W"),
    ("h100-sxm", "intra_link.bandwidth_bytes_s", 450e9, "H100 datasheet: NVLink 900 GB/s both ways / 2"),
    ("h100-pcie", "peak_flop_s.bf16", 756.5e12, "H100 datasheet, PCIe: 1,513 TFLOPS with sparsity / 2"),
    ("h100-nvl", "hbm_bytes_s", 3.9e12, "H100 datasheet, NVL: 3.9 TB/s"),
    ("h200", "hbm_bytes_s", 4.8e12, "H200 datasheet: 4.8 TB/s"),
    ("a100-sxm", "peak_flop_s.bf16", 312e12, "A100 datasheet: 312 TFLOPS dense"),
    ("a100-sxm", "peak_flop_s.int8", 624e12, "A100 datasheet: 624 TOPS dense"),
    ("a100-sxm", "hbm_bytes_s", 2.039e12, "A100 datasheet, 80 GB SXM: 2,039 GB/s"),
    ("a100-sxm", "intra_link.bandwidth_bytes_s", 300e9, "A100 datasheet: NVLink 600 GB/s both ways / 2"),
    ("a100-sxm-40", "hbm_bytes_s", 1.555e12, "A100 datasheet, 40 GB: 1,555 GB/s"),
    ("a100-pcie", "host_link.bandwidth_bytes_s", 32e9, "PCIe 4.0 x16: 64 GB/s both ways / 2"),
    ("b200", "peak_flop_s.nvfp4", 9e15, "HGX B200: 144 PFLOPS with sparsity / 8 / 2"),
    ("b200", "peak_flop_s.fp8", 4.5e15, "HGX B200: 72 PFLOPS with sparsity / 8 / 2"),
    ("gb200", "peak_flop_s.bf16", 2.5e15, "GB200 NVL72: 360 PFLOPS with sparsity / 72 / 2"),
    ("gb300", "peak_flop_s.nvfp4", 15e15, "GB300 NVL72: 1,080 PFLOPS dense / 72"),
    ("l4", "hbm_bytes_s", 300e9, "L4 datasheet: 300 GB/s"),
    ("l4", "power.board_w", 72.0, "L4 datasheet: 72 W"),
    ("l40s", "peak_flop_s.bf16", 362.05e12, "L40S datasheet: 362.05 TFLOPS dense"),
    ("l40s", "hbm_bytes", 46068 * MIB, "nvidia-smi"),
    ("mi300x", "peak_flop_s.fp8", 2614.9e12, "MI300X data sheet: 2,614.9 TFLOPS dense"),
    ("mi300x", "intra_link.bandwidth_bytes_s", 448e9, "MI300X: 7 links of 64 GB/s"),
    ("mi325x", "hbm_bytes_s", 6e12, "MI325X data sheet: 6 TB/s"),
    ("h20", "peak_flop_s.bf16", 148e12, "H20: 148 TFLOPS dense"),
]  # fmt: skip


def test_the_packaged_names_are_the_promised_ones():
    assert set(known_hardware()) >= MACHINES
    assert set(known_engines()) >= ENGINES


@pytest.mark.parametrize("name", sorted(MACHINES))
def test_machine_loads_and_is_plausible(name):
    profile = load_hardware(name)
    assert profile.name == name
    assert 20 * GIB < profile.hbm_bytes.value < 300 * GIB
    assert profile.runtime_bytes.value == pytest.approx(1.2 * GIB, rel=1e-12)
    assert profile.runtime_bytes_per_rank.value == pytest.approx(0.42 * GIB, rel=1e-12)
    doubts = [doubt for doubt in check_profile(name) if "outside" in doubt or "does not define" in doubt]
    assert not doubts


@pytest.mark.parametrize(("machine", "field", "value", "source"), DATASHEETS)
def test_datasheet_fact(machine, field, value, source):
    item = load_hardware(machine)
    for part in field.split("."):
        item = item[part] if isinstance(item, dict) else getattr(item, part)
    assert item.value == pytest.approx(value, rel=1e-12), source
    assert item.source


def test_formats_follow_the_hardware():
    assert not {"fp4", "nvfp4", "mxfp4"} & set(load_hardware("h100-sxm").peak_flop_s)
    assert not {"fp8", "nvfp4"} & set(load_hardware("a100-sxm").peak_flop_s)
    assert load_hardware("b300").peak_for("mxfp4").value == 13.5e15
    assert load_hardware("h100-sxm").peak_for("nvfp4").value == 989.4e12


def test_bridged_pairs_share_a_link_within_a_larger_node():
    nvl = load_hardware("h100-nvl")
    assert (nvl.gpus_per_node, nvl.link_domain_gpus, nvl.inter_link.name) == (8, 2, "PCIe 5.0 x16")
    assert load_hardware("h100-sxm").link_domain_gpus is None
    assert load_hardware("gb200").gpus_per_node == 72
    assert load_hardware("h100-sxm").gpus_per_node == 8


def test_class_defaults_and_their_provenance():
    expected = {"h100-sxm": (0.60, 0.88), "a100-sxm": (0.60, 0.85), "b200": (0.55, 0.75), "l4": (0.60, 0.80)}
    for name, (compute, memory) in expected.items():
        efficiency = load_hardware(name).efficiency
        assert (efficiency.gemm_compute.value, efficiency.gemm_memory.value) == (compute, memory)
        assert efficiency.gemm_compute.provenance is Provenance.DATASHEET
        assert "not measured here" in efficiency.gemm_compute.source


@pytest.mark.parametrize(
    ("name", "tp", "size_bytes", "latency_s"),
    [
        ("h200", 8, 65536 * 2, 7.9e-6),  # all-reduce table of aiconfigurator-core 0.12, h200 vLLM
        ("h100-sxm", 2, 1024 * 2, 4.5e-6),  # the same NVLink 4 fabric
        ("b200", 4, 524288 * 2, 18.4e-6),
        ("a100-sxm", 8, 33554432 * 2, 594e-6),
        ("l40s", 4, 4194304 * 2, 3322e-6),
    ],
)
def test_all_reduce_table(name, tp, size_bytes, latency_s):
    curves = {(curve.op, curve.tp): curve for curve in load_hardware(name).collectives}
    assert set(curves) == {(CollectiveOp.ALL_REDUCE, degree) for degree in (2, 4, 8)}
    curve = curves[CollectiveOp.ALL_REDUCE, tp]
    assert dict(zip(curve.size_bytes, curve.latency_s, strict=True))[size_bytes] == pytest.approx(latency_s)


@pytest.mark.parametrize("name", ["h200", "h100-sxm", "b200", "a100-sxm", "l40s"])
def test_alpha_and_bus_bandwidth_follow_from_the_table(name):
    # nccl-tests: busbw = 2 (t - 1) / t * bytes / time; here at 64 MiB, the mean over t = 2, 4, 8.
    profile = load_hardware(name)
    link = profile.intra_link
    shares = [
        2 * (c.tp - 1) / c.tp * c.size_bytes[-1] / c.latency_s[-1] / link.bandwidth_bytes_s.value
        for c in profile.collectives
    ]
    assert link.busbw_frac.value == pytest.approx(sum(shares) / 3, abs=0.006)  # written with 2 digits
    assert link.alpha_s.value == pytest.approx(sum(c.latency_s[0] for c in profile.collectives) / 3, abs=6e-8)
    assert link.alpha_s.provenance is Provenance.MEASURED


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("a100_sxm", "a100-sxm"), ("A100", "a100-sxm"), ("a100-sxm-80", "a100-sxm"),
        ("a100_pcie", "a100-pcie"), ("a100-pcie-80", "a100-pcie"), ("h100_sxm", "h100-sxm"),
        ("H100", "h100-sxm"), ("h100-sxm5", "h100-sxm"), ("h100-80gb", "h100-sxm"),
        ("h100_pcie", "h100-pcie"), ("h200_sxm", "h200"), ("H200-SXM", "h200"), ("b200_sxm", "b200"),
        ("b300_sxm", "b300"), ("rtx_pro_6000", "rtx-pro-6000"), ("rtx_pro_6000_server", "rtx-pro-6000"),
    ],
)  # fmt: skip
def test_hardware_alias(alias, name):
    assert load_hardware(alias).name == name


@pytest.mark.parametrize(
    ("alias", "name"),
    [("TPPlanner_Overlapped", "tpplanner-overlap"), ("tensorrt-llm", "trtllm")],
)
def test_engine_alias(alias, name):
    assert load_engine(alias).name == name


def test_no_name_or_alias_is_used_twice():
    for profiles in ([load_hardware(n) for n in known_hardware()], [load_engine(n) for n in known_engines()]):
        names = [fold(p.name) for p in profiles]
        names += [alias for p in profiles for alias in {fold(a) for a in p.aliases} - {fold(p.name)}]
        assert len(names) == len(set(names))


def test_engine_switches_and_defaults():
    switches = {
        name: tuple(getattr(load_engine(name).switches, s) for s in load_engine(name).switches.__slots__)
        for name in ENGINES
    }
    assert switches == {
        "vllm-0.11": (False, False, False), "vllm": (False, False, False), "albireo": (True, True, True),
        "sglang": (True, False, False), "trtllm": (True, True, False), "sequential": (False, False, False),
        "overlapped": (True, True, True),
    }  # fmt: skip
    assert load_engine("vllm-0.11").default_sampling is SamplingPolicy.FULL
    assert load_engine("vllm").default_sampling is SamplingPolicy.GREEDY
    assert load_engine("trtllm").max_num_seqs == 2048
    assert {name: load_engine(name).launcher for name in ("albireo", "sglang", "trtllm")} == {
        "albireo": "vllm", "sglang": "sglang", "trtllm": "trtllm",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_engine_loads_and_says_where_its_numbers_come_from(name):
    profile = load_engine(name)
    assert profile.name == name
    for task in (profile.schedule, profile.process_output, *profile.sampling.values()):
        assert task.fixed_s.source
        assert task.fixed_s.value < 1e-3


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_every_source_key_of_an_engine_is_defined(name):
    assert not [doubt for doubt in check_profile(name) if "does not define" in doubt]


def test_check_names_what_is_missing():
    assert any("no list price" in doubt for doubt in check_profile("l4"))
    assert load_profile("albireo").name == "albireo"
    assert load_profile("b200_sxm").name == "b200"


def test_loading_is_fast():
    def fastest(name: str) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            load_hardware(name)
            times.append(time.perf_counter() - start)
        return min(times)

    assert fastest("h100-sxm") < 0.02  # 2 to 3 ms on a quiet machine; the limit leaves room for a busy one
    assert fastest("h100") < 0.02
