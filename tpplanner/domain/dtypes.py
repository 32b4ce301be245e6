"""Number formats: bits in memory (scales included) and the arithmetic they run in."""

from dataclasses import dataclass
from typing import Final

from tpplanner.errors import ModelError, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Dtype:
    """A storage format.

    ``bits`` counts the scales: int4 in groups of 128 with a 16-bit scale and a 4-bit
    zero point is 4 + 20/128 bits, mxfp4 4 + 8/32, nvfp4 4 + 8/16.
    """

    name: str
    bits: float

    @property
    def num_bytes(self) -> float:
        """Bytes per element, scales included."""
        return self.bits / 8.0


DTYPES: Final[dict[str, Dtype]] = {
    d.name: d
    for d in (
        Dtype(name="fp32", bits=32),
        Dtype(name="bf16", bits=16),
        Dtype(name="fp16", bits=16),
        Dtype(name="fp8", bits=8),
        Dtype(name="int8", bits=8),
        Dtype(name="int4", bits=4 + 20 / 128),
        Dtype(name="mxfp4", bits=4 + 8 / 32),
        Dtype(name="nvfp4", bits=4 + 8 / 16),
    )
}

_ALIASES: Final[dict[str, str]] = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "float": "fp32",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
    "float8": "fp8",
    "fp8_block": "fp8",
    "awq": "int4",
    "gptq": "int4",
    "w4a16": "int4",
    "w8a8": "int8",
    "fp4": "nvfp4",
}


def dtype_named(name: str, place: str = "dtype") -> Dtype:
    """Return the format called ``name`` (aliases such as ``bfloat16`` are known).

    Raises
    ------
    ModelError
        If the name is unknown; the known ones are listed.

    Examples
    --------
    >>> dtype_named("bfloat16").num_bytes
    2.0
    """
    key = name.lower().removeprefix("torch.")
    found = DTYPES.get(_ALIASES.get(key, key))
    if found is None:
        hint = nearest(key, [*DTYPES, *_ALIASES])
        raise ModelError(f"{place}: unknown dtype {name!r}; known: {', '.join(DTYPES)}. {hint}".rstrip())
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """How one model's numbers are stored and multiplied.

    Attributes
    ----------
    name
        What a user calls it: ``bf16``, ``fp8``, ``int4``, ``mxfp4``...
    base
        Embeddings, norms, biases and activations; also the LM head unless ``lm_head`` says otherwise.
    linear, expert
        Weights of the dense linears and of the routed experts.
    activation
        Operand format of the dense linears: it names the peak that their GEMMs run at. Weight-only
        quantisation (int4, mxfp4 without hardware support) multiplies in ``base``.
    expert_activation
        The same for the experts.
    lm_head
        Weights of the LM head.
    kv
        The KV cache.
    """

    name: str
    base: Dtype
    linear: Dtype
    expert: Dtype
    activation: Dtype
    expert_activation: Dtype
    lm_head: Dtype
    kv: Dtype


_SAME_ARITHMETIC: Final = frozenset({"fp8", "int8", "nvfp4", "mxfp4", "bf16", "fp16", "fp32"})


def uniform_precision(weights: str, *, base: str = "bf16", kv: str | None = None) -> Precision:
    """Return the precision in which every linear and expert is stored as ``weights``.

    Weights in int4 are weight-only: their GEMMs run in ``base``. ``kv`` of ``None`` or
    ``auto`` stores the cache in ``base``, as the engines do.

    Examples
    --------
    >>> p = uniform_precision("fp8"); p.linear.name, p.kv.name, p.lm_head.name
    ('fp8', 'bf16', 'bf16')
    """
    stored = dtype_named(weights)
    if stored.bits >= 16:
        base = stored.name
    rest = dtype_named(base)
    arithmetic = stored if stored.name in _SAME_ARITHMETIC else rest
    cache = rest if kv in (None, "auto") else dtype_named(str(kv), "--kv-cache-dtype")
    return Precision(
        name=stored.name, base=rest, linear=stored, expert=stored, activation=arithmetic,
        expert_activation=arithmetic, lm_head=rest, kv=cache,
    )
