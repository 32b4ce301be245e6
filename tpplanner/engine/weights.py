"""Reading one rank's share of a model's weights from safetensors, or drawing random ones."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tpplanner.engine.model_config import EngineModel
from tpplanner.engine.partition import Partition
from tpplanner.errors import ModelError, reject

Heads = tuple[int | None, ...]


class Checkpoint:
    """The tensors of a model directory, read piece by piece.

    Raises
    ------
    ModelError
        If there are no safetensors, a file is malformed, or a tensor is missing or has another shape.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}
        names = sorted(folder.glob("*.safetensors"))
        if not names:
            raise ModelError(f"{folder}: no *.safetensors; --load-format dummy runs without weights")
        for name in names:
            try:
                file = stack.enter_context(safe_open(name, framework="pt"))
                self._files.update(dict.fromkeys(file.keys(), (file, name)))
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{name}: not a readable safetensors file: {error}") from None

    def slice(self, name: str, shape: tuple[int, ...]) -> Any:
        """Return a lazy view of a tensor of ``shape``."""
        if name not in self._files:
            raise ModelError(f"{self.folder}: no tensor {name} in any safetensors file")
        file, path = self._files[name]
        view = file.get_slice(name)
        if view.get_dtype() not in ("F64", "F32", "F16", "BF16"):
            reject(ModelError, name, "have floating-point numbers of 16 bits or more", view.get_dtype(), str(path))
        if tuple(view.get_shape()) != shape:
            reject(ModelError, name, f"have shape {list(shape)} as config.json says", view.get_shape(), str(path))
        return view


class Dummy:
    """Random weights of any shape: normal with the spread that keeps activations near one."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._generator = torch.Generator(device=device).manual_seed(seed)
        self._device = device

    def draw(self, shape: tuple[int, ...], dtype: torch.dtype, *, is_norm: bool) -> Tensor:
        """Return a tensor of ``shape``; vectors are ones or zeros, as ranks that hold the same one must agree on it."""
        if is_norm or len(shape) == 1:
            return torch.full(shape, float(is_norm), dtype=dtype, device=self._device)
        out = torch.empty(shape, dtype=dtype, device=self._device)
        return out.normal_(std=shape[-1] ** -0.5, generator=self._generator)


class Loader:
    """One rank's tensors, padded with zeros as its partition says."""

    def __init__(self, model: EngineModel, part: Partition, source: Checkpoint | Dummy, *, dtype: torch.dtype,
                 device: torch.device) -> None:
        self.model, self.part, self._source = model, part, source
        self._dtype, self._device = dtype, device

    def _make(self, name: str, full: tuple[int, ...], local: tuple[int, ...], read: Callable[[Any, Tensor], object]) -> Tensor:
        if isinstance(self._source, Dummy):
            return self._source.draw(local, self._dtype, is_norm=len(local) == 1 and "norm" in name)
        out = torch.zeros(local, dtype=self._dtype)
        read(self._source.slice(name, full), out)
        return out.to(self._device)

    def whole(self, name: str, size: int) -> Tensor:
        """Return a vector that every rank holds."""
        return self._make(name, (size,), (size,), lambda view, out: out.copy_(view[:]))

    def rows(self, name: str, total: int, span: tuple[int, int], padded: int) -> Tensor:
        """Return rows ``span`` of a [total, hidden] matrix, padded."""

        def read(view: Any, out: Tensor) -> None:
            out[: span[1] - span[0]] = view[span[0]:span[1]].to(self._dtype)

        hidden = self.model.hidden_size
        return self._make(name, (total, hidden), (padded, hidden), read)

    def columns(self, name: str, total: int, span: tuple[int, int], padded: int) -> Tensor:
        """Return columns ``span`` of a [hidden, total] matrix, padded."""

        def read(view: Any, out: Tensor) -> None:
            out[:, : span[1] - span[0]] = view[:, span[0]:span[1]].to(self._dtype)

        hidden = self.model.hidden_size
        return self._make(name, (hidden, total), (hidden, padded), read)

    def head_rows(self, name: str, total_heads: int, heads: Heads, *, bias: bool = False) -> Tensor:
        """Return the rows (or the bias) of heads, those of ``None`` zero."""
        dim, tail = self.model.head_dim, () if bias else (self.model.hidden_size,)

        def read(view: Any, out: Tensor) -> None:
            for i, head in enumerate(heads):
                if head is not None:
                    out[i * dim:(i + 1) * dim] = view[head * dim:(head + 1) * dim].to(self._dtype)

        return self._make(name, (total_heads * dim, *tail), (len(heads) * dim, *tail), read)

    def head_columns(self, name: str, heads: Heads) -> Tensor:
        """Return the columns of query heads of the output projection, those of ``None`` zero."""
        dim, hidden = self.model.head_dim, self.model.hidden_size

        def read(view: Any, out: Tensor) -> None:
            for i, head in enumerate(heads):
                if head is not None:
                    out[:, i * dim:(i + 1) * dim] = view[:, head * dim:(head + 1) * dim].to(self._dtype)

        return self._make(name, (hidden, self.model.num_heads * dim), (hidden, len(heads) * dim), read)


def check_files(folder: Path) -> None:
    """Raise `ModelError` where an index names a file of weights that is not there."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return
    try:
        files = set(msgspec.json.decode(index.read_bytes())["weight_map"].values())
    except (OSError, msgspec.DecodeError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: not an index of weights: {error}") from None
    missing = sorted(str(name) for name in files if not (folder / str(name)).exists())
    if missing:
        raise ModelError(f"{folder}: {len(missing)} files of weights are missing, the first is {missing[0]}")
