"""Lambda environment of a serving function, wired from its variables.

Only what the first AWS calls need is imported at the top; connections are made while the rest is.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from functions.adapters.aws_http.blobs import BlobReader
from functions.adapters.aws_http.client import Client
from functions.adapters.aws_http.settings import Settings
from functions.adapters.lambda_size import ceiling_bytes, idle_bytes
from functions.adapters.memory import is_restored, limit_memory
from functions.core.access.auth import Auth, parse_auth

if TYPE_CHECKING:
    from functions.core.access.cors import Cors
    from functions.core.access.gate import Gate
    from functions.core.serving.model_cache import FileCache
    from functions.core.usage.meter import Meter

DEFAULT_MEMORY_MB = 3008  # MB assumed without Lambda's variable, e.g. in a test
ON_DEMAND, SNAP_START = "on-demand", "snap-start"  # values of AWS_LAMBDA_INITIALIZATION_TYPE


class ServingEnvironment:
    """Clients, registry, resolver, gate and temporary folder of a serving function.

    `size_mb` is the function's memory, which the process may not exceed. `gate` is None unless
    callers need access keys.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        """Limit memory, connect to AWS and wire the adapters.

        Raises:
            LookupError: variables are missing.
            ValueError: one has an invalid value.
        """
        required = ("SERVING_BUCKET", "REGISTRY_TABLE")
        if missing := [name for name in required if not variables.get(name)]:
            raise LookupError(
                f"environment variables are missing: {', '.join(missing)}; template.yaml sets them"
            )
        self._variables = variables
        memory_mb = variables.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
        self.size_mb = int(memory_mb or DEFAULT_MEMORY_MB)
        if memory_mb:
            limit_memory(ceiling_bytes(self.size_mb))
        self.initialization = variables.get("AWS_LAMBDA_INITIALIZATION_TYPE", ON_DEMAND)
        settings = Settings.from_environment(variables)
        self.dynamodb = Client(settings, "dynamodb")
        self.blobs = BlobReader.from_settings(
            settings, variables["SERVING_BUCKET"], variables.get("BUCKET_OWNER")
        )
        auth = parse_auth(variables.get("AUTH", "none"))
        if self.initialization != SNAP_START:  # connections do not survive a snapshot
            self.dynamodb.preconnect()
            self.blobs.preconnect()

        from pathlib import Path

        from functions.adapters.aws_http.dynamodb import DynamoCalls
        from functions.adapters.clock import Elapsed, utc_now
        from functions.adapters.dynamodb_table import ItemTable
        from functions.adapters.scratch import Scratch
        from functions.core.registry.registry import Registry
        from functions.core.registry.resolver import Resolver

        temporary = variables.get("TMPDIR") or "/tmp"  # noqa: S108 (made private)
        self.scratch = Scratch(Path(temporary), "models-")
        self.table = ItemTable(DynamoCalls(self.dynamodb), variables["REGISTRY_TABLE"])
        self.registry = Registry(self.table, utc_now)
        alias_seconds = float(variables.get("ALIAS_CACHE_SECONDS", "5"))
        self.resolver = Resolver(self.registry, alias_seconds, Elapsed())
        self.gate = self._gate() if auth is Auth.KEYS else None

    def has_memory(self, held_bytes: int) -> bool:
        """Return True if only the process and `held_bytes` of models take memory."""
        return is_restored(idle_bytes(self.size_mb, held_bytes))

    def meter(self, start_s: Callable[[], float]) -> "Meter":
        """Return a meter that writes its counts to the registry's table."""
        import sys

        from functions.adapters.clock import Elapsed
        from functions.core.serving.request_log import warning_line
        from functions.core.usage.meter import Meter

        return Meter(
            self.table,
            float(self._variables.get("USAGE_FLUSH_SECONDS", "10")),
            int(self._variables.get("USAGE_RETENTION_DAYS", "400")),
            clock=Elapsed(),
            start_s=start_s,
            warn=lambda text: sys.stdout.write(warning_line(text) + "\n"),
        )

    def cors(self) -> "Cors | None":
        """Return the permission for web pages of other origins, if any."""
        from functions.core.access.cors import parse_origins

        origins = self._variables.get("CORS_ORIGINS", "")
        return parse_origins(origins) if origins else None

    def preload(self, models: "FileCache[Any]") -> bool:
        """Load the models that PRELOAD_MODELS names, as far as INIT's time allows.

        Returns False if it names none. A model that cannot be loaded is logged.
        """
        names = self._variables.get("PRELOAD_MODELS", "")
        if not names:
            return False
        import time

        from functions.adapters.lambda_size import init_seconds
        from functions.core.serving.preload import parse_names, preload

        deadline = time.monotonic() + init_seconds(self.initialization)
        preload(parse_names(names), self.resolver, models, deadline)
        return True

    def init_s(self) -> float:
        """Return the seconds since the process started that Lambda bills as INIT.

        Zero where environments are started ahead of requests.
        """
        from functions.adapters.clock import process_age_s

        return process_age_s() if self.initialization == ON_DEMAND else 0.0

    def _gate(self) -> "Gate":
        from functions.adapters.clock import Elapsed
        from functions.core.access.gate import Gate
        from functions.core.access.grant_items import read_grant

        key_seconds = float(self._variables.get("KEY_CACHE_SECONDS", "60"))
        return Gate(partial(read_grant, self.table), key_seconds, Elapsed())
