"""The tail of the Albireo paper's production week (arXiv 2606.01927, section 8.5): p99 TPOT of QwQ-32B at t = 4, 271 -> 75 ms.

The traffic of that week is not public. Here: the paper's request (80 in, 1,024 out, all penalties), gaps with a coefficient
of variation of 3, at a rate that both engines carry (8 per second, for long, is too much for vllm-0.11).
"""

import tpplanner


def test_the_tail_under_bursts_is_at_least_twice_as_long_without_overlap():
    p99_s = {}
    for engine in ("vllm-0.11", "albireo"):
        answer = tpplanner.simulate(
            model="Qwen/QwQ-32B", gpus="4xh100-sxm", tp=4, workload="albireo", engine=engine, request_rate=6.0,
            arrivals="gamma", burstiness=3.0, num_requests=4000, seed=0)
        outcome = answer.degree(4).outcome
        assert not outcome.saturated
        p99_s[engine] = outcome.tpot.p99_s
    # The paper: 3.6; simulated 57.0 / 17.2 ms = 3.3.
    assert p99_s["vllm-0.11"] >= 2.0 * p99_s["albireo"]
