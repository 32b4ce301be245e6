"""Ranks that torchrun started: rank 0 drives, the others find it through torchrun's own store."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tpplanner.errors import EngineError

_KEY = f"tpplanner/engine/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
"""Ranks that torchrun started anew must not find the address of before."""


def launched_rank() -> int | None:
    """Rank of this process under torchrun; ``None`` where it was started by hand."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else None


def _store() -> Any:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]),
                    is_master=not agent and os.environ["RANK"] == "0", timeout=timedelta(seconds=120))


@dataclass(slots=True)
class Launched:
    """Rank 0 among the ranks of torchrun; ``host`` is the address at which the others reach it."""

    host: str
    store: Any

    @classmethod
    def join(cls, tp: int) -> "Launched":
        """Check that torchrun started t ranks."""
        if int(os.environ["WORLD_SIZE"]) != tp:
            raise EngineError(f"engine: torchrun started {os.environ['WORLD_SIZE']} ranks, --tp is {tp}")
        return cls(os.environ["MASTER_ADDR"], _store())

    def publish(self, address: str, key: bytes) -> None:
        """Tell the other ranks where the driver listens."""
        self.store.set(_KEY, f"{address} {key.hex()}")


def serve_rank() -> None:
    """Be one of the ranks that do not drive, until the driver goes away."""
    from tpplanner.engine.worker import serve

    address, key = _store().get(_KEY).decode().split()
    host, port = address.rsplit(":", 1)
    serve(int(os.environ["RANK"]), (host, int(port)), bytes.fromhex(key), "env://")
