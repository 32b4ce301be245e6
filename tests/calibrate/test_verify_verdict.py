"""Predicted against measured, summed up and written down: by hand."""

import csv
import io
from dataclasses import asdict

import pytest

from tpplanner.api.calibration_cases import Case
from tpplanner.api.calibration_verdict import Compared, verdict
from tpplanner.api.calibration_verify import _row
from tpplanner.report.verify_text import comparison_csv, header, line, runs_csv, verdict_text

TIMES = ("schedule_s", "prepare_input_s", "forward_s", "sampling_s", "process_output_s", "tpot_s", "ttft_s")


def compared(tp, loop, predicted, measured, *, model="m", blocks=(10.0, 10.0), energy=None, **case):
    """A case by its throughputs; the step is what eight sequences take at that rate."""
    sides = [{**dict.fromkeys(TIMES, 1e-3), "step_s": 8 / rate, "throughput_tok_s": float(rate), "num_kv_blocks": num}
             for rate, num in zip((predicted, measured), blocks, strict=True)]
    sides[0]["energy_j_per_tok"] = 0.5
    if energy is not None:
        sides[1]["energy_j_per_tok"] = energy
    return Compared(case=Case(model=model, tp=tp, loop=loop, num_seqs=8, **case), predicted=sides[0], measured=sides[1],
                    num_requests=24, max_num_seqs=32)


def failed(reason="out of memory"):
    return Compared(case=Case(model="m", tp=4, loop="overlap", num_seqs=8), predicted={}, measured={}, failure=reason)


EVERY = (
    compared(1, "sequential", 110, 100), compared(2, "sequential", 150, 250), compared(1, "sequential", 80, 80, injected_s=0.01),
    compared(1, "overlap", 100, 100), compared(2, "overlap", 150, 150), compared(1, "overlap", 120, 100, injected_s=0.01))


def test_a_verdict_by_hand():
    found = verdict(EVERY)
    assert found.throughput_error_frac == pytest.approx((0.1 + 0.4 + 0 + 0) / 4)
    # Per device: 110 against 75 predicted, 100 against 125 measured; 100 against 75 on both sides.
    assert (found.best_tp_right, found.num_ranked) == (1, 2)
    assert found.speedup_errors_frac == pytest.approx((1.5 / 1.25 - 1.0,))
    assert [(one.model, one.tp, one.num_cases) for one in found.by_model] == [("m", 1, 2), ("m", 2, 2)]
    assert [one.error_frac for one in found.by_model] == pytest.approx([0.05, 0.2])
    assert [one.bias_frac for one in found.by_model] == pytest.approx([0.05, -0.2])
    assert (found.emulated_error_frac, found.energy_error_frac, found.kv_blocks_error_frac) == (None, None, 0.0)


def test_emulated_cases_are_judged_apart_and_rank_no_degree():
    # An emulated t = 8 that would be the best by far, were it counted.
    found = verdict([*EVERY, compared(8, "sequential", 4400, 4000, emulated=True),
                     compared(8, "overlap", 2400, 3000, emulated=True)])
    plain = verdict(EVERY)
    assert found.throughput_error_frac == plain.throughput_error_frac
    assert (found.best_tp_right, found.num_ranked) == (plain.best_tp_right, plain.num_ranked)
    assert found.emulated_error_frac == pytest.approx(0.15)
    assert [(one.tp, one.emulated) for one in found.by_model] == [(1, False), (2, False), (8, True)]
    lines = verdict_text(asdict(found)).splitlines()
    assert lines[1] == "  m: t = 1 5.0% (+5.0%), t = 2 20.0% (-20.0%)"
    assert lines[2:4] == ["emulated, one rank of t on one device, left out above: throughput 15.0%", "  m: t = 8 15.0% (-5.0%)"]


def test_cases_with_other_lengths_or_loads_are_not_ranked_together():
    assert verdict([compared(1, "overlap", 1, 1), compared(2, "overlap", 1, 1, isl_tok=128)]).num_ranked == 0


def test_what_failed_counts_nowhere_and_is_said():
    found = verdict([*EVERY, failed()])
    assert found.num_failed == 1
    assert found.throughput_error_frac == verdict(EVERY).throughput_error_frac
    assert verdict_text(asdict(found)).splitlines()[-1] == "failed: 1 cases, left out of all figures"
    nothing = verdict([failed(), compared(1, "overlap", 1, 1, injected_s=0.1)])
    assert nothing.throughput_error_frac is None
    assert "throughput none measured" in verdict_text(asdict(nothing))


def test_energy_and_blocks():
    found = verdict([compared(1, "overlap", 1, 1, energy=0.4, blocks=(90.0, 100.0)), compared(1, "sequential", 1, 1, energy=0.5)])
    assert found.energy_error_frac == pytest.approx(0.125)
    assert found.kv_blocks_error_frac == pytest.approx(0.05)
    assert verdict_text(asdict(found)).splitlines()[-2:] == ["KV blocks: 5.0%", "energy of a token: 12.5%"]
    assert verdict_text(asdict(verdict(EVERY))).count("energy: no counter on this machine") == 1


def columns(text):
    """Where the cells of the figures end."""
    heads = text.splitlines()[-1]
    return [heads.index(name) + len(name) for name in ("T1", "T5", "step", "TTFT", "tok/s", "blocks", "J/tok")]


@pytest.mark.parametrize("one", [
    compared(2, "overlap", 110, 100), compared(128, "sequential", 99999, 98765, energy=0.0123, injected_s=0.0137),
    compared(8, "sequential", 1.234, 0.456, emulated=True, isl_tok=1024, osl_tok=1024, model="a/very/long/name-of-a-model-here")])
def test_the_table_stands_under_its_heads(one):
    row = _row(one)
    first, second = line(row).splitlines()
    ends = columns(header())
    for text in (first, second):
        # A cell ends under its head, and a space or the end of the line follows.
        assert all(text[end - 1] != " " and (len(text) == end or text[end] == " ") for end in ends)
    assert first[: first.index("predicted")].rstrip() != ""
    assert "measured" in second
    assert ("emulated: one rank of 8" in second) == one.case.emulated
    assert second.endswith("%")
    assert ("-" in second.split()[-2]) == ("energy_j_per_tok" not in one.measured)


def test_figures_by_hand():
    predicted, measured = line(_row(compared(2, "overlap", 110, 100))).splitlines()
    assert predicted.split()[-12:] == ["predicted", *["1.00"] * 5, "72.7", "1.00", "1.00", "110", "10", "-"]
    assert measured.split()[-5:] == ["1.00", "100", "10", "-", "+10%"]


def test_a_failed_case_is_one_line_with_its_reason():
    assert line(_row(failed("CUDA out of memory"))).endswith("failed: CUDA out of memory")
    assert len(line(_row(failed())).splitlines()) == 1


def test_every_case_is_in_the_comparison_with_what_it_is():
    rows = [_row(one) for one in (EVERY[0], compared(4, "overlap", 1, 1, emulated=True, energy=0.25), failed("a, b"))]
    read = list(csv.DictReader(io.StringIO(comparison_csv(rows))))
    assert [(row["tp"], row["emulated"], row["failure"]) for row in read] == [
        ("1", "False", ""), ("4", "True", ""), ("4", "False", "a, b")]
    assert [row["measured_energy_j_per_tok"] for row in read] == ["", "0.25", ""]
    assert [row["predicted_throughput_tok_s"] for row in read] == ["110", "1", ""]
    assert (read[0]["num_requests"], read[0]["isl_tok"], read[0]["osl_tok"]) == ("24", "64", "32")


def test_runs_are_what_ran_as_it_is_served():
    rows = [_row(one) for one in (*EVERY, compared(4, "overlap", 1, 1, emulated=True), failed())]
    runs = runs_csv(rows, machine="cpu-a-cpu-9000", dtype="fp32", max_num_batched_tokens=2048).splitlines()
    assert len(runs) == 1 + 4  # neither injected time, nor emulated, nor failed
    assert runs[1] == ("m-tp1-8-64x32-sequential,m,cpu-a-cpu-9000,tpplanner-sequential,1,64,32,8,1,1,100,fp32,32,2048,3,"
                       "tpplanner calibrate verify")
