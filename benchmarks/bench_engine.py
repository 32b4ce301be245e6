"""The engine against itself and against Hugging Face generate, as ratios in one run.

    python benchmarks/bench_engine.py [overlap] [sampling] [decode] [--rounds N]

overlap: sequential and overlapped loop in turn, with sleeps in T1, T2 and T5 of a quarter of the forward; the share of host
time that is hidden, and the gain in throughput beside what the cost model predicts from the sequential run alone.
sampling: T4 at t = 2 with all penalties on 32 rows, on one rank against divided over both.
decode: tokens per second of SmolLM2-135M at batch 8 and 32 on one thread against transformers' generate.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "engine"))

from tpplanner.api.engine_bench import EngineRun, engine_bench, task_times
from tpplanner.cost.overlap import hidden_s
from tpplanner.domain.engine import Switches
from tpplanner.engine.config import Delays, EngineConfig
from tpplanner.engine.sampling_params import SamplingParams

ALL_ON = Switches(async_sched=True, early_feedback=True, seq_parallel_sampling=True)
FULL = SamplingParams(temperature=0.8, top_k=50, top_p=0.9, min_p=0.01, repetition_penalty=1.1, presence_penalty=0.5,
                      frequency_penalty=0.2)
SMALL = {"architectures": ["LlamaForCausalLM"], "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8,
         "num_key_value_heads": 4, "intermediate_size": 1536, "vocab_size": 4096, "max_position_embeddings": 2048,
         "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "eos_token_id": 2, "torch_dtype": "float32", "hidden_act": "silu"}


def dummy(folder: Path, **changes: object) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SMALL | changes))
    return str(folder)


def run(model: str, *, batch: int, osl: int, switches: Switches, delays: Delays | None = None, tp: int = 1,
        params: SamplingParams | None = None) -> EngineRun:
    config = EngineConfig(model=model, tp=tp, load_format="dummy", switches=switches, delays=delays or Delays(),
                          max_num_seqs=batch, num_kv_blocks=batch * 16, num_threads=1, dtype="float32")
    return engine_bench(config, {"isl": 32, "osl": osl, "num_requests": batch}, concurrency=batch, params=params)


def full_batch(result: EngineRun, batch: int):
    times = task_times(result.steps, num_decode_seqs=batch)
    assert times is not None, "no step with a full batch"
    return times


def overlap(rounds: int, folder: Path) -> None:
    model, batch = dummy(folder / "overlap"), 8
    forward_s = full_batch(run(model, batch=batch, osl=64, switches=Switches()), batch).forward_s
    third = 0.25 * forward_s / 3
    delays = Delays(schedule_s=third, prepare_input_s=third, process_output_s=third)
    hidden, gains, predicted = [], [], []
    for _ in range(rounds):
        one = full_batch(run(model, batch=batch, osl=128, switches=Switches(), delays=delays), batch)
        two = full_batch(run(model, batch=batch, osl=128, switches=ALL_ON, delays=delays), batch)
        host_s = one.schedule_s + one.prepare_input_s + one.process_output_s
        hidden.append((one.step_s - two.step_s) / host_s)
        gains.append(one.step_s / two.step_s)
        hides_s = float(hidden_s(
            ALL_ON, tp=1, feedback_from_tp=1, schedule_s=one.schedule_s, prepare_input_s=one.prepare_input_s,
            process_output_s=one.process_output_s, device_s=one.forward_s + one.sampling_s))
        predicted.append(one.step_s / (one.step_s - hides_s))
        print(f"  forward {one.forward_s * 1e3:.2f} ms, host {host_s * 1e3:.2f} ms; step {one.step_s * 1e3:.2f} -> "
              f"{two.step_s * 1e3:.2f} ms, device waits {one.exposed_s * 1e3:.2f} -> {two.exposed_s * 1e3:.2f} ms")
    print(f"overlap: {statistics.median(hidden):.0%} of the host time hidden (least {min(hidden):.0%}); gain "
          f"{statistics.median(gains):.3f}, predicted {statistics.median(predicted):.3f}")


def sampling(rounds: int, folder: Path) -> None:
    model, batch = dummy(folder / "sampling", vocab_size=49152, num_hidden_layers=1), 32
    for name, params in (("all penalties", FULL), ("greedy", SamplingParams(temperature=0.0))):
        ratios = []
        for _ in range(rounds):
            gathered, divided = (
                full_batch(run(model, batch=batch, osl=24, tp=2, params=params, switches=s), batch).sampling_s
                for s in (Switches(), Switches(seq_parallel_sampling=True)))
            ratios.append(gathered / divided)
            print(f"  {name}: T4 {gathered * 1e3:.2f} ms on one rank, {divided * 1e3:.2f} ms on both")
        print(f"sampling, {name}: divided {statistics.median(ratios):.2f} times as fast (least {min(ratios):.2f})")


def decode(rounds: int, _folder: Path) -> None:
    import torch
    from smollm2 import default_cache, smollm2_dir
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = smollm2_dir(default_cache())
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    for batch in (8, 32):
        ratios = []
        for _ in range(rounds):
            config = EngineConfig(model=str(model), num_threads=1, max_num_seqs=batch, num_kv_blocks=batch * 12)
            own = full_batch(engine_bench(config, {"isl": 128, "osl": 32, "num_requests": batch}, concurrency=batch), batch)
            own_s = own.step_s
            ids = torch.randint(0, 49152, (batch, 128))
            times = []
            with torch.inference_mode():
                for tokens in (2, 26):
                    begin_s = time.perf_counter()
                    reference.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
                                       do_sample=False, pad_token_id=0)
                    times.append(time.perf_counter() - begin_s)
            theirs_s = (times[1] - times[0]) / 24
            ratios.append(theirs_s / own_s)
            print(f"  batch {batch}: {own_s * 1e3:.1f} ms per step (T3 {own.forward_s * 1e3:.1f}); "
                  f"generate {theirs_s * 1e3:.1f} ms")
        print(f"decode, batch {batch}: {statistics.median(ratios):.2f} times generate (least {min(ratios):.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for part in given.parts or ["overlap", "sampling", "decode"]:
            {"overlap": overlap, "sampling": sampling, "decode": decode}[part](given.rounds, Path(folder))


if __name__ == "__main__":
    main()
