"""Any file gives a `ModelSpec` or one line of `ModelError`, never another exception."""

import copy
import json
from pathlib import Path

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpplanner.domain.model import ModelSpec
from tpplanner.errors import ModelError
from tpplanner.io.model_config import load_model, packaged_models, parse_model
from tpplanner.io.model_json import parse_json_object
from tpplanner.io.model_keys import Keys
from tpplanner.io.model_registry import MODELS_DIR

FILES = [MODELS_DIR / f"{name.replace('/', '--', 1)}.json" for name in packaged_models()]
CONTENTS = [path.read_bytes() for path in FILES]
QUANTIZATIONS = [
    {"quant_method": "gptq", "bits": 4}, {"quant_algo": "NVFP4", "ignore": ["lm_head"]},
    {"quant_method": "compressed-tensors", "ignore": ["model.layers.0.self_attn.q_proj"],
     "kv_cache_scheme": {"num_bits": 8, "type": "float"},
     "config_groups": {"g": {"weights": {"num_bits": 8, "type": "int"}, "input_activations": None}}},
]

HOSTILE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from([
        0, -1, 1, 2, 10_000, 10_001, 10**7, 10**13, 10**30, -(10**30), 1e30, 1e400, "32", "\n",
        [[[]]], {"a": {}}, [1, None], ["\ud800"], {"quant_method": "fp8"}, ["full_attention"] * 3,
    ]),
    st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
                 | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8),
)


def outcome(content: bytes) -> None:
    """Read ``content`` as a config.json; anything but a specification or one line fails the test."""
    try:
        config = Keys(values=parse_json_object(content, "config.json"), place="config.json")
        model = parse_model(config, name="fuzzed")
    except ModelError as error:
        message = str(error)
    else:
        assert isinstance(model, ModelSpec)
        assert model.num_params >= model.num_active_params > 0
        return
    assert len(message.splitlines()) == 1, repr(message)
    assert message.startswith("config.json: ")


def objects_inside(config: dict[str, object]) -> list[dict[str, object]]:
    found = [config]
    for value in config.values():
        if isinstance(value, dict):
            found += objects_inside(value)
    return found


@given(data=st.data())
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_mutated_configs(data: st.DataObject) -> None:
    config = msgspec.json.decode(data.draw(st.sampled_from(CONTENTS)), type=dict[str, object])
    if data.draw(st.booleans()):
        config["quantization_config"] = copy.deepcopy(data.draw(st.sampled_from(QUANTIZATIONS)))
    for _ in range(data.draw(st.integers(1, 3))):
        target = data.draw(st.sampled_from(objects_inside(config)))
        key = data.draw(st.sampled_from(sorted(target)) if target else st.just("a"))
        if data.draw(st.booleans()):
            target.pop(key, None)
        else:
            # A copy: what is drawn is shared between examples, and a later mutation may reach into it.
            target[key] = copy.deepcopy(data.draw(HOSTILE))
    outcome(json.dumps(config).encode())


@given(
    content=st.sampled_from(CONTENTS), cut=st.floats(0, 1), noise=st.binary(max_size=4), keep=st.booleans()
)
@settings(max_examples=300, deadline=None)
def test_truncated_and_overwritten_bytes(content: bytes, cut: float, noise: bytes, keep: bool) -> None:
    at = int(cut * len(content))
    outcome(content[:at] + noise + (content[at + len(noise):] if keep else b""))


@given(content=st.binary(max_size=200) | st.text(max_size=100).map(lambda t: t.encode("utf-8", "replace")))
@settings(max_examples=200, deadline=None)
def test_random_bytes(content: bytes) -> None:
    outcome(content)


@given(value=HOSTILE.map(json.dumps), depth=st.integers(1, 2000))
@settings(max_examples=50, deadline=None)
def test_deep_nesting(value: str, depth: int) -> None:
    for key in ("hidden_size", "architectures", "quantization_config", "text_config"):
        nested = "[" * depth + value + "]" * depth
        outcome(f'{{"model_type": "llama", "{key}": {nested}}}'.encode())


@given(content=st.sampled_from(CONTENTS), noise=st.binary(max_size=30))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_hostile_quantisation_file(tmp_path: Path, content: bytes, noise: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    (tmp_path / "hf_quant_config.json").write_bytes(noise)
    message = "one line"
    try:
        load_model(str(tmp_path))
    except ModelError as error:
        message = str(error)
    assert len(message.splitlines()) == 1
