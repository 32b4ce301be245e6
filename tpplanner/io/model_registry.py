"""The models that come with the package: their files, and the other names that lead to them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from tpplanner.errors import ModelError
from tpplanner.io.model_json import read_json_object
from tpplanner.io.model_keys import Keys

MODELS_DIR: Final = Path(__file__).resolve().parent.parent / "models"
_ALIASES_FILE: Final = MODELS_DIR / "aliases.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A Hugging Face id that the package knows.

    ``dtype`` and ``kv_cache_dtype`` are the formats of a quantised copy of the model, ``None`` where
    the id has the precision of ``config``. ``overrides`` are keys of config.json that differ (base models
    often state another context length).
    """

    name: str
    config: Path
    dtype: str | None = None
    kv_cache_dtype: str | None = None
    overrides: Mapping[str, object] = field(default_factory=dict)


def packaged_models() -> tuple[str, ...]:
    """Return the Hugging Face ids of the packaged configurations, sorted; aliases are not among them.

    Examples
    --------
    >>> "Qwen/Qwen2.5-32B-Instruct" in packaged_models()
    True
    """
    return tuple(sorted(_configs(), key=str.lower))


def known_names() -> tuple[str, ...]:
    """Return every id that `find_packaged` knows, aliases included."""
    return tuple(model.name for model in _by_id().values())


def find_packaged(name: str) -> PackagedModel | None:
    """Return the packaged model called ``name``, or ``None``.

    The id is matched without regard to case, in full or by the part after the slash. Where that part is
    shared, a packaged configuration comes before an alias.

    Raises
    ------
    ModelError
        If the part after the slash belongs to several aliases of different precision.
    """
    key = name.strip().lower()
    found = _by_id().get(key)
    if found is not None or "/" in key:
        return found
    hits = [model for model in _by_id().values() if model.name.lower().rpartition("/")[2] == key]
    own = [model for model in hits if model.name in _configs()]
    if own or not hits:
        return own[0] if own else None
    if len({(model.config, model.dtype, model.kv_cache_dtype) for model in hits}) > 1:
        raise ModelError(f"{name}: several models have this name: {', '.join(model.name for model in hits)}")
    return hits[0]


@cache
def _configs() -> dict[str, Path]:
    """Return id -> file; the file name is the id with ``--`` for the slash."""
    files = (path for path in MODELS_DIR.glob("*--*.json"))
    return {path.stem.replace("--", "/", 1): path for path in files}


@cache
def _by_id() -> dict[str, PackagedModel]:
    """Return lower-case id -> model, aliases included."""
    configs = _configs()
    models = [PackagedModel(name=name, config=path) for name, path in sorted(configs.items())]
    aliases = Keys(values=read_json_object(_ALIASES_FILE), place=str(_ALIASES_FILE))
    for name in aliases.values:
        alias = aliases.child(name)
        target = None if alias is None else alias.optional_text("model")
        if alias is None or target not in configs:
            raise aliases.refuse(name, "lead to a packaged model")
        overrides = alias.child("overrides")
        models.append(PackagedModel(
            name=name, config=configs[target], dtype=alias.optional_text("dtype"),
            kv_cache_dtype=alias.optional_text("kv_cache_dtype"),
            overrides={} if overrides is None else overrides.values,
        ))
    return {model.name.lower(): model for model in models}
