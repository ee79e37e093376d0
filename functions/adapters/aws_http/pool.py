"""Pool of idle HTTP connections to one endpoint, kept for reuse."""

import contextlib
import threading
import time
from collections.abc import Callable

from functions.adapters.aws_http.connection import BrokenConnection, Connection

IDLE_S = 20.0  # s; services close idle connections after about this time


class Pool:
    """Pool of idle HTTP connections, shared by threads, newest reused first."""

    def __init__(self, connect: Callable[[float], Connection]) -> None:
        """Create an empty connection pool; `connect` opens connections before a deadline."""
        self._connect = connect
        self._idle: list[Connection] = []  # append and pop are atomic

    def take(self, deadline: float) -> Connection:
        """Return an idle connection of the pool, or open a new one."""
        while (connection := self._pop()) is not None:
            if time.time() - connection.pooled_at < IDLE_S:
                return connection
            connection.close()
        return self._connect(deadline)

    def reconnect(self, deadline: float) -> Connection:
        """Close all idle connections as stale, and open a new one."""
        self.close()
        return self._connect(deadline)

    def put_back(self, connection: Connection) -> None:
        """Put a connection back into the pool for later requests."""
        connection.pooled_at = time.time()  # unlike time.monotonic, counts time while frozen
        self._idle.append(connection)

    def preconnect(self, count: int, deadline: float) -> None:
        """Open connections in background threads for later requests; ignore failures.

        A failure shows again when a connection is needed.
        """
        for _ in range(count):
            threading.Thread(
                target=self._add, args=(deadline,), name="connect", daemon=True
            ).start()

    def close(self) -> None:
        """Close all idle connections of the pool."""
        while (connection := self._pop()) is not None:
            connection.close()

    def _pop(self) -> Connection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _add(self, deadline: float) -> None:
        with contextlib.suppress(BrokenConnection):
            self.put_back(self._connect(deadline))
