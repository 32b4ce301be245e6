"""The forward pass in an explanation: by fitted kernels where they were measured, else by rooflines at efficiencies."""

from collections.abc import Iterator

from tpplanner.cost import attention, elementwise, kernels, linear
from tpplanner.cost.gemms import experts_of, gemms_of, lm_head_of
from tpplanner.cost.kernel_time import gemm_kernel_for, moe_kernel_for
from tpplanner.cost.work import work_of
from tpplanner.domain.engine import EngineProfile
from tpplanner.domain.explain import ExplainLine
from tpplanner.domain.plan import DegreePlan, Outcome, Question
from tpplanner.domain.quantity import Quantity
from tpplanner.units import GB, GIB, MIB, TERA, US


def origin(*quantities: Quantity | None) -> tuple[str, str]:
    """Weakest provenance of the coefficients, and their sources."""
    known = [q for q in quantities if q is not None]
    order = ["measured", "fitted", "datasheet", "extrapolated"]
    worst = max((q.provenance.value for q in known), key=order.index)
    return worst, "; ".join(dict.fromkeys(q.source for q in known))


def line(
    term: str, equation: str, inputs: str, value: float, quantities: tuple[Quantity | None, ...],
    *, unit: str = "s", level: int = 1, extrapolated: bool = False,
) -> ExplainLine:
    """One line, with the weakest evidence among its coefficients."""
    provenance, source = origin(*quantities)
    return ExplainLine(term=term, equation=equation, inputs=inputs, value=value, unit=unit,
                       provenance="extrapolated" if extrapolated else provenance, source=source, level=level)


def rows_text(outcome: Outcome, *, per_tok: float = 1.0, unit: str = "rows") -> str:
    """Rows of a step that only decodes and of one that also carries prompt tokens, each with its share of the steps."""
    working = min(outcome.num_running_seqs, 1.0)
    decode = outcome.num_decode_seqs / max(working, 1e-12)
    mixed = decode + outcome.mixed_prefill_tok
    return (f"{decode * per_tok:.4g} {unit} in {1 - outcome.mixed_frac:.1%} of the steps, "
            f"{mixed * per_tok:.4g} in {outcome.mixed_frac:.1%}")


def _forward_efficiencies(question: Question, plan: DegreePlan, outcome: Outcome) -> Iterator[ExplainLine]:
    """The forward pass by rooflines at efficiencies."""
    hw, model, tp = question.hardware, question.model, plan.tp
    work, eff, step = work_of(model), hw.efficiency, outcome.step
    peak = hw.peak_for(model.precision.activation.name)
    context = question.workload.isl_tok + question.workload.osl_tok / 2
    rows = outcome.num_decode_seqs
    weights = plan.memory.weight_bytes if plan.memory else 0.0
    yield line("linear", linear.EQUATION,
                f"n = {rows_text(outcome)}; {model.num_active_params / 1e9:.2f}e9 active parameters, weights "
                f"{weights / GIB:.2f} GiB/rank, peak {peak.value / TERA:.0f} TFLOP/s x {eff.gemm_compute.value:g}, "
                f"bw {hw.hbm_bytes_s.value / GB:.0f} GB/s x {eff.gemm_memory.value:g}, p = {eff.roofline_sharpness.value:g}",
                step.linear_s, (peak, hw.hbm_bytes_s, eff.gemm_compute, eff.gemm_memory), level=2)
    per_tok = plan.memory.kv_bytes_per_tok if plan.memory else 0.0
    yield line("attention", attention.EQUATION,
                f"n = {rows:.4g} decoding, context {context:.0f} tok; {outcome.mixed_prefill_tok:.0f} prompt tokens in "
                f"{outcome.mixed_frac:.1%} of the steps, context {question.workload.isl_tok / 2:.0f}; "
                f"kv {per_tok / 1024:.1f} KiB/tok/rank, "
                f"ea = {eff.decode_attention_memory.value:g}, ep = {eff.prefill_attention_compute.value:g}",
                step.attention_s, (eff.decode_attention_memory, eff.prefill_attention_compute), level=2)
    yield line("element-wise", elementwise.EQUATION,
                f"n = {rows_text(outcome)}; replicated {work.replicated_activation_bytes_per_tok / MIB:.2f} + sharded "
                f"{work.sharded_activation_bytes_per_tok / MIB:.2f}/{tp} MiB per token, ee = {eff.elementwise_memory.value:g}",
                step.elementwise_s, (eff.elementwise_memory,), level=2)
    overhead = question.engine.layer_overhead_s
    yield line("launch", elementwise.LAUNCH_EQUATION,
                f"L = {work.num_layers}, {overhead.value / US:.0f} us per layer", step.launch_s, (overhead,), level=2)


def factor_text(engine: EngineProfile, *kinds: str) -> str:
    """Factors of the engine on its kernels, as text; nothing where none was fitted."""
    if engine.terms is None:
        return ""
    return "; inside the engine " + ", ".join(
        f"{kind.replace('_', ' ')} x {getattr(engine.terms, f'{kind}_factor').value:.2f}" for kind in kinds)


def _forward_kernels(question: Question, plan: DegreePlan, outcome: Outcome) -> Iterator[ExplainLine]:
    """The forward pass where kernels were measured: what ran, how well it was held out, and the engine's factors."""
    hw, model, engine, step = question.hardware, question.model, question.engine, outcome.step
    work, terms = work_of(model), engine.terms
    gemms = {k.dtype: k for g in (*gemms_of(model), lm_head_of(model)) if (k := gemm_kernel_for(hw, g)) is not None}
    experts = {m.dtype: m for e in experts_of(model) if (m := moe_kernel_for(hw, e)) is not None}
    used = [*gemms.values(), *experts.values()]
    held = ", ".join(f"{k.dtype} {k.held_out_median_frac:.1%}" for k in used if k.held_out_median_frac is not None)
    coefficients = [k.memory_frac for k in used]
    factors = () if terms is None else (terms.gemm_factor, *((terms.expert_factor,) if experts else ()))
    yield line("linear", kernels.EQUATION,
                f"n = {rows_text(outcome)}; {model.num_active_params / 1e9:.2f}e9 active parameters; kernels held out to {held} "
                f"in the median{factor_text(engine, 'gemm', *(('expert',) if experts else ()))}",
                step.linear_s, (*coefficients, *factors), level=2)
    yield _attention_kernels(question, outcome)
    yield line("element-wise", elementwise.EQUATION,
                f"n = {rows_text(outcome)}; replicated {work.replicated_activation_bytes_per_tok / MIB:.2f} + sharded "
                f"{work.sharded_activation_bytes_per_tok / MIB:.2f}/{plan.tp} MiB per token, "
                f"ee = {hw.efficiency.elementwise_memory.value:g}",
                step.elementwise_s, (hw.efficiency.elementwise_memory,), level=2)
    overhead = engine.layer_overhead_s
    yield line("launch", elementwise.LAUNCH_EQUATION,
                f"L = {work.num_layers}, {overhead.value / US:.1f} us per layer", step.launch_s, (overhead,), level=2)


def _attention_kernels(question: Question, outcome: Outcome) -> ExplainLine:
    hw, model, terms = question.hardware, question.model, question.engine.terms
    context = question.workload.isl_tok + question.workload.osl_tok / 2
    cache = "fp8" if model.precision.kv.num_bytes <= 1 else "bf16"
    found = [k for k in (hw.kernels.decode_attention.get(cache), hw.kernels.prefill_attention.get(cache))
             if k is not None] if hw.kernels is not None else []
    factors = () if terms is None else (terms.decode_attention_factor, terms.prefill_attention_factor)
    plain = () if found else (hw.efficiency.decode_attention_memory, hw.efficiency.prefill_attention_compute)
    return line("attention", kernels.EQUATION if found else attention.EQUATION,
                f"n = {outcome.num_decode_seqs:.4g} decoding, context {context:.0f} tok; "
                f"{outcome.mixed_prefill_tok:.0f} prompt tokens in {outcome.mixed_frac:.1%} of the steps; {cache} cache"
                f"{factor_text(question.engine, 'decode_attention', 'prefill_attention')}",
                outcome.step.attention_s, (*(k.memory_frac for k in found), *plain, *factors), level=2)


def forward_lines(question: Question, plan: DegreePlan, outcome: Outcome) -> Iterator[ExplainLine]:
    """The lines of T3 without communication."""
    by_kernels = question.hardware.kernels is not None
    return (_forward_kernels if by_kernels else _forward_efficiencies)(question, plan, outcome)
