"""Checks of a set-up: settings, address, connection, key, clock, versions."""

import os
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from mayfly import __version__
from mayfly.cli.session import Session
from mayfly.client import config, errors
from mayfly.client.errors import MayflyError
from mayfly.client.http1 import address, requests
from mayfly.client.http1.messages import Reply, json_request

SKEW_S = 120  # a signature of AWS is refused after five minutes


@dataclass(frozen=True, slots=True)
class Check:
    """Result of one check, and the command that mends it."""

    name: str
    ok: bool
    detail: str
    mend: str = ""


def checks(session: Session) -> Iterator[Check]:
    """Yield the checks in order, until one that others need fails."""
    try:
        settings = session.config
        place = address.parse(settings.url)
    except MayflyError as error:
        yield Check("settings", False, str(error), "mayfly login URL")
        return
    yield Check("settings", True, f"{place}, key {config.public_part(settings.key)}")
    yield from _file()
    for check in _proxy(place):
        yield check
        if not check.ok:
            return
    check, reply = _reach(session, place)
    yield check
    if reply is None:
        return
    yield from _clock(reply)
    yield from _service(session)


def _file() -> Iterator[Check]:
    path = config.config_path()
    if not path.exists():
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    private = not mode & 0o077
    detail = f"{path} has mode {mode:04o}" + ("" if private else ": others can read the key")
    yield Check("file", private, detail, f"chmod 600 {path}")


def _proxy(place: address.Address) -> Iterator[Check]:
    try:
        proxy = requests.find_proxy(place)
    except MayflyError as error:
        yield Check("proxy", False, str(error), "unset HTTPS_PROXY HTTP_PROXY")
        return
    if proxy:
        yield Check("proxy", True, f"{proxy.host}:{proxy.port}")


def _reach(session: Session, place: address.Address) -> tuple[Check, Reply | None]:
    """Return the check of the connection, and its reply."""
    stage = "mayfly login URL, with the stage, e.g. …amazonaws.com/live"
    try:
        if not requests.find_proxy(place):
            socket.getaddrinfo(place.host, place.port)
        reply = session.client._caller.call(json_request("GET", "/v2/health/live", timeout=15.0))
    except socket.gaierror as error:
        return Check("name", False, f"{place.host}: {error.strerror}", "mayfly login URL"), None
    except errors.NotFound:
        return Check(
            "address", False, f"{place} is no Mayfly: it has no /v2/health/live", stage
        ), None
    except errors.Forbidden as error:
        return Check("address", False, str(error), stage), None
    except errors.NotConfigured as error:
        return Check("certificate", False, str(error), "export SSL_CERT_FILE=ca.pem"), None
    except MayflyError as error:
        return Check("connection", False, str(error), f"curl -i {place}/v2/health/live"), None
    return Check("connection", True, str(place)), reply


def _clock(reply: Reply) -> Iterator[Check]:
    date = reply.headers.get("date")
    if not date:
        return
    skew = time.time() - parsedate_to_datetime(date).timestamp()
    ok = abs(skew) < SKEW_S
    detail = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the service's"
    yield Check("clock", ok, detail, "sudo timedatectl set-ntp true")


def _service(session: Session) -> Iterator[Check]:
    caller = session.client._caller
    try:
        server = caller.get("/v2")
    except errors.Unauthorized as error:
        yield Check("key", False, str(error), "export MAYFLY_KEY=$(mayfly keys create)")
        return
    except MayflyError as error:
        yield Check("service", False, str(error), f"curl -i {session.config.url}/v2")
        return
    if not isinstance(server, dict) or server.get("name") != "mayfly":
        yield Check("address", False, "another server answers at /v2", "mayfly login URL")
        return
    yield Check("key", True, "accepted" if session.config.key else "none is asked for")
    version = str(server.get("version", ""))
    same = version.split(".")[:2] == __version__.split(".")[:2]
    detail = f"service {version}, command line {__version__}"
    yield Check("versions", same, detail, "pip install . in a clone of the service's version")
    yield from _control_plane(session)


def _control_plane(session: Session) -> Iterator[Check]:
    try:
        session.client._caller.get("/api/v1/models?limit=1")
    except errors.Forbidden as error:
        mend = "mayfly keys create --scope infer --scope deploy --scope read"
        yield Check("scopes", False, str(error), mend)
    except MayflyError as error:
        yield Check("control plane", False, str(error), f"make deploy STACK={_stack(session)}")
    else:
        yield Check("control plane", True, "the key may read models")


def _stack(session: Session) -> str:
    return session.stack or os.environ.get("STACK", "mayfly")
