"""The library's front door: names and numbers in, typed answers out. The CLI calls nothing else."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from tpplanner.api.answer import Answer
from tpplanner.api.question import Asked, question
from tpplanner.api.validate import Validation, validate
from tpplanner.domain.engine import EngineProfile
from tpplanner.errors import TpplannerError, WorkloadError, reject
from tpplanner.io.model_config import load_model
from tpplanner.planner.recommend import recommend as recommend_question

if TYPE_CHECKING:
    import pandas as pd

    from tpplanner.api.simulated import Simulated
    from tpplanner.api.simulation import Progress

__all__ = ["Answer", "TpplannerError", "Validation", "compare_engines", "load_model", "question", "recommend",
           "simulate", "sweep", "validate"]


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


def simulate(
    *, tp: str | int | Sequence[int] | None = None, progress: "Progress | None" = None, **asked: Any
) -> "Simulated":
    """Serve single requests on the replicas of each degree: percentiles, goodput, queues, preemption.

    Parameters
    ----------
    tp
        ``"all"`` or None for every degree that :func:`recommend` plans; a degree, or several.
    progress
        Called now and then with a degree, its finished requests, and how many it has in all.
    model, gpus, engine, switches, request_rate, concurrency, ... price_usd_h
        As in :func:`recommend`. A trace with times is replayed where no load is given. Targets are compared with the
        statistic that ``slo_quantile`` names; with targets and no load, the highest rate at which they hold is searched.
    isl, osl
        Tokens, or text: ``lognormal:MEAN:CV``, ``gamma:MEAN:CV``, ``histogram:FILE``; or a ``Length``.
    workload
        A named workload in place of the lengths: ``albireo``, ``sharegpt``, ``azure-conv-2023``, ``azure-code-2023``.
    trace, trace_format, chars_per_tok, tokenizer, head, tail, scale_rate, scale_isl, scale_osl
        A file of requests in place of the lengths (docs/workloads.md), or a ``Traffic``; parts of it, and factors.
    arrivals, burstiness, num_requests, seed
        ``poisson`` (the default of an offered rate), ``gamma`` with a coefficient of variation, or ``constant``.
    router, prefix_caching, watermark_frac
        ``round-robin`` or ``least-outstanding``; whether prefixes that a trace names are found again; blocks kept free.
    slo_quantile
        0.99 for p99; None compares the means.
    ramp_s
        Clients of a closed loop start one after the other within this time [s]: 0 for all at once, as benchmarks do;
        None for the time of one request, which is what a service looks like.
    num_timeline_steps
        Steps of the timeline to keep.
    step_by_step
        Every step on its own by ``cost.step_time``: slow, the same result.

    Raises
    ------
    TpplannerError
        On bad input, with the field, the rule, the value and the place.

    Examples
    --------
    >>> answer = simulate(model="Qwen/Qwen2.5-32B-Instruct", gpus="8xh100-sxm", isl=512, osl=64, request_rate=8,
    ...                   num_requests=200, tp=4)
    >>> answer.degree(4).outcome.num_completed
    200
    """
    from tpplanner.api.simulation import OptionsAsked, simulate_question
    from tpplanner.api.traffic import TrafficAsked

    traffic = {name: asked.pop(name) for name in list(asked) if name in TrafficAsked.__annotations__}
    options = {name: asked.pop(name) for name in list(asked) if name in OptionsAsked.__annotations__}
    return simulate_question(tp=tp, traffic=traffic, options=options, asked=asked, progress=progress)  # type: ignore[arg-type]


def sweep(
    plan: str | Path | Mapping[str, object], out: str | Path | None = None, jobs: int | None = None,
    ray_address: str | None = None, progress: Callable[[int, int], None] | None = None, *, overwrite: bool = False,
) -> "pd.DataFrame":
    """Answer every point of a plan: one row per point and degree (docs/sweeps.md).

    Parameters
    ----------
    plan
        A TOML file, or a mapping of the same form.
    out
        A ``.parquet`` or ``.csv`` file for the rows. Until it is written, finished points are kept in a folder beside it,
        and a run that was interrupted goes on from there.
    jobs
        Processes, by default one per core; 1 runs in this process. A script that uses more must call this function under
        ``if __name__ == "__main__":``. With ``ray_address``: the cores of ``"local"``, or of the cluster to keep busy.
    ray_address
        ``"auto"``, ``"ray://HOST:PORT"``, or ``"local"`` to start Ray on this machine.
    progress
        Called with the points that are done and those that there are.
    overwrite
        Whether ``out`` may be replaced.

    Returns
    -------
    pandas.DataFrame
        The settings of the point, the figures of the degree (SI units), ``is_best``, ``status`` (``ok``, or ``error: ...``
        in the one row of a point without an answer) and ``wall_s``, the time that the point took.

    Raises
    ------
    TpplannerError
        If the plan makes no sense, or ``out`` cannot be written.

    Examples
    --------
    >>> frame = sweep({"run": {"kind": "recommend"},
    ...                "grid": {"model": "Qwen/Qwen3-8B", "gpus": ["1xl40s", "2xl40s"], "isl": 512, "osl": 128}}, jobs=1)
    >>> frame.loc[frame.is_best, ["gpus", "tp"]].values.tolist()
    [['1xl40s', 1], ['2xl40s', 1]]
    """
    from tpplanner.api.sweeping import sweep_frame

    return sweep_frame(plan, out, jobs=jobs, ray_address=ray_address, progress=progress, overwrite=overwrite)
