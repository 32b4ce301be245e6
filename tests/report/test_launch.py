import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from plan_factory import (
    make_engine,
    make_hardware,
    make_memory,
    make_model,
    make_outcome,
    make_plan,
    make_question,
    make_rec,
    out_plan,
)

from tpplanner.domain.engine import Preemption, Switches
from tpplanner.domain.plan import Recommendation
from tpplanner.domain.workload import Load, LoadMode
from tpplanner.errors import ProfileError
from tpplanner.report.launch import (
    bench_command,
    launch_script,
    remarks,
    serve_command,
    serve_commands,
    shown_lines,
)

OVERLAP = Switches(async_sched=True, early_feedback=True)


def rec_with(**changes: object) -> Recommendation:
    return make_rec(question=make_question(**changes))


def test_vllm_one_line_per_replica() -> None:
    rec = make_rec()
    rest = "--max-num-seqs 256 --max-num-batched-tokens 8192 --gpu-memory-utilization 0.9"
    assert serve_commands(rec, rec.plan(4)) == tuple(
        f"CUDA_VISIBLE_DEVICES={gpus} vllm serve meta-llama/Llama-3.1-70B-Instruct "
        f"--tensor-parallel-size 4 {rest} --port {port}"
        for gpus, port in (("0,1,2,3", 8000), ("4,5,6,7", 8001))
    )


def test_vllm_with_fp8_and_async_scheduling() -> None:
    rec = rec_with(model=make_model(weights="fp8", kv="fp8"), engine=make_engine("albireo", switches=OVERLAP))
    assert serve_command(rec, make_plan(8, 540.0)) == (
        "CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 vllm serve meta-llama/Llama-3.1-70B-Instruct "
        "--tensor-parallel-size 8 --max-num-seqs 256 --max-num-batched-tokens 8192 "
        "--gpu-memory-utilization 0.9 "
        "--kv-cache-dtype fp8 --quantization fp8 --async-scheduling --port 8000"
    )


def test_a_checkpoint_called_fp8_brings_its_own_quantisation() -> None:
    rec = rec_with(model=make_model("RedHatAI/Llama-3.1-70B-Instruct-FP8", weights="fp8"))
    assert "--quantization" not in serve_command(rec, make_plan(8, 540.0))


def test_sglang() -> None:
    rec = rec_with(engine=make_engine("sglang", launcher="sglang", switches=OVERLAP))
    assert serve_command(rec, make_plan(2, 300.0), 1) == (
        "CUDA_VISIBLE_DEVICES=2,3 python -m sglang.launch_server "
        "--model-path meta-llama/Llama-3.1-70B-Instruct "
        "--tp 2 --max-running-requests 256 --chunked-prefill-size 8192 --mem-fraction-static 0.9 --port 8001"
    )
    rec = rec_with(engine=make_engine("sglang", launcher="sglang"), model=make_model(kv="fp8"))
    line = serve_command(rec, make_plan(2, 300.0))
    assert "--kv-cache-dtype fp8_e4m3" in line
    assert "--disable-overlap-schedule" in line


def test_trtllm() -> None:
    rec = rec_with(engine=make_engine("trtllm", launcher="trtllm"), model=make_model(kv="fp8"))
    assert serve_command(rec, make_plan(2, 300.0)) == (
        "CUDA_VISIBLE_DEVICES=0,1 trtllm-serve meta-llama/Llama-3.1-70B-Instruct --tp_size 2 "
        "--max_batch_size 256 --max_num_tokens 8192 --kv_cache_free_gpu_memory_fraction 0.9 --port 8000"
    )
    file = "goes into the file of --extra_llm_api_options"
    assert remarks(rec) == (f"kv_cache_config.dtype: fp8 {file}", f"disable_overlap_scheduler: true {file}")


@pytest.mark.parametrize(
    ("capacity_tok", "limit"),
    [
        (262_144, None),  # half of it holds the model's 131,072
        (100_000, 49_152),  # 50,000 rounded down to a multiple of 1,024
        (3_000, 2_048),  # never less than the mean request
    ],
)
def test_context_is_limited_where_the_cache_might_not_hold_it(capacity_tok: int, limit: int | None) -> None:
    line = serve_command(make_rec(), make_plan(2, 300.0, memory=make_memory(capacity_tok)))
    assert ("--max-model-len" in line) is (limit is not None)
    assert limit is None or f"--max-model-len {limit} " in line


def test_replicas_stay_within_a_node_and_name_it() -> None:
    # 16 GPUs in nodes of 8 at TP 6: one replica a node, two GPUs of each idle
    lines = serve_commands(make_rec(), make_plan(6, 300.0, 16))
    assert [line.split()[0] for line in lines] == ["CUDA_VISIBLE_DEVICES=0,1,2,3,4,5"] * 2
    assert [line.rsplit("# ", 1)[1] for line in lines] == ["node 0", "node 1"]


def test_ports_start_again_on_each_node() -> None:
    # 20 GPUs in nodes of 8 at TP 4: two replicas on each of two nodes, one on the half node
    lines = serve_commands(make_rec(), make_plan(4, 300.0, 20))
    assert [re.search(r"DEVICES=(\S+) .*--port (\d+)  # (.*)", line).groups() for line in lines] == [
        ("0,1,2,3", "8000", "node 0"), ("4,5,6,7", "8001", "node 0"), ("0,1,2,3", "8000", "node 1"),
        ("4,5,6,7", "8001", "node 1"), ("0,1,2,3", "8000", "node 2"),
    ]
    rec = rec_with(hardware=make_hardware(gpus_per_node=4))
    assert all("--port 8000 " in line for line in serve_commands(rec, make_plan(8, 300.0, 16)))


@pytest.mark.parametrize(
    ("num_replicas", "num_shown", "last"),
    [
        (8, 8, None),
        (9, 8, "... and 1 more replica alike (launch.sh of --save-dir has them all)"),
        (5000, 8, "... and 4,992 more replicas alike (launch.sh of --save-dir has the first 4,096)"),
    ],
)
def test_the_terminal_shows_a_few_replicas(num_replicas: int, num_shown: int, last: str | None) -> None:
    lines = shown_lines(make_rec(), make_plan(1, 300.0, num_replicas))
    assert sum("vllm serve" in line for line in lines) == num_shown
    assert (lines[-1] if last else None) == last
    assert len(lines) == num_shown + (last is not None)


def test_the_script_holds_all_up_to_a_limit() -> None:
    rec = rec_with(model=make_model(weights="int4"))
    script = launch_script(rec, make_plan(1, 300.0, 9)).splitlines()
    assert script[0] == "#!/bin/sh"
    assert "# needs a checkpoint in int4" in script
    assert sum("vllm serve" in line for line in script) == 9
    assert script[-1].startswith("vllm bench serve")
    assert not any(line.startswith("...") for line in script)
    script = launch_script(rec, make_plan(1, 300.0, 5000)).splitlines()
    assert sum("vllm serve" in line for line in script) == 4096
    assert "# ... and 904 more replicas alike, left out" in script


@pytest.mark.parametrize(
    ("name", "weights", "launcher", "said"),
    [
        ("Qwen/Qwen3-8B", "int4", "vllm", "needs a checkpoint in int4"),
        ("Qwen/Qwen3-8B", "nvfp4", "sglang", "needs a checkpoint in nvfp4"),
        ("Qwen/Qwen3-8B", "bf16", "vllm", None),
        ("Qwen/Qwen3-8B-AWQ", "int4", "vllm", None),
        ("Qwen/Qwen3-8B-AWQ", "int8", "vllm", "needs a checkpoint in int8"),
        ("Qwen/Qwen3-8B-AWQ", "bf16", "vllm", "needs a checkpoint in bf16"),
        ("RedHatAI/Llama-3.3-70B-Instruct-quantized.w8a8", "int8", "vllm", None),
        ("nvidia/Llama-3.3-70B-Instruct-FP4", "nvfp4", "trtllm", None),
        ("openai/gpt-oss-20b", "mxfp4", "vllm", None),
        ("Qwen/Qwen3-8B", "fp8", "vllm", None),  # quantised on loading
        ("Qwen/Qwen3-8B", "fp8", "trtllm", "needs a checkpoint in fp8"),
        ("deepseek-ai/DeepSeek-V3", "fp8", "trtllm", None),
    ],
)
def test_weights_that_the_checkpoint_must_bring(name: str, weights: str, launcher: str, said: str | None) -> None:
    engine = make_engine(launcher=launcher, switches=Switches(async_sched=True))
    rec = rec_with(model=make_model(name, weights=weights), engine=engine)
    assert remarks(rec) == (() if said is None else (said,))


@pytest.mark.parametrize("launcher", ["vllm", "sglang", "trtllm"])
def test_a_local_model_is_served_from_its_directory(tmp_path: Path, launcher: str) -> None:
    folder = tmp_path / "my llama"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    model = replace(make_model("my llama"), place=str(folder / "config.json"))
    rec = rec_with(model=model, engine=make_engine(launcher=launcher))
    for line in (serve_command(rec, make_plan(2, 1.0)), bench_command(rec, make_plan(2, 1.0))):
        assert str(folder) in shlex.split(line)
        assert "my llama" not in shlex.split(line)


def test_a_packaged_model_and_one_of_the_hub_keep_their_id(tmp_path: Path) -> None:
    cached = tmp_path / "config.json"
    cached.write_text("{}")
    model = replace(make_model("Qwen/Qwen3-8B"), place=str(cached))
    assert "Qwen/Qwen3-8B" in serve_command(rec_with(model=model), make_plan(2, 1.0)).split()
    alone = tmp_path / "tiny.json"
    alone.write_text("{}")
    rec = rec_with(model=replace(make_model("tiny"), place=str(alone)))
    assert "tiny" in serve_command(rec, make_plan(2, 1.0)).split()
    assert remarks(rec) == (f"tiny stands for the directory of the model that {alone} describes",)


@pytest.mark.parametrize(
    ("switches", "launcher", "said"),
    [
        (Switches(async_sched=True), "vllm", None),
        (Switches(async_sched=True, early_feedback=True), "vllm", "need the Albireo plugin (arXiv 2606.01927)"),
        (Switches(seq_parallel_sampling=True), "vllm", "need the Albireo plugin (arXiv 2606.01927)"),
        (Switches(async_sched=True, early_feedback=True), "trtllm", None),
        (Switches(async_sched=True, seq_parallel_sampling=True), "trtllm", "is not part of TensorRT-LLM"),
    ],
)
def test_mechanisms_that_the_engine_does_not_have(switches: Switches, launcher: str, said: str | None) -> None:
    told = remarks(rec_with(engine=make_engine(launcher=launcher, switches=switches)))
    assert len(told) == (said is not None)
    assert said is None or said in told[0]


def test_a_cache_format_and_a_preemption_without_a_flag_are_remarked() -> None:
    rec = rec_with(model=make_model(kv="int8"), engine=replace(make_engine(), preemption=Preemption.SWAP))
    assert "--kv-cache-dtype" not in serve_command(rec, make_plan(2, 1.0))
    assert remarks(rec) == (
        "no flag of vLLM stores the KV cache in int8: these commands keep the model's own format",
        "vLLM preempts by recompute, the plan by swap",
    )


def test_a_replica_across_nodes_sets_no_devices_and_says_so() -> None:
    rec = rec_with(hardware=make_hardware(gpus_per_node=4))
    line = serve_commands(rec, make_plan(8, 300.0, 16))[1]
    assert line.startswith("vllm serve")
    assert "# spans nodes 2 to 3" in line


def test_hostile_names_are_quoted() -> None:
    name = "./my model; rm -rf $HOME"
    rec = rec_with(model=make_model(name))
    for line in (serve_command(rec, make_plan(2, 1.0)), bench_command(rec, make_plan(2, 1.0))):
        assert name in shlex.split(line)


def test_unknown_launcher() -> None:
    with pytest.raises(ProfileError, match="launcher must be vllm, sglang or trtllm, got 'tgi'"):
        serve_command(rec_with(engine=make_engine("x", launcher="tgi")), make_plan(2, 1.0))


COMMON = (
    "vllm bench serve --model meta-llama/Llama-3.1-70B-Instruct --dataset-name random "
    "--random-input-len 1024 --random-output-len 1024 "
)


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (Load(mode=LoadMode.BATCH_PER_GPU, value=32), "--max-concurrency 128 --num-prompts 6400"),
        (Load(mode=LoadMode.SLO_CAPACITY), "--max-concurrency 128 --num-prompts 6400"),
        (Load(mode=LoadMode.REQUEST_RATE, value=5), "--request-rate 2.5 --num-prompts 6400"),
        (Load(mode=LoadMode.OFFLINE), "--request-rate inf --num-prompts 6400"),
    ],
)
def test_bench_puts_one_replica_under_its_share(load: Load, said: str) -> None:
    rec = rec_with(load=load)
    assert bench_command(rec, make_plan(4, 482.0)) == f"{COMMON}{said} --ignore-eos --port 8000"


def test_bench_rounds_up_and_never_asks_for_none() -> None:
    rec = rec_with(load=Load(mode=LoadMode.CONCURRENCY, value=3))
    half = make_plan(1, 10.0, outcome=make_outcome(1, 10.0, concurrency_per_replica=0.375))
    assert "--max-concurrency 1 --num-prompts 50 " in bench_command(rec, half)
    assert "--max-concurrency 1 --num-prompts 50 " in bench_command(rec, out_plan(1))
