"""Trial of a language model: golden reply, rates, memory."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

from functions.adapters.lambda_size import MB
from functions.adapters.language.model import LanguageModel
from functions.adapters.onnx.capi import OrtError
from functions.core.errors import InvalidModel, InvalidRequest
from functions.core.language.assets import TOKENIZER
from functions.core.language.ports import Options
from functions.core.language.spec import Kind, LanguageSpec
from functions.core.records import replace
from functions.core.registry.load_plan import Plan
from functions.sandbox.measure import Memory, Stopwatch

GOLDEN = 32  # tokens of the golden reply
PREFILL = 128  # tokens of the prompt whose rate is measured
CACHED = 4096  # tokens that the cache holds, for all replies together
TEXTS = 8  # batch that an encoder's rate is measured with
TRIAL_S = 20.0  # processor time after which no further token is made
CONTEXTS = (1024, 4096, 16_384, 65_536)  # tokens for which the memory is told


class Trial:
    """Loaded language model, with measurements of its use."""

    def __init__(
        self, model: Path, assets: Path, spec: LanguageSpec, plan: Plan, size_bytes: int
    ) -> None:
        """Load a model under its load plan.

        Raises:
            InvalidModel: the loop of the generate function cannot run it.
        """
        self.measured: dict[str, float] = {}
        self._size_bytes = size_bytes
        self._threads = plan.threads
        self._memory = Memory()
        self._until = time.process_time() + TRIAL_S
        paths = {"model.onnx": model, TOKENIZER: assets / TOKENIZER}
        try:
            self._model = LanguageModel.load(
                paths, spec, plan, plan.threads, CACHED * 2 * spec.cache_bytes_per_token
            )
        except (InvalidRequest, OrtError) as error:
            raise _failed(error) from error
        self._spec = self._model.spec

    def run(self, prompt: Sequence[int]) -> LanguageSpec:
        """Return the facts of the model with its golden reply and rates.

        Raises:
            InvalidModel: `GENERATION_FAILED`, it fails on a prompt.
        """
        prompt = list(prompt)[: max(1, min(self._spec.context, CACHED // 4) // 2)]
        try:
            spec = self._decode(prompt) if self._spec.kind is Kind.DECODER else self._embed(prompt)
        except (InvalidRequest, OrtError) as error:
            raise _failed(error) from error
        self._tell_memory(spec)
        return spec

    def _decode(self, prompt: list[int]) -> LanguageSpec:
        room = self._spec.context - len(prompt)
        reply, seconds = self._generate(prompt, min(GOLDEN, room))
        long = _cycled(prompt, min(PREFILL, self._spec.context - 1))
        _, prefill_s = self._generate(long[::-1], 1)  # shares no beginning with the other
        # The first token of the reply is that of the prompt's own run.
        decode_s = seconds - prefill_s * len(prompt) / len(long)
        return replace(
            self._spec,
            golden={"prompt": prompt, "reply": reply},
            prefill_rate=_rate(len(long), prefill_s),
            decode_rate=_rate(len(reply) - 1, max(decode_s, seconds / 2)),
        )

    def _generate(self, prompt: list[int], count: int) -> tuple[list[int], float]:
        """Return a greedy reply of `count` tokens, and its seconds."""
        options = Options(max_tokens=count, temperature=0.0, ignore_eos=True)
        stopwatch = Stopwatch(self._threads)
        pieces = self._model.generate(
            prompt,
            options,
            deadline=math.inf,
            cancelled=lambda: time.process_time() > self._until,
        )
        reply = [token for piece in pieces for token in piece.tokens]
        if not reply:
            raise InvalidModel(
                f"the model makes no token within {TRIAL_S:.0f} s of processor time for a prompt "
                f"of {len(prompt)} tokens: it is too slow to be served",
                code="GENERATION_SLOW",
            )
        return reply, stopwatch.seconds()

    def _embed(self, prompt: list[int]) -> LanguageSpec:
        text = _cycled(prompt, min(PREFILL, self._spec.context))
        [vector] = self._model.embed([prompt], deadline=math.inf)
        stopwatch = Stopwatch(self._threads)
        self._model.embed([text] * TEXTS, deadline=math.inf)
        if not all(map(math.isfinite, vector)):
            raise InvalidModel(
                "the vector of a text has values that are no numbers", code="GENERATION_FAILED"
            )
        return replace(
            self._spec,
            dimensions=len(vector),
            golden={"prompt": prompt},
            prefill_rate=_rate(TEXTS * len(text), stopwatch.seconds()),
        )

    def _tell_memory(self, spec: LanguageSpec) -> None:
        """Record the memory of the model, and of contexts."""
        self._memory.resident_bytes(self._size_bytes)
        used = max(self._memory.peak_bytes(), self._size_bytes)
        self.measured["language_memory_mb"] = round(used / MB, 3)
        token_bytes = spec.cache_bytes_per_token * (1 if spec.shared_cache else 2)
        if not token_bytes:
            return
        self.measured["cache_kb_per_token"] = round(token_bytes / 1024, 3)
        for context in sorted({*(size for size in CONTEXTS if size < spec.context), spec.context}):
            total = used + context * token_bytes
            self.measured[f"memory_mb_context_{context}"] = round(total / MB, 3)


def _cycled(tokens: list[int], count: int) -> list[int]:
    return (tokens * (count // len(tokens) + 1))[:count]


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 1) if count > 0 and seconds > 0 else 0.0


def _failed(error: Exception) -> InvalidModel:
    return InvalidModel(f"the model fails on a prompt: {error}", code="GENERATION_FAILED")
