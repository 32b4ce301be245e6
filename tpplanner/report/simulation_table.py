"""The tables of ``simulate``: one row per degree, first what requests met, then what the GPUs did."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table

from tpplanner.domain.simulation import Quantiles, SimulatedDegree, SimulatedOutcome, Simulation
from tpplanner.domain.statistic import statistic
from tpplanner.report.numbers import MISSING, count, grouped, milliseconds, percent
from tpplanner.report.render import add_columns, cell, natural_width, new_table, render
from tpplanner.report.simulation_headline import compared, verdict
from tpplanner.units import GIB


@dataclass(frozen=True, slots=True)
class Column:
    """A header, and how the cell of a degree is written."""

    header: str
    text: Callable[[SimulatedDegree], str]


def _of(show: Callable[[SimulatedOutcome], str]) -> Callable[[SimulatedDegree], str]:
    """Return a cell writer that shows a dash where the degree has no outcome."""
    return lambda degree: MISSING if degree.outcome is None else show(degree.outcome)


def _latency(name: str, which: Callable[[SimulatedOutcome], Quantiles | None], *, means: Sequence[str]) -> tuple[Column, ...]:
    """Return one column [ms] for each of the statistics named."""
    def writer(mean: str) -> Callable[[SimulatedOutcome], str]:
        def show(outcome: SimulatedOutcome) -> str:
            quantiles = which(outcome)
            return milliseconds(None if quantiles is None else getattr(quantiles, f"{mean}_s"))
        return show

    return tuple(Column(f"{name}\n{mean}", _of(writer(mean))) for mean in means)


REPLICAS = Column("repl.", lambda degree: f"{degree.num_replicas:,}")
PER_GPU = Column("tok/s\n/GPU", _of(lambda o: grouped(o.throughput_per_gpu_tok_s)))
TTFT = _latency("TTFT", lambda o: o.ttft, means=("p50", "p90", "p99"))
TPOT = _latency("TPOT", lambda o: o.tpot, means=("p50", "p90", "p99"))
ITL = _latency("ITL", lambda o: o.itl, means=("p99",))
WHOLE = (
    *_latency("e2e", lambda o: o.e2e, means=("p50", "p99")),
    *_latency("queue", lambda o: o.queue, means=("p99",)),
)
GOODPUT = (
    Column("goodput\nreq/s", _of(lambda o: grouped(o.goodput_req_s))),
    Column("targets\nmet", _of(lambda o: percent(o.goodput_frac))),
)
RATE = (
    Column("tok/s\ntotal", _of(lambda o: grouped(o.throughput_tok_s))),
    Column("req/s\noffered", _of(lambda o: grouped(o.offered_rate_req_s))),
    Column("req/s\nserved", _of(lambda o: grouped(o.request_rate_req_s))),
)
UNSERVABLE = Column("never\nfit", _of(lambda o: count(o.num_unservable)))
BATCH = (
    Column("running\n/repl.", _of(lambda o: grouped(o.mean_running_seqs))),
    Column("waiting\n/repl.", _of(lambda o: grouped(o.mean_waiting_seqs))),
    Column("pre-\nempted", _of(lambda o: count(o.num_preemptions))),
    Column("recomp.\ntokens", _of(lambda o: count(o.recomputed_tok))),
)
KV = (
    Column("GiB\nswapped", _of(lambda o: grouped(o.swap_bytes / GIB))),
    Column("KV tokens\n/repl.", lambda degree: count(degree.memory.kv_capacity_tok) if degree.memory else MISSING),
    Column("KV\nmean", _of(lambda o: percent(o.kv_used_frac))),
    Column("KV\npeak", _of(lambda o: percent(o.kv_peak_frac))),
)
PREFIX = Column("prefix\nhits", _of(lambda o: percent(o.prefix_hit_frac)))
COST = (
    Column("GPU\nbusy", _of(lambda o: percent(o.busy_frac))),
    Column("J\n/token", _of(lambda o: grouped(o.energy_j_per_tok))),
    Column("$/M\ntokens", _of(lambda o: grouped(o.cost_usd_per_mtok))),
    Column("GPUs\nidle", lambda degree: f"{degree.num_gpus_idle:,}"),
)
VERDICT = "verdict"


_LOAD_CAPTION = "Load, batch, KV cache, energy and cost (rates and $/M under full load, the rest over the whole run)"


def tables_text(sim: Simulation, *, width: int | None, terminal: bool) -> str:
    """Return all tables of a simulation as text, and the reason of every degree that is out.

    Two tables where ``width`` holds every figure of the first; else latencies and batch have tables of their own.
    """
    answer = (REPLICAS, PER_GPU)
    unserved = _unserved(sim)
    latency = (*_columns(sim, "TTFT", TTFT), *_columns(sim, "TPOT", TPOT), *ITL)
    judged = (*_goodput(sim), Column(VERDICT, lambda degree: _judged(sim, degree)))
    memory = (*KV, *([PREFIX] if sim.options.prefix_caching else []), *COST)
    users, gpus = (*answer, *latency, *WHOLE, *judged), (*RATE, *unserved, *BATCH, *memory)
    if width is None or max(natural_width(_table(sim, columns)) for columns in (users, gpus)) <= width:
        blocks = [("Simulated, latencies in ms: * best", users),
                  (_LOAD_CAPTION, gpus)]
    else:
        blocks = [("Simulated: * best", (*answer, *RATE, *judged)), ("First token and gaps [ms]", latency),
                  ("Whole request [ms] and batch", (*WHOLE, *BATCH)), ("KV cache, energy and cost", (*unserved, *memory))]
    parts = [f"{caption}\n{render(_table(sim, columns), width=width, terminal=terminal)}" for caption, columns in blocks]
    parts[0] += "".join(f"\n{line}" for line in reason_lines(sim))
    return "\n\n".join(parts)


def reason_lines(sim: Simulation) -> tuple[str, ...]:
    """Return one sentence for each degree that is out."""
    lines = []
    for degree in sim.degrees:
        why = verdict(sim, degree)
        if why is None:
            continue
        if degree.outcome is not None and degree.outcome.saturated:
            lines.append(f"TP {degree.tp} is {why.detail}")
        else:
            lines.append(f"TP {degree.tp} is out ({why.word})" + (f": {why.detail}" if why.detail else ""))
    return tuple(lines)


def _judged(sim: Simulation, degree: SimulatedDegree) -> str:
    why = verdict(sim, degree)
    if why is None:
        return "ok"
    return "saturated" if degree.outcome is not None and degree.outcome.saturated else f"out: {why.word}"


def _columns(sim: Simulation, name: str, usual: tuple[Column, ...]) -> tuple[Column, ...]:
    """Return the usual columns; before them the statistic that a target is compared with, where it is none of them."""
    limit = getattr(sim.question.targets, f"{name.lower()}_s")
    header = f"{name}\n{statistic(sim.options.slo_quantile)}"
    if limit is None or header in {column.header for column in usual}:
        return usual
    place = ("TTFT", "TPOT").index(name)
    return (Column(header, lambda degree: milliseconds(compared(sim, degree)[place])), *usual)


def _goodput(sim: Simulation) -> tuple[Column, ...]:
    """Without targets there is no goodput."""
    known = any(degree.outcome is not None and degree.outcome.goodput_req_s is not None for degree in sim.degrees)
    return GOODPUT if known else ()


def _unserved(sim: Simulation) -> tuple[Column, ...]:
    return (UNSERVABLE,) if any(d.outcome is not None and d.outcome.num_unservable for d in sim.degrees) else ()


def _table(sim: Simulation, columns: Sequence[Column]) -> Table:
    table = new_table()
    add_columns(table, ["TP", *(column.header for column in columns)], left=(VERDICT,))
    for degree in sim.degrees:
        best = degree.tp == sim.best_tp
        style = "bold green" if best else "" if degree.meets_targets else "dim"
        texts = [f"{degree.tp}{'*' if best else ' '}", *(column.text(degree) for column in columns)]
        table.add_row(*(cell(text, style) for text in texts))
    return table


