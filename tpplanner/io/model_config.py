"""Reading a Hugging Face ``config.json`` into a `ModelSpec`."""

import os
from pathlib import Path
from typing import Final

from tpplanner.domain.model import ModelSpec, MoeMlp
from tpplanner.errors import ModelError, nearest
from tpplanner.io.model_families import FAMILIES, find_family
from tpplanner.io.model_hub import fetch_files, hub_installed, looks_like_repo_id
from tpplanner.io.model_json import one_line, read_json_object
from tpplanner.io.model_keys import MAX_TOKENS, Keys
from tpplanner.io.model_layers import Layout, num_layers
from tpplanner.io.model_precision import chosen_cache, chosen_weights, model_precision
from tpplanner.io.model_quant import Scheme, read_modelopt_file, read_scheme
from tpplanner.io.model_registry import PackagedModel, find_packaged, known_names, packaged_models

__all__ = ["load_model", "packaged_models", "parse_model"]

_BASE: Final[dict[str, str]] = {
    "bfloat16": "bf16",
    "float16": "fp16",
    # Engines do not serve 32-bit weights: vLLM's dtype "auto" turns them into 16 bits.
    "float32": "bf16",
}
_QUANT_FILE: Final = "hf_quant_config.json"


def load_model(
    name_or_path: str, *, dtype: str | None = None, kv_cache_dtype: str | None = None
) -> ModelSpec:
    """Return the specification of a model.

    Parameters
    ----------
    name_or_path
        A packaged Hugging Face id (any case, with or without the owner), the path of a config.json, or
        a model directory with one. Another id is fetched if huggingface_hub is installed.
    dtype
        Weights: ``fp32``, ``bf16``, ``fp16``, ``fp8``, ``int8`` (both with operands in the same format), ``int4``
        (``awq``, ``gptq``; operands in 16 bits), ``mxfp4``, ``nvfp4``; ``None`` or ``auto`` for what the
        files say.
    kv_cache_dtype
        ``bf16``, ``fp16``, ``fp8``, ``int8``; ``None`` or ``auto`` for what the quantisation config says,
        else the format of the activations.

    Returns
    -------
    ModelSpec
        The language model. Of multimodal files only ``text_config`` is read: the vision tower counts
        neither in memory nor in time. Layers for multi-token prediction are not counted.

    Raises
    ------
    ModelError
        If the name is unknown, a file is missing or malformed, a key is missing or makes no sense, or the
        architecture or the quantisation is unknown. Code that the files refer to is never run.

    Examples
    --------
    >>> model = load_model("qwen2.5-32b-instruct")
    >>> model.name, model.num_layers, f"{model.num_params / 1e9:.2f}e9", model.precision.name
    ('Qwen/Qwen2.5-32B-Instruct', 64, '32.76e9', 'bf16')
    """
    # A typing error in a format should not wait for a download.
    dtype, kv_cache_dtype = chosen_weights(dtype), chosen_cache(kv_cache_dtype)
    local = _local_files(name_or_path)
    if local is not None:
        config, quant = local
        return _load(config, quant, name=_local_name(config), dtype=dtype, kv_cache_dtype=kv_cache_dtype)
    packaged = find_packaged(name_or_path)
    if packaged is not None:
        return _load_packaged(packaged, dtype=dtype, kv_cache_dtype=kv_cache_dtype)
    if looks_like_repo_id(name_or_path) and hub_installed() and not os.path.exists(name_or_path):
        config, quant = fetch_files(name_or_path)
        return _load(config, quant, name=name_or_path, dtype=dtype, kv_cache_dtype=kv_cache_dtype)
    raise _unknown(name_or_path)


def parse_model(
    config: Keys,
    quant: Keys | None = None,
    *,
    name: str,
    dtype: str | None = None,
    kv_cache_dtype: str | None = None,
) -> ModelSpec:
    """Return the specification in the keys of a config.json and, if there, a hf_quant_config.json.

    Raises
    ------
    ModelError
        As `load_model`.
    """
    dtype, kv_cache_dtype = chosen_weights(dtype), chosen_cache(kv_cache_dtype)
    places = (config.place,) if quant is None else (config.place, quant.place)
    try:
        return _parse(config, quant, name, dtype, kv_cache_dtype)
    except ModelError as error:
        if str(error).startswith(places):
            raise
        # The domain's own checks do not know the file.
        raise ModelError(f"{config.place}: {error}") from None


def _parse(
    config: Keys, quant: Keys | None, name: str, dtype: str | None, kv_cache_dtype: str | None
) -> ModelSpec:
    family, architecture, text = find_family(config)
    layout = FAMILIES[family].read(text)
    spec = ModelSpec(
        name=name,
        architecture=architecture,
        hidden_size=text.count("hidden_size"),
        vocab_size=text.count("vocab_size"),
        layer_groups=layout.layer_groups,
        max_context_tok=text.count("max_position_embeddings", maximum=MAX_TOKENS),
        precision=model_precision(
            None if dtype else _scheme(config, text, quant, layout), base=_base(config, text),
            tied=layout.tied_embeddings, experts_only_4bit=family == "gpt_oss", dtype=dtype,
            kv_cache_dtype=kv_cache_dtype,
        ),
        tied_embeddings=layout.tied_embeddings,
        place=config.place,
    )
    # Building every matrix once runs the checks on their shapes now, not in the middle of a plan.
    for _ in spec.matrices():
        pass
    return spec


def _base(config: Keys, text: Keys) -> str:
    """Return the format of what is not quantised; bf16 where no key says so (gpt-oss, MiniMax-M2)."""
    for keys in (text, config):
        for key in ("dtype", "torch_dtype"):
            given = keys.optional_text(key)
            if given is None:
                continue
            found = _BASE.get(given.removeprefix("torch."))
            if found is None:
                raise keys.refuse(key, f"be one of {', '.join(_BASE)}")
            return found
    return "bf16"


def _scheme(config: Keys, text: Keys, quant: Keys | None, layout: Layout) -> Scheme | None:
    is_moe = any(isinstance(group.mlp, MoeMlp) for group in layout.layer_groups)
    found = config.child("quantization_config") or text.child("quantization_config")
    if found is not None:
        return read_scheme(found, num_layers=num_layers(text), is_moe=is_moe)
    if quant is not None:
        return read_modelopt_file(quant, num_layers=num_layers(text), is_moe=is_moe)
    return None


def _load(
    config: Path, quant: Path | None, *, name: str, dtype: str | None, kv_cache_dtype: str | None
) -> ModelSpec:
    keys = Keys(values=read_json_object(config), place=one_line(config))
    quant_keys = None if quant is None else Keys(values=read_json_object(quant), place=one_line(quant))
    return parse_model(keys, quant_keys, name=name, dtype=dtype, kv_cache_dtype=kv_cache_dtype)


def _load_packaged(model: PackagedModel, *, dtype: str | None, kv_cache_dtype: str | None) -> ModelSpec:
    keys = Keys(values=read_json_object(model.config), place=one_line(model.config))
    # The cache's format belongs to the alias' weights: with other weights it falls back as usual.
    cache = kv_cache_dtype or (model.kv_cache_dtype if dtype is None else None)
    return parse_model(
        keys.overridden(model.overrides), name=model.name, dtype=dtype or model.dtype, kv_cache_dtype=cache
    )


def _local_files(name_or_path: str) -> tuple[Path, Path | None] | None:
    """Return config.json and hf_quant_config.json if ``name_or_path`` is a file or a model directory."""
    path = Path(name_or_path)
    if os.path.isdir(path) and os.path.isfile(path / "config.json"):
        config = path / "config.json"
    elif os.path.isfile(path):
        config = path
    else:
        return None
    quant = config.parent / _QUANT_FILE
    return config, quant if config.name == "config.json" and os.path.isfile(quant) else None


def _local_name(config: Path) -> str:
    """Name a local model after its directory, or after a file of another name."""
    stem = config.absolute().parent.name if config.name == "config.json" else config.stem
    return one_line(stem) or "model"


def _unknown(name: str) -> ModelError:
    shown = one_line(name, 120)
    if os.path.isdir(name):
        return ModelError(f"{shown}: the directory holds no config.json")
    if os.path.exists(name):
        return ModelError(f"{shown}: is no regular file")
    if name.endswith(".json") or name.startswith((".", "/", "~")):
        return ModelError(f"{shown}: no such file")
    known = known_names()
    hint = nearest(shown, known) or nearest(shown, [entry.rpartition("/")[2] for entry in known])
    return ModelError(
        f"{shown}: unknown model. {hint} A path to a config.json works too, "
        "and so does any Hugging Face id once tpplanner[hub] is installed".replace("  ", " ")
    )
