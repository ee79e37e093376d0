"""Versions as DynamoDB items, also those of earlier releases."""

from dataclasses import replace

from functions.core.registry.items import version_from_item, version_to_item
from functions.core.registry.version import Blob
from tests.fakes import MemoryTable
from tests.unit.functions.registry.versions import make_registry, ready, source


def test_language_facts_and_assets_survive_the_table() -> None:
    claimed = make_registry(MemoryTable()).claim("m", source("models/m/model.tar.gz"))
    version = replace(
        ready(claimed),
        language={"kind": "decoder", "defaults": {"top_p": 0.5}, "bos": None, "eos": [1]},
        assets=(Blob("tokenizer.json", "cd" * 32, 5),),
    )
    item = version_to_item(version)

    assert version_from_item(item).language == version.language
    assert version_from_item(item).assets == version.assets
    assert version.assets[0] in version.blobs
    earlier = {name: item[name] for name in item.keys() - {"language", "assets"}}
    assert version_from_item(earlier) == replace(version, language=None, assets=())
