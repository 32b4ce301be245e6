"""How well predictions agree with measured runs: the records that scoring returns and reports print.

Errors, shares and regrets are fractions, never percent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

OURS, SMALLEST, LARGEST, RULE_OF_THUMB = "ours", "smallest", "largest", "rule_of_thumb"
POLICIES: Final = (OURS, SMALLEST, LARGEST, RULE_OF_THUMB)
"""Who chooses the degree: the prediction, or one of the baselines."""

SAME_LOAD: Final = "c"
OFFLINE: Final = "offline"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorStats:
    """Absolute relative error |predicted / measured - 1| over ``num`` figures, and the median of the ratio."""

    num: int
    mean_frac: float
    median_frac: float
    p90_frac: float
    median_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyRow:
    """Errors of the runs of one partition; ``None`` where no run has the quantity."""

    partition: str
    num_runs: int
    tpot: ErrorStats | None
    ttft: ErrorStats | None
    throughput: ErrorStats | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DoublingRow:
    """Errors of the gain T(2t) / T(t) of doubling the degree at equal load per GPU."""

    partition: str
    errors: ErrorStats


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageRow:
    """Share of the runs whose measured figure lies in the predicted 80 % interval; ``None`` without intervals."""

    partition: str
    num_runs: int
    tpot_frac: float | None
    ttft_frac: float | None
    throughput_frac: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupKey:
    """What the runs of one group have in common: all but the degree and the load."""

    model: str
    machine: str
    engine: str
    engine_version: str
    precision: str
    kv_cache_dtype: str
    isl_tok: int
    osl_tok: int
    parallel: str
    is_offline: bool

    @property
    def name(self) -> str:
        """The group on one line."""
        version = "" if self.engine_version == "?" else f" {self.engine_version}"
        cache = "" if self.kv_cache_dtype == "auto" else f" (KV {self.kv_cache_dtype})"
        return (f"{self.model.split('/')[-1]} {self.precision}{cache}, {self.machine}, {self.engine}{version}, "
                f"{self.isl_tok}/{self.osl_tok}, {self.parallel}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One choice of a degree, judged by what was measured.

    Attributes
    ----------
    definition
        ``a``: no limit; ``b20``: TPOT at most 20 ms; ``c``: equal load per GPU; ``offline``: everything queued.
    group, kind
        Where the choice was made.
    load_per_gpu
        Requests in flight per GPU; only in ``c``.
    measured, predicted
        Degree -> output tokens per second per GPU [tok/s]; ``None`` where the degree cannot serve.
    best_tp
        The degree that was best as measured.
    chosen
        Policy -> degree.
    is_censored
        Whether a degree met the limit up to the highest load that was measured, so that its best is not known.
    """

    definition: str
    group: GroupKey
    kind: str
    load_per_gpu: float | None
    measured: Mapping[int, float | None]
    predicted: Mapping[int, float | None]
    best_tp: int
    chosen: Mapping[str, int]
    is_censored: bool = False

    def regret_frac(self, policy: str = OURS) -> float:
        """Measured throughput per GPU lost by following ``policy``; 1 where its degree cannot serve."""
        value, best = self.measured.get(self.chosen[policy]), self.measured[self.best_tp]
        return 1.0 if value is None or best is None else 1.0 - value / best

    def is_infeasible(self, policy: str = OURS) -> bool:
        """Whether the degree that ``policy`` chose could not serve, as measured."""
        return self.measured.get(self.chosen[policy]) is None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyScore:
    """How a policy chose over ``num`` decisions.

    ``hit_frac`` counts degrees within 1 % of the best, ``strict_frac`` only the best; ``num_infeasible`` choices
    could not serve, as measured.
    """

    num: int
    hit_frac: float
    strict_frac: float
    regret_mean_frac: float
    regret_p90_frac: float
    regret_max_frac: float
    num_infeasible: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRow:
    """Policies side by side over the decisions of one definition and partition; degree -> how often it was best."""

    definition: str
    partition: str
    num_censored: int
    policies: Mapping[str, PolicyScore]
    best_tps: Mapping[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstGroup:
    """A group that is predicted badly.

    Attributes
    ----------
    group
        Its name.
    num
        Decisions or runs behind the figure.
    value_frac
        Mean regret, or mean absolute error of throughput.
    detail
        The worst of them, in words.
    term
        The term of the step that is wrong; ``None`` until somebody has found out.
    """

    group: str
    num: int
    value_frac: float
    detail: str
    term: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Every figure for one set of predictions.

    Attributes
    ----------
    name
        ``packaged``, ``given``, or the split: ``degree``, ``model`` and so on. Limits go by it.
    label
        The same in words: in-sample or held out.
    num_runs, num_predicted, num_oom
        Runs; those with figures; those that are predicted not to fit.
    not_predicted
        Why a run has no prediction -> number of runs.
    folds
        Part left out -> number of runs predicted without it; empty in-sample.
    num_groups
        Groups with two or more degrees.
    decisions
        Summaries by definition and partition.
    choices
        Every single one.
    """

    name: str
    label: str
    num_runs: int
    num_predicted: int
    num_oom: int
    not_predicted: Mapping[str, int]
    folds: Mapping[str, int]
    num_groups: int
    accuracy: tuple[AccuracyRow, ...]
    decisions: tuple[DecisionRow, ...]
    doubling: tuple[DoublingRow, ...]
    coverage: tuple[CoverageRow, ...]
    worst_by_regret: tuple[WorstGroup, ...]
    worst_by_throughput: tuple[WorstGroup, ...]
    choices: tuple[Decision, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on named figures: a figure above its maximum or below its minimum breaks one."""

    maxima: Mapping[str, float]
    minima: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitFile:
    """What a file of limits says.

    Attributes
    ----------
    place
        The file, for messages.
    limits
        `Scores.name` -> limits on its figures.
    drift_frac
        Largest relative change of a prediction since it was accepted.
    terms
        Name of a group -> the term of its step that is known to be wrong.
    """

    place: str
    limits: Mapping[str, Limits]
    drift_frac: float
    terms: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A figure beyond its limit; ``is_maximum`` says which kind of limit."""

    scores: str
    figure: str
    value: float
    limit: float
    is_maximum: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A prediction that is not the one last accepted; infinite where one of the two has no figure."""

    run_id: str
    quantity: str
    before: float | None
    after: float | None
    relative_frac: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Predictions against those last accepted: the largest changes, and how many exceed ``tolerance_frac``."""

    num_compared: int
    num_beyond: int
    tolerance_frac: float
    largest: tuple[Change, ...]
