"""The worker processes, as the driver sees them."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NoReturn

import msgspec

from tpplanner.engine.config import EngineConfig
from tpplanner.engine.link import accept, listen, new_key
from tpplanner.engine.messages import Allocate, Failed, FromWorker, Hello, Ready, StepInput, StepOutput
from tpplanner.engine.torchrun import Launched
from tpplanner.errors import EngineError, ModelError, TpplannerError

_START_S = 120.0
_BLAME_S = 1.0
"""When one rank falls, others follow: so long the driver waits to see which of them fell by itself."""


def worker_environment(config: EngineConfig) -> dict[str, str]:
    """Environment that must stand before torch is imported.

    Threads that wait must not spin: with a neighbour on the core they make a step several times as long. Large temporary
    arrays must not go back to the system each time, and weights and KV cache are read by huge pages where the system
    grants them.
    """
    cores = len(os.sched_getaffinity(0))
    threads = config.num_threads or (1 if config.share_tp > 1 else max(cores - 1, 1))
    return os.environ | {
        "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "MALLOC_MMAP_THRESHOLD_": "4294967296",
        "MALLOC_TRIM_THRESHOLD_": "8589934592", "MALLOC_TOP_PAD_": "268435456", "THP_MEM_ALLOC_ENABLE": "1",
        "TOKENIZERS_PARALLELISM": "false"}


class Workers:
    """Starts one process per rank, talks to them, and ends all of them when one ends.

    Under torchrun only rank 0 is started here; the others come by themselves.
    """

    def __init__(self, config: EngineConfig, launched: Launched | None = None) -> None:
        self._config = config
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._links: dict[int, Connection] = {}
        # Where the ranks meet; those of torchrun have a place of their own.
        self._folder = None if launched else Path(tempfile.mkdtemp(prefix="tpplanner-engine-"))
        self._decoder = msgspec.msgpack.Decoder(FromWorker)
        self._encoder = msgspec.msgpack.Encoder()
        self._outputs: list[StepOutput] = []
        self.num_kv_blocks, self.device, self.dtype, self.weight_bytes = 0, "", "", 0
        try:
            self._start(launched)
            ready = self._all_ready()
            self.num_kv_blocks = min(r.num_blocks for r in ready)
            self.device, self.dtype, self.weight_bytes = ready[0].device, ready[0].dtype, ready[0].weight_bytes
            self._send_all(Allocate(self.num_kv_blocks))
            self._all_ready()
        except BaseException:
            self.close()
            raise

    def _start(self, launched: Launched | None) -> None:
        key = new_key()
        # Under torchrun other nodes call too; whoever does not know the key is turned away.
        with listen("" if launched else "127.0.0.1", 0) as server:
            port = server.getsockname()[1]
            address = f"127.0.0.1:{port}"
            store = "env://" if launched else f"file://{self._folder}/store"
            environment = worker_environment(self._config) | {
                "TPPLANNER_ENGINE_ADDRESS": address, "TPPLANNER_ENGINE_KEY": key.hex(), "TPPLANNER_ENGINE_STORE": store}
            if launched:
                launched.publish(f"{launched.host}:{port}", key)
            for rank in range(1 if launched else self._config.tp):
                self._processes[rank] = subprocess.Popen(
                    [sys.executable, "-m", "tpplanner.engine.worker"], env=environment | {"RANK": str(rank)},
                    stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True)
            deadline = time.monotonic() + _START_S
            while len(self._links) < self._config.tp:
                self._take_in(accept(server, key), deadline)

    def _take_in(self, link: Connection | None, deadline: float) -> None:
        if link is None:
            for rank, process in self._processes.items():
                if process.poll() is not None and rank not in self._links:
                    raise EngineError(f"engine: rank {rank} {_how_it_ended(process)} before it was connected")
            if time.monotonic() > deadline:
                raise EngineError(f"engine: only {len(self._links)} of {self._config.tp} ranks came within {_START_S:.0f} s")
            return
        hello = self._decoder.decode(link.recv_bytes())
        assert isinstance(hello, Hello)
        link.send_bytes(msgspec.json.encode(self._config))
        self._links[hello.rank] = link

    def _all_ready(self) -> list[Ready]:
        ready: dict[int, Ready] = {}
        while len(ready) < self._config.tp:
            for message in self._receive(None):
                assert isinstance(message, Ready)
                ready[message.rank] = message
        return [ready[rank] for rank in sorted(ready)]

    def _receive(self, timeout_s: float | None) -> list[FromWorker]:
        """Messages that are there, or come within ``timeout_s``; raise where a rank has failed or ended."""
        messages: list[FromWorker] = []
        ranks = {link: rank for rank, link in self._links.items()}
        for link in wait(list(ranks), timeout_s):
            try:
                message = self._decoder.decode(link.recv_bytes())  # type: ignore[union-attr]
            except (EOFError, OSError):
                self._blame(_silent(ranks[link]))  # type: ignore[index]
            if isinstance(message, Failed):
                self._blame(message)
            messages.append(message)
        return messages

    def _blame(self, failed: Failed) -> NoReturn:
        """Raise the error of the rank that fell first, not of those that missed it."""
        deadline = time.monotonic() + _BLAME_S
        while time.monotonic() < deadline:
            for rank, process in self._processes.items():
                if process.poll() is not None and (process.returncode or 0) < 0:
                    raise EngineError(f"engine: rank {rank} {_how_it_ended(process)}; all ranks were ended")
            time.sleep(0.02)
        if not failed.kind:
            fallen = self._processes.get(failed.rank)
            how = failed.message if fallen is None or fallen.poll() is None else _how_it_ended(fallen)
            raise EngineError(f"engine: rank {failed.rank} {how}; all ranks were ended")
        if failed.kind in ("ModelError", "WorkloadError"):
            raise (ModelError if failed.kind == "ModelError" else TpplannerError)(failed.message)
        raise EngineError(f"engine: rank {failed.rank}: {failed.message}")

    def _send_all(self, message: Allocate | StepInput) -> None:
        data = self._encoder.encode(message)
        for rank, link in self._links.items():
            try:
                link.send_bytes(data)
            except OSError:
                self._blame(self._last_words(rank))

    def _last_words(self, rank: int) -> Failed:
        """What a rank that takes no more steps said before."""
        with contextlib.suppress(EOFError, OSError):
            while self._links[rank].poll(_BLAME_S):
                message = self._decoder.decode(self._links[rank].recv_bytes())
                if isinstance(message, Failed):
                    return message
        return _silent(rank)

    def submit(self, step: StepInput) -> None:
        """Send a step to every rank; they take steps in order."""
        self._send_all(step)

    def has_output(self, timeout_s: float) -> bool:
        """Whether the outcome of the oldest step is here, or comes within ``timeout_s``."""
        if not self._outputs:
            self._outputs += [m for m in self._receive(max(timeout_s, 0.0)) if isinstance(m, StepOutput)]
        return bool(self._outputs)

    def output(self) -> StepOutput:
        """Wait for the outcome of the oldest step."""
        while not self.has_output(3600.0):
            pass
        return self._outputs.pop(0)

    def check(self) -> None:
        """Raise where a rank has ended, without waiting."""
        self.has_output(0.0)

    @property
    def process_ids(self) -> list[int]:
        """Of the workers that were started here, by rank."""
        return [process.pid for process in self._processes.values()]

    def close(self) -> None:
        """End all workers and wait for them."""
        for link in self._links.values():
            link.close()
        deadline = time.monotonic() + 2.0
        for process in self._processes.values():
            try:
                process.wait(max(deadline - time.monotonic(), 0.05))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._links = {}
        if self._folder is not None:
            Path("/dev/shm", self._folder.name).unlink(missing_ok=True)  # of ranks that ended before all had it
            shutil.rmtree(self._folder, ignore_errors=True)


def _silent(rank: int) -> Failed:
    return Failed(rank, "", "went away without a word")


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    return f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
