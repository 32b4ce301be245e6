"""Ranks that torchrun starts say what ranks that the engine starts say."""

import os
import subprocess
import sys

import pytest

from tpplanner.engine.config import EngineConfig
from tpplanner.engine.engine import Engine
from tpplanner.engine.sampling_params import SamplingParams

PROMPT = "The scheduler admits a request"


def torchrun(folder, *, ranks, tp):
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--rdzv-backend", "c10d",
         "--rdzv-endpoint", "127.0.0.1:0", "-m", "tpplanner", "engine", "generate", "--model", str(folder), "--tp", str(tp),
         "--prompt", PROMPT, "--max-tokens", "16", "--ignore-eos", "--num-kv-blocks", "16"],
        capture_output=True, text=True, timeout=120, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_the_same_tokens_under_torchrun(tiny):
    with Engine(EngineConfig(model=str(tiny("llama")), tp=2, num_kv_blocks=16, num_threads=1)) as running:
        [expected] = running.generate([PROMPT], SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True))
    done = torchrun(tiny("llama"), ranks=2, tp=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected.text + "\n"


@pytest.mark.slow
def test_another_number_of_ranks_is_one_error(tiny):
    done = torchrun(tiny("llama"), ranks=2, tp=1)
    assert done.returncode == 1
    assert "tpplanner: error: engine: torchrun started 2 ranks, --tp is 1" in done.stderr
