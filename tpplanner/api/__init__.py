"""The library's front door: names and numbers in, typed answers out. The CLI calls nothing else."""

from collections.abc import Sequence
from typing import Unpack

from tpplanner.api.answer import Answer
from tpplanner.api.question import Asked, question
from tpplanner.api.validate import Validation, validate
from tpplanner.domain.engine import EngineProfile
from tpplanner.errors import TpplannerError, WorkloadError, reject
from tpplanner.io.model_config import load_model
from tpplanner.planner.recommend import recommend as recommend_question

__all__ = ["Answer", "TpplannerError", "Validation", "compare_engines", "load_model", "question", "recommend", "validate"]


def recommend(*, flip_points: bool = True, **asked: Unpack[Asked]) -> Answer:
    """Recommend a tensor-parallel degree.

    Parameters
    ----------
    model
        Packaged name, Hugging Face id, path of a ``config.json`` or model directory, or a ``ModelSpec``.
    gpus
        ``"8xh100-sxm"``; ``"h100-sxm"`` without a number asks for the fewest GPUs that carry the load.
    isl, osl
        Mean prompt and output length [tokens].
    engine, switches
        Engine profile, and overlap switches to set on it, ``{"async_sched": False}``.
    request_rate, concurrency, batch_per_gpu, concurrency_per_replica, offline
        At most one. The first two are of the whole cluster [requests/s, requests in flight]. With
        none of them: the capacity under the targets where there are any, else offline.
    ttft_ms, tpot_ms
        Targets on mean TTFT and TPOT [ms].
    dtype, kv_cache_dtype
        Override the number formats of the model's configuration.
    gpu_memory_utilization, max_num_seqs, max_num_batched_tokens
        Override the engine's defaults.
    non_kv_overhead_gib
        Replaces the modelled activations and runtime of one GPU [GiB].
    num_gpu_blocks
        Replaces the modelled number of KV blocks of one GPU, at every degree.
    sampling
        ``greedy``, ``top-p`` or ``full``; the engine's default where None.
    preemption
        ``recompute``, ``swap`` or ``reserve``; the engine's where None.
    max_tp
        Largest degree; beyond the node a replica pays the inter-node link.
    price_usd_h
        Price of one GPU-hour, over the profile's.
    flip_points
        Whether to search for what would change the answer.

    Raises
    ------
    TpplannerError
        On bad input, with the field, the rule, the value and the place.

    Examples
    --------
    >>> answer = recommend(model="Qwen/Qwen2.5-32B-Instruct", gpus="8xh100-sxm", isl=512, osl=512, concurrency=64)
    >>> [plan.tp for plan in answer.plans]
    [1, 2, 4, 8]
    """
    return Answer(recommend_question(question(**asked), with_flip_points=flip_points))


def compare_engines(engines: Sequence[str | EngineProfile], **asked: Unpack[Asked]) -> list[Answer]:
    """Recommend for the same question with each engine profile, in order.

    Each engine keeps its own limits (``max_num_seqs``, ``max_num_batched_tokens``, ``gpu_memory_utilization``,
    ``preemption``) unless they are given. All use one sampling policy, the one given or the first engine's, and
    one number of GPUs, the one given or the fewest that the first engine needs. ``switches`` apply to none: the
    point is to compare the profiles as they are.

    Raises
    ------
    TpplannerError
        As `recommend`, and where there is no engine.
    """
    if not engines or isinstance(engines, str):
        reject(WorkloadError, "engines", "be a list of at least one name", engines, "compare_engines")
    asked["switches"], asked["engine"] = None, engines[0]
    first = question(**asked)
    asked["model"], asked["gpus"], asked["sampling"] = first.model, (first.num_gpus, first.hardware), first.sampling.value
    answers = []
    for engine in engines:
        asked["engine"] = engine
        answers.append(Answer(recommend_question(question(**asked), with_flip_points=False)))
    return answers
