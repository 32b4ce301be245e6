"""Devices that share a memory slow each other down: processes that run the same case on the other cores while one is timed."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

import torch

from calibrate import bench_attention, bench_gemm
from calibrate.bench import Bench, Prepared, WrongAnswerError
from calibrate.machine import Nvml
from calibrate.samples import Case
from calibrate.timing import pieces_s
from tpplanner.engine.config import EngineConfig
from tpplanner.engine.workers import worker_environment

PREPARE: Mapping[str, Callable[[Case, Bench], Prepared]] = {
    bench_gemm.NAME: bench_gemm.prepare, bench_attention.DECODE: bench_attention.prepare_decode}
"""Benchmarks that are timed with neighbours at work."""


class Neighbours:
    """``count`` processes that repeat a case until they are told to rest."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._processes: list[subprocess.Popen[bytes]] = []
        self.restart()

    def restart(self) -> None:
        """Start all of them, anew where one has ended."""
        self._end()
        environment = worker_environment(EngineConfig(model="", num_threads=1))
        for _ in range(self._count):
            self._processes.append(subprocess.Popen(
                [sys.executable, "-m", "calibrate.neighbours"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):  # a line that nobody reads any more
                        pipe.close()
        self._processes.clear()

    def work(self, bench: str, case: Case) -> None:
        """Have every process repeat a case; returns when all of them do.

        Raises
        ------
        WrongAnswerError
            If one has ended.
        """
        self._tell({"bench": bench, "case": dict(case)})

    def rest(self) -> None:
        """Have every process wait; returns when all of them do."""
        self._tell(None)

    def _tell(self, message: object) -> None:
        try:
            for process in self._processes:
                assert process.stdin is not None
                process.stdin.write(json.dumps(message).encode() + b"\n")
                process.stdin.flush()
        except OSError:
            raise WrongAnswerError("a neighbour of the timed process has ended") from None
        for process in self._processes:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise WrongAnswerError("a neighbour of the timed process has ended")


def _told() -> bool:
    return bool(select.select([0], [], [], 0)[0])


def _be_a_neighbour() -> None:
    """Repeat what stdin asks for until the next line comes; every change is answered with a line."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    bench, answers = Bench(device=torch.device("cpu"), nvml=Nvml(None)), os.fdopen(1, "wb", buffering=0)
    with os.fdopen(0, "rb", buffering=0) as asked:
        while line := asked.readline():
            message = json.loads(line)
            if message is None:
                answers.write(b"resting\n")
                continue
            prepared = PREPARE[message["bench"]](message["case"], bench)
            prepared.check()
            pieces_s(prepared.on_host, 0)
            answers.write(b"working\n")
            i = 1
            while not _told():
                pieces_s(prepared.on_host, i)
                i += 1


if __name__ == "__main__":
    _be_a_neighbour()
