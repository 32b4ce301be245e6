"""One rank: a process that loads its share of the weights and takes the steps that the driver sends.

Started by the driver, or by torchrun beside it. It ends when its connection to the driver does.
"""

import contextlib
import os
import shutil
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import NoReturn

import msgspec
import numpy as np
import torch
from torch import Tensor

from tpplanner.engine.attention import PagedAttention
from tpplanner.engine.config import EngineConfig
from tpplanner.engine.emulated_ranks import EmulatedRanks
from tpplanner.engine.graphs import DecodeGraphs
from tpplanner.engine.link import connect
from tpplanner.engine.memory import check_fits, num_kv_blocks, weight_bytes
from tpplanner.engine.messages import Allocate, Failed, FromWorker, Hello, Ready, StepInput, StepOutput, ToWorker
from tpplanner.engine.model import Decoder
from tpplanner.engine.model_config import EngineModel, read_model
from tpplanner.engine.paged_kernel import DecodeKernel
from tpplanner.engine.parallel import Ranks
from tpplanner.engine.partition import partition
from tpplanner.engine.runner import Runner
from tpplanner.engine.shared_ranks import SharedRanks, can_share
from tpplanner.engine.stopwatch import Laps
from tpplanner.engine.weights import Checkpoint, Dummy, Loader, check_files
from tpplanner.errors import TpplannerError

Outcome = tuple[int, Tensor, Laps]


class Worker:
    """Connection, model and queue of one rank."""

    def __init__(self, link: Connection, rank: int, config: EngineConfig, store: str) -> None:
        self._link, self._rank, self._config, self._store = link, rank, config, store
        self._inbox: SimpleQueue[ToWorker] = SimpleQueue()
        self._outcomes: SimpleQueue[Outcome] = SimpleQueue()
        self.device, self.dtype = torch.device("cpu"), torch.float32
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        """Take messages while a step runs; end the process when the driver is gone, whatever it waits for."""
        decoder = msgspec.msgpack.Decoder(ToWorker)
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._inbox.put(decoder.decode(self._link.recv_bytes()))
        _leave(self._store)

    def send(self, message: FromWorker) -> None:
        """Say something to the driver."""
        self._link.send_bytes(msgspec.msgpack.encode(message))

    def serve(self) -> None:
        """Load the model, say how many KV blocks fit, and take steps."""
        config = self._config
        model = read_model(config.model)
        self.device, self.dtype = self._place(model)
        check_fits(model, config, self.dtype, self.device)
        ranks = self._ranks(model)
        decoder = self._load(model, ranks)
        blocks = num_kv_blocks(model, config, self.dtype, self.device)
        weights = weight_bytes(model, config.share_tp, self.dtype, self.device)
        self.send(Ready(self._rank, blocks, self._device_name(), str(self.dtype).removeprefix("torch."), weights))
        allocate = self._inbox.get()
        assert isinstance(allocate, Allocate)
        runner = self._runner(decoder, ranks, allocate.num_blocks)
        self.send(Ready(self._rank, allocate.num_blocks, self._device_name(), str(self.dtype).removeprefix("torch."), weights))
        if self.device.type == "cuda":
            threading.Thread(target=self._return_outcomes, args=(runner,), daemon=True).start()
        while True:
            step = self._inbox.get()
            assert isinstance(step, StepInput)
            ids, laps = runner.run(step)
            if self._rank == 0:
                self._hand_over(step.step_index, ids, laps, runner)

    def _ranks(self, model: EngineModel) -> Ranks:
        config = self._config
        if config.emulate is not None:
            return EmulatedRanks(config.emulate, model.vocab_size)
        shares = self.device.type == "cpu" and config.tp > 1 and can_share(self._store)
        return (SharedRanks if shares else Ranks)(self._rank, config.tp, model.vocab_size)

    def _hand_over(self, step_index: int, ids: Tensor, laps: Laps, runner: Runner) -> None:
        if self.device.type == "cpu":
            self._return(step_index, ids, laps, runner)
            return
        # The next step is launched while these ids are on their way.
        host = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True)
        host.copy_(ids, non_blocking=True)
        runner.stopwatch.lap(laps)
        self._outcomes.put((step_index, host, laps))

    def _return_outcomes(self, runner: Runner) -> None:
        """Send outcomes as the device gets there; what it did wrong shows here too."""
        try:
            while True:
                self._return(*self._outcomes.get(), runner)
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> NoReturn:
        """Tell the driver, and end the process."""
        kind = type(error).__name__
        text = str(error) if isinstance(error, TpplannerError) else f"{kind}: {error}"
        with contextlib.suppress(OSError):
            self.send(Failed(self._rank, kind, " ".join(text.split())[:2000]))
        os._exit(1)

    def _return(self, step_index: int, ids: Tensor, laps: Laps, runner: Runner) -> None:
        begin_s, forward_end_s, end_s = runner.stopwatch.read_s(laps)[:3]
        if len(laps) > 3:
            runner.stopwatch.read_s(laps[3:])  # the copy of the ids
        self.send(StepOutput(step_index, ids.numpy().astype(np.int32).tobytes(), begin_s, forward_end_s, end_s))

    def _place(self, model: EngineModel) -> tuple[torch.device, torch.dtype]:
        config, name = self._config, self._config.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cuda":
            if not torch.cuda.is_available():
                raise TpplannerError("--device cuda: this machine has no CUDA device")
            local = int(os.environ.get("LOCAL_RANK", self._rank))
            if local >= torch.cuda.device_count():
                raise TpplannerError(f"--tp {config.tp}: this machine has {torch.cuda.device_count()} GPUs for the ranks on it")
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
        else:
            device = torch.device("cpu")
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        dtype = config.dtype if config.dtype != "auto" else model.dtype if name == "cuda" else "float32"
        return device, getattr(torch, dtype)

    def _device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"

    def _load(self, model: EngineModel, ranks: Ranks) -> Decoder:
        config = self._config
        part = partition(model, self._rank, config.share_tp)
        with contextlib.ExitStack() as stack, torch.inference_mode():
            if config.load_format == "dummy":
                source: Checkpoint | Dummy = Dummy(config.seed + self._rank, self.device)
            else:
                check_files(Path(config.model))
                source = Checkpoint(Path(config.model), stack)
            loader = Loader(model, part, source, dtype=self.dtype, device=self.device)
            decoder = Decoder(loader, ranks, max_context_tok=config.max_context_tok)
        ranks.connect(self.device, self._store)
        return decoder

    def _runner(self, decoder: Decoder, ranks: Ranks, num_blocks: int) -> Runner:
        config, model = self._config, decoder.model
        part = partition(model, self._rank, config.share_tp)
        size = config.kv_block_size_tok
        is_cuda, context = self.device.type == "cuda", config.max_context_tok or model.max_context_tok
        # On a GPU one block more: rows that fill a captured batch write there.
        shape = (model.num_layers, 2, len(part.kv_heads), (num_blocks + is_cuda) * size, model.head_dim)
        kernel = DecodeKernel(max_batch=config.max_num_seqs, num_heads=len(part.heads), num_kv_heads=len(part.kv_heads),
                              head_dim=model.head_dim, max_context_tok=context, block_size=size,
                              device=self.device) if is_cuda else None
        attention = PagedAttention(torch.zeros(shape, dtype=self.dtype, device=self.device), block_size=size, kernel=kernel)
        graphs = DecodeGraphs(decoder, attention, max_num_seqs=config.max_num_seqs,
                              max_blocks=-(-context // size)) if is_cuda and config.cuda_graphs else None
        return Runner(decoder, attention, ranks, max_num_seqs=config.max_num_seqs,
                      sp_sampling=config.switches.seq_parallel_sampling, graphs=graphs)


def _leave(store: str) -> NoReturn:
    """End the process because the driver is gone; one that was killed left its folder behind."""
    if store.startswith("file://"):
        folder = Path(store.removeprefix("file://")).parent
        Path("/dev/shm", folder.name).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def serve(rank: int, address: tuple[str, int], key: bytes, store: str) -> None:
    """Connect to the driver and serve until it goes away; errors are the driver's to tell."""
    try:
        link = connect(address, key)
        link.send_bytes(msgspec.msgpack.encode(Hello(rank, os.getpid())))
        config = msgspec.json.decode(link.recv_bytes(), type=EngineConfig)
    except (OSError, EOFError):
        _leave(store)
    worker = Worker(link, rank, config, store)
    try:
        worker.serve()
    except Exception as error:
        worker.fail(error)


if __name__ == "__main__":
    sys.setswitchinterval(1e-4)
    host, port = os.environ["TPPLANNER_ENGINE_ADDRESS"].rsplit(":", 1)
    serve(int(os.environ["RANK"]), (host, int(port)), bytes.fromhex(os.environ["TPPLANNER_ENGINE_KEY"]),
          os.environ.get("TPPLANNER_ENGINE_STORE", "env://"))
