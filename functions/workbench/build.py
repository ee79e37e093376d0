"""From package/ to serving/: the model is loaded, asked its samples, compiled, measured, and its load plan chosen."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from functions.adapters.limits import MB, memory_mb_for
from functions.adapters.onnx import OnnxRuntime, OnnxSession
from functions.core.errors import ExecutionFailed, InvalidModel, InvalidRequest, TimedOut
from functions.core.serving import MODEL_OVERHEAD_BYTES
from functions.core.signature import Signature
from functions.core.workbench import Brief, Built, Plan
from functions.workbench.compile import answers, clear, compile_model, differs
from functions.workbench.measure import BATCH, Costs, choose, measure
from functions.workbench.samples import Arrays, Sample, answer, check, kept, read_samples, rows, synthesise

PATIENCE_S = 12.0  # after it, no further candidate is measured, and samples beyond the first are taken as they are
PROVEN_SAMPLES = 4  # whose answers are compared bit by bit
SLOW_RUN_S = 0.5  # a run that takes longer is not repeated with more rows for the proof
RAW_LOAD_BYTES = 64 * MB  # larger uploads are not loaded once more only to know how long it took
_REFUSALS = (InvalidRequest, ExecutionFailed, TimedOut)


@dataclass(slots=True)
class Candidate:
    """One form of the model: its files in their folder, how it was optimised, and what was found out about it."""

    folder: Path
    files: tuple[str, ...]
    optimised: str
    costs: list[Costs] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.folder / self.files[0]

    @property
    def size_bytes(self) -> int:
        return sum((self.folder / name).stat().st_size for name in self.files)

    def plans(self, threads: int) -> list[Plan]:
        """The cheapest start first."""
        plans = [Plan(self.optimised, prepacking=False, threads=threads), Plan(self.optimised, threads=threads)]
        if self.optimised != "none" and b"Conv" in self.path.read_bytes()[: 16 * MB]:
            plans.append(Plan(self.optimised, threads=threads, layout=True))
        return plans


def build(brief: Brief, directory: Path) -> Built:
    """What `core.workbench.Workbench.build` promises.

    Raises:
        InvalidModel: why this model can never be served.
    """
    try:
        return _Build(brief, directory).run()
    except MemoryError as error:
        raise InvalidModel(
            "the model does not fit into the memory of the function that checks it", code="SANDBOX_MEMORY"
        ) from error


class _Build:
    def __init__(self, brief: Brief, directory: Path) -> None:
        self.brief = brief
        self.runtime = OnnxRuntime(brief.threads)
        self.uploaded = Candidate(directory / "package", (brief.model, *brief.weights), "none")
        self.serving = directory / "serving"
        self.notes: list[str] = []
        self.checked = 0  # samples that were answered as they say
        self.until = time.monotonic() + PATIENCE_S

    def run(self) -> Built:
        raw_bytes = self.uploaded.size_bytes
        self._check_fits(raw_bytes, raw_bytes)
        outside = bool(self.brief.weights)
        compiled = compile_model(self.runtime, self.uploaded.path, raw_bytes, self.serving, outside=outside)
        signature = compiled.session.signature(self.uploaded.path)
        samples = read_samples(self.brief.samples, signature)
        sample = samples[0] if samples else self._made_up(compiled.session, signature)
        questions = self._questions(samples, sample, signature)
        before = answers(compiled.session, questions, signature)
        session: OnnxSession | None = compiled.session
        problem, files, seconds = compiled.problem, compiled.files, compiled.seconds
        del compiled, session  # the memory of the uploaded model is free again before another one is loaded

        form = Candidate(self.serving, files, "extended") if files else self.uploaded
        if form.optimised != "none":
            session = self._measure(form, form.plans(self.brief.threads)[0], sample, signature)
            if session is None or differs(before, answers(session, questions, signature)):
                problem = "its answers are not the same in every bit"
                clear(self.serving)
                form = self.uploaded
            del session
        if problem:
            self.notes.append(f"Served as uploaded, because the optimised form was not taken: {problem}.")
        self._measure_rest(form, sample, signature)
        best = choose(form.costs)
        self._check_fits(best.resident_bytes, best.peak_bytes)
        outputs = self._prove(form, best, samples, signature)
        measured = best.record() | {"raw_size_bytes": float(raw_bytes), "size_bytes": float(form.size_bytes)}
        if form is not self.uploaded:
            measured["compile_ms"] = round(seconds * 1000, 3)
        measured |= self._raw_load(form, raw_bytes) | {"samples_checked": float(self.checked)}
        self._explain(form, best, measured)
        document = self._document(sample, outputs, signature)
        self._move(form)
        return Built(
            files=form.files,
            signature=signature,
            plan=replace(best.plan, warmup=document is not None),
            measured=measured,
            memory_mb=memory_mb_for(best.resident_bytes + MODEL_OVERHEAD_BYTES, best.peak_bytes),
            sample=document,
            notes=tuple(self.notes),
        )

    def _check_fits(self, resident_bytes: int, peak_bytes: int) -> None:
        need = memory_mb_for(resident_bytes + MODEL_OVERHEAD_BYTES, peak_bytes)
        if need > self.brief.memory_mb:
            raise InvalidModel(
                f"the model needs a function of {need} MB, and the one that serves has {self.brief.memory_mb} MB: "
                "raise the parameter InferMemory, or make the model smaller",
                code="TOO_LARGE_FOR_MEMORY",
            )

    def _made_up(self, session: OnnxSession, signature: Signature) -> Sample | None:
        sample = synthesise(session, signature)
        if sample is None:
            self.notes.append(
                "No request could be made up that the model answers, so it was loaded and never run; "
                "add samples to its manifest."
            )
        return sample

    def _questions(self, samples: Sequence[Sample], sample: Sample | None, signature: Signature) -> list[Arrays]:
        """What both forms of the model are asked: the samples, and where rows are a batch, three and eight of them."""
        asked: list[Arrays] = [one.inputs for one in samples[:PROVEN_SAMPLES]] or ([sample.inputs] if sample else [])
        if sample is not None and signature.batches and sum(a.nbytes for a in sample.inputs.values()) < MB // 16:
            asked += [more for count in (3, BATCH) if (more := rows(sample.inputs, count)) is not None]
        return asked

    def _measure(self, form: Candidate, plan: Plan, sample: Sample | None, signature: Signature) -> OnnxSession | None:
        """Measure one plan and keep what came of it. Returns None where it failed."""

        def load() -> OnnxSession:
            return self.runtime.load(form.path, plan)

        try:
            costs, session = measure(load, plan, sample, signature, form.size_bytes)
        except (*_REFUSALS, InvalidModel, MemoryError):
            return None
        form.costs.append(costs)
        return session

    def _measure_rest(self, form: Candidate, sample: Sample | None, signature: Signature) -> None:
        known = {costs.plan for costs in form.costs}
        for plan in form.plans(self.brief.threads):
            if plan in known or (form.costs and (sample is None or time.monotonic() > self.until)):
                continue
            self._measure(form, plan, sample, signature)
        if not form.costs:  # the sample is refused under every plan: the model is loaded for what it says about it
            plan = form.plans(self.brief.threads)[-1]
            session = self.runtime.load(form.path, plan)
            if sample is not None:
                self._answer("sample 0", session, sample, signature)
            form.costs.append(measure(lambda: session, plan, None, signature, form.size_bytes)[0])

    def _prove(
        self, form: Candidate, best: Costs, samples: Sequence[Sample], signature: Signature
    ) -> Mapping[str, np.ndarray]:
        """The outputs of the first sample, after each sample was answered as it says.

        Raises:
            InvalidModel: `SAMPLE_MISMATCH`, or `SAMPLE_FAILED`.
        """
        first = best.outputs or {}
        if not samples:
            return first
        session: OnnxSession | None = None
        for at, sample in enumerate(samples):
            if at and time.monotonic() > self.until:
                self.notes.append(f"Only the first {at} of {len(samples)} samples were checked: each takes long.")
                break
            outputs = first
            if at:
                session = session or self.runtime.load(form.path, best.plan)
                outputs = self._answer(f"sample {at}", session, sample, signature)
            check(f"sample {at}", sample.expected, outputs, signature, self.brief.rtol, self.brief.atol)
            self.checked += 1
        return first

    def _answer(
        self, what: str, session: OnnxSession, sample: Sample, signature: Signature
    ) -> Mapping[str, np.ndarray]:
        try:
            return answer(session, sample.inputs, signature)
        except _REFUSALS as error:
            raise InvalidModel(f"{what}: {error}", code="SAMPLE_FAILED") from error

    def _raw_load(self, form: Candidate, raw_bytes: int) -> dict[str, float]:
        """How long the uploaded file takes to load, for comparison."""
        if form is self.uploaded or raw_bytes > RAW_LOAD_BYTES or time.monotonic() > self.until:
            return {}
        began = time.perf_counter()
        self.runtime.load(self.uploaded.path)
        return {"raw_load_ms": round((time.perf_counter() - began) * 1000, 3)}

    def _document(
        self, sample: Sample | None, outputs: Mapping[str, np.ndarray], signature: Signature
    ) -> Mapping[str, object] | None:
        if sample is None:
            return None
        document = kept(sample, outputs, signature)
        if document is None:
            self.notes.append("The sample is too large to be kept, so there is no warm-up with it.")
        elif sample.synthetic:
            self.notes.append("The package brought no samples: the one that is kept was made up, and proves nothing.")
        return document

    def _explain(self, form: Candidate, best: Costs, measured: Mapping[str, float]) -> None:
        if form is not self.uploaded:
            where = "with its weights in a file that is mapped" if len(form.files) > 1 else "in one file"
            raw = f", the upload in {measured['raw_load_ms']:.1f} ms" if "raw_load_ms" in measured else ""
            self.notes.insert(
                0, f"Optimised ahead of time, {where}, with the same answers in every bit: loads in "
                f"{best.load_ms:.1f} ms{raw}.",
            )  # fmt: skip
        others = [costs for costs in form.costs if costs is not best and costs.batch_1_ms is not None]
        if best.batch_1_ms is not None and others:
            told = "; ".join(f"{_plan(one.plan)}: {_costs(one)}" for one in others)
            self.notes.append(f"Load plan: {_plan(best.plan)} ({_costs(best)}), not {told}.")
        need = memory_mb_for(best.resident_bytes + MODEL_OVERHEAD_BYTES, best.peak_bytes)
        self.notes.append(f"Takes {best.resident_bytes / MB:.0f} MB of memory, fits a function of {need} MB and more.")

    def _move(self, form: Candidate) -> None:
        if form.folder != self.serving:
            for name in form.files:
                (form.folder / name).rename(self.serving / name)


def _plan(plan: Plan) -> str:
    words = ["weights packed at load" if plan.prepacking else "weights used as they lie"]
    return " and laid out for this processor".join([*words, ""]) if plan.layout else words[0]


def _costs(costs: Costs) -> str:
    eight = f", eight rows in {costs.batch_8_ms:.2f} ms" if costs.batch_8_ms is not None else ""
    return f"first answer after {costs.cold_ms:.1f} ms, then {costs.batch_1_ms:.2f} ms{eight}"
