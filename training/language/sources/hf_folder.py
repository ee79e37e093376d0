"""Read decoders and encoders from Hugging Face's folders of safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.errors import InvalidModelFile
from training.language import assets
from training.language.checkpoint import Checkpoint, DecoderSizes
from training.language.sources import hf_decoder, hf_encoder
from training.language.sources.safetensors_folder import open_tensors, read_json

_COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def read(folder: Path, context: int) -> Checkpoint:
    """Read a folder; at most `context` tokens are served.

    Raises:
        InvalidModelFile: a file is missing, the architecture is unknown, or tensors are missing.
    """
    config = read_json(folder / "config.json")
    kind = str(config.get("model_type"))
    if kind in hf_decoder.ARCHITECTURES:
        return _decoder(folder, config, kind, context)
    if kind in hf_encoder.ARCHITECTURES:
        return _encoder(folder, config, kind, context)
    kinds = ", ".join((*hf_decoder.ARCHITECTURES, *hf_encoder.ARCHITECTURES))
    raise InvalidModelFile(
        f"model_type {kind!r} is not known; those that can be imported are {kinds}"
    )


def _decoder(folder: Path, config: Mapping[str, Any], kind: str, context: int) -> Checkpoint:
    tensors = open_tensors(folder)
    sizes = hf_decoder.read_decoder(config, tensors, context)
    texts = _tokenizer_assets(folder, sizes.context)
    own = _decoder_assets(folder, config, kind, sizes)
    return Checkpoint(kind, sizes, tensors, {**texts, **own})


def _encoder(folder: Path, config: Mapping[str, Any], kind: str, context: int) -> Checkpoint:
    sizes, weights = hf_encoder.read_encoder(folder, config, open_tensors(folder), context)
    own = {"config.json": assets.dump({**config, "max_position_embeddings": sizes.context})}
    return Checkpoint(kind, sizes, weights, {**_tokenizer_assets(folder, sizes.context), **own})


# --- files that go along


def _tokenizer_assets(folder: Path, context: int) -> dict[str, str]:
    if not (folder / "tokenizer.json").is_file():
        raise InvalidModelFile(
            f"{folder} has no tokenizer.json: save it there by transformers' "
            "AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        )
    files = {}
    for name in _COPIED:
        if (folder / name).is_file():
            files[name] = read_json(folder / name)
    # The service cuts and pads by itself, a batch by its longest text.
    files["tokenizer.json"].update(truncation=None, padding=None)
    config = files.setdefault("tokenizer_config.json", {})
    config["model_max_length"] = context
    template = _template(folder, config)
    texts = {name: assets.dump(document) for name, document in files.items()}
    return texts | ({"chat_template.jinja": template} if template else {})


def _template(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """Return the chat template of either place, or None."""
    template = tokenizer_config.pop("chat_template", None)
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    if isinstance(template, list):  # several templates by name
        named = [item for item in template if isinstance(item, dict)]
        defaults = [item.get("template") for item in named if item.get("name") == "default"]
        template = defaults[-1] if defaults else None
    return template if isinstance(template, str) else None


def _is_special(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("special")) and isinstance(entry.get("id"), int)


def _decoder_assets(
    folder: Path, config: Mapping[str, Any], kind: str, sizes: DecoderSizes
) -> dict[str, str]:
    path = folder / "generation_config.json"
    generation = read_json(path) if path.is_file() else {}
    declared = generation.get("eos_token_id", config.get("eos_token_id"))
    added = read_json(folder / "tokenizer.json").get("added_tokens", [])
    # Entries of another form are refused when the tokenizer is loaded.
    entries = [item for item in added if isinstance(item, dict)] if isinstance(added, list) else []
    special = {str(item.get("content")): item["id"] for item in entries if _is_special(item)}
    ends = declared if isinstance(declared, list) else [declared]
    if not all(end is None or isinstance(end, int) for end in ends):
        raise InvalidModelFile(f"eos_token_id is {declared!r}, and has to be a token or a list")
    begin = generation.get("bos_token_id", config.get("bos_token_id"))
    generation["eos_token_id"] = assets.end_tokens(special, ends)
    if begin is not None:
        generation["bos_token_id"] = begin
    return {
        "generation_config.json": assets.dump(generation),
        "config.json": assets.decoder_config(kind, sizes),
    }
