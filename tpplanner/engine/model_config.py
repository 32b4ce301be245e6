"""The keys of a Hugging Face ``config.json`` that running a Llama, Qwen2 or Qwen3 model needs."""

from pathlib import Path
from typing import Any, Final

import msgspec

from tpplanner.errors import ModelError, reject

_FAMILIES: Final = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
MAX_SIZE: Final = 1 << 24


class RopeScaling(msgspec.Struct, frozen=True, kw_only=True):
    """How rotary frequencies are stretched: ``linear`` by ``factor``, or ``llama3`` by wavelength."""

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_tok: int = 8192


class EngineModel(msgspec.Struct, frozen=True, kw_only=True):
    """Shape of a dense decoder: sizes are counts of elements, ``eps`` is added to variances."""

    family: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_context_tok: int
    eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    qk_norm: bool
    dtype: str
    eos_ids: tuple[int, ...]


class _Keys:
    """Checked access to the keys of one file."""

    def __init__(self, values: dict[str, Any], place: str) -> None:
        self.values, self.place = values, place

    def count(self, name: str, default: int | None = None) -> int:
        value = self.values.get(name)
        value = default if value is None else value
        if type(value) is not int or not 1 <= value <= MAX_SIZE:
            reject(ModelError, name, f"be an integer from 1 to {MAX_SIZE}", value, self.place)
        return value

    def real(self, name: str, default: float | None) -> float:
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
            reject(ModelError, name, "be a positive number", value, self.place)
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            reject(ModelError, name, "be true or false", value, self.place)
        return value


def read_object(path: Path, *, required: bool = True) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises
    ------
    ModelError
        If the file is missing though ``required``, or holds no JSON object.
    """
    try:
        values = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        if not required:
            return {}
        raise ModelError(f"{path}: no such file; --model takes a directory with config.json") from None
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path}: must hold a JSON object")
    return values


def read_model(directory: str | Path) -> EngineModel:
    """Read ``config.json`` (and end-of-sequence ids of ``generation_config.json``) of a model directory.

    Raises
    ------
    ModelError
        If a file is missing or malformed, a key makes no sense, or the engine cannot run the architecture.
    """
    folder = Path(directory)
    values = read_object(folder / "config.json")
    keys = _Keys(values, str(folder / "config.json"))
    names = values.get("architectures") or ["none"]
    family = _FAMILIES.get(str(names[0] if isinstance(names, list) else names))
    if family is None:
        reject(ModelError, "architectures", f"be one of {', '.join(_FAMILIES)}", names, keys.place)
    _refuse_unknown(values, keys)
    hidden, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    kv_heads = keys.count("num_key_value_heads", heads)
    if heads % kv_heads:
        reject(ModelError, "num_attention_heads", f"be a multiple of num_key_value_heads {kv_heads}", heads, keys.place)
    head_dim = keys.count("head_dim", max(hidden // heads, 1))
    if head_dim % 2:
        reject(ModelError, "head_dim", "be even", head_dim, keys.place)
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    bias = keys.flag("attention_bias")
    generation = read_object(folder / "generation_config.json", required=False)
    return EngineModel(
        family=family, hidden_size=hidden, num_layers=keys.count("num_hidden_layers"), num_heads=heads,
        num_kv_heads=kv_heads, head_dim=head_dim, intermediate_size=keys.count("intermediate_size"),
        vocab_size=keys.count("vocab_size"), max_context_tok=keys.count("max_position_embeddings"),
        eps=keys.real("rms_norm_eps", 1e-6), rope_theta=_theta(rope, keys), rope_scaling=_scaling(rope, keys),
        tied_embeddings=keys.flag("tie_word_embeddings"), qkv_bias=bias or family == "qwen2",
        output_bias=bias, qk_norm=family == "qwen3", dtype=_dtype(values, keys),
        eos_ids=_ids(generation.get("eos_token_id", values.get("eos_token_id")), keys))


def _refuse_unknown(values: dict[str, Any], keys: _Keys) -> None:
    if values.get("hidden_act", "silu") != "silu":
        reject(ModelError, "hidden_act", "be silu", values["hidden_act"], keys.place)
    if values.get("use_sliding_window"):
        reject(ModelError, "use_sliding_window", "be false", True, keys.place)
    if values.get("quantization_config"):
        reject(ModelError, "quantization_config", "be absent: the engine runs 16- and 32-bit weights", "one", keys.place)
    if keys.flag("mlp_bias"):
        reject(ModelError, "mlp_bias", "be false", True, keys.place)


def _theta(rope: object, keys: _Keys) -> float:
    own = rope.get("rope_theta") if isinstance(rope, dict) else None
    return keys.real("rope_theta", own if isinstance(own, int | float) and own > 0 else 10000.0)


def _scaling(rope: object, keys: _Keys) -> RopeScaling | None:
    if not isinstance(rope, dict):
        reject(ModelError, "rope_scaling", "be an object", rope, keys.place)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        reject(ModelError, "rope_type", "be default, linear or llama3", kind, keys.place)
    inner = _Keys(rope, f"{keys.place}: rope_scaling")
    return RopeScaling(kind=kind, factor=inner.real("factor", None), low_freq_factor=inner.real("low_freq_factor", 1.0),
                       high_freq_factor=inner.real("high_freq_factor", 4.0),
                       original_context_tok=inner.count("original_max_position_embeddings", 8192))


def _dtype(values: dict[str, Any], keys: _Keys) -> str:
    name = values.get("torch_dtype") or values.get("dtype") or "float32"
    if name not in ("float32", "bfloat16", "float16"):
        reject(ModelError, "torch_dtype", "be float32, bfloat16 or float16", name, keys.place)
    return str(name)


def _ids(value: object, keys: _Keys) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int and i >= 0 for i in ids):
        reject(ModelError, "eos_token_id", "be token ids", value, keys.place)
    return tuple(ids)
