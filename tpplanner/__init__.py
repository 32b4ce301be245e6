"""Choose the tensor-parallel degree of LLM serving replicas from an Amdahl-style cost model.

>>> import tpplanner
>>> answer = tpplanner.recommend(model="Qwen/Qwen2.5-32B-Instruct", gpus="8xh100-sxm", isl=512, osl=512,
...                              batch_per_gpu=32)
>>> answer.best_tp in (1, 2, 4, 8)
True
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tpplanner.api import Answer, Validation, compare_engines, load_model, question, recommend, simulate, sweep, validate
    from tpplanner.api.engine_bench import engine_bench
    from tpplanner.errors import TpplannerError

__version__ = "0.1.0"
__all__ = [
    "Answer", "TpplannerError", "Validation", "__version__", "compare_engines", "engine_bench", "load_model", "question",
    "recommend", "simulate", "sweep", "validate",
]


def __getattr__(name: str) -> object:
    # Importing tpplanner.units or tpplanner.errors must not load numpy.
    if name == "TpplannerError":
        from tpplanner.errors import TpplannerError

        return TpplannerError
    if name == "engine_bench":
        from tpplanner.api.engine_bench import engine_bench

        return engine_bench
    if name in __all__:
        from tpplanner import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
