"""What a request asks of the sampler, and its random numbers; no torch, so that the driver needs none."""

from typing import Final

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tpplanner.errors import WorkloadError, reject

PLACE: Final = "sampling"
MAX_STOP_STRINGS: Final = 16
GREEDY_BELOW: Final = 1e-5  # a lower temperature means greedy, as in vLLM: what is divided by less overflows
_RANGES: Final = {  # field: lowest, highest value, and whether the lowest itself is allowed; as in vLLM
    "temperature": (0.0, 100.0, True), "top_p": (0.0, 1.0, False), "min_p": (0.0, 1.0, True),
    "repetition_penalty": (0.0, 10.0, False), "presence_penalty": (-2.0, 2.0, True), "frequency_penalty": (-2.0, 2.0, True),
}


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to choose the tokens of one request, and when to stop; names and ranges are those of vLLM.

    A ``temperature`` of 0 is greedy, ``top_k`` 0 keeps all; the same ``seed`` gives the same tokens in any batch.

    Examples
    --------
    >>> SamplingParams(temperature=0.0, top_k=5).is_greedy
    True
    >>> SamplingParams(top_p=1.5)
    Traceback (most recent call last):
        ...
    tpplanner.errors.WorkloadError: sampling: top_p must be a number > 0 and <= 1, got 1.5
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    max_tokens: int = 128
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field, (lowest, highest, closed) in _RANGES.items():
            value = getattr(self, field)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not lowest <= value <= highest or (value == lowest and not closed):
                reject(WorkloadError, field, f"be a number {'>=' if closed else '>'} {lowest:g} and <= {highest:g}", value, PLACE)
        for field, least, bits in (("top_k", 0, 31), ("max_tokens", 1, 31), ("seed", 0, 64)):
            value = getattr(self, field)
            if type(value) is not int or not least <= value < 2**bits:
                reject(WorkloadError, field, f"be an integer >= {least} and < 2^{bits}", value, PLACE)
        if not isinstance(self.ignore_eos, bool):
            reject(WorkloadError, "ignore_eos", "be true or false", self.ignore_eos, PLACE)
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            reject(WorkloadError, "stop", "be a tuple of strings, none empty", self.stop, PLACE)
        if len(self.stop) > MAX_STOP_STRINGS:
            reject(WorkloadError, "stop", f"hold at most {MAX_STOP_STRINGS} strings", len(self.stop), PLACE)
        if not isinstance(self.stop_token_ids, tuple) or not all(type(one) is int and one >= 0 for one in self.stop_token_ids):
            reject(WorkloadError, "stop_token_ids", "be a tuple of integers >= 0", self.stop_token_ids, PLACE)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken always."""
        return self.temperature < GREEDY_BELOW

    @property
    def filters(self) -> bool:
        """Whether unlikely tokens are left out."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0

    @property
    def penalises(self) -> bool:
        """Whether the logits depend on the tokens so far."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64 bits, one to one: the finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014, section 4)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def uniforms(seeds: NDArray[np.uint64] | ArrayLike, positions: NDArray[np.int64] | ArrayLike) -> NDArray[np.float64]:
    """Give random numbers in [0, 1), functions of the request's seed and the token's position alone.

    Splitmix64 from a scrambled seed, the top 53 bits; nothing of the batch, the rank or the calls before plays a part.
    """
    step = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd: positions of one seed never meet
    with np.errstate(over="ignore"):  # 64-bit arithmetic wraps by design; numpy warns where the arguments are scalars
        start = _mix(np.asarray(seeds, np.uint64) + step)
        bits = _mix(start + np.asarray(positions, np.int64).astype(np.uint64) * step)
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53, np.float64)
