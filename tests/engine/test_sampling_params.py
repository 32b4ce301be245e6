"""What a request may ask of the sampler, and the random numbers that depend on seed and position alone."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from tpplanner.engine.sampling_params import SamplingParams, uniforms
from tpplanner.errors import WorkloadError

SEEDS = st.integers(0, 2**64 - 1)
POSITIONS = st.integers(0, 2**31 - 1)
MASK = 2**64 - 1
GOLDEN = [0.28176129772258496, 0.36818951565166946, 0.4984167065294687, 0.8607876209150469, 0.09832583850150012]


def splitmix64(state):
    """Java's SplittableRandom after Steele, Lea and Flood, in Python's integers."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


class TestParams:
    def test_the_values_without_any_wish_change_nothing(self):
        plain = SamplingParams()
        assert not plain.is_greedy
        assert not plain.filters
        assert not plain.penalises

    @pytest.mark.parametrize(("temperature", "greedy"), [(0, True), (9e-6, True), (1e-5, False), (0.7, False)])
    def test_greedy_is_a_temperature_below_that_of_vllm(self, temperature, greedy):
        assert SamplingParams(temperature=temperature).is_greedy is greedy

    @pytest.mark.parametrize("field", [{"top_k": 1}, {"top_p": 0.99}, {"min_p": 0.01}])
    def test_each_filter_counts(self, field):
        assert SamplingParams(**field).filters
        assert not SamplingParams(**field).penalises

    @pytest.mark.parametrize("field", [{"repetition_penalty": 0.9}, {"presence_penalty": -0.1}, {"frequency_penalty": 0.1}])
    def test_each_penalty_counts(self, field):
        assert SamplingParams(**field).penalises
        assert not SamplingParams(**field).filters

    @pytest.mark.parametrize(("field", "rule", "values"), [
        ("temperature", "be a number >= 0 and <= 100", [-0.1, 100.1, float("nan"), float("inf"), "1", None, True, 10**400]),
        ("top_p", "be a number > 0 and <= 1", [0, -0.0, 1.01, float("nan"), [0.5]]),
        ("min_p", "be a number >= 0 and <= 1", [-1e-9, 1.5, float("-inf")]),
        ("repetition_penalty", "be a number > 0 and <= 10", [0.0, -1, 10.5, "2"]),
        ("presence_penalty", "be a number >= -2 and <= 2", [-2.1, 2.1, float("nan")]),
        ("frequency_penalty", "be a number >= -2 and <= 2", [-2.1, 2.1, None]),
        ("top_k", "be an integer >= 0 and < 2^31", [-1, 2**31, 1.0, "5", None, True]),
        ("max_tokens", "be an integer >= 1 and < 2^31", [0, -5, 2**31, 1.5, None]),
        ("seed", "be an integer >= 0 and < 2^64", [-1, 2**64, 1.0, None, True]),
        ("ignore_eos", "be true or false", [1, None, "no"]),
        ("stop", "be a tuple of strings, none empty", ["end", ["end"], ("",), (b"end",), None]),
        ("stop", "hold at most 16 strings", [("x",) * 17]),
        ("stop_token_ids", "be a tuple of integers >= 0", [3, [3], (-1,), (1.0,), (True,), None]),
    ])
    def test_nonsense_is_refused_with_field_rule_and_value(self, field, rule, values):
        for value in values:
            with pytest.raises(WorkloadError) as error:
                SamplingParams(**{field: value})
            assert str(error.value).startswith(f"sampling: {field} must {rule}, got ")
            assert "\n" not in str(error.value)

    def test_the_ends_of_the_ranges_are_allowed(self):
        SamplingParams(temperature=100, top_p=1, min_p=1, repetition_penalty=10, presence_penalty=-2, frequency_penalty=2,
                       seed=2**64 - 1, max_tokens=1, stop=("x",) * 16, stop_token_ids=(0,))

    def test_survives_the_wire_and_answers_there_too(self):
        asked = SamplingParams(temperature=0.25, top_k=7, stop=("\n\n",), stop_token_ids=(2, 3), seed=2**64 - 1)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(asked), type=SamplingParams) == asked
        with pytest.raises(WorkloadError, match="top_p must be a number > 0"):
            msgspec.json.decode(b'{"top_p": 0}', type=SamplingParams)
        with pytest.raises(msgspec.ValidationError, match="unknown field `top_pp`"):
            msgspec.json.decode(b'{"top_pp": 0.5}', type=SamplingParams)


class TestUniforms:
    def test_follows_the_published_splitmix64(self):
        # First outputs of splitmix64 for the seed 1234567, from Vigna's splitmix64.c as quoted on Rosetta Code.
        state, outputs = 1234567, []
        for _ in range(5):
            state = state + 0x9E3779B97F4A7C15 & MASK
            outputs.append(splitmix64(state))
        assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
                           16408922859458223821]

    @given(SEEDS, POSITIONS)
    def test_equals_the_same_arithmetic_in_integers(self, seed, position):
        start = splitmix64(seed + 0x9E3779B97F4A7C15 & MASK)
        bits = splitmix64(start + position * 0x9E3779B97F4A7C15 & MASK)
        assert uniforms(seed, position) == (bits >> 11) / 2**53

    def test_regression_values_never_change(self):
        # Who asked with a seed gets the same text from every version.
        seeds, positions = np.array([0, 1, 2**64 - 1, 5, 42], np.uint64), np.array([0, 1, 2**31, 7, 1000])
        assert uniforms(seeds, positions).tolist() == GOLDEN

    @given(st.lists(st.tuples(SEEDS, POSITIONS), max_size=20))
    def test_an_array_equals_its_numbers(self, pairs):
        seeds, positions = np.array([one for one, _ in pairs], np.uint64), np.array([one for _, one in pairs], np.int64)
        together = uniforms(seeds, positions)
        assert together.dtype == np.float64
        assert together.tolist() == [float(uniforms(*pair)) for pair in pairs]

    def test_no_two_of_a_million_are_equal_and_all_are_below_one(self):
        drawn = uniforms(np.arange(1000, dtype=np.uint64)[:, None], np.arange(1000))
        assert len(np.unique(drawn)) == drawn.size
        assert 0.0 <= drawn.min() <= drawn.max() < 1.0

    @pytest.mark.parametrize("axis", [0, 1])
    def test_are_spread_evenly_over_positions_and_over_seeds(self, axis):
        # 256 seeds in a row by 256 positions in a row: each line of either has 16 equally likely cells, and so do the pairs
        # of neighbours, 256 cells; 2 x 256 tests of a true uniform: the least p-value is below 1e-5 once in 200 times.
        drawn = uniforms(np.arange(256, dtype=np.uint64)[:, None], np.arange(256))
        cells = (np.moveaxis(drawn, axis, 0) * 16).astype(int)
        assert min(chisquare(np.bincount(line, minlength=16)).pvalue for line in cells) > 1e-5
        pairs = cells[:-1] * 16 + cells[1:]
        assert chisquare(np.bincount(pairs.ravel(), minlength=256)).pvalue > 1e-3

    def test_neighbours_do_not_go_together(self):
        drawn = uniforms(np.arange(500, dtype=np.uint64)[:, None], np.arange(500))
        upper = np.triu_indices(500, 1)
        for one, other in [(drawn[1:], drawn[:-1]), (drawn[:, 1:], drawn[:, :-1]), (drawn[upper], drawn.T[upper])]:
            # 125,000 pairs or more: the standard error of a correlation is 0.003 at most.
            assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.012
