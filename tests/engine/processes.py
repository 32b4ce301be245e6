"""Engines for tests of what goes wrong, and whether their processes have ended."""

import json
import time

from tpplanner.domain.engine import Switches
from tpplanner.engine.config import EngineConfig
from tpplanner.engine.sampling_params import SamplingParams

EVERY_SWITCH = Switches(async_sched=True, early_feedback=True, seq_parallel_sampling=True)
LONG = SamplingParams(temperature=0.0, max_tokens=1900, ignore_eos=True)
SHORT = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
LIMIT_S = 30.0


def config_of(folder, tp=1, **settings):
    return EngineConfig(model=str(folder), tp=tp, **({"device": "cpu", "num_threads": 1, "num_kv_blocks": 512} | settings))


def is_alive(pid):
    """Whether a process runs; one that only waits for its parent to ask after it does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_all_end(pids, within_s=LIMIT_S):
    deadline = time.monotonic() + within_s
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still alive: {[pid for pid in pids if is_alive(pid)]}"
        time.sleep(0.05)


def one_line(error):
    text = str(error.value)
    assert text
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def edit(folder, name="config.json", **changes):
    file = folder / name
    values = json.loads(file.read_text(encoding="utf-8"))
    for key, value in changes.items():
        if value is ...:
            values.pop(key, None)
        else:
            values[key] = value
    file.write_text(json.dumps(values), encoding="utf-8")
