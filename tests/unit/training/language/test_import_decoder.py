"""Decoders from GGUF files and safetensors become packages that compute the same."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("gguf", reason="needs the group import: make .venv/.demo installs it")
pytest.importorskip("safetensors", reason="needs the group import: make .venv/.demo installs it")

from gguf import GGMLQuantizationType
from tokenizers import Tokenizer

from tests.unit.training.language import tiny_checkpoints as tiny
from training.__main__ import main
from training.errors import InvalidModelFile
from training.export.graphs import open_session
from training.language import proof
from training.language.checkpoint import DecoderSizes, Rotary
from training.language.graph.decoder import decoder_graph, outlying_layers, quantise
from training.language.reference import decoder_logits
from training.language.sources import gguf_file, gguf_tokenizer, hf_folder

pytestmark = pytest.mark.train
TOKENS = [5, 200, 17, 42, 42, 8, 99, 3, 120, 64, 7, 30]


def unpack(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {item.name: archive.extractfile(item).read() for item in archive}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "sizes",
    [
        tiny.sizes(),
        tiny.sizes(biased=True, tied=False),
        tiny.sizes(heads=2, kv_heads=2, head_size=32, rotary=Rotary(5e5)),
        tiny.sizes(rotary=Rotary(1e4, divisors=(1, 1, 1.5, 2, 4, 8, 8, 8))),
    ],
    ids=["llama", "qwen2", "multi-head", "llama3"],
)
def test_plain_forward_pass_equals_torch(sizes: DecoderSizes) -> None:
    weights = tiny.decoder_weights(sizes)

    logits = decoder_logits(sizes, weights.__getitem__, np.array(TOKENS))

    np.testing.assert_allclose(logits, tiny.torch_logits(sizes, weights, TOKENS), atol=2e-4)


@pytest.mark.parametrize("interleaved", [False, True])
def test_graph_equals_torch_on_its_rounded_weights(interleaved: bool) -> None:
    sizes = tiny.sizes(biased=True, rotary=Rotary(1e4, interleaved))
    decoder = quantise(sizes, tiny.decoder_weights(sizes).__getitem__)
    rounded = {name: decoder.weights(name) for name in tiny.decoder_weights(sizes)}
    if interleaved:  # torch has the other order
        for name, values in rounded.items():
            part = name.split(".")[-2]
            if part in ("q_proj", "k_proj"):
                heads = sizes.heads if part == "q_proj" else sizes.kv_heads
                rounded[name] = (
                    values.reshape(heads, -1, 2, *values.shape[1:])
                    .swapaxes(1, 2)
                    .reshape(values.shape)
                )

    graph = decoder_graph(decoder, accuracy_level=0, every_logit=True)
    logits = proof.Cached(graph, sizes).run(np.array(TOKENS))

    expected = tiny.torch_logits(sizes, rounded, TOKENS)
    np.testing.assert_allclose(logits, expected, atol=2e-4)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("llama", GGMLQuantizationType.F32),
        ("llama", GGMLQuantizationType.Q8_0),
        ("llama", GGMLQuantizationType.BF16),
        ("qwen2", GGMLQuantizationType.F16),
        ("qwen2", GGMLQuantizationType.Q4_0),
        ("llama", GGMLQuantizationType.Q4_1),
    ],
)
def test_gguf_file_and_folder_have_the_same_logits(
    architecture: str, kind: GGMLQuantizationType, tmp_path: Path
) -> None:
    sizes = tiny.sizes(biased=architecture == "qwen2")
    weights = tiny.decoder_weights(sizes)
    path = tmp_path / "model.gguf"
    tiny.write_gguf(path, sizes, weights, architecture=architecture, kind=kind)
    folder = tiny.write_folder(tmp_path / "model", sizes, weights, model_type=architecture)

    logits = [
        decoder_logits(checkpoint.sizes, checkpoint.weights, np.array(TOKENS))
        for checkpoint in (gguf_file.read(path, 8192), hf_folder.read(folder, 8192))
    ]

    limits = {"F32": 1e-5, "F16": 0.005, "BF16": 0.04, "Q8_0": 0.04, "Q4_0": 0.5, "Q4_1": 0.5}
    off = np.linalg.norm(logits[0] - logits[1]) / np.linalg.norm(logits[1])
    assert off < limits[kind.name]


def test_import_writes_a_package_and_says_how_near_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = tiny.sizes()
    path = tiny.write_gguf(tmp_path / "tiny.gguf", sizes, tiny.decoder_weights(sizes))

    assert main(["import-gguf", str(path), "--out", str(tmp_path / "model.tar.gz")]) == 0

    said = capsys.readouterr().out
    assert "graph: equals a plain forward pass at 1, 2, 17, 64 tokens and from its cache" in said
    places = len(Tokenizer.from_str(json.dumps(tiny.TOKENIZER)).encode(proof.TEXT).ids[:128])
    assert f"rounding: the likeliest of {places} next tokens stays the same in" in said
    files = unpack(tmp_path / "model.tar.gz")
    assert sorted(files) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.onnx",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert files["chat_template.jinja"].decode() == tiny.TEMPLATE
    assert json.loads(files["generation_config.json"])["eos_token_id"] == [2, 0]
    session = open_session(files["model.onnx"])
    names = [item.name for item in session.get_inputs()]
    assert names[:4] == [
        "input_ids", "attention_mask", "past_key_values.0.key", "past_key_values.0.value",
    ]  # fmt: skip
    outputs = {item.name: item.shape for item in session.get_outputs()}
    assert outputs["logits"] == ["batch_size", 1, tiny.VOCABULARY]
    assert "present.1.value" in outputs


def test_eight_bits_are_nearer_than_four() -> None:
    sizes = tiny.sizes(tied=False, biased=True)
    weights = tiny.decoder_weights(sizes)
    expected = tiny.torch_logits(sizes, weights, TOKENS)

    off = {}
    for bits in (4, 8):
        rounded = quantise(sizes, weights.__getitem__, bits).weights
        off[bits] = np.abs(decoder_logits(sizes, rounded, np.array(TOKENS)) - expected).max()

    assert off[8] < off[4] / 4


@pytest.mark.parametrize("bits", ["4", "8"])
def test_either_number_of_bits_is_proven(bits: str, tmp_path: Path) -> None:
    sizes = tiny.sizes()
    folder = tiny.write_folder(tmp_path / "model", sizes, tiny.decoder_weights(sizes))
    out = str(tmp_path / "model.tar.gz")

    assert main(["import-hf", str(folder), "--bits", bits, "--out", out]) == 0


def test_tokenizer_of_a_gguf_file_equals_the_original(tmp_path: Path) -> None:
    sizes = tiny.sizes()
    path = tiny.write_gguf(tmp_path / "tiny.gguf", sizes, tiny.decoder_weights(sizes))
    original = Tokenizer.from_str(json.dumps(tiny.TOKENIZER))

    rebuilt = Tokenizer.from_str(gguf_file.read(path, 8192).assets["tokenizer.json"])

    for text in (proof.TEXT, "<|im_start|>user\nHi<|im_end|>", "  two  spaces\n\n12345", ""):
        assert rebuilt.encode(text).ids == original.encode(text).ids
        assert rebuilt.decode(rebuilt.encode(text).ids) == original.decode(
            original.encode(text).ids
        )


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1])
def test_blocks_of_a_file_keep_their_values(kind: GGMLQuantizationType, tmp_path: Path) -> None:
    sizes = tiny.sizes()
    weights = tiny.decoder_weights(sizes)
    path = tiny.write_gguf(tmp_path / "tiny.gguf", sizes, weights, kind=kind)
    checkpoint = gguf_file.read(path, 8192)

    decoder = quantise(sizes, checkpoint.weights)

    # Half precision of Q4_1's least values, and 4 bits of their distance to a whole zero.
    atol = {"Q4_0": 1e-6, "Q4_1": 0.007}[kind.name]
    name = "model.layers.0.mlp.up_proj.weight"
    np.testing.assert_allclose(decoder.weights(name), checkpoint.weights(name), atol=atol)


def test_four_bits_of_a_file_lose_little_of_its_answers(tmp_path: Path) -> None:
    sizes = tiny.sizes()
    weights = tiny.decoder_weights(sizes)
    tokens = np.array(TOKENS)
    path = tiny.write_gguf(tmp_path / "q", sizes, weights, kind=GGMLQuantizationType.Q4_1)
    checkpoint = gguf_file.read(path, 8192)

    losses = [
        proof.Loss.of(
            decoder_logits(sizes, original, tokens),
            decoder_logits(sizes, quantise(sizes, original).weights, tokens),
        ).divergence
        for original in (checkpoint.weights, weights.__getitem__)
    ]

    assert losses[0] < losses[1] / 20


def test_outlying_inputs_are_not_rounded(tmp_path: Path) -> None:
    sizes = tiny.sizes(layers=3)
    weights = tiny.decoder_weights(sizes)
    weights["model.layers.1.mlp.up_proj.weight"][7] *= 3000  # far above its neighbours
    weights["model.layers.1.mlp.down_proj.weight"][:, 7] = 0
    tokens, peaks = np.array(TOKENS), list[float]()
    original = decoder_logits(sizes, weights.__getitem__, tokens, peaks)

    outlying = outlying_layers(peaks)
    losses = []
    for layers in (outlying, []):
        decoder = quantise(sizes, weights.__getitem__, 8, layers)
        logits = proof.Cached(decoder_graph(decoder), sizes).each(tokens)
        losses.append(proof.Loss.of(original, logits).divergence)

    assert outlying == [1]
    assert losses[0] < losses[1] / 3


def test_matrices_with_and_without_offsets_are_multiplied_together() -> None:
    sizes = tiny.sizes()
    weights = tiny.decoder_weights(sizes)
    steps = np.arange(16, dtype=np.float32).repeat(4) - 8
    weights["model.layers.0.self_attn.q_proj.weight"] = np.tile(steps / 64, (64, 1))
    decoder = quantise(sizes, weights.__getitem__)
    names = [f"model.layers.0.self_attn.{part}_proj" for part in "qk"]
    assert [decoder.matrices[name].offset for name in names] == [False, True]

    graph = decoder_graph(decoder, accuracy_level=0, every_logit=True)

    logits = proof.Cached(graph, sizes).run(np.array(TOKENS))
    expected = decoder_logits(sizes, decoder.weights, np.array(TOKENS))
    np.testing.assert_allclose(logits, expected, atol=2e-4)


def test_folder_of_bfloat16_shards_is_read(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    sizes = tiny.sizes(tied=False)
    weights = tiny.decoder_weights(sizes)
    folder = tiny.write_folder(tmp_path / "model", sizes, weights)
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    for shard, part in enumerate((names[:7], names[7:])):
        tensors = {name: torch.from_numpy(weights[name]).bfloat16() for name in part}
        save_file(tensors, folder / f"model-0000{shard}-of-00002.safetensors")

    checkpoint = hf_folder.read(folder, 8192)

    values = checkpoint.weights("lm_head.weight")
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, weights["lm_head.weight"], rtol=0.01)


def test_context_is_the_least_of_model_window_and_option(tmp_path: Path) -> None:
    sizes = tiny.sizes()
    weights = tiny.decoder_weights(sizes)
    window = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 96}
    folder = tiny.write_folder(tmp_path / "model", sizes, weights, **window)

    assert [hf_folder.read(folder, most).sizes.context for most in (8192, 50)] == [96, 50]


# --- refusals


def refusal(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    assert main([str(word) for word in command]) == 1
    return capsys.readouterr().err


def test_unknown_architecture_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes, weights = tiny.sizes(), tiny.decoder_weights(tiny.sizes())
    path = tiny.write_gguf(tmp_path / "tiny.gguf", sizes, weights, architecture="gemma3")
    folder = tiny.write_folder(tmp_path / "model", sizes, weights, model_type="mamba")

    assert "architecture 'gemma3' is not known" in refusal(capsys, "import-gguf", path)
    assert "model_type 'mamba' is not known" in refusal(capsys, "import-hf", folder)


@pytest.mark.parametrize("form", ["gguf", "hf"])
def test_missing_and_unknown_tensors_are_named(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = tiny.sizes(tied=False)
    weights = tiny.decoder_weights(sizes)
    del weights["model.layers.1.mlp.up_proj.weight"]
    write = {"gguf": tiny.write_gguf, "hf": tiny.write_folder}[form]
    write(tmp_path / "missing", sizes, weights)
    name = {"gguf": "blk.1.ffn_up.weight", "hf": "model.layers.1.mlp.up_proj.weight"}[form]

    error = refusal(capsys, f"import-{form}", tmp_path / "missing")

    assert f"tensors are missing: {name}" in error


def test_tensors_of_another_architecture_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = tiny.sizes()
    weights = tiny.decoder_weights(sizes)
    weights["model.layers.0.self_attn.q_norm.weight"] = np.ones(16, np.float32)
    folder = tiny.write_folder(tmp_path / "model", sizes, weights)

    error = refusal(capsys, "import-hf", folder)

    assert "does not have: model.layers.0.self_attn.q_norm.weight" in error


def test_wrong_shape_is_refused_with_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = tiny.sizes()
    weights = tiny.decoder_weights(sizes)
    weights["model.norm.weight"] = np.ones(32, np.float32)
    folder = tiny.write_folder(tmp_path / "model", sizes, weights)

    assert "has the shape [32], and config.json says [64]" in refusal(capsys, "import-hf", folder)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope scaling 'yarn'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'factor' of the rope scaling is None"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'low_freq_factor' of the rope"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"num_key_value_heads": 3}, "4 attention heads are no multiple of 3"),
        ({"num_hidden_layers": 0}, "layers is 0"),
        ({"num_hidden_layers": "two"}, "'num_hidden_layers' is 'two'"),
        ({"vocab_size": None}, "'vocab_size' is None"),
    ],
)
def test_settings_that_cannot_be_exported_are_refused(
    config: dict[str, object], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = tiny.sizes()
    folder = tiny.write_folder(tmp_path / "model", sizes, tiny.decoder_weights(sizes), **config)

    assert reason in refusal(capsys, "import-hf", folder)


def test_tokenizer_of_another_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = tiny.sizes(vocabulary=96)
    folder = tiny.write_folder(tmp_path / "model", sizes, tiny.decoder_weights(sizes))

    assert "and the model has 96 tokens" in refusal(capsys, "import-hf", folder)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\0\0\0\xff\xff", b"PK\x03\x04" * 99])
def test_file_that_is_no_gguf_is_refused(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.gguf").write_bytes(content)

    error = refusal(capsys, "import-gguf", tmp_path / "broken.gguf")

    assert "is no readable GGUF file" in error


def test_missing_files_are_refused_with_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = tiny.sizes()
    folder = tiny.write_folder(tmp_path / "model", sizes, tiny.decoder_weights(sizes))
    (folder / "tokenizer.json").unlink()

    assert "has no tokenizer.json: save it" in refusal(capsys, "import-hf", folder)
    (folder / "model.safetensors").unlink()
    assert "has no .safetensors file" in refusal(capsys, "import-hf", folder)
    assert "does not exist" in refusal(capsys, "import-hf", folder / "none")


def test_words_that_are_split_in_an_unknown_way_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes, path = tiny.sizes(), tmp_path / "tiny.gguf"
    tiny.write_gguf(path, sizes, tiny.decoder_weights(sizes), pre="tekken")

    assert "splits words like 'tekken'" in refusal(capsys, "import-gguf", path)


def test_file_that_names_no_way_to_split_words_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes, path = tiny.sizes(), tmp_path / "tiny.gguf"
    tiny.write_gguf(path, sizes, tiny.decoder_weights(sizes), pre=None)

    assert "tokenizer.ggml.pre" in refusal(capsys, "import-gguf", path)


# Texts as llama.cpp's regular expressions split them; "Ġ" is a space, "Ċ" a line break.
SPLITS = {
    "default": [
        "I", "'", "m", "Ġ", "123", "456", "7", ":", "Ġ", "1", "Ġx", "+=", "Ġ", "Ġy", "Ċ", "Ċ", "ok",
    ],
    "gpt-2": ["I", "'m", "Ġ1234567", ":", "Ġ1", "Ġx", "+=", "Ġ", "Ġy", "Ċ", "Ċ", "ok"],
    "smollm": ["I", "'m", "Ġ", *"1234567", ":", "Ġ", "1", "Ġx", "+=", "Ġ", "Ġy", "Ċ", "Ċ", "ok"],
    "qwen2": ["I", "'m", "Ġ", *"1234567", ":", "Ġ", "1", "Ġx", "+=", "Ġ", "Ġy", "ĊĊ", "ok"],
    "llama-bpe": [
        "I", "'m", "Ġ", "123", "456", "7", ":", "Ġ", "1", "Ġx", "+=", "Ġ", "Ġy", "ĊĊ", "ok",
    ],
}  # fmt: skip


@pytest.mark.parametrize("pre", SPLITS)
def test_words_are_split_as_llama_cpp_does(pre: str, tmp_path: Path) -> None:
    sizes, path = tiny.sizes(), tmp_path / "tiny.gguf"
    tiny.write_gguf(path, sizes, tiny.decoder_weights(sizes), pre=pre)
    tokenizer = Tokenizer.from_str(gguf_file.read(path, 128).assets["tokenizer.json"])

    pieces = tokenizer.pre_tokenizer.pre_tokenize_str("I'm 1234567: 1 x+=  y\n\nok")

    assert [text for text, _ in pieces] == SPLITS[pre]


@pytest.mark.parametrize(("pre", "begins"), [("llama-bpe", True), ("qwen2", False)])
def test_llama_3_begins_texts_with_its_token_though_the_file_is_silent(
    pre: str, begins: bool, tmp_path: Path
) -> None:
    sizes, path = tiny.sizes(), tmp_path / "tiny.gguf"
    tiny.write_gguf(path, sizes, tiny.decoder_weights(sizes), pre=pre, bos=1)
    tokenizer = Tokenizer.from_str(gguf_file.read(path, 128).assets["tokenizer.json"])

    assert (tokenizer.encode("Paris").ids[0] == 1) is begins


PIECES = ["<unk>", "<s>", "</s>", "<0x41>", "▁", "<", "s", ">", "a", "▁a", "s>", "<s", "▁<s"]


def sentencepiece(**changes: Any) -> dict[str, Any]:
    """Return the metadata of a SentencePiece vocabulary: the later, the lower its score."""
    kinds = [2, 3, 3, 6, *[1] * (len(PIECES) - 4)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": PIECES,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [0.0] * 4 + [-float(at) for at in range(len(PIECES) - 4)],
        "tokenizer.ggml.bos_token_id": 1,
        **changes,
    }


def converted(metadata: dict[str, Any]) -> Tokenizer:
    fields = {name: (lambda value=value: value) for name, value in metadata.items()}
    document = gguf_tokenizer.tokenizer(gguf_file.Metadata(fields))
    return Tokenizer.from_str(json.dumps(document))


def test_special_tokens_are_not_merged_of_pieces() -> None:
    """SentencePiece has "<s" for the letters of "<s", and nothing that makes <s> of them."""
    tokenizer = converted(sentencepiece())

    assert ["<s", ">"] not in json.loads(tokenizer.to_str())["model"]["merges"]
    assert tokenizer.encode("a<s", add_special_tokens=False).tokens == ["▁a", "<s"]
    assert tokenizer.encode("a").tokens == ["<s>", "▁a"]


@pytest.mark.parametrize(("prefix", "tokens"), [(True, ["▁a", "▁a"]), (False, ["a", "▁a"])])
def test_a_space_before_the_text_is_the_files_choice(prefix: bool, tokens: list[str]) -> None:
    tokenizer = converted(sentencepiece(**{"tokenizer.ggml.add_space_prefix": prefix}))
    encoding = tokenizer.encode("a a", add_special_tokens=False)

    assert encoding.tokens == tokens
    assert tokenizer.decode(encoding.ids) == "a a"


def test_scores_of_a_unigram_model_are_refused() -> None:
    scores = [0.0] * 4 + [-at - 0.5 for at in range(len(PIECES) - 4)]
    with pytest.raises(InvalidModelFile, match="Unigram"):
        converted(sentencepiece(**{"tokenizer.ggml.scores": scores}))


def test_an_index_says_which_files_are_the_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others may lie beside them, as Llama's consolidated.safetensors."""
    sizes = tiny.sizes()
    weights = tiny.decoder_weights(sizes)
    folder = tiny.write_folder(tmp_path / "model", sizes, weights)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "consolidated.safetensors").write_bytes(b"another format")
    index = {"weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert hf_folder.read(folder, 128).sizes == sizes

    index["weight_map"]["model.norm.weight"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    message = refusal(capsys, "import-hf", folder)
    assert "has no model-00002-of-00002.safetensors, which model.safetensors.index" in message


def test_graph_with_other_weights_is_not_shipped() -> None:
    from training.errors import ExportFailed

    sizes = tiny.sizes()
    weights, other = (tiny.decoder_weights(sizes, seed).__getitem__ for seed in (0, 1))
    right, wrong = quantise(sizes, weights), quantise(sizes, other)
    original = decoder_logits(sizes, weights, np.array(TOKENS))

    with pytest.raises(ExportFailed, match="logits are off"):
        proof.prove_decoder(right, decoder_graph(wrong), original, np.array(TOKENS))
