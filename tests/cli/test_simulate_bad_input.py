"""Bad input of ``simulate`` is one line on stderr, exit 2, before anything is simulated; nothing on stdout, no file."""

import pytest
from commands import SIMULATED, TRACED, changed, one_error

AT_RATE = [*SIMULATED, "--request-rate", "20"]


BAD = [
    *[(["--tp", tp], "--tp: tp must be all, or degrees such as 2,4,8")
      for tp in ("", "x", "2,", ",", "1.5", "-1", "2;4", "²", "2,²", "9" * 5000, "all,2")],
    (["--tp", "0"], "--tp: tp must be between 1"),
    *[(["--slo-percentile", p, "--ttft", "500"], "--slo-percentile: slo_percentile must lie between 0 and 100")
      for p in ("0", "100", "-1", "nan", "inf")],
    (["--slo-percentile", "99"], "slo_quantile must be given with targets"),
    (["--isl", "0"], "--isl: tok must be"), (["--isl", "9" * 5000], "--isl: length must be"),
    (["--osl", "gamma:5"], "--osl: length must be"),
    (["--isl", "1e3"], "--isl: length must be"), (["--osl", "histogram:/no/such"], "/no/such: "),
    (["--num-requests", "0"], "num_requests must be"),
    (["--num-requests", "1000000000000"], "num_requests must be at most 1e+08"),
    (["--num-requests", "1.5"], "1.5"), (["--seed", "-1"], "seed must be"), (["--seed", "x"], "x"),
    (["--arrivals", "uniform"], "--arrivals: arrivals must be among"), (["--burstiness", "-1"], "--burstiness"),
    (["--burstiness", "2", "--arrivals", "constant"], "burstiness must be absent with constant"),
    (["--burstiness", "nan"], "--burstiness"), (["--router", "least"], "--router: router must be among"),
    (["--watermark", "0.9"], "watermark_frac must be between 0 and 0.5"),
    (["--ramp", "5"], "ramp_s must be given with the clients"),
    (["--ramp", "-5"], "--ramp"), (["--request-rate", "0"], "request_rate must be > 0"),
    (["--concurrency", "5"], "load must be given in one way"), (["--workload", "shargpt"], "did you mean sharegpt?"),
    (["--head", "5"], "head must be given with a trace only"),
    (["--scale-rate", "2"], "scale_rate must be given with a trace only"),
    (["--trace", "/no/such.csv"], "isl must be absent where a trace gives the requests"),
    (["--format", "yaml"], "yaml"), (["--no-such-flag", "1"], "--no-such-flag"), (["--gpus", "8"], "8"),
    (["--model", "no/such-model"], "no/such-model"), (["--engine", "vlm"], "vlm"),
]


@pytest.mark.parametrize(("flags", "told"), BAD, ids=lambda v: " ".join(v)[:40] if isinstance(v, list) else "")
@pytest.mark.usefixtures("quiet")
def test_bad_input_is_one_line_and_exit_2(run, tmp_path, flags, told):
    argv = [*AT_RATE, "--save-dir", str(tmp_path / "out")]
    for flag, value in zip(flags[::2], flags[1::2], strict=True):
        argv = changed(argv, flag, value)
    assert told in one_error(run(*argv))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def quiet(monkeypatch):
    """No request is served: bad input is told before."""
    def fail(*_args, **_named):
        raise AssertionError("was simulated")

    monkeypatch.setattr("tpplanner.api.simulation.simulate", fail)


@pytest.mark.parametrize(("content", "told"), [
    (None, "no such file"), (b"", "is empty"), (b"\xff\xfe\x00", "utf"), (b"arrival_s,isl_tok,osl_tok\n2,5,5\n1,5,5\n", "row 3"),
    (b"arrival_s,isl_tok,osl_tok\n0,nan,5\n", "row 2"), (b"arrival_s,isl_tok,osl_tok\n0,5,999999999999\n", "row 2"),
    (b"arrival_s,isl_tok\n0,5\n", "osl_tok")])
@pytest.mark.parametrize("command", [["simulate"], ["recommend", "--simulate"]])
@pytest.mark.usefixtures("quiet")
def test_a_bad_trace_is_one_line_and_exit_2(run, tmp_path, command, content, told):
    path = tmp_path / "mine.csv"
    if content is not None:
        path.write_bytes(content)
    err = one_error(run(*command, *TRACED, "--trace", str(path), "--save-dir", str(tmp_path / "out")))
    assert "mine.csv" in err
    assert told in err.lower()
    assert not (tmp_path / "out").exists()


def test_neither_lengths_nor_a_trace(run):
    assert "isl must be given, or a trace, or a workload" in one_error(run("simulate", *TRACED))
    assert "osl must be given, or a trace, or a workload" in one_error(run("simulate", *TRACED, "--isl", "5"))
