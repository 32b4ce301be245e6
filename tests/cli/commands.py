"""Command lines that several tests start from."""

DEMO = ["recommend", "--model", "meta-llama/Llama-3.1-70B-Instruct", "--gpus", "8xh100-sxm", "--isl", "1024",
        "--osl", "1024", "--batch-per-gpu", "32"]
SMALL = ["recommend", "--model", "Qwen/Qwen2.5-7B-Instruct", "--gpus", "2xh100-sxm", "--isl", "128", "--osl", "128"]
SIMULATED = ["simulate", "--model", "Qwen/Qwen2.5-7B-Instruct", "--gpus", "4xh100-sxm", "--isl", "128", "--osl", "16",
             "--num-requests", "50"]
TRACED = ["--model", "Qwen/Qwen2.5-7B-Instruct", "--gpus", "4xh100-sxm"]


def changed(base, flag, value):
    """Copy of ``base`` with the value of one flag replaced, or the flag added."""
    if flag in base:
        at = base.index(flag)
        return [*base[: at + 1], value, *base[at + 2:]]
    return [*base, flag, value]


def one_error(result):
    """The one line on stderr of a command that ended with exit 2."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("tpplanner: error: ")
    return err
