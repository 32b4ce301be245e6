"""Fetching the configuration of a model that is not packaged, if huggingface_hub is installed.

Only the two JSON files are fetched. Code of a repository (``auto_map``) is never loaded.
"""

import importlib
import re
import socket
from pathlib import Path
from types import ModuleType
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies

from tpplanner.errors import ModelError
from tpplanner.io.model_json import one_line

_REPO_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_TIMEOUT_S: Final = 5.0
"""A reachable hub answers in well under a second; a planner offline should say so quickly."""


def looks_like_repo_id(name: str) -> bool:
    """Whether ``name`` has the form ``owner/model``.

    Examples
    --------
    >>> looks_like_repo_id("Qwen/Qwen2.5-32B"), looks_like_repo_id("a/b/config.json")
    (True, False)
    """
    return _REPO_ID.fullmatch(name) is not None


def hub_installed() -> bool:
    """Whether the optional package huggingface_hub can be imported."""
    return _hub() is not None


def fetch_files(name: str) -> tuple[Path, Path | None]:
    """Return local paths of config.json and, if the repository has one, hf_quant_config.json.

    Raises
    ------
    ModelError
        If the package is missing, the hub out of reach, or the repository unknown or gated.
    """
    hub = _hub()
    if hub is None:
        raise ModelError(f"{one_line(name)}: huggingface_hub is not installed")
    _refuse_if_offline(name)
    config = _fetch(hub, name, "config.json")
    if config is None:
        raise ModelError(f"{one_line(name)}: the hub has no config.json of this model, or is out of reach")
    return config, _fetch(hub, name, "hf_quant_config.json")


def _refuse_if_offline(name: str) -> None:
    """Say at once that the hub's name is unknown here: the package tries again for half a minute."""
    try:
        host = urlsplit(importlib.import_module("huggingface_hub.constants").ENDPOINT).hostname
    except (ImportError, AttributeError):
        return
    if host is None or getproxies():
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        raise ModelError(f"{one_line(name)}: cannot be fetched from the hub: {host} is out of reach: {one_line(error)}") from None


def _fetch(hub: ModuleType, name: str, filename: str) -> Path | None:
    try:
        return Path(hub.hf_hub_download(repo_id=name, filename=filename, etag_timeout=_TIMEOUT_S))
    except Exception as error:
        # The hub raises a dozen kinds of errors, those of its HTTP client among them. A missing file
        # is told by the class name, which every release of the package has kept.
        if "EntryNotFound" in type(error).__name__:
            return None
        raise ModelError(
            f"{one_line(name)}: cannot be fetched from the hub: {type(error).__name__}: {one_line(error)}"
        ) from None


def _hub() -> ModuleType | None:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        return None
