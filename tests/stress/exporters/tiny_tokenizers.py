"""Tokenizers of every usual kind, trained on a few lines, as transformers' classes.

Runs in the environment of `export_language.py` and imports nothing of this project.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Water boils at one hundred degrees; ice melts at zero.",
    "A mayfly lives for a day, a tortoise for a hundred years and more.",
    "Don't ask what it's worth: they'll say we're late, I'd say you've won.",
    "def double(number):\n    return 2 * number\n\nprint(double(21))  # 42",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Où est la bibliothèque ? Il est 8 h 15, déjà trop tard.",
    "日本語の文章です。这是一个句子。한국어 문장입니다.",
    "Привет, как дела? Мир и труд.",
    '{"name": "Ada", "list": [1, 2.5, null], "nested": {"a": true}}',
    "<html><body class='x'>1 + 1 = 2 && 3 < 4</body></html>",
)
VOCABULARY = 600


def byte_level(cls: str, *, split: str | None = None, begin: bool = False, **special: Any) -> Any:
    """Return a byte-level BPE tokenizer; `split` is a regular expression of words."""
    import transformers
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    if split is not None:
        words = pre_tokenizers.Split(Regex(split), "isolated")
        own = pre_tokenizers.Sequence([words, own])
    tokenizer.pre_tokenizer = own
    tokenizer.decoder = decoders.ByteLevel()
    names = list(dict.fromkeys([*special.values(), "<|im_start|>", "<|im_end|>"]))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if begin:
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B:1",
            special_tokens=[(bos, tokenizer.token_to_id(bos))],
        )
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        if cls in ("GPT2TokenizerFast", "RobertaTokenizerFast", "Qwen2TokenizerFast"):
            vocabulary, merges = tokenizer.model.save(folder)
            files = {"vocab_file": vocabulary, "merges_file": merges}
        else:
            files = {"tokenizer_object": tokenizer}
        made = getattr(transformers, cls)(**files, **special)
    made.chat_template = CHATML
    return made


def word_piece(cls: str = "BertTokenizerFast", **options: Any) -> Any:
    """Return a WordPiece tokenizer, as BERT and its kin have."""
    import transformers
    from tokenizers import BertWordPieceTokenizer

    pad, unknown, begin, end, mask = (
        ("<pad>", "[UNK]", "<s>", "</s>", "<mask>")
        if cls == "MPNetTokenizerFast"
        else ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    )
    trained = BertWordPieceTokenizer(unk_token=unknown)
    order = [begin, pad, end, unknown, mask] if begin == "<s>" else [pad, unknown, begin, end, mask]
    trained.train_from_iterator(
        CORPUS * 4, vocab_size=VOCABULARY, special_tokens=order, show_progress=False
    )
    with tempfile.TemporaryDirectory() as folder:
        trained.save_model(folder)
        return getattr(transformers, cls)(f"{folder}/vocab.txt", **options)


def sentencepiece(cls: str, kind: str = "bpe", **options: Any) -> Any:
    """Return a tokenizer converted from a SentencePiece model of `kind`, bpe or unigram.

    `options` are those of SentencePiece's trainer.
    """
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        path = train_sentencepiece(Path(folder), kind, **options)
        made = getattr(transformers, cls)(vocab_file=str(path))
    made.chat_template = CHATML if kind == "bpe" else None
    return made


def train_sentencepiece(folder: Path, kind: str = "bpe", **options: Any) -> Path:
    """Train a SentencePiece model; return the path of its file."""
    import sentencepiece as spm

    own: dict[str, Any] = {"vocab_size": 560, "character_coverage": 0.9995}
    if kind == "bpe":  # as Llama's
        own |= {"byte_fallback": True, "normalization_rule_name": "identity"}
        own |= {"remove_extra_whitespaces": False, "split_digits": True}
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in CORPUS for line in text.split("\n")] * 4),
        model_prefix=str(folder / "spiece"),
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
        **{**own, **options},
    )
    return folder / "spiece.model"


def save_with_template(tokenizer: Any, folder: Path, *, inline: bool) -> None:
    """Save a tokenizer; `inline` puts its template into tokenizer_config.json, as years ago."""
    tokenizer.save_pretrained(folder)
    template = folder / "chat_template.jinja"
    if inline and template.exists():
        path = folder / "tokenizer_config.json"
        document = {**json.loads(path.read_text()), "chat_template": template.read_text()}
        path.write_text(json.dumps(document))
        template.unlink()


def texts() -> Sequence[str]:
    """Return texts that tokenizers treat differently."""
    return (
        *CORPUS,
        "Paris",
        " leading and  double   spaces ",
        "line\nbreaks\r\n\n\tand tabs",
        "emoji 👩‍🚀🎉 and ∑√π, ﬁne ½ Å e\u0301",
        "12345678 1,000,000.00",
        "x",
    )
