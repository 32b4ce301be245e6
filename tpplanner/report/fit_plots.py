"""Plot of a fit: predicted against measured per operator, and the error over the driving size."""

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Final

import numpy as np

from tpplanner.domain.fit_evidence import KernelResiduals
from tpplanner.report.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, YELLOW
from tpplanner.units import MS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

_COLOURS: Final = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, YELLOW, GREY)
_TITLES: Final = {"gemm": "GEMM", "decode_attention": "decode attention", "prefill_attention": "prefill attention",
                  "moe": "routed experts"}
_LABELS: Final = {"num_tok": "tokens", "context_tok": "context [tokens]", "isl_tok": "prompt [tokens]"}
_MAX_POINTS: Final = 700
_DPI: Final = 90
_SHADES: Final = (1.0, 0.7, 0.4, 0.2)
"""Of every colour on white. Few colours and few points: the file is small, and the picture the same."""


def fit_plot_png(every: Sequence[KernelResiduals], *, title: str) -> bytes:
    """Return the plot as a PNG file."""
    from PIL import Image

    stream, small = BytesIO(), BytesIO()
    fit_figure(every, title=title).savefig(stream, format="png", dpi=_DPI)
    with Image.open(stream) as image:
        image.convert("RGB").quantize(palette=_palette(), dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def _palette() -> "Image":
    """Return an image with the palette: white, black and the colours of the series, in shades."""
    from PIL import Image, ImageColor

    inks = [(0, 0, 0), *(ImageColor.getrgb(colour)[:3] for colour in _COLOURS)]
    mixed = [round(255 - shade * (255 - part)) for ink in inks for shade in _SHADES for part in ink]
    palette = Image.new("P", (1, 1))
    palette.putpalette([255, 255, 255, *mixed])
    return palette


def fit_figure(every: Sequence[KernelResiduals], *, title: str) -> "Figure":
    """Return a figure with a column per operator: predicted against measured above, error by size below."""
    from matplotlib.figure import Figure

    operators = [name for name in _TITLES if any(r.operator == name for r in every)]
    figure = Figure(figsize=(3.2 * max(len(operators), 1), 6.2), layout="constrained")
    figure.suptitle(f"Fitted kernels of {title}: all samples", x=0.01, ha="left", fontweight="bold", fontsize=11)
    grid = figure.subplots(2, max(len(operators), 1), squeeze=False)
    for i, name in enumerate(operators):
        chosen = [r for r in every if r.operator == name]
        _against(grid[0][i], chosen)
        _by_size(grid[1][i], chosen)
        grid[0][i].set_title(_TITLES[name], fontsize=10)
    if operators:
        grid[0][0].set_ylabel("predicted [ms]")
        grid[1][0].set_ylabel("error: median, 10 to 90 % [%]")
    return figure


def _against(axes: "Axes", every: Sequence[KernelResiduals]) -> None:
    """Draw a sample of the points, and the diagonal."""
    low = min(float(r.measured_s.min()) for r in every) / MS
    high = max(float(r.measured_s.max()) for r in every) / MS
    for colour, r in zip(_COLOURS, every, strict=False):
        chosen = np.random.default_rng(0).permutation(r.measured_s.size)[:_MAX_POINTS]
        axes.plot(r.measured_s[chosen] / MS, r.predicted_s[chosen] / MS, ".", color=colour, markersize=3,
                  markeredgewidth=0, label=r.kernel.dtype)
    axes.plot([low, high], [low, high], color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("measured [ms]")
    axes.legend(frameon=False, fontsize=8, markerscale=4, loc="upper left", handletextpad=0.1)
    axes.tick_params(labelsize=8)


def _by_size(axes: "Axes", every: Sequence[KernelResiduals]) -> None:
    """Draw the median and the central 80 % of the signed error, by doublings of the driving size."""
    for colour, r in zip(_COLOURS, every, strict=False):
        size = r.sizes[r.driver]
        band = np.round(np.log2(size))
        levels = [level for level in np.unique(band) if (band == level).sum() >= 10]
        quantiles = np.array([np.quantile(100 * r.error_frac[band == level], (0.1, 0.5, 0.9)) for level in levels])
        if levels:
            axes.plot(2.0 ** np.array(levels), quantiles[:, 1], color=colour, linewidth=1.3)
            for edge in (0, 2):
                axes.plot(2.0 ** np.array(levels), quantiles[:, edge], color=colour, linewidth=0.8, linestyle=":")
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xscale("log", base=2)
    axes.set_ylim(-60, 60)
    axes.set_xlabel(_LABELS.get(every[0].driver, every[0].driver))
    axes.tick_params(labelsize=8)
