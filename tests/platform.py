"""Register and infer in this process, over one registry: the path from an upload to its replies."""

from pathlib import Path

from functions.adapters.onnx.sessions import OnnxRuntime
from functions.adapters.sandbox import ProcessSandbox
from functions.core.registration.registration import Registration
from functions.core.registry.registry import Registry
from functions.core.registry.resolver import Resolver
from functions.core.registry.version import Version
from functions.core.serving.model_cache import MB, ModelCache
from functions.core.serving.service import InferenceService
from functions.core.serving.statistics import Statistics
from functions.core.uploads import Upload
from functions.core.usage.meter import Meter
from functions.infer.handler import InferHandler
from functions.register.manifest import read_manifest
from tests.data_plane import Client
from tests.fakes import MemoryBlobs, MemoryTable, MemoryUploads

KEY = "models/demo/model.onnx"


class Platform:
    """Registration in a real sandbox and inference in ONNX Runtime, with fake buckets and table."""

    def __init__(self, directory: Path, sandbox: ProcessSandbox) -> None:
        self.uploads, self.blobs = MemoryUploads(), MemoryBlobs()
        table = MemoryTable()
        registry, meter = Registry(table, lambda: "2026-11-22T08:00:00.000Z"), Meter(table)
        self.registration = Registration(registry, self.uploads, self.blobs, sandbox, read_manifest)
        models = ModelCache(self.blobs, OnnxRuntime(), memory_bytes=64 * MB, directory=directory)
        statistics = Statistics(table, meter)
        service = InferenceService(registry, Resolver(registry, 0.0), models, statistics)
        self.client = Client(InferHandler(service, meter=meter, write=lambda _: None))

    def upload(self, model: bytes) -> Version:
        """Upload a model named `demo`, register it and return its version."""
        version = self.registration.register(Upload("up", KEY, self.uploads.put("up", KEY, model)))
        assert version is not None
        return version
