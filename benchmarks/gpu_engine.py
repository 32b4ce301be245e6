"""The engine on one GPU: decode against the bound of its bandwidth, and the two loops, in one command.

    python benchmarks/gpu_engine.py --out DIR [--model Llama-3.1-8B-Instruct] [--quick]

Decode of dummy weights in bf16 at batch 1, 8, 32, 64, 256 and a context of 1,024: the step's device time beside
(weights + KV read) / (copy bandwidth measured here); then the sequential and the overlapped loop at batch 256 with all
penalties on, with T1 to T5 and joules per token. Raw steps and figures go to DIR.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch

from tpplanner.api.engine_bench import engine_bench, task_times
from tpplanner.api.engine_files import run_document, run_text, write_run
from tpplanner.domain.engine import Switches
from tpplanner.engine.config import EngineConfig
from tpplanner.engine.model_config import read_model
from tpplanner.engine.partition import kv_bytes_per_tok
from tpplanner.engine.sampling_params import SamplingParams
from tpplanner.io.model_registry import find_packaged

CONTEXT_TOK = 1024
OVERLAP = Switches(async_sched=True, early_feedback=True)
FULL = SamplingParams(temperature=0.8, top_k=50, top_p=0.9, min_p=0.01, repetition_penalty=1.1, presence_penalty=0.5,
                      frequency_penalty=0.2)


def copy_bytes_s() -> float:
    """Bandwidth of a device-to-device copy, reads and writes counted [bytes/s]; the median of 20."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(25):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    return 2.0 * source.numel() / sorted(times[5:])[10]


def directory(name: str, folder: Path) -> str:
    """A model directory without weights, from a packaged config.json."""
    packaged = find_packaged(name)
    if packaged is None:
        raise SystemExit(f"{name}: no packaged config")
    target = folder / name
    target.mkdir()
    shutil.copyfile(packaged.config, target / "config.json")
    return str(target)


def run(model: str, batch: int, switches: Switches, params: SamplingParams | None, osl: int):
    config = EngineConfig(model=model, load_format="dummy", dtype="bfloat16", device="cuda", switches=switches,
                          max_num_seqs=batch, max_context_tok=CONTEXT_TOK + osl, max_num_batched_tokens=8192)
    # The middle of the output has the context asked for.
    traffic = {"isl": CONTEXT_TOK - osl // 2, "osl": osl, "num_requests": batch}
    return engine_bench(config, traffic, concurrency=batch, params=params)


def decode_table(model: str, out: Path, batches: list[int]) -> None:
    bandwidth = copy_bytes_s()
    print(f"copy {bandwidth / 1e12:.2f} TB/s, {torch.cuda.get_device_name()}, torch {torch.__version__}")
    spec, rows = read_model(model), []
    for batch in batches:
        result = run(model, batch, OVERLAP, None, 128)
        tasks = task_times(result.steps, num_decode_seqs=batch)
        assert tasks is not None
        read = result.weight_bytes + batch * CONTEXT_TOK * kv_bytes_per_tok(spec, 1, 2)
        bound_s = read / bandwidth
        rows.append({"batch": batch, "forward_s": tasks.forward_s, "bound_s": bound_s, "achieved_frac": bound_s / tasks.forward_s,
                     "sampling_s": tasks.sampling_s, "step_s": tasks.step_s, "energy_j_per_tok": result.energy_j_per_tok})
        print(f"batch {batch:3d}: forward {tasks.forward_s * 1e3:7.3f} ms, bound {bound_s * 1e3:7.3f} ms: "
              f"{bound_s / tasks.forward_s:.0%}; T4 {tasks.sampling_s * 1e3:.3f} ms, step {tasks.step_s * 1e3:.3f} ms",
              flush=True)
    (out / "decode.json").write_text(json.dumps({"copy_bytes_s": bandwidth, "rows": rows}, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--model", default="Llama-3.1-8B-Instruct")
    parser.add_argument("--quick", action="store_true", help="Batch 1 and 64 only.")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("gpu_engine.py: this machine has no CUDA device")
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model = directory(given.model, Path(folder))
        decode_table(model, given.out, [1, 64] if given.quick else [1, 8, 32, 64, 256])
        for name, switches in (("sequential", Switches()), ("overlap", OVERLAP)):
            result = run(model, 64 if given.quick else 256, switches, FULL, 128)
            print(f"\n{name}\n{run_text(result)}", flush=True)
            write_run(result, given.out / name, model=given.model, system=None, overwrite=True)
            (given.out / f"{name}.json").write_text(json.dumps(run_document(result), indent=2))


if __name__ == "__main__":
    main()
