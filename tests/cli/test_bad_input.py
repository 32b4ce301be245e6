"""Bad input is one line on stderr, exit 2, and nothing on stdout."""

import pytest
from commands import SMALL, changed

BAD = [
    (["--gpus", "0xh100-sxm"], "0xh100-sxm"),
    (["--gpus", "8xh1000"], "h100"),
    (["--gpus", "-1xh100-sxm"], "-1xh100-sxm"),
    (["--gpus", "1.5xh100-sxm"], "1.5xh100-sxm"),
    (["--gpus", "99999999xh100-sxm"], "1000000"),
    (["--model", "meta-llama/Llama-9-70B"], "Llama"),
    (["--model", "/no/such/config.json"], "/no/such/config.json"),
    (["--engine", "vlm"], "vllm"),
    (["--isl", "0"], "isl_tok"),
    (["--isl", "-5"], "isl_tok"),
    (["--osl", "0"], "osl_tok"),
    (["--osl", "1e3"], "1e3"),
    (["--isl", "999999999999999"], "isl_tok"),
    (["--concurrency", "0"], "concurrency"),
    (["--concurrency", "nan"], "concurrency"),
    (["--request-rate", "-1"], "request_rate"),
    (["--request-rate", "inf"], "request_rate"),
    (["--tpot", "0"], "tpot"),
    (["--ttft", "-3"], "ttft"),
    (["--dtype", "fp7"], "fp7"),
    (["--kv-cache-dtype", "int3"], "int3"),
    (["--gpu-memory-utilization", "1.5"], "gpu_memory_utilization"),
    (["--gpu-memory-utilization", "0"], "gpu_memory_utilization"),
    (["--max-num-seqs", "0"], "max_num_seqs"),
    (["--max-num-batched-tokens", "16"], "max_num_batched_tokens"),
    (["--max-tp", "0"], "max_tp"),
    (["--sampling", "beam"], "beam"),
    (["--preemption", "kill"], "kill"),
    (["--set", "async_sched"], "async_sched"),
    (["--set", "overlap=on"], "overlap"),
    (["--format", "yaml"], "yaml"),
    (["--price", "-1"], "price_usd_h"),
    (["--no-such-flag", "1"], "--no-such-flag"),
    (["--compare-engines", "albireo"], "albireo"),
    (["--compare-engines", "albireo,nope"], "nope"),
    (["--concurrency", "1", "--request-rate", "1"], "concurrency"),
    (["--gpus", "h100-sxm"], "--gpus"),
]


@pytest.mark.parametrize(("flags", "named"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_bad_input_is_one_line_and_exit_2(run, flags, named):
    argv = SMALL
    for flag, value in zip(flags[::2], flags[1::2], strict=True):
        argv = changed(argv, flag, value)
    code, out, err = run(*argv)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("tpplanner: error: ")
    assert named in err


def test_missing_required_flag(run):
    code, out, err = run("recommend", "--gpus", "8xh100-sxm")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
