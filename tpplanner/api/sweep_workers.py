"""Where the points of a sweep run: in this process, in processes of this machine, or on a Ray cluster.

Each way takes tasks, and yields the results of one task after the other as they come in. When the generator is closed,
or an exception passes through it, the work in flight ends.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Final

from tpplanner.api.sweep_point import failed, run_points
from tpplanner.domain.sweep import PointResult, SweepTask
from tpplanner.errors import WorkloadError

Chunk = Sequence[SweepTask]
Results = Generator[list[PointResult], None, None]

AHEAD: Final = 2
"""Tasks per worker that are in flight: the next one lies ready when one ends, and a million are never queued at once."""

_BLAS_THREADS: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_SEND_S: Final = 0.1
_DIED: Final = "the process that computed this point ended (killed, or out of memory)"


def in_process(chunks: Iterable[Chunk]) -> Results:
    """Run one task after the other here."""
    for chunk in chunks:
        yield run_points(chunk)


def in_processes(chunks: Iterable[Chunk], jobs: int) -> Results:
    """Run tasks in ``jobs`` processes.

    A process that dies takes the tasks in flight with it. Their points are then run one at a time: the one whose process
    dies again has an error, the others their answers.

    Raises
    ------
    WorkloadError
        Processes cannot be started.
    """
    source = iter(chunks)
    while True:
        lost = yield from _until_a_death(source, jobs)
        if not lost:
            return
        yield from _one_by_one(task for chunk in lost for task in chunk)


def _until_a_death(source: Iterator[Chunk], jobs: int) -> Generator[list[PointResult], None, list[Chunk]]:
    """Run tasks until none is left, or a process dies; return the tasks that were in flight then."""
    running: dict[Future[list[PointResult]], Chunk] = {}
    lost: list[Chunk] = []
    with _Workers(jobs) as workers:
        while not lost:
            for chunk in islice(source, AHEAD * jobs - len(running)):
                running[workers.submit(chunk)] = chunk
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                chunk = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    lost.append(chunk)
                else:
                    yield future.result()
    return [*lost, *(running.values() if lost else ())]


def _one_by_one(tasks: Iterator[SweepTask]) -> Results:
    """Run points in one process, and in a new one after a point that ends it."""
    task = next(tasks, None)
    while task is not None:
        with _Workers(1) as workers:
            if workers.submit(()).exception() is not None:
                raise WorkloadError("workers: processes must be able to start; a script calls tpplanner.sweep under "
                                    "if __name__ == '__main__':, or with jobs=1")
            died = False
            while task is not None and not died:
                future = workers.submit((task,))
                died = isinstance(future.exception(), BrokenProcessPool)
                yield [failed(task, _DIED)] if died else future.result()
                task = next(tasks, None)


class _Workers:
    """Processes that end when this object is left, and with the process that made it, however that one ends."""

    def __init__(self, jobs: int) -> None:
        context = get_context("spawn")
        self._waits, self._alive = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(self._waits,))

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is not None:
            self._alive.close()  # the processes end now, not after their tasks
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._alive.close()
        self._waits.close()

    def submit(self, chunk: Chunk) -> "Future[list[PointResult]]":
        """Send a task; that no process is left to take it is known from its future."""
        try:
            # Processes are started as tasks come in. They keep the mask, and read the variables when numpy is loaded.
            with _no_interrupt(), _one_blas_thread():
                return self._pool.submit(_run, chunk)
        except BrokenProcessPool as error:
            broken: Future[list[PointResult]] = Future()
            broken.set_exception(error)
            return broken


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Put Ctrl-C off: in a process that is only starting it would be a traceback, and half a start here."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Let new processes compute with one thread each: there is one per core."""
    before = {name: os.environ.get(name) for name in _BLAS_THREADS}
    os.environ.update(dict.fromkeys(_BLAS_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Worker:
    """The state of a worker process."""

    computing = False
    stopping = False


def _begin(waits: Connection) -> None:
    """Prepare a worker: Ctrl-C is for the process that began the sweep, and the worker ends when that one says so or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(waits,), daemon=True).start()


def _end_with(waits: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        waits.recv_bytes()
    _Worker.stopping = True
    if not _Worker.computing:
        # A result may be on its way. Half of one would leave the other side waiting for the rest.
        threading.Event().wait(_SEND_S)
    os._exit(1)


def _run(chunk: Chunk) -> list[PointResult]:
    _Worker.computing = True
    try:
        return run_points(chunk)
    finally:
        _Worker.computing = False
        if _Worker.stopping:
            os._exit(1)
