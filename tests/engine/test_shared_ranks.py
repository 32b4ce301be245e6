"""Collectives through shared memory: the same as sums and rows computed in one place, in pieces too, over and over."""

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tpplanner.engine.shared_ranks import LEAST_SLOT_BYTES, can_share

pytestmark = pytest.mark.skipif(not can_share("file:///tmp/x/store"), reason="ranks share memory on x86 Linux only")

RANK = """
import sys, torch
from tpplanner.engine.shared_ranks import SharedRanks

rank, tp, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
vocab = 50
width = -(-vocab // tp)
ranks = SharedRanks(rank, tp, vocab)
ranks.connect(torch.device("cpu"), store)

def of(rank, *shape, seed):
    return torch.randint(-1000, 1000, shape, generator=torch.Generator().manual_seed(seed * 100 + rank)).float()

for turn in range(60):
    # Whole numbers: sums are exact in any order. Every 20th time a message of several pieces.
    large = turn % 20 == 0
    size = (7, 100_000) if large else (turn % 5 + 1, 33)
    total = sum(of(r, *size, seed=turn) for r in range(tp))
    assert torch.equal(ranks.all_reduce(of(rank, *size, seed=turn)), total)

    rows = tp * (20_000 if large else turn % 4 + 1)
    whole = torch.cat([of(r, rows, width, seed=turn) for r in range(tp)], dim=1)[:, :vocab]
    own = of(rank, rows, width, seed=turn)
    gathered = ranks.gather_rows(own.clone())
    assert (gathered is None) == (rank > 0)
    assert gathered is None or torch.equal(gathered, whole)
    each = rows // tp
    assert torch.equal(ranks.scatter_rows(own), whole[rank * each:(rank + 1) * each])

    ids = torch.arange(each) + 1000 * rank
    assert torch.equal(ranks.gather_ids(ids.clone()), torch.cat([torch.arange(each) + 1000 * r for r in range(tp)]))
    assert torch.equal(ranks.tell(ids.clone()), torch.arange(each))
"""


@pytest.mark.parametrize("tp", [2, 3])
def test_collectives_are_what_one_process_computes(tmp_path, tp):
    assert 2 * LEAST_SLOT_BYTES < 7 * 100_000 * 4
    folder = tmp_path / f"tpplanner-test-{uuid.uuid4().hex}"
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tp), f"file://{folder}/store"], stderr=subprocess.PIPE,
                              text=True) for rank in range(tp)]
    try:
        told = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [(rank.returncode, words) for rank, words in zip(ranks, told, strict=True)] == [(0, "")] * tp
    assert not Path("/dev/shm", folder.name).exists()


@pytest.mark.parametrize(("store", "expected"), [("env://", False), ("tcp://host:1", False), ("file:///tmp/x/store", True)])
def test_only_processes_of_one_machine_share(store, expected):
    assert can_share(store) is expected
