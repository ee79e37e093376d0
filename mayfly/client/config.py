"""URL and key of a stack, from environment or configuration file."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mayfly.client.errors import NotConfigured


@dataclass(frozen=True, slots=True)
class Config:
    """URL and key of a stack."""

    url: str
    key: str = ""

    def __repr__(self) -> str:
        return f"<Config {self.url} key {public_part(self.key)}>"


def public_part(key: str) -> str:
    """Return the part of a key that may be shown.

    >>> public_part("mfy_4uiwhwnxlxtg_secret"), public_part("")
    ('mfy_4uiwhwnxlxtg_…', 'none')
    """
    if not key:
        return "none"
    first, _, rest = key.partition("_")
    identifier, separator, _ = rest.partition("_")
    return f"{first}_{identifier}_…" if separator else "…"


def config_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the path of the file: MAYFLY_CONFIG, or mayfly/config.json in XDG_CONFIG_HOME."""
    if path := environment.get("MAYFLY_CONFIG"):
        return Path(path)
    base = environment.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "mayfly" / "config.json"


def load(environment: Mapping[str, str] = os.environ) -> Config:
    """Return MAYFLY_URL and MAYFLY_KEY, or else the file's.

    A key of the environment goes with a URL of the file, but a key of the file goes only to the
    URL that was stored with it.

    Raises:
        NotConfigured: there is neither, or the file cannot be read.
    """
    url, key = environment.get("MAYFLY_URL", ""), environment.get("MAYFLY_KEY", "")
    if url:
        return Config(url, key)
    path = config_path(environment)
    try:
        stored = json.loads(path.read_text())
        return Config(str(stored["url"]), key or str(stored.get("key", "")))
    except FileNotFoundError:
        raise NotConfigured(
            "no stack is named: set MAYFLY_URL and MAYFLY_KEY, or run mayfly login URL"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotConfigured(f"{path} cannot be read ({error}): run mayfly login again") from None


def save(config: Config, environment: Mapping[str, str] = os.environ) -> Path:
    """Store URL and key with mode 0600; return the path."""
    path = config_path(environment)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"url": config.url, "key": config.key}, file)
    temporary.replace(path)
    return path
