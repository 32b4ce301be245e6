"""What driver and workers say to each other: MessagePack, never pickle.

Arrays travel as the bytes of ``int32`` (``float64`` for the random numbers): the worker maps them without a copy.
"""

import msgspec

from tpplanner.engine.sampling_params import SamplingParams


class Enter(msgspec.Struct, array_like=True):
    """A sequence takes a slot of the batch. ``tokens`` (prompt first) only where penalties count them."""

    slot: int
    params: SamplingParams
    num_prompt_tok: int
    tokens: bytes
    last_id: int


class ChunkInput(msgspec.Struct, array_like=True):
    """Part of a prompt: ``num_tok`` tokens after ``start_tok`` in the cache, whose blocks are ``table``."""

    start_tok: int
    num_tok: int
    table: bytes


class Copy(msgspec.Struct, array_like=True):
    """KV blocks to copy between device and host, pair by pair."""

    device_blocks: list[int]
    host_blocks: list[int]


class StepInput(msgspec.Struct, array_like=True, tag="step"):
    """One step. Rows are decode rows first, then the tokens of the chunks.

    ``patch_slots`` holds for each decode row the slot whose last sampled id is its input, read on the device; empty
    where ``token_ids`` has the ids.
    """

    step_index: int
    num_decode: int
    token_ids: bytes
    patch_slots: bytes
    positions: bytes
    kv_slots: bytes
    decode_tables: bytes
    chunks: list[ChunkInput]
    sample_rows: bytes
    sample_slots: bytes
    uniforms: bytes
    enters: list[Enter]
    swap_out: list[Copy]
    swap_in: list[Copy]


class StepOutput(msgspec.Struct, array_like=True, tag="output"):
    """Sampled ids, and when the device began and ended forward and sampling on the worker's clock [s]."""

    step_index: int
    ids: bytes
    begin_s: float
    forward_end_s: float
    end_s: float


class Ready(msgspec.Struct, array_like=True, tag="ready"):
    """The worker has loaded its weights; ``num_blocks`` is the most its memory has room for."""

    rank: int
    num_blocks: int
    device: str
    dtype: str
    weight_bytes: int


class Allocate(msgspec.Struct, array_like=True, tag="allocate"):
    """Lay out the KV cache: the smallest number of blocks over the ranks."""

    num_blocks: int


class Failed(msgspec.Struct, array_like=True, tag="failed"):
    """The worker cannot go on; ``kind`` is the name of the error."""

    rank: int
    kind: str
    message: str


class Hello(msgspec.Struct, array_like=True, tag="hello"):
    """Which rank speaks; its process."""

    rank: int
    pid: int


FromWorker = Hello | Ready | StepOutput | Failed
ToWorker = Allocate | StepInput
