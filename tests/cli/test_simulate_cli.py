"""``tpplanner simulate`` and ``recommend --simulate`` as a user meets them."""

import csv
import io
import json
import re
import subprocess
import sys

import pytest
from commands import SIMULATED, TRACED, changed, one_error
from commands import SMALL as RECOMMEND

import tpplanner
from tpplanner.cli.simulate import SIMULATION_NAMES, _Bars, simulate
from tpplanner.report.simulation_json import parse_simulation_json

AT_RATE = [*SIMULATED, "--request-rate", "20"]

FLAGS = sorted(param.opts[0] for param in simulate.params if param.name in SIMULATION_NAMES)
"""Flags of requests and run, which ``recommend`` takes with ``--simulate`` alone."""


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("arrival_s,isl_tok,osl_tok\n" + "".join(f"{i * 0.1:.1f},{100 + i},{10 + i % 7}\n" for i in range(60)))
    return path


# Answers


def test_the_answer_is_on_stdout_and_what_it_rests_on_on_stderr(run):
    code, out, err = run(*AT_RATE, "--ttft", "500", "--slo-percentile", "99")
    assert code == 0
    assert out.startswith("Serve Qwen/Qwen2.5-7B-Instruct at TP ")
    assert "Launch:\n  CUDA_VISIBLE_DEVICES=" in out
    assert len(out.splitlines()[0].split("; ")) == 2
    for start in ("traffic: 128 in / 16 out: 50 requests", "load: 20 requests per second", "simulation: router round-robin",
                  "settings: ", "targets: p99 TTFT <= 500 ms", "ranked by: ", "uncertainty: ", "evidence: "):
        assert any(line.startswith(start) for line in err.splitlines()), start


def test_json_stands_alone(run):
    code, out, err = run(*AT_RATE, "--format", "json")
    assert (code, err) == (0, "")
    document = parse_simulation_json(out)
    assert [degree.tp for degree in document.degrees] == [1, 2, 4]
    assert json.loads(out)["best"]["tp"] == document.best.tp


def test_csv_has_one_row_per_degree(run):
    code, out, err = run(*AT_RATE, "--format", "csv")
    assert (code, err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["tp"] for row in rows] == ["1", "2", "4"]
    assert sum(row["best"] == "true" for row in rows) == 1
    assert all(float(row["ttft_p99_s"]) > 0 for row in rows)


@pytest.mark.parametrize(("tp", "degrees"), [("2,4", [2, 4]), (" 4 , 2 ", [2, 4]), ("all", [1, 2, 4]), ("4", [4])])
def test_degrees(run, tp, degrees):
    code, out, _ = run(*AT_RATE, "--tp", tp, "--format", "json")
    assert code == 0
    assert [degree["tp"] for degree in json.loads(out)["degrees"]] == degrees


def test_one_degree_is_not_called_the_best_of_several(run):
    code, out, _ = run(*AT_RATE, "--tp", "2")
    assert code == 0
    assert "the only degree simulated" in out.splitlines()[0]


def test_a_seed_is_a_run(run):
    lengths = changed(changed(AT_RATE, "--isl", "lognormal:128:1"), "--osl", "gamma:16:1")
    one, same, other = (run(*lengths, "--seed", seed, "--format", "csv")[1] for seed in ("1", "1", "2"))
    assert one == same != other


def test_a_closed_loop_has_no_router(run):
    _, _, err = run(*SIMULATED, "--concurrency", "8", "--ramp", "0")
    assert "simulation: each replica with clients of its own, prefix caching off" in err
    assert "router" not in err


@pytest.mark.parametrize(("flags", "told"), [
    (["--gpus", "1xh100-sxm", "--model", "meta-llama/Llama-3.1-70B-Instruct"], "fails on weights at TP 1"),
    (["--tp", "3"], "fails on heads at TP 3"),
    (["--request-rate", "5000", "--max-num-seqs", "4", "--osl", "200", "--num-requests", "300"], "saturated: requests arrive"),
    (["--request-rate", "5", "--ttft", "0.01"], "fails on ttft"),
    (["--ttft", "0.01"], "fails on ttft"),
    (["--isl", "500000", "--num-gpu-blocks", "10", "--tp", "1"], "fails on kv_cache at TP 1"),
], ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_no_degree_is_exit_1_and_the_reason_in_the_first_line(run, flags, told):
    argv = SIMULATED
    for flag, value in zip(flags[::2], flags[1::2], strict=True):
        argv = changed(argv, flag, value)
    code, out, err = run(*argv)
    assert code == 1
    assert out.startswith("No feasible plan: ")
    assert told in out.splitlines()[0]
    assert "Launch:" not in out
    assert "error" not in err
    if "--ttft" in flags and "--request-rate" not in flags:
        assert "even at " in out.splitlines()[0]


@pytest.mark.parametrize(("flags", "traffic"), [
    (["--tp", "3"], "all at once"), (["--tp", "3", "--concurrency", "4"], "taken in order as the load asks for them"),
    (["--tp", "3", "--request-rate", "5"], " per second")])
def test_the_traffic_is_told_where_no_degree_runs(run, flags, traffic):
    _, _, err = run(*SIMULATED, *flags)
    [line] = [line for line in err.splitlines() if line.startswith("traffic: ")]
    assert line.endswith(traffic)


# Traces


def test_a_trace_is_replayed(run, trace):
    code, _, err = run("simulate", *TRACED, "--trace", str(trace), "--head", "40", "--scale-rate", "2")
    assert code == 0
    assert "traffic: mine.csv, first 40: 40 requests" in err
    assert "20 per second" in err


def test_recommend_decides_by_simulation_of_a_trace(run, trace, tmp_path):
    folder = tmp_path / "out"
    code, out, err = run("recommend", *TRACED, "--simulate", "--trace", str(trace), "--save-dir", str(folder))
    assert code == 0
    assert out.startswith("Serve Qwen/Qwen2.5-7B-Instruct at TP ")
    assert "Simulated, latencies in ms" in out
    assert re.search(r"^closed form: TP \d, for requests of the mean lengths$", err, flags=re.MULTILINE)
    assert {"simulation.json", "requests-tp1.csv", "requests-tp4.csv"} <= {path.name for path in folder.iterdir()}
    same = run("simulate", *TRACED, "--trace", str(trace), "--format", "json")[1]
    assert json.loads((folder / "simulation.json").read_text())["best"] == json.loads(same)["best"]


def test_recommend_by_simulation_takes_lengths_and_formats(run):
    argv = ["recommend", *TRACED, "--simulate", "--isl", "lognormal:128:1", "--osl", "16", "--request-rate", "20",
            "--num-requests", "50", "--format", "csv"]
    code, out, err = run(*argv)
    assert code == 0
    assert len(out.splitlines()) == 1 + 3
    assert err.startswith("closed form: ")


# recommend without --simulate

VALUES = {"--prefix-caching": [], "--step-by-step": [], "--trace": ["t.csv"], "--workload": ["albireo"], "--arrivals": ["gamma"],
          "--router": ["round-robin"], "--trace-format": ["azure"], "--tokenizer": ["t.json"]}


@pytest.mark.parametrize("flag", FLAGS)
def test_recommend_refuses_flags_of_the_simulation(run, flag):
    err = one_error(run(*RECOMMEND, flag, *VALUES.get(flag, ["1"])))
    assert f"{flag}: with --simulate only" in err


def test_recommend_names_all_flags_that_need_the_simulation(run):
    err = one_error(run(*RECOMMEND, "--seed", "0", "--head", "5", "--workload", "albireo"))
    for flag in ("--seed", "--head", "--workload"):
        assert flag in err


def test_recommend_help_lists_no_flag_of_the_simulation_and_simulate_help_all(run):
    listed = {name: re.findall(r"^  (--[a-z-]+)", run(name, "--help")[1], flags=re.MULTILINE)
              for name in ("recommend", "simulate")}
    assert len(FLAGS) == len(SIMULATION_NAMES) == 20
    assert set(FLAGS) <= set(listed["simulate"])
    assert not set(FLAGS) & set(listed["recommend"])
    assert "--simulate" in listed["recommend"]


def test_compare_engines_is_no_simulation(run):
    err = one_error(run(*RECOMMEND, "--simulate", "--compare-engines", "vllm,trtllm"))
    assert "without --simulate" in err


# Beside the answer


def test_the_progress_bar_is_one_of_the_run_at_hand():
    with _Bars(False) as bars:
        seen = []
        for tp, done in ((1, 1000), (1, 2000), (1, 1000), (2, 1000), (2, 2000)):
            bars.tell(tp, done, 3000)
            [task] = bars._bars.tasks
            seen.append((task.description, task.completed, task.total, task.id))
    # The second run of a search, and the next degree, begin bars of their own.
    assert seen == [("TP 1", 1000, 3000, 0), ("TP 1", 2000, 3000, 0), ("TP 1", 1000, 3000, 1), ("TP 2", 1000, 3000, 2),
                    ("TP 2", 2000, 3000, 2)]


def imported_by(argv) -> set[str]:
    code = ("import sys, io, contextlib\nfrom tpplanner.cli.main import main\n"
            "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
            "    main(sys.argv[1:])\n"
            "print('\\n'.join(sys.modules))")
    ended = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    return set(ended.stdout.split())


@pytest.mark.parametrize("argv", [["recommend", "--help"], RECOMMEND, [*RECOMMEND, "--format", "json"]],
                         ids=["help", "table", "json"])
def test_the_closed_form_imports_nothing_of_the_simulator(argv):
    imported = imported_by(argv)
    heavy = ("tpplanner.sim", "tpplanner.serving", "tpplanner.api.simulation", "tpplanner.api.simulated", "tpplanner.api.traffic",
             "tpplanner.api.sweeping", "tpplanner.report.simulation", "tpplanner.io.traces", "rich.progress", "pandas", "scipy",
             "matplotlib", "pyarrow", "ray.", "tokenizers")
    assert [name for name in imported if name.startswith(heavy)] == []
    assert "tpplanner.cli.recommend" in imported


def test_a_simulation_without_files_draws_no_plots():
    imported = imported_by(AT_RATE)
    assert "tpplanner.sim.run" in imported
    assert [name for name in imported if name.startswith(("pandas", "matplotlib", "pyarrow", "scipy"))] == []


def test_the_library_has_the_same_answer(run):
    found = tpplanner.simulate(model="Qwen/Qwen2.5-7B-Instruct", gpus="4xh100-sxm", isl=128, osl=16, num_requests=50,
                               request_rate=20)
    assert run(*AT_RATE, "--format", "json")[1] == found.to_json() + "\n"
