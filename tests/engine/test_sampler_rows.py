"""Sampling against a naive implementation of one row, and what a row's id may not depend on."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_reference import GREEDY, INF, constants, ids_of, naive_ids

from tpplanner.engine import sampler
from tpplanner.engine.sampler import PolicyTable, TokenCounts, sample
from tpplanner.engine.sampling_params import SamplingParams, uniforms

# Quarters and powers of two: sums and quotients are exact, so what ties in plain Python ties in float32.
QUARTERS = st.integers(-24, 24).map(lambda quarters: quarters / 4)
PARAMS = st.builds(
    SamplingParams, temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0, 8.0]), top_k=st.sampled_from([0, 0, 1, 2, 3, 7, 40, 999]),
    top_p=st.sampled_from([1.0, 1.0, 1e-9, 0.3, 0.77, 0.9, 0.999]), min_p=st.sampled_from([0.0, 0.0, 0.01, 0.21, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.5, 2.0]), presence_penalty=st.sampled_from([0.0, 0.0, -0.5, 1.25]),
    frequency_penalty=st.sampled_from([0.0, 0.0, -0.25, 0.5]))


@st.composite
def batches(draw):
    """Logits, policies, uniforms and what was seen, of up to 6 rows."""
    vocab_size = draw(st.integers(1, 70))
    value = st.sampled_from([draw(QUARTERS) for _ in range(draw(st.integers(1, 12)))]) | QUARTERS
    rows, params, draws, seen = [], [], [], {}
    tokens = st.lists(st.integers(0, vocab_size - 1), max_size=8)
    for slot in range(draw(st.integers(1, 6))):
        row = draw(st.lists(value | st.just(-INF) if draw(st.booleans()) else value, min_size=vocab_size, max_size=vocab_size))
        row[draw(st.integers(0, vocab_size - 1))] = draw(QUARTERS)  # one finite at least
        rows.append(row)
        params.append(draw(PARAMS))
        draws.append(draw(st.floats(0.0, 1.0, exclude_max=True)))
        if params[-1].penalises:
            seen[slot] = draw(tokens), draw(tokens)
    return rows, params, draws, seen


class TestAgainstNaive:
    @given(batches(), st.sampled_from([(32, (128, 1024)), (4, (2, 8)), (2, (1, 3, 12)), (1, (5,))]))
    @settings(max_examples=200)
    def test_every_row_is_what_the_naive_implementation_says(self, batch, sizes):
        """Also with small blocks and few candidates: the short cuts of large vocabularies in a small one."""
        rows, params, draws, seen = batch
        with constants(BLOCK=sizes[0], NUM_CANDIDATES=sizes[1]):
            ids = ids_of(rows, params, draws, seen)
        for slot, found in enumerate(ids):
            assert found in naive_ids(rows[slot], params[slot], draws[slot], *seen.get(slot, ((), ())))

    @given(batches(), st.sampled_from([torch.bfloat16, torch.float16, torch.float64]))
    def test_logits_of_any_float_type(self, batch, dtype):
        # Quarters up to 6 are exact in 8 bits of mantissa, so the ids have to be the same.
        rows, params, draws, seen = batch
        assert ids_of(torch.tensor(rows, dtype=dtype), params, draws, seen) == ids_of(rows, params, draws, seen)


def random_batch(num_rows, vocab_size, spread, seed=0):
    """Rows for which all candidates are too few, and rows for which the first are enough; policies of all kinds."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, vocab_size, generator=generator) * spread
    likely = torch.randint(vocab_size, (num_rows, 9), generator=generator)[::2]
    logits[::2].scatter_add_(1, likely, torch.full(likely.shape, 12.0))
    kinds = [{}, {"top_p": 0.9}, {"top_k": 50, "top_p": 0.9}, {"top_k": 3000}, {"min_p": 0.05}, {"temperature": 0.0},
             {"top_k": 50}, {"temperature": 0.7, "top_p": 0.95, "min_p": 0.001}, {"repetition_penalty": 1.3, "top_p": 0.5}]
    params = [SamplingParams(**kinds[row % len(kinds)]) for row in range(num_rows)]
    tokens = torch.randint(vocab_size, (num_rows, 40), generator=generator).tolist()
    seen = {row: (tokens[row][:20], tokens[row][20:]) for row in range(num_rows) if params[row].penalises}
    return logits, params, uniforms(np.arange(num_rows), np.full(num_rows, seed)), seen


class TestRowsAreAlone:
    @given(batches(), st.data())
    def test_any_split_in_any_order_gives_the_same_ids(self, batch, data):
        rows, params, draws, seen = batch
        whole = ids_of(rows, params, draws, seen)
        order = data.draw(st.permutations(range(len(rows))))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3)))
        parts = {}
        for start, end in zip([0, *cuts], [*cuts, len(rows)], strict=True):
            own = order[start:end]
            if own:
                known = {slot: seen[row] for slot, row in enumerate(own) if row in seen}
                ids = ids_of([rows[row] for row in own], [params[row] for row in own], [draws[row] for row in own], known)
                parts.update(zip(own, ids, strict=True))
        assert [parts[row] for row in range(len(rows))] == whole

    @pytest.mark.parametrize("vocab_size", [2048, 5003])
    def test_nor_does_the_number_of_rows_at_a_time_or_of_threads_matter(self, vocab_size):
        batch = random_batch(27, vocab_size, 1.0)
        whole = ids_of(*batch)
        threads = torch.get_num_threads()
        for num_logits in (1, 5 * vocab_size, 2**30):
            with constants(MAX_LOGITS={False: num_logits}):
                assert ids_of(*batch) == whole
        try:
            torch.set_num_threads(2)
            assert ids_of(*batch) == whole
        finally:
            torch.set_num_threads(threads)

    def test_a_rows_likelihoods_are_the_same_bits_wherever_it_lies(self):
        # The one function of the C library on the way: vector and remainder loops have to agree.
        row = -torch.rand(1003, generator=torch.Generator().manual_seed(0)) * 20
        alone = sampler._likelihoods(row)
        for offset in range(1, 40):
            rows = torch.cat([torch.zeros(offset), row, torch.zeros(3), row])
            together = sampler._likelihoods(rows)
            assert torch.equal(together[offset: offset + 1003], alone)
            assert torch.equal(together[-1003:], alone)

    @pytest.mark.parametrize("vocab_size", [2048, 5003])
    @pytest.mark.parametrize("spread", [0.3, 2.0])
    def test_few_candidates_or_the_whole_row_sorted_is_the_same(self, vocab_size, spread):
        batch = random_batch(27, vocab_size, spread)
        with constants(NUM_CANDIDATES=()):
            whole = ids_of(*batch)
        for sizes in [(128, 1024), (1024,), (1,), (2, 3, 60)]:
            with constants(NUM_CANDIDATES=sizes):
                assert ids_of(*batch) == whole

    def test_the_whole_row_is_sorted_where_candidates_do_not_suffice_and_only_there(self, monkeypatch):
        sorted_rows = []
        sort = np.sort
        monkeypatch.setattr(np, "sort", lambda rows: (sorted_rows.append(len(rows)), sort(rows))[1])
        peaked, flat = [0.0] * 8192, [0.0] * 8192
        peaked[17] = 20.0
        params = SamplingParams(top_p=0.9)
        assert ids_of([peaked, peaked], params, [0.5, 0.8]) == [17, 17]
        assert sorted_rows == []
        assert ids_of([peaked, flat, peaked], params, [0.5, 0.5, 0.8]) == [17, 4096, 17]  # all tie: all are kept
        assert sorted_rows == [1]

    @pytest.mark.parametrize("num_ties", [100, 200, 1500, 4999])
    def test_ties_beyond_the_candidates_are_kept(self, num_ties):
        row = torch.full((5000,), -5.0)
        row[:: 5000 // num_ties][:num_ties] = 2.0
        ties = (row == 2.0).nonzero().flatten()
        draws = (np.arange(16) + 0.5) / 16
        expected = ties[(torch.from_numpy(draws) * len(ties)).long()].tolist()
        for asked in ({"top_k": 3}, {"top_k": 3, "top_p": 0.5}, {"top_p": 0.4}, {"min_p": 1.0}):
            assert ids_of(row.expand(16, -1), SamplingParams(**asked), draws) == expected


HOSTILE = [SamplingParams(), GREEDY, SamplingParams(top_k=5), SamplingParams(top_p=0.5), SamplingParams(min_p=0.1),
           SamplingParams(temperature=1e-5), SamplingParams(temperature=100, top_p=0.99), SamplingParams(top_k=2000, top_p=0.9),
           SamplingParams(repetition_penalty=1e-300, presence_penalty=2.0, frequency_penalty=-2.0)]


class TestHostileValues:
    @pytest.mark.parametrize("params", HOSTILE)
    @pytest.mark.parametrize("vocab_size", [40, 5000])
    def test_one_finite_logit_is_always_it(self, params, vocab_size):
        rows = torch.full((4, vocab_size), -INF)
        for row, token in enumerate((0, 7, 33, vocab_size - 1)):
            rows[row, token] = -3e38 if row == 1 else 3.0
        assert ids_of(rows, params, [0.0, 0.3, 0.9, 1 - 2**-53], {0: ([0], [0])}) == [0, 7, 33, vocab_size - 1]

    @pytest.mark.parametrize("params", HOSTILE)
    @pytest.mark.parametrize("vocab_size", [40, 5000])
    def test_rows_that_have_no_distribution_give_argmax(self, params, vocab_size):
        rows = torch.zeros(5, vocab_size)
        rows[0] = -INF
        rows[1] = math.nan
        rows[2, 9], rows[2, 20] = math.nan, 5.0
        rows[3, 8] = rows[3, 30] = INF
        rows[4, 6] = 3e4
        assert ids_of(rows, params, [0.5] * 5) == [0, 0, 9, 8, 6]

    @pytest.mark.parametrize("params", HOSTILE)
    def test_the_ends_of_the_uniforms_give_the_first_and_the_last_that_can_be_drawn(self, params):
        row = [-INF, 1.0, 1.0, -40.0, 1.0, -INF, -40.0, -INF]  # e^-41 is below what is ever drawn
        last = 1 if params.is_greedy else 4
        if params.temperature != 100:
            assert ids_of([row] * 4, params, [0.0, 1 - 2**-53, 1.0, -1.0]) == [1, last, last, 1]

    def test_equal_logits_of_a_large_vocabulary_fit_the_numbers(self):
        # 262,144 tokens as likely as the likeliest: the sum is 2^53.
        draws = [0.0, 0.5, 0.75, 1 - 2**-18, 1 - 2**-53]
        for params in (SamplingParams(), SamplingParams(top_p=0.5), SamplingParams(top_k=1)):
            assert ids_of(torch.zeros(5, 2**18), params, draws) == [0, 2**17, 3 * 2**16, 2**18 - 1, 2**18 - 1]


@pytest.mark.gpu
class TestOnGpu:
    def ids(self, batch):
        """Ids from the GPU; an operation that makes the host wait is an error."""
        logits, params, draws, seen = batch
        num_rows, vocab_size = logits.shape
        table, counts = PolicyTable(num_rows, "cuda"), TokenCounts(num_rows, vocab_size, "cuda")
        for slot in range(num_rows):
            table.set(slot, params[slot])
        for slot, tokens in seen.items():
            counts.enter(slot, *tokens)
        logits, draws, slots = logits.cuda(), torch.from_numpy(draws).cuda(), torch.arange(num_rows, device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            ids = sample(logits, table.select(list(range(num_rows))), draws, counts, slots)
            counts.count(slots, ids)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return ids.tolist()

    @pytest.mark.parametrize("vocab_size", [5003, 49152])
    def test_gives_the_ids_of_the_cpu_but_for_the_last_bit_of_exp(self, vocab_size):
        batch = random_batch(270, vocab_size, 1.0)
        equal = np.equal(self.ids(batch), ids_of(*batch))
        assert equal.mean() >= 0.98

    def test_rows_are_alone(self):
        logits, params, draws, seen = random_batch(27, 5003, 1.0)
        whole = self.ids((logits, params, draws, seen))
        for row in range(27):
            own = {0: seen[row]} if row in seen else {}
            assert self.ids((logits[row: row + 1], params[row: row + 1], draws[row: row + 1], own)) == [whole[row]]


@pytest.mark.benchmark
@pytest.mark.parametrize("asked", [{"temperature": 0.0}, {"temperature": 0.8}, {"temperature": 0.8, "top_k": 50, "top_p": 0.9}],
                         ids="+".join)
def test_time_of_32_rows_of_49152(asked):
    from time import perf_counter

    logits, _, draws, _ = random_batch(32, 49152, 2.0)
    for penalties in ({}, {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.3}):
        table, counts = PolicyTable(32, "cpu"), TokenCounts(32, 49152, "cpu")
        for slot in range(32):
            table.set(slot, SamplingParams(**asked, **penalties))
            counts.enter(slot, list(range(slot, 49152, 192)), list(range(slot, 49152, 384)))
        policies, drawn, slots, times = table.select(list(range(32))), torch.from_numpy(draws), torch.arange(32), []
        for _ in range(30):
            start = perf_counter()
            sample(logits, policies, drawn, counts, slots)
            times.append((perf_counter() - start) * 1e3)
        print(f"{asked} {'with' if penalties else 'without'} penalties: median {np.median(times):.1f}, least {min(times):.1f} ms")
