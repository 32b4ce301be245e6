"""From names, numbers and files to the requests of a simulation."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from tpplanner.domain.checks import check_count, check_real
from tpplanner.domain.engine import SamplingPolicy
from tpplanner.domain.traffic import MAX_REQUEST_TOK, Arrivals, FixedLength, HistogramLength, Length, SpreadLength, Traffic
from tpplanner.domain.workload import Load, LoadMode
from tpplanner.errors import WorkloadError, nearest, reject
from tpplanner.io.length_text import parse_length
from tpplanner.io.traces import read_trace
from tpplanner.sim.arrivals import MAX_BURSTINESS_CV, MIN_BURSTINESS_CV, all_at_once
from tpplanner.sim.lengths import mean_tok
from tpplanner.sim.presets import preset
from tpplanner.sim.traffic import arriving, at_rate, drawn, head, sampled, scaled, tail

MAX_REQUESTS = 10**8
_OF_TRACES = ("trace_format", "chars_per_tok", "tokenizer", "scale_rate", "scale_isl", "scale_osl", "head", "tail")


class TrafficAsked(TypedDict, total=False):
    """Arguments of traffic; :func:`tpplanner.simulate` documents them."""

    isl: int | str | Length | None
    osl: int | str | Length | None
    workload: str | None
    trace: str | Path | Traffic | None
    trace_format: str | None
    chars_per_tok: float | None
    tokenizer: str | Path | None
    arrivals: str | None
    burstiness: float | None
    num_requests: int | None
    seed: int
    scale_rate: float | None
    scale_isl: float | None
    scale_osl: float | None
    head: int | None
    tail: int | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """Where requests come from: a trace, or two distributions.

    ``sampling`` and ``concurrency_per_replica`` are those of a named workload; ``notes`` say what a file left out.
    """

    name: str
    trace: Traffic | None
    isl: Length | None
    osl: Length | None
    arrivals: Arrivals | None
    burstiness_cv: float
    num_requests: int | None
    seed: int
    sampling: SamplingPolicy | None = None
    concurrency_per_replica: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def mean_isl_tok(self) -> float:
        """Mean prompt [tok]."""
        return self._mean(self.isl) if self.trace is None else float(self.trace.isl_tok.mean())

    @property
    def mean_osl_tok(self) -> float:
        """Mean output [tok]."""
        return self._mean(self.osl) if self.trace is None else float(self.trace.osl_tok.mean())

    @staticmethod
    def _mean(length: Length | None) -> float:
        assert length is not None  # a source has a trace or both lengths
        return mean_tok(length)

    @property
    def replays(self) -> bool:
        """Whether the requests have times of arrival of their own that are to be kept."""
        return self.trace is not None and self.trace.rate_req_s is not None and self.arrivals is None

    def own_load(self) -> Load | None:
        """Load of a trace with times: its mean rate; ``None`` where nothing says how requests arrive."""
        if self.trace is not None and self.trace.rate_req_s is not None:
            return Load(mode=LoadMode.REQUEST_RATE, value=self.trace.rate_req_s)
        if self.concurrency_per_replica is not None:
            return Load(mode=LoadMode.CONCURRENCY_PER_REPLICA, value=self.concurrency_per_replica)
        return None

    def requests(self, num_requests: int) -> Traffic:
        """Return the requests without times: ``num_requests`` of them, or as many as were asked for, or the whole trace."""
        wanted = self.num_requests or num_requests
        if self.trace is None:
            assert self.isl is not None
            assert self.osl is not None
            return drawn(isl=self.isl, osl=self.osl, num_requests=wanted, seed=self.seed, name=self.name)
        trace = replace(self.trace, arrival_s=None)
        if self.num_requests is None:
            return trace
        return head(trace, wanted) if wanted <= trace.num_requests else sampled(trace, wanted, seed=self.seed)

    def at_rate(self, rate_req_s: float, num_requests: int) -> Traffic:
        """Return the requests as they arrive at a mean rate: a trace's own pattern stretched, or drawn times."""
        if self.replays and self.trace is not None:
            if self.num_requests is not None:
                reject(WorkloadError, "num_requests",
                       f"be at most {self.trace.num_requests} where the times of the trace are kept, or --arrivals be given",
                       self.num_requests, self.name)
            return at_rate(self.trace, rate_req_s)
        return arriving(self.requests(num_requests), self.arrivals or Arrivals.POISSON, rate_req_s=rate_req_s,
                        burstiness_cv=self.burstiness_cv, seed=self.seed)

    def at_once(self, num_requests: int) -> Traffic:
        """Return the requests, all of them arriving at the start."""
        requests = self.requests(num_requests)
        return replace(requests, arrival_s=all_at_once(requests.num_requests))


def _length(value: int | str | Length, flag: str) -> Length:
    if isinstance(value, str):
        return parse_length(value, flag)
    if isinstance(value, FixedLength | SpreadLength | HistogramLength):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        reject(WorkloadError, "length", "be tokens, or text such as lognormal:800:1.2", value, flag)
    if not 1 <= value <= MAX_REQUEST_TOK:
        reject(WorkloadError, "tok", f"be between 1 and {MAX_REQUEST_TOK:.0e}", value, flag)
    return FixedLength(tok=value)


def _shown(length: Length) -> str:
    """Return a length as it is typed."""
    match length:
        case FixedLength():
            return str(length.tok)
        case SpreadLength():
            return f"{length.kind}:{length.mean_tok:g}:{length.cv:g}"
        case HistogramLength():
            return f"histogram:{length.name}"


def _arrivals(name: str | None, burstiness: float | None) -> Arrivals | None:
    check_real(WorkloadError, "--burstiness", minimum=MIN_BURSTINESS_CV, maximum=MAX_BURSTINESS_CV, burstiness=burstiness)
    if name is None:
        return None if burstiness is None else Arrivals.GAMMA
    known = [kind.value for kind in Arrivals]
    if name not in known:
        hint = nearest(name[:100], known)
        reject(WorkloadError, "arrivals", f"be among {', '.join(known)}" + (f" ({hint})" if hint else ""), name, "--arrivals")
    if burstiness is not None and name != Arrivals.GAMMA:
        reject(WorkloadError, "burstiness", f"be absent with {name} arrivals", burstiness, "--burstiness")
    return Arrivals(name)


def _file(asked: TrafficAsked, path: str | Path | Traffic) -> tuple[Traffic, tuple[str, ...]]:
    """Read a trace, cut and scale it."""
    for name in ("isl", "osl", "workload"):
        if asked.get(name) is not None:
            reject(WorkloadError, name, "be absent where a trace gives the requests", asked.get(name), "--trace")
    notes: tuple[str, ...] = ()
    if isinstance(path, Traffic):
        traffic = path
    else:
        found = read_trace(path, trace_format=asked.get("trace_format"), chars_per_tok=asked.get("chars_per_tok"),
                           tokenizer=asked.get("tokenizer"))
        traffic, notes = found.traffic, () if found.note is None else (found.note,)
    first, last = asked.get("head"), asked.get("tail")
    traffic = traffic if first is None else head(traffic, first)
    traffic = traffic if last is None else tail(traffic, last)
    rate, isl, osl = asked.get("scale_rate"), asked.get("scale_isl"), asked.get("scale_osl")
    return scaled(traffic, rate=1.0 if rate is None else rate, isl=1.0 if isl is None else isl,
                  osl=1.0 if osl is None else osl), notes


def source_of(asked: TrafficAsked) -> Source:
    """Return the requests that were asked for.

    Raises
    ------
    WorkloadError
        On contradictions, unknown names, bad numbers and bad files.
    """
    _check_types(asked)
    seed, count, burstiness = asked.get("seed"), asked.get("num_requests"), asked.get("burstiness")
    check_count(WorkloadError, "simulation", minimum=0, seed=seed)
    check_count(WorkloadError, "simulation", num_requests=count)
    if count is not None and count > MAX_REQUESTS:
        reject(WorkloadError, "num_requests", f"be at most {MAX_REQUESTS:.0e}", count, "simulation")
    arrivals = _arrivals(asked.get("arrivals"), burstiness)
    common = {"arrivals": arrivals, "burstiness_cv": 1.0 if burstiness is None else float(burstiness),
              "seed": 0 if seed is None else seed}
    trace = asked.get("trace")
    if trace is None:
        _refuse_without_trace(asked)
        return _drawn_source(asked, {**common, "num_requests": count})
    traffic, notes = _file(asked, trace)
    if arrivals is None and traffic.rate_req_s is not None and count is not None and count <= traffic.num_requests:
        traffic, count = head(traffic, count), None
    return Source(name=traffic.name, trace=traffic, isl=None, osl=None, notes=notes, num_requests=count,
                  **common)  # type: ignore[arg-type]


def _check_types(asked: TrafficAsked) -> None:
    """Refuse what is no text, so that it is no traceback further down."""
    for name in ("workload", "trace_format", "arrivals"):
        value = asked.get(name)
        if value is not None and not isinstance(value, str):
            reject(WorkloadError, name, "be text", value, "simulation")
    for name, types, wanted in (("trace", (str, os.PathLike, Traffic), "a path or a Traffic"),
                                ("tokenizer", (str, os.PathLike), "a path")):
        path = asked.get(name)
        if path is not None and not (isinstance(path, types) and path != ""):
            reject(WorkloadError, name, f"be {wanted}", path, "simulation")


def _drawn_source(asked: TrafficAsked, common: Mapping[str, object]) -> Source:
    name, isl, osl = asked.get("workload"), asked.get("isl"), asked.get("osl")
    if name is None:
        for flag, value in (("isl", isl), ("osl", osl)):
            if value is None:
                reject(WorkloadError, flag, "be given, or a trace, or a workload", None, "simulation")
        assert isl is not None
        assert osl is not None
        prompt, output = _length(isl, "--isl"), _length(osl, "--osl")
        return Source(name=f"{_shown(prompt)} in / {_shown(output)} out", trace=None, isl=prompt, osl=output,
                      **common)  # type: ignore[arg-type]
    named = preset(name)
    return Source(
        name=named.title, trace=None, isl=named.isl if isl is None else _length(isl, "--isl"),
        osl=named.osl if osl is None else _length(osl, "--osl"), sampling=named.sampling,
        concurrency_per_replica=named.concurrency_per_replica, **common)  # type: ignore[arg-type]


def _refuse_without_trace(asked: TrafficAsked) -> None:
    for name in _OF_TRACES:
        if asked.get(name) is not None:
            reject(WorkloadError, name, "be given with a trace only", asked.get(name), "simulation")
