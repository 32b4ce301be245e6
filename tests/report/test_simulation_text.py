import re
from dataclasses import replace

import numpy as np
import pytest
from plan_factory import make_engine, make_question
from simulated import (
    OPTIONS,
    TARGETS,
    make_degree,
    make_hopeless,
    make_sim,
    make_traffic,
    out_degree,
)

from tpplanner.domain.plan import Reason
from tpplanner.domain.simulation import Quantiles, Simulation, SimulationOptions
from tpplanner.domain.traffic import Traffic
from tpplanner.domain.workload import Load, LoadMode, Targets
from tpplanner.report.simulation_headline import nearest_degree, simulation_headline, verdict
from tpplanner.report.simulation_text import simulation_notes, simulation_text, traffic_sentence

FIGURES = {
    "throughput_tok_s": 3910.0, "throughput_per_gpu_tok_s": 488.75, "goodput_req_s": 3.79, "goodput_frac": 0.962,
    "request_rate_req_s": 3.94, "ttft": Quantiles(mean_s=0.4, p50_s=0.3, p90_s=0.8, p99_s=1.24),
    "tpot": Quantiles(mean_s=0.03, p50_s=0.031, p90_s=0.035, p99_s=0.0413),
    "itl": Quantiles(mean_s=0.03, p50_s=0.03, p90_s=0.04, p99_s=0.09),
    "e2e": Quantiles(mean_s=9.0, p50_s=8.0, p90_s=20.0, p99_s=31.5),
    "queue": Quantiles(mean_s=0.01, p50_s=0.0, p90_s=0.05, p99_s=0.6),
    "num_preemptions": 12, "recomputed_tok": 34_567, "swap_bytes": 3 * 2**30,
}
HUGE = {
    "throughput_tok_s": 126_418_944.0, "throughput_per_gpu_tok_s": 123_456.0, "saturated": True, "recomputed_tok": 123_456_789,
    "num_preemptions": 1_234_567, "swap_bytes": 5e15, "mean_waiting_seqs": 98_765.0, "goodput_req_s": 12_345.0,
    "ttft": Quantiles(mean_s=1.0, p50_s=1234.567, p90_s=2345.678, p99_s=9876.543),
    "tpot": Quantiles(mean_s=1.0, p50_s=1.234, p90_s=9.999, p99_s=12.345),
    "e2e": Quantiles(mean_s=1.0, p50_s=1234.567, p90_s=9.0, p99_s=9876.543),
}
FEW = make_traffic(5)


def changed(sim: Simulation, tp: int, *, meets_targets: bool | None = None, **figures: object) -> Simulation:
    """Replace figures of one degree."""
    def new(degree):
        if degree.tp != tp:
            return degree
        meets = degree.meets_targets if meets_targets is None else meets_targets
        return replace(degree, outcome=replace(degree.outcome, **figures), meets_targets=meets)

    return replace(sim, degrees=tuple(new(degree) for degree in sim.degrees))


def rows(text: str, tp: int) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if re.match(rf" *{tp}\*?( |$)", line)]


def test_the_answer_comes_first_in_one_line() -> None:
    text = simulation_text(changed(make_sim(), 4, **FIGURES))
    assert text.split("\n\n")[0] == (
        "Serve meta-llama/Llama-3.1-70B-Instruct at TP 4 (2 replicas of 4 x h100-sxm): 3,910 tok/s (489 tok/s/GPU), "
        "goodput 3.79 req/s (96 % of the requests), TTFT p99 1,240 ms, TPOT p99 41.3 ms; best of 2 feasible degrees by "
        "throughput of all GPUs."
    )


@pytest.mark.parametrize(("degrees", "said"), [
    ((0, 1, 2), "; the only feasible degree."), ((2,), "; the only degree simulated."),
    ((2, 3), "; best of 2 feasible degrees by"),
])
def test_the_headline_says_what_the_best_was_chosen_from(degrees, said: str) -> None:
    sim = make_sim()
    assert said in simulation_headline(replace(sim, degrees=tuple(sim.degrees[i] for i in degrees)))


def test_a_capacity_is_named_by_its_rate() -> None:
    sim = make_sim()
    sim = replace(sim, question=replace(sim.question, load=Load(mode=LoadMode.SLO_CAPACITY)))
    assert ", up to 7.5 req/s, goodput" in simulation_headline(changed(sim, 4, offered_rate_req_s=7.5))
    assert simulation_notes(sim)[0].endswith("4.2 per second; each degree at its own rate, this is the highest")


def test_one_row_per_degree_by_hand() -> None:
    text = simulation_text(changed(make_sim(), 4, **FIGURES))
    first, second = rows(text, 4)
    assert first == ["4*", "2", "489", "300", "800", "1,240", "31.0", "35.0", "41.3", "90.0", "8,000", "31,500", "600",
                     "3.79", "96", "%", "ok"]
    # Rates, batch, preemptions, KV cache, busy share, energy, cost and idle GPUs.
    assert second == ["4*", "3,910", "4.2", "3.94", "11.5", "0.25", "12", "34,567", "3", "667,216", "31", "%", "57", "%",
                      "83", "%", "1.2", "1.39", "0"]
    assert max(map(len, text.split("\n\n", 1)[1].splitlines())) <= 130


@pytest.mark.parametrize("width", [40, 80, 100, 119, 130, 160, 250])
def test_no_line_is_wider_than_asked_and_no_number_is_cut(width: int) -> None:
    sim = changed(changed(make_sim(), 2, **HUGE), 8, num_unservable=5)
    text = simulation_text(sim, width=width)
    tables = [line for line in text.split("\n\n", 1)[1].splitlines() if not line.startswith(("TP 1 is", "TP 2 is", "Load,"))]
    assert max(map(len, tables)) <= max(width, 80)
    for shown in ("126,418,944", "123,456", "1,234,567", "9,876,543", "12,345", "98,765", "123,456,789", "4,656,613"):
        assert shown in text
    assert "…" not in text
    for tp in (1, 2, 4, 8):
        assert len(rows(text, tp)) == (4 if width < 160 else 2)


def test_plain_text_is_ascii_and_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert simulation_text(make_sim()).isascii()
    assert "\x1b[1;32m" in simulation_text(make_sim(), terminal=True)


def test_degrees_that_are_out_stay_with_their_reason() -> None:
    text = simulation_text(changed(make_sim(), 2, request_rate_req_s=0.95))
    assert rows(text, 1)[0] == ["1", "8", *["-"] * 13, "out:", "weights"]
    assert "TP 1 is out (weights): weights need 131 GiB per GPU, 72 GiB are usable" in text
    assert rows(text, 2)[0][-1] == "saturated"
    assert "TP 2 is saturated: requests arrive faster than they are served: 4.2 offered, 0.95 served per second" in text


def test_no_degree_meets_the_targets() -> None:
    sim = make_hopeless()
    text = simulation_text(sim)
    # The tail of TP 4 and 8 is the same 459 ms, 4.6 times the target: the larger degree is named. TP 2 is far off.
    assert text.startswith("No feasible plan: meta-llama/Llama-3.1-70B-Instruct on 8 x h100-sxm fails on ttft at TP 8, the "
                           "nearest degree (TTFT p99 459 ms exceeds the target of 100 ms).\n")
    assert "TP 4 is out (ttft): TTFT p99 459 ms exceeds the target of 100 ms" in text
    assert rows(text, 8)[0][-2:] == ["out:", "ttft"]


def test_the_worst_of_two_targets_is_the_reason_and_both_are_told() -> None:
    sim = changed(make_sim(targets=Targets(ttft_s=0.4, tpot_s=0.01), traffic=FEW), 8, meets_targets=False,
                  ttft=replace(FIGURES["ttft"], p99_s=0.5), tpot=replace(FIGURES["tpot"], p99_s=0.02))
    why = verdict(sim, sim.degrees[3])
    # 0.02 / 0.01 = 2 is further off than 0.5 / 0.4 = 1.25.
    assert why is not None
    assert (why.word, why.overshoot) == ("tpot", pytest.approx(2.0))
    assert why.detail == "TPOT p99 20.0 ms exceeds the target of 10.0 ms; TTFT p99 500 ms exceeds the target of 400 ms"


def test_only_saturation_is_in_the_way() -> None:
    sim = make_sim(targets=Targets(), traffic=FEW)
    sim = replace(changed(sim, 4, meets_targets=False, saturated=True, offered_rate_req_s=12.0, request_rate_req_s=10.0),
                  best_tp=None)
    sim = changed(sim, 8, meets_targets=False, saturated=True, offered_rate_req_s=12.0, request_rate_req_s=6.0)
    assert simulation_headline(sim).endswith(
        "fails on load at TP 4, the nearest degree (saturated: requests arrive faster than they are served: 12 offered, "
        "10 served per second).")


def test_nothing_fits_anywhere() -> None:
    sim = make_sim(degrees=(out_degree(1), out_degree(8, Reason.HEADS)), best_tp=None)
    assert "fails on weights at TP 1" in simulation_headline(sim)
    assert simulation_headline(make_sim(degrees=(), best_tp=None)) == (
        "No feasible plan: no degree of meta-llama/Llama-3.1-70B-Instruct can be tried on 8 x h100-sxm.")
    assert nearest_degree(make_sim(degrees=(), best_tp=None)) is None


def test_every_request_is_too_long() -> None:
    degree = make_degree(4, FEW, TARGETS, unservable=5, meets_targets=False)
    sim = make_sim(traffic=FEW, degrees=(degree,), best_tp=None)
    text = simulation_text(sim)
    assert "fails on kv_cache at TP 4, the nearest degree (none of 5 requests fits into the KV cache)" in text
    assert rows(text, 4)[0][3:13] == ["-"] * 10
    assert "never" in text
    assert "unservable: TP 4: 5 of 5 requests never fit into the KV cache" in simulation_notes(sim)


def test_some_requests_are_too_long_for_the_best() -> None:
    line = simulation_headline(changed(make_sim(), 4, num_unservable=3))
    assert "(100 % of the requests that fit), TTFT p99" in line
    assert ", 3 of 300 requests never fit into the KV cache; best of 2" in line


def test_outputs_of_one_token_and_a_closed_loop_without_targets() -> None:
    sim = make_sim(targets=Targets(), traffic=make_traffic(1, rate_req_s=None, osl_tok=1), options=SimulationOptions())
    text = simulation_text(sim)
    assert "TTFT p99 158 ms; best of" in text
    assert "TPOT p99" not in text.split("\n")[0]
    assert "goodput" not in text
    first, second = rows(text, 4)
    assert first == ["4*", "2", "0.792", "158", "158", "158", "-", "-", "-", "-", "158", "158", "0.00", "ok"]
    assert second[2] == "-"
    assert any(line.startswith("traffic: chat, lognormal: 1 request, 1,078 tokens in, 1 out, taken in order")
               for line in simulation_notes(sim))


def test_the_statistic_compared_has_a_column_where_it_is_none_of_the_usual() -> None:
    sim = make_sim(traffic=FEW)
    usual = simulation_text(sim)
    assert rows(usual, 4)[0][3] == rows(simulation_text(replace(sim, options=SimulationOptions())), 4)[0][4]
    mean, p75 = (simulation_text(replace(sim, options=SimulationOptions(slo_quantile=q))) for q in (None, 0.75))
    degree = sim.degrees[2]
    ttft_s = degree.detail.requests.first_token_s - degree.detail.requests.arrival_s
    assert rows(mean, 4)[0][3] == f"{1000 * ttft_s.mean():.0f}"
    assert rows(p75, 4)[0][3] == f"{1000 * np.quantile(ttft_s, 0.75):.0f}"
    assert re.search(r"mean +p50 +p90 +p99", mean)
    assert re.search(r"p75 +p50 +p90 +p99", p75)
    assert not re.search(r"mean +p50", simulation_text(make_sim(targets=Targets(), options=SimulationOptions(), traffic=FEW)))


def test_prefix_hits_where_prefixes_are_cached() -> None:
    sim = changed(make_sim(options=replace(OPTIONS, prefix_caching=True)), 4, prefix_hit_frac=0.42)
    assert "42 %" in simulation_text(sim)
    assert "prefix" not in simulation_text(make_sim())


def test_notes_name_traffic_run_targets_and_what_went_wrong() -> None:
    sim = changed(make_sim(warnings=("a run is short",)), 4, **FIGURES, num_unused_rows=321)
    sim = changed(sim, 8, num_unused_rows=99)
    notes = simulation_notes(sim)
    assert notes[0] == "warning: a run is short"
    assert notes[2] == "load: 4 requests per second over the whole cluster"
    for line in (
        "traffic: chat, lognormal: 300 requests, 1,182 tokens in (6,294 at most), 584 out (1,783 at most), 4.2 per second",
        "simulation: router round-robin, prefix caching off, watermark 0 % of the KV blocks, equal decode steps at once, seed 0",
        "targets: p99 TTFT <= 1,000 ms, p99 TPOT <= 40.0 ms",
        "ranked by: throughput of all GPUs",
        "preemption: TP 4: 12 preemptions, 34,567 tokens computed again, 3 GiB moved over the host links",
        "unused rows: 321 at TP 4, 99 at TP 8: rows of steps that went to sequences which had stopped",
        "evidence: vllm-0.11: 16 coefficients (6 fitted, 10 datasheet)",
    ):
        assert line in notes
    (sure,) = [line for line in notes if line.startswith("uncertainty")]
    assert "step times are those of the cost model behind `recommend`: no measured runs to go by" in sure
    # A hundredth of 300 requests.
    assert sure.endswith("a p99 rests on the slowest 3 requests of one run")


def test_quiet_runs_have_no_incidents() -> None:
    notes = simulation_notes(make_sim(targets=Targets()))
    assert not [line for line in notes if line.startswith(("preemption", "unservable", "unused", "warning"))]
    assert "targets: none, so that there is no goodput" in notes


def test_everything_at_once() -> None:
    tok = np.array([8, 8])
    traffic = Traffic(name="batch", isl_tok=tok, osl_tok=tok, arrival_s=np.zeros(2))
    assert traffic_sentence(traffic) == "batch: 2 requests, 8 tokens in, 8 out, all at once"


def test_markup_in_names_is_shown_as_it_is() -> None:
    sim = make_sim(degrees=(replace(out_degree(1), reason_detail="[bold]weights[/bold]"),), best_tp=None)
    assert "[bold]weights[/bold]" in simulation_text(sim, terminal=True)
    assert "[red]x" in simulation_notes(replace(sim, question=make_question(engine=make_engine("[red]x"))))[3]
