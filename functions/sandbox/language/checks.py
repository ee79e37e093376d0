"""Checks of a language model's assets, and its facts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from functions.adapters.language.template import ChatTemplate
from functions.adapters.language.tokenizer import load_tokenizer
from functions.core.language import assets
from functions.core.language.detection.detect import Vocabulary, detect, read_wishes
from functions.core.language.spec import Kind, LanguageSpec, Pooling
from functions.core.protocol.signature import Signature
from functions.sandbox.language import template_proof, tokenizer_proof

NOT_LANGUAGE = (
    "The tokenizer is not used: the model's inputs and outputs are neither a decoder's nor an "
    "encoder's, so requests are served by /infer alone."
)
MEAN = (
    "Vectors are the mean of the tokens' ones, because the package has no 1_Pooling/config.json "
    'and its manifest no "language": {"pooling": …}.'
)
NO_END = "No token ends a reply: generation_config.json has no eos_token_id."


class LanguageChecks:
    """Checked files of a language model, `names` in a folder."""

    def __init__(self, folder: Path, names: tuple[str, ...], stated: Mapping[str, Any]) -> None:
        """Read and prove tokenizer and chat template.

        Raises:
            InvalidModel: why this package can never be served.
        """
        self.folder = folder
        self.names = set(names)
        self.notes: list[str] = []
        self._stated = read_wishes(stated)
        self.tokenizer = load_tokenizer(folder / assets.TOKENIZER)
        contents = {name: (folder / name).read_bytes() for name in names}
        self._configs = assets.read_configs(contents)
        self._source = assets.template_source(contents, self._configs)
        tokenizer_proof.prove(self.tokenizer)

    def facts(self, signature: Signature) -> LanguageSpec | None:
        """Return the facts of a language model; None for others.

        Raises:
            InvalidModel: a piece is missing, or the template fails.
        """
        vocabulary = Vocabulary(self.tokenizer.vocabulary, self.tokenizer.token)
        spec = detect(signature, self._configs, vocabulary, self._source, self._stated)
        if spec is None:
            self.notes.append(NOT_LANGUAGE)
            for name in self.names:
                (self.folder / name).unlink()
            self.names.clear()
            return None
        note = tokenizer_proof.check_tokens(self.tokenizer, spec)
        self.notes += [note] if note else []
        if spec.kind is Kind.ENCODER:
            if spec.pooling is Pooling.MEAN and not self._knows_pooling:
                self.notes.append(MEAN)
            return spec
        if not spec.eos:
            self.notes.append(NO_END)
        if self._source is not None:
            template_proof.prove(ChatTemplate(self._source, spec.special_tokens))
            (self.folder / assets.TEMPLATE).write_text(self._source, encoding="utf-8")
            self.names.add(assets.TEMPLATE)
        return spec

    @property
    def _knows_pooling(self) -> bool:
        return assets.POOLING in self._configs.documents or self._stated.pooling is not None

    def prompt(self, spec: LanguageSpec) -> list[int]:
        """Return the tokens of a fixed prompt, a chat's if possible."""
        if spec.chat and self._source is not None:
            text = ChatTemplate(self._source, spec.special_tokens).render([template_proof.USER])
            return self.tokenizer.encode(text, special=False)
        return self.tokenizer.encode(tokenizer_proof.TEXTS[0])
