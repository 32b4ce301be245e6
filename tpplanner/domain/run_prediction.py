"""What was predicted for a measured run, and the two side by side."""

import math
from dataclasses import dataclass
from typing import Final

from tpplanner.domain.checks import check_real
from tpplanner.domain.offline_run import MeasuredRun, OfflineRun
from tpplanner.errors import WorkloadError, reject

OK: Final = "ok"
OUT_OF_MEMORY: Final = "OOM"
QUANTITIES: Final = ("tpot", "ttft", "throughput")
"""What runs are compared in."""

_TIMES: Final = ("ttft_s", "tpot_s", "tpot_low_s", "tpot_high_s", "ttft_low_s", "ttft_high_s")
_RATES: Final = ("throughput_tok_s", "throughput_low_tok_s", "throughput_high_tok_s")
_UNIT: Final = {"tpot": "s", "ttft": "s", "throughput": "tok_s"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPrediction:
    """Predicted means of one replica under the load of a measured run.

    Attributes
    ----------
    run_id
        Of the `ServingRun` or `OfflineRun`.
    status
        ``ok``; ``OOM``: the weights or one request do not fit, so that the degree cannot serve; any other text says
        why there is no prediction.
    ttft_s, tpot_s
        Means [s].
    throughput_tok_s
        Output tokens of the replica per second [tok/s]; where ``None``, that of the closed loop (`ScoredRun`).
    tpot_low_s, tpot_high_s, ttft_low_s, ttft_high_s, throughput_low_tok_s, throughput_high_tok_s
        Ends of the 80 % intervals; ``None`` where none is stated.
    fold
        The part of the runs that was left out of the fit when this was predicted, ``tp 8``; ``None`` in-sample.
    sources
        Where the coefficients come from, for reports.
    """

    run_id: str
    status: str = OK
    ttft_s: float | None = None
    tpot_s: float | None = None
    throughput_tok_s: float | None = None
    tpot_low_s: float | None = None
    tpot_high_s: float | None = None
    ttft_low_s: float | None = None
    ttft_high_s: float | None = None
    throughput_low_tok_s: float | None = None
    throughput_high_tok_s: float | None = None
    fold: str | None = None
    sources: str | None = None

    def __post_init__(self) -> None:
        place = f"prediction of {self.run_id}"
        check_real(WorkloadError, place, **{name: getattr(self, name) for name in (*_TIMES, *_RATES)})
        if not self.status:
            reject(WorkloadError, "status", "be given", self.status, place)
        for quantity in QUANTITIES:
            low, high = self.interval(quantity)
            if (low is None) != (high is None):
                reject(WorkloadError, f"{quantity} interval", "have both ends or none", (low, high), place)
            if low is not None and high is not None and low > high:
                reject(WorkloadError, f"{quantity} interval", "have its low end below", (low, high), place)
        for name in ("tpot_s", "throughput_tok_s"):
            if getattr(self, name) == 0:
                reject(WorkloadError, name, "be > 0", 0, place)

    @property
    def is_oom(self) -> bool:
        """Whether the degree is predicted not to serve at all."""
        return self.status == OUT_OF_MEMORY

    def interval(self, quantity: str) -> tuple[float | None, float | None]:
        """Ends of the 80 % interval of one of `QUANTITIES` [s or tok/s]."""
        unit = _UNIT[quantity]
        return getattr(self, f"{quantity}_low_{unit}"), getattr(self, f"{quantity}_high_{unit}")


_NORMAL_80: Final = 1.2816
"""Standard deviations on either side that hold 80 % of a normal distribution."""


def with_interval(
    *, run_id: str, tpot_s: float, ttft_s: float, tpot_std: float, ttft_std: float, concurrency: float, osl_tok: float,
    fold: str | None = None,
) -> RunPrediction:
    """Return the prediction of a closed loop with 80 % intervals from the standard deviations of its log errors."""
    e2e_s = ttft_s + tpot_s * (osl_tok - 1.0)
    rate = concurrency * osl_tok / e2e_s
    first = ttft_s / e2e_s
    e2e_std = math.hypot(first * ttft_std, (1.0 - first) * tpot_std)
    wide, late, long = (math.exp(_NORMAL_80 * std) for std in (tpot_std, ttft_std, e2e_std))
    return RunPrediction(
        run_id=run_id, ttft_s=ttft_s, tpot_s=tpot_s, throughput_tok_s=rate, tpot_low_s=tpot_s / wide,
        tpot_high_s=tpot_s * wide, ttft_low_s=ttft_s / late, ttft_high_s=ttft_s * late,
        throughput_low_tok_s=rate / long, throughput_high_tok_s=rate * long, fold=fold,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRun:
    """A measured run beside what was predicted for it; ``prediction`` is ``None`` where nothing was."""

    run: MeasuredRun
    prediction: RunPrediction | None

    @property
    def concurrency(self) -> int | None:
        """Requests in flight in the replica; ``None`` where everything is queued."""
        return None if isinstance(self.run, OfflineRun) else self.run.concurrency

    @property
    def is_saturated(self) -> bool:
        """Whether the measured run of a closed loop queued for memory."""
        return not isinstance(self.run, OfflineRun) and self.run.is_saturated

    @property
    def is_predicted(self) -> bool:
        """Whether the prediction holds figures: TTFT and TPOT in a closed loop, a throughput offline."""
        prediction = self.prediction
        if prediction is None or prediction.status != OK:
            return False
        if isinstance(self.run, OfflineRun):
            return prediction.throughput_tok_s is not None
        return prediction.ttft_s is not None and prediction.tpot_s is not None

    @property
    def is_judged(self) -> bool:
        """Whether the prediction says anything: figures, or that the degree cannot serve."""
        return self.is_predicted or (self.prediction is not None and self.prediction.is_oom)

    def measured(self, quantity: str) -> float | None:
        """Measured figure of one of `QUANTITIES` [s or tok/s]."""
        if quantity == "throughput":
            return self.run.throughput_tok_s
        if isinstance(self.run, OfflineRun):
            return None
        return self.run.tpot_s if quantity == "tpot" else self.run.ttft_s

    def predicted(self, quantity: str) -> float | None:
        """Predicted figure of one of `QUANTITIES` [s or tok/s], ``None`` where there is none.

        Throughput is the prediction's own, else that of a closed loop in which each of ``concurrency`` clients gets
        the nominal ``osl_tok`` tokens per request: concurrency * osl / (ttft + tpot * (osl - 1)).

        Examples
        --------
        8 clients, 101 tokens in 0.5 s + 100 * 20 ms = 2.5 s each; measured in 0.5 s + 100 * 45 ms = 5 s.

        >>> from tpplanner.domain.serving_run import ServingRun
        >>> run = ServingRun(run_id="a", model="m", checkpoint="m", machine="h200", engine="vllm", isl_tok=1024,
        ...                  osl_tok=101, tp=2, concurrency=8, ttft_s=0.5, tpot_s=0.045, family="own", source="")
        >>> scored = ScoredRun(run=run, prediction=RunPrediction(run_id="a", ttft_s=0.5, tpot_s=0.02))
        >>> scored.predicted("throughput"), round(scored.measured("throughput"), 9)
        (323.2, 161.6)
        """
        if not self.is_predicted:
            return None
        prediction = self.prediction
        assert prediction is not None
        match quantity:
            case "tpot":
                return prediction.tpot_s
            case "ttft":
                return prediction.ttft_s
            case _:
                return self._throughput_tok_s(prediction)

    def _throughput_tok_s(self, prediction: RunPrediction) -> float | None:
        run = self.run
        if prediction.throughput_tok_s is not None or isinstance(run, OfflineRun):
            return prediction.throughput_tok_s
        if prediction.ttft_s is None or prediction.tpot_s is None:
            return None
        return run.concurrency * run.osl_tok / (prediction.ttft_s + prediction.tpot_s * (run.osl_tok - 1))

    def ratio(self, quantity: str) -> float | None:
        """Predicted over measured figure of one of `QUANTITIES`."""
        predicted, measured = self.predicted(quantity), self.measured(quantity)
        return None if predicted is None or measured is None else predicted / measured
