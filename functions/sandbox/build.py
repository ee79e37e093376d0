"""From package/ to serving/: the model is loaded, asked its samples, compiled, measured, and its load plan chosen."""

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from functions.adapters.lambda_size import MB, memory_mb_for
from functions.adapters.onnx.sessions import OnnxRuntime, OnnxSession
from functions.core.errors import ExecutionFailed, InvalidModel, InvalidRequest, TimedOut, one_line
from functions.core.protocol.signature import Signature
from functions.core.registration.sandbox_protocol import Brief, Built
from functions.core.registry.load_plan import Plan
from functions.core.serving.model_cache import MODEL_OVERHEAD_BYTES
from functions.sandbox import explanations
from functions.sandbox.compile import answers, clear, compile_model, differs
from functions.sandbox.measure import BATCH, Costs, choose, clock, measure
from functions.sandbox.samples import (
    Sample,
    Tensors,
    answer,
    check,
    first_row,
    has_rows,
    kept,
    read_samples,
    rows,
    synthesise,
)
from functions.sandbox.variants import NotMade, make

ALONE_MS = 1.0  # one row in less: one thread is tried, too
PATIENCE_S = 12.0  # after it, no further plan is measured
SAMPLES_S = 30.0  # after it, samples beyond the first are taken as they are
PROVEN_SAMPLES = 4  # whose answers are compared bit by bit
SMALL_ROW_BYTES = 64 * 1024  # rows up to this size are repeated for the proof
LARGE_BYTES = (
    64 * MB
)  # larger uploads are asked less, and not loaded once more only to know how long it took
SMALLER, FASTER, AS_LARGE, AS_SLOW = (
    0.9,
    0.9,
    1.0,
    1.25,
)  # what a variant has to gain, and may lose for it
NOTE = 400  # characters
_REFUSALS = (InvalidRequest, ExecutionFailed, TimedOut)


@dataclass(slots=True)
class Candidate:
    """One form of the model: its files in their folder, how it was optimised, and what was found out about it."""

    folder: Path
    files: tuple[str, ...]
    optimised: str
    compile_ms: float = 0.0
    costs: list[Costs] = field(default_factory=list)
    checked: int = 0  # samples that it answered as they say

    @property
    def path(self) -> Path:
        return self.folder / self.files[0]

    @property
    def size_bytes(self) -> int:
        return sum((self.folder / name).stat().st_size for name in self.files)

    def plans(self, threads: int) -> list[Plan]:
        """The cheapest start first."""
        with self.path.open("rb") as file:
            convolves = self.optimised != "none" and b"Conv" in file.read(
                16 * MB
            )  # an operator's name, or by chance
        return [
            Plan(self.optimised, prepacking=False, threads=threads),
            Plan(self.optimised, threads=threads, layout=convolves),
        ]


def build(brief: Brief, directory: Path) -> Built:
    """Load, compile, check and measure the model in package/; write serving/.

    Raises:
        InvalidModel: why this model can never be served.
    """
    gc.freeze()  # what is imported stays: collecting garbage, which measuring memory does, then takes no time
    try:
        return _Build(brief, directory).run()
    except MemoryError as error:
        raise InvalidModel(
            "the model does not fit into the memory of the function that checks it",
            code="SANDBOX_MEMORY",
        ) from error


class _Build:
    def __init__(self, brief: Brief, directory: Path) -> None:
        self.brief = brief
        self.directory = directory
        self.runtime = OnnxRuntime(brief.threads)
        self.uploaded = Candidate(directory / "package", (brief.model, *brief.weights), "none")
        self.serving = directory / "serving"
        self.signature = Signature((), ())
        self.samples: list[Sample] = []
        self.sample: Sample | None = None  # the first, or one that was made up
        self.notes: list[str] = []
        self.began = time.monotonic()

    def run(self) -> Built:
        raw_bytes = self.uploaded.size_bytes
        if not self.brief.variants:  # one of them may be small enough
            self._check_fits(raw_bytes, raw_bytes)
        form = self._optimise(self.uploaded, self.serving)
        self._prove(form)
        for kind in self.brief.variants:
            form = self._better(form, kind)
        best = choose(form.costs)
        self._check_fits(best.resident_bytes, best.peak_bytes)
        measured = best.record() | {
            "raw_size_bytes": float(raw_bytes),
            "size_bytes": float(form.size_bytes),
        }
        if form.compile_ms:
            measured["compile_ms"] = round(form.compile_ms, 3)
        measured |= self._raw_load(form, raw_bytes) | {"samples_checked": float(form.checked)}
        self._explain(form, best, measured)
        document = self._document(form, best)
        self._move(form)
        return Built(
            files=form.files,
            signature=self.signature,
            plan=replace(best.plan, warmup=document is not None),
            measured=measured,
            memory_mb=_memory_mb(best),
            sample=document,
            notes=tuple(self.notes),
        )

    def _optimise(self, source: Candidate, folder: Path) -> Candidate:
        """`source` compiled into `folder` or, where that does not give the same bits, itself; with all plans measured.

        Raises:
            InvalidModel: `NOT_LOADABLE`; of what was uploaded, also all that is wrong with signature and samples.
        """
        outside = len(source.files) > 1
        compiled = compile_model(
            self.runtime, source.path, source.size_bytes, folder, outside=outside
        )
        first = self._read(compiled.session) if source is self.uploaded else None
        questions = self._questions()
        before = answers(compiled.session, questions, self.signature, first)
        problem, form = compiled.problem, source
        if compiled.files:
            form = Candidate(folder, compiled.files, "extended", compile_ms=compiled.seconds * 1000)
        del compiled  # its memory is free again before another form is loaded
        if form is not source:
            session = self._measure(form, form.plans(self.brief.threads)[0])
            if session is None or differs(
                before, answers(session, questions, self.signature, form.costs[0].outputs)
            ):
                problem, form = "its answers are not the same in every bit", source
                clear(folder)
            del session
        if problem:
            self.notes.append(explanations.AS_UPLOADED.format(problem=problem))
        self._measure_rest(form)
        return form

    def _read(self, session: OnnxSession) -> Tensors | None:
        """Find the signature and the samples. Returns what came of a sample that was made up."""
        self.signature = session.signature(self.uploaded.path)
        self.samples = read_samples(self.brief.samples, self.signature)
        if self.samples:
            self.sample = self.samples[0]
            return None
        self.sample, outputs = synthesise(session, self.signature)
        if self.sample is None:
            self.notes.append(explanations.NEVER_RUN)
        return outputs

    def _better(self, form: Candidate, kind: str) -> Candidate:
        """The variant `kind` of the model if the samples allow it and it is smaller or faster; else `form`."""
        if not self.samples:
            self.notes.append(explanations.NOT_JUDGED.format(kind=kind))
            return form
        so_far = list(self.notes)  # what is said about the variant's own plans would only confuse
        try:
            variant = self._variant(kind)
        except NotMade as error:
            self.notes = [*so_far, f"No {kind} variant: {error}."]
            return form
        except (InvalidModel, MemoryError) as error:
            self.notes = [
                *so_far,
                one_line(f"The {kind} variant was not taken: {error or 'it does not fit'}.", NOTE),
            ]
            return form
        before, after = choose(form.costs), choose(variant.costs)
        sizes = form.size_bytes, variant.size_bytes
        latencies = before.batch_1_ms or 0.0, after.batch_1_ms or 0.0
        taken = _improves(sizes, latencies)
        self.notes = [*so_far, explanations.variant(kind, taken, sizes, latencies, variant.checked)]
        return variant if taken else form

    def _variant(self, kind: str) -> Candidate:
        """The variant, measured, with all samples within the tolerance.

        Raises:
            NotMade: why there is none.
            InvalidModel: why it cannot be served.
        """
        folder, target = self.directory / f"variant-{kind}", self.directory / f"serving-{kind}"
        target.mkdir()
        files = make(kind, self.uploaded.path, self.uploaded.size_bytes, folder)
        variant = self._optimise(Candidate(folder, files, "none"), target)
        self._prove(variant)
        if variant.checked < len(self.samples):
            raise NotMade("there was no time to judge it by all samples")
        return variant

    def _is_over(self, seconds: float) -> bool:
        return time.monotonic() - self.began > seconds

    def _check_fits(self, resident_bytes: int, peak_bytes: int) -> None:
        need = memory_mb_for(resident_bytes + MODEL_OVERHEAD_BYTES, peak_bytes)
        if need > self.brief.memory_mb:
            raise InvalidModel(
                f"the model needs a function of {need} MB, and the one that serves has {self.brief.memory_mb} MB: "
                "raise the parameter InferMemory, or make the model smaller",
                code="TOO_LARGE_FOR_MEMORY",
            )

    def _questions(self) -> list[Tensors]:
        """What both forms of the model are asked: the samples, and where rows are a batch, three and eight of them.

        Of a large model only two: its runs take long, and what depends on the number of rows does so for two.
        """
        asked: list[Tensors] = [one.inputs for one in self.samples[:PROVEN_SAMPLES]]
        if self.sample is None:
            return []
        if not asked:
            asked = [self.sample.inputs]
        if self.signature.batches and _size_bytes(self.sample.inputs) < SMALL_ROW_BYTES:
            counts = (3, BATCH) if self.uploaded.size_bytes <= LARGE_BYTES else (2,)
            asked += [
                more for count in counts if (more := rows(self.sample.inputs, count)) is not None
            ]
        return asked

    def _measure(self, form: Candidate, plan: Plan) -> OnnxSession | None:
        """Measure one plan and keep what came of it. Returns None where it failed."""

        def load() -> OnnxSession:
            return self.runtime.load(form.path, plan)

        try:
            costs, session = measure(load, plan, self.sample, self.signature, form.size_bytes)
        except (*_REFUSALS, InvalidModel, MemoryError):
            return None
        form.costs.append(costs)
        return session

    def _measure_rest(self, form: Candidate) -> None:
        known = {costs.plan for costs in form.costs}
        for plan in self._rest(form):
            if plan in known or (form.costs and (self.sample is None or self._is_over(PATIENCE_S))):
                continue
            if self._measure(form, plan) is not None and not self._agrees(
                form.costs[0], form.costs[-1]
            ):
                form.costs.pop()
        if (
            not form.costs
        ):  # the sample is refused under every plan: the model is loaded for what it says about it
            plan = form.plans(self.brief.threads)[-1]
            session = self.runtime.load(form.path, plan)
            for sample in self.samples[:1]:
                self._answer("sample 0", session, sample)
            form.costs.append(
                measure(lambda: session, plan, None, self.signature, form.size_bytes)[0]
            )

    def _rest(self, form: Candidate) -> list[Plan]:
        """What is tried beside the first plan: what runs in no time may lose more to its threads than it gains."""
        plans = form.plans(self.brief.threads)
        runs_ms = form.costs[0].batch_1_ms if form.costs else None
        return (
            [replace(plan, threads=1) for plan in plans]
            if runs_ms is not None and runs_ms < ALONE_MS
            else plans
        )

    def _agrees(self, proven: Costs, other: Costs) -> bool:
        """Whether another plan gives what the first one does, but for last bits: kernels add up in different orders."""
        if proven.outputs is None or other.outputs is None:
            return True
        try:
            check("", proven.outputs, other.outputs, self.brief.rtol, self.brief.atol)
        except InvalidModel:
            return False
        return True

    def _prove(self, form: Candidate) -> None:
        """Drop plans until the samples hold under the best that is left.

        Raises:
            InvalidModel: `SAMPLE_MISMATCH` or `SAMPLE_FAILED`, under every plan.
        """
        failure: InvalidModel | None = None
        while form.costs:
            best = choose(form.costs)
            try:
                self._check_samples(form, best)
                return
            except InvalidModel as error:
                failure = failure or error
                form.costs.remove(best)
        if failure is not None:
            raise failure

    def _check_samples(self, form: Candidate, costs: Costs) -> None:
        form.checked = 0
        session: OnnxSession | None = None
        for at, sample in enumerate(self.samples):
            if at and self._is_over(SAMPLES_S):
                self.notes.append(
                    f"Only the first {at} of {len(self.samples)} samples were checked: each takes long."
                )
                break
            outputs = costs.outputs or {}
            if at:
                session = session or self.runtime.load(form.path, costs.plan)
                outputs = self._answer(f"sample {at}", session, sample)
            check(f"sample {at}", sample.expected, outputs, self.brief.rtol, self.brief.atol)
            form.checked += 1

    def _answer(self, what: str, session: OnnxSession, sample: Sample) -> Tensors:
        try:
            return answer(session, sample.inputs, self.signature)
        except _REFUSALS as error:
            raise InvalidModel(f"{what}: {error}", code="SAMPLE_FAILED") from error

    def _raw_load(self, form: Candidate, raw_bytes: int) -> dict[str, float]:
        """How long the uploaded file takes to load, for comparison."""
        if not form.compile_ms or raw_bytes > LARGE_BYTES or self._is_over(PATIENCE_S):
            return {}
        now = clock(self.brief.threads)
        began = now()
        self.runtime.load(self.uploaded.path)
        return {"raw_load_ms": round((now() - began) * 1000, 3)}

    def _document(self, form: Candidate, best: Costs) -> Mapping[str, object] | None:
        if self.sample is None:
            return None
        document = kept(self.sample, best.outputs or {}, self.signature)
        if document is None and has_rows(self.sample.inputs, self.signature):
            document = first_row(
                self.sample, self.runtime.load(form.path, best.plan), self.signature
            )
            if document:
                self.notes.append(explanations.FIRST_ROW)
        if document is None:
            self.notes.append(explanations.NOT_KEPT)
        elif self.sample.synthetic:
            self.notes.append(explanations.MADE_UP)
        return document

    def _explain(self, form: Candidate, best: Costs, measured: Mapping[str, float]) -> None:
        if form.optimised != "none":
            self.notes.insert(
                0, explanations.form(len(form.files), best.load_ms, measured.get("raw_load_ms"))
            )
        others = [
            costs for costs in form.costs if costs is not best and costs.batch_1_ms is not None
        ]
        if best.batch_1_ms is not None and others:
            self.notes.append(explanations.plan(best, others))
        self.notes.append(explanations.memory(best.resident_bytes, _memory_mb(best)))

    def _move(self, form: Candidate) -> None:
        if form.folder != self.serving:
            clear(self.serving)
            for name in form.files:
                (form.folder / name).rename(self.serving / name)


def _memory_mb(costs: Costs) -> int:
    return memory_mb_for(costs.resident_bytes + MODEL_OVERHEAD_BYTES, costs.peak_bytes)


def _size_bytes(tensors: Tensors) -> int:
    return sum(
        sum(map(len, one.data)) if one.datatype == "BYTES" else len(one.data)
        for one in tensors.values()
    )


def _improves(sizes: tuple[int, int], latencies: tuple[float, float]) -> bool:
    """Whether what was first and is second is smaller and about as fast, or faster and no larger."""
    size = sizes[1] / sizes[0]
    latency = latencies[1] / latencies[0] if latencies[0] else 1.0
    return (size <= SMALLER and latency <= AS_SLOW) or (latency <= FASTER and size <= AS_LARGE)
