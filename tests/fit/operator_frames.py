"""Operator tables made up from known kernels."""

import numpy as np
import pandas as pd

from tpplanner.cost.roofline import roofline_s
from tpplanner.fit.operator_rows import OperatorFrames

FLOP_S, BYTES_S = 989e12, 4.8e12  # H200, bf16
LATENCY_S = 5e-6


def labelled(rows, *, kernel="k", source="sys/gemm/eng/1.0/gemm_perf.parquet"):
    return pd.DataFrame(rows).assign(kernel_source=kernel, framework_version="1.0", source=source)


def gemm(dtype, *, num_bytes=2.0, latency_s=LATENCY_S, flop_s=FLOP_S, **labels):
    """60 % of the arithmetic and 80 % of the bandwidth, with 1 % of noise."""
    rng = np.random.default_rng(0)
    m, n, k = (a.ravel() for a in np.meshgrid([1, 16, 64, 256, 1024, 4096, 8192], [512, 2048, 8192], [1024, 4096, 16384]))
    moved = num_bytes * n * k + 2.0 * m * (n + k)
    time_s = latency_s + roofline_s(compute_s=2.0 * m * n * k / (0.6 * flop_s), memory_s=moved / (0.8 * BYTES_S), sharpness=3.0)
    return labelled({"dtype": dtype, "num_tok": m, "out_features": n, "in_features": k,
                     "latency_s": time_s * np.exp(0.01 * rng.standard_normal(m.size))}, **labels)


def attention(kv_dtype, *, dtype="bf16", decode=True, num_seqs=(1, 2, 4, 8, 16, 32, 64), **labels):
    """70 % of the bandwidth; prefill 50 % of the arithmetic."""
    lengths = [64, 256, 1024, 4096, 16384] if decode else [128, 512, 2048, 8192]
    b, s, h = (a.ravel() for a in np.meshgrid(list(num_seqs), lengths, [8, 32]))
    moved = 2.0 * b * 8 * s * 128 * (1.0 if kv_dtype == "fp8" else 2.0)
    time_s = LATENCY_S + moved / (0.7 * BYTES_S) if decode else LATENCY_S + 2.0 * b * h * 128 * s * (s + 1.0) / (0.5 * FLOP_S)
    lengths_of = {"context_tok": s} if decode else {"isl_tok": s, "prefix_tok": 0}
    return labelled({"dtype": dtype, "kv_dtype": kv_dtype, "num_seqs": b, "num_heads": h, "num_kv_heads": 8, "head_dim": 128,
                     "window_tok": np.nan, **lengths_of, "latency_s": time_s}, **labels)


def moe(dtype, *, distribution="power_law_1.2", latency_s=20e-6, **labels):
    m, tp, e = (a.ravel() for a in np.meshgrid([1, 8, 64, 512, 4096], [1, 2, 4, 8], [8, 64, 128]))
    weights = 3.0 * 4096 * 2048 / tp * 2.0 * np.minimum(e, 2.0 * m)
    time_s = latency_s + weights / (0.7 * BYTES_S) + 6.0 * m * 2 * 4096 * 2048 / tp / (0.4 * FLOP_S)
    return labelled({"dtype": dtype, "distribution": distribution, "num_tok": m, "hidden_size": 4096, "moe_ep": 1,
                     "expert_intermediate_size": 2048, "num_experts_per_tok": 2, "num_experts": e, "moe_tp": tp,
                     "latency_s": time_s}, **labels)


def collective(op="all_reduce", *, mode="graph", tp=2, dtype="bf16", scale=1.0, **labels):
    sizes = 2.0 ** np.arange(10, 30)
    return labelled({"op": op, "dtype": dtype, "tp": tp, "mode": mode, "size_bytes": sizes,
                     "latency_s": scale * (5e-6 + sizes / 3e11)}, **labels)


def frames(**given):
    """Tables of an engine; every family has something unless it is given."""
    ready = {"gemm": gemm("bf16"), "decode_attention": attention("bf16"), "prefill_attention": attention("bf16", decode=False),
             "moe": moe("bf16"), "collective": collective()}
    return OperatorFrames(**{**ready, **given})
