"""A minimal inference engine: real weights, continuous batching, a sequential and an overlapped loop.

The driver process schedules, prepares inputs and processes outputs; it imports no torch. One worker process per rank runs
forward and sampling. Needs the extra ``[engine]``.
"""

from tpplanner.engine.config import Delays, EngineConfig
from tpplanner.engine.engine import Engine
from tpplanner.engine.request import Completion, FinishReason, Output
from tpplanner.engine.sampling_params import SamplingParams

__all__ = ["Completion", "Delays", "Engine", "EngineConfig", "FinishReason", "Output", "SamplingParams"]
