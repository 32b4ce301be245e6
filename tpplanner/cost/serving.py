"""An engine profile on the machine and for the model that serving runs were fitted for."""

from dataclasses import replace

from tpplanner.domain.engine import EngineProfile, TaskCost
from tpplanner.domain.model import ModelSpec
from tpplanner.domain.quantity import Quantity
from tpplanner.domain.serving_fit import ServingFit, ServingTerms

_EVEN = 1.0 / 3.0


def _share(quantity: Quantity, share: float) -> Quantity:
    return replace(quantity, value=quantity.value * share,
                   std_error=None if quantity.std_error is None else quantity.std_error * share)


def bind_terms(engine: EngineProfile, terms: ServingTerms) -> EngineProfile:
    """Return the profile with the host work and the factors that serving runs gave.

    Notes
    -----
    Serving runs see the host work that is exposed, not the tasks. Where nothing overlaps it is all of
    T1, T2 and T5, and goes to them in the profile's own proportions; where the engine schedules
    asynchronously it is what stays exposed, beside T1 and T5 of the profile, which it hides.
    """
    bound = replace(engine, layer_overhead_s=terms.layer_s, request_overhead_s=terms.request_s, terms=terms)
    return _overlapped_host(bound, terms) if engine.switches.async_sched else _exposed_host(bound, terms)


def bind(engine: EngineProfile, fit: ServingFit, model: ModelSpec, *, family: str | None = None) -> EngineProfile:
    """Return the profile as runs of the model's class fitted it, with what runs of this very model still correct.

    ``family`` names the benchmark whose terms are asked for; ``None`` the one with the most runs.
    """
    bound = bind_terms(engine, fit.terms_for(model, family=family))
    kind = "moe" if model.is_moe else "dense"
    return replace(bound, tpot_residual=fit.tpot.get(kind), ttft_residual=fit.ttft.get(kind))


def _overlapped_host(engine: EngineProfile, terms: ServingTerms) -> EngineProfile:
    none = _share(terms.step_s, 0.0)
    return replace(engine, prepare_input=TaskCost(fixed_s=none, per_seq_s=_share(terms.seq_s, 0.0)), overlap_overhead_s=none,
                   exposed=TaskCost(fixed_s=terms.step_s, per_seq_s=terms.seq_s))


def _exposed_host(engine: EngineProfile, terms: ServingTerms) -> EngineProfile:
    tasks = (engine.schedule, engine.prepare_input, engine.process_output)
    fixed, per_seq = sum(t.fixed_s.value for t in tasks), sum(t.per_seq_s.value for t in tasks)

    def shared(task: TaskCost) -> TaskCost:
        return TaskCost(
            fixed_s=_share(terms.step_s, task.fixed_s.value / fixed if fixed else _EVEN),
            per_seq_s=_share(terms.seq_s, task.per_seq_s.value / per_seq if per_seq else _EVEN),
        )

    t1, t2, t5 = (shared(task) for task in tasks)
    return replace(engine, schedule=t1, prepare_input=t2, process_output=t5)
