"""Detection of language models: kind, sizes, context, and pieces that are missing."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from functions.core.errors import InvalidModel
from functions.core.language import assets
from functions.core.language.assets import read_configs, special_tokens, template_source
from functions.core.language.detection.detect import Vocabulary, Wishes, check_complete, detect
from functions.core.language.spec import Kind, LanguageSpec, Layout, Pooling
from functions.core.protocol.signature import Signature, TensorSpec

TOKENS = {"<s>": 1, "</s>": 2, "[SEP]": 3}
CONFIG = {"max_position_embeddings": 512, "hidden_size": 8}


def tensor(name: str, *shape: int, datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name, datatype, shape)


def ids(name: str) -> TensorSpec:
    return tensor(name, -1, -1, datatype="INT64")


def cache(name: str, layers: int = 2, heads: int = 2, size: int = 4) -> list[TensorSpec]:
    return [
        tensor(f"{name}.{layer}.{kind}", -1, heads, -1, size)
        for layer in range(layers)
        for kind in ("key", "value")
    ]


PASTS, PRESENTS = cache("past_key_values"), cache("present")
LOGITS = tensor("logits", -1, -1, 10)
FEEDS = [ids("input_ids"), ids("attention_mask")]


def facts(
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    size: int = 10,
    template: str | None = None,
    wishes: Wishes | None = None,
    **configs: Any,
) -> LanguageSpec | None:
    documents = {f"{name}.json": content for name, content in {"config": CONFIG, **configs}.items()}
    return detect(
        Signature(tuple(inputs), tuple(outputs)),
        assets.Configs({name: document for name, document in documents.items() if document}),
        Vocabulary(size, TOKENS.get),
        template,
        wishes or Wishes(),
    )


def refusal(*arguments: Any, **more: Any) -> tuple[str, str]:
    with pytest.raises(InvalidModel) as refused:
        facts(*arguments, **more)
    assert "…" not in str(refused.value)[-1:]
    return refused.value.instance_code, str(refused.value)


def language(*arguments: Any, **more: Any) -> LanguageSpec:
    spec = facts(*arguments, **more)
    assert spec is not None
    return spec


# --- decoders


def test_a_decoder_with_named_caches() -> None:
    spec = language([*FEEDS, ids("position_ids"), *PASTS], [LOGITS, *PRESENTS], template="x")

    assert (spec.kind, spec.layout, spec.chat) == (Kind.DECODER, Layout.NAMED, True)
    assert (spec.layers, spec.kv_heads, spec.head_size) == (2, 2, 4)
    assert (spec.vocabulary, spec.context) == (10, 512)


def test_a_decoder_with_one_stacked_cache() -> None:
    past, present = (tensor(name, 6, -1, 2, -1, 4) for name in ("past", "present"))
    spec = language([ids("tokens"), past], [LOGITS, present])

    assert (spec.layout, spec.layers, spec.kv_heads) == (Layout.STACKED, 3, 2)


def test_half_precision_and_sizes_from_the_configuration() -> None:
    free = [tensor(spec.name, -1, -1, -1, -1, datatype="FP16") for spec in (*PASTS, *PRESENTS)]
    logits = tensor("logits", -1, -1, -1, datatype="FP16")
    config = {
        "n_positions": 64, "vocab_size": 10, "num_attention_heads": 4, "num_key_value_heads": 2,
        "hidden_size": 32,
    }  # fmt: skip
    spec = language([*FEEDS, *free[:4]], [logits, *free[4:]], config=config)

    assert (spec.kv_heads, spec.head_size, spec.cache_datatype) == (2, 8, "FP16")
    assert (spec.vocabulary, spec.context) == (10, 64)


def test_tokens_and_defaults_come_from_the_generation_config_first() -> None:
    spec = language(
        [*FEEDS, *PASTS],
        [LOGITS, *PRESENTS],
        generation_config={
            "eos_token_id": [5, 6], "temperature": 0.7, "top_k": 20, "top_p": "high", "min_p": 7,
        },
        config={**CONFIG, "eos_token_id": 9, "bos_token_id": 4},
        tokenizer_config={"eos_token": {"content": "</s>"}, "bos_token": "<s>"},
    )  # fmt: skip

    assert (spec.eos, spec.bos) == ((5, 6, 2), 4)
    assert spec.defaults == {"temperature": 0.7, "top_k": 20.0}
    assert spec.special_tokens == {"eos_token": "</s>", "bos_token": "<s>"}


def test_genais_configuration_is_read() -> None:
    spec = language(
        [*FEEDS, *PASTS],
        [LOGITS, *PRESENTS],
        config=None,
        genai_config={
            "model": {"context_length": 2048, "eos_token_id": 3, "bos_token_id": 1},
            "search": {"temperature": 0.5},
        },
    )

    assert (spec.context, spec.eos, spec.bos) == (2048, (3,), 1)
    assert spec.defaults == {"temperature": 0.5}


GENAI_CACHE = cache("past_key_values", 2, 2, -1), cache("present", 2, 2, -1)  # free head size


def test_head_sizes_of_genais_configuration() -> None:
    """Its builder leaves the head size free and writes no config.json."""
    decoder = {"head_size": 4, "num_key_value_heads": 2, "num_attention_heads": 4}
    genai = {"model": {"context_length": 64, "decoder": decoder}}
    pasts, presents = GENAI_CACHE
    spec = language([*FEEDS, *pasts], [LOGITS, *presents], config=None, genai_config=genai)

    assert (spec.layers, spec.kv_heads, spec.head_size) == (2, 2, 4)


@pytest.mark.parametrize(("layers", "context"), [([], 16), ([0], 64), (None, 64)])
def test_a_window_that_no_layer_of_the_graph_has_limits_the_context(
    layers: list[int] | None, context: int
) -> None:
    window = {"window_size": 16, "layers": layers}
    genai = {"model": {"context_length": 64, "decoder": {"sliding_window": window}}}
    spec = language([*FEEDS, *PASTS], [LOGITS, *PRESENTS], genai_config=genai)

    assert spec.context == context


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_longrope_serves_the_context_of_its_first_rotations(name: str) -> None:
    rope = {"rope_type": "longrope", "long_factor": [2.0]}
    outer = {**CONFIG, name: rope, "original_max_position_embeddings": 16}
    inner = {**CONFIG, name: {**rope, "original_max_position_embeddings": 16}}
    model = [*FEEDS, *PASTS], [LOGITS, *PRESENTS]

    assert language(*model, config=outer).context == language(*model, config=inner).context == 16


@pytest.mark.parametrize(("kind", "context"), [("phi3", 4096), ("llama", 131_072)])
def test_genais_phi_serves_the_context_of_its_first_rotations(kind: str, context: int) -> None:
    """Keys of a longer text turn otherwise from its first token on, and the cache has them."""
    genai = {"model": {"context_length": 131_072, "type": kind}}
    spec = language([*FEEDS, *PASTS], [LOGITS, *PRESENTS], config=None, genai_config=genai)

    assert spec.context == context


@pytest.mark.parametrize(
    ("kind", "padding", "context"),
    [("bert", 0, 514), ("xlm-roberta", 1, 512), ("mpnet", None, 512), ("roberta", 3, 510)],
)
def test_positions_behind_the_padding_tokens_number_take_rows(
    kind: str, padding: int | None, context: int
) -> None:
    config = {"model_type": kind, "max_position_embeddings": 514, "pad_token_id": padding}
    outputs = [tensor("last_hidden_state", -1, -1, 8)]
    spec = language([ids("input_ids")], outputs, config=config)

    assert spec.context == context


def test_greedy_models_say_so() -> None:
    spec = language([*FEEDS, *PASTS], [LOGITS, *PRESENTS], generation_config={"do_sample": False})
    assert spec.defaults == {"temperature": 0.0}


@pytest.mark.parametrize(
    ("inputs", "outputs", "piece"),
    [
        ([*FEEDS, *PASTS], [LOGITS], "`present.0.key` is missing"),
        ([*FEEDS, *PASTS], PRESENTS, "output `logits`"),
        (FEEDS, [LOGITS], "key-value cache past_key_values.N.key/value is missing"),
        (FEEDS, [LOGITS, *PRESENTS], "key-value cache past_key_values.N.key/value is missing"),
        ([*FEEDS, *PASTS[1:]], [LOGITS, *PRESENTS], "`past_key_values.0.key` is missing"),
        ([*FEEDS, *PASTS[:2], *cache("past_key_values", 3)[4:]], [LOGITS, *cache("present", 3)],
         "`past_key_values.1.key` is missing"),
        ([*PASTS], [LOGITS, *PRESENTS], "input `input_ids`"),
        ([*FEEDS, ids("encoder_hidden_states"), *PASTS], [LOGITS, *PRESENTS],
         "'encoder_hidden_states' has no known value"),
        ([*FEEDS, tensor("past_key_0", 1, 2, 3, 4)], [LOGITS], "none of past_key_values"),
        ([*FEEDS, *cache("past_key_values", 1), *cache("past_key_values", 2, 4)[2:]],
         [LOGITS, *PRESENTS], "different sizes"),
        ([ids("tokens"), tensor("past", -1, -1, 2, -1, 4)],
         [LOGITS, tensor("present", -1, -1, 2, -1, 4)], "twice the layers"),
        ([*FEEDS, *cache("past_key_values", 2, -1, -1)], [LOGITS, *cache("present", 2, -1, -1)],
         "heads of its key-value cache are unknown"),
    ],
)  # fmt: skip
def test_half_a_decoder_is_refused_with_the_missing_piece(
    inputs: list[TensorSpec], outputs: list[TensorSpec], piece: str
) -> None:
    code, message = refusal(inputs, outputs)
    assert code == "LANGUAGE_INCOMPLETE"
    assert piece in message


def test_an_unknown_context_is_refused_unless_the_manifest_states_it() -> None:
    whole: Any = ([*FEEDS, *PASTS], [LOGITS, *PRESENTS])
    code, message = refusal(*whole, config=None)

    assert code == "LANGUAGE_INCOMPLETE"
    assert '"language": {"context": 2048}' in message
    assert language(*whole, config=None, wishes=Wishes(context=99)).context == 99
    unlimited = {"model_max_length": 1000000000000000019884624838656}
    assert refusal(*whole, config=None, tokenizer_config=unlimited)[0] == "LANGUAGE_INCOMPLETE"


def test_a_context_beyond_a_million_tokens_is_cut() -> None:
    spec = language([*FEEDS, *PASTS], [LOGITS, *PRESENTS], config={"n_positions": 2**31})
    assert spec.context == 2**20


def test_a_tokenizer_of_another_model_is_refused() -> None:
    code, message = refusal([*FEEDS, *PASTS], [LOGITS, *PRESENTS], size=11)
    assert code == "VOCABULARY_MISMATCH"
    assert "tokens up to 10, and the model knows 10" in message
    end = {"eos_token_id": 10}
    code, _ = refusal([*FEEDS, *PASTS], [LOGITS, *PRESENTS], generation_config=end)
    assert code == "VOCABULARY_MISMATCH"


@pytest.mark.parametrize("value", ["2", -1, 1.5, True, [None], [2**31], list(range(65))])
def test_a_token_that_is_no_number_is_refused(value: object) -> None:
    code, message = refusal(
        [*FEEDS, *PASTS], [LOGITS, *PRESENTS], generation_config={"eos_token_id": value}
    )
    assert code == "BAD_CONFIG"
    assert message.startswith("generation_config.json: eos_token_id")


# --- encoders


@pytest.mark.parametrize(
    ("outputs", "output", "pooling", "dimensions"),
    [
        ([tensor("last_hidden_state", -1, -1, 6)], "last_hidden_state", Pooling.MEAN, 6),
        ([tensor("last_hidden_state", -1, -1, -1)], "last_hidden_state", Pooling.MEAN, 8),
        ([tensor("token_embeddings", -1, -1, 6), tensor("sentence_embedding", -1, 4)],
         "sentence_embedding", Pooling.GRAPH, 4),
        ([tensor("last_hidden_state", -1, -1, 6), tensor("pooler_output", -1, 6)],
         "last_hidden_state", Pooling.MEAN, 6),
        ([tensor("pooler_output", -1, 6)], "pooler_output", Pooling.GRAPH, 6),
    ],
)  # fmt: skip
def test_encoders_by_their_outputs(
    outputs: list[TensorSpec], output: str, pooling: Pooling, dimensions: int
) -> None:
    spec = language([*FEEDS, ids("token_type_ids")], outputs)

    assert (spec.kind, spec.output, spec.pooling) == (Kind.ENCODER, output, pooling)
    assert (spec.dimensions, spec.vocabulary, spec.eos) == (dimensions, 10, (3,))
    assert spec.normalised
    assert not spec.reranker


def test_one_score_makes_a_reranker() -> None:
    spec = language(FEEDS, [tensor("logits", -1, 1)], template="x")
    assert (spec.reranker, spec.normalised, spec.chat) == (True, False, False)


def test_sentence_transformers_files_decide_on_pooling_context_and_length() -> None:
    output = [tensor("last_hidden_state", -1, -1, 6)]
    spec = language(
        FEEDS,
        output,
        pooling_config={"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        modules={"modules": [{"type": "sentence_transformers.models.Pooling"}]},
        sentence_bert_config={"max_seq_length": 256},
    )
    assert (spec.pooling, spec.context, spec.normalised) == (Pooling.CLS, 256, False)
    wishes = Wishes(pooling="last", normalised=True)
    spec = language(FEEDS, output, wishes=wishes, modules={"modules": [{"type": "x.Pooling"}]})
    assert (spec.pooling, spec.normalised) == (Pooling.LAST, True)


@pytest.mark.parametrize(
    ("mode", "pooling"),
    [("mean", Pooling.MEAN), ("cls", Pooling.CLS), ("lasttoken", Pooling.LAST)],
)
def test_pooling_as_newer_sentence_transformers_write_it(mode: str, pooling: Pooling) -> None:
    outputs = [tensor("last_hidden_state", -1, -1, 8)]
    config = {"embedding_dimension": 8, "pooling_mode": mode, "include_prompt": True}
    spec = language([ids("input_ids")], outputs, pooling_config=config)
    assert spec.pooling is pooling

    config["pooling_mode"] = ["mean", "max"]
    code, message = refusal([ids("input_ids")], outputs, pooling_config=config)
    assert (code, "mean, max" in message) == ("BAD_CONFIG", True)


def test_pooling_that_is_not_offered_is_refused() -> None:
    output = [tensor("last_hidden_state", -1, -1, 6)]
    code, message = refusal(FEEDS, output, pooling_config={"pooling_mode_max_tokens": True})
    assert (code, "pooling_mode_max_tokens" in message) == ("BAD_CONFIG", True)
    dense = {"modules": [{"type": "sentence_transformers.models.Dense"}]}
    assert "layer Dense" in refusal(FEEDS, output, modules=dense)[1]


# --- other models and files


@pytest.mark.parametrize(
    ("inputs", "outputs", "architecture"),
    [
        ([tensor("x", -1, 3)], [tensor("y", -1, 3)], ""),
        (FEEDS, [tensor("logits", -1, 2)], "BertForSequenceClassification"),
        (FEEDS, [tensor("logits", -1, -1, 9)], "BertForTokenClassification"),
        (FEEDS, [tensor("logits", -1, -1, 10)], "BertForMaskedLM"),
        ([*FEEDS, ids("pixel_values")], [tensor("last_hidden_state", -1, -1, 6)], ""),
    ],
)
def test_other_models_with_a_tokenizer_are_ordinary_ones(
    inputs: list[TensorSpec], outputs: list[TensorSpec], architecture: str
) -> None:
    assert facts(inputs, outputs, config={"architectures": [architecture]}) is None


def test_a_template_without_a_tokenizer_is_refused() -> None:
    assert not check_complete(frozenset({"config.json"}))
    assert check_complete(frozenset({"tokenizer.json", "chat_template.jinja"}))
    with pytest.raises(InvalidModel, match=r"chat_template.jinja and no tokenizer.json"):
        check_complete(frozenset({"chat_template.jinja"}))


@pytest.mark.parametrize(
    "raw", [b"[]", b"", b"{", b"[" * 100_000, b"\xff", b'{"a": 1e9999', b"1", b'{"a": "\\ud800"}']
)
def test_a_configuration_that_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidModel) as refused:
        read_configs({"config.json": raw})
    assert refused.value.instance_code == "BAD_CONFIG"


@pytest.mark.parametrize(
    ("files", "source"),
    [
        ({"chat_template.jinja": b"own"}, "own"),
        ({"tokenizer_config.json": {"chat_template": "its"}}, "its"),
        ({"tokenizer_config.json": {"chat_template": "its"}, "chat_template.jinja": b"own"}, "own"),
        ({"tokenizer_config.json": {"chat_template": [
            {"name": "rag", "template": "b"}, {"name": "default", "template": "a"}, 7]}}, "a"),
        ({"tokenizer_config.json": {"chat_template": [{"name": []}]}}, None),
        ({"tokenizer_config.json": {"chat_template": {"a": 1}}}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_the_chat_template_of_a_package(files: Mapping[str, Any], source: str | None) -> None:
    contents = {
        name: content if isinstance(content, bytes) else json.dumps(content).encode()
        for name, content in files.items()
    }
    assert template_source(contents, read_configs(contents)) == source


def test_a_template_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(InvalidModel, match="not UTF-8"):
        template_source({"chat_template.jinja": b"\xff"}, read_configs({}))


def test_special_tokens_of_either_file() -> None:
    files = {
        "tokenizer_config.json": b'{"bos_token": null, "eos_token": {"content": "</s>"}}',
        "special_tokens_map.json": b'{"bos_token": "<s>", "pad_token": ["x"]}',
    }
    assert special_tokens(read_configs(files)) == {"bos_token": "<s>", "eos_token": "</s>"}


def test_facts_survive_the_table() -> None:
    spec = language([*FEEDS, *PASTS], [LOGITS, *PRESENTS])
    assert LanguageSpec.from_record(json.loads(json.dumps(spec.to_record()))) == spec
