"""The engine as a Python object."""

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Row
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tpplanner.engine import overlap_loop, sequential_loop
from tpplanner.engine.config import EngineConfig
from tpplanner.engine.core import Core
from tpplanner.engine.model_config import read_model
from tpplanner.engine.request import Completion, FinishReason, Output, Request, block_keys
from tpplanner.engine.sampling_params import SamplingParams
from tpplanner.engine.text import TextStream
from tpplanner.engine.torchrun import Launched, launched_rank
from tpplanner.engine.workers import Workers
from tpplanner.errors import EngineError, ModelError, WorkloadError, reject
from tpplanner.serving.config import SchedulerConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def _load_tokenizer(folder: Path) -> "Tokenizer | None":
    file = folder / "tokenizer.json"
    if not file.exists():
        return None
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise EngineError("engine: needs the extra [engine]: pip install 'tpplanner[engine]'") from None
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(f"{file}: not a tokenizer: {error}") from None


class Engine:
    """Runs a model over t processes; a context manager.

    Raises
    ------
    ModelError
        If the model cannot be read or does not fit.
    EngineError
        If a process does not start.

    Examples
    --------
    ::

        with Engine(EngineConfig(model="SmolLM2-135M-Instruct", tp=2)) as engine:
            [done] = engine.generate(["The capital of France is"], SamplingParams(temperature=0.0, max_tokens=16))
            print(done.text)
    """

    def __init__(self, config: EngineConfig) -> None:
        folder = Path(config.model)
        model = read_model(folder)
        self.max_context_tok = min(config.max_context_tok or model.max_context_tok, model.max_context_tok)
        config = replace(config, max_context_tok=self.max_context_tok)
        self.config, self.model_name = config, folder.resolve().name
        self.vocab_size = model.vocab_size
        self.tokenizer = _load_tokenizer(folder)
        launched = None if launched_rank() is None else Launched.join(config.tp)
        self.workers = Workers(config, launched)
        try:
            limits = SchedulerConfig(
                num_kv_blocks=self.workers.num_kv_blocks, kv_block_size_tok=config.kv_block_size_tok,
                max_num_seqs=config.max_num_seqs, max_num_batched_tokens=config.max_num_batched_tokens,
                preemption=config.preemption, prefix_caching=config.prefix_caching)
            self.core = Core(config, limits, self.workers, self.max_context_tok, model.eos_ids)
        except BaseException:
            self.workers.close()
            raise
        self.core.on_finish = self._close_request
        self._open: dict[int, Request] = {}
        self._completions: dict[int, Callable[[Completion], None]] = {}
        self._lock = threading.Lock()
        self._num_requests = 0
        self._thread: threading.Thread | None = None
        self.failure: EngineError | None = None
        self._is_closed = False

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_kv_blocks(self) -> int:
        """KV blocks of each rank."""
        return self.workers.num_kv_blocks

    @property
    def num_free_kv_blocks(self) -> int:
        """KV blocks that nobody holds."""
        return self.core.scheduler.pool.num_free

    @property
    def longest_tok(self) -> int:
        """Most tokens of a prompt and its output together: what the model and the KV cache have room for."""
        return min(self.max_context_tok, self.core.scheduler.longest_tok)

    def encode(self, prompt: str | Row[int]) -> list[int]:
        """Token ids of a prompt.

        Raises
        ------
        WorkloadError
            If it is empty, has ids outside the vocabulary, or is text and the model has no tokenizer.
        """
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise WorkloadError(f"prompt: {self.config.model} has no tokenizer.json: give token ids")
            ids = list(self.tokenizer.encode_batch_fast([prompt], add_special_tokens=True)[0].ids)
        else:
            ids = list(prompt)
        if not ids:
            reject(WorkloadError, "prompt", "hold at least one token", ids)
        wrong = [i for i in ids if type(i) is not int or not 0 <= i < self.vocab_size]
        if wrong:
            reject(WorkloadError, "prompt", f"hold ids below {self.vocab_size}", wrong[0])
        return ids

    def submit(self, prompt: str | Row[int], params: SamplingParams, on_output: Callable[[Output], None], *,
               on_completion: Callable[[Completion], None] | None = None) -> int:
        """Queue a request and return its id; the loop's thread calls ``on_output``, and before its last call the other.

        Raises
        ------
        WorkloadError
            If the prompt makes no sense, or prompt and output are longer than the model's context or the KV cache.
        EngineError
            If a process of the engine has ended.
        """
        arrival_s = time.perf_counter()
        self._check_open()
        ids = self.encode(prompt)
        longest = self.longest_tok
        if len(ids) + params.max_tokens > longest:
            reject(WorkloadError, "prompt and max_tokens", f"be at most {longest} tokens together",
                   len(ids) + params.max_tokens)
        if params.stop and self.tokenizer is None:
            raise WorkloadError("stop: strings need a tokenizer; give stop_token_ids")
        keys = block_keys(ids, self.config.kv_block_size_tok) if self.config.prefix_caching else ()
        with self._lock:
            self._check_open()
            self._num_requests += 1
            request = Request(self._num_requests - 1, ids, params, keys=keys, arrival_s=arrival_s,
                              text=TextStream(self.tokenizer, params.stop), on_output=on_output)
            self._open[request.request_id] = request
            if on_completion is not None:
                self._completions[request.request_id] = on_completion
            self.core.add(request)
        return request.request_id

    def _check_open(self) -> None:
        if self.failure is not None:
            raise EngineError(str(self.failure))
        if self._is_closed:
            raise EngineError("engine: is closed")

    def cancel(self, request_id: int) -> None:
        """End a request; its blocks come back once no step in flight writes them. An unknown or finished id is ignored."""
        with self._lock:
            request = self._open.get(request_id)
        if request is not None:
            self.core.cancel(request)

    def _close_request(self, request: Request) -> None:
        with self._lock:
            self._open.pop(request.request_id, None)
            listener = self._completions.pop(request.request_id, None)
        if listener is not None:
            listener(_completion_of(request))

    def run(self) -> None:
        """Take steps in this thread until every request is done."""
        loop = overlap_loop if self.config.switches.async_sched else sequential_loop
        try:
            loop.run(self.core)
        except EngineError as error:
            self._fail(error)
            raise
        except BaseException as error:  # as a listener's own: nobody must wait for tokens that no loop makes
            self._fail(EngineError(f"engine: the loop ended with {type(error).__name__}: {error}"))
            raise

    def _fail(self, error: EngineError) -> None:
        self.failure = error
        self.workers.close()
        with self._lock:
            lost, self._open = list(self._open.values()), {}
        for request in lost:
            if request.finish_reason is None:
                request.finish_reason = FinishReason.ERROR
                with contextlib.suppress(Exception):  # a listener's own error must not keep the news from the others
                    request.tell("", error=str(error))

    def generate(self, prompts: Row[str | Row[int]], params: SamplingParams | Row[SamplingParams]) -> list[Completion]:
        """Run all prompts to the end; completions in their order."""
        if self.is_running and self.failure is None:
            raise EngineError("engine: generate takes the steps itself: beside start_loop, submit")
        policies = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(policies) != len(prompts):
            reject(WorkloadError, "params", f"be one or {len(prompts)}", len(policies))
        done: list[Completion] = []
        ids: list[int] = []
        try:
            for prompt, policy in zip(prompts, policies, strict=True):
                ids.append(self.submit(prompt, policy, lambda output: None, on_completion=done.append))
        except WorkloadError:
            for request_id in ids:
                self.cancel(request_id)
            self.run()
            raise
        self.run()
        return sorted(done, key=lambda completion: completion.request_id)

    @property
    def is_running(self) -> bool:
        """Whether the loop has a thread of its own."""
        return self._thread is not None

    def await_idle(self, timeout_s: float = math.inf) -> bool:
        """Wait until the steps that are for nobody are over too; ``False`` where that takes longer than ``timeout_s``."""
        if not self.is_running:
            return not self._open
        deadline_s = time.monotonic() + timeout_s
        while self.failure is None and (self._open or not self.core.is_idle):
            if time.monotonic() > deadline_s:
                return False
            time.sleep(1e-3)
        return True

    def start_loop(self) -> None:
        """Run the loop in a thread of its own until `close`."""
        self.core.is_serving = True

        def work() -> None:
            with contextlib.suppress(EngineError):
                self.run()

        self._thread = threading.Thread(target=work, name="engine loop", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Cancel what is open, and end all processes; what is asked after that is refused."""
        self._is_closed = True
        if self._thread is not None:
            for request_id in list(self._open):
                self.cancel(request_id)
            self.core.stop()
            self._thread.join(timeout=30.0)
        self.workers.close()

    @property
    def process_ids(self) -> list[int]:
        """Of the driver and the workers started by it."""
        return [os.getpid(), *self.workers.process_ids]


def _completion_of(request: Request) -> Completion:
    """Return what is known of a finished request."""
    return Completion(
        request_id=request.request_id, prompt_ids=request.prompt_ids, output_ids=request.output_ids, text=request.text.text,
        finish_reason=request.finish_reason or FinishReason.ERROR, arrival_s=request.arrival_s, start_s=request.start_s,
        first_token_s=request.first_token_s, finish_s=time.perf_counter(), num_preemptions=request.num_preemptions)
