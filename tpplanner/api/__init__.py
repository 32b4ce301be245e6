"""The library's front door: names and numbers in, typed answers out. The CLI calls nothing else."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

from tpplanner.api.answer import Answer
from tpplanner.api.question import Asked, question
from tpplanner.io.profile_engine import load_engine
from tpplanner.planner.recommend import recommend as recommend_question

__all__ = ["Answer", "compare_engines", "question", "recommend"]


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


def compare_engines(engines: Sequence[str], **asked: Unpack[Asked]) -> list[Answer]:
    """Recommend for the same question with each engine profile, in order.

    Everything but the engine is that of the first one: sampling policy, limits, and the number of GPUs
    where it was asked for. ``switches`` apply to none: the point is to compare the profiles as they are.
    """
    asked["engine"] = engines[0]
    asked["switches"] = None
    base = question(**asked)
    return [
        Answer(recommend_question(replace(base, engine=load_engine(name)), with_flip_points=False)) for name in engines
    ]
