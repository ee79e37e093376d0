"""Cache of loaded language models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from functions.core.errors import InvalidRequest
from functions.core.language.ports import TextModel
from functions.core.language.spec import Kind, LanguageSpec
from functions.core.registry.load_plan import Plan
from functions.core.registry.version import Version
from functions.core.serving.model_cache import FileCache, Files

CONTEXTS = 4  # whole contexts that the cache of keys and values may hold: conversations in turn
SHARE = 0.5  # share of the memory beside the weights that it may take


class Load(Protocol):
    """Loader of a language model: `adapters.language.model.LanguageModel.load`."""

    def __call__(
        self,
        paths: Mapping[str, Path],
        spec: LanguageSpec,
        plan: Plan | None = None,
        threads: int = 1,
        cache_bytes: int = 0,
    ) -> TextModel: ...


class TextModels(FileCache[TextModel]):
    """LRU cache of language models, bounded in memory and temporary storage.

    A model's keys and values count as its memory: a whole context if there is room, or half the
    room, up to CONTEXTS. A reply that needs more is refused.
    """

    def __init__(self, blobs: Any, load: Load, *, threads: int, **options: Any) -> None:
        super().__init__(blobs, **options)
        self._load_model = load
        self._threads = threads

    def _files_of(self, version: Version) -> Files:
        return version.files + version.assets

    def _load_files(self, version: Version, paths: Sequence[Path]) -> TextModel:
        spec = _spec(version)
        named = {blob.name: path for blob, path in zip(self._files_of(version), paths, strict=True)}
        plan = Plan.from_record(version.plan) if version.plan else None
        return self._load_model(
            {**named, "model.onnx": paths[0]}, spec, plan, self._threads, self._cache_bytes(version)
        )

    def _footprint_bytes(self, version: Version) -> int:
        return super()._footprint_bytes(version) + self._cache_bytes(version)

    def _loading_bytes(self, version: Version) -> int:
        return super()._loading_bytes(version) + self._cache_bytes(version)

    def _cache_bytes(self, version: Version) -> int:
        """Return the memory for keys and values of a decoder's contexts."""
        spec = _spec(version)
        if spec.kind is Kind.ENCODER:
            return 0
        buffers = 1 if spec.shared_cache else 2  # old and new keys and values, beside each other
        context = spec.context * spec.cache_bytes_per_token * buffers
        room = max(0, self._memory_bytes - super()._loading_bytes(version))
        return min(CONTEXTS * context, max(min(context, room), int(SHARE * room)))


def _spec(version: Version) -> LanguageSpec:
    """Return a version's language spec.

    Raises:
        InvalidRequest: it has none.
    """
    if version.language is None:
        raise InvalidRequest(
            f"version {version.number} of {version.model} is no language model, as its package has "
            "no tokenizer: infer serves it"
        )
    return LanguageSpec.from_record(version.language)
