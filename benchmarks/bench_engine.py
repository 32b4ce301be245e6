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
from contextlib import ExitStack
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "engine"))

from tpplanner.api.engine_bench import TaskTimes, task_times
from tpplanner.cost.overlap import hidden_s
from tpplanner.domain.engine import Switches
from tpplanner.domain.traffic import Traffic
from tpplanner.engine.config import Delays, EngineConfig
from tpplanner.engine.engine import Engine
from tpplanner.engine.load import run_load
from tpplanner.engine.sampling_params import SamplingParams
from tpplanner.engine.timeline import StepRecord

ALL_ON = Switches(async_sched=True, early_feedback=True, seq_parallel_sampling=True)
FULL = SamplingParams(temperature=0.8, top_k=50, top_p=0.9, min_p=0.01, repetition_penalty=1.1, presence_penalty=0.5,
                      frequency_penalty=0.2)
TIMES = [f.name for f in fields(TaskTimes) if f.name.endswith("_s")]
SMALL = {"architectures": ["LlamaForCausalLM"], "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8,
         "num_key_value_heads": 4, "intermediate_size": 1536, "vocab_size": 4096, "max_position_embeddings": 2048,
         "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "eos_token_id": 2, "torch_dtype": "float32", "hidden_act": "silu"}


def dummy(folder: Path, **changes: object) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SMALL | changes))
    return str(folder)


class Engines:
    """Engines of one model that live side by side and are measured in turn, so that a busy minute meets them all."""

    def __init__(self, model: str, batch: int, osl: int, stack: ExitStack, *switches: Switches, tp: int = 1,
                 delays: Delays | None = None) -> None:
        self.batch = batch
        self._traffic = Traffic(name="full batch", isl_tok=np.full(batch, 32), osl_tok=np.full(batch, osl))
        self._engines = [stack.enter_context(Engine(EngineConfig(
            model=model, tp=tp, load_format="dummy", switches=each, delays=delays or Delays(), max_num_seqs=batch,
            num_kv_blocks=batch * 16, num_threads=1, dtype="float32"))) for each in switches]

    def measure(self, params: SamplingParams | None = None, *, turn: int = 0) -> list[TaskTimes]:
        """Median tasks of the steps with a full batch, engine by engine."""
        return [median_tasks(run_load(engine, self._traffic, params or SamplingParams(temperature=0.0), seed=turn,
                                      concurrency=self.batch).steps, self.batch) for engine in self._engines]


def median_tasks(steps: tuple[StepRecord, ...], batch: int) -> TaskTimes:
    """Median times of the steps with a full batch: what else runs on the machine hits some of them only."""
    singles = [one for pair in pairwise(steps) if (one := task_times(pair, num_decode_seqs=batch)) is not None]
    assert singles, "no step with a full batch"
    medians = {name: statistics.median(getattr(one, name) for one in singles) for name in TIMES}
    return TaskTimes(num_steps=len(singles), num_decode_seqs=batch, **medians)


def overlap(rounds: int, folder: Path) -> None:
    model, batch = dummy(folder / "overlap"), 8
    with ExitStack() as stack:
        forward_s = Engines(model, batch, 64, stack, Switches()).measure()[0].forward_s
    third = 0.25 * forward_s / 3
    delays = Delays(schedule_s=third, prepare_input_s=third, process_output_s=third)
    hidden, gains, predicted = [], [], []
    with ExitStack() as stack:
        engines = Engines(model, batch, 40, stack, Switches(), ALL_ON, delays=delays)
        engines.measure()
        for turn in range(rounds):
            one, two = engines.measure(turn=turn)
            host_s = one.schedule_s + one.prepare_input_s + one.process_output_s
            hides_s = float(hidden_s(
                ALL_ON, tp=1, feedback_from_tp=1, schedule_s=one.schedule_s, prepare_input_s=one.prepare_input_s,
                process_output_s=one.process_output_s, device_s=one.forward_s + one.sampling_s))
            # Of the host's own time: what the device waits for besides is the way of the messages.
            hidden.append(1.0 - two.exposed_s / host_s)
            gains.append(one.step_s / two.step_s)
            predicted.append(one.step_s / (one.step_s - hides_s))
            print(f"  forward {one.forward_s * 1e3:.2f}, {two.forward_s * 1e3:.2f} ms, host {host_s * 1e3:.2f} ms; step "
                  f"{one.step_s * 1e3:.2f} -> {two.step_s * 1e3:.2f} ms, device waits {one.exposed_s * 1e3:.2f} -> "
                  f"{two.exposed_s * 1e3:.2f} ms; gain {gains[-1]:.3f}, predicted {predicted[-1]:.3f}")
    print(f"overlap: {statistics.median(hidden):.0%} of the host time hidden (least {min(hidden):.0%}); gain "
          f"{statistics.median(gains):.3f}, predicted {statistics.median(predicted):.3f}")


def sampling(rounds: int, folder: Path) -> None:
    model, batch = dummy(folder / "sampling", vocab_size=49152, num_hidden_layers=1), 32
    with ExitStack() as stack:
        engines = Engines(model, batch, 32, stack, Switches(), Switches(seq_parallel_sampling=True), tp=2)
        engines.measure(FULL)
        for name, params in (("all penalties", FULL), ("greedy", SamplingParams(temperature=0.0))):
            ratios = []
            for turn in range(rounds):
                gathered_s, divided_s = (times.sampling_s for times in engines.measure(params, turn=turn))
                ratios.append(gathered_s / divided_s)
                print(f"  {name}: T4 {gathered_s * 1e3:.2f} ms on one rank, {divided_s * 1e3:.2f} ms on both")
            print(f"sampling, {name}: divided {statistics.median(ratios):.2f} times as fast (least {min(ratios):.2f})")


def decode(rounds: int, _folder: Path) -> None:
    import torch
    from smollm2 import default_cache, smollm2_dir
    from transformers import AutoModelForCausalLM
    from transformers.generation.streamers import BaseStreamer

    class Clock(BaseStreamer):  # type: ignore[misc]
        """When each token of a batch came out of generate."""

        def put(self, _: object) -> None:
            self.at_s = [*getattr(self, "at_s", []), time.perf_counter()]

        def end(self) -> None:
            """Nothing to write out."""

    torch.set_num_threads(1)
    model = smollm2_dir(default_cache())
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    for batch in (8, 32):
        ratios = []
        config = EngineConfig(model=str(model), num_threads=1, max_num_seqs=batch, num_kv_blocks=batch * 12)
        traffic = Traffic(name="decode", isl_tok=np.full(batch, 128), osl_tok=np.full(batch, 26))
        ids = torch.randint(0, 49152, (batch, 128))
        with Engine(config) as engine, torch.inference_mode():
            for turn in range(rounds + 1):
                run = run_load(engine, traffic, SamplingParams(temperature=0.0), concurrency=batch, seed=turn)
                times = median_tasks(run.steps, batch)
                clock = Clock()
                reference.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=26, min_new_tokens=26,
                                   do_sample=False, pad_token_id=0, streamer=clock)
                # The first two are the prompt and the token that its forward gives.
                theirs_s = float(np.median(np.diff(clock.at_s[2:])))
                if turn:
                    ratios.append(theirs_s / times.step_s)
                    print(f"  batch {batch}: {times.step_s * 1e3:.1f} ms per step (T3 {times.forward_s * 1e3:.1f}); "
                          f"generate {theirs_s * 1e3:.1f} ms")
        print(f"decode, batch {batch}: {statistics.median(ratios):.2f} times generate (least {min(ratios):.2f}, "
              f"{len(ratios)} rounds)")


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
