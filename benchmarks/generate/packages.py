"""Packages of language models to measure: their files, facts and sizes."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from functions.core.language.spec import Kind, LanguageSpec, Pooling

_READ_BY_ROW = ("Gather", "GatherBlockQuantized")  # operators that read one row of a table a token


class Package:
    """Unpacked package in a folder."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.config: Mapping[str, Any] = json.loads((folder / "config.json").read_text())
        self._graph = onnx.load(str(folder / "model.onnx")).graph
        self.spec = self._spec()

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(_size(tensor) for tensor in self._graph.initializer)

    @property
    def bytes_a_token(self) -> int:
        """Bytes of weights that each token reads.

        Not those of tables of which it reads a row."""
        tables = {node.input[0] for node in self._graph.node if node.op_type in _READ_BY_ROW} - {
            name
            for node in self._graph.node
            if node.op_type not in _READ_BY_ROW
            for name in node.input
        }
        weights = self._graph.initializer
        return sum(_size(tensor) for tensor in weights if tensor.name not in tables)

    def _spec(self) -> LanguageSpec:
        config = self.config
        inputs = {value.name for value in self._graph.input}
        shapes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*self._graph.input, *self._graph.output)
        }
        context = config.get("max_position_embeddings", 512)
        tokens = json.loads((self.folder / "tokenizer.json").read_text())["model"]["vocab"]
        if "past_key_values.0.key" not in inputs:
            [output] = [shapes[value.name] for value in self._graph.output]
            return LanguageSpec(
                kind=Kind.ENCODER,
                vocabulary=len(tokens),
                context=context,
                pooling=Pooling.MEAN if len(output) == 3 else Pooling.GRAPH,
                dimensions=output[-1],
            )
        _, heads, _, size = shapes["past_key_values.0.key"]
        return LanguageSpec(
            kind=Kind.DECODER,
            vocabulary=shapes["logits"][-1],
            context=context,
            layers=sum(name.endswith(".key") for name in inputs),
            kv_heads=heads,
            head_size=size,
            # As registration finds out and records, so that a load does not.
            shared_cache=any(node.op_type == "GroupQueryAttention" for node in self._graph.node),
        )

    def write_genai_config(self, threads: int) -> None:
        """Write genai_config.json, with which onnxruntime-genai loads the same graph."""
        spec, config = self.spec, self.config
        past, present = "past_key_values.%d", "present.%d"
        decoder = {
            "filename": "model.onnx",
            "head_size": spec.head_size,
            "hidden_size": config["hidden_size"],
            "num_attention_heads": config["num_attention_heads"],
            "num_hidden_layers": spec.layers,
            "num_key_value_heads": spec.kv_heads,
            "session_options": {"intra_op_num_threads": threads, "provider_options": []},
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "past_key_names": f"{past}.key",
                "past_value_names": f"{past}.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": f"{present}.key",
                "present_value_names": f"{present}.value",
            },
        }
        model = {
            "type": "llama",
            "vocab_size": spec.vocabulary,
            "context_length": spec.context,
            "bos_token_id": 0,
            "eos_token_id": spec.vocabulary - 1,  # a token that no reply has, so that none ends
            "pad_token_id": 0,
            "decoder": decoder,
        }
        search = {"max_length": spec.context, "past_present_share_buffer": True}
        text = json.dumps({"model": model, "search": search})
        (self.folder / "genai_config.json").write_text(text)


def unpack(path: Path, folder: Path) -> Package:
    """Unpack a model.tar.gz into a new folder."""
    return unpack_bytes(path.name.removesuffix(".tar.gz"), path.read_bytes(), folder)


def unpack_bytes(name: str, data: bytes, folder: Path) -> Package:
    """Unpack the bytes of a tar.gz into a new folder."""
    target = folder / name
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(target, filter="data")
    return Package(name, target)


def _size(tensor: Any) -> int:
    return len(tensor.raw_data) or tensor.ByteSize()
