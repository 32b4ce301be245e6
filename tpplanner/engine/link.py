"""The socket between driver and workers: length-framed bytes, both ends prove that they know the key."""

import os
import secrets
import socket
import struct
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge

from tpplanner.errors import EngineError

TIMEOUT_S = 60.0
_STRANGER_S = 5
"""So long somebody who connects has for each word of the proof; the ranks wait in the queue behind."""


def new_key() -> bytes:
    """Return a key for one run."""
    return secrets.token_bytes(32)


def _framed(raw: socket.socket) -> Connection:
    # A step's message must not wait for the acknowledgement of the one before.
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setblocking(True)
    return Connection(raw.detach())


def connect(address: tuple[str, int], key: bytes) -> Connection:
    """Connect to the driver."""
    link = _framed(socket.create_connection(address, timeout=TIMEOUT_S))
    answer_challenge(link, key)
    deliver_challenge(link, key)
    return link


def accept(server: socket.socket, key: bytes) -> Connection | None:
    """Accept one worker within the server's timeout; ``None`` where nobody came, or one that does not know the key."""
    try:
        raw, _ = server.accept()
    except TimeoutError:
        return None
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _STRANGER_S, 0))
    link = _framed(raw)
    try:
        deliver_challenge(link, key)
        answer_challenge(link, key)
        with socket.socket(fileno=os.dup(link.fileno())) as known:
            known.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))
    except (AuthenticationError, EOFError, OSError):
        link.close()
        return None
    return link


def listen(host: str, port: int) -> socket.socket:
    """Listen for workers."""
    try:
        server = socket.create_server((host, port))
    except OSError as error:
        raise EngineError(f"engine: cannot listen on {host}:{port}: {error}") from None
    server.settimeout(0.2)
    return server
