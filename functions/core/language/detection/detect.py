"""Detection of language models by signature and configuration files."""

from collections.abc import Callable, Mapping

from functions.core.errors import InvalidModel, shown
from functions.core.language import assets
from functions.core.language.assets import Configs
from functions.core.language.detection.decoders import decoder, is_decoder
from functions.core.language.detection.encoders import encoder, is_encoder
from functions.core.language.detection.incomplete import incomplete
from functions.core.language.spec import Kind, LanguageSpec
from functions.core.protocol.signature import Signature
from functions.core.records import record, replace

CONTEXT_MAX = 2**20  # tokens; the loop keeps numbers for each place of it


@record
class Vocabulary:
    """Size of a tokenizer, and the ids of tokens by their text."""

    size: int  # the largest id plus 1
    token: Callable[[str], int | None]


@record
class Wishes:
    """Facts that a manifest states under `language`, before all others."""

    context: int | None = None
    pooling: str | None = None
    normalised: bool | None = None


NO_WISHES = Wishes()


def detect(
    signature: Signature,
    configs: Configs,
    vocabulary: Vocabulary,
    template: str | None = None,
    wishes: Wishes = NO_WISHES,
) -> LanguageSpec | None:
    """Return the facts of a language model; None for other models.

    Raises:
        InvalidModel: `LANGUAGE_INCOMPLETE`, with the missing piece, or `VOCABULARY_MISMATCH`.
    """
    architecture = _architecture(configs)
    if is_decoder(signature, architecture, vocabulary.size):
        spec = decoder(signature, configs)
    elif is_encoder(signature):
        spec = encoder(signature, configs, wishes.pooling)
    else:
        return None
    spec = replace(
        spec,
        vocabulary=spec.vocabulary or vocabulary.size,
        context=min(wishes.context or spec.context, CONTEXT_MAX),
        eos=_ends(configs, vocabulary) if spec.kind is Kind.DECODER else _separators(vocabulary),
        bos=_begin(configs, vocabulary),
        chat=spec.kind is Kind.DECODER and template is not None,
        special_tokens=assets.special_tokens(configs),
    )
    if wishes.normalised is not None:
        spec = replace(spec, normalised=wishes.normalised)
    _check(spec, vocabulary)
    return spec


def check_complete(names: frozenset[str]) -> bool:
    """Return True if files are those of a language model.

    Raises:
        InvalidModel: `LANGUAGE_INCOMPLETE`, a chat template without a tokenizer.
    """
    if assets.TEMPLATE in names and assets.TOKENIZER not in names:
        raise InvalidModel(
            f"the package has {assets.TEMPLATE} and no {assets.TOKENIZER}: add it "
            "(save_pretrained of a fast tokenizer writes it), or leave out the template",
            code="LANGUAGE_INCOMPLETE",
        )
    return assets.TOKENIZER in names


def _check(spec: LanguageSpec, vocabulary: Vocabulary) -> None:
    if vocabulary.size > spec.vocabulary:
        raise InvalidModel(
            f"the tokenizer has tokens up to {vocabulary.size - 1}, and the model knows "
            f"{spec.vocabulary}: they do not belong together, or tokens were added to one of them",
            code="VOCABULARY_MISMATCH",
        )
    if not spec.context:
        raise incomplete(
            "its longest context is unknown: add config.json with max_position_embeddings, or "
            '"language": {"context": 2048} to manifest.json'
        )
    strange = [token for token in spec.eos if token >= spec.vocabulary]
    if strange:
        raise InvalidModel(
            f"eos_token_id is {strange[0]}, and the model knows {spec.vocabulary} tokens",
            code="VOCABULARY_MISMATCH",
        )


def _architecture(configs: Configs) -> str:
    for names in configs.values(assets.CONFIG, "architectures"):
        if isinstance(names, list) and names and isinstance(names[0], str):
            return names[0]
    return ""


_TOKEN_FILES = ((assets.GENERATION, ""), (assets.GENAI, "model."), (assets.CONFIG, ""))


def _ends(configs: Configs, vocabulary: Vocabulary) -> tuple[int, ...]:
    """Return the tokens that end a reply.

    They are those of the first file that names some, and the tokenizer's."""
    ends: list[int] = []
    for name, folder in _TOKEN_FILES:
        ends = _ids(configs, name, f"{folder}eos_token_id")
        if ends:
            break
    text = configs.text(assets.TOKENIZER_CONFIG, "eos_token") or configs.text(
        assets.SPECIAL_TOKENS, "eos_token"
    )
    own = vocabulary.token(text) if text else None
    return tuple(dict.fromkeys([*ends, *([] if own is None else [own])]))


def _separators(vocabulary: Vocabulary) -> tuple[int, ...]:
    """Return the token that separates a pair of texts: BERT's or RoBERTa's."""
    tokens = (vocabulary.token(text) for text in ("[SEP]", "</s>"))
    return tuple(token for token in tokens if token is not None)[:1]


def _begin(configs: Configs, vocabulary: Vocabulary) -> int | None:
    for name, folder in _TOKEN_FILES:
        for token in _ids(configs, name, f"{folder}bos_token_id"):
            return token
    text = configs.text(assets.TOKENIZER_CONFIG, "bos_token")
    return vocabulary.token(text) if text else None


def _ids(configs: Configs, name: str, path: str) -> list[int]:
    """Return token ids of a file: a number or a list."""
    for value in configs.values(name, path):
        ids = value if isinstance(value, list) else [value]
        if len(ids) > 64 or not all(type(token) is int and 0 <= token < 2**31 for token in ids):
            raise InvalidModel(
                f"{name}: {path} is {shown(value)}, and has to be a token's number or a list",
                code="BAD_CONFIG",
            )
        return [int(token) for token in ids]
    return []


def read_wishes(stated: Mapping[str, object]) -> Wishes:
    """Return the facts of a manifest's object `language`, already checked."""
    context, pooling = stated.get("context"), stated.get("pooling")
    normalised = stated.get("normalised")
    return Wishes(
        context=context if isinstance(context, int) else None,
        pooling=pooling if isinstance(pooling, str) else None,
        normalised=normalised if isinstance(normalised, bool) else None,
    )
