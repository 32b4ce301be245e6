"""What a quantisation config says: formats of weights, operands, LM head and KV cache.

Read are ``quantization_config`` of config.json (fp8, fbgemm_fp8, awq, gptq, compressed-tensors, mxfp4,
modelopt) and modelopt's hf_quant_config.json. A model whose linears differ beyond experts, the other
linears and the LM head has no place in `Precision` and is refused or, for modules left out one by one
(a few layers of an FP8 checkpoint), read as if they were quantised.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tpplanner.errors import ModelError
from tpplanner.io.model_json import one_line
from tpplanner.io.model_keys import Keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A quantisation as a file states it, in names of `tpplanner.domain.dtypes`.

    Attributes
    ----------
    weights
        Storage format of the quantised matrices.
    activation
        Operand format of their GEMMs; ``None`` for weight-only quantisation, which multiplies in 16 bits.
    experts_only
        Whether only the routed experts are quantised.
    lm_head
        Whether the LM head is quantised too.
    kv
        Format of the KV cache that the file asks for, or ``None``.
    """

    weights: str
    activation: str | None
    experts_only: bool = False
    lm_head: bool = False
    kv: str | None = None


_BY_BITS: Final[dict[tuple[int, str], str]] = {(8, "float"): "fp8", (8, "int"): "int8", (4, "int"): "int4"}

_MODELOPT: Final[dict[str, tuple[str, str | None]]] = {
    "FP8": ("fp8", "fp8"),
    "FP8_PER_CHANNEL_PER_TOKEN": ("fp8", "fp8"),
    "FP8_PB_WO": ("fp8", "fp8"),
    "NVFP4": ("nvfp4", "nvfp4"),
    "NVFP4_AWQ": ("nvfp4", "nvfp4"),
    "W4A16_AWQ": ("int4", None),
    "W4A8_AWQ": ("int4", "fp8"),
}
"""modelopt's ``quant_algo`` -> formats of weights and operands."""

_MODELOPT_KV: Final[dict[str, str]] = {"FP8": "fp8", "INT8": "int8", "NVFP4": "nvfp4"}


def read_scheme(keys: Keys, *, num_layers: int, is_moe: bool) -> Scheme:
    """Return the scheme of a ``quantization_config``.

    Raises
    ------
    ModelError
        If the method is unknown, or the config cannot be expressed by one scheme.
    """
    method = keys.optional_text("quant_method")
    if method is None and "quant_algo" in keys:
        method = "modelopt"
    if method is None:
        raise ModelError(f"{keys.place}: {keys.prefix}quant_method is missing")
    reader = _METHODS.get(method.lower())
    if reader is None:
        raise ModelError(
            f"{keys.place}: unknown {keys.prefix}quant_method {one_line(method, 80)!r}; "
            f"known: {', '.join(_METHODS)}; a dtype given by hand overrides it"
        )
    return reader(keys, num_layers, is_moe)


def read_modelopt_file(keys: Keys, *, num_layers: int, is_moe: bool) -> Scheme | None:
    """Return the scheme of a hf_quant_config.json; ``None`` where it quantises nothing."""
    inner = keys.child("quantization")
    if inner is None:
        raise ModelError(f"{keys.place}: quantization is missing")
    if inner.is_null("quant_algo") and inner.is_null("kv_cache_quant_algo"):
        return None
    return _modelopt(inner, num_layers, is_moe)


def _fp8(keys: Keys, num_layers: int, is_moe: bool) -> Scheme:
    # Blocks of 128 x 128 with a 32-bit scale add 0.002 bit per weight: the same format.
    skipped = (*keys.texts("modules_to_not_convert"), *keys.texts("ignored_layers"))
    return Scheme(
        weights="fp8", activation="fp8", experts_only=is_moe and _leaves_attention(skipped, num_layers)
    )


def _mxfp4(keys: Keys, num_layers: int, is_moe: bool) -> Scheme:
    # Published for gpt-oss only: the experts; operands stay in 16 bits.
    return Scheme(weights="mxfp4", activation=None, experts_only=is_moe)


def _weight_only(keys: Keys, num_layers: int, is_moe: bool) -> Scheme:
    """Read AWQ and GPTQ: integers of 4 or 8 bits."""
    bits = keys.count("bits")
    if bits not in (4, 8):
        raise keys.refuse("bits", "be 4 or 8")
    skipped = keys.texts("modules_to_not_convert")
    # GPTQ's own flag; AWQ has none and leaves the head alone.
    head = not keys.is_null("lm_head") and keys.flag("lm_head")
    return Scheme(
        weights=_BY_BITS[bits, "int"], activation=None, lm_head=head,
        experts_only=is_moe and _leaves_attention(skipped, num_layers),
    )


def _modelopt(keys: Keys, num_layers: int, is_moe: bool) -> Scheme:
    inner = keys.child("quantization")
    if inner is not None:
        return _modelopt(inner, num_layers, is_moe) if "quantization" not in inner else _nested(inner)
    algo = keys.optional_text("quant_algo")
    if algo is None:
        raise ModelError(f"{keys.place}: {keys.prefix}quant_algo is missing")
    formats = _MODELOPT.get(algo.upper())
    if formats is None:
        raise keys.refuse("quant_algo", f"be one of {', '.join(_MODELOPT)}")
    skipped = (*keys.texts("exclude_modules"), *keys.texts("ignore"))
    return Scheme(
        weights=formats[0], activation=formats[1], lm_head=bool(skipped) and not _names_head(skipped),
        experts_only=is_moe and _leaves_attention(skipped, num_layers),
        kv=_modelopt_kv(keys) or _kv_scheme(keys),
    )


def _nested(keys: Keys) -> Scheme:
    raise keys.refuse("quantization", "not hold another quantization")


def _modelopt_kv(keys: Keys) -> str | None:
    algo = keys.optional_text("kv_cache_quant_algo")
    if algo is None or algo.upper() == "NONE":
        return None
    found = _MODELOPT_KV.get(algo.upper())
    if found is None:
        raise keys.refuse("kv_cache_quant_algo", f"be one of {', '.join(_MODELOPT_KV)}")
    return found


def _compressed_tensors(keys: Keys, num_layers: int, is_moe: bool) -> Scheme:
    groups = keys.child("config_groups")
    if groups is None or not groups.values:
        raise ModelError(f"{keys.place}: {keys.prefix}config_groups is missing")
    found = {_group_formats(groups, name) for name in groups.values}
    if len(found) > 1:
        raise ModelError(
            f"{keys.place}: {keys.prefix}config_groups must agree on one format, got "
            f"{one_line(sorted(map(str, found)))}; a dtype given by hand overrides it"
        )
    weights, activation = found.pop()
    skipped = keys.texts("ignore")
    return Scheme(
        weights=weights, activation=activation, lm_head=not _names_head(skipped),
        experts_only=is_moe and _leaves_attention(skipped, num_layers), kv=_kv_scheme(keys),
    )


def _group_formats(groups: Keys, name: str) -> tuple[str, str | None]:
    """Return formats of weights and operands of one config group."""
    group = groups.child(name)
    weights = None if group is None else group.child("weights")
    if group is None or weights is None:
        raise ModelError(f"{groups.place}: {groups.prefix}{one_line(name, 40)}.weights is missing")
    stored = _format(weights)
    operands = group.child("input_activations")
    return stored, None if operands is None else _format(operands)


def _format(keys: Keys) -> str:
    bits, kind = keys.count("num_bits"), keys.optional_text("type")
    if (bits, kind) == (4, "float"):
        # Two formats of 4-bit floats are published: scales per 16 (nvfp4) and per 32 (mxfp4).
        return "mxfp4" if keys.optional_count("group_size") == 32 else "nvfp4"
    found = _BY_BITS.get((bits, str(kind)))
    if found is None:
        raise keys.refuse("num_bits", f"be 4 or 8 with type int or float (type {one_line(kind, 20)!r})")
    return found


def _kv_scheme(keys: Keys) -> str | None:
    scheme = keys.child("kv_cache_scheme")
    return None if scheme is None else _format(scheme)


def _names_head(skipped: tuple[str, ...]) -> bool:
    return any("lm_head" in module for module in skipped)


# An indexer (GLM-5) and the projections of beta and alpha (Qwen3-Next) are left out where the rest is quantised.
_WHOLE_ATTENTION: Final = re.compile(
    r"self_attn(?:[.*$\\]*$|(?!.*indexer).*proj)|linear_attn(?:[.*$\\]*$|.*(?:qkv|out_proj))"
)
_ONE_LAYER: Final = re.compile(r"layers\.(\d{1,5})\.(?:self|linear)_attn")


def _leaves_attention(skipped: tuple[str, ...], num_layers: int) -> bool:
    """Whether the attention of every layer is left out: then experts alone count as quantised.

    Shared experts and dense layers may still be quantised in such a file; attention is the larger part.
    """
    entries = [module for module in skipped if _WHOLE_ATTENTION.search(module)]
    numbered = [_ONE_LAYER.search(module) for module in entries]
    layers = {int(match[1]) for match in numbered if match}
    return None in numbered or len(layers & set(range(num_layers))) == num_layers


_METHODS: Final[dict[str, Callable[[Keys, int, bool], Scheme]]] = {
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "awq": _weight_only,
    "gptq": _weight_only,
    "compressed-tensors": _compressed_tensors,
    "mxfp4": _mxfp4,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
}
