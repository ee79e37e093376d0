"""Addresses of host names, looked up within a deadline.

`getaddrinfo` takes no timeout: it blocks for up to 30 s if no name server answers.
"""

import socket
import threading
from time import monotonic
from typing import Any

# family, type, protocol, canonical name, socket address
Address = tuple[int, int, int, str, Any]

_lookups: dict[tuple[str, int], "_Lookup"] = {}  # in progress: a dead server holds one thread
_lock = threading.Lock()


def resolve(host: str, port: int, deadline: float) -> list[Address]:
    """Return the TCP addresses of a host before `deadline`, of `time.monotonic`.

    Raises:
        OSError: the host has no address.
        TimeoutError: no answer before the deadline.
    """
    try:
        return _ask(host, port, socket.AI_NUMERICHOST)
    except socket.gaierror:  # a name, not an address
        pass
    lookup = _lookup(host, port)
    if lookup is None:
        return _ask(host, port)
    if not lookup.done.wait(max(0.0, deadline - monotonic())):
        raise TimeoutError(f"no name server answered for {host}")
    if lookup.error is not None:
        raise OSError(str(lookup.error))
    return lookup.addresses


class _Lookup:
    """Call of getaddrinfo in a thread, for all that need its answer."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self.done = threading.Event()
        self.addresses: list[Address] = []
        self.error: OSError | None = None

    def run(self) -> None:
        """Look up the addresses of the host name."""
        try:
            self.addresses = _ask(self._host, self._port)
        except OSError as error:
            self.error = error
        finally:
            with _lock:
                _lookups.pop((self._host, self._port), None)
            self.done.set()


def _lookup(host: str, port: int) -> _Lookup | None:
    """Return the host's lookup in progress, started if needed.

    None if there is no memory for another thread.
    """
    with _lock:
        lookup = _lookups.get((host, port))
        if lookup is None:
            lookup = _Lookup(host, port)
            try:
                threading.Thread(target=lookup.run, name="resolve", daemon=True).start()
            except RuntimeError:
                return None
            _lookups[host, port] = lookup
    return lookup


def _ask(host: str, port: int, flags: int = 0) -> list[Address]:
    # As bytes, because a str is encoded with IDNA, whose codec takes time to import.
    name: Any = host.encode() if host.isascii() else host
    return [*socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=flags)]
