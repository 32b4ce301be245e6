"""Models, machines and engines by name, each read once, and what was measured of an engine on a machine put into both."""

from functools import lru_cache
from pathlib import Path

from tpplanner.cost.serving import bind
from tpplanner.domain.engine import EngineProfile
from tpplanner.domain.engine_fit import with_engine_fit
from tpplanner.domain.fitted_profile import FittedProfile, apply_kernels
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.model import ModelSpec
from tpplanner.io.fitted_files import fitted_path, read_fitted
from tpplanner.io.model_config import load_model
from tpplanner.io.profile_engine import load_engine
from tpplanner.io.profile_hardware import load_hardware


@lru_cache(maxsize=512)
def model_of(name: str, dtype: str | None, kv_cache_dtype: str | None) -> ModelSpec:
    """Return a model in the formats that are served."""
    return load_model(name, dtype=dtype, kv_cache_dtype=kv_cache_dtype)


@lru_cache(maxsize=64)
def hardware_of(name: str) -> HardwareProfile:
    """Return a machine."""
    return load_hardware(name)


@lru_cache(maxsize=64)
def engine_of(name: str) -> EngineProfile:
    """Return an engine."""
    return load_engine(name)


@lru_cache(maxsize=64)
def _fitted(path: Path, changed_ns: int) -> FittedProfile:
    return read_fitted(path)


def fitted_of(machine: str, engine: str) -> FittedProfile | None:
    """Return what was fitted for an engine on a machine; ``None`` where nothing was.

    Kept per file and time of change, so that a folder named later, and an anchoring anew, are seen.
    """
    path = fitted_path(machine, engine)
    return None if path is None else _fitted(path, path.stat().st_mtime_ns)


def _fit_of(hardware: HardwareProfile, engine: EngineProfile) -> FittedProfile | None:
    return None if engine.measured_as is None else fitted_of(hardware.name, engine.measured_as)


@lru_cache(maxsize=64)
def _applied(hardware: HardwareProfile, fitted: FittedProfile) -> HardwareProfile:
    return apply_kernels(hardware, fitted)


def with_kernels(hardware: HardwareProfile, engine: EngineProfile) -> HardwareProfile:
    """Return the machine with the kernels that were measured of the engine on it, where there are any."""
    fitted = _fit_of(hardware, engine)
    return hardware if fitted is None or hardware.kernels is not None else _applied(hardware, fitted)


def with_runs(
    engine: EngineProfile, hardware: HardwareProfile, model: ModelSpec, *, family: str | None = None
) -> EngineProfile:
    """Return the engine as microbenchmarks and serving runs on the machine fitted it, where there are any."""
    fitted = _fit_of(hardware, engine)
    if fitted is not None and fitted.host is not None:
        engine = with_engine_fit(engine, fitted.host)
    if fitted is None or fitted.serving is None or engine.terms is not None:
        return engine
    return bind(engine, fitted.serving, model, family=family)
