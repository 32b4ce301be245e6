"""What goes wrong outside the engine: killed processes, broken files, models that do not fit. One clear error, nothing left."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pytest

from tpplanner.domain.engine import Switches
from tpplanner.engine import workers as workers_module
from tpplanner.engine.config import Delays, EngineConfig
from tpplanner.engine.engine import Engine
from tpplanner.engine.link import accept, connect, listen, new_key
from tpplanner.engine.model_config import read_model
from tpplanner.engine.sampling_params import SamplingParams
from tpplanner.errors import EngineError, ModelError, WorkloadError

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


# Processes


@pytest.mark.parametrize(("tp", "rank", "switches"), [(2, 1, EVERY_SWITCH), (1, 0, Switches())])
def test_a_killed_worker_ends_the_run(tiny, tp, rank, switches):
    with Engine(config_of(tiny("llama"), tp, switches=switches)) as running:
        pids = running.workers.process_ids
        assert len(pids) == tp
        runs, outputs, ended = threading.Event(), [], threading.Event()

        def hear(output):
            outputs.append(output)
            runs.set()
            if output.finish_reason is not None:
                ended.set()

        running.start_loop()
        for prompt in ([5, 6, 7], [8]):
            running.submit(prompt, LONG, hear)
        assert runs.wait(LIMIT_S)
        os.kill(pids[rank], signal.SIGKILL)
        assert ended.wait(LIMIT_S)
        assert_all_end(pids)
        running.await_idle()
        last = [output for output in outputs if output.finish_reason is not None]
        assert [str(output.finish_reason) for output in last] == ["error", "error"]
        assert {output.error for output in last} == {f"engine: rank {rank} was ended by signal 9; all ranks were ended"}
        with pytest.raises(EngineError, match=f"rank {rank} .*signal 9"):
            running.submit([1], SHORT, hear)
        with pytest.raises(EngineError, match=f"rank {rank} .*signal 9"):
            running.generate([[1]], SHORT)


def test_a_worker_killed_while_nobody_asks_is_noticed(tiny):
    with Engine(config_of(tiny("llama"))) as running:
        [done] = running.generate([[5, 6]], SHORT)
        assert len(done.output_ids) == 4
        [pid] = running.workers.process_ids
        threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
        with pytest.raises(EngineError, match=r"rank 0 was ended by signal 9"):
            running.generate([[5, 6]] * 8, LONG)
        assert_all_end([pid])

    with Engine(config_of(tiny("llama"))) as running:
        running.start_loop()
        [pid] = running.workers.process_ids
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + LIMIT_S
        while running.failure is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(EngineError, match=r"rank 0 was ended by signal 9"):
            running.submit([1], SHORT, lambda output: None)
        assert_all_end([pid])


DRIVER = """
import sys, threading, time
from tpplanner.engine.config import EngineConfig
from tpplanner.engine.engine import Engine
from tpplanner.engine.sampling_params import SamplingParams

running = Engine(EngineConfig(model=sys.argv[1], tp=2, device="cpu", num_threads=1, num_kv_blocks=512))
running.start_loop()
began = threading.Event()
running.submit([5, 6, 7], SamplingParams(temperature=0.0, max_tokens=1900, ignore_eos=True), lambda output: began.set())
began.wait()
print(*running.workers.process_ids, flush=True)
time.sleep(600)
"""


def test_a_killed_driver_leaves_no_worker_and_no_folder(tiny, tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", DRIVER, str(tiny("llama"))], stdout=subprocess.PIPE, text=True,
                          env=environment) as driver:
        try:
            pids = [int(word) for word in driver.stdout.readline().split()]
            assert len(pids) == 2
            assert all(is_alive(pid) for pid in pids)
            assert list(tmp_path.glob("tpplanner-engine-*"))
        finally:
            driver.kill()
    assert_all_end(pids, 10.0)
    assert not list(tmp_path.glob("tpplanner-engine-*"))


def test_a_rank_that_exits_by_itself_is_named_with_its_code(tiny):
    """As a worker that a library ends: its code is told, not guessed."""
    with Engine(config_of(tiny("llama"))) as running:
        [process] = running.workers._processes.values()
        process.kill()
        process.wait()
        process.returncode = 3
        with pytest.raises(EngineError, match=r"^engine: rank 0 ended with exit code 3; all ranks were ended$"):
            running.generate([[5, 6]], SHORT)


def test_a_listener_that_raises_fails_the_engine_and_nobody_waits_for_ever(tiny):
    def raising(output):
        raise ZeroDivisionError("in the caller's code")

    with Engine(config_of(tiny("llama"))) as running:
        pids = running.workers.process_ids
        running.submit([5, 6], SHORT, raising)
        with pytest.raises((EngineError, ZeroDivisionError), match="in the caller's code"):
            running.run()
        with pytest.raises(EngineError, match="in the caller's code"):
            running.submit([5, 6], SHORT, lambda output: None)
        assert_all_end(pids)


def test_closing_with_requests_open_aborts_them(tiny):
    outputs, runs = [], threading.Event()
    with Engine(config_of(tiny("llama"), delays=Delays(schedule_s=0.01))) as running:
        running.start_loop()
        for _ in range(3):
            running.submit([5, 6], LONG, lambda output: (outputs.append(output), runs.set()))
        assert runs.wait(LIMIT_S)
        pids = running.workers.process_ids
    assert [str(output.finish_reason) for output in outputs if output.finish_reason] == ["abort"] * 3
    assert_all_end(pids)


def test_strangers_at_the_port_do_no_harm(tiny, monkeypatch):
    """One says nothing, one talks nonsense, one goes at once: the ranks find their driver all the same."""
    strangers = []

    def listen_with_strangers(host, port):
        server = listen(host, port)
        for message in (None, b"GET / HTTP/1.1\r\n\r\n", b"\xff\xff\xff\xff" * 64):
            stranger = socket.create_connection(server.getsockname())
            strangers.append(stranger)
            if message:
                stranger.sendall(message)
        strangers[1].close()
        return server

    monkeypatch.setattr(workers_module, "listen", listen_with_strangers)
    made = []
    thread = threading.Thread(target=lambda: made.append(Engine(config_of(tiny("llama")))), daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    for stranger in strangers:
        stranger.close()
    assert made, "the engine did not start while strangers were connected"
    with made[0] as running:
        assert len(running.generate([[5, 6]], SHORT)[0].output_ids) == 4


def test_a_wrong_key_is_refused():
    with listen("127.0.0.1", 0) as server:
        server.settimeout(LIMIT_S)
        refused = []

        def call():
            try:
                connect(server.getsockname(), new_key())
            except Exception as error:
                refused.append(type(error).__name__)

        caller = threading.Thread(target=call)
        caller.start()
        assert accept(server, new_key()) is None
        caller.join(LIMIT_S)
    assert refused == ["AuthenticationError"]


# Files


@pytest.fixture
def folder(tiny, tmp_path):
    """A copy of a model that a test may break."""
    return shutil.copytree(tiny("llama"), tmp_path / "model")


def edit(folder, name="config.json", **changes):
    file = folder / name
    values = json.loads(file.read_text(encoding="utf-8"))
    for key, value in changes.items():
        if value is ...:
            values.pop(key, None)
        else:
            values[key] = value
    file.write_text(json.dumps(values), encoding="utf-8")


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


# Sizes and settings


def test_a_model_too_large_for_any_degree_is_refused_before_it_is_made(folder):
    edit(folder, hidden_size=65536, num_hidden_layers=1000, intermediate_size=1 << 20, num_attention_heads=512, head_dim=128)
    began_s = time.monotonic()
    with pytest.raises(ModelError, match=r"at t = 1 are [\d,]+ bytes too large .* no degree up to 32 would fit") as error:
        Engine(config_of(folder, load_format="dummy"))
    one_line(error)
    assert time.monotonic() - began_s < LIMIT_S


def test_a_degree_that_would_fit_is_named(tiny, monkeypatch):
    torch = pytest.importorskip("torch")
    from tpplanner.engine import memory

    model, device, dtype = read_model(tiny("llama")), torch.device("cuda"), torch.float32
    needed = {tp: memory.weight_bytes(model, tp, dtype, device)
              + 16 * 2 * 4 * (4 // tp) * 32 * 4 for tp in (1, 2, 4)}  # one block: k and v, 4 layers, heads of 32, 4 bytes each
    for free, told in ((needed[2], "are {} bytes too large .* t = 2 would fit"), (needed[4], "are {} bytes too .* t = 4 would")):
        monkeypatch.setattr(memory, "free_bytes", lambda device, config, free=free: free)
        with pytest.raises(ModelError, match=told.format(f"{needed[1] - free:,}")):
            memory.check_fits(model, config_of(tiny("llama")), dtype, device)
    monkeypatch.setattr(memory, "free_bytes", lambda device, config: needed[1])
    memory.check_fits(model, config_of(tiny("llama")), dtype, device)


def test_kv_blocks_that_do_not_fit_are_one_error(tiny):
    with pytest.raises((EngineError, ModelError), match=r"memory|allocate|fit") as error:
        Engine(config_of(tiny("llama"), num_kv_blocks=10**10))
    one_line(error)


@pytest.mark.parametrize(("settings", "told"), [
    ({"tp": 0}, "tp must be between 1"),
    ({"tp": 1.0}, "tp must be an integer"),
    ({"tp": True}, "tp must be an integer"),
    ({"device": "tpu"}, "device must be one of auto, cpu, cuda, got 'tpu'"),
    ({"dtype": "int8"}, "dtype must be one of"),
    ({"load_format": "pt"}, "load_format must be one of"),
    ({"num_kv_blocks": 0}, "num_kv_blocks must be between 1"),
    ({"kv_cache_bytes": -1}, "kv_cache_bytes must be between 1"),
    ({"kv_block_size_tok": 0}, "kv_block_size_tok must be between 1"),
    ({"max_num_seqs": 0}, "max_num_seqs must be between 1"),
    ({"max_num_batched_tokens": "many"}, "max_num_batched_tokens must be an integer"),
    ({"max_num_seqs": 64, "max_num_batched_tokens": 63}, "max_num_batched_tokens must be >= max_num_seqs 64, got 63"),
    ({"max_context_tok": 0}, "max_context_tok must be between 1"),
    ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization must be between 0.01 and 1"),
    ({"gpu_memory_utilization": float("nan")}, "gpu_memory_utilization must be a finite number"),
    ({"num_threads": 0}, "num_threads must be between 1"),
    ({"seed": -1}, "seed must be between 0"),
    ({"preemption": "swap"}, "preemption must be a Preemption"),
    ({"switches": None}, "switches must be Switches"),
])
def test_settings_that_make_no_sense_are_refused_before_anything_starts(settings, told):
    with pytest.raises(WorkloadError, match=told) as error:
        EngineConfig(**({"model": "anywhere"} | settings))
    assert one_line(error).startswith("engine: ")


@pytest.mark.parametrize("value", [-1.0, float("nan"), 61.0, "1"])
def test_delays_that_make_no_sense_are_refused(value):
    with pytest.raises(WorkloadError, match="schedule_s must be"):
        Delays(schedule_s=value)


def test_a_device_that_is_not_there_is_one_error(tiny):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(Exception, match="--device cuda: this machine has no CUDA device") as error:
        Engine(config_of(tiny("llama"), device="cuda"))
    one_line(error)
