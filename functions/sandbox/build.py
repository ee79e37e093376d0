"""Compile a model, check and measure it, and choose its load plan."""

import gc
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from functions.adapters.lambda_size import memory_mb_for
from functions.adapters.onnx.sessions import OnnxRuntime
from functions.core.errors import InvalidModel
from functions.core.language.spec import LanguageSpec
from functions.core.package.safety.guards import operators_to_guard
from functions.core.registration.sandbox_protocol import SERVED_FILES, Brief, Built
from functions.core.registry.load_plan import Plan
from functions.core.serving.model_cache import MODEL_OVERHEAD_BYTES
from functions.core.watchdog import Watchdog
from functions.sandbox import explanations
from functions.sandbox.comparison import Tensors, cpu_clock
from functions.sandbox.compile import Compiled, clear, compile_model
from functions.sandbox.evaluate import LARGE_BYTES, PLANS_S, Candidate, Evaluator
from functions.sandbox.measure import Costs, timed
from functions.sandbox.samples import FIRST_ROW, Sample, to_document
from functions.sandbox.variants import NotMade, improves, make

if TYPE_CHECKING:
    from functions.sandbox.language.checks import LanguageChecks


def build(brief: Brief, directory: Path) -> Built:
    """Compile, check and measure an unpacked model; write files to serve.

    The model is in package/ of `directory`; the files to serve go to serving/.

    Raises:
        InvalidModel: why this model can never be served.
    """
    gc.freeze()  # imported modules stay; measuring memory collects garbage, faster without them
    try:
        return _Build(brief, directory).run()
    except MemoryError as error:
        raise InvalidModel(
            "the model does not fit into the memory of the function that checks it",
            code="SANDBOX_MEMORY",
        ) from error


def _language_checks(brief: Brief, folder: Path) -> "LanguageChecks | None":
    """Prove the assets of a package with a tokenizer."""
    if not brief.assets:
        return None
    from functions.sandbox.language.checks import LanguageChecks  # other models start without

    return LanguageChecks(folder, brief.assets, brief.language)


class _Build:
    """Build of one model: its candidates, measurements and notes for the uploader."""

    def __init__(self, brief: Brief, directory: Path) -> None:
        self.brief = brief
        self.directory = directory
        # A run's time is that of the processor: on a busy machine it takes longer by the clock.
        watchdog = Watchdog(partial(cpu_clock, brief.threads))
        self.runtime = OnnxRuntime(brief.threads, watchdog)
        self.uploaded = Candidate(directory / "package", (brief.model, *brief.weights), "none")
        self.serving = directory / "serving"
        self.checks = _language_checks(brief, directory / "assets")
        self.evaluator = Evaluator(self.runtime, brief, self.uploaded.size_bytes, self.checks)
        self.notes: list[str] = []

    def run(self) -> Built:
        raw_bytes = self.uploaded.size_bytes
        if not self.brief.variants:  # a variant may fit where the upload does not
            self._check_fits(raw_bytes, raw_bytes)
        candidate = self._compile(self.uploaded, self.serving)
        self._check_count(candidate)
        document = self._stored_sample(candidate)  # before a variant takes the candidate's place
        self._check_samples(candidate)
        for kind in self.brief.variants:
            candidate = self._better(candidate, kind)
        best = self.evaluator.best(candidate)
        self._check_fits(best.resident_bytes, best.peak_bytes)
        measured = self._measurements(candidate, best, raw_bytes)
        self._explain(candidate, best, measured)
        self._move(candidate)
        language = self._try_language(candidate, best, measured)
        return Built(
            files=candidate.files,
            signature=self.evaluator.signature,
            plan=replace(best.plan, warmup=document is not None),
            measured=measured,
            memory_mb=_memory_mb(best.resident_bytes, best.peak_bytes),
            sample=document,
            notes=(*(self.checks.notes if self.checks else ()), *self.notes),
            language=language.to_record() if language else None,
            assets=tuple(sorted(self.checks.names)) if self.checks else (),
        )

    def _check_fits(self, resident_bytes: int, peak_bytes: int) -> None:
        need_mb = _memory_mb(resident_bytes, peak_bytes)
        limits = {"InferMemory": self.brief.memory_mb}
        if self.checks is not None and self.checks.names:
            limits["GenerateMemory"] = self.brief.language_memory_mb
        parameter = max(limits, key=lambda name: limits[name])
        if need_mb > limits[parameter]:
            raise InvalidModel(
                f"the model needs a function of {need_mb} MB, and the one that serves has "
                f"{limits[parameter]} MB: raise the parameter {parameter}, or make the model "
                "smaller",
                code="TOO_LARGE_FOR_MEMORY",
            )

    def _check_count(self, candidate: Candidate) -> None:
        files = len(candidate.files)
        if files > SERVED_FILES:  # compiled, it would be two
            raise InvalidModel(
                f"the model is served as uploaded, in {files} files, and {SERVED_FILES} are "
                "allowed: save it with all_tensors_to_one_file=True",
                code="TOO_COMPLEX",
            )

    def _compile(self, source: Candidate, folder: Path) -> Candidate:
        """Compile a model into `folder`, measure it, and return the result.

        Returns `source` itself, measured, if no plan for the compiled form gives the answers that
        ONNX Runtime gives by default.

        Raises:
            InvalidModel: `NOT_LOADABLE`; for the uploaded model also errors in the samples.
        """
        external = len(source.files) > 1
        compiled = compile_model(
            self.runtime, source.path, source.size_bytes, folder, external=external
        )
        first = None
        if source is self.uploaded:
            first = self._read(compiled, folder)
        source.reference = self.evaluator.reference(
            source.path,
            compiled.session,
            first,
            is_final=compiled.is_default,
            is_exact=compiled.is_quantised,
        )
        files, compile_ms, problem = compiled.files, compiled.seconds * 1000, compiled.problem
        guarded = compiled.guarded
        del compiled  # frees the compiled session before the next is loaded
        candidate = source
        if files:
            candidate = Candidate(folder, files, "extended", source.reference, compile_ms)
            self.evaluator.measure_plans(candidate)
            if not candidate.costs:
                _, problem = candidate.dropped[0]
                source.reference, candidate = candidate.reference, source
                clear(folder)
        if problem:
            _check_needs_no_guards(source, guarded, problem)
            self.notes.append(explanations.as_uploaded(problem))
            self.evaluator.measure_plans(source)
        return candidate

    def _read(self, compiled: Compiled, folder: Path) -> Tensors | None:
        """Read a model's signature and samples; return a generated sample's outputs.

        A sample is generated by trying sizes, some of which could crash a model without guards.
        """
        if not (compiled.guarded and compiled.files) or self.brief.samples:
            return self.evaluator.read(compiled.session, self.uploaded.path)
        plan = Plan(threads=self.brief.threads, optimised="extended", prepacking=False)
        guarded = self.runtime.load(folder / compiled.files[0], plan)
        self.evaluator.read(guarded, self.uploaded.path)
        return None

    def _check_samples(self, candidate: Candidate) -> None:
        self.evaluator.drop_failing_plans(candidate)
        samples = len(self.evaluator.samples)
        if candidate.checked < samples:
            note = explanations.FEW_CHECKED.format(checked=candidate.checked, samples=samples)
            self.notes.append(note)

    # --- variants

    def _better(self, candidate: Candidate, kind: str) -> Candidate:
        """Return an int8 or fp16 variant if better, else the candidate."""
        if not self.evaluator.samples:
            self.notes.append(explanations.NOT_JUDGED.format(kind=kind))
            return candidate
        notes = self.notes
        self.notes = []  # notes about the variant's own plans would only confuse
        better, note = self._judge(candidate, kind)
        self.notes = [*notes, note]
        return better

    def _judge(self, candidate: Candidate, kind: str) -> tuple[Candidate, str]:
        """Return the better of model and variant, and a note why."""
        try:
            variant = self._variant(kind)
        except NotMade as error:
            return candidate, f"No {kind} variant: {error}."
        except (InvalidModel, MemoryError) as error:
            problem = str(error) or "it does not fit"
            return candidate, explanations.no_variant(kind, problem)
        before, after = self.evaluator.best(candidate), self.evaluator.best(variant)
        sizes = candidate.size_bytes, variant.size_bytes
        latencies = before.batch_1_ms or 0.0, after.batch_1_ms or 0.0
        is_better = improves(sizes, latencies)
        note = explanations.variant(kind, is_better, sizes, latencies, variant.checked)
        return (variant if is_better else candidate), note

    def _variant(self, kind: str) -> Candidate:
        """Make an int8 or fp16 variant, measure it, check all samples.

        Raises:
            NotMade: why there is none.
            InvalidModel: why it cannot be served.
        """
        folder, target = self.directory / f"variant-{kind}", self.directory / f"serving-{kind}"
        target.mkdir()
        files = make(kind, self.uploaded.path, self.uploaded.size_bytes, folder)
        variant = self._compile(Candidate(folder, files, "none"), target)
        self.evaluator.drop_failing_plans(variant)
        if variant.checked < len(self.evaluator.samples):
            raise NotMade("there was no time to judge it by all samples")
        return variant

    # --- result

    def _measurements(self, candidate: Candidate, best: Costs, raw_bytes: int) -> dict[str, float]:
        measured = best.record()
        measured["raw_size_bytes"] = float(raw_bytes)
        measured["size_bytes"] = float(candidate.size_bytes)
        if candidate.compile_ms:
            measured["compile_ms"] = round(candidate.compile_ms, 3)
            if raw_bytes <= LARGE_BYTES and not self.evaluator.is_over(PLANS_S):
                with suppress(MemoryError):  # the model is served in another form
                    measured["raw_load_ms"] = round(self._raw_load_ms(), 3)
        measured["samples_checked"] = float(candidate.checked)
        return measured

    def _try_language(
        self, candidate: Candidate, best: Costs, measured: dict[str, float]
    ) -> LanguageSpec | None:
        """Generate or embed with the files to serve; add measurements."""
        if self.checks is None or self.evaluator.language is None:
            return None
        from functions.sandbox.language.trial import Trial

        model, spec = self.serving / candidate.files[0], self.evaluator.language
        trial = Trial(model, self.checks.folder, spec, best.plan, candidate.size_bytes)
        spec = trial.run(self.checks.prompt(spec))
        measured.update(trial.measured)
        return spec

    def _raw_load_ms(self) -> float:
        """Return the milliseconds to load the uploaded model, for comparison."""
        _, load_ms = timed(lambda: self.runtime.load(self.uploaded.path), self.brief.threads)
        return load_ms

    def _explain(self, candidate: Candidate, best: Costs, measured: Mapping[str, float]) -> None:
        if candidate.optimised != "none":
            raw_load_ms = measured.get("raw_load_ms")
            note = explanations.compiled(len(candidate.files), best.load_ms, raw_load_ms)
            self.notes.insert(0, note)
        if candidate.reference.answers and not candidate.is_reference(best.plan):
            self.notes.append(explanations.compared(best, candidate.reference))
        rivals = [
            costs for costs in candidate.costs if costs is not best and costs.batch_1_ms is not None
        ]
        if best.batch_1_ms is not None and rivals:
            self.notes.append(explanations.plan(best, rivals))
        self.notes += [explanations.dropped(*drop) for drop in candidate.dropped]
        memory_mb = _memory_mb(best.resident_bytes, best.peak_bytes)
        self.notes.append(explanations.memory(best.resident_bytes, memory_mb))

    def _stored_sample(self, candidate: Candidate) -> Mapping[str, object] | None:
        """Return the sample request to store: whole, first row, or None.

        Its response is the sample's own, or what ONNX Runtime answers by default.
        """
        sample, signature = self.evaluator.sample, self.evaluator.signature
        if sample is None:
            self.notes.append(explanations.NEVER_RUN)
            return None
        answers = candidate.answers()
        first, first_row = next(iter(answers.values())), answers.get(FIRST_ROW)
        document = to_document(sample, first or {}, signature)
        if document is None and first_row is not None:
            inputs, _ = candidate.reference.answers[FIRST_ROW]
            document = to_document(Sample(inputs, {}), first_row, signature)
            if document is not None:
                document["synthetic"] = sample.synthetic
                self.notes.append(explanations.FIRST_ROW)
        if document is None:
            self.notes.append(explanations.NOT_STORED)
        elif sample.synthetic:
            self.notes.append(explanations.SYNTHETIC)
        return document

    def _move(self, candidate: Candidate) -> None:
        """Move the chosen model's files into serving/."""
        if candidate.folder != self.serving:
            clear(self.serving)
            for name in candidate.files:
                (candidate.folder / name).rename(self.serving / name)


def _check_needs_no_guards(source: Candidate, guarded: tuple[str, ...], problem: str) -> None:
    """Refuse a model that is only crash-safe in its unavailable compiled form.

    `guarded` are operators of the compiled form, which ONNX Runtime would create again.
    """
    operators = guarded or operators_to_guard(source.path)
    if operators:
        raise InvalidModel(
            f"a tensor without elements would crash {', '.join(operators)}, and the compiled form, "
            f"which checks for it, cannot be served: {problem}",
            code="UNSAFE_OPERATOR",
        )


def _memory_mb(resident_bytes: int, peak_bytes: int) -> int:
    """Return the smallest Lambda memory size, in MB, that serves a model."""
    return memory_mb_for(resident_bytes + MODEL_OVERHEAD_BYTES, peak_bytes)
