"""Language packages from upload to registry, hostile ones included."""

import json
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from functions.adapters.sandbox import ProcessSandbox
from functions.core.errors import InvalidModel
from functions.core.language.spec import Kind, LanguageSpec
from functions.core.registration.sandbox_protocol import Built
from functions.core.registry.version import State, Version
from functions.core.uploads import Upload
from tests import language_models as models
from tests.hostile.cases import tar
from tests.models import scale_model
from tests.platform import Platform


@pytest.fixture(scope="module")
def sandbox() -> Iterator[ProcessSandbox]:
    sandbox = ProcessSandbox(spare=True)
    yield sandbox
    sandbox.close()


@pytest.fixture
def platform(tmp_path: Path, sandbox: ProcessSandbox) -> Platform:
    sandbox.refill()
    (tmp_path / "served").mkdir()
    return Platform(tmp_path / "served", sandbox)


def register(platform: Platform, files: Mapping[str, bytes]) -> Version:
    key = "models/demo/model.tar.gz"
    object_version = platform.uploads.put("up", key, models.package(files))
    version = platform.registration.register(Upload("up", key, object_version))
    assert version is not None
    return version


def reason(platform: Platform, files: Mapping[str, bytes]) -> tuple[str, str]:
    version = register(platform, files)
    assert version.state is State.REJECTED
    assert version.reason is not None
    return version.reason.code, version.reason.message


def build_refusal(
    build_model: Callable[..., Built], files: Mapping[str, bytes], **brief: Any
) -> tuple[str, str]:
    with pytest.raises(InvalidModel) as refused:
        build(build_model, files, **brief)
    assert signal.getitimer(signal.ITIMER_PROF) == (0, 0), "it would end this process later"
    return refused.value.instance_code, str(refused.value)


def build(build_model: Callable[..., Built], files: Mapping[str, bytes], **brief: Any) -> Built:
    assets = {name: content for name, content in files.items() if not name.endswith(".onnx")}
    return build_model(files["model.onnx"], assets=assets, **brief)


def changed(raw: bytes, **fields: Any) -> bytes:
    return json.dumps({**json.loads(raw), **fields}).encode()


# --- whole packages


@pytest.mark.parametrize("variant", models.DECODERS)
def test_a_decoder_continues_the_fixed_prompt_greedily(
    build_model: Callable[..., Built], variant: str
) -> None:
    files = models.decoder_files(**models.DECODERS[variant])
    built = build(build_model, files)
    assert built.language is not None
    spec = LanguageSpec.from_record(built.language)

    assert spec.kind is Kind.DECODER
    assert (spec.layers, spec.kv_heads, spec.head_size) == (2, 2, 16)
    assert (spec.context, spec.eos, spec.chat) == (1024, (2, 0), True)
    prompt, reply = spec.golden["prompt"], spec.golden["reply"]
    assert reply == models.reference_greedy(files["model.onnx"], prompt, len(reply))
    assert len(reply) == 32
    assert min(spec.prefill_rate, spec.decode_rate) > 0
    assert spec.shared_cache is variant.startswith("gqa")
    assert built.measured["memory_mb_context_1024"] > built.measured["language_memory_mb"]


@pytest.mark.parametrize("window", [0, 8])
def test_a_package_of_genais_builder_is_served(platform: Platform, window: int) -> None:
    """Its head size is free, and a layer with a window has a cache of that size."""
    version = register(platform, models.genai_files(window=window, window_cache=window > 0))

    assert version.state is State.READY, version.reason
    assert version.language is not None
    golden = version.language["golden"]
    plain = models.decoder_model(window=window)
    assert golden["reply"] == models.reference_greedy(plain, golden["prompt"], 32)
    assert len(golden["prompt"]) > 8
    notes = " ".join(version.notes)
    assert ("sliding_window_cache" in notes) is (window > 0)


def test_a_decoder_becomes_ready_with_facts_and_assets(platform: Platform) -> None:
    files = models.decoder_files()
    template = files.pop("chat_template.jinja").decode()
    files["tokenizer_config.json"] = json.dumps({"chat_template": template}).encode()
    version = register(platform, {**files, "README.md": b"A model."})

    assert version.state is State.READY, version.reason
    assert version.language is not None
    assert version.language["chat"] is True
    stored = {blob.name: platform.blobs.content[blob.key] for blob in version.assets}
    assert stored["chat_template.jinja"].decode() == template
    assert stored["tokenizer.json"] == files["tokenizer.json"]
    assert version.ignored == ("README.md",)
    assert set(version.assets) <= set(version.blobs)
    again = platform.registration.registry.version("demo", version.number)
    assert (again.assets, again.language) == (version.assets, version.language)


@pytest.mark.parametrize("scores", [False, True])
def test_an_encoder_becomes_ready(build_model: Callable[..., Built], scores: bool) -> None:
    built = build(build_model, models.encoder_files(scores=scores))
    assert built.language is not None
    spec = LanguageSpec.from_record(built.language)

    assert (spec.kind, spec.reranker) == (Kind.ENCODER, scores)
    assert spec.dimensions == (1 if scores else models.ENCODER_WIDTH)
    assert spec.prefill_rate > 0


def test_files_in_folders_as_hugging_face_writes_them(platform: Platform) -> None:
    files = models.encoder_files()
    model = files.pop("model.onnx")
    pooling = json.dumps({"pooling_mode_cls_token": True}).encode()
    version = register(
        platform,
        {
            **{f"minilm/{name}": content for name, content in files.items()},
            "minilm/1_Pooling/config.json": pooling,
            "minilm/onnx/model_quantized.onnx": scale_model(),
            "minilm/onnx/model.onnx": model,
        },
    )

    assert version.state is State.READY, version.reason
    assert version.language is not None
    assert version.language["pooling"] == "cls"
    assert version.notes[0] == (
        "Of 2 .onnx files, minilm/onnx/model.onnx is served; to serve another, upload it by itself."
    )
    assert version.ignored == ("minilm/onnx/model_quantized.onnx",)


def test_a_manifest_states_what_no_file_says(platform: Platform) -> None:
    files = models.encoder_files()
    del files["config.json"]
    assert reason(platform, files)[0] == "LANGUAGE_INCOMPLETE"

    language = {"context": 64, "pooling": "last", "normalised": False}
    manifest = json.dumps({"schema": 1, "language": language}).encode()
    version = register(platform, {**files, "manifest.json": manifest})

    assert version.language is not None
    assert {name: version.language[name] for name in language} == language


def test_an_ordinary_model_with_a_tokenizer_stays_one(platform: Platform) -> None:
    files = {"model.onnx": scale_model(), "tokenizer.json": models.encoder_tokenizer().encode()}
    version = register(platform, files)

    assert (version.state, version.language, version.assets) == (State.READY, None, ())
    assert "The tokenizer is not used" in version.notes[0]


def test_a_model_without_a_tokenizer_is_served_as_before(platform: Platform) -> None:
    files = models.decoder_files()
    version = register(
        platform, {"model.onnx": files["model.onnx"], "config.json": b"not even JSON"}
    )
    assert (version.state, version.language) == (State.READY, None)
    assert version.ignored == ("config.json",)


def test_weights_in_blocks_of_four_bits_are_packed_at_load(
    build_model: Callable[..., Built],
) -> None:
    """Used in place, they take 60 times as long."""
    pytest.importorskip("onnx_ir", reason="needs the group train")
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = onnx.load_from_string(models.decoder_model())
    quantiser = MatMulNBitsQuantizer(model, block_size=32, is_symmetric=True, accuracy_level=4)
    quantiser.process()
    raw = quantiser.model.model.SerializeToString()
    built = build(build_model, {**models.decoder_files(), "model.onnx": raw})

    assert built.plan.prepacking
    assert built.language is not None


def test_a_language_model_needs_the_memory_of_its_own_function(
    build_model: Callable[..., Built],
) -> None:
    files = models.decoder_files()
    code, message = build_refusal(build_model, files, memory_mb=32, language_memory_mb=64)
    assert code == "TOO_LARGE_FOR_MEMORY"
    assert "64 MB: raise the parameter GenerateMemory" in message


def test_a_language_model_may_be_too_large_for_infer(build_model: Callable[..., Built]) -> None:
    built = build(build_model, models.decoder_files(), memory_mb=32, language_memory_mb=1024)
    assert built.memory_mb > 32


# --- half packages


def test_half_packages_are_refused_with_the_missing_piece(platform: Platform) -> None:
    files = models.decoder_files()
    without_tokenizer = {name: raw for name, raw in files.items() if name != "tokenizer.json"}
    code, message = reason(platform, without_tokenizer)
    assert code == "LANGUAGE_INCOMPLETE"
    assert "no tokenizer.json" in message

    code, message = reason(platform, {**files, "model.onnx": models.decoder_model(vocabulary=200)})
    assert code == "VOCABULARY_MISMATCH"


# --- hostile files


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("tokenizer.json", b"[]", "TOKENIZER_INVALID"),
        ("tokenizer.json", b"", "TOKENIZER_INVALID"),
        ("tokenizer.json", nested(100_000), "TOKENIZER_INVALID"),
        ("config.json", nested(100_000), "BAD_CONFIG"),
        ("config.json", b"[]", "BAD_CONFIG"),
        ("tokenizer_config.json", b'{"chat_template": ' + b"1" * 5000 + b"}", "BAD_CONFIG"),
        ("generation_config.json", b'{"eos_token_id": "2"}', "BAD_CONFIG"),
        ("chat_template.jinja", b"{% for", "TEMPLATE_INVALID"),
        ("chat_template.jinja", b"\xff", "TEMPLATE_INVALID"),
        ("chat_template.jinja", b"x" * 300_000, "TEMPLATE_TOO_LARGE"),
        ("chat_template.jinja", b"", "TEMPLATE_FAILED"),
        ("chat_template.jinja", b"Hello!", "TEMPLATE_FAILED"),
        ("chat_template.jinja", b"{{ raise_exception('never') }}", "TEMPLATE_FAILED"),
        ("chat_template.jinja", b"{% include '/etc/passwd' %}", "TEMPLATE_FAILED"),
        (
            "chat_template.jinja",
            b"{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "TEMPLATE_LIMIT",
        ),
        ("chat_template.jinja", b"{{ 'x' * 1000000000 }}", "TEMPLATE_LIMIT"),
        ("chat_template.jinja", b"{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
         "TEMPLATE_FAILED"),
    ],
)  # fmt: skip
def test_hostile_files_are_refused_with_a_code(
    build_model: Callable[..., Built], name: str, content: bytes, code: str
) -> None:
    files = {**models.decoder_files(), name: content}
    assert build_refusal(build_model, files)[0] == code


@pytest.mark.parametrize(
    ("pattern", "code"),
    [("(a+)+$", "TOKENIZER_FAILED"), ("(a|aa)+$", "TOKENIZER_FAILED"), ("(", "TOKENIZER_INVALID")],
)
def test_a_hostile_pattern_is_refused(
    build_model: Callable[..., Built], pattern: str, code: str
) -> None:
    files = models.decoder_files()
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    files["tokenizer.json"] = changed(files["tokenizer.json"], pre_tokenizer=split)
    assert build_refusal(build_model, files)[0] == code


@pytest.mark.parametrize(
    "template",
    [
        # Lists and objects whose text is exponentially long, and one that holds itself.
        "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}"
        "{% endfor %}{{ ns.a }}",
        "{% set ns = namespace(a=1) %}{% set ns.a = ns %}{{ ns }}",
    ],
)
def test_a_template_that_ends_the_process_is_refused(platform: Platform, template: str) -> None:
    files = {**models.decoder_files(), "chat_template.jinja": template.encode()}
    code, _ = reason(platform, files)
    assert code in ("SANDBOX_CRASHED", "SANDBOX_MEMORY", "SANDBOX_TIMEOUT")


def test_a_tokenizer_of_200_mb_is_refused_unread(platform: Platform) -> None:
    files = {**models.decoder_files(), "tokenizer.json": b" " * 200 * 1024 * 1024}
    code, message = reason(platform, files)
    assert code == "TOKENIZER_TOO_LARGE"
    assert message == "tokenizer.json has 209715200 bytes, and 41943040 are allowed"


def test_long_words_that_take_the_cube_of_their_length_are_refused(
    build_model: Callable[..., Built],
) -> None:
    files = models.encoder_files()
    model = json.loads(files["tokenizer.json"])["model"]
    model["max_input_chars_per_word"] = 10**9
    files["tokenizer.json"] = changed(files["tokenizer.json"], model=model)
    assert build_refusal(build_model, files)[0] == "TOKENIZER_SLOW"


def test_added_tokens_of_a_megabyte_are_taken_or_refused_with_a_code(
    build_model: Callable[..., Built],
) -> None:
    files = models.decoder_files()
    tokens = json.loads(files["tokenizer.json"])["added_tokens"]
    long = {**tokens[0], "id": 300, "content": "x" * 2**20}
    files["tokenizer.json"] = changed(files["tokenizer.json"], added_tokens=[*tokens, long])
    assert build_refusal(build_model, files)[0] == "VOCABULARY_MISMATCH"


def test_a_tokenizer_whose_tokens_spell_no_text_is_refused(
    build_model: Callable[..., Built],
) -> None:
    files = models.decoder_files()
    files["tokenizer.json"] = changed(files["tokenizer.json"], decoder=None)
    code, message = build_refusal(build_model, files)
    assert code == "TOKENIZER_UNFAITHFUL"
    assert "lacks the decoder" in message


def test_links_and_repeated_names_in_the_archive_are_refused(
    platform: Platform, tmp_path: Path
) -> None:
    files = models.decoder_files()
    twice = tar(*files.items(), ("./tokenizer.json", b"{}"))
    key = "models/demo/model.tar.gz"
    version = platform.registration.register(
        Upload("up", key, platform.uploads.put("up", key, twice))
    )
    assert version is not None
    assert version.reason is not None
    assert (version.reason.code, "twice" in version.reason.message) == ("BAD_ARCHIVE", True)

    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "tokenizer.json").rename(tmp_path / "blob")
    (tmp_path / "tokenizer.json").symlink_to("blob")  # as in Hugging Face's cache
    subprocess.run(["tar", "czf", tmp_path / "made.tgz", "-C", tmp_path, *files], check=True)
    raw = (tmp_path / "made.tgz").read_bytes()
    version = platform.registration.register(
        Upload("up", key, platform.uploads.put("up", key, raw))
    )
    assert version is not None
    assert version.reason is not None
    assert "'tokenizer.json' is a symbolic link" in version.reason.message
