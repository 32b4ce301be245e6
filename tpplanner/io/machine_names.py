"""How the machine at hand is called among the profiles."""

import re
from collections.abc import Mapping
from typing import Any

from tpplanner.io.profile_files import lookup_machine
from tpplanner.io.profile_hardware import load_hardware


def machine_name(facts: Mapping[str, Any]) -> str:
    """Return the name of a profile for a machine: the packaged one of its GPU, else what its processor is called.

    Examples
    --------
    >>> machine_name({"device": "cpu", "name": "AMD EPYC", "num_threads": 1})
    'cpu-amd-epyc'
    """
    words = re.sub(r"[^a-z0-9]+", "-", str(facts["name"]).lower().replace("(r)", "").replace("(tm)", "")).strip("-")
    if facts["device"] == "cpu":
        return f"cpu-{words}"[:60]
    short = words.removeprefix("nvidia-")
    for name in (short, f"{short}-sxm", short.removesuffix("-80gb-hbm3"), short.split("-")[0]):
        if lookup_machine(name) is not None:
            return load_hardware(name).name
    return short
