"""Commands that start the recommended replicas, and one that checks the prediction."""

import math
import shlex

from tpplanner.domain.plan import DegreePlan, Question, Recommendation
from tpplanner.domain.workload import LoadMode
from tpplanner.errors import ProfileError, reject

FIRST_PORT = 8000
_ROUND_TOK = 1024


def serve_commands(rec: Recommendation, plan: DegreePlan) -> tuple[str, ...]:
    """Return one ready command line per replica of ``plan``, in the order of the replicas."""
    return tuple(serve_command(rec, plan, replica) for replica in range(plan.num_replicas))


def serve_command(rec: Recommendation, plan: DegreePlan, replica: int = 0) -> str:
    """Return the shell line that starts one replica.

    Parameters
    ----------
    rec, plan
        The recommendation, and the degree to start.
    replica
        Its number from 0: it picks the GPUs of the node and the port (8000 + replica). A comment
        names the node where the replicas fill more than one, and what a replica across nodes needs.

    Returns
    -------
    str
        One line, quoted for a POSIX shell.

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
    placed, comment = _placement(question, plan, replica)
    line = placed + shlex.join([*arguments, "--port", str(FIRST_PORT + replica)])
    remarks = [remark for remark in (comment, _trtllm_remark(question)) if remark]
    return f"{line}  # {'; '.join(remarks)}" if remarks else line


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
        "vllm", "bench", "serve", "--model", question.model.name, "--dataset-name", "random",
        "--random-input-len", str(question.workload.isl_tok),
        "--random-output-len", str(question.workload.osl_tok),
        *load, "--num-prompts", str(10 * in_flight), "--ignore-eos", "--port", str(FIRST_PORT),
    ])


def _placement(question: Question, plan: DegreePlan, replica: int) -> tuple[str, str]:
    """Return the GPUs of a replica as a prefix of the command, and a remark on the node."""
    per_node = question.hardware.gpus_per_node
    if plan.tp > per_node:
        num_nodes = math.ceil(plan.tp / per_node)
        first = replica * num_nodes
        return "", (f"spans nodes {first} to {first + num_nodes - 1}: "
                    "start the engine's multi-node runtime first")
    node, slot = divmod(replica, per_node // plan.tp)
    gpus = range(slot * plan.tp, (slot + 1) * plan.tp)
    num_nodes = math.ceil(plan.num_replicas / (per_node // plan.tp))
    return f"CUDA_VISIBLE_DEVICES={','.join(map(str, gpus))} ", f"node {node}" if num_nodes > 1 else ""


def _vllm(question: Question, plan: DegreePlan) -> list[str]:
    fp8_cache = question.model.precision.kv.name == "fp8"
    return [
        "vllm", "serve", question.model.name, "--tensor-parallel-size", str(plan.tp),
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
        "python", "-m", "sglang.launch_server", "--model-path", question.model.name, "--tp", str(plan.tp),
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
        "trtllm-serve", question.model.name, "--tp_size", str(plan.tp),
        "--max_batch_size", str(question.max_num_seqs),
        "--max_num_tokens", str(question.max_num_batched_tokens),
        "--kv_cache_free_gpu_memory_fraction", f"{question.gpu_memory_utilization:g}",
        *_context("--max_seq_len", question, plan),
    ]


def _trtllm_remark(question: Question) -> str:
    """TensorRT-LLM takes the cache's format from a file, not from a flag."""
    if question.engine.launcher == "trtllm" and question.model.precision.kv.name == "fp8":
        return "kv_cache_config.dtype: fp8 goes into the file of --extra_llm_api_options"
    return ""


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
    precision = question.model.precision
    named = "fp8" in question.model.name.lower()
    return ["--quantization", "fp8"] if precision.linear.name == "fp8" and not named else []
