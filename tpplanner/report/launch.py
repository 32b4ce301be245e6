"""Commands that start the recommended replicas, and one that checks the prediction."""

import itertools
import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tpplanner.domain.engine import Preemption
from tpplanner.domain.plan import DegreePlan, Question, Recommendation
from tpplanner.domain.workload import LoadMode
from tpplanner.errors import ProfileError, reject

FIRST_PORT = 8000
SHOWN_REPLICAS = 8
"""Replicas whose command the terminal shows; the others differ in GPUs, port and node only."""

SCRIPT_REPLICAS = 4096
"""Replicas whose command launch.sh holds: a megabyte."""

_ROUND_TOK = 1024
_FILE: Final = "goes into the file of --extra_llm_api_options"
_ENGINES: Final = {"vllm": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM"}
_HINTS: Final[dict[str, tuple[str, ...]]] = {
    "fp8": ("fp8", "deepseek-v3", "deepseek-r1", "kimi-k2-instruct", "minimax-m2"),
    "int8": ("int8", "w8a8", "w8a16"),
    "int4": ("int4", "awq", "gptq", "w4a16", "kimi-k2-thinking"),
    "nvfp4": ("nvfp4", "fp4"),
    "mxfp4": ("mxfp4", "gpt-oss"),
}
"""Parts of a name that tell a checkpoint in the format; a model's name is all that is known of its weights here."""


def serve_commands(rec: Recommendation, plan: DegreePlan, limit: int | None = None) -> tuple[str, ...]:
    """Return one ready command line per replica of ``plan``, in their order; the first ``limit`` of them."""
    num = plan.num_replicas if limit is None else min(limit, plan.num_replicas)
    return tuple(serve_command(rec, plan, replica) for replica in range(num))


def shown_lines(rec: Recommendation, plan: DegreePlan) -> tuple[str, ...]:
    """Return what the terminal shows: remarks, the first commands, and how many more there are."""
    lines = [*(f"# {remark}" for remark in remarks(rec)), *serve_commands(rec, plan, SHOWN_REPLICAS)]
    more = plan.num_replicas - SHOWN_REPLICAS
    if more > 0:
        held = "them all" if plan.num_replicas <= SCRIPT_REPLICAS else f"the first {SCRIPT_REPLICAS:,}"
        lines.append(f"... and {more:,} more {'replica' if more == 1 else 'replicas'} alike "
                     f"(launch.sh of --save-dir has {held})")
    return tuple(lines)


def launch_script(rec: Recommendation, plan: DegreePlan) -> str:
    """Return launch.sh: remarks, the command of every replica, and the one that checks the first."""
    more = plan.num_replicas - SCRIPT_REPLICAS
    return "\n".join([
        "#!/bin/sh",
        "# One command per replica: run each on its node, in a shell of its own.",
        *(f"# {remark}" for remark in remarks(rec)),
        *serve_commands(rec, plan, SCRIPT_REPLICAS),
        *([f"# ... and {more:,} more replicas alike, left out"] if more > 0 else []),
        "",
        "# check it:",
        bench_command(rec, plan),
    ]) + "\n"


def serve_command(rec: Recommendation, plan: DegreePlan, replica: int = 0) -> str:
    """Return the shell line that starts one replica.

    Parameters
    ----------
    rec, plan
        The recommendation, and the degree to start.
    replica
        Its number from 0: it picks the GPUs of the node and the port (8000 and up on each node). A comment
        names the node where the replicas fill more than one, and what a replica across nodes needs.

    Returns
    -------
    str
        One line, quoted for a POSIX shell. What it does not say stands in :func:`remarks`.

    Raises
    ------
    ProfileError
        If the engine's ``launcher`` is none of ``vllm``, ``sglang``, ``trtllm``.
    """
    question = rec.question
    match question.engine.launcher:
        case "vllm":
            arguments = _vllm(question, plan)
        case "sglang":
            arguments = _sglang(question, plan)
        case "trtllm":
            arguments = _trtllm(question, plan)
        case launcher:
            reject(ProfileError, "launcher", "be vllm, sglang or trtllm", launcher, question.engine.place)
    placed, slot, comment = _placement(question, plan, replica)
    line = placed + shlex.join([*arguments, "--port", str(FIRST_PORT + slot)])
    return f"{line}  # {comment}" if comment else line


def remarks(rec: Recommendation) -> tuple[str, ...]:
    """Return what was planned and no flag of the launch commands asks for, one sentence each."""
    question = rec.question
    return tuple(itertools.chain(
        _checkpoint_remarks(question), _cache_remarks(question), _engine_remarks(question)
    ))


def _checkpoint_remarks(question: Question) -> Iterator[str]:
    precision, name = question.model.precision, question.model.name.lower()
    if _served(question) == question.model.name and "/" not in name and Path(question.model.place).is_file():
        yield f"{question.model.name} stands for the directory of the model that {question.model.place} describes"
    stored = {precision.linear.name, precision.expert.name} & set(_HINTS)
    online = {"fp8"} if question.engine.launcher != "trtllm" else set[str]()
    for dtype in sorted(stored - online):
        if not any(hint in name for hint in _HINTS[dtype]):
            yield f"needs a checkpoint in {dtype}"
    if not stored and any(hint in name for hints in _HINTS.values() for hint in hints):
        yield f"needs a checkpoint in {precision.linear.name}"


def _cache_remarks(question: Question) -> Iterator[str]:
    cache, launcher = question.model.precision.kv, question.engine.launcher
    if launcher == "trtllm" and cache.name in ("fp8", "int8"):
        yield f"kv_cache_config.dtype: {cache.name} {_FILE}"
    elif cache.bits < 16 and cache.name != "fp8":
        yield (f"no flag of {_ENGINES.get(launcher, launcher)} stores the KV cache in {cache.name}: "
               "these commands keep the model's own format")


def _engine_remarks(question: Question) -> Iterator[str]:
    engine, switches = question.engine, question.engine.switches
    if engine.launcher == "vllm" and (switches.early_feedback or switches.seq_parallel_sampling):
        yield ("early feedback and sequence-parallel sampling need the Albireo plugin (arXiv 2606.01927), "
               "not part of vLLM")
    elif switches.seq_parallel_sampling:
        yield f"sequence-parallel sampling is not part of {_ENGINES.get(engine.launcher, engine.launcher)}"
    if engine.launcher == "trtllm" and not switches.async_sched:
        yield f"disable_overlap_scheduler: true {_FILE}"
    if engine.launcher in ("vllm", "sglang") and engine.preemption is not Preemption.RECOMPUTE:
        yield f"{_ENGINES[engine.launcher]} preempts by recompute, the plan by {engine.preemption.value}"


def bench_command(rec: Recommendation, plan: DegreePlan) -> str:
    """Return the ``vllm bench serve`` line that puts one replica under the load of the plan.

    It addresses the first replica (port 8000), so the load is that of one replica: its share of the
    request rate, or the requests that it has in flight. Prompts are ten times the latter.
    """
    question = rec.question
    outcome = plan.outcome
    in_flight = 1 if outcome is None else max(1, math.ceil(outcome.concurrency_per_replica - 1e-9))
    match question.load.mode:
        case LoadMode.REQUEST_RATE:
            rate = (question.load.value or 0.0) / max(plan.num_replicas, 1)
            load = ["--request-rate", f"{rate:.6g}"]
        case LoadMode.OFFLINE:
            load = ["--request-rate", "inf"]
        case _:
            load = ["--max-concurrency", str(in_flight)]
    return shlex.join([
        "vllm", "bench", "serve", "--model", _served(question), "--dataset-name", "random",
        "--random-input-len", str(question.workload.isl_tok),
        "--random-output-len", str(question.workload.osl_tok),
        *load, "--num-prompts", str(50 * in_flight), "--ignore-eos", "--port", str(FIRST_PORT),
    ])


def _served(question: Question) -> str:
    """Return the Hugging Face id or, for a model read from a directory, that directory."""
    model = question.model
    if "/" in model.name:  # ids have one, names of local models none
        return model.name
    config = Path(model.place)
    return str(config.absolute().parent) if config.name == "config.json" and config.is_file() else model.name


def _placement(question: Question, plan: DegreePlan, replica: int) -> tuple[str, int, str]:
    """Return the GPUs of a replica as a prefix of the command, its place on the node, and a remark on the node."""
    per_node = question.hardware.gpus_per_node
    if plan.tp > per_node:
        num_nodes = math.ceil(plan.tp / per_node)
        first = replica * num_nodes
        return "", 0, (f"spans nodes {first} to {first + num_nodes - 1}: "
                       "start the engine's multi-node runtime first")
    node, slot = divmod(replica, per_node // plan.tp)
    gpus = range(slot * plan.tp, (slot + 1) * plan.tp)
    num_nodes = math.ceil(plan.num_replicas / (per_node // plan.tp))
    return f"CUDA_VISIBLE_DEVICES={','.join(map(str, gpus))} ", slot, f"node {node}" if num_nodes > 1 else ""


def _vllm(question: Question, plan: DegreePlan) -> list[str]:
    fp8_cache = question.model.precision.kv.name == "fp8"
    return [
        "vllm", "serve", _served(question), "--tensor-parallel-size", str(plan.tp),
        "--max-num-seqs", str(question.max_num_seqs),
        "--max-num-batched-tokens", str(question.max_num_batched_tokens),
        "--gpu-memory-utilization", f"{question.gpu_memory_utilization:g}",
        *_context("--max-model-len", question, plan),
        *(["--kv-cache-dtype", "fp8"] if fp8_cache else []),
        *_quantization(question),
        *(["--async-scheduling"] if question.engine.switches.async_sched else []),
    ]


def _sglang(question: Question, plan: DegreePlan) -> list[str]:
    fp8_cache = question.model.precision.kv.name == "fp8"
    return [
        "python", "-m", "sglang.launch_server", "--model-path", _served(question), "--tp", str(plan.tp),
        "--max-running-requests", str(question.max_num_seqs),
        "--chunked-prefill-size", str(question.max_num_batched_tokens),
        "--mem-fraction-static", f"{question.gpu_memory_utilization:g}",
        *_context("--context-length", question, plan),
        *(["--kv-cache-dtype", "fp8_e4m3"] if fp8_cache else []),
        *_quantization(question),
        *([] if question.engine.switches.async_sched else ["--disable-overlap-schedule"]),
    ]


def _trtllm(question: Question, plan: DegreePlan) -> list[str]:
    return [
        "trtllm-serve", _served(question), "--tp_size", str(plan.tp),
        "--max_batch_size", str(question.max_num_seqs),
        "--max_num_tokens", str(question.max_num_batched_tokens),
        "--kv_cache_free_gpu_memory_fraction", f"{question.gpu_memory_utilization:g}",
        *_context("--max_seq_len", question, plan),
    ]


def _context(flag: str, question: Question, plan: DegreePlan) -> list[str]:
    """Limit the context where the KV cache might not hold one request of the model's full length.

    The engines refuse to start otherwise. Half of the predicted capacity leaves room for its error,
    and for requests longer than the mean.
    """
    capacity = math.inf if plan.memory is None else plan.memory.kv_capacity_tok
    limit = question.model.max_context_tok
    if capacity // 2 >= limit:
        return []
    needed = question.workload.isl_tok + question.workload.osl_tok
    allowed = int(capacity // 2) // _ROUND_TOK * _ROUND_TOK
    return [flag, str(min(max(needed, allowed), limit))]


def _quantization(question: Question) -> list[str]:
    """Quantise to fp8 on loading; other formats, and checkpoints called fp8, bring their own."""
    name = question.model.name.lower()
    named = any(hint in name for hint in _HINTS["fp8"])
    return ["--quantization", "fp8"] if question.model.precision.linear.name == "fp8" and not named else []
