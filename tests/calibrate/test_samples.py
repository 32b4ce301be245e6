"""Raw samples: whole lines only, no case twice, no machine mixed with another."""

import errno
import os

import msgspec
import pytest

from calibrate.samples import SampleLog, key_of
from tpplanner.errors import OutputError, ProfileError
from tpplanner.io.calibration_samples import Sample, read_machine, read_samples, round_frame, sample_frame, typical_s

FACTS = {"device": "cpu", "name": "A CPU", "torch": "2.13", "num_cores": 2, "cache_bytes": 1 << 25, "host_memory_bytes": 1 << 34}


def sample(num_tok, times=(3.0, 1.0, 2.0), **more):
    return Sample(bench="gemm", case={"num_tok": num_tok, "dtype": "fp32"}, times_s=list(times), timer="host", **more)


def test_what_is_there_is_done_in_the_next_run(tmp_path):
    log = SampleLog(tmp_path / "samples", FACTS)
    assert log.done("gemm") == set()
    log.append(sample(1))
    log.append(sample(2))
    again = SampleLog(tmp_path / "samples", FACTS)
    assert again.done("gemm") == {(0, key_of({"dtype": "fp32", "num_tok": 1})), (0, key_of({"num_tok": 2, "dtype": "fp32"}))}
    assert read_machine(tmp_path / "samples") == FACTS


def test_half_a_line_of_a_killed_run_is_cut_off_and_measured_again(tmp_path):
    log = SampleLog(tmp_path, FACTS)
    log.append(sample(1))
    whole = log.path("gemm").read_bytes()
    log.append(sample(2))
    os.truncate(log.path("gemm"), len(whole) + 7)
    assert log.done("gemm") == {(0, key_of({"dtype": "fp32", "num_tok": 1}))}
    assert log.path("gemm").read_bytes() == whole


def test_a_full_disk_leaves_whole_lines_and_one_error(tmp_path, monkeypatch):
    log = SampleLog(tmp_path, FACTS)
    log.append(sample(1))

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"gemm\.jsonl: No space left on device; the samples before are kept"):
        log.append(sample(2))
    assert [s.case["num_tok"] for s in read_samples(log.path("gemm"))] == [1]


def test_samples_of_another_machine_are_not_mixed(tmp_path):
    SampleLog(tmp_path, FACTS)
    with pytest.raises(OutputError, match=r"of another machine or software \(name, torch differ\); give another --out"):
        SampleLog(tmp_path, {**FACTS, "name": "Another", "torch": "2.14"})


@pytest.mark.parametrize("line", [
    b"{", b"[]", b'{"bench":1}', b'{"bench":"gemm","case":{},"times_s":"x","timer":"host"}', b"\xff"])
def test_a_malformed_line_is_named(tmp_path, line):
    log = SampleLog(tmp_path, FACTS)
    log.append(sample(1))
    with log.path("gemm").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(ProfileError, match=r"gemm\.jsonl: line 2: "):
        list(read_samples(log.path("gemm")))


def test_a_frame_has_the_mean_and_leaves_out_what_did_not_run(tmp_path):
    log = SampleLog(tmp_path, FACTS)
    log.append(sample(1, values={"moved_bytes": 5.0}))
    log.append(sample(2, times=(), note="out of memory"))
    frame = sample_frame(tmp_path, "gemm")
    assert frame[["num_tok", "latency_s", "moved_bytes"]].to_numpy().tolist() == [[1, 2.0, 5.0]]
    assert sample_frame(tmp_path, "sampling").empty


def test_a_folder_without_samples_says_how_to_get_some(tmp_path):
    with pytest.raises(ProfileError, match="holds no samples; tpplanner calibrate takes them"):
        read_machine(tmp_path)


@pytest.mark.parametrize("missing", ["device", "name", "num_cores", "cache_bytes", "host_memory_bytes"])
def test_a_machine_that_lacks_a_fact_is_refused(tmp_path, missing):
    SampleLog(tmp_path, FACTS)
    (tmp_path / "machine.json").write_bytes(msgspec.json.encode({k: v for k, v in FACTS.items() if k != missing}))
    with pytest.raises(ProfileError, match=rf"machine\.json: .*`{missing}`"):
        read_machine(tmp_path)


@pytest.mark.parametrize(("case", "times", "words"), [
    ({"num_tok": 1}, [1.0], r"line 2 must say dtype, got"),
    ({"num_tok": 1, "dtype": "fp32"}, [-1.0], r"line 2: times_s must be finite and >= 0, got -1"),
    ({"num_tok": 1, "dtype": "fp32"}, [1e999], r"line 2"),
])
def test_a_sample_that_no_fit_can_use_is_named(tmp_path, case, times, words):
    log = SampleLog(tmp_path, FACTS)
    log.append(sample(1))
    with log.path("gemm").open("ab") as file:
        file.write(msgspec.json.encode({"bench": "gemm", "case": case, "times_s": times, "timer": "host"}) + b"\n")
    with pytest.raises(ProfileError, match=rf"gemm\.jsonl: {words}"):
        sample_frame(tmp_path, "gemm", ("num_tok", "dtype"))


def test_the_tasks_of_one_case_are_written_together(tmp_path, monkeypatch):
    log = SampleLog(tmp_path, FACTS)
    case = {"loop": "overlap", "tp": 1}
    tasks = [Sample(bench="host", case={**case, "task": task}, times_s=[1.0], timer="host") for task in ("schedule", "exposed")]
    log.append(*tasks)
    assert log.done("host") == {(0, key_of(case))}
    assert len(list(read_samples(log.path("host")))) == 2


def test_a_case_is_measured_once_in_each_pass_and_its_time_is_the_mean_of_them(tmp_path):
    log = SampleLog(tmp_path, FACTS)
    log.append(sample(1))
    log.append(sample(1, times=(6.0, 4.0, 5.0), round=1))
    log.append(sample(2, times=(1.0,)))
    case = key_of({"dtype": "fp32", "num_tok": 1})
    assert {(0, case), (1, case)} < log.done("gemm")
    frame = sample_frame(tmp_path, "gemm", ("num_tok", "dtype"))
    assert frame[["num_tok", "latency_s"]].to_numpy().tolist() == [[1, 3.5], [2, 1.0]]
    assert round_frame(tmp_path, "gemm")[["round", "latency_s"]].to_numpy().tolist() == [[0, 2.0], [1, 5.0], [0, 1.0]]


def test_what_is_mostly_nothing_keeps_the_rest():
    # Half of the steps or more expose nothing: clipping at twice the median would leave nothing at all.
    assert typical_s([0.0, 0.0, 0.0, 6.0]) == 1.5
    assert typical_s([1.0, 1.0, 1.0, 50.0]) == 1.25


def test_cases_that_lack_a_size_are_not_thrown_together(tmp_path):
    log = SampleLog(tmp_path, FACTS)
    log.append(sample(1))
    log.append(Sample(bench="gemm", case={"num_tok": 1, "dtype": "fp32", "num_busy": 2}, times_s=[3.0], timer="host"))
    frame = sample_frame(tmp_path, "gemm")
    assert sorted(frame["latency_s"]) == [2.0, 3.0]
    assert frame["num_busy"].isna().sum() == 1
