"""Files beside a language model: names, size limits, and their JSON."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from functions.core.errors import InvalidModel
from functions.core.records import record

MB = 1024 * 1024
TOKENIZER, TEMPLATE, CONFIG = "tokenizer.json", "chat_template.jinja", "config.json"
TOKENIZER_CONFIG, SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
GENERATION, GENAI = "generation_config.json", "genai_config.json"
POOLING, MODULES, SENTENCES = "pooling_config.json", "modules.json", "sentence_bert_config.json"

TOKENIZER_BYTES = 40 * MB  # the largest in use has 34 MB (gemma, 256,000 tokens); loaded, 10 x that
CONFIG_BYTES = 8 * MB  # a tokenizer_config.json with added tokens and template has up to 2 MB

# Path of each file in a package, in the model's folder or above -> name that it is stored under.
PATHS = {
    **{
        name: name
        for name in (
            TOKENIZER,
            TEMPLATE,
            CONFIG,
            TOKENIZER_CONFIG,
            SPECIAL_TOKENS,
            GENERATION,
            GENAI,
            MODULES,
            SENTENCES,
        )
    },
    "1_Pooling/config.json": POOLING,  # sentence-transformers
}
NAMES = frozenset(PATHS.values())


def check_size(name: str, size_bytes: int) -> None:
    """Check the size of a file before it is read.

    Raises:
        InvalidModel: `TOKENIZER_TOO_LARGE`, `TEMPLATE_TOO_LARGE` or `CONFIG_TOO_LARGE`.
    """
    limit = TOKENIZER_BYTES if name == TOKENIZER else MB if name == TEMPLATE else CONFIG_BYTES
    if size_bytes > limit:
        kind = {TOKENIZER: "TOKENIZER", TEMPLATE: "TEMPLATE"}.get(name, "CONFIG")
        raise InvalidModel(
            f"{name} has {size_bytes} bytes, and {limit} are allowed", code=f"{kind}_TOO_LARGE"
        )


@record
class Configs:
    """Parsed configuration files of a language model, by name."""

    documents: Mapping[str, Mapping[str, Any]]

    def values(self, name: str, *paths: str) -> Iterator[Any]:
        """Yield a file's values at dotted paths, where it has them."""
        for path in paths:
            value: Any = self.documents.get(name)
            for part in path.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if value is not None:
                yield value

    def number(self, name: str, *paths: str, most: int = 2**31) -> int | None:
        """Return the first positive integer of a file at dotted paths."""
        for value in self.values(name, *paths):
            if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most:
                return value
        return None

    def text(self, name: str, *paths: str) -> str | None:
        """Return the first text of a file at dotted paths.

        A token may be spelled as an object, too: {"content": "</s>"}.
        """
        for value in self.values(name, *paths):
            text = value.get("content") if isinstance(value, Mapping) else value
            if isinstance(text, str):
                return text
        return None


def read_configs(assets: Mapping[str, bytes]) -> Configs:
    """Parse the JSON files among a model's assets, except the tokenizer.

    Raises:
        InvalidModel: `BAD_CONFIG`, with the file at fault.
    """
    names = (name for name in assets if name.endswith(".json") and name != TOKENIZER)
    return Configs({name: _parse(name, assets[name]) for name in names})


def _parse(name: str, raw: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(raw)
        if b"\\ud" in raw.lower():  # half of a surrogate pair is no text: UnicodeEncodeError
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidModel(f"{name} is no JSON: {error}", code="BAD_CONFIG") from None
    if name == MODULES and isinstance(document, list):  # sentence-transformers
        return {"modules": document}
    if not isinstance(document, dict):
        raise InvalidModel(f"{name} has to be a JSON object", code="BAD_CONFIG")
    return document


def template_source(assets: Mapping[str, bytes], configs: Configs) -> str | None:
    """Return a model's chat template: its own file, or tokenizer_config.json's.

    Raises:
        InvalidModel: `TEMPLATE_INVALID`, the file is not UTF-8.
    """
    if TEMPLATE in assets:
        try:
            return assets[TEMPLATE].decode()
        except UnicodeDecodeError:
            raise InvalidModel(f"{TEMPLATE} is not UTF-8", code="TEMPLATE_INVALID") from None
    for template in configs.values(TOKENIZER_CONFIG, "chat_template"):
        if isinstance(template, str):
            return template
        if isinstance(template, list):  # several, by name
            named = {
                entry.get("name"): entry.get("template")
                for entry in template
                if isinstance(entry, Mapping) and isinstance(entry.get("name"), str)
            }
            source = named.get("default")
            return source if isinstance(source, str) else None
    return None


def special_tokens(configs: Configs) -> dict[str, str]:
    """Return special tokens by the names that chat templates use."""
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")
    tokens = {
        name: configs.text(TOKENIZER_CONFIG, name) or configs.text(SPECIAL_TOKENS, name)
        for name in names
    }
    return {name: text[:256] for name, text in tokens.items() if text}
