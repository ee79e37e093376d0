"""Pool of kept connections to one endpoint."""

import contextlib
import threading
import time
from collections.abc import Callable

from functions.adapters.aws_http.connection import BrokenConnection, Connection

IDLE_S = 20.0  # services close idle connections after about as long


class Pool:
    """Idle connections to one endpoint, shared by threads, newest first."""

    def __init__(self, connect: Callable[[float], Connection]) -> None:
        """Create an empty pool; `connect` opens a connection before a deadline."""
        self._connect = connect
        self._idle: list[Connection] = []  # append and pop are atomic

    def take(self, deadline: float) -> Connection:
        """Return an idle connection, or open one."""
        while (connection := self._pop()) is not None:
            if time.time() - connection.pooled_at < IDLE_S:
                return connection
            connection.close()
        return self._connect(deadline)

    def reconnect(self, deadline: float) -> Connection:
        """Close the idle connections, which are stale, and open a new one."""
        self.close()
        return self._connect(deadline)

    def put_back(self, connection: Connection) -> None:
        """Keep a connection for later requests."""
        connection.pooled_at = time.time()  # unlike monotonic, goes on while Lambda freezes us
        self._idle.append(connection)

    def preconnect(self, count: int, deadline: float) -> None:
        """Open connections in threads; a failure shows when a connection is needed."""
        for _ in range(count):
            threading.Thread(
                target=self._add, args=(deadline,), name="connect", daemon=True
            ).start()

    def close(self) -> None:
        """Close the idle connections."""
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
