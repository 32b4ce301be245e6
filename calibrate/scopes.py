"""How much is measured: three minutes, ten, or all."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from calibrate.bench import Plan
from tpplanner.engine.model_config import EngineModel, read_model

_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Rows, contexts, the time that one case may take in each pass [s], and the passes."""

    num_tok: tuple[int, ...]
    context_tok: tuple[int, ...]
    budget_s: float
    num_rounds: int = 2


SCOPES: Final = {
    ("quick", "cpu"): Scope(num_tok=(1, 2, 4, 8, 16, 32, 64, 256, 1024), context_tok=(64, 256, 1024), budget_s=0.02),
    ("default", "cpu"): Scope(num_tok=(1, 2, 4, 8, 16, 24, 32, 64, 128, 256, 512, 2048), budget_s=0.04,
                              context_tok=(32, 64, 128, 256, 512, 1024, 2048), num_rounds=3),
    ("full", "cpu"): Scope(num_tok=_ROWS, context_tok=(32, 64, 128, 256, 512, 1024, 2048, 4096), budget_s=0.1, num_rounds=3),
    ("quick", "cuda"): Scope(num_tok=(1, 8, 32, 64, 128, 256, 1024, 2048), context_tok=(128, 1024, 4096), budget_s=0.01,
                             num_rounds=1),
    ("default", "cuda"): Scope(num_tok=(*_ROWS, 4096, 8192), context_tok=(128, 512, 1024, 2048, 4096, 8192), budget_s=0.02),
    ("full", "cuda"): Scope(num_tok=(*_ROWS, 48, 96, 192, 4096, 8192), budget_s=0.1,
                            context_tok=(64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)),
}
DEFAULT_MODELS: Final = {
    "cpu": ("HuggingFaceTB/SmolLM2-135M-Instruct",),
    "cuda": ("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-32B-Instruct", "Qwen/Qwen3-0.6B"),
}


def _dtypes(device: str, *, is_quick: bool, has_fp8: bool) -> tuple[str, ...]:
    """Formats of the products; the first is that of all else."""
    if device == "cpu":
        return ("fp32",)
    return ("bf16", *(() if is_quick else ("fp16",)), *(("fp8",) if has_fp8 else ()))


def plan_of(
    scope: str, device: str, models: tuple[EngineModel, ...], *, degrees: tuple[int, ...], has_fp8: bool = False
) -> Plan:
    """What to measure on a device in a scope."""
    sizes = SCOPES[scope, device]
    return Plan(models=models, degrees=degrees, num_tok=sizes.num_tok,
                context_tok=sizes.context_tok, dtypes=_dtypes(device, is_quick=scope == "quick", has_fp8=has_fp8),
                budget_s=sizes.budget_s, num_rounds=sizes.num_rounds, is_quick=scope == "quick")


def engine_model(config: Mapping[str, object]) -> EngineModel:
    """Read a model's facts as the engine does, from the keys of its config.json."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_bytes(msgspec.json.encode(config))
        return read_model(folder)
