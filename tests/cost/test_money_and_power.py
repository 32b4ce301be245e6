import pytest
from builders import q, round_hardware

from tpplanner.cost.amdahl import best_degree, rule_of_thumb_degree, speedup
from tpplanner.cost.energy import cost_usd_per_mtok, energy_j_per_tok, gpu_power_w
from tpplanner.cost.preemption import evictions_per_request, swap_s
from tpplanner.domain.hardware import Link

EXACT = 1e-12


@pytest.mark.parametrize(("busy", "mbu", "mfu", "expected"), [
    (1.0, 0.5, 0.25, 375.0),  # 100 + 500 * (0.2 + 0.4 * 0.5 + 0.6 * 0.25)
    (0.0, 0.0, 0.0, 100.0),  # idle
    (1.0, 1.0, 1.0, 600.0),  # 1.2 is capped at the board's limit
])
def test_power_by_hand(busy, mbu, mfu, expected):
    power = gpu_power_w(round_hardware().power, busy_frac=busy, mbu_frac=mbu, mfu_frac=mfu)
    assert power == pytest.approx(expected, rel=EXACT)


def test_energy_and_cost_by_hand():
    # 3,000 W at 1,500 tok/s.
    assert energy_j_per_tok(power_w=3000.0, throughput_tok_s=1500.0) == pytest.approx(2.0, rel=EXACT)
    # 6 GPUs at 3 USD/h for 5,000 tok/s: 18 USD buy 18 million tokens.
    assert cost_usd_per_mtok(num_gpus=6, price_usd_h=3.0, throughput_tok_s=5000.0) == pytest.approx(1.0, rel=EXACT)


@pytest.mark.parametrize(("isl", "osl", "waiting", "expected"), [
    (100, 250, 50, 2), (100, 250, 1, 1), (100, 250, 0, 0), (100, 50, 50, 0), (100, 100, 50, 0.5), (100, 40, 50, 0),
])
def test_evictions_by_hand(isl, osl, waiting, expected):
    # O / I - 1/2, but no more than wait.
    assert evictions_per_request(isl_tok=isl, osl_tok=osl, num_waiting=waiting) == expected


def test_swap_by_hand():
    # 2 GB over 80 % of 25 GB/s.
    link = Link(name="PCIe", bandwidth_bytes_s=q(25e9, "bytes/s"), alpha_s=q(1e-6, "s"), busbw_frac=q(0.8))
    assert swap_s(swap_bytes=2e9, link=link) == pytest.approx(0.1, rel=EXACT)


def test_amdahl_by_hand():
    # P = 0.8, t = 4: 1 / (0.2 + 0.2) = 2.5; nothing parallel: 1; everything: t.
    assert speedup(tp=4, parallel_frac=0.8) == pytest.approx(2.5, rel=EXACT)
    assert speedup(tp=4, parallel_frac=0.0) == pytest.approx(1.0, rel=EXACT)
    assert speedup(tp=4, parallel_frac=1.0) == pytest.approx(4.0, rel=EXACT)


def test_best_degree_counts_whole_replicas():
    # 6 GPUs: 6 x 10 = 60, 3 x 19 = 57, 1 x 61 with two GPUs left over; 8 does not fit.
    assert best_degree({1: 10.0, 2: 19.0, 4: 61.0, 8: 1000.0}, 6) == 4
    # A tie at 60: the smaller degree.
    assert best_degree({1: 10.0, 2: 20.0}, 6) == 1
    with pytest.raises(ValueError, match="no degree fits into 2 GPUs"):
        best_degree({4: 1.0}, 2)


@pytest.mark.parametrize(("weights", "expected"), [
    (20e9, 1),  # 4 * 20 / 80 = 1 exactly
    (20.1e9, 2), (40e9, 2), (1e9, 1), (160e9, 8), (161e9, 16),
])
def test_rule_of_thumb_by_hand(weights, expected):
    assert rule_of_thumb_degree(weight_bytes=weights, hbm_bytes=80e9) == expected
