"""Sampling by hand: cases worked out, tables, counts, distributions."""


import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sampling_reference import GREEDY, INF, ids_of, kept_of, logs, penalised, probabilities
from scipy.stats import chisquare

from tpplanner.engine.sampler import MAX_TOKEN_COUNT, PolicyTable, TokenCounts, sample
from tpplanner.engine.sampling_params import SamplingParams, uniforms


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
