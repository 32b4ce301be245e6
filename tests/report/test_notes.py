from dataclasses import replace

import pytest
from plan_factory import make_engine, make_infeasible, make_outcome, make_plan, make_question, make_rec

from tpplanner.domain.plan import FlipPoint
from tpplanner.domain.quantity import Provenance
from tpplanner.domain.serving_fit import ResidualModel, model_key
from tpplanner.domain.workload import Load, LoadMode, Targets
from tpplanner.report.notes import comparison_notes, flip_sentence, load_sentence, notes, profile_lines


def test_warnings_come_first_and_every_assumption_is_told() -> None:
    lines = notes(make_rec(warnings=("isl + osl exceeds the context",), assumptions=("a", "b")))
    assert lines[0] == "warning: isl + osl exceeds the context"
    assert {"assumption: a", "assumption: b"} <= set(lines)


def test_settings_name_the_defaults() -> None:
    settings = next(line for line in notes(make_rec()) if line.startswith("settings"))
    for part in (
        "vllm-0.11 (async_sched off",
        "weights bf16",
        "KV cache bf16",
        "max_num_seqs 256",
        "max_num_batched_tokens 8192",
        "gpu_memory_utilization 0.9",
        "preemption by recompute",
    ):
        assert part in settings


def test_rule_of_thumb_agrees_or_not() -> None:
    assert any(line.endswith("says TP 8, as the answer does") for line in notes(make_rec()))
    assert any(line.endswith("says TP 4; the answer is TP 8") for line in notes(make_rec(rule_of_thumb_tp=4)))
    assert any(line.endswith("says TP 8") for line in notes(make_infeasible()))


def test_evidence_counts_provenance_and_names_what_is_extrapolated() -> None:
    outcome = make_outcome(8, 540.1, extrapolated=("num_seqs", "comm"))
    lines = notes(make_rec(plans=(make_plan(8, 540.1, outcome=outcome),)))
    # 3 tasks + 3 sampling policies, each one fitted and one datasheet number; 4 more of the datasheet.
    assert "evidence: vllm-0.11: 16 coefficients (6 fitted, 10 datasheet)" in lines
    assert "evidence: TP 8 is extrapolated outside the range of: num_seqs, comm" in lines


def test_the_intervals_say_what_they_are_made_of() -> None:
    def told(residual: ResidualModel | None) -> str:
        engine = replace(make_engine(), tpot_residual=residual)
        (line,) = [n for n in notes(make_rec(question=make_question(engine=engine))) if n.startswith("uncertainty")]
        return line

    def runs(*keys: str) -> ResidualModel:
        ones = (1.0,) * len(keys)
        return ResidualModel(terms=(), noise_std_frac=0.04, model_keys=keys, num_seqs=ones, tp=ones, isl_tok=ones,
                             osl_tok=ones, weights=ones)

    own = model_key(make_question().model)
    assert told(None).startswith("uncertainty: no measured runs to go by: assumed errors of TPOT of 15 % common to all "
                                 "degrees and 6 % between two, 2 times that for TTFT; ")
    assert told(None).endswith("a degree ties where it is the better of itself and the best with 20 % probability or more")
    assert told(runs(own, own, "x")).startswith(
        "uncertainty: residuals of 2 measured runs of this model and 1 of other models, vllm-0.11 on h100-sxm; ")
    assert told(runs(own)).startswith("uncertainty: residuals of 1 measured run of this model, vllm-0.11")
    assert told(runs("x")).startswith("uncertainty: residuals of no measured run of this model and 1 of other models, ")
    assert told(runs()).startswith("uncertainty: no measured runs of vllm-0.11 on h100-sxm: what the model leaves over")


def test_documented_defaults_are_counted_apart() -> None:
    engine = make_engine()
    changed = {
        "layer_overhead_s": replace(engine.layer_overhead_s, source="default, not measured here"),
        "graph_bytes": replace(engine.graph_bytes, source="Assumed, no measurement yet"),
        "overlap_overhead_s": replace(
            engine.overlap_overhead_s, source="default size, timed", provenance=Provenance.MEASURED
        ),
    }
    line = profile_lines(make_question(engine=replace(engine, **changed)))[1]
    assert line == "vllm-0.11: 16 coefficients (1 measured, 6 fitted, 7 datasheet, 2 documented defaults)"


def test_notes_of_a_comparison_say_once_what_is_common() -> None:
    outcome = make_outcome(8, 540.1, extrapolated=("comm",))
    first = make_rec(warnings=("too long", "queues"))
    second = make_rec(
        question=make_question(engine=make_engine("albireo")), warnings=("too long",),
        plans=(make_plan(8, 540.1, outcome=outcome),),
    )
    lines = comparison_notes((first, second))
    assert lines[:2] == ("warning: too long", "warning: vllm-0.11: queues")
    assert sum(line.startswith("load: ") for line in lines) == 1
    assert [line.split(" (")[0] for line in lines if line.startswith("settings")] == [
        "settings: vllm-0.11", "settings: albireo",
    ]
    assert [line.split(":")[1] for line in lines if line.startswith("evidence")] == [
        " h100-sxm", " vllm-0.11", " albireo", " albireo",
    ]
    assert lines[-1] == "evidence: albireo: TP 8 is extrapolated outside the range of: comm"


def test_a_flip_downwards() -> None:
    flip = FlipPoint(
        variable="gpu_memory_utilization", unit="1", tp_before=2, tp_after=4, previous=0.7, value=0.6
    )
    assert flip_sentence(flip) == (
        "TP 4 instead of TP 2 from gpu_memory_utilization 0.6 down (TP 2 down to 0.7)"
    )


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (Load(mode=LoadMode.REQUEST_RATE, value=4), "over the whole cluster"),
        (Load(mode=LoadMode.CONCURRENCY, value=4), "over the whole cluster"),
        (Load(mode=LoadMode.BATCH_PER_GPU, value=4), "per GPU"),
        (Load(mode=LoadMode.CONCURRENCY_PER_REPLICA, value=4), "per replica"),
        (Load(mode=LoadMode.SLO_CAPACITY), "the highest at which the targets hold"),
        (Load(mode=LoadMode.OFFLINE), "everything queued at once"),
    ],
)
def test_load_says_what_the_number_is_of(load: Load, said: str) -> None:
    assert said in load_sentence(make_rec(question=make_question(load=load)))


def test_targets_are_told() -> None:
    question = make_question(targets=Targets(ttft_s=0.5, tpot_s=0.03))
    assert load_sentence(make_rec(question=question)).endswith("; mean TTFT <= 500 ms, mean TPOT <= 30.0 ms")
