"""Sampling against a naive implementation of one row in plain Python, and what a row's id may not depend on."""

import math
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

torch = pytest.importorskip("torch")

from tpplanner.engine import sampler  # noqa: E402
from tpplanner.engine.sampler import MAX_TOKEN_COUNT, PolicyTable, TokenCounts, sample  # noqa: E402
from tpplanner.engine.sampling_params import SamplingParams, uniforms  # noqa: E402

INF = math.inf
GREEDY = SamplingParams(temperature=0.0)


# ---- the naive implementation -------------------------------------------------------------------------------------------

def penalised(logits, params, prompt, outputs):
    values = list(logits)
    for token in range(len(values)):
        count = outputs.count(token)
        if token in prompt or count:
            values[token] *= 1 / params.repetition_penalty if values[token] > 0 else params.repetition_penalty
        values[token] -= params.frequency_penalty * count + (params.presence_penalty if count else 0.0)
    return values


def probabilities(values, params):
    """Probability of each token: an independent reading of min-p, top-k and top-p, on sorted tokens."""
    top = max(values)
    weights = {token: math.exp((value - top) / params.temperature) for token, value in enumerate(values)}
    kept = [token for token in weights if weights[token] >= params.min_p]
    kept.sort(key=lambda token: -values[token])
    if 0 < params.top_k < len(kept):
        kept = [token for token in kept if values[token] >= values[kept[params.top_k - 1]]]
    if params.top_p < 1.0:
        total, mass = sum(weights[token] for token in kept), 0.0
        for token in kept:
            mass += weights[token]
            if mass >= params.top_p * total:
                kept = [other for other in kept if values[other] >= values[token]]
                break
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(values))]


def naive_ids(logits, params, uniform, prompt=(), outputs=()):
    """Ids that the uniform may give; two or three where it lies on a border but for rounding."""
    values = penalised(logits, params, list(prompt), list(outputs))
    if params.is_greedy:
        return {values.index(max(values))}
    chances = probabilities(values, params)
    found, end = set(), 0.0
    for token, chance in enumerate(chances):
        start, end = end, end + chance
        if chance and start - 1e-7 <= uniform <= end + 1e-7:
            found.add(token)
    return found


# ---- one call ------------------------------------------------------------------------------------------------------------

def ids_of(logits, params, draws, seen=None):
    """Ids of rows of logits: params are one, or one a row; ``seen`` gives the prompt and the outputs of some rows."""
    logits = torch.as_tensor(logits)
    num_rows, vocab_size = logits.shape
    table, counts = PolicyTable(num_rows, "cpu"), TokenCounts(num_rows, vocab_size, "cpu")
    for slot in range(num_rows):
        table.set(slot, params[slot] if isinstance(params, list) else params)
    for slot, (prompt, outputs) in (seen or {}).items():
        counts.enter(slot, prompt, outputs)
    drawn = torch.as_tensor(draws, dtype=torch.float64)
    return sample(logits, table.select(list(range(num_rows))), drawn, counts, torch.arange(num_rows)).tolist()


def kept_of(row, params):
    """Tokens that can be drawn from a row, found by a fine comb of uniforms."""
    draws = np.linspace(0.0, 1.0, 4001)[:-1]
    return sorted(set(ids_of(torch.tensor([row]).expand(len(draws), -1), params, draws)))


@contextmanager
def constants(**values):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(sampler, name, value)
        yield


def logs(*chances):
    return [math.log(chance) if chance else -INF for chance in chances]


class TestByHand:
    def test_greedy_takes_the_first_of_the_largest_and_no_uniform(self):
        assert ids_of([[1.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0]], GREEDY, [0.99, 0.99]) == [1, 0]

    @pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 64, 1000])
    def test_greedy_finds_the_largest_in_any_place_of_a_vocabulary_of_any_size(self, vocab_size):
        assert ids_of(torch.eye(vocab_size), GREEDY, np.zeros(vocab_size)) == list(range(vocab_size))
        assert ids_of(torch.eye(vocab_size) - 9.0, GREEDY, np.zeros(vocab_size)) == list(range(vocab_size))

    def test_inverse_cdf_in_the_order_of_the_ids(self):
        # Probabilities 0.5, 0.25, 0.25: ids change at 0.5 and 0.75.
        row = logs(0.5, 0.25, 0.25)
        draws = [0.0, 0.499999, 0.500001, 0.749999, 0.750001, 1 - 2**-53]
        assert ids_of([row] * 6, SamplingParams(), draws) == [0, 0, 1, 1, 2, 2]

    def test_a_border_belongs_to_the_next(self):
        # Four equal: the running sums are exact, 0.5 is the first number of token 2.
        assert ids_of([[7.0] * 4] * 3, SamplingParams(), [0.25, 0.5, 0.75]) == [1, 2, 3]

    def test_temperature_divides(self):
        # Temperature 0.5 squares the probabilities: 0.8^2 to 0.2^2 is 16 to 1.
        draws = [16 / 17 - 1e-6, 16 / 17 + 1e-6]
        assert ids_of([logs(0.8, 0.2)] * 2, SamplingParams(temperature=0.5), draws) == [0, 1]

    def test_top_k_keeps_all_that_equal_the_kth(self):
        row = [1.0, 3.0, 2.0, 2.0, 2.0, 0.0]
        assert kept_of(row, SamplingParams(top_k=1)) == [1]
        assert kept_of(row, SamplingParams(top_k=2)) == [1, 2, 3, 4]
        assert kept_of(row, SamplingParams(top_k=4)) == [1, 2, 3, 4]
        assert kept_of(row, SamplingParams(top_k=5)) == [0, 1, 2, 3, 4]
        assert kept_of(row, SamplingParams(top_k=2**31 - 1)) == [0, 1, 2, 3, 4, 5]

    def test_top_p_keeps_the_one_that_crosses_and_its_equals(self):
        row = logs(0.1, 0.4, 0.1, 0.3, 0.1)
        assert kept_of(row, SamplingParams(top_p=1e-300)) == [1]
        assert kept_of(row, SamplingParams(top_p=0.39)) == [1]
        assert kept_of(row, SamplingParams(top_p=0.41)) == [1, 3]
        assert kept_of(row, SamplingParams(top_p=0.71)) == [0, 1, 2, 3, 4]

    def test_min_p_is_relative_to_the_likeliest(self):
        row = logs(0.5, 0.3, 0.15, 0.05)
        assert kept_of(row, SamplingParams(min_p=0.31)) == [0, 1]
        assert kept_of(row, SamplingParams(min_p=0.29)) == [0, 1, 2]
        assert kept_of([2.0, 1.0, 2.0], SamplingParams(min_p=1.0)) == [0, 2]

    def test_top_p_is_a_share_of_what_top_k_keeps(self):
        # Of 0.4, 0.3 the first is 0.571: with top-p 0.5 it is enough, of the whole row it is not.
        row = logs(0.4, 0.3, 0.2, 0.1)
        assert kept_of(row, SamplingParams(top_p=0.5)) == [0, 1]
        assert kept_of(row, SamplingParams(top_p=0.5, top_k=2)) == [0]

    def test_top_p_is_a_share_of_what_min_p_keeps(self):
        # 0.45 of 0.45 + 0.35 is 0.5625; of the whole row 0.45 < 0.5.
        row = logs(0.45, 0.35, 0.12, 0.08)
        assert kept_of(row, SamplingParams(top_p=0.5)) == [0, 1]
        assert kept_of(row, SamplingParams(top_p=0.5, min_p=0.5)) == [0]

    def test_penalties_change_the_logits_of_what_was_seen(self):
        # Prompt 0 and 1, output 2 twice; repetition 2, presence 0.5, frequency 0.25.
        counts, table = TokenCounts(2, 5, "cpu"), PolicyTable(2, "cpu")
        counts.enter(1, [0, 1, 1], [2, 2])
        table.set(1, SamplingParams(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25))
        logits = torch.tensor([[3.0, -2.0, 4.0, 1.0, 0.0]])
        changed = counts.penalise(logits, torch.tensor([1]), table.select([1]).fields_FS1)
        # 3 / 2; -2 * 2; 4 / 2 - 0.5 - 2 * 0.25; not seen: unchanged.
        assert changed.tolist() == [[1.5, -4.0, 1.0, 1.0, 0.0]]
        assert logits.tolist() == [[3.0, -2.0, 4.0, 1.0, 0.0]]

    def test_penalties_come_before_greedy(self):
        params = SamplingParams(temperature=0.0, presence_penalty=1.0)
        assert ids_of([[2.0, 1.5, 0.0]], params, [0.0], {0: ([0], [])}) == [0]  # presence: outputs only
        assert ids_of([[2.0, 1.5, 0.0]], params, [0.0], {0: ([], [0])}) == [1]

    def test_no_row_is_no_id(self):
        table = PolicyTable(4, "cpu")
        ids = sample(torch.empty(0, 8), table.select([]), torch.empty(0, dtype=torch.float64), None, torch.arange(0))
        assert ids.shape == (0,)
        assert ids.dtype == torch.int64


class TestPolicyTable:
    def test_the_host_knows_what_the_rows_need(self):
        table = PolicyTable(8, "cpu")
        table.set(1, SamplingParams())
        table.set(2, SamplingParams(temperature=0.0, top_k=5, top_p=0.5))
        table.set(3, SamplingParams(top_k=5))
        table.set(4, SamplingParams(temperature=0.0, presence_penalty=0.1))

        def flags(*slots):
            chosen = table.select(list(slots))
            return chosen.all_greedy, chosen.any_filter, chosen.any_penalty, chosen.any_open

        assert flags(0) == flags(2) == (True, False, False, False)  # filters of a greedy row change nothing
        assert flags(1, 0) == (False, False, False, True)
        assert flags(3) == (False, True, False, False)
        assert flags(1, 3) == (False, True, False, True)
        assert flags(0, 4) == (True, False, True, False)

    def test_nothing_is_staged_again_until_something_changes(self):
        table = PolicyTable(4, "cpu")
        first = table.select([0, 1])
        assert table.select([0, 1]) is first
        before = first.fields_FS1.clone()
        table.set(1, SamplingParams(temperature=0.5))
        table.set(3, SamplingParams(temperature=0.25))
        second = table.select([1, 3])
        assert second.fields_FS1[1].flatten().tolist() == [2.0, 4.0]
        assert torch.equal(first.fields_FS1, before)  # a step in flight may still read it
        assert table.select([0, 1]).fields_FS1[1].flatten().tolist() == [1.0, 2.0]


class TestTokenCounts:
    PARAMS = SamplingParams(temperature=0.0, repetition_penalty=1.5, presence_penalty=0.25, frequency_penalty=0.125)

    def penalised(self, counts, slot, vocab_size):
        table = PolicyTable(8, "cpu")
        table.set(slot, self.PARAMS)
        return counts.penalise(torch.ones(1, vocab_size), torch.tensor([slot]), table.select([slot]).fields_FS1)

    def test_take_no_memory_until_a_request_has_a_penalty(self):
        counts = TokenCounts(2**20, 2**20, "cpu")  # 2 TiB
        counts.count(torch.tensor([5]), torch.tensor([7]))
        assert torch.equal(self.penalised(counts, 5, 16), torch.ones(1, 16))

    @given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)), st.integers(0, 20))
    def test_counting_step_by_step_is_entering_with_all(self, prompt, outputs, resumed_at):
        whole, stepwise = TokenCounts(4, 10, "cpu"), TokenCounts(4, 10, "cpu")
        whole.enter(2, prompt, outputs)
        stepwise.enter(2, [9], [8, 8])  # of an earlier request in this slot nothing may remain
        stepwise.enter(2, prompt, outputs[:resumed_at])
        for token in outputs[resumed_at:]:
            stepwise.count(torch.tensor([0, 2]), torch.tensor([1, token]))
        assert torch.equal(self.penalised(whole, 2, 10), self.penalised(stepwise, 2, 10))
        expected = penalised([1.0] * 10, self.PARAMS, prompt, outputs)
        assert self.penalised(whole, 2, 10)[0].tolist() == pytest.approx(expected, abs=1e-6)

    def test_a_slot_without_a_penalty_reads_nothing_of_what_lies_there(self):
        counts, table = TokenCounts(2, 64, "cpu"), PolicyTable(2, "cpu")
        counts.enter(0, list(range(64)), [3] * 9)
        counts.enter(1, list(range(0, 64, 2)), [5] * 9)
        table.set(1, self.PARAMS)
        logits = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
        logits[0, 7] = -INF
        changed = counts.penalise(logits, torch.tensor([0, 1]), table.select([0, 1]).fields_FS1)
        assert torch.equal(changed[0], logits[0])
        assert not torch.equal(changed[1], logits[1])

    def test_a_count_ends_where_16_bits_do(self):
        counts = TokenCounts(4, 4, "cpu")
        counts.enter(2, [], [1] * (MAX_TOKEN_COUNT - 1) + [3] * (MAX_TOKEN_COUNT + 10))
        for _ in range(3):
            counts.count(torch.tensor([2]), torch.tensor([1]))
        expected = 1 / 1.5 - 0.25 - 0.125 * MAX_TOKEN_COUNT
        assert self.penalised(counts, 2, 4)[0].tolist() == pytest.approx([1.0, expected, 1.0, expected], rel=1e-6)


class TestDistribution:
    ROW = (0.0, 1.5, -0.5, 2.0, 2.0, 0.25, -3.0, 1.0, -INF, 0.75, 1.25, -1.0)
    PROMPT, OUTPUTS = (1, 3, 6), (3, 4, 4, 10)
    NUM_DRAWS = 20_000

    @pytest.mark.parametrize("asked", [
        {}, {"temperature": 0.6}, {"temperature": 2.5}, {"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.2},
        {"temperature": 0.7, "top_k": 6, "top_p": 0.8}, {"temperature": 1.3, "top_p": 0.9, "min_p": 0.1},
        {"temperature": 1.5, "top_k": 8, "top_p": 0.95, "min_p": 0.05},
        {"repetition_penalty": 1.7}, {"presence_penalty": 0.8, "frequency_penalty": -0.4},
        {"temperature": 0.8, "top_k": 7, "top_p": 0.9, "repetition_penalty": 0.6, "presence_penalty": -0.5,
         "frequency_penalty": 0.7},
    ], ids=lambda asked: "+".join(asked) or "plain")
    def test_ids_have_the_probabilities_of_the_naive_implementation(self, asked):
        params = SamplingParams(**asked)
        chances = np.array(probabilities(penalised(self.ROW, params, self.PROMPT, self.OUTPUTS), params))
        table, counts = PolicyTable(1, "cpu"), TokenCounts(1, len(self.ROW), "cpu")
        table.set(0, params)
        counts.enter(0, self.PROMPT, self.OUTPUTS)
        draws = torch.from_numpy(uniforms(2024, np.arange(self.NUM_DRAWS)))
        rows = torch.tensor([self.ROW]).expand(self.NUM_DRAWS, -1)
        ids = sample(rows, table.select([0] * self.NUM_DRAWS), draws, counts, torch.zeros(self.NUM_DRAWS, dtype=torch.int64))
        found = np.bincount(ids.numpy(), minlength=len(self.ROW))
        assert (found[chances == 0] == 0).all()
        likely = chances * self.NUM_DRAWS >= 5  # what chi-square needs; the rest becomes one cell
        expected = np.append(chances[likely], chances[~likely].sum()) * self.NUM_DRAWS
        observed = np.append(found[likely], found[~likely].sum())
        cells = expected > 0
        assert chisquare(observed[cells], expected[cells]).pvalue > 1e-3 if cells.sum() > 1 else observed.max() == self.NUM_DRAWS


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
