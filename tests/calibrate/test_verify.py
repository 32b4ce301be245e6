"""What verify runs and predicts: shapes as the engine cuts them, KV blocks as it counts them, how long a run is."""

import json
from dataclasses import replace

import pytest
import torch
from sample_folder import NAME

from tpplanner.api.calibration_cases import (
    Asked,
    Case,
    Limits,
    Machine,
    groups,
    limits_of,
    num_requests,
    padded,
    predict,
    predicted_blocks,
)
from tpplanner.api.calibration_verify import engine_config, tiny_model
from tpplanner.domain.hardware import Contention
from tpplanner.domain.quantity import Provenance, Quantity
from tpplanner.engine.config import EngineConfig
from tpplanner.engine.memory import num_kv_blocks
from tpplanner.engine.model_config import read_model
from tpplanner.engine.partition import partition
from tpplanner.errors import WorkloadError
from tpplanner.io.fitted_files import read_fitted
from tpplanner.io.model_config import load_model

HEADS = [(9, 3, 1536), (8, 4, 704), (14, 2, 4864), (12, 1, 1000), (6, 6, 100)]


@pytest.fixture
def machine(fitted_root):
    return Machine(fitted_root / NAME, read_fitted(fitted_root / NAME / "fitted-tpplanner.json"))


@pytest.fixture
def small(tmp_path):
    folder = tiny_model(tmp_path / "small")
    return folder, load_model(folder, dtype="fp32")


def shaped(folder, num_heads, num_kv_heads, width):
    tiny_model(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {
        "num_attention_heads": num_heads, "num_key_value_heads": num_kv_heads, "intermediate_size": width}))
    return str(folder)


def test_heads_are_padded_as_the_engine_pads_them():
    model = load_model("HuggingFaceTB/SmolLM2-135M-Instruct")  # 9 query and 3 KV heads, 3 to a group
    heads = [(a.num_heads, a.num_kv_heads) for a in (padded(model, tp).layer_groups[0].attention for tp in (1, 2, 3, 4, 6))]
    # Six ranks have two copies of each KV head, and two of the three query heads of its group each.
    assert heads == [(9, 3), (12, 4), (9, 3), (12, 4), (12, 3)]


@pytest.mark.parametrize("tp", range(1, 17))
@pytest.mark.parametrize("heads", HEADS)
def test_a_padded_model_is_what_the_ranks_of_the_engine_hold(tmp_path, heads, tp):
    folder = shaped(tmp_path / "model", *heads)
    part, [group] = partition(read_model(folder), 0, tp), padded(load_model(folder, dtype="fp32"), tp).layer_groups
    assert len(part.heads) * tp == group.attention.num_heads
    assert len(part.kv_heads) == max(group.attention.num_kv_heads // tp, 1)
    assert part.num_columns * tp == group.mlp.intermediate_size


@pytest.mark.parametrize("tp", range(1, 9))
@pytest.mark.parametrize("heads", HEADS)
def test_as_many_blocks_are_predicted_as_the_engine_makes(tmp_path, machine, heads, tp):
    folder = shaped(tmp_path / "model", *heads)
    spec = load_model(folder, dtype="fp32")
    case = Case(model=folder, tp=tp, loop="overlap", num_seqs=8)
    limits = limits_of(machine, spec, [case])
    assert predicted_blocks(spec, 1, limits.kv_cache_bytes) == 8 * (6 + 2)
    made = num_kv_blocks(read_model(folder), engine_config(machine, case, limits), torch.float32, torch.device("cpu"))
    assert predicted_blocks(spec, tp, limits.kv_cache_bytes) == made
    assert made >= 8 * 6  # every sequence of 96 tokens has room


def test_on_a_gpu_the_memory_decides(machine, small):
    folder, spec = small
    on_gpu = Machine.__new__(Machine)
    on_gpu.__dict__ |= machine.__dict__ | {"device": "cuda"}
    limits = limits_of(on_gpu, spec, [Case(model=folder, tp=1, loop="overlap", num_seqs=8)])
    assert limits.kv_cache_bytes is None
    config = engine_config(on_gpu, Case(model=folder, tp=1, loop="overlap", num_seqs=8), limits)
    assert (config.num_kv_blocks, config.kv_cache_bytes, config.device, config.dtype) == (None, None, "cuda", "bfloat16")
    # 16 GiB hold more than eight sequences of the model's 4,096 tokens, which is all that the engine takes.
    predicted, _ = predict(on_gpu, spec, Case(model=folder, tp=1, loop="overlap", num_seqs=8), limits)
    assert predicted["num_kv_blocks"] == 8 * 4096 / 16


@pytest.mark.parametrize("num_seqs", [1, 7, 32, 5000])
@pytest.mark.parametrize("rate_req_s", [0.01, 1.0, 40.0, 1e5])
def test_a_run_lasts_a_while_gives_every_client_as_much_and_has_an_end(num_seqs, rate_req_s):
    count = num_requests(rate_req_s, num_seqs)
    assert count % num_seqs == 0
    assert num_seqs <= count <= max(4096, num_seqs)
    assert count >= min(1.5 * rate_req_s, 4096 - num_seqs)


def test_slow_and_fast_cases_get_their_number_of_requests(machine, small):
    folder, spec = small
    for num_seqs in (1, 8):
        case = Case(model=folder, tp=1, loop="sequential", num_seqs=num_seqs)
        limits = Limits(max_num_seqs=8, max_context_tok=1024, kv_cache_bytes=10**8)
        predicted, count = predict(machine, spec, case, limits)
        assert count == num_requests(predicted["throughput_tok_s"] / 32, num_seqs)


def test_the_cases_of_a_model(machine, small):
    folder, spec = small
    asked = Asked(models=(folder,), degrees=(1, 2), batches=(1, 32, 8), lengths=((64, 32), (128, 16)), emulated=(4,))
    every = list(groups(machine, folder, spec, asked))
    # Three degrees in two loops, each an engine of its own for its six loads; at the first degree also one with injected time.
    assert [len(g.cases) for g in every] == [7] * 2 + [6] * 4
    for group in every:
        assert len({(c.tp, c.loop, c.emulated) for c in group.cases}) == 1
        assert group.limits == every[0].limits
    assert {(c.tp, c.emulated) for g in every for c in g.cases} == {(1, False), (2, False), (4, True)}
    first, second = (g.cases[-1] for g in every[:2])
    assert [c for g in every for c in g.cases if c.injected_s] == [first, second]
    assert (first.tp, first.num_seqs, first.isl_tok, first.osl_tok) == (1, 8, 64, 32)
    assert first.injected_s == second.injected_s > 0
    assert {first.loop, second.loop} == {"sequential", "overlap"}
    forward_s = predict(machine, spec, replace(first, injected_s=0.0), every[0].limits)[0]["forward_s"]
    assert first.injected_s == pytest.approx(forward_s / 4)


@pytest.mark.parametrize(("given", "told"), [
    ({"degrees": ()}, "hold at least one each"), ({"batches": ()}, "hold at least one each"),
    ({"lengths": ()}, "hold at least one each"), ({"lengths": ((64, 3),)}, "an output of 4 tokens or more"),
    ({"emulated": (1,)}, "--emulate-tp must be 2 or more")])
def test_what_makes_no_sense_is_refused(given, told):
    with pytest.raises(WorkloadError, match=told):
        Asked(**({"models": (), "degrees": (1,), "batches": (8,)} | given))


def test_idle_gpus_of_the_machine_are_counted_into_a_tokens_energy(machine, small):
    folder, spec = small
    case, limits = Case(model=folder, tp=1, loop="overlap", num_seqs=8), Limits(
        max_num_seqs=8, max_context_tok=1024, kv_cache_bytes=10**8)
    alone, _ = predict(machine, spec, case, limits)
    machine.num_gpus = 8
    among, _ = predict(machine, spec, case, limits)
    idle_w = machine.hardware.power.idle_w.value
    assert among["energy_j_per_tok"] - alone["energy_j_per_tok"] == pytest.approx(7 * idle_w / alone["throughput_tok_s"])


def test_one_emulated_rank_draws_its_share_and_has_the_memory_for_itself(machine, small):
    folder, spec = small
    limits = Limits(max_num_seqs=8, max_context_tok=1024, kv_cache_bytes=10**8)
    real = Case(model=folder, tp=2, loop="overlap", num_seqs=8)
    together, alone = (predict(machine, spec, case, limits)[0] for case in (real, replace(real, emulated=True)))
    assert alone["energy_j_per_tok"] == pytest.approx(together["energy_j_per_tok"] / 2)
    assert alone["step_s"] == together["step_s"]
    half = Quantity(value=0.5, unit="1", provenance=Provenance.MEASURED, source="by hand")
    machine.hardware = replace(machine.hardware, contention=(Contention(num_busy=2, compute_frac=half, memory_frac=half),))
    slower, same = (predict(machine, spec, case, limits)[0] for case in (real, replace(real, emulated=True)))
    assert slower["step_s"] > 1.1 * together["step_s"]
    assert same["step_s"] == alone["step_s"]


def test_an_emulated_case_runs_one_process_with_made_up_weights(machine, small):
    folder, spec = small
    case = Case(model=folder, tp=4, loop="overlap", num_seqs=8, emulated=True)
    config = engine_config(machine, case, limits_of(machine, spec, [case]))
    assert (config.tp, config.emulate.tp, config.load_format) == (1, 4, "dummy")
    assert isinstance(config, EngineConfig)
