from dataclasses import replace

import numpy as np
import pytest
from builders import round_engine, task

from tpplanner.cost.host import task_s
from tpplanner.cost.overlap import hidden_s
from tpplanner.cost.sampling import sampling_s
from tpplanner.domain.engine import Switches

EXACT = 1e-12


def test_host_task_by_hand():
    t2 = round_engine().prepare_input
    # 2 ms + (0.5 ms + 5 us * 10) * log2 8 = 2 ms + 1.65 ms; nothing is broadcast at t = 1.
    assert task_s(t2, tp=8, num_seqs=10) == pytest.approx(3.65e-3, rel=EXACT)
    assert task_s(t2, tp=1, num_seqs=10) == pytest.approx(2e-3, rel=EXACT)
    # t = 3: log2 3 = 1.584962500721156.
    assert task_s(t2, tp=3, num_seqs=10) == pytest.approx(2e-3 + 0.55e-3 * 1.584962500721156, rel=EXACT)
    # T1: 1 ms + 10 us * 10 at any degree.
    assert task_s(round_engine().schedule, tp=8, num_seqs=10) == pytest.approx(1.1e-3, rel=EXACT)


@pytest.mark.parametrize(("tp", "rows", "split", "expected"), [
    (4, 12, False, 460e-6),  # 100 us + 12 * 30 us on one rank
    (4, 12, True, 190e-6),  # 3 rows per rank
    (1, 12, True, 460e-6),  # t = 1: nothing to split
    (4, 2, True, 130e-6),  # padded to one row per rank
    (4, 0.5, True, 115e-6),  # a mean of half a row stays half a row
    (4, 0, False, 0.0),  # no rows, no sampling
])
def test_sampling_by_hand(tp, rows, split, expected):
    t4 = task(100e-6, 30e-6)
    assert sampling_s(t4, tp=tp, num_sampled=rows, seq_parallel=split) == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize(("on", "feedback", "tp", "device_s", "expected"), [
    (False, False, 4, 20e-3, 0.0),
    (True, False, 4, 20e-3, 5e-3),  # T1 3 ms + T5 2 ms
    (True, True, 4, 20e-3, 9e-3),  # and T2 4 ms
    (True, True, 1, 20e-3, 5e-3),  # which is not broadcast at t = 1
    (True, True, 4, 6e-3, 6e-3),  # never more than the device gives
])
def test_hidden_by_hand(on, feedback, tp, device_s, expected):
    switches = Switches(async_sched=on, early_feedback=feedback)
    hidden = hidden_s(switches, tp=tp, schedule_s=3e-3, prepare_input_s=4e-3, process_output_s=2e-3, device_s=device_s)
    assert hidden == pytest.approx(expected, rel=EXACT)


def test_hidden_in_arrays():
    hidden = hidden_s(Switches(async_sched=True, early_feedback=True), tp=np.array([1.0, 2.0]), schedule_s=3e-3,
                      prepare_input_s=4e-3, process_output_s=2e-3, device_s=20e-3)
    np.testing.assert_allclose(hidden, [5e-3, 9e-3], rtol=EXACT)


def test_sampling_over_a_vocabulary_by_hand():
    # 10 us + 4 rows of (2 us + 50,000 * 0.1 ns = 5 us).
    t4 = task(10e-6, 2e-6)
    t4 = replace(t4, per_seq_per_vocab_tok_s=replace(t4.per_seq_s, value=1e-10))
    assert sampling_s(t4, tp=1, num_sampled=4, seq_parallel=False, vocab_size=50_000) == pytest.approx(38e-6, rel=EXACT)
