"""The number formats of a model: from its files, or as the user asks."""

from dataclasses import replace
from typing import Final

from tpplanner.domain.dtypes import DTYPES, Precision, dtype_named, uniform_precision
from tpplanner.errors import ModelError, nearest
from tpplanner.io.model_json import one_line
from tpplanner.io.model_quant import Scheme

_WEIGHT_CHOICES: Final = ("auto", "fp32", "bf16", "fp16", "fp8", "int8", "int4", "awq", "gptq", "mxfp4", "nvfp4")
_KV_CHOICES: Final = ("auto", "bf16", "fp16", "fp8", "int8")


def chosen_weights(name: str | None) -> str | None:
    """Return the domain's name of the weights' format that a user asked for; ``None`` for ``auto``.

    Raises
    ------
    ModelError
        If the format is unknown.

    Examples
    --------
    >>> chosen_weights("awq"), chosen_weights("auto")
    ('int4', None)
    """
    return _chosen(name, "dtype", _WEIGHT_CHOICES)


def chosen_cache(name: str | None) -> str | None:
    """Return the domain's name of the cache's format that a user asked for; ``None`` for ``auto``.

    Raises
    ------
    ModelError
        If the format is unknown.
    """
    return _chosen(name, "kv_cache_dtype", _KV_CHOICES)


def _chosen(name: str | None, field: str, choices: tuple[str, ...]) -> str | None:
    if name is None or name.lower() == "auto":
        return None
    try:
        found = dtype_named(name, field).name
    except ModelError:
        found = ""
    if found not in choices:
        shown = one_line(name, 40)
        hint = nearest(shown, choices)
        raise ModelError(f"{field}: must be one of {', '.join(choices)}, got {shown!r}. {hint}".rstrip())
    return found


def model_precision(
    scheme: Scheme | None,
    *,
    base: str,
    tied: bool,
    experts_only_4bit: bool,
    dtype: str | None,
    kv_cache_dtype: str | None,
) -> Precision:
    """Return the precision that the files state, overridden by what the user asks.

    Parameters
    ----------
    scheme
        What the files state, ``None`` for a model that is not quantised.
    base
        16-bit format of everything that is not quantised.
    tied
        Whether the LM head is the embedding: then it stays in ``base``.
    experts_only_4bit
        Whether the family's 4-bit form quantises its experts alone (gpt-oss).
    dtype, kv_cache_dtype
        The user's choice as `chosen_weights` and `chosen_cache` return it. ``dtype`` replaces the whole
        scheme, its KV cache included.
    """
    if dtype is None and scheme is not None:
        return _of_scheme(scheme, base=base, tied=tied, kv=kv_cache_dtype or scheme.kv)
    precision = uniform_precision(dtype or base, base=base, kv=kv_cache_dtype)
    if experts_only_4bit and dtype in ("mxfp4", "nvfp4"):
        plain = precision.base
        # As published: weights of the experts alone, operands in 16 bits.
        return replace(precision, linear=plain, activation=plain, expert_activation=plain)
    return precision


def _of_scheme(scheme: Scheme, *, base: str, tied: bool, kv: str | None) -> Precision:
    plain, stored = DTYPES[base], DTYPES[scheme.weights]
    operands = plain if scheme.activation is None else DTYPES[scheme.activation]
    return Precision(
        name=_scheme_name(scheme), base=plain, expert=stored, expert_activation=operands,
        linear=plain if scheme.experts_only else stored,
        activation=plain if scheme.experts_only else operands,
        lm_head=stored if scheme.lm_head and not tied else plain,
        kv=plain if kv is None else DTYPES[kv],
    )


def _scheme_name(scheme: Scheme) -> str:
    """Return the weights' format, with the operands' bits where they are not the usual ones."""
    if scheme.weights in ("mxfp4", scheme.activation):
        return scheme.weights
    if scheme.activation is None:
        return "int4" if scheme.weights == "int4" else f"{scheme.weights}-a16"
    return f"{scheme.weights}-a{DTYPES[scheme.activation].bits:g}"
