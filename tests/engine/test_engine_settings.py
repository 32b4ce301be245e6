"""Models that do not fit, and settings that make no sense: one clear error before anything starts."""

import time

import pytest
from processes import LIMIT_S, config_of, edit, one_line

from tpplanner.engine.config import Delays, EngineConfig
from tpplanner.engine.engine import Engine
from tpplanner.engine.model_config import read_model
from tpplanner.errors import EngineError, ModelError, WorkloadError


def test_a_model_too_large_for_any_degree_is_refused_before_it_is_made(folder):
    edit(folder, hidden_size=65536, num_hidden_layers=1000, intermediate_size=1 << 20, num_attention_heads=512, head_dim=128)
    began_s = time.monotonic()
    with pytest.raises(ModelError, match=r"at t = 1 are [\d,]+ bytes too large .* no degree up to 32 would fit") as error:
        Engine(config_of(folder, load_format="dummy"))
    one_line(error)
    assert time.monotonic() - began_s < LIMIT_S


def test_a_degree_that_would_fit_is_named(tiny, monkeypatch):
    torch = pytest.importorskip("torch")
    from tpplanner.engine import memory

    model, device, dtype = read_model(tiny("llama")), torch.device("cuda"), torch.float32
    needed = {tp: memory.weight_bytes(model, tp, dtype, device)
              + 16 * 2 * 4 * (4 // tp) * 32 * 4 for tp in (1, 2, 4)}  # one block: k and v, 4 layers, heads of 32, 4 bytes each
    for free, told in ((needed[2], "are {} bytes too large .* t = 2 would fit"), (needed[4], "are {} bytes too .* t = 4 would")):
        monkeypatch.setattr(memory, "free_bytes", lambda device, config, free=free: free)
        with pytest.raises(ModelError, match=told.format(f"{needed[1] - free:,}")):
            memory.check_fits(model, config_of(tiny("llama")), dtype, device)
    monkeypatch.setattr(memory, "free_bytes", lambda device, config: needed[1])
    memory.check_fits(model, config_of(tiny("llama")), dtype, device)


def test_kv_blocks_that_do_not_fit_are_one_error(tiny):
    with pytest.raises((EngineError, ModelError), match=r"memory|allocate|fit") as error:
        Engine(config_of(tiny("llama"), num_kv_blocks=10**10))
    one_line(error)


@pytest.mark.parametrize(("settings", "told"), [
    ({"tp": 0}, "tp must be between 1"),
    ({"tp": 1.0}, "tp must be an integer"),
    ({"tp": True}, "tp must be an integer"),
    ({"device": "tpu"}, "device must be one of auto, cpu, cuda, got 'tpu'"),
    ({"dtype": "int8"}, "dtype must be one of"),
    ({"load_format": "pt"}, "load_format must be one of"),
    ({"num_kv_blocks": 0}, "num_kv_blocks must be between 1"),
    ({"kv_cache_bytes": -1}, "kv_cache_bytes must be between 1"),
    ({"kv_block_size_tok": 0}, "kv_block_size_tok must be between 1"),
    ({"max_num_seqs": 0}, "max_num_seqs must be between 1"),
    ({"max_num_batched_tokens": "many"}, "max_num_batched_tokens must be an integer"),
    ({"max_num_seqs": 64, "max_num_batched_tokens": 63}, "max_num_batched_tokens must be >= max_num_seqs 64, got 63"),
    ({"max_context_tok": 0}, "max_context_tok must be between 1"),
    ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization must be between 0.01 and 1"),
    ({"gpu_memory_utilization": float("nan")}, "gpu_memory_utilization must be a finite number"),
    ({"num_threads": 0}, "num_threads must be between 1"),
    ({"seed": -1}, "seed must be between 0"),
    ({"preemption": "swap"}, "preemption must be a Preemption"),
    ({"switches": None}, "switches must be Switches"),
])
def test_settings_that_make_no_sense_are_refused_before_anything_starts(settings, told):
    with pytest.raises(WorkloadError, match=told) as error:
        EngineConfig(**({"model": "anywhere"} | settings))
    assert one_line(error).startswith("engine: ")


@pytest.mark.parametrize("value", [-1.0, float("nan"), 61.0, "1"])
def test_delays_that_make_no_sense_are_refused(value):
    with pytest.raises(WorkloadError, match="schedule_s must be"):
        Delays(schedule_s=value)


def test_a_device_that_is_not_there_is_one_error(tiny):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(Exception, match="--device cuda: this machine has no CUDA device") as error:
        Engine(config_of(tiny("llama"), device="cuda"))
    one_line(error)
