"""Reading engine profiles: one flat file, every number with unit and source, one-line errors."""

from pathlib import Path

import pytest

from tpplanner.domain.engine import Preemption, SamplingPolicy
from tpplanner.domain.quantity import Provenance
from tpplanner.errors import ProfileError
from tpplanner.io.profile_check import check_profile, load_profile
from tpplanner.io.profile_engine import load_engine

ENGINE = """\
title = "An engine"
launcher = "vllm"
aliases = ["the-engine"]
default_sampling = "full"
preemption = "swap"
max_num_seqs = 1024
gpu_memory_utilization = 0.9
layer_overhead_s = {value = 58, unit = "us", source = "paper"}
overlap_overhead_s = {value = 0, unit = "us", source = "paper"}
request_overhead_s = {value = 2, unit = "ms", source = "paper"}
graph_bytes = {value = 0.5, unit = "GiB", source = "paper"}
ratio_error_frac = {value = 6, unit = "%", source = "paper"}
[sources]
paper = "a paper, table 1"
[schedule]
fixed_s = {value = 40, unit = "us", source = "paper"}
per_seq_s = {value = 15.6, unit = "us", source = "paper", provenance = "fitted", std_error = 2, num_samples = 9}
[prepare_input]
fixed_s = {value = 60, unit = "us", source = "paper"}
per_seq_s = {value = 0, unit = "us", source = "paper"}
per_seq_per_log2_tp_s = {value = 7400, unit = "ns", source = "paper"}
[process_output]
fixed_s = {value = 0.05, unit = "ms", source = "paper"}
per_seq_s = {value = 11, unit = "us", source = "paper"}
[sampling.greedy]
fixed_s = {value = 30, unit = "us", source = "paper"}
per_seq_s = {value = 0.4, unit = "us", source = "paper"}
[sampling.top-p]
fixed_s = {value = 50, unit = "us", source = "paper"}
per_seq_s = {value = 4, unit = "us", source = "paper"}
[sampling.full]
fixed_s = {value = 50, unit = "us", source = "paper"}
per_seq_s = {value = 26.5, unit = "us", source = "paper"}
[switches]
async_sched = false
early_feedback = false
"""


@pytest.fixture
def own(tmp_path) -> Path:
    (tmp_path / "engines").mkdir()
    path = tmp_path / "engines" / "own.toml"
    path.write_text(ENGINE)
    return path


def test_every_entry_arrives_in_si(own):
    engine = load_engine(str(own))
    assert (engine.name, engine.title, engine.aliases) == ("own", "An engine", ("the-engine",))
    assert engine.schedule.per_seq_s.value == 15.6e-6
    assert engine.schedule.per_seq_s.provenance is Provenance.FITTED
    assert engine.schedule.per_seq_s.std_error == 2e-6
    assert engine.prepare_input.per_seq_per_log2_tp_s.value == 7.4e-6
    assert engine.prepare_input.per_log2_tp_s is None
    assert engine.process_output.fixed_s.value == 5e-5
    assert engine.sampling[SamplingPolicy.TOP_P].per_seq_s.value == 4e-6
    assert engine.request_overhead_s.value == 2e-3
    assert engine.graph_bytes.value == 2**29
    assert engine.ratio_error_frac.value == 0.06
    assert engine.default_sampling is SamplingPolicy.FULL
    assert engine.preemption is Preemption.SWAP
    assert (engine.max_num_seqs, engine.kv_block_size_tok) == (1024, 16)  # the second is the type's default
    assert engine.layer_overhead_s.source == "a paper, table 1"


def test_by_path_name_and_alias(own):
    folders = [own.parent.parent]
    assert load_engine("own", extra_dirs=folders).name == "own"
    assert load_engine("The_Engine", extra_dirs=folders).name == "own"
    assert load_profile(str(own)).name == "own"
    assert load_profile("own", extra_dirs=folders).name == "own"


def test_an_engine_states_what_differs_from_another(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('title = "Mine"\ninherits = "vllm-0.11"\n[sources]\ns = "my runs"\n[schedule]\n'
                    'per_seq_s = {value = 5, unit = "us", source = "s"}\n[switches]\nasync_sched = true\n')
    mine, parent = load_engine(str(path)), load_engine("vllm-0.11")
    assert (mine.schedule.per_seq_s.value, mine.schedule.per_seq_s.source) == (5e-6, "my runs")
    assert mine.schedule.fixed_s == parent.schedule.fixed_s
    assert mine.sampling == parent.sampling
    assert mine.switches.async_sched
    assert mine.aliases == ()
    for wrong, said in (("albireo", "inherits nothing itself"), ("nothing-like-it", "nothing-like-it")):
        path.write_text(f'title = "Mine"\ninherits = "{wrong}"\n')
        with pytest.raises(ProfileError, match=said):
            load_engine(str(path))


def test_check_of_an_engine(own):
    assert check_profile(str(own)) == []
    own.write_text(ENGINE.replace("value = 58", "value = 5800").replace("value = 26.5", "value = 2.5"))
    doubts = "\n".join(check_profile(str(own)))
    assert "layer_overhead_s is 5.8 ms, over 1 ms" in doubts
    assert "does not grow from greedy to top-p to full" in doubts
    own.write_text(ENGINE.replace("async_sched = false", "async_sched = true"))
    assert check_profile(str(own)) == ["own: async_sched is on and overlap_overhead_s is 0"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("early_feedback = false", "early_feedback = true", "early_feedback must be off where async_sched is off"),
        ("async_sched = false", "async_sched = 0", "switches.async_sched must be true or false"),
        ("async_sched", "async_shed", "did you mean async_sched"),
        ('default_sampling = "full"', 'default_sampling = "beam"', "default_sampling must be one of greedy"),
        ("max_num_seqs = 1024", "max_num_seqs = 0", "max_num_seqs must be an integer between 1"),
        ("max_num_seqs = 1024", "max_num_seqs = 1.5", "max_num_seqs must be an integer between 1"),
        ("gpu_memory_utilization = 0.9", "gpu_memory_utilization = 90", "gpu_memory_utilization must be between"),
        ("[sampling.greedy]", "[sampling.greed]", "did you mean greedy"),
        ("value = 15.6", "value = -15.6", "schedule.per_seq_s must be between 0"),
        ('unit = "GiB"', 'unit = "us"', "graph_bytes.unit must be one of bytes"),
        ('"swap"', '"drop"', "preemption must be one of recompute, swap"),
        ("std_error = 2, ", "", "schedule.per_seq_s: std_error and num_samples must be given"),
        ('launcher = "vllm"', "", "launcher must be given"),
    ],
)  # fmt: skip
def test_one_clear_error(own, old, new, said):
    assert old in ENGINE
    own.write_text(ENGINE.replace(old, new, 1))
    with pytest.raises(ProfileError) as caught:
        load_engine(str(own))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert said in message
    assert str(own) in message
