"""However a request is scheduled, its tokens are those of one process that takes one step after the other.

Everything is compared with t = 1, the sequential loop and ample KV blocks, whose greedy tokens are Hugging Face's own
(``test_parity.py``). Random numbers depend on a request's seed and the position alone, so sampled tokens are the same too.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from listeners import WAIT_S, Listener

from tpplanner.domain.engine import Preemption, Switches
from tpplanner.engine.config import EngineConfig
from tpplanner.engine.engine import Engine
from tpplanner.engine.sampling_params import SamplingParams

SEQUENTIAL = Switches()
ASYNC = Switches(async_sched=True)
EARLY = Switches(async_sched=True, early_feedback=True)
DIVIDED = Switches(seq_parallel_sampling=True)
ALL = Switches(async_sched=True, early_feedback=True, seq_parallel_sampling=True)
BLOCK = 16
NUM_TOK = 20

PENALTIES = {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.3}
POLICIES = (
    {"temperature": 0.0},
    {"temperature": 0.0} | PENALTIES,
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 20},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 0.9, "top_p": 0.95, "top_k": 50, "min_p": 0.01} | PENALTIES,
    {"temperature": 0.7, "frequency_penalty": -0.5},
    {"temperature": 1.0, "repetition_penalty": 0.8},
)


def engine(folder, tp, switches, **settings):
    return Engine(EngineConfig(model=str(folder), tp=tp, switches=switches, device="cpu", dtype="float32", num_threads=1,
                               **({"num_kv_blocks": 96, "max_num_seqs": 32} | settings)))


def prompt_of(num_tok, seed):
    return np.random.default_rng([num_tok, seed]).integers(3, 448, num_tok).tolist()


def plain_requests():
    """Every policy, with prompts about a block and of several, two of which begin alike; 13 rows, which 2 does not divide.

    The last four end by length where prompt and output are 31, 32, 33 and 48 tokens.
    """
    lengths = (1, 40, 16, 17, 15, 33, 32, 38, 5)
    made = [(prompt_of(length, i), SamplingParams(seed=10 + i, max_tokens=NUM_TOK, ignore_eos=True, **policy))
            for i, (length, policy) in enumerate(zip(lengths, POLICIES, strict=True))]
    made[7] = (made[1][0][:32] + made[7][0][32:], made[7][1])
    return made + [(prompt_of(13, 20 + i), SamplingParams(seed=20 + i, max_tokens=num_tok, ignore_eos=True))
                   for i, num_tok in enumerate((18, 19, 20, 35))]


def stopping_requests(plain, done):
    """What ``plain`` said, now stopped at a token or a string: at, before and after the end of a block, and at once."""
    made = []
    for i, (prompt, params) in enumerate(plain[2:11]):
        output = done[2 + i].output_ids
        at = (i % 3 - 2 - len(prompt)) % BLOCK  # prompt and output are then a multiple of 16, less one, or more by one
        if output[at] not in output[:at]:
            made.append((prompt, changed(params, stop_token_ids=(output[at],))))
    made.append((plain[2][0], changed(plain[2][1], stop_token_ids=(done[2].output_ids[0],))))
    return made + [(plain[i][0], changed(plain[i][1], stop=("\x00never", string_inside(done[i].text)))) for i in (3, 6, 8)]


def string_inside(text):
    """Return some characters of a text that no incomplete character makes doubtful."""
    return next(text[i:i + 3] for i in range(4, len(text) - 3) if text[i:i + 3].isascii())


def changed(params, **fields):
    return SamplingParams(**({name: getattr(params, name) for name in SamplingParams.__struct_fields__} | fields))


def told(completion):
    return list(completion.output_ids), completion.text, str(completion.finish_reason)


def run(running, requests):
    return running.generate([prompt for prompt, _ in requests], [params for _, params in requests])


@dataclass
class Expected:
    """Requests and what each of them must say."""

    requests: list
    told: list


@pytest.fixture(scope="module")
def expected(tiny):
    """All requests with what one process says, alone and in small batches."""
    with engine(tiny("llama"), 1, SEQUENTIAL) as running:
        plain = plain_requests()
        done = run(running, plain)
        stopping = stopping_requests(plain, done)
        stopped = run(running, stopping)
        assert [told(run(running, [one])[0]) for one in plain[:7]] == [told(completion) for completion in done[:7]]
        assert running.num_free_kv_blocks == running.num_kv_blocks
    assert not any(completion.num_preemptions for completion in done + stopped)
    return Expected(plain + stopping, [told(completion) for completion in done + stopped])


def test_the_requests_are_worth_comparing(expected):
    plain = plain_requests()
    whole = {tuple(prompt): (output, text)
             for (prompt, _), (output, text, _) in zip(expected.requests, expected.told[:len(plain)], strict=False)}
    ends = set()
    for (prompt, params), (output, text, reason) in zip(expected.requests, expected.told, strict=True):
        full, full_text = whole[tuple(prompt)]
        if params.stop_token_ids:
            [stop] = params.stop_token_ids
            assert (output, reason) == (full[:full.index(stop) + 1], "stop")
            ends.add((len(prompt) + len(output)) % BLOCK)
        elif params.stop:
            assert (output, reason) == (full[:len(output)], "stop")
            assert text == full_text[:full_text.index(params.stop[1])]
        else:
            assert (len(output), reason) == (params.max_tokens, "length")
    assert {15, 0, 1} <= ends
    assert len(plain) % 2 == 1
    assert len({output[0] for output, _, _ in expected.told[2:len(plain)]}) > 5


def assert_same(running, expected):
    completions = run(running, expected.requests)
    assert [told(completion) for completion in completions] == expected.told
    assert running.num_free_kv_blocks == running.num_kv_blocks
    return sum(completion.num_preemptions for completion in completions)


WAYS = {
    "tp1-async": (1, ASYNC), "tp1-early": (1, EARLY), "tp1-all": (1, ALL),
    "tp2-sequential": (2, SEQUENTIAL), "tp2-async": (2, ASYNC), "tp2-early": (2, EARLY), "tp2-divided": (2, DIVIDED),
    "tp2-all": (2, ALL),
}


def ways(*quick):
    """Parameters tp and switches: the named ways always, the others with ``-m exhaustive``."""
    return [pytest.param(*way, id=name, marks=() if name in quick else pytest.mark.exhaustive) for name, way in WAYS.items()]


@pytest.mark.parametrize(("tp", "switches"), ways("tp1-async", "tp1-early", "tp2-sequential", "tp2-async", "tp2-all"))
def test_same_tokens(tiny, expected, tp, switches):
    with engine(tiny("llama"), tp, switches) as running:
        assert assert_same(running, expected) == 0


TIGHT = {"num_kv_blocks": 8, "max_num_seqs": 16}
QUICK = {("tp1-early", "swap", False, 16), ("tp1-async", "recompute", True, 512), ("tp1-sequential", "recompute", False, 16),
         ("tp2-all", "swap", True, 512)}


def tight_cases():
    for name, way in (WAYS | {"tp1-sequential": (1, SEQUENTIAL)}).items():
        for preemption in ("recompute", "swap"):
            for caching in (False, True):
                for budget in (16, 512):
                    case = (name, preemption, caching, budget)
                    yield pytest.param(*way, Preemption(preemption), caching, budget, id="-".join(map(str, case)),
                                       marks=() if case in QUICK else pytest.mark.exhaustive)


@pytest.mark.parametrize(("tp", "switches", "preemption", "caching", "budget"), list(tight_cases()))
def test_same_tokens_with_few_blocks_and_in_chunks(tiny, expected, tp, switches, preemption, caching, budget):
    with engine(tiny("llama"), tp, switches, preemption=preemption, prefix_caching=caching, max_num_batched_tokens=budget,
                **TIGHT) as running:
        assert assert_same(running, expected) > 0
        if caching:  # of 40 tokens of a prompt, two blocks are found when it comes again
            before = running.core.scheduler.num_found_tok
            assert [told(run(running, expected.requests[1:2])[0]) for _ in range(2)] == expected.told[1:2] * 2
            assert running.core.scheduler.num_found_tok >= before + 2 * BLOCK


@pytest.mark.parametrize(("tp", "switches"), ways())
def test_same_tokens_where_full_length_is_reserved(tiny, expected, tp, switches):
    with engine(tiny("llama"), tp, switches, preemption=Preemption.RESERVE, **TIGHT) as running:
        assert assert_same(running, expected) == 0


@pytest.mark.parametrize(("tp", "switches"), ways("tp1-early"))
def test_blocks_of_other_sizes(tiny, expected, tp, switches):
    with engine(tiny("llama"), tp, switches, kv_block_size_tok=5, num_kv_blocks=23, max_num_seqs=7,
                max_num_batched_tokens=11) as running:
        assert assert_same(running, expected) > 0


def hear_all(running, requests):
    """Submit all at once and wait; return what each was told."""
    listeners = [Listener() for _ in requests]
    for (prompt, params), listener in zip(requests, listeners, strict=True):
        running.submit(prompt, params, listener)
    return [listener.told() for listener in listeners]


def check_cancelled_at(running, expected, num_tok):
    """Cancel every second request at its token ``num_tok``: its tokens are a beginning, the others do not notice."""
    def cancel(listener, output):
        if len(listener.ids) >= num_tok and output.finish_reason is None:
            running.cancel(output.request_id)
            running.cancel(output.request_id)

    plain = expected.requests[:len(plain_requests())]
    listeners = [Listener(cancel if i % 2 else None) for i in range(len(plain))]
    for (prompt, params), listener in zip(plain, listeners, strict=True):
        running.submit(prompt, params, listener)
    for i, (listener, (ids, text, reason)) in enumerate(zip(listeners, expected.told, strict=False)):
        got_ids, got_text, got_reason = listener.told()
        if i % 2:
            assert got_reason == "abort"
            assert num_tok <= len(got_ids) <= num_tok + 2
            assert got_ids == ids[:len(got_ids)]
            assert text.startswith(got_text)
        else:
            assert (got_ids, got_text, got_reason) == (ids, text, reason)
    assert running.await_idle(WAIT_S), "the engine does not come to rest"
    assert running.num_free_kv_blocks == running.num_kv_blocks


def check_cancelled_at_once(running, expected):
    """Cancel requests that wait, or whose prompt is being read, and ids that nobody has."""
    listeners = [Listener() for _ in expected.requests]
    for (prompt, params), listener in zip(expected.requests, listeners, strict=True):
        running.cancel(running.submit(prompt, params, listener))
    running.cancel(10**9)
    assert {listener.told()[2] for listener in listeners} <= {"abort", "stop"}
    assert running.await_idle(WAIT_S), "the engine does not come to rest"
    assert running.num_free_kv_blocks == running.num_kv_blocks


def check_arrivals_while_running(running, expected):
    """Each request but the first comes with the third token of the one before it, or with its last."""
    listeners = [Listener() for _ in expected.requests]

    def follow(i):
        due = min(3, len(expected.told[i][0]))

        def act(listener, output):
            if len(listener.ids) == due and output.new_ids and i + 1 < len(listeners):
                submit(i + 1)

        return act

    def submit(i):
        listeners[i].act = follow(i)
        running.submit(*expected.requests[i], listeners[i])

    submit(0)
    assert [listener.told() for listener in listeners] == expected.told


def check_more_than_the_cache_holds(running, expected):
    """Three times as many requests as seats, all at once, some of which fill the whole cache alone: all end."""
    long = SamplingParams(seed=3, max_tokens=TIGHT["num_kv_blocks"] * BLOCK - 30, ignore_eos=True)
    requests = [*expected.requests, (prompt_of(30, 1), long), (prompt_of(30, 2), long)]
    said = hear_all(running, requests)
    assert said[:-2] == expected.told
    assert [(len(ids), reason) for ids, _, reason in said[-2:]] == [(long.max_tokens, "length")] * 2
    assert running.await_idle(WAIT_S), "the engine does not come to rest"
    assert running.num_free_kv_blocks == running.num_kv_blocks


@pytest.mark.parametrize(("tp", "switches", "preemption", "caching"), [
    pytest.param(1, SEQUENTIAL, Preemption.RECOMPUTE, False, id="tp1-sequential", marks=pytest.mark.exhaustive),
    pytest.param(1, ASYNC, Preemption.RECOMPUTE, True, id="tp1-async"),
    pytest.param(1, EARLY, Preemption.SWAP, False, id="tp1-early", marks=pytest.mark.exhaustive),
    pytest.param(1, ALL, Preemption.RECOMPUTE, True, id="tp1-all", marks=pytest.mark.exhaustive),
    pytest.param(2, ALL, Preemption.SWAP, True, id="tp2-all"),
    pytest.param(2, DIVIDED, Preemption.RECOMPUTE, False, id="tp2-divided", marks=pytest.mark.exhaustive),
    pytest.param(2, EARLY, Preemption.RECOMPUTE, True, id="tp2-early", marks=pytest.mark.exhaustive),
])
def test_arrivals_and_cancellation(tiny, expected, tp, switches, preemption, caching):
    with engine(tiny("llama"), tp, switches, preemption=preemption, prefix_caching=caching, max_num_batched_tokens=24,
                **TIGHT) as running:
        running.start_loop()
        check_arrivals_while_running(running, expected)
        check_cancelled_at(running, expected, 5)
        check_cancelled_at_once(running, expected)
        check_more_than_the_cache_holds(running, expected)
