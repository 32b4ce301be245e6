"""hidden(t): the host time that overlap removes, never more than there is to hide behind."""

import numpy as np

from tpplanner.domain.engine import Switches
from tpplanner.domain.matrix import FloatOrArray

EQUATION = "min(T1 + T5 [async_sched] + T2 [early_feedback, t >= feedback_from_tp], T3 + comm + T4)"


def hidden_s(
    switches: Switches, *, tp: FloatOrArray, schedule_s: FloatOrArray, prepare_input_s: FloatOrArray,
    process_output_s: FloatOrArray, device_s: FloatOrArray, feedback_from_tp: int = 2,
) -> FloatOrArray:
    """Host time of a step that runs while the device works [s].

    Exposed host time is max(0, host - device) for the tasks that overlap (Albireo section 8.2 and
    appendix A: hiding fails where the host takes longer than the forward). ``async_sched`` hides
    T1 and T5; ``early_feedback`` hides T2 from ``feedback_from_tp`` ranks on: 2 in the
    paper, where it does nothing at t = 1 (section 8.2).

    Examples
    --------
    4 + 4 + 8 ms of host work behind 21 ms of device work all hide at t = 4; behind 5 ms only 5 do.

    >>> all_on = Switches(async_sched=True, early_feedback=True)
    >>> host = dict(schedule_s=4e-3, prepare_input_s=4e-3, process_output_s=8e-3)
    >>> float(hidden_s(all_on, tp=4, device_s=21e-3, **host)), float(hidden_s(all_on, tp=4, device_s=5e-3, **host))
    (0.016, 0.005)
    """
    if not switches.async_sched:
        return 0.0 * (device_s + schedule_s)
    can_hide = schedule_s + process_output_s
    if switches.early_feedback:
        can_hide = can_hide + np.where(np.greater_equal(tp, feedback_from_tp), prepare_input_s, 0.0)
    return np.minimum(can_hide, device_s)
