"""Predictions out of sample: every run once, each by a fit that has seen nothing of its part."""

from dataclasses import replace

import numpy as np
import pytest
from served import SMALL, blank_runs, with_latencies

from tpplanner.errors import WorkloadError
from tpplanner.fit.serving_splits import SPLITS, out_of_sample, part_of


@pytest.fixture(scope="module")
def few():
    """40 runs: 2 machines, one engine, 2 models, 2 degrees; four loads of one shape and one of another."""
    served = blank_runs(engines=("plain",), degrees=(1, 4), loads=(1, 8, 33, 64), lengths=((512, 512),))
    served += blank_runs(engines=("plain",), degrees=(1, 4), loads=(8,), lengths=((1024, 128),))
    served = [replace(one, run=replace(one.run, precision="fp8")) if one.run.tp == 4 and one.model is SMALL else one
              for one in served]
    return with_latencies(served, noise=0.03)


def by_id(predictions):
    found = {p.run_id: p for p in predictions}
    assert len(found) == len(predictions)
    return found


@pytest.fixture(scope="module")
def held_out(few):
    return {split: by_id(out_of_sample(few, split, num_workers=1)) for split in SPLITS}


@pytest.mark.parametrize(("split", "folds"), [
    ("degree", {"TP 1", "TP 4"}), ("machine", {"slow plain", "fast plain"}), ("shape", {"512/512", "1024/128"}),
    ("model", {"m24x2048 bf16", "m24x2048 fp8", "m40x4096 bf16"}), ("architecture", {"m24x2048", "m40x4096"}),
    ("load", {"more than 32 in flight"}),
])
def test_folds_cover_every_run_once(few, held_out, split, folds):
    found = held_out[split]
    assert {p.fold for p in found.values()} == folds
    expected = [one.run.run_id for one in few if split != "load" or one.run.concurrency > 32]
    assert list(found) == expected
    for one in few:
        if one.run.run_id in found:
            assert found[one.run.run_id].fold == part_of(one, split)


@pytest.mark.parametrize("split", SPLITS)
def test_a_held_out_run_never_tells(few, held_out, split):
    """Whatever was measured of a part, its predictions are the same; those of other parts are not."""
    part = held_out[split][few[-1].run.run_id].fold if split != "load" else "more than 32 in flight"
    changed = [
        replace(one, run=replace(one.run, tpot_s=3.0 * one.run.tpot_s, ttft_s=0.2 * one.run.ttft_s))
        if part_of(one, split) == part else one for one in few
    ]
    again = by_id(out_of_sample(changed, split, num_workers=1))
    for name, before in held_out[split].items():
        same = (again[name].tpot_s, again[name].ttft_s) == (before.tpot_s, before.ttft_s)
        assert same == (before.fold == part), name


def test_the_runs_of_other_parts_are_what_tells(few, held_out):
    # The model is right here: held-out degrees come back to a few percent.
    errors = [np.log(p.tpot_s / one.run.tpot_s) for one in few for p in [held_out["degree"][one.run.run_id]]]
    assert np.sqrt(np.mean(np.square(errors))) < 0.05


def test_a_run_in_doubt_is_predicted_and_never_fitted(few, held_out):
    doubtful = [replace(one, run=replace(one.run, run_id=f"{one.run.run_id}?", doubt="a cache", tpot_s=1e-4, ttft_s=50.0))
                for one in few[::5]]
    found = by_id(out_of_sample([*few, *doubtful], "degree", num_workers=1))
    assert len(found) == len(few) + len(doubtful)
    for name, before in held_out["degree"].items():
        assert (found[name].tpot_s, found[name].ttft_s) == (before.tpot_s, before.ttft_s)
    for one in doubtful:
        assert found[one.run.run_id].tpot_s == pytest.approx(found[one.run.run_id[:-1]].tpot_s, rel=1e-9)


def test_a_part_that_is_all_there_is_has_no_prediction(few):
    alone = [one for one in few if one.hardware.name == "fast"]
    assert out_of_sample(alone, "machine", num_workers=1) == ()


def test_an_unknown_split_is_one_clear_error(few):
    with pytest.raises(WorkloadError) as error:
        out_of_sample(few, "degrees")
    assert str(error.value) == ("split must be one of degree, model, machine, load, shape, architecture, got 'degrees'")


@pytest.mark.slow
def test_many_workers_predict_what_one_does(few, held_out):
    found = by_id(out_of_sample(few, "degree", num_workers=2))
    assert {k: (p.tpot_s, p.ttft_s) for k, p in found.items()} == {
        k: (p.tpot_s, p.ttft_s) for k, p in held_out["degree"].items()}
