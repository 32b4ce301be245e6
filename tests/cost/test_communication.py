import numpy as np
import pytest
from builders import curve, round_hardware, tiny_model

from tpplanner.cost.communication import alpha_beta_s, collective_s, communication_s, curve_s, wire_frac
from tpplanner.cost.work import work_of
from tpplanner.domain.hardware import CollectiveOp

EXACT = 1e-12
HARDWARE = round_hardware()  # 4 GPUs per node; 75 GB/s and 10 us inside, 20 GB/s and 20 us between
REDUCE, GATHER, EXCHANGE = CollectiveOp.ALL_REDUCE, CollectiveOp.ALL_GATHER, CollectiveOp.ALL_TO_ALL


@pytest.mark.parametrize(("op", "tp", "expected"), [
    (REDUCE, 2, 1.0), (REDUCE, 8, 1.75), (GATHER, 2, 0.5), (GATHER, 8, 0.875),
    (EXCHANGE, 2, 0.25), (EXCHANGE, 8, 0.109375),  # 7/8 of an eighth
    (REDUCE, 1, 0.0), (GATHER, 1, 0.0), (EXCHANGE, 1, 0.0),
])
def test_bytes_on_the_wire(op, tp, expected):
    assert wire_frac(op, tp) == pytest.approx(expected, rel=EXACT)


def test_alpha_beta_by_hand():
    # 1 MB over 4 ranks: 10 us + 1.5 MB / 75 GB/s = 30 us.
    assert alpha_beta_s(HARDWARE.intra_link, REDUCE, tp=4, size_bytes=1e6) == pytest.approx(30e-6, rel=EXACT)


@pytest.mark.parametrize(("size", "expected"), [
    (100.0, 10e-6),  # below the samples: the latency stays
    (1e3, 10e-6), (16e3, 40e-6),  # the samples
    (4e3, 20e-6),  # half-way in the logarithms: sqrt(10 * 40)
    (64e3, 160e-6),  # beyond: four times the size, four times the time
])
def test_measured_curve(size, expected):
    assert curve_s(curve(), size) == pytest.approx(expected, rel=EXACT)


def test_a_curve_wins_only_at_its_own_operation_and_degree():
    hardware = round_hardware(curves=(curve(tp=4),))
    tps = np.array([1.0, 2.0, 4.0])
    # 4,000 bytes: nothing; 10 us + 4,000 / 75e9; the curve's 20 us.
    np.testing.assert_allclose(collective_s(hardware, REDUCE, tp=tps, size_bytes=4e3),
                               [0.0, 10e-6 + 4e3 / 75e9, 20e-6], rtol=EXACT)
    # A gather has no curve: 10 us + 3,000 / 75e9.
    assert collective_s(hardware, GATHER, tp=4, size_bytes=4e3) == pytest.approx(10e-6 + 3e3 / 75e9, rel=EXACT)


def test_two_levels_by_hand():
    # t = 8 on nodes of 4: 30 us inside, then 2 nodes and 250 kB: 20 us + 250e3 / 20e9 = 32.5 us.
    assert collective_s(HARDWARE, REDUCE, tp=8, size_bytes=1e6) == pytest.approx(62.5e-6, rel=EXACT)
    # Beside a degree that fits a node, in one array.
    np.testing.assert_allclose(collective_s(HARDWARE, REDUCE, tp=np.array([4.0, 8.0]), size_bytes=1e6),
                               [30e-6, 62.5e-6], rtol=EXACT)


@pytest.mark.parametrize(("split", "logits_s"), [
    (False, 13.2e-6),  # 5 rows * 32,000 * 2 bytes = 320 kB: 10 us + 240 kB / 75 GB/s
    (True, 10.8e-6),  # 3/16 of it: 10 us + 60 kB / 75 GB/s
])
def test_communication_of_a_step_by_hand(split, logits_s):
    # 10 rows of 2,048 bytes, t = 4: 10 us + 1.5 * 20,480 / 75e9 = 10.4096 us, twice in each of two layers.
    time = communication_s(work_of(tiny_model()), HARDWARE, tp=4, num_tok=10, num_sampled=5,
                           seq_parallel_sampling=split)
    assert time == pytest.approx(4 * 10.4096e-6 + logits_s, rel=EXACT)
