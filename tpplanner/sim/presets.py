"""Named workloads: lengths, sampling and concurrency, each with its source."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from tpplanner.domain.checks import check_real
from tpplanner.domain.engine import SamplingPolicy
from tpplanner.domain.traffic import FixedLength, Length, SpreadLength
from tpplanner.errors import WorkloadError, nearest, reject


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadPreset:
    """A named workload.

    Attributes
    ----------
    name, title
        What is typed, and what people read.
    isl, osl
        Prompt and output lengths [tok].
    sampling
        How tokens are sampled; ``None`` where the source says nothing.
    concurrency_per_replica
        Requests in flight per replica; ``None`` where the source says nothing.
    source
        Where the numbers come from, and what is assumed.
    """

    name: str
    title: str
    isl: Length
    osl: Length
    sampling: SamplingPolicy | None
    concurrency_per_replica: float | None
    source: str

    def __post_init__(self) -> None:
        check_real(WorkloadError, self.name, minimum=1e-9, concurrency_per_replica=self.concurrency_per_replica)


def _gamma(mean_tok: float, cv: float) -> SpreadLength:
    return SpreadLength(kind="gamma", mean_tok=mean_tok, cv=cv)


def _lognormal(mean_tok: float, cv: float) -> SpreadLength:
    return SpreadLength(kind="lognormal", mean_tok=mean_tok, cv=cv)


_AZURE: Final = (
    "mean and coefficient of variation from the 2023 trace, {} requests (Azure LLM inference trace {} 2023, Splitwise, "
    "ISCA 2024, CC-BY; as processed in microsoft/vidur); of lognormal and gamma the one whose 50 %, 90 % and 99 % "
    "quantiles lie nearer; prompt and output drawn independently, which in the trace they are not"
)

PRESETS: Final[Mapping[str, WorkloadPreset]] = MappingProxyType({preset.name: preset for preset in (
    WorkloadPreset(
        name="albireo", title="the Albireo paper: short prompts, 1,024 tokens out, all penalties on",
        isl=FixedLength(tok=80), osl=FixedLength(tok=1024), sampling=SamplingPolicy.FULL, concurrency_per_replica=256.0,
        source="arXiv 2606.01927, section 8.1: prompts of databricks-dolly-15k, every sampling parameter on. Output length "
               "and concurrency are not stated: 1,104 tokens per sequence and 256 in flight per engine follow from its "
               "figures (KV blocks at the end; throughput times TPOT); prompts as one length, as those blocks suggest",
    ),
    WorkloadPreset(
        name="sharegpt", title="ShareGPT-like chat: first question and answer",
        isl=_lognormal(217.0, 1.0), osl=_lognormal(202.0, 1.0), sampling=None, concurrency_per_replica=None,
        source="means from published outputs of vLLM's serving benchmark on ShareGPT_V3_unfiltered_cleaned_split (1,000 "
               "requests, seed 0, Qwen2.5-7B-Instruct: 217,393 prompt and 201,847 generated tokens). The coefficient of "
               "variation of 1 is an assumption: it puts 1 % of the prompts above the 1,024 tokens where that benchmark cuts",
    ),
    WorkloadPreset(
        name="azure-conv-2023", title="Azure conversation service, 2023",
        isl=_gamma(1154.7, 0.960), osl=_gamma(211.1, 0.771), sampling=None, concurrency_per_replica=None,
        source=_AZURE.format("19,366", "conversation"),
    ),
    WorkloadPreset(
        name="azure-code-2023", title="Azure code completion service, 2023",
        isl=_gamma(2047.8, 0.964), osl=_lognormal(27.88, 2.147), sampling=None, concurrency_per_replica=None,
        source=_AZURE.format("8,819", "code"),
    ),
)})
"""Name -> preset."""


def preset(name: str) -> WorkloadPreset:
    """Return the preset ``name``.

    Raises
    ------
    WorkloadError
        There is none of that name.

    Examples
    --------
    >>> preset("albireo").osl
    FixedLength(tok=1024)
    """
    if name not in PRESETS:
        hint = nearest(name[:100], PRESETS)
        reject(WorkloadError, "workload", f"be among {', '.join(PRESETS)}" + (f" ({hint})" if hint else ""), name)
    return PRESETS[name]
