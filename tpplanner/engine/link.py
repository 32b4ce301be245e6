"""The socket between driver and workers: length-framed bytes, both ends prove that they know the key."""

import secrets
import socket
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge

from tpplanner.errors import EngineError

TIMEOUT_S = 60.0


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
    link = _framed(raw)
    try:
        deliver_challenge(link, key)
        answer_challenge(link, key)
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
