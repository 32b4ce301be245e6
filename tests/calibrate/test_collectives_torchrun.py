"""Collectives over the ranks of torchrun: what is left is measured and appended; the fit takes the ranks of one node first."""

import os
import subprocess
import sys

import msgspec
import pandas as pd
import pytest
import torch
from test_weight_only import DECODE, PREFILL, gemm_samples

from calibrate import bench_collectives, collectives_torchrun
from calibrate.machine import machine_facts
from calibrate.samples import SampleLog
from calibrate.scopes import plan_of
from tpplanner.fit.calibration_kernels import Peaks, fit_kernels
from tpplanner.io.calibration_samples import Sample, read_samples

COMMAND = ("-m", "calibrate.bench_collectives")
PLAN = plan_of("quick", "cpu", (), degrees=(2,))


def run(folder, *command, **environment):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
    return subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=120, check=False,
                          env=inherited | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)} | environment)


def torchrun(folder, *, ranks=2, **environment):
    return run(folder, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--rdzv-backend", "c10d", "--rdzv-endpoint",
               "127.0.0.1:0", *COMMAND, "--machine", "here", "--quick", **environment)


def every_sample():
    """Samples of all passes over all cases, none of them measured."""
    return [Sample(bench="collective", case=case, times_s=[1e-3], timer="host", round=number) for number in range(PLAN.num_rounds)
            for case in collectives_torchrun.cases(PLAN, tp=2, num_nodes=1)]


def left_by_a_run(folder, *, without):
    """Make the samples of a run that ended before it came to a few of them."""
    log = SampleLog(folder / "profiles" / "here" / "samples", machine_facts(torch.device("cpu"), num_threads=1))
    log.path("collective").write_bytes(b"".join(
        msgspec.json.encode(sample) + b"\n" for i, sample in enumerate(every_sample()) if i not in without))
    return log.path("collective")


def test_cases_are_those_of_the_suite_and_say_how_many_nodes():
    plain = list(bench_collectives.cases(PLAN, num_devices=2))
    found = list(collectives_torchrun.cases(PLAN, tp=2, num_nodes=3))
    assert [{name: value for name, value in case.items() if name != "num_nodes"} for case in found] == plain
    assert {(case["tp"], case["num_nodes"]) for case in found} == {(2, 3)}


def test_without_torchrun_it_says_how_to_start(tmp_path):
    done = run(tmp_path, *COMMAND)
    assert done.returncode == 2
    assert done.stderr.startswith("tpplanner: error: calibrate.bench_collectives: start it with torchrun")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_ranks_measure_what_is_left_and_append_it(tmp_path):
    samples = every_sample()
    eager = next(i for i, s in enumerate(samples) if (s.case["op"], s.case["mode"], s.case["size_bytes"]) == (
        "all_gather", "eager", 65536))
    last = len(samples) - 1
    place = left_by_a_run(tmp_path, without={eager, last})
    before = place.read_bytes()
    done = torchrun(tmp_path)
    assert done.returncode == 0, done.stderr
    assert place.read_bytes().startswith(before)
    new = list(read_samples(place))[-2:]
    assert [(s.case, s.round) for s in new] == [(samples[i].case, samples[i].round) for i in (eager, last)]
    assert all(len(s.times_s) >= 10 and min(s.times_s) > 0 for s in new)
    assert done.stdout.strip().endswith("profiles/here/samples/collective.jsonl")
    whole = place.read_bytes()
    again = torchrun(tmp_path)
    assert again.returncode == 0, again.stderr
    assert place.read_bytes() == whole


@pytest.mark.slow
def test_samples_of_another_machine_are_one_error(tmp_path):
    place = left_by_a_run(tmp_path, without={0})
    facts = msgspec.json.decode((place.parent / "machine.json").read_bytes())
    (place.parent / "machine.json").write_bytes(msgspec.json.encode(facts | {"torch": "0.1"}))
    before = place.read_bytes()
    done = torchrun(tmp_path)
    assert done.returncode != 0
    assert "tpplanner: error: profiles/here/samples: holds samples of another machine or software (torch differ)" in done.stderr
    assert place.read_bytes() == before


def collectives(**given):
    return [{"op": "all_reduce", "mode": "graph", "size_bytes": size, "latency_s": size * 1e-9 * given.get("num_nodes", 0.5),
             **given} for size in (1e3, 1e4, 1e5, 1e6)]


def test_a_curve_takes_the_ranks_of_the_fewest_nodes():
    rows = [*collectives(tp=2), *collectives(tp=2, num_nodes=1), *collectives(tp=4, num_nodes=2), *collectives(tp=4, num_nodes=1),
            *collectives(tp=16, num_nodes=2)]
    found = fit_kernels(gemm=gemm_samples("bf16", 2.0, 1e14), decode=DECODE, prefill=PREFILL, collective=pd.DataFrame(rows),
                        peaks=Peaks(flop_s={"bf16": 1e14}, bytes_s=2e12), source="by hand")
    curves = {error.curve.tp: error.curve for error in found.evidence.collective_errors}
    # The ranks that the suite starts itself, then one node, then two where there is nothing else.
    assert {tp: curve.latency_s[0] for tp, curve in curves.items()} == pytest.approx({2: 0.5e-6, 4: 1e-6, 16: 2e-6})
