"""The points of a sweep on a Ray cluster: Ray places, moves and repeats the tasks, and takes them back."""

import contextlib
import importlib
import os
import re
import signal
import socket
import textwrap
import threading
from collections.abc import Iterable, Iterator
from itertools import islice
from types import ModuleType
from typing import Any, Final

from tpplanner.api.sweep_point import failed, run_points
from tpplanner.api.sweep_workers import AHEAD, Chunk, Results
from tpplanner.errors import WorkloadError, reject

LOCAL: Final = "local"
INSTALL: Final = "pip install 'tpplanner[ray]'"

_HOST_PORT: Final = re.compile(r"(ray://)?(?P<host>[^/]+):(?P<port>\d{1,5})")
_CONNECT_S: Final = 10.0
_STORE_BYTES: Final = 100 * 10**6
"""Object store of a local Ray [bytes]: results are rows of figures, and its default is a third of the memory."""


def ray_module() -> ModuleType:
    """Return Ray.

    Raises
    ------
    WorkloadError
        It is not installed.
    """
    # No word to anybody outside from a planner that runs beside private traffic.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A sweep asks for no accelerator; without this every task on a machine with GPUs warns of a change to come.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise WorkloadError(f"--ray: needs Ray: {INSTALL}") from None


def on_ray(chunks: Iterable[Chunk], address: str, jobs: int | None) -> Results:
    """Run tasks on the cluster at ``address``; ``"local"`` starts one on this machine.

    Raises
    ------
    WorkloadError
        Ray is not installed, or nothing answers at the address.
    """
    source = iter(chunks)
    with _connected(ray_module(), address, jobs) as ray:
        remote = ray.remote(run_points).options(num_cpus=1, max_retries=2)
        ahead = AHEAD * (jobs or max(int(ray.cluster_resources().get("CPU", 1)), 1))
        running: dict[Any, Chunk] = {}
        while True:
            for chunk in islice(source, ahead - len(running)):
                running[remote.remote(chunk)] = chunk
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1)
            chunk = running.pop(done[0])
            try:
                results = ray.get(done[0])
            except ray.exceptions.RayError as error:
                # The node is lost, out of memory, or has no tpplanner. The class names which; the text may be pages long.
                why = f"Ray: {type(error).__name__}: {_short(error)}"
                results = [failed(task, why) for task in chunk]
            yield results


@contextlib.contextmanager
def _connected(ray: ModuleType, address: str, jobs: int | None) -> Iterator[ModuleType]:
    """Connect to a cluster for as long as the sweep runs; a connection that is already there is used, and left open."""
    if ray.is_initialized():
        yield ray
        return
    _check_reachable(address)
    local = {"num_cpus": jobs, "include_dashboard": False, "object_store_memory": _STORE_BYTES} if address == LOCAL else {}
    try:
        try:
            with _interrupt_later() if local else contextlib.nullcontext():
                ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
        except (OSError, ValueError, RuntimeError) as error:
            reject(WorkloadError, "address", f"be local, or lead to a Ray cluster ({_short(error)})", address, "--ray")
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _interrupt_later() -> Iterator[None]:
    """Keep Ctrl-C until the block is done: a Ray that is half started leaves processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def _short(error: Exception) -> str:
    """Return the start of a message on one line: those of Ray may hold pages."""
    return textwrap.shorten(str(error), 200, placeholder="...")


def _check_reachable(address: str) -> None:
    """Refuse a host and port that nothing listens at: Ray itself tries for minutes."""
    found = _HOST_PORT.fullmatch(address)
    if found is None:
        return
    try:
        socket.create_connection((found["host"].strip("[]"), int(found["port"])), timeout=_CONNECT_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        reject(WorkloadError, "address", f"be local, or lead to a Ray cluster ({error})", address, "--ray")
