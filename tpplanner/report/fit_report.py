"""``fit_report-<engine>.md``: coefficients with their errors, residuals by size, outliers, and where it all comes from."""

from collections.abc import Iterator, Sequence
from itertools import pairwise, starmap
from typing import Final

import numpy as np

from tpplanner.domain.fit_evidence import CollectiveError, FitEvidence, KernelResiduals
from tpplanner.domain.fitted_profile import FittedProfile
from tpplanner.domain.kernels import Kernel, MoeKernel
from tpplanner.domain.quantity import Quantity
from tpplanner.units import US

BANDS: Final[dict[str, tuple[float, ...]]] = {
    "num_tok": (1, 17, 129, 1025, 8193, np.inf),
    "context_tok": (1, 129, 1025, 8193, 65537, np.inf),
    "isl_tok": (1, 65, 513, 4097, 16385, np.inf),
}
"""Where the bands of a driving size begin; the last number ends the last one."""
NUM_OUTLIERS: Final = 2
_TITLES: Final = {"gemm": "GEMM", "decode_attention": "Decode attention", "prefill_attention": "Prefill attention",
                  "moe": "Routed experts"}
_SHORT: Final = {
    "num_tok": "tok", "out_features": "out", "in_features": "in", "num_seqs": "seqs", "context_tok": "context",
    "isl_tok": "isl", "num_heads": "heads", "num_kv_heads": "kv", "head_dim": "dim", "window_tok": "window",
    "hidden_size": "hidden", "expert_intermediate_size": "width", "num_experts_per_tok": "k", "num_experts": "E",
    "moe_tp": "tp", "moe_ep": "ep",
}


def fit_report_markdown(
    profile: FittedProfile, evidence: FitEvidence, *, system: str, engine_version: str | None = None, plot_name: str
) -> str:
    """Return the report of a fit as Markdown.

    Parameters
    ----------
    profile, evidence
        What was fitted, and how well it holds.
    system
        The package's name of the machine, for the command that repeats the fit.
    engine_version
        The one version that was asked for; ``None`` is the newest of every curve.
    plot_name
        File beside the report.
    """
    made = profile.made_from
    version = "" if engine_version is None else f" --engine-version {engine_version}"
    command = f"tpplanner profiles import --system {system} --engine {profile.engine}{version} --out profiles --overwrite"
    return "\n".join([
        f"# Fit of {profile.engine} on {profile.machine}",
        "",
        f"Measured operator tables of {made.package} {made.version}, fitted to `fitted-{profile.engine}.json`. To repeat it:",
        "", "```", f"pip install 'tpplanner[silicon]'\n{command}", "```", "",
        *kernel_sections(evidence, plot_name),
        "## Tables", "",
        *_table(("file below systems/data", "version", "rows used"),
                [(t.path, t.framework_version, f"{t.num_rows:,}") for t in made.tables]),
        "", "## Licence", "", made.notice, "",
    ])


def kernel_sections(evidence: FitEvidence, plot_name: str) -> Iterator[str]:
    """Yield the lines on kernels, their errors and the collectives."""
    yield from (*_kernels(evidence), "", *_errors(evidence.residuals, plot_name), "")
    yield from (*_collectives(evidence.collective_errors), "")


def _kernels(evidence: FitEvidence) -> Iterator[str]:
    yield from (
        "## Kernels", "",
        "Time = max(peak, (latency + roofline at the efficiencies) x exp(surface)), see `cost/kernels.py`. Coefficients +-",
        "standard error. Held out: a fifth of the shapes and of the driving sizes, predicted by a fit to the rest; absolute",
        "relative error, median / 90 % quantile.", "",
    )
    yield from _table(
        ("operator", "dtype", "samples", "latency us", "compute", "memory", "sharpness", "experts met", "held out %"),
        [_kernel_row(r.operator, r.kernel) for r in evidence.residuals])
    yield ""
    yield from _notes(evidence)


def _errors(every: Sequence[KernelResiduals], plot_name: str) -> Iterator[str]:
    yield from (
        "## Errors by size", "",
        "Over all samples, of the fit itself (not held out): median / 90 % quantile of the absolute relative error, and the",
        "median with its sign, in percent.", "",
        *_bands(every),
        f"![predicted against measured, and the error by size]({plot_name})", "",
        "## Largest outliers", "",
    )
    yield from _table(("operator", "dtype", "sizes", "measured us", "predicted us"), list(_outliers(every)))


def _collectives(errors: Sequence[CollectiveError]) -> Iterator[str]:
    yield from (
        "## Collectives", "", "Thinned until the sizes left out are interpolated within 3 %. Held out: every second size.", "")
    yield from _table(("operation", "degree", "sizes kept", "bytes", "held out %"), list(map(_curve_row, errors)))


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headers)} |"
    yield "|" + "---|" * len(headers)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"


def _with_error(quantity: Quantity, scale: float = 1.0) -> str:
    error = "" if quantity.std_error is None else f" +- {quantity.std_error / scale:.2g}"
    return f"{quantity.value / scale:.3g}{error}"


def _kernel_row(operator: str, kernel: Kernel) -> tuple[str, ...]:
    experts = _with_error(kernel.effective_experts_frac) if isinstance(kernel, MoeKernel) else ""
    return (_TITLES[operator], kernel.dtype, f"{kernel.num_samples:,}", _with_error(kernel.latency_s, US),
            _with_error(kernel.compute_frac), _with_error(kernel.memory_frac), _with_error(kernel.sharpness), experts,
            _held_out(kernel.held_out_median_frac, kernel.held_out_p90_frac))


def _held_out(median: float | None, p90: float | None) -> str:
    return "not measured" if median is None or p90 is None else f"{100 * median:.1f} / {100 * p90:.1f}"


def _notes(evidence: FitEvidence) -> Iterator[str]:
    for warning in evidence.warnings:
        yield f"- {warning}"
    for residuals in evidence.residuals:
        kernel = residuals.kernel
        said = f"{residuals.operator} {kernel.dtype}: "
        notes = [note for note in kernel.notes if said + note not in evidence.warnings]
        routing = [f"routing {kernel.distribution}"] if isinstance(kernel, MoeKernel) else []
        if notes or routing:
            yield f"- {said}{'; '.join((*routing, *notes))}"


def _bands(every: Sequence[KernelResiduals]) -> Iterator[str]:
    """Yield one table per operator, with a column per band of its driving size."""
    for operator, title in _TITLES.items():
        chosen = [r for r in every if r.operator == operator]
        if not chosen:
            continue
        edges = BANDS[chosen[0].driver]
        yield from _table((title, *(_band_name(chosen[0].driver, low, high) for low, high in pairwise(edges))),
                          [(r.kernel.dtype, *(_band(r, low, high) for low, high in pairwise(edges))) for r in chosen])
        yield ""


def _band_name(driver: str, low: float, high: float) -> str:
    return f"{driver} {low:,.0f}.." + ("" if np.isinf(high) else f"{high - 1:,.0f}")


def _band(residuals: KernelResiduals, low: float, high: float) -> str:
    size = residuals.sizes[residuals.driver]
    error = 100 * residuals.error_frac[(size >= low) & (size < high)]
    if not error.size:
        return "-"
    return f"{np.median(np.abs(error)):.1f} / {np.quantile(np.abs(error), 0.9):.1f} ({np.median(error):+.1f})"


def _outliers(every: Sequence[KernelResiduals]) -> Iterator[tuple[str, ...]]:
    """Yield the samples of every kernel whose prediction is off by the largest factor."""
    for r in every:
        off = np.abs(np.log(r.predicted_s / r.measured_s))
        for i in np.argsort(-off, kind="stable")[:NUM_OUTLIERS]:
            sizes = {n: float(v[i]) for n, v in r.sizes.items()}
            shown = " ".join(starmap(_size, ((n, v) for n, v in sizes.items() if np.isfinite(v))))
            yield (_TITLES[r.operator], r.kernel.dtype, shown, f"{r.measured_s[i] / US:,.4g}", f"{r.predicted_s[i] / US:,.4g}")


def _size(name: str, value: float) -> str:
    return f"{_SHORT.get(name, name)}={value:g}" if value < 1e5 else f"{_SHORT.get(name, name)}={value:.0f}"


def _curve_row(error: CollectiveError) -> tuple[str, ...]:
    curve = error.curve
    return (curve.op.value, str(curve.tp), f"{len(curve.size_bytes)} of {error.num_samples}",
            f"{curve.size_bytes[0]:,.0f} to {curve.size_bytes[-1]:,.0f}",
            _held_out(error.held_out_median_frac, error.held_out_p90_frac))
