"""Broken files of a model: one clear error that names the file, nothing left."""

import json
import os
import threading
from contextlib import ExitStack

import pytest
from processes import SHORT, assert_all_end, config_of, edit, one_line

from tpplanner.engine.engine import Engine
from tpplanner.engine.model_config import read_model
from tpplanner.engine.sampling_params import SamplingParams
from tpplanner.errors import ModelError, WorkloadError


def load_here(folder, rank=0, tp=1):
    """Load one rank's weights in this process, with the worker's own functions."""
    torch = pytest.importorskip("torch")
    from tpplanner.engine.model import Decoder
    from tpplanner.engine.parallel import Ranks
    from tpplanner.engine.partition import partition
    from tpplanner.engine.weights import Checkpoint, Loader, check_files

    model = read_model(folder)
    with ExitStack() as stack, torch.inference_mode():
        check_files(folder)
        source = Checkpoint(folder, stack)
        loader = Loader(model, partition(model, rank, tp), source, dtype=torch.float32, device=torch.device("cpu"))
        return Decoder(loader, Ranks(rank, tp, model.vocab_size), max_context_tok=None)


def rewrite_weights(folder, change):
    torch_files = pytest.importorskip("safetensors.torch")
    file = folder / "model.safetensors"
    tensors = torch_files.load_file(file)
    change(tensors)
    torch_files.save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)


QUERY = "model.layers.1.self_attn.q_proj.weight"


def truncate(folder):
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 100)


def garbage(folder):
    (folder / "model.safetensors").write_bytes(b"\x80garbage" * 1000)


def hostile_header(folder):
    (folder / "model.safetensors").write_bytes((2**63).to_bytes(8, "little") + b"{}")


def nothing_in_it(folder):
    (folder / "model.safetensors").write_bytes(b"")


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def a_folder_instead(folder):
    no_weights(folder)
    (folder / "model.safetensors").mkdir()


def no_query(folder):
    rewrite_weights(folder, lambda tensors: tensors.pop(QUERY))


def narrow_query(folder):
    rewrite_weights(folder, lambda tensors: tensors.update({QUERY: tensors[QUERY][:, :-1]}))


def whole_numbers(folder):
    rewrite_weights(folder, lambda tensors: tensors.update({QUERY: tensors[QUERY].int()}))


def more_layers(folder):
    edit(folder, num_hidden_layers=5)


def index_of(weight_map):
    def write(folder):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")

    return write


def index_is_a_list(folder):
    (folder / "model.safetensors.index.json").write_text("[]", encoding="utf-8")


def index_is_cut(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {', encoding="utf-8")


@pytest.mark.parametrize(("damage", "told"), [
    (truncate, r"model\.safetensors: not a readable safetensors file"),
    (garbage, r"model\.safetensors: not a readable safetensors file"),
    (hostile_header, r"model\.safetensors: not a readable safetensors file"),
    (nothing_in_it, r"model\.safetensors: not a readable safetensors file"),
    (a_folder_instead, r"model\.safetensors: not a readable safetensors file"),
    (no_weights, r"no \*\.safetensors"),
    (no_query, rf"no tensor {QUERY}"),
    (narrow_query, rf"{QUERY} must have shape \[256, 256\] as config\.json says, got \[256, 255\]"),
    (whole_numbers, rf"{QUERY} must have floating-point numbers of 16 bits or more, got .I32."),
    (more_layers, r"no tensor model\.layers\.4\."),
    (index_of({QUERY: "model-00002-of-00002.safetensors"}), r"missing, the first is model-00002-of-00002\.safetensors"),
    (index_of({QUERY: 3}), r"missing, the first is 3"),
    (index_of([QUERY]), r"not an index of weights"),
    (index_is_a_list, r"not an index of weights"),
    (index_is_cut, r"not an index of weights"),
])
def test_broken_weights_are_named(folder, damage, told):
    damage(folder)
    with pytest.raises(ModelError, match=told) as error:
        load_here(folder)
    assert str(folder) in one_line(error)


def test_undamaged_weights_load(folder):
    assert len(load_here(folder, 1, 2).layers) == 4


@pytest.mark.parametrize(("damage", "tp", "told"), [(truncate, 2, r"model\.safetensors: not a readable"), (no_query, 1, QUERY)])
def test_what_a_worker_finds_wrong_with_a_model_is_told_as_such(folder, damage, tp, told):
    damage(folder)
    before = children()
    with pytest.raises(ModelError, match=told) as error:
        Engine(config_of(folder, tp))
    one_line(error)
    assert_all_end(children() - before)


def children():
    """Processes whose parent this is."""
    with open(f"/proc/self/task/{threading.main_thread().native_id}/children", encoding="ascii") as file:
        return {int(pid) for pid in file.read().split()}


@pytest.mark.parametrize(("changes", "told"), [
    ({"architectures": ["MixtralForCausalLM"]}, r"architectures must be one of LlamaForCausalLM, .*MixtralForCausalLM"),
    ({"architectures": ...}, "architectures must be one of"),
    ({"architectures": 7}, "architectures must be one of"),
    ({"architectures": [["LlamaForCausalLM"]]}, "architectures must be one of"),
    ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantization_config must be absent"),
    ({"hidden_size": ...}, "hidden_size must be an integer"),
    ({"hidden_size": "256"}, "hidden_size must be an integer"),
    ({"hidden_size": 256.0}, "hidden_size must be an integer"),
    ({"hidden_size": True}, "hidden_size must be an integer"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be an integer from 1"),
    ({"num_hidden_layers": 10**30}, "num_hidden_layers must be an integer from 1|cannot be read"),
    ({"num_attention_heads": 7}, "num_attention_heads must be a multiple"),
    ({"num_key_value_heads": -4}, "num_key_value_heads must be an integer"),
    ({"head_dim": 31}, "head_dim must be even"),
    ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive number"),
    ({"rms_norm_eps": "1e-6"}, "rms_norm_eps must be a positive number"),
    ({"hidden_act": "gelu"}, "hidden_act must be silu"),
    ({"mlp_bias": True}, "mlp_bias must be false"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type must be default, linear or llama3"),
    ({"rope_parameters": {"rope_type": ["llama3"], "factor": 4.0}}, "rope_type must be default, linear or llama3"),
    ({"rope_parameters": [1]}, "rope_scaling must be an object"),
    ({"rope_parameters": {"rope_type": "linear"}}, "factor must be a positive number"),
    ({"torch_dtype": "float8_e4m3fn"}, "dtype must be float32, bfloat16 or float16"),
    ({"torch_dtype": ["float32"]}, "dtype must be float32, bfloat16 or float16"),
])
def test_a_config_that_makes_no_sense_is_refused(folder, changes, told):
    edit(folder, **changes)
    with pytest.raises(ModelError, match=told) as error:
        Engine(config_of(folder))
    assert "config.json" in one_line(error)


@pytest.mark.parametrize("value", ["</s>", -1, [1, "x"], {"a": 1}, 1.5])
def test_ends_of_the_text_must_be_ids(folder, value):
    edit(folder, "generation_config.json", eos_token_id=value)
    with pytest.raises(ModelError, match="eos_token_id must be token ids"):
        read_model(folder)


def test_a_config_that_is_cut_or_garbled_is_refused(folder):
    file = folder / "config.json"
    whole = file.read_bytes()
    for content in (b"", b"[]", b"null", b"\xff\xfe{}", b"[" * 100_000, *(whole[:i] for i in range(1, len(whole.rstrip()), 37))):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=r"config\.json") as error:
            read_model(folder)
        one_line(error)
    file.unlink()
    with pytest.raises(ModelError, match=r"config\.json: no such file; --model takes a directory with config\.json"):
        Engine(config_of(folder))
    with pytest.raises(ModelError, match=r"config\.json"):
        Engine(config_of(folder / "nowhere"))


def test_without_a_tokenizer_ids_still_work(folder):
    (folder / "tokenizer.json").unlink()
    with Engine(config_of(folder, max_context_tok=64)) as running:
        assert running.tokenizer is None
        [done] = running.generate([[5, 6, 7]], SHORT)
        assert (len(done.output_ids), done.text) == (4, "")
        for prompt, params, told in (
                ("words", SHORT, r"no tokenizer\.json: give token ids"),
                ([5], SamplingParams(stop=("x",), max_tokens=4), "stop: strings need a tokenizer"),
                ([], SHORT, "prompt must hold at least one token"),
                ([5, 512], SHORT, "prompt must hold ids below 512, got 512"),
                ([-1], SHORT, "prompt must hold ids below 512, got -1"),
                ([True], SHORT, "prompt must hold ids below 512, got True"),
                ([5] * 61, SHORT, "prompt and max_tokens must be at most 64 tokens together, got 65")):
            with pytest.raises(WorkloadError, match=told) as error:
                running.generate([[5], prompt], [SHORT, params])
            one_line(error)
            assert running.num_free_kv_blocks == running.num_kv_blocks
        with pytest.raises(WorkloadError, match="params must be one or 2, got 1"):
            running.generate([[5], [6]], [SHORT])
        assert running.generate([], SHORT) == []
        assert running.generate([[5, 6, 7]], SHORT)[0].output_ids == done.output_ids


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": {"type": "BPE"}}', b"\xff\xfe\x00"])
def test_a_garbled_tokenizer_is_refused(folder, content):
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a tokenizer") as error:
        Engine(config_of(folder))
    one_line(error)
