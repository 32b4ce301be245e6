"""Raw samples of microbenchmarks: JSON lines, one per case, and the facts of the machine beside them."""

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any, Final, Literal

import msgspec
import pandas as pd

from tpplanner.errors import ProfileError, reject

MACHINE_FILE: Final = "machine.json"
TINY_MODEL: Final = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "intermediate_size": 704, "vocab_size": 4096,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "eos_token_id": 2, "torch_dtype": "float32",
    "hidden_act": "silu", "tie_word_embeddings": True}
"""A small random model: a second shape beside the real one on CPUs, and what is verified where no model is named."""
HOST_MODEL: Final = TINY_MODEL | {
    "hidden_size": 320, "num_hidden_layers": 8, "num_attention_heads": 10, "num_key_value_heads": 2, "intermediate_size": 896}
"""config.json of the model with which host tasks are measured: steps of milliseconds, in which a waiting driver falls asleep
and loses its caches, as it does in service."""
ENGINE_DTYPES: Final = {"cpu": "float32", "cuda": "bfloat16"}
"""Number formats in which the engine is measured, by device."""
PLANNER_DTYPES: Final = {"cpu": "fp32", "cuda": "bf16"}
"""The same, as the planner names them."""


class Sample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one case took.

    ``times_s`` holds every iteration after the warm-up [s]; ``timer`` is ``host``, ``event`` (on a GPU's stream), ``graph``
    (the same, replayed) or ``counter``. ``values`` are other readings, in the unit that ends their names. A case that could
    not run has no times and says why in ``note``. ``round`` counts the passes over all cases, minutes apart.
    """

    bench: str
    case: dict[str, str | int]
    times_s: list[float]
    timer: str
    round: int = 0
    values: dict[str, float] = {}
    clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    note: str = ""


class SessionAsked(msgspec.Struct, frozen=True, kw_only=True):
    """What a run of the microbenchmarks is asked for."""

    root: str
    scope: str
    machine: str | None
    models: tuple[str, ...]
    device: str
    degrees: tuple[int, ...]


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """What is done and what is left [s], after each case."""

    bench: str
    num_done: int
    num_cases: int
    left_s: float
    note: str = ""


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """The end of a run: the machine's name and what went wrong, or the error that ended it."""

    machine: str = ""
    problems: tuple[str, ...] = ()
    error: str = ""


_DECODER: Final = msgspec.json.Decoder(Sample)


def read_samples(path: Path) -> Iterator[Sample]:
    """Samples of a file, in their order.

    Raises
    ------
    ProfileError
        If a line is no sample: the file and the line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield _DECODER.decode(line)
            except (msgspec.DecodeError, RecursionError) as error:
                raise ProfileError(f"{path}: line {number}: {error}") from None


class _MachineFacts(msgspec.Struct):
    """What a fit needs to know of a machine; there are more facts in the file."""

    device: Literal["cpu", "cuda"]
    name: Annotated[str, msgspec.Meta(min_length=1)]
    num_cores: Annotated[int, msgspec.Meta(ge=1)]
    cache_bytes: Annotated[int, msgspec.Meta(ge=1)]
    host_memory_bytes: Annotated[int, msgspec.Meta(ge=1)]


def read_machine(folder: Path) -> Mapping[str, Any]:
    """Facts of the machine whose samples a folder holds.

    Raises
    ------
    ProfileError
        If the folder holds none, or a fact is missing.
    """
    path = folder / MACHINE_FILE
    try:
        facts = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        msgspec.convert(facts, _MachineFacts)
        return facts
    except FileNotFoundError:
        raise ProfileError(f"{folder}: holds no samples; tpplanner calibrate takes them") from None
    except (OSError, msgspec.DecodeError) as error:
        raise ProfileError(f"{path}: {error}") from None


def typical_s(times_s: Sequence[float]) -> float:
    """Return the mean of a case's iterations [s], in which none counts for more than twice their median.

    A step is a sum of pieces, and only means add up; but what came between a few iterations and has nothing to do with them
    must not carry the case.

    Examples
    --------
    >>> typical_s([1.0, 1.0, 4.0])
    1.3333333333333333
    """
    most_s = 2.0 * median(times_s)
    if most_s == 0:
        return fmean(times_s)  # mostly nothing, as what stays exposed: the rest is all that there is
    return fmean(min(time_s, most_s) for time_s in times_s)


def sample_frame(folder: Path, bench: str, columns: Sequence[str] = ()) -> pd.DataFrame:
    """One row per case that ran: its sizes, other readings, and ``latency_s`` [s].

    The time is the mean over the passes of each one's `typical_s`. Empty where the benchmark has no file.

    Raises
    ------
    ProfileError
        If a sample lacks one of ``columns``, or a time makes no sense: the file and the line.
    """
    rounds = round_frame(folder, bench, columns)
    if rounds.empty:
        return rounds
    sizes = [name for name in rounds.columns if name not in ("round", "latency_s", *rounds.attrs["readings"])]
    read = {name: "mean" for name in rounds.columns if name not in (*sizes, "round")}
    return rounds.groupby(sizes, dropna=False, sort=False).agg(read).reset_index()


def round_frame(folder: Path, bench: str, columns: Sequence[str] = ()) -> pd.DataFrame:
    """As `sample_frame`, with one row per case and pass, and its number in ``round``.

    ``attrs["readings"]`` names the columns that are no part of the case.
    """
    path, rows, readings = folder / f"{bench}.jsonl", [], set[str]()
    for number, sample in enumerate(read_samples(path) if path.exists() else (), 1):
        if not sample.times_s:
            continue
        row = {**sample.case, **sample.values, "timer": sample.timer, "round": sample.round}
        missing = [name for name in columns if name not in row]
        if missing:
            reject(ProfileError, f"line {number}", f"say {', '.join(missing)}", list(row), str(path))
        if not 0 <= min(sample.times_s) <= max(sample.times_s) < inf:
            reject(ProfileError, f"line {number}: times_s", "be finite and >= 0", min(sample.times_s), str(path))
        rows.append(row | {"latency_s": typical_s(sample.times_s)})
        readings.update(sample.values)
    frame = pd.DataFrame(rows)
    frame.attrs["readings"] = sorted(readings)
    return frame
