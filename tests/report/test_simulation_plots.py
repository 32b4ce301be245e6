import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from plan_factory import make_model, make_question
from simulated import (
    TARGETS,
    make_degree,
    make_hopeless,
    make_series,
    make_sim,
    make_traffic,
    out_degree,
)

from tpplanner.domain.simulation import LoadSeries, SimulationOptions
from tpplanner.domain.workload import Targets
from tpplanner.errors import WorkloadError
from tpplanner.report.plots import figure_png_bytes
from tpplanner.report.simulation_plots import plot_degrees, plot_latency_cdf, plot_load

SIM = make_sim()
ONE = make_sim(targets=Targets(), traffic=make_traffic(1, rate_req_s=None, osl_tok=1), options=SimulationOptions())


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def legend(owner) -> list[str]:
    return [text.get_text() for text in owner.get_texts()]


def curves(axes) -> list:
    return [line for line in axes.lines if line.get_label().startswith("TP ")]


@pytest.mark.parametrize("plot", [plot_latency_cdf, plot_degrees, lambda sim: plot_load(sim, 4)])
def test_png_with_title_units_and_names(plot) -> None:
    figure = plot(SIM)
    png = figure_png_bytes(figure)
    assert png.startswith(b"\x89PNG")
    assert len(png) > 20_000
    assert figure.get_suptitle().strip()
    (below,) = [text.get_text() for text in figure.texts if text.get_text() != figure.get_suptitle()]
    assert below == ("meta-llama/Llama-3.1-70B-Instruct (bf16), 8 x h100-sxm, vllm-0.11\n"
                     "chat, lognormal: 300 requests, mean 1,182 in / 584 out, 4.2 per second")
    assert all(axes.get_ylabel() for axes in figure.axes if axes is not figure.axes[1] or plot is not plot_latency_cdf)


def test_cdf_has_a_curve_per_run_and_the_targets() -> None:
    figure = plot_latency_cdf(SIM)
    ttft, tpot = figure.axes
    assert [line.get_label() for line in curves(ttft)] == ["TP 2, saturated", "TP 4", "TP 8"]
    assert (ttft.get_xlabel(), tpot.get_xlabel(), ttft.get_xscale(), tpot.get_xscale()) == ("TTFT [ms]", "TPOT [ms]", "log",
                                                                                           "linear")
    assert ("target 1,000 ms" in texts(ttft), "target 40.0 ms" in texts(tpot)) == (True, True)
    assert [line.get_xdata()[0] for line in tpot.lines if line.get_linestyle() == "--" and line.get_color() == "black"] == [40.0]
    (box,) = figure.legends
    assert legend(box) == ["TP 2, saturated", "TP 4", "TP 8", "p99, compared\nwith the targets"]
    assert box.get_title().get_text() == "without a run:\nTP 1"


def test_cdf_by_hand() -> None:
    times = SIM.degrees[2].detail.requests
    line = curves(plot_latency_cdf(SIM).axes[0])[1]
    ttft_ms = np.sort(1000 * (times.first_token_s - times.arrival_s))
    np.testing.assert_allclose(line.get_xdata(), np.r_[ttft_ms[0], ttft_ms], rtol=1e-12)
    np.testing.assert_allclose(line.get_ydata(), np.arange(301) / 300, rtol=1e-12)


def test_long_runs_are_thinned_and_keep_their_ends() -> None:
    traffic = make_traffic(5000, rate_req_s=20.0)
    degree = make_degree(4, traffic, TARGETS, places=64)
    line = curves(plot_latency_cdf(make_sim(traffic=traffic, degrees=(degree,))).axes[0])[0]
    times = degree.detail.requests
    assert len(line.get_xdata()) <= 2001
    assert line.get_xdata()[-1] == pytest.approx(1000 * (times.first_token_s - times.arrival_s).max())
    assert line.get_ydata()[[0, -1]].tolist() == [0.0, 1.0]


def test_one_request_of_one_token_has_a_ttft_and_no_tpot() -> None:
    ttft, tpot = plot_latency_cdf(ONE).axes
    assert [line.get_ydata().tolist() for line in curves(ttft)] == [[0.0, 1.0]] * 3
    assert texts(tpot) == ["no request with a TPOT"]


def test_load_has_thin_lines_their_mean_and_the_last_arrival() -> None:
    figure = plot_load(SIM, 4)
    running, waiting, cache = figure.axes
    assert legend(running.get_legend()) == ["each replica", "mean", "last arrival"]
    assert waiting.get_legend() is None
    first, second, mean, arrival = running.lines
    both = SIM.degrees[2].detail.series
    np.testing.assert_array_equal(first.get_ydata(), both[0].num_running_seqs)
    np.testing.assert_array_equal(second.get_xdata(), both[1].time_s)
    # Half of what both hold at 30 s.
    held = [one.num_running_seqs[np.flatnonzero(one.time_s <= 30.0)[-1]] for one in both]
    at = np.flatnonzero(mean.get_xdata() <= 30.0)[-1]
    assert mean.get_ydata()[at] == pytest.approx(sum(held) / 2)
    assert arrival.get_xdata()[0] == SIM.traffic.arrival_s[-1]
    assert cache.get_ylim()[1] == 100.0
    assert cache.get_xlabel() == "time from the start [s]"


def test_load_ends_with_the_last_request_of_each_replica() -> None:
    degree = SIM.degrees[2]
    names = [name for name in LoadSeries.__slots__ if name != "replica"]
    cut = tuple(LoadSeries(replica=one.replica, **{name: getattr(one, name)[:-9] for name in names})
                for one in degree.detail.series)
    sim = replace(SIM, degrees=(replace(degree, detail=replace(degree.detail, series=cut)),))
    for number, line in enumerate(plot_load(sim, 4).axes[0].lines[:2]):
        log = degree.detail.requests
        assert line.get_xdata()[-1] == log.finish_s[log.replica == number].max()
        assert (line.get_ydata()[-2] > 0, line.get_ydata()[-1]) == (True, 0.0)


def test_load_of_one_replica_is_one_line_and_the_full_batch_is_marked() -> None:
    sim = replace(SIM, question=replace(SIM.question, max_num_seqs=64))
    running = plot_load(sim, 8).axes[0]
    assert legend(running.get_legend()) == ["last arrival", "max_num_seqs"]
    assert len(running.lines) == 3
    assert plot_load(ONE, 8).axes[0].get_legend() is None


def test_load_says_what_a_degree_is() -> None:
    assert plot_load(SIM, 2).get_suptitle().strip() == "Load over time, TP 2 (4 replicas, saturated)"
    figure = plot_load(SIM, 1)
    assert figure.axes == []
    assert "no run at TP 1: weights need 131 GiB per GPU, 72 GiB are usable" in [text.get_text() for text in figure.texts]
    with pytest.raises(WorkloadError, match="plot: tp must be one of 1, 2, 4, 8, got 3"):
        plot_load(SIM, 3)


def test_degrees_have_bars_reasons_and_the_rate_offered() -> None:
    speed, good = plot_degrees(SIM).axes
    outcomes = [degree.outcome for degree in SIM.degrees[1:]]
    assert [bar.get_height() for bar in speed.patches] == [one.throughput_per_gpu_tok_s for one in outcomes]
    assert [bar.get_height() for bar in good.patches] == [one.goodput_req_s for one in outcomes]
    assert [bar.get_hatch() for bar in speed.patches] == ["///", "", ""]
    assert texts(speed) == ["out: weights", "69.5\nsaturated", "207\nbest", "245"]
    assert texts(good)[2:] == ["2.84\n100 %\nbest", "3.36\n100 %"]
    assert legend(good.get_legend()) == ["offered: 4.2 req/s"]
    ticks = [tick.get_text() for tick in good.get_xticklabels()]
    assert ticks == ["1\n8 replicas", "2\n4 replicas", "4\n2 replicas", "8\n1 replica"]


def test_without_targets_there_is_one_panel() -> None:
    (speed,) = plot_degrees(ONE).axes
    assert speed.get_legend() is None
    assert "0.792\nbest" in texts(speed)


def test_missed_targets_are_hatched() -> None:
    speed, _ = plot_degrees(make_hopeless()).axes
    assert {bar.get_hatch() for bar in speed.patches} == {"///"}
    assert "207\nout: ttft" in texts(speed)


@pytest.mark.parametrize("degrees", [(), (out_degree(1),), (out_degree(1), out_degree(2)),
                                     (make_degree(4, make_traffic(3), TARGETS, unservable=3, meets_targets=False),)])
def test_nothing_to_plot_is_still_a_plot(degrees) -> None:
    sim = make_sim(traffic=make_traffic(3), degrees=degrees, best_tp=None)
    for figure in (plot_latency_cdf(sim), plot_degrees(sim), *(plot_load(sim, degree.tp) for degree in degrees)):
        assert figure_png_bytes(figure).startswith(b"\x89PNG")
        assert figure.legends == []


def test_an_empty_series_is_no_line() -> None:
    degree = SIM.degrees[2]
    quiet = make_series(make_sim(traffic=make_traffic(1)).degrees[2].detail.requests, replica=1)
    assert not quiet.time_s.size
    detail = replace(degree.detail, series=(degree.detail.series[0], quiet))
    sim = replace(SIM, degrees=(replace(degree, detail=detail),))
    assert figure_png_bytes(plot_load(sim, 4)).startswith(b"\x89PNG")


def test_many_degrees_and_long_names() -> None:
    traffic = replace(make_traffic(40), name="a very long name of a trace, " * 6)
    degrees = tuple(make_degree(tp, traffic, TARGETS, num_gpus=64) for tp in (1, 2, 4, 8, 16, 32, 64))
    sim = make_sim(traffic=traffic, degrees=degrees, best_tp=16)
    for figure in (plot_latency_cdf(sim), plot_degrees(sim), plot_load(sim, 1)):
        assert figure_png_bytes(figure).startswith(b"\x89PNG")
        below = figure.texts[-1].get_text()
        assert below.count("\n") >= 2
        assert max(map(len, below.splitlines())) <= 14 * figure.get_figwidth()


def test_dollars_in_a_name_are_no_formula() -> None:
    sim = replace(SIM, question=make_question(model=make_model("a$_^b$")), traffic=replace(SIM.traffic, name="$_^x$"))
    assert figure_png_bytes(plot_latency_cdf(sim))
    assert figure_png_bytes(plot_load(replace(sim, degrees=(replace(out_degree(1), reason_detail="$_^x$"),)), 1))


def test_reports_load_neither_pandas_nor_matplotlib() -> None:
    code = ("import sys, tpplanner.report.simulation_plots, tpplanner.report.simulation_text, tpplanner.report.simulation_json, "
            "tpplanner.report.simulation_logs; print([m for m in ('pandas', 'matplotlib', 'scipy') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
