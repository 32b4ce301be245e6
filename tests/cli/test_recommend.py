"""The command line as a user meets it: exit codes, one line per error, nothing written on bad input."""

import json
import subprocess
import sys

import pytest
from commands import DEMO, SMALL, changed

import tpplanner
from tpplanner.domain.engine import Preemption, SamplingPolicy
from tpplanner.errors import WorkloadError
from tpplanner.io.model_registry import MODELS_DIR
from tpplanner.report.json_export import parse_plan_json


def test_demo_prints_answer_table_and_launch_lines(run):
    code, out, err = run(*DEMO)
    assert code == 0
    assert out.startswith("Serve meta-llama/Llama-3.1-70B-Instruct at TP ")
    assert "TP 1 is out (weights)" in out
    assert "vllm serve meta-llama/Llama-3.1-70B-Instruct --tensor-parallel-size" in out
    assert "vllm bench serve" in out
    # Every default that filters results is printed, on stderr.
    for default in ("max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization", "rule of thumb"):
        assert default in err


def test_json_goes_alone_to_stdout_and_round_trips(run):
    code, out, _ = run(*DEMO, "--format", "json")
    assert code == 0
    plan = json.loads(out)
    assert plan["schema_version"] == 2
    assert [p["tp"] for p in plan["plans"]] == [1, 2, 4, 8]
    assert plan["plans"][0]["feasible"] is False
    assert plan["plans"][0]["reason"] == "weights"
    best = next(p for p in plan["plans"] if p["tp"] == plan["best"]["tp"])
    step = best["step"]
    total = step["scalable_s"] + step["comm_s"] + step["sampling_s"] + step["host_s"] - step["hidden_s"]
    assert total == pytest.approx(step["total_s"], rel=1e-12)
    assert parse_plan_json(out).best.tp == plan["best"]["tp"]


def test_csv_has_one_row_per_degree(run):
    code, out, _ = run(*DEMO, "--format", "csv")
    assert code == 0
    assert len(out.splitlines()) == 1 + 4


def test_no_feasible_plan_exits_1_with_the_binding_constraint(run):
    code, out, _ = run(*changed(DEMO, "--gpus", "1xh100-sxm"))
    assert code == 1
    assert out.startswith("No feasible plan")
    assert "weights" in out


def test_fewest_gpus(run):
    argv = ["recommend", "--model", "Qwen/Qwen2.5-7B-Instruct", "--gpus", "h100-sxm", "--isl", "256", "--osl", "256",
            "--request-rate", "200", "--tpot", "40", "--format", "json"]
    code, out, _ = run(*argv)
    needed = json.loads(out)["question"]["num_gpus"]
    assert code == 0
    assert needed > 1
    with_number = changed(argv, "--gpus", f"{needed}xh100-sxm")
    assert run(*with_number)[0] == 0
    assert run(*changed(argv, "--gpus", f"{needed - 1}xh100-sxm"))[0] == 1


def test_gpus_and_system_as_two_flags(run):
    both = run(*changed(SMALL, "--gpus", "2"), "--system", "h100_sxm", "--format", "json")
    one = run(*SMALL, "--format", "json")
    assert both == one


def test_compare_engines_shows_the_shift(run):
    code, out, _ = run("recommend", "--model", "Qwen/Qwen2.5-32B-Instruct", "--dtype", "fp16", "--gpus", "8xh100-sxm",
                       "--isl", "80", "--osl", "1024", "--concurrency", "256", "--sampling", "full",
                       "--compare-engines", "vllm-0.11,albireo")
    assert code == 0
    assert "from 2 (vllm-0.11) to 4 (albireo)" in " ".join(out.split())


def test_compare_engines_tells_its_settings_on_stderr(run):
    code, out, err = run(*SMALL, "--compare-engines", "vllm,trtllm")
    assert code == 0
    assert "settings" not in out
    settings = [line for line in err.splitlines() if line.startswith("settings: ")]
    assert len(settings) == 2
    # Each engine with its own limits, one sampling policy for all.
    assert "max_num_seqs 1024" in settings[0]
    assert "preemption by recompute" in settings[0]
    assert "max_num_seqs 2048" in settings[1]
    assert "preemption by reserve" in settings[1]
    assert sum(line.startswith("load: ") for line in err.splitlines()) == 1
    assert sum(line.startswith("evidence: h100-sxm: ") for line in err.splitlines()) == 1


@pytest.mark.parametrize("flag", ["--engine", "--backend"])
def test_compare_engines_refuses_an_engine_beside_it(run, flag):
    for name in ("vllm-0.11", "albireo"):  # the default, given explicitly, too
        code, out, err = run(*SMALL, flag, name, "--compare-engines", "vllm-0.11,albireo")
        assert (code, out) == (2, "")
        assert "--engine" in err
        assert len(err.splitlines()) == 1


SIZES = {"model": "Qwen/Qwen3-8B", "isl": 256, "osl": 256}


def test_compared_engines_share_sampling_and_gpus_and_keep_their_limits():
    first, second = tpplanner.compare_engines(["vllm-0.11", "trtllm"], **SIZES, gpus="h100-sxm", request_rate=60.0)
    asked, other = first.recommendation.question, second.recommendation.question
    assert asked.sampling is other.sampling is SamplingPolicy.FULL
    assert asked.num_gpus == other.num_gpus > 1
    assert (asked.max_num_seqs, other.max_num_seqs) == (1024, 2048)
    given = tpplanner.compare_engines(["trtllm", "vllm-0.11"], **SIZES, gpus="2xh100-sxm", offline=True,
                                      max_num_seqs=64, gpu_memory_utilization=0.8, preemption="swap", sampling="top-p")
    for answer in given:
        asked = answer.recommendation.question
        assert (asked.max_num_seqs, asked.gpu_memory_utilization) == (64, 0.8)
        assert asked.engine.preemption is Preemption.SWAP
        assert asked.sampling is SamplingPolicy.TOP_P


def test_comparison_of_one_engine_and_of_none():
    (answer,) = tpplanner.compare_engines(["albireo"], **SIZES, gpus="1xh100-sxm")
    assert answer.recommendation.question.engine.name == "albireo"
    for engines in ([], (), "albireo"):
        with pytest.raises(WorkloadError, match="engines must be a list of at least one name"):
            tpplanner.compare_engines(engines, **SIZES, gpus="1xh100-sxm")


@pytest.mark.parametrize("tp", [0, -1, 1.5, "2", True])
def test_a_degree_that_is_none(tp):
    answer = tpplanner.recommend(**SIZES, gpus="1xh100-sxm", flip_points=False)
    for call in (answer.plan, answer.explain):
        with pytest.raises(WorkloadError, match="tp must"):
            call(tp)
    assert answer.plan(2).tp == 2


def test_library_exports():
    assert issubclass(WorkloadError, tpplanner.TpplannerError)
    assert tpplanner.load_model("Qwen/Qwen3-8B").name == "Qwen/Qwen3-8B"
    code = "import sys, tpplanner; tpplanner.TpplannerError; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="nothing"):
        tpplanner.nothing  # noqa: B018


def test_switches(run):
    code, out, _ = run(*DEMO, "--engine", "albireo", "--set", "async_sched=off", "--format", "json")
    assert code == 0
    assert json.loads(out)["question"]["switches"] == {
        "async_sched": False, "early_feedback": False, "seq_parallel_sampling": True}


def test_context_limit_is_a_warning(run):
    code, _, err = run(*changed(SMALL, "--isl", "200000"))
    assert code in (0, 1)
    assert "exceed the context limit" in err


def test_save_dir_is_whole_or_not_at_all(run, tmp_path):
    folder = tmp_path / "out"
    assert run(*SMALL, "--save-dir", str(folder))[0] == 0
    names = {"plan.json", "plan.csv", "launch.sh", "throughput.png", "step_split.png", "pareto.png"}
    assert {p.name for p in folder.iterdir()} == names
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    code, out, err = run(*SMALL, "--save-dir", str(folder))
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert run(*SMALL, "--save-dir", str(folder), "--overwrite")[0] == 0


@pytest.mark.parametrize("folder", ["", " "])
def test_save_dir_without_a_name(run, folder):
    code, out, err = run(*SMALL, "--save-dir", folder, "--overwrite")
    assert (code, out) == (2, "")
    assert err.startswith("tpplanner: error: --save-dir: ")
    assert len(err.splitlines()) == 1


def test_launch_lines_of_a_local_model_name_its_directory(run, tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text((MODELS_DIR / "Qwen--Qwen3-8B.json").read_text())
    code, out, _ = run(*changed(SMALL, "--model", str(folder)), "--dtype", "int4", "--engine", "albireo")
    assert code == 0
    assert f"vllm serve {folder} " in out
    assert f"vllm bench serve --model {folder} " in out
    assert "# needs a checkpoint in int4" in out
    assert "# early feedback and sequence-parallel sampling need the Albireo plugin" in out


def test_many_replicas_are_shown_in_part_and_saved_in_full(run, tmp_path):
    folder = tmp_path / "out"
    code, out, _ = run(*changed(SMALL, "--gpus", "24xh100-sxm"), "--max-tp", "1", "--save-dir", str(folder))
    assert code == 0
    assert out.count("vllm serve") == 8
    assert "... and 16 more replicas alike (launch.sh of --save-dir has them all)" in out
    assert (folder / "launch.sh").read_text().count("vllm serve") == 24


@pytest.mark.parametrize(("argv", "named"), [((), "recommend"), (("profiles",), "check")])
def test_without_a_command_there_is_help(run, argv, named):
    code, out, err = run(*argv)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: tpplanner")
    assert named in out


def test_save_dir_below_a_file(run, tmp_path):
    (tmp_path / "file").write_text("here")
    code, _, err = run(*SMALL, "--save-dir", str(tmp_path / "file" / "out"))
    assert code == 2
    assert len(err.splitlines()) == 1


def test_explain_terms_sum_to_the_step(run):
    code, out, _ = run("explain", *DEMO[1:])
    assert code == 0
    for term in ("linear", "attention", "communication", "sampling", "hidden", "KV capacity", "power"):
        assert term in out


def test_explain_of_a_degree_that_does_not_fit(run):
    code, out, err = run("explain", *DEMO[1:], "--tp", "1")
    assert (code, out) == (1, "")
    assert "weights" in err


def test_models_and_profiles(run):
    assert "meta-llama/Llama-3.1-70B-Instruct" in run("models")[1]
    assert "70,553,706,496" in run("models", "meta-llama/Llama-3.1-70B-Instruct")[1]
    assert "h100-sxm" in run("profiles", "list")[1]
    assert "hbm_bytes_s" in run("profiles", "show", "h100-sxm")[1]
    assert run("profiles", "check", "h100-sxm")[0] == 0
    assert run("profiles", "check", "nothing")[0] == 2


@pytest.mark.parametrize("module", ["pandas", "matplotlib", "scipy", "torch"])
def test_recommendation_imports_nothing_heavy(module):
    code = ("import sys, io, contextlib\nfrom tpplanner.cli.main import main\n"
            "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
            f"    main({DEMO!r})\n"
            f"sys.exit({module!r} in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
