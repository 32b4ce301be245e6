"""Paged decode attention on one GPU: time per call in a CUDA graph, bytes/s of KV against a copy on the device, as JSON lines.

    python benchmarks/gpu_decode_attention.py [--batches 1 64] [--contexts 1024] [--mixed] [--tune] > decode_attention.jsonl

32 query and 8 KV heads of 128 in bf16, blocks of 16 in random order. Each call of a graph reads a cache of its own, 1 GiB
together or 128 of them: more than an L2 holds, as in a model's layers. ``hbm_bytes`` counts K and V only; a copy's bytes are
those read and written. ``chosen`` marks what choose_num_splits takes. Answers are checked before they are timed. Clocks are
not locked: compare within one run and see ``spread_frac``, (slowest - fastest) / median of the samples. Needs CUDA.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
from collections.abc import Callable

try:
    import torch
    import triton

    from tpplanner.engine.paged_decode import DecodeScratch, Launch, choose_num_splits, paged_decode
except ImportError as missing:
    sys.exit(f"gpu_decode_attention: needs torch and triton ({missing})")

HEADS, KV_HEADS, DIM, BLOCK, DTYPE, SPLITS = 32, 8, 128, 16, torch.bfloat16, (1, 2, 4, 8, 16, 32)
CACHE_BYTES, COPY_BYTES, SAMPLES, SAMPLE_S = 2**30, 2**31, 7, 0.05
WITHIN = 1e-2  # relative error of a row: bf16 rounds weights and output to 2**-9


class Problem:
    """A batch and caches enough that no call finds its KV in the L2 cache."""

    def __init__(self, batch: int, context_tok: int, *, mixed: bool) -> None:
        blocks = math.ceil(context_tok / BLOCK)
        lens = torch.linspace(context_tok, 1 if mixed else context_tok, batch).round()
        self.lens = lens[torch.randperm(batch)].to("cuda", torch.int32)
        self.tables = torch.randperm(batch * blocks, device="cuda").view(batch, blocks).to(torch.int32)
        self.q = torch.randn(batch, HEADS, DIM, device="cuda", dtype=DTYPE)
        self.hbm_bytes = int(self.lens.sum()) * 2 * KV_HEADS * DIM * DTYPE.itemsize
        self.caches = [torch.randn(2, KV_HEADS, batch * blocks * BLOCK, DIM, device="cuda", dtype=DTYPE)
                       for _ in range(max(2, min(128, math.ceil(CACHE_BYTES / self.hbm_bytes))))]
        self.scratch = DecodeScratch.allocate(batch=batch, num_heads=HEADS, num_splits=64, head_dim=DIM, device="cuda")

    def call(self, cache: torch.Tensor, num_splits: int, launch: Launch) -> torch.Tensor:
        return paged_decode(self.q, cache[0], cache[1], self.tables, self.lens, block_size=BLOCK, scale=DIM**-0.5,
                            num_splits=num_splits, scratch=self.scratch, launch=launch)

    def check(self, num_splits: int, launch: Launch) -> None:
        """Compare the shortest and the longest row with gather and softmax in float32."""
        out = self.call(self.caches[0], num_splits, launch).float()
        for row in (int(self.lens.argmin()), int(self.lens.argmax())):
            token = torch.arange(int(self.lens[row]), device="cuda")
            slots = self.tables[row, token // BLOCK].long() * BLOCK + token % BLOCK
            k, v = self.caches[0][:, :, slots].float().repeat_interleave(HEADS // KV_HEADS, 1)
            right = (((k * self.q[row].float()[:, None]).sum(-1) * DIM**-0.5).softmax(-1)[..., None] * v).sum(1)
            error = float((out[row] - right).norm() / right.norm())
            if not error < WITHIN:
                sys.exit(f"gpu_decode_attention: wrong answer, error {error:.2e} in row {row} with {num_splits} splits, {launch}")


def timed(run: Callable[[], object]) -> list[float]:
    """Seconds per ``run``: samples of many runs, after two that warm up and tell how many."""
    runs, samples = 3, []
    for _ in range(2 + SAMPLES):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(runs):
            run()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) / 1e3 / runs)
        runs = max(3, math.ceil(SAMPLE_S / samples[-1]))
    return samples[2:]


def measured(problem: Problem, num_splits: int, launch: Launch) -> dict[str, float]:
    problem.check(num_splits, launch)  # compiles, which a capture may not
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [problem.call(cache, num_splits, launch) for cache in problem.caches]
    samples = [graph_s / len(kept) for graph_s in timed(graph.replay)]
    call_s = statistics.median(samples)
    return {"call_s": call_s, "spread_frac": (max(samples) - min(samples)) / call_s, "hbm_bytes": problem.hbm_bytes,
            "hbm_bytes_s": problem.hbm_bytes / call_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64, 256])
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 4096], help="tokens per row")
    parser.add_argument("--mixed", action="store_true", help="lengths spread evenly from 1 to the context")
    parser.add_argument("--tune", action="store_true", help="tiles, warps, stages and least parts too, with the chosen splits")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_decode_attention: needs a CUDA device, and torch sees none")
    torch.manual_seed(0)
    device, (source, target) = torch.cuda.get_device_properties(0), torch.randint(256, (2, COPY_BYTES // 8), device="cuda")
    copy_bytes_s = 2 * COPY_BYTES / statistics.median(timed(lambda: target.copy_(source)))
    print(json.dumps({"record": "machine", "device": device.name, "num_sms": device.multi_processor_count,
                      "torch": torch.__version__, "triton": triton.__version__, "copy_bytes_s": copy_bytes_s}), flush=True)
    tried = itertools.product((32, 64, 128), (2, 4, 8), (3, 5, 7), (128, 256, 512)) if asked.tune else ()
    launches = [Launch.usual(DIM, DTYPE.itemsize), *itertools.starmap(Launch, tried)]
    for batch, context_tok in itertools.product(asked.batches, asked.contexts):
        problem = Problem(batch, context_tok, mixed=asked.mixed)
        chosen = choose_num_splits(batch, KV_HEADS, context_tok, device.multi_processor_count)
        for launch, splits in itertools.product(launches, [chosen] if asked.tune else sorted({*SPLITS, chosen})):
            try:
                found = measured(problem, splits, launch)
            except triton.OutOfResources as error:  # a tuning point that this device cannot hold
                print(f"gpu_decode_attention: {launch}: {error}", file=sys.stderr)
                continue
            print(json.dumps({"record": "call", "batch": batch, "context_tok": context_tok, "mixed": asked.mixed,
                              "num_splits": splits, "chosen": splits == chosen, **launch._asdict(), **found,
                              "of_copy_frac": found["hbm_bytes_s"] / copy_bytes_s}), flush=True)


if __name__ == "__main__":
    main()
