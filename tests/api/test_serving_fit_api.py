"""From measured runs to fitted profiles: what each machine and engine gets, and a user's own runs beside the known ones."""

from dataclasses import replace
from math import log

import numpy as np
import pytest
from served import MOE, blank_runs, split_of, with_latencies

from tpplanner.api.loaded import fitted_of, model_of
from tpplanner.api.serving_fit import USUAL_FAMILY, anchored, fit_runs, fitted_pairs, save, serving_fit_of, with_serving
from tpplanner.api.validate_runs import predict_runs
from tpplanner.domain.serving_fit import MODEL_CLASSES, SERVING_TERMS, model_key
from tpplanner.domain.serving_run import ServingRun
from tpplanner.errors import OutputError, WorkloadError
from tpplanner.fit.serving_groups import levels_of
from tpplanner.fit.serving_residuals import fit_residuals
from tpplanner.fit.serving_terms import fit_serving
from tpplanner.io.fitted_files import encode_fitted, read_fitted

# --- what a machine and engine get ---


@pytest.fixture(scope="module")
def fitted():
    """The small machines: dense models on both with both engines, experts on one; one run in doubt."""
    runs = [*blank_runs(loads=(4, 64), degrees=(1, 4)),
            *blank_runs(machines=("fast",), engines=("plain",), models=(MOE,), loads=(4, 64), degrees=(1, 4))]
    served = with_latencies(runs)
    served[0] = replace(served[0], run=replace(served[0].run, doubt="cannot be"))
    other = [replace(one, run=replace(one.run, run_id=f"{one.run.run_id}+", family="else")) for one in served[1:4]]
    served = [*served, *other]
    groups, use = split_of(served)
    model = fit_serving(groups, use)
    return model, fit_residuals(groups, model, use), served


def values(terms):
    return [getattr(terms, name).value for name in SERVING_TERMS]


def test_a_measured_pair_gets_its_own_terms_per_benchmark(fitted):
    model, residuals, served = fitted
    fit = serving_fit_of(model, residuals, served, machine="slow", engine="plain", source="made")
    own = [one for one in served if levels_of(one)["cell"] == "slow/plain" and one.run.doubt is None]
    assert fit.num_runs == len(own) == 15 + 3
    assert fit.terms["dense"] is fit.terms["dense@bench"]  # that of most runs
    for family in ("bench", "else"):
        levels = levels_of(next(one for one in own if one.run.family == family))
        assert values(fit.terms[f"dense@{family}"]) == values(model.terms("dense", levels))
    assert values(fit.terms["dense@else"]) != values(fit.terms["dense"])
    term = fit.terms["dense"].gemm_factor
    assert (term.num_samples, term.source) == (18, "made; 18 runs of slow/plain")
    assert fit.tpot["dense"] is residuals.tpot["slow/plain", "dense"]
    assert fit.tpot["dense"].num_runs == 18
    # No model with experts was measured here: terms from those elsewhere, for every class of them.
    assert {f"{name}@{USUAL_FAMILY}" for name in MODEL_CLASSES[1:]} <= set(fit.terms)
    assert fit.terms["moe"].gemm_factor.source == "made; no run of slow/plain: other machines and engines"
    assert (fit.tpot["moe"].num_runs, fit.ttft["moe"].num_runs) == (0, 0)


def test_an_unmeasured_pair_gets_pooled_terms(fitted):
    model, residuals, served = fitted
    cells = {engine: serving_fit_of(model, residuals, served, machine="slow", engine=engine, source="made")
             for engine in ("plain", "overlap", "third")}
    third = cells["third"]
    assert third.num_runs == 0
    assert third.terms["dense"].step_s.source == "made; no run of slow/third: other machines and engines"
    assert third.terms["dense"].step_s.num_samples == 0
    for name in ("step_s", "gemm_factor"):
        low, high = sorted(getattr(cells[engine].terms["dense"], name).value for engine in ("plain", "overlap"))
        assert low < getattr(third.terms["dense"], name).value < high
    assert third.terms["dense"].step_s.std_error > cells["plain"].terms["dense"].step_s.std_error
    assert (third.tpot["dense"].num_runs, third.ttft["dense"].num_runs) == (0, 0)
    assert third.tpot["dense"].terms == cells["plain"].tpot["dense"].terms


def test_a_fit_of_dense_models_says_nothing_of_experts(fitted):
    _, _, served = fitted
    dense = [one for one in served if not one.model.is_moe]
    groups, use = split_of(dense)
    model = fit_serving(groups, use)
    fit = serving_fit_of(model, fit_residuals(groups, model, use), dense, machine="fast", engine="plain", source="made")
    assert {name.partition("@")[0] for name in fit.terms} == {"dense"}
    assert set(fit.tpot) == set(fit.ttft) == {"dense"}
    assert fit.terms_for(MOE) is fit.terms["dense"]


# --- by name, on the packaged machines ---

NEW = "mistralai/Mistral-Small-24B-Instruct-2501"


def run(run_id="r", model=NEW, machine="h100-sxm", engine="vllm", **given):
    ready = {"isl_tok": 1024, "osl_tok": 256, "tp": 2, "concurrency": 16, "ttft_s": 0.2, "tpot_s": 0.02, "family": "own",
             "source": "here", **given}
    return ServingRun(run_id=run_id, model=model, checkpoint=model, machine=machine, engine=engine, **ready)


def slower(runs, factor):
    """The runs as measured, so many times as long as predicted."""
    return [replace(one, tpot_s=p.tpot_s * factor, ttft_s=p.ttft_s * factor)
            for one, p in zip(runs, predict_runs(runs), strict=True)]


def latencies(runs):
    found = predict_runs(runs)
    assert all(p.status == "ok" for p in found), found
    return np.array([[p.tpot_s, p.ttft_s] for p in found])


def width(runs):
    return np.log([[p.tpot_high_s / p.tpot_low_s, p.ttft_high_s / p.ttft_low_s] for p in predict_runs(runs)])


OWN = [run(f"own-{c}", concurrency=c) for c in (4, 16, 64)]


@pytest.fixture
def anchored_profiles(tmp_path, use_profiles):
    """Three runs of a model that nobody measured here, 1.3 times as slow as predicted, in profiles of one's own."""
    measured = slower(OWN, 1.3)
    assert model_key(model_of(NEW, None, None)) not in fitted_of("h100-sxm", "vllm").serving.tpot["dense"].model_keys
    profiles = anchored(measured)
    (path,) = save(profiles, out=tmp_path / "mine")

    def use():
        use_profiles(tmp_path / "mine")
        return path

    return measured, profiles, use


def test_anchors_move_their_own_predictions_to_within_the_noise(anchored_profiles):
    measured, profiles, use = anchored_profiles
    before, wide = latencies(OWN), width(OWN)
    fit = profiles["h100-sxm", "vllm"].serving
    noise = fit.tpot["dense"].noise_std_frac, fit.ttft["dense"].noise_std_frac
    use()
    after = latencies(OWN)
    truth = np.array([[one.tpot_s, one.ttft_s] for one in measured])
    assert (abs(np.log(before / truth)) > 0.25).all()
    assert (abs(np.log(after / truth)) < noise).all()
    # And the predictions say that they are surer.
    assert (width(OWN) < wide).all()


def test_between_and_near_the_anchors_predictions_follow(anchored_profiles):
    near = [run("between", concurrency=32), run("degree", tp=4)]
    before = latencies(near)
    anchored_profiles[2]()
    ratio = latencies(near)[:, 0] / before[:, 0]
    assert ratio[0] > 1.2
    assert 1.1 < ratio[1] < ratio[0]


def test_far_predictions_stay(anchored_profiles):
    elsewhere = [run("machine", machine="h200"), run("engine", engine="sglang"), run("old", engine="vllm-0.11")]
    # Other models on the same machine and engine share what is of the engine, a few percent of the 30; mixtures of experts none.
    others = [run("other", model="Qwen/Qwen2.5-32B-Instruct"), run("load", model="Qwen/Qwen2.5-7B-Instruct", concurrency=256)]
    experts = [run("moe", model="mistralai/Mixtral-8x7B-Instruct-v0.1")]
    before = [latencies(group) for group in (elsewhere, others, experts)]
    anchored_profiles[2]()
    after = [latencies(group) for group in (elsewhere, others, experts)]
    assert after[0].tolist() == before[0].tolist()
    assert abs(np.log(after[1][:, 0] / before[1][:, 0])).max() < 0.06
    assert after[2] == pytest.approx(before[2], rel=2e-4)  # but for the rounding in the file


def test_runs_known_before_keep_their_predictions(anchored_profiles):
    known = [run(f"known-{c}-{tp}", model="Qwen/Qwen3-32B", isl_tok=1024, osl_tok=1024, concurrency=c, tp=tp, family=USUAL_FAMILY)
             for c in (8, 64) for tp in (1, 4)]
    before = latencies(known)
    old = fitted_of("h100-sxm", "vllm").serving
    anchored_profiles[2]()
    assert latencies(known) == pytest.approx(before, rel=0.02)
    new = fitted_of("h100-sxm", "vllm").serving
    assert new.num_runs == old.num_runs + 3
    assert new.tpot["dense"].num_runs == old.tpot["dense"].num_runs + 3
    assert new.tpot["dense"].model_keys[:-3] == old.tpot["dense"].model_keys
    assert new.tpot["moe"].weights == old.tpot["moe"].weights
    assert values(new.terms["dense"]) == values(old.terms["dense"])


def test_anchoring_twice_is_anchoring_once(anchored_profiles, tmp_path):
    measured, first, use = anchored_profiles
    use()
    again = anchored(measured)["h100-sxm", "vllm"].serving
    once = first["h100-sxm", "vllm"].serving
    assert again.tpot["dense"].num_runs == once.tpot["dense"].num_runs
    assert again.tpot["dense"].weights == pytest.approx(once.tpot["dense"].weights, rel=0.01, abs=0.02)


def test_an_unmeasured_machine_and_a_class_without_residuals_take_anchors_too(use_profiles, tmp_path):
    some = [run("l40s", model="Qwen/Qwen2.5-7B-Instruct", machine="l40s", tp=1)]
    before = latencies(some)
    profiles = anchored(slower(some, 1.2))
    assert profiles["l40s", "vllm"].serving.tpot["dense"].num_runs == 1
    # A fit of mixtures of experts alone has no residuals of dense models yet.
    fitted = profiles["l40s", "vllm"]
    bare = replace(fitted, serving=replace(fitted.serving, tpot={}, ttft={}))
    path = tmp_path / "l40s" / "fitted-vllm.json"
    path.parent.mkdir()
    path.write_bytes(encode_fitted(bare))
    use_profiles(tmp_path)
    assert anchored(slower(some, 1.2))["l40s", "vllm"].serving.tpot["dense"].num_runs == 1
    save(profiles, out=tmp_path, overwrite=True)
    use_profiles(tmp_path)
    assert 1.1 < (latencies(some) / before)[0, 0] <= 1.2


def test_a_run_that_does_not_fit_in_memory_teaches_nothing_and_says_so():
    too_large = run("big", model="meta-llama/Llama-3.1-70B-Instruct", machine="h100-sxm", tp=1)
    with pytest.raises(WorkloadError, match=r"run big must fit in memory .* tp 1 on h100-sxm"):
        anchored([too_large])


def test_anchors_of_several_machines_and_models_are_all_kept():
    several = [run("a"), run("b", model="Qwen/Qwen2.5-7B-Instruct"), run("c", machine="h200", engine="sglang"),
               run("d", model="mistralai/Mixtral-8x7B-Instruct-v0.1"), run("e", osl_tok=1)]
    found = anchored(several)
    assert set(found) == {("h100-sxm", "vllm"), ("h200", "sglang")}
    old, new = (fit.serving for fit in (fitted_of("h100-sxm", "vllm"), found["h100-sxm", "vllm"]))
    assert new.num_runs == old.num_runs + 4
    # One output token has no TPOT.
    assert [new.tpot[k].num_runs - old.tpot[k].num_runs for k in ("dense", "moe")] == [2, 1]
    assert [new.ttft[k].num_runs - old.ttft[k].num_runs for k in ("dense", "moe")] == [3, 1]


def test_a_residual_beyond_a_factor_of_two_is_cut():
    residual = anchored(slower(OWN[1:2], 50.0))["h100-sxm", "vllm"].serving.tpot["dense"]
    assert max(residual.weights) <= log(2.02) / residual.noise_std_frac**2


@pytest.mark.parametrize(("changes", "message"), [
    ({"machine": "h1000"}, "run r: unknown GPU 'h1000'"), ({"engine": "vlm"}, "run r: unknown engine 'vlm'"),
    ({"model": "no/such-model"}, "run r: "),
    ({"engine": "albireo"}, "anchor: h100-sxm/albireo must have a serving fit to anchor, got 'none'"),
    ({"machine": "rtx-4090", "model": "Qwen/Qwen2.5-7B-Instruct"},
     "anchor: rtx-4090/vllm must have a serving fit to anchor, got 'none'"),
])
def test_what_cannot_be_anchored_is_one_line(changes, message):
    with pytest.raises(WorkloadError) as error:
        anchored([run("good"), run(**changes)])
    assert str(error.value).startswith(message)
    assert len(str(error.value).splitlines()) == 1


# --- a fit by name ---


def test_a_fit_needs_a_run_that_is_known_and_not_in_doubt():
    with pytest.raises(WorkloadError, match="run r: unknown GPU 'h1000'"):
        fit_runs([run("good"), run(machine="h1000")])
    with pytest.raises(WorkloadError, match="serving fit: runs must hold one that can be fitted, got 1"):
        fit_runs([run(doubt="a cache")])


def test_a_fit_goes_into_the_profiles_that_are_asked_for():
    small = [run(f"{c}-{tp}", model="Qwen/Qwen2.5-7B-Instruct", concurrency=c, tp=tp) for c in (4, 64) for tp in (1, 2)]
    measured = slower(small, 1.1)
    found = with_serving(measured, [("h100-sxm", "vllm"), ("l40s", "trtllm")], source="mine")
    own, other = found["h100-sxm", "vllm"], found["l40s", "trtllm"]
    assert (own.serving.num_runs, other.serving.num_runs) == (4, 0)
    assert own.serving.tpot["dense"].num_runs == 4
    assert own.kernels is fitted_of("h100-sxm", "vllm").kernels
    assert other.serving.source == "mine"
    with pytest.raises(WorkloadError, match=r"rtx-4090/vllm must have a fitted profile \(tpplanner profiles import\)"):
        with_serving(measured, [("rtx-4090", "vllm")], source="mine")


def test_every_pair_with_kernels_is_listed():
    pairs = fitted_pairs()
    assert len(set(pairs)) == len(pairs)
    assert {("h100-sxm", "vllm"), ("l40s", "trtllm"), ("b200", "sglang")} <= set(pairs)
    assert all(fitted_of(*pair).kernels.gemm for pair in pairs)


def test_files_are_written_together_or_not_at_all(tmp_path):
    profiles = {pair: fitted_of(*pair) for pair in (("h100-sxm", "vllm"), ("h200", "vllm"))}
    paths = save(profiles, out=tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in paths] == ["h100-sxm/fitted-vllm.json", "h200/fitted-vllm.json"]
    assert encode_fitted(read_fitted(paths[0])) == encode_fitted(profiles["h100-sxm", "vllm"])
    paths[0].unlink()
    before = paths[1].read_bytes()
    with pytest.raises(OutputError, match=r"fitted-vllm.json already exists"):
        save(profiles, out=tmp_path)
    assert not paths[0].exists()
    assert paths[1].read_bytes() == before
    assert save(profiles, out=tmp_path, overwrite=True) == paths
