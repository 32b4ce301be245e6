"""Loading a profile of either kind, and looking a profile over: what is valid but doubtful."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tpplanner.domain.engine import EngineProfile, SamplingPolicy
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.quantity import Provenance, Quantity
from tpplanner.io.profile_engine import read_engine
from tpplanner.io.profile_files import (
    DATASHEET,
    FITTED,
    engine_files,
    lookup_engine,
    lookup_machine,
    machine_files,
    read_json,
    read_toml,
    reject_unknown,
)
from tpplanner.io.profile_hardware import read_hardware
from tpplanner.units import GB, GIB, TERA

_PLAUSIBLE: Final = {
    "hbm_bytes": (8.0 * GIB, 1024.0 * GIB, float(GIB), "GiB"),
    "hbm_bytes_s": (200.0 * GB, 30_000.0 * GB, float(GB), "GB/s"),
}
"""From an 8 GB card to twice the largest memory announced; field -> low, high, unit in SI, unit."""

_KEY: Final = re.compile(r"[\w-]+")
"""What looks like a key of ``[sources]``; texts have spaces, file names and links other punctuation."""

_RATIOS: Final = {
    "fp16": (1.0, 2.0),
    "tf32": (0.25, 0.5),
    "fp8": (2.0, 2.0),
    "int8": (0.0, 4.0),
    "fp6": (2.0, 2.0),
    "fp4": (4.0, 6.0),
    "nvfp4": (4.0, 6.0),
    "mxfp4": (4.0, 6.0),
}
"""Dense peak over the bf16 peak in every datasheet read so far; a figure with sparsity is off by 2."""


def load_profile(name: str, *, extra_dirs: Sequence[Path] = ()) -> HardwareProfile | EngineProfile:
    """Return the machine or the engine of that name, alias or path.

    Raises
    ------
    ProfileError
        Neither a machine nor an engine has that name, or its file is malformed.

    Examples
    --------
    >>> load_profile("h100").name, load_profile("albireo").name
    ('h100-sxm', 'albireo')
    """
    if name.endswith(".toml") and Path(name).name != DATASHEET:
        return read_engine(Path(name))
    machine = lookup_machine(name, extra_dirs)
    if machine is not None:
        return read_hardware(machine)
    engine = lookup_engine(name, extra_dirs)
    if engine is not None:
        return read_engine(engine)
    reject_unknown("profile", name, machine_files(extra_dirs) | engine_files(extra_dirs))


def check_profile(name: str, *, extra_dirs: Sequence[Path] = ()) -> list[str]:
    """Return one line for each doubt about a profile that loads; errors are raised.

    Raises
    ------
    ProfileError
        The profile is unknown or malformed.
    """
    profile = load_profile(name, extra_dirs=extra_dirs)
    if isinstance(profile, HardwareProfile):
        return [*_hardware_doubts(profile), *_source_doubts(profile)]
    return [*_engine_doubts(profile), *_source_doubts(profile)]


def _hardware_doubts(profile: HardwareProfile) -> Iterator[str]:
    folder = Path(profile.place).parent
    if not (folder / FITTED).is_file():
        yield f"{profile.name}: no {FITTED}: efficiencies are documented defaults, not fits"
    for field, (low, high, scale, unit) in _PLAUSIBLE.items():
        value = getattr(profile, field).value
        if not low <= value <= high:
            yield (
                f"{profile.name}: {field} is {value / scale:g} {unit}, "
                f"outside {low / scale:g} to {high / scale:g} {unit}"
            )
    bf16 = profile.peak_flop_s["bf16"].value
    for dtype, (low, high) in _RATIOS.items():
        ratio = profile.peak_flop_s[dtype].value / bf16 if dtype in profile.peak_flop_s else low
        if not 0.9 * low <= ratio <= 1.1 * high:
            yield (
                f"{profile.name}: peak_flop_s.{dtype} is {ratio:.2g} times bf16 ({bf16 / TERA:g} TFLOP/s), "
                f"outside {low:g} to {high:g}: is one of them with sparsity?"
            )
    if not profile.collectives:
        yield f"{profile.name}: no measured collectives: all-reduce is alpha and bus bandwidth"
    if profile.price_usd_h is None:
        yield f"{profile.name}: no list price"
    if profile.gpus_per_node & (profile.gpus_per_node - 1):
        yield f"{profile.name}: gpus_per_node is {profile.gpus_per_node}, not a power of two"


def _engine_doubts(profile: EngineProfile) -> Iterator[str]:
    tasks = (profile.schedule, profile.prepare_input, profile.process_output, *profile.sampling.values())
    costs = [cost for task in tasks for cost in (task.fixed_s, task.per_seq_s)]
    backed = {Provenance.FITTED, Provenance.MEASURED}
    if not any(cost.provenance in backed for cost in costs):
        yield f"{profile.name}: no host or sampling time is fitted or measured"
    per_seq = [profile.sampling[policy].per_seq_s.value for policy in SamplingPolicy]
    if per_seq != sorted(per_seq):
        yield f"{profile.name}: sampling per sequence does not grow from greedy to top-p to full"
    yield from _slow(profile.name, "layer_overhead_s", profile.layer_overhead_s, 1e-3)
    yield from _slow(profile.name, "overlap_overhead_s", profile.overlap_overhead_s, 10e-3)
    if profile.switches.async_sched and profile.overlap_overhead_s.value == 0:
        yield f"{profile.name}: async_sched is on and overlap_overhead_s is 0"


def _source_doubts(profile: HardwareProfile | EngineProfile) -> Iterator[str]:
    """Name the sources that are one word and no key of the file's [sources]: a key misspelt, most likely."""
    path = Path(profile.place)
    if not path.is_file():  # a path that messages cannot show as it is
        return
    fitted = path.with_name(FITTED)
    files = [(path, read_toml(path))]
    if isinstance(profile, HardwareProfile) and fitted.is_file():
        files.append((fitted, read_json(fitted)))
    for file, data in files:
        known = data.get("sources", {})
        for dotted, source in _sources(data, ""):
            if _KEY.fullmatch(source) and (not isinstance(known, Mapping) or source not in known):
                yield f"{profile.name}: {dotted}.source is {source!r}, which {file.name} does not define in [sources]"


def _sources(item: object, dotted: str) -> Iterator[tuple[str, str]]:
    """Yield (dotted name, source) for every record of a file, at any depth."""
    if isinstance(item, Mapping):
        if isinstance(item.get("source"), str):
            yield dotted, item["source"]
        entries = [(f"{dotted}.{key}" if dotted else str(key), entry) for key, entry in item.items()
                   if dotted or key != "sources"]
    elif isinstance(item, list):
        entries = [(f"{dotted}[{i}]", entry) for i, entry in enumerate(item)]
    else:
        return
    for name, entry in entries:
        yield from _sources(entry, name)


def _slow(name: str, field: str, quantity: Quantity, limit_s: float) -> Iterator[str]:
    if quantity.value > limit_s:
        yield f"{name}: {field} is {quantity.value * 1e3:g} ms, over {limit_s * 1e3:g} ms"
