"""The answer of ``simulate`` as text for people, and what belongs beside it: the lines that go to stderr."""

import math
from collections.abc import Iterator

import numpy as np

from tpplanner.domain.simulation import Simulation
from tpplanner.domain.statistic import statistic
from tpplanner.domain.traffic import Traffic
from tpplanner.domain.workload import LoadMode
from tpplanner.report.notes import error_words, load_words, profile_lines, settings_sentence, targets_words
from tpplanner.report.numbers import count, grouped, percent, plural
from tpplanner.report.simulation_headline import simulation_headline, unservable_words
from tpplanner.report.simulation_table import tables_text
from tpplanner.units import GIB


def simulation_text(sim: Simulation, *, width: int | None = None, terminal: bool = False) -> str:
    """Return the answer in one line, then the tables.

    Parameters
    ----------
    sim
        The answer of the simulator.
    width
        Columns of the terminal, ``None`` for no limit.
    terminal
        Whether to use colours.

    Returns
    -------
    str
        The headline, a blank line, and tables with one row per degree; no final line break.
    """
    return f"{simulation_headline(sim)}\n\n{tables_text(sim, width=width, terminal=terminal)}"


def simulation_notes(sim: Simulation) -> list[str]:
    """Return the notes of a simulation, one per line.

    Warnings come first, then traffic, load, settings and targets, what was lost inside the runs, how sure the figures
    are, and the evidence behind them.
    """
    question = sim.question
    targets = targets_words(question.targets, statistic(sim.options.slo_quantile))
    is_searched = question.load.mode is LoadMode.SLO_CAPACITY and sim.traffic.rate_req_s is not None
    searched = "; each degree at its own rate, this is the highest" if is_searched else ""
    return [
        *(f"warning: {line}" for line in sim.warnings),
        f"traffic: {traffic_sentence(sim.traffic)}{searched}",
        f"load: {load_words(question.load)}",
        f"simulation: {run_sentence(sim)}",
        f"settings: {settings_sentence(question)}",
        f"targets: {targets or 'none, so that there is no goodput'}",
        f"ranked by: {sim.ranked_by}",
        *incident_lines(sim),
        f"uncertainty: {uncertainty_sentence(sim)}",
        *(f"evidence: {line}" for line in profile_lines(question)),
    ]


def traffic_sentence(traffic: Traffic) -> str:
    """Say how many requests there were, how long, and how they arrived.

    Examples
    --------
    >>> tok = np.array([100, 300])
    >>> traffic_sentence(Traffic(name="chat", isl_tok=tok, osl_tok=tok, arrival_s=np.array([0.0, 0.5])))
    'chat: 2 requests, 200 tokens in (300 at most), 200 out (300 at most), 2 per second'
    """
    sizes = ", ".join(
        f"{count(float(np.mean(tok)))} {what}" + (f" ({count(float(tok.max()))} at most)" if np.ptp(tok) else "")
        for what, tok in (("tokens in", traffic.isl_tok), ("out", traffic.osl_tok))
    )
    if traffic.arrival_s is None:
        arrivals = "taken in order as the load asks for them"
    elif traffic.rate_req_s is None:
        arrivals = "all at once"
    else:
        arrivals = f"{grouped(traffic.rate_req_s)} per second"
    return f"{traffic.name}: {plural(traffic.num_requests, 'request')}, {sizes}, {arrivals}"


def run_sentence(sim: Simulation) -> str:
    """Name what shapes the run beside the traffic, defaults included."""
    options = sim.options
    clock = "every step on its own" if options.step_by_step else "equal decode steps at once"
    open_loop = sim.question.load.mode in (LoadMode.REQUEST_RATE, LoadMode.SLO_CAPACITY, LoadMode.OFFLINE)
    dealt = f"router {options.router.value}" if open_loop else "each replica with clients of its own"
    return (f"{dealt}, prefix caching {'on' if options.prefix_caching else 'off'}, "
            f"watermark {percent(options.watermark_frac)} of the KV blocks, {clock}, seed {sim.seed}")


def incident_lines(sim: Simulation) -> Iterator[str]:
    """Yield what was lost inside the runs, per degree: requests that never fit, evictions, rows without use."""
    for degree in sim.degrees:
        outcome = degree.outcome
        if outcome is None:
            continue
        if outcome.num_unservable:
            yield f"unservable: TP {degree.tp}: {unservable_words(outcome)}"
        told = [f"{outcome.recomputed_tok:,} tokens computed again"] if outcome.recomputed_tok else []
        told += [f"{grouped(outcome.swap_bytes / GIB)} GiB moved over the host links"] if outcome.swap_bytes else []
        if outcome.num_preemptions or told:
            yield f"preemption: TP {degree.tp}: {', '.join([plural(outcome.num_preemptions, 'preemption'), *told])}"
    unused = [f"{d.outcome.num_unused_rows:,} at TP {d.tp}" for d in sim.degrees
              if d.outcome is not None and d.outcome.num_unused_rows]
    if unused:
        yield f"unused rows: {', '.join(unused)}: rows of steps that went to sequences which had stopped"


def uncertainty_sentence(sim: Simulation) -> str:
    """Say what the figures rest on: the error of a step, and the number of requests in the tail."""
    tail = math.ceil(sim.traffic.num_requests / 100)
    rest = "request" if tail == 1 else f"{tail:,} requests"
    return (f"step times are those of the cost model behind `recommend`: {error_words(sim.question)}; queues and batches are "
            f"those of the simulated scheduler; a p99 rests on the slowest {rest} of one run")
