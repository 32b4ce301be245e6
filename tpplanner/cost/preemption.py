"""What a full KV cache costs: evictions, and the tokens they recompute or the bytes they swap."""

import numpy as np

from tpplanner.domain.hardware import Link
from tpplanner.domain.matrix import FloatOrArray

EQUATION = (
    "min(max(O / I - 1/2, 0), waiting) evictions per request, each costs I tokens of prefill or 2 I kv_bytes over the host link"
)


def evictions_per_request(
    *, isl_tok: FloatOrArray, osl_tok: FloatOrArray, num_waiting: FloatOrArray
) -> FloatOrArray:
    """Preemptions per finished request when the KV cache is full and requests wait.

    A fluid argument for vLLM's scheduler, which admits first come first served whenever the *prompt*
    fits. A finished request frees I + O tokens; until the next one finishes the running sequences
    grow by O tokens in all. The scheduler fills the I + O at once with floor((I + O) / I) newcomers;
    the growth then evicts all but one of them, newest first: floor(O / I) evictions, each of about
    I tokens. Real lengths spread, so the steps of the floor blur into their mean, O / I - 1/2. No more can be
    evicted than wait; outputs shorter than half a prompt evict nobody.

    Not modelled: unequal lengths (they raise it), prefix caching (it makes recomputation cheap).

    Examples
    --------
    >>> float(evictions_per_request(isl_tok=100, osl_tok=250, num_waiting=50))
    2.0
    >>> float(evictions_per_request(isl_tok=100, osl_tok=250, num_waiting=0))
    0.0
    """
    return np.minimum(np.maximum(osl_tok / isl_tok - 0.5, 0.0), np.maximum(num_waiting, 0.0))


def swap_s(*, swap_bytes: FloatOrArray, link: Link) -> FloatOrArray:
    """Time to move ``swap_bytes`` of one rank over its host link [s]; nothing hides it."""
    return swap_bytes / (link.bandwidth_bytes_s.value * link.busbw_frac.value)
