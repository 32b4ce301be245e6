"""What belongs beside an answer and not into it: the lines that go to stderr."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass

from tpplanner.domain.plan import COMMON_STD_FRAC, TIE_PROB_FRAC, TTFT_OVER_TPOT, FlipPoint, Question, Recommendation
from tpplanner.domain.quantity import Provenance, Quantity
from tpplanner.domain.serving_fit import model_key
from tpplanner.domain.workload import Load, LoadMode, Targets
from tpplanner.report.numbers import grouped, milliseconds, percent, plural


def notes(rec: Recommendation) -> tuple[str, ...]:
    """Return the notes of a recommendation, one per line.

    Warnings come first, then load and settings, assumptions, the rule of thumb, the points at which
    the answer flips, what the intervals are made of, and the evidence behind the figures.
    """
    return (
        *(f"warning: {line}" for line in rec.warnings),
        f"load: {load_sentence(rec)}",
        f"settings: {settings_sentence(rec.question)}",
        f"ranked by: {rec.ranked_by}",
        *(f"assumption: {line}" for line in rec.assumptions),
        f"rule of thumb: {rule_of_thumb_sentence(rec)}",
        *(f"flip point: {flip_sentence(flip)}" for flip in rec.flip_points),
        f"uncertainty: {uncertainty_sentence(rec)}",
        *(f"evidence: {line}" for line in evidence_lines(rec)),
    )


def comparison_notes(recs: Sequence[Recommendation]) -> tuple[str, ...]:
    """Return the notes of several engines' answers to one question: what is common once, the rest per engine."""
    def told(kind: str, lines: Sequence[tuple[str, str]]) -> Iterator[str]:
        for engine, line in lines:
            shared = sum(other == line for _, other in lines) == len(recs)
            yield f"{kind}: {line}" if shared else f"{kind}: {engine}: {line}"

    def of(lines_of: str) -> list[tuple[str, str]]:
        return [(rec.question.engine.name, line) for rec in recs for line in getattr(rec, lines_of)]

    return tuple(dict.fromkeys([
        *told("warning", of("warnings")),
        *(f"load: {load_sentence(rec)}" for rec in recs[:1]),
        *(f"settings: {settings_sentence(rec.question)}" for rec in recs),
        *told("assumption", of("assumptions")),
        *told("uncertainty", [(rec.question.engine.name, uncertainty_sentence(rec)) for rec in recs]),
        *(f"evidence: {line}" for rec in recs for line in profile_lines(rec.question)),
        *(f"evidence: {rec.question.engine.name}: {line}" for rec in recs for line in extrapolation_lines(rec)),
    ]))


def load_sentence(rec: Recommendation) -> str:
    """Say what load was asked about, and whether a number is of the cluster, a replica or a GPU."""
    question = rec.question
    lengths = f"{question.workload.isl_tok:,} tokens in, {question.workload.osl_tok:,} out"
    targets = targets_words(question.targets, "mean")
    return "; ".join([load_words(question.load), lengths, *([targets] if targets else [])])


def load_words(load: Load) -> str:
    """Say what a load mode holds fixed, with its value."""
    value = grouped(load.value)
    match load.mode:
        case LoadMode.REQUEST_RATE:
            return f"{value} requests per second over the whole cluster"
        case LoadMode.CONCURRENCY:
            return f"{value} requests in flight over the whole cluster"
        case LoadMode.BATCH_PER_GPU:
            return f"{value} requests in flight per GPU (a replica of TP t has t times as many)"
        case LoadMode.CONCURRENCY_PER_REPLICA:
            return f"{value} requests in flight per replica, whatever its degree"
        case LoadMode.SLO_CAPACITY:
            return "the highest at which the targets hold"
        case LoadMode.OFFLINE:
            return "everything queued at once"


def targets_words(targets: Targets, statistic: str) -> str:
    """Name the targets on a statistic (mean, p99) of the latencies; empty where there is none."""
    limits = (("TTFT", targets.ttft_s), ("TPOT", targets.tpot_s))
    return ", ".join(f"{statistic} {name} <= {milliseconds(limit)} ms" for name, limit in limits if limit is not None)


def settings_sentence(question: Question) -> str:
    """Name every setting that shapes the answer, defaults included, in the engines' spelling."""
    switches = question.engine.switches
    states = ", ".join(
        f"{name} {'on' if getattr(switches, name) else 'off'}" for name in switches.__slots__
    )
    precision = question.model.precision
    return (f"{question.engine.name} ({states}), weights {precision.name}, KV cache {precision.kv.name}, "
            f"sampling {question.sampling.value}, max_num_seqs {question.max_num_seqs}, "
            f"max_num_batched_tokens {question.max_num_batched_tokens}, "
            f"gpu_memory_utilization {question.gpu_memory_utilization:g}, "
            f"preemption by {question.engine.preemption.value}")


def rule_of_thumb_sentence(rec: Recommendation) -> str:
    """Set the rule of thumb beside the answer."""
    rule = f"4 * weights / HBM, rounded up to a power of two, says TP {rec.rule_of_thumb_tp}"
    if rec.best_tp is None:
        return rule
    if rec.rule_of_thumb_tp == rec.best_tp:
        return f"{rule}, as the answer does"
    return f"{rule}; the answer is TP {rec.best_tp}"


def uncertainty_sentence(rec: Recommendation) -> str:
    """Say what intervals and probabilities are made of, and what counts as a tie."""
    return (f"{error_words(rec.question)}; intervals hold 80 % of single runs; a degree ties where it is the better of itself "
            f"and the best with {percent(TIE_PROB_FRAC)} probability or more")


def error_words(question: Question) -> str:
    """Say what is known of the errors of the figures: residuals of measured runs, or an assumption."""
    residual, ratio = question.engine.tpot_residual, question.engine.ratio_error_frac.value
    here = f"{question.engine.name} on {question.hardware.name}"
    if residual is None:
        return (f"no measured runs to go by: assumed errors of TPOT of {percent(COMMON_STD_FRAC)} common to all degrees and "
                f"{percent(ratio)} between two, {TTFT_OVER_TPOT:g} times that for TTFT")
    if not residual.num_runs:
        return f"no measured runs of {here}: what the model leaves over on those of other machines"
    own = sum(name == model_key(question.model) for name in residual.model_keys)
    runs = [f"{plural(own, 'measured run')} of this model"] if own else ["no measured run of this model"]
    runs += [f"{residual.num_runs - own:,} of other models"] if own < residual.num_runs else []
    return f"residuals of {' and '.join(runs)}, {here}"


def flip_sentence(flip: FlipPoint) -> str:
    """Say where the best degree changes.

    Examples
    --------
    >>> flip_sentence(FlipPoint(variable="concurrency", unit="requests", tp_before=2, tp_after=4,
    ...                         previous=64.0, value=128.0))
    'TP 4 instead of TP 2 from concurrency 128 requests on (TP 2 up to 64)'
    >>> flip_sentence(FlipPoint(variable="KV dtype", unit="", tp_before=4, tp_after=2,
    ...                         previous="bf16", value="fp8"))
    'TP 2 instead of TP 4 with KV dtype fp8 (TP 4 with bf16)'
    """
    change = f"TP {flip.tp_after} instead of TP {flip.tp_before}"
    if isinstance(flip.value, str) or isinstance(flip.previous, str):
        return (f"{change} with {flip.variable} {flip.value} "
                f"(TP {flip.tp_before} with {flip.previous})")
    unit = "" if flip.unit in ("", "1") else f" {flip.unit}"
    onward, until = ("on", "up to") if flip.value > flip.previous else ("down", "down to")
    return (f"{change} from {flip.variable} {grouped(flip.value)}{unit} {onward} "
            f"(TP {flip.tp_before} {until} {grouped(flip.previous)})")


def evidence_lines(rec: Recommendation) -> tuple[str, ...]:
    """Count the coefficients behind the figures by provenance, and name those used outside their range."""
    return (*profile_lines(rec.question), *extrapolation_lines(rec))


def profile_lines(question: Question) -> tuple[str, ...]:
    """Count the coefficients of the machine and of the engine by provenance; documented defaults apart."""
    lines = []
    hardware = question.hardware
    # Kernels stand in for the efficiencies of the rooflines, all but that of element-wise work.
    replaced = set() if hardware.kernels is None else {
        id(q) for q in quantities(hardware.efficiency) if q is not hardware.efficiency.elementwise_memory}
    for profile in (hardware, question.engine):
        known = [q for q in quantities(profile) if id(q) not in replaced]
        stated = [quantity for quantity in known if not is_default(quantity)]
        counts = Counter(quantity.provenance for quantity in stated)
        told = [f"{counts[kind]} {kind.value}" for kind in Provenance if counts[kind]]
        if len(known) > len(stated):
            told.append(plural(len(known) - len(stated), "documented default"))
        lines.append(f"{profile.name}: {plural(len(known), 'coefficient')} ({', '.join(told)})")
    return tuple(lines)


def extrapolation_lines(rec: Recommendation) -> tuple[str, ...]:
    """Name the terms used outside the range of their fit, per degree."""
    return tuple(
        f"TP {plan.tp} is extrapolated outside the range of: {', '.join(plan.outcome.extrapolated)}"
        for plan in rec.plans if plan.outcome is not None and plan.outcome.extrapolated
    )


def is_default(quantity: Quantity) -> bool:
    """Whether a coefficient is a documented default: no datasheet prints it, and nothing was measured.

    Examples
    --------
    >>> is_default(Quantity(value=60.0, unit="w", provenance=Provenance.DATASHEET, source="assumed, no measurement yet"))
    True
    """
    published = quantity.provenance is Provenance.DATASHEET
    return published and quantity.source.lower().startswith(("default", "assumed"))


def quantities(record: object) -> Iterator[Quantity]:
    """Yield every `Quantity` inside a dataclass, a mapping or a tuple, at any depth."""
    if isinstance(record, Quantity):
        yield record
    elif is_dataclass(record):
        for field in fields(record):
            yield from quantities(getattr(record, field.name))
    elif isinstance(record, Mapping):
        for value in record.values():
            yield from quantities(value)
    elif isinstance(record, tuple):
        for value in record:
            yield from quantities(value)
