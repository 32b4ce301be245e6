"""A fitted profile with something of everything that its file can hold."""

from dataclasses import replace

from tpplanner.domain.fitted_profile import FittedProfile, MadeFrom, SourceTable
from tpplanner.domain.hardware import CollectiveCurve, CollectiveOp
from tpplanner.domain.kernels import (
    DecodeAttentionKernel,
    GemmKernel,
    Kernels,
    MoeKernel,
    PrefillAttentionKernel,
    Surface,
)
from tpplanner.domain.quantity import Provenance, Quantity
from tpplanner.domain.serving_fit import SERVING_TERMS, CovarianceTerm, ResidualModel, ServingFit, ServingTerms
from tpplanner.io.fitted_files import encode_fitted

SOURCE = "sys/gemm/eng/1.0/gemm_perf.parquet (k)"


def quantity(value, name="x", source=SOURCE, **given):
    return Quantity(value=value, unit="s" if name.endswith("_s") else "1", source=source,
                    **{"provenance": Provenance.FITTED, "std_error": 0.011, "num_samples": 60, **given})


def kernel(kind, dtype="bf16", **given):
    ready = {
        "dtype": dtype, "latency_s": quantity(3.2168e-6, "latency_s"), "compute_frac": quantity(0.8), "sharpness": quantity(2.5),
        "memory_frac": quantity(1.0, std_error=0.0), "held_out_median_frac": 0.0333, "held_out_p90_frac": 0.0942,
        "num_samples": 35742, "source": SOURCE, "notes": ("a note",), "ranges": (("num_tok", 1.0, 32768.0), ("w", 0.0123, 1.0)),
        "surface": Surface(axes=("num_tok", "w"), knots=((1.0, 16.0, 17.0), (0.02, 1.0)),
                           log_ratio=(0.0, -0.378, 1.808, 0.001, -0.001, 0.25)),
    }
    return kind(**{**ready, **given})


def residual(num_runs):
    return ResidualModel(
        terms=(CovarianceTerm(std_frac=0.05, within="cell", num_seqs_len=2.0), CovarianceTerm(std_frac=0.1, within="model")),
        noise_std_frac=0.03, model_keys=tuple(f"m{i % 2}/bf16" for i in range(num_runs)),
        num_seqs=tuple(float(2**i) for i in range(num_runs)), tp=(2.0,) * num_runs, isl_tok=(1024.0,) * num_runs,
        osl_tok=(819.2,) * num_runs, weights=tuple(0.12345 * (-1) ** i for i in range(num_runs)),
    )


def serving():
    terms = ServingTerms(**{name: quantity((50 + i) / 100, name, "runs") for i, name in enumerate(SERVING_TERMS)})
    prior = replace(terms, **{SERVING_TERMS[0]: quantity(1.0, SERVING_TERMS[0], "other machines", std_error=None,
                                                        num_samples=None, provenance=Provenance.EXTRAPOLATED)})
    return ServingFit(machine="m", engine="eng", terms={"dense": terms, "moe": prior}, num_runs=5, source="runs",
                      tpot={"dense": residual(5), "moe": residual(1)}, ttft={"dense": residual(0)})


def profile(**given):
    ready = {
        "machine": "m", "engine": "eng", "serving": serving(),
        "kernels": Kernels(
            gemm={"bf16": kernel(GemmKernel), "fp8": kernel(GemmKernel, "fp8", surface=None, held_out_median_frac=None,
                                                            held_out_p90_frac=None, notes=(), ranges=())},
            decode_attention={"fp8": kernel(DecodeAttentionKernel, "fp8")},
            prefill_attention={"bf16": kernel(PrefillAttentionKernel)},
            moe={"nvfp4": kernel(MoeKernel, "nvfp4", distribution="power_law_1.2", effective_experts_frac=quantity(0.86))}),
        "collectives": (CollectiveCurve(op=CollectiveOp.ALL_REDUCE, tp=2, size_bytes=(256.0, 2.0**30),
                                        latency_s=(4.512e-6, 5.127e-3), source="sys/comm"),),
        "made_from": MadeFrom(package="p", version="0.12.0", notice="licence", tables=(
            SourceTable(path="a/b", framework_version="1.0", num_rows=3),)),
    }
    return FittedProfile(**{**ready, **given})


SOUND = encode_fitted(profile())
