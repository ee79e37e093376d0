"""Evaluate uploaded and compiled models: measure load plans, check sample outputs."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from functions.adapters.lambda_size import MB
from functions.adapters.onnx.sessions import OnnxRuntime, OnnxSession
from functions.core.errors import InvalidModel, TimedOut
from functions.core.language.spec import Kind, LanguageSpec
from functions.core.protocol.signature import Signature
from functions.core.registration.sandbox_protocol import Brief
from functions.core.registry.load_plan import Plan
from functions.sandbox import explanations
from functions.sandbox.comparison import (
    NO_REFERENCE,
    REFUSALS,
    RUN_S,
    Reference,
    Tensors,
    check,
    run_model,
    try_run,
)
from functions.sandbox.language.requests import request
from functions.sandbox.measure import Costs, measure
from functions.sandbox.plans import SLOWER_1, SLOWER_TOKEN, choose, plans_for
from functions.sandbox.samples import Sample, compared_requests, read_samples
from functions.sandbox.synthetic import synthesise

if TYPE_CHECKING:  # its libraries are imported for language models alone
    from functions.sandbox.language.checks import LanguageChecks

SINGLE_THREAD_MS = 1.0  # if one row takes less, plans with one thread are measured, too
# Seconds of processor time, of the build's 90, after which nothing further is begun: no request is
# compared, no plan measured, no sample checked.
COMPARED_S, PLANS_S, SAMPLES_S = 15.0, 25.0, 45.0
LARGE_BYTES = 64 * MB  # larger uploads are compared on fewer rows


@dataclass(slots=True)
class Candidate:
    """Candidate to serve: files of the uploaded, compiled or approximated model."""

    folder: Path
    files: tuple[str, ...]  # file names, the model first
    optimised: str  # graph optimisation of the files, as in `Plan.optimised`
    reference: Reference = NO_REFERENCE  # answers that those of the plans are compared with
    compile_ms: float = 0.0
    costs: list[Costs] = field(default_factory=list)  # measured plans that may be chosen
    dropped: list[tuple[Plan, str]] = field(default_factory=list)  # other plans, and why
    checked: int = 0  # samples with the expected answer

    @property
    def path(self) -> Path:
        return self.folder / self.files[0]

    @property
    def size_bytes(self) -> int:
        return sum((self.folder / name).stat().st_size for name in self.files)

    def is_reference(self, plan: Plan) -> bool:
        """Return True if the model under `plan` produced the reference outputs.

        They are not compared: a model with random answers differs from itself.
        """
        is_model = self.reference.is_final and self.path == self.reference.model
        return is_model and plan == self.reference.plan

    def answers(self) -> Mapping[str, Tensors | None]:
        """Return ONNX Runtime's default outputs for the compared requests.

        If all load plans agreed, no default session ran; the first plan has the same kernels.
        """
        if self.reference.is_final:
            return {label: outputs for label, (_, outputs) in self.reference.answers.items()}
        return self.costs[0].answers


class Evaluator:
    """Evaluator of candidate models: measures load plans and checks samples."""

    def __init__(
        self,
        runtime: OnnxRuntime,
        brief: Brief,
        upload_bytes: int,
        checks: "LanguageChecks | None" = None,
    ) -> None:
        self._checks = checks
        self.signature = Signature((), ())
        self.samples: list[Sample] = []
        self.sample: Sample | None = None  # the first sample, or a synthetic one
        self.language: LanguageSpec | None = None
        self._runtime = runtime
        self._brief = brief
        self._is_large = upload_bytes > LARGE_BYTES
        self._began = time.process_time()

    def is_over(self, seconds: float) -> bool:
        """Return True if the build used more than `seconds` of CPU time."""
        return time.process_time() - self._began > seconds

    def best(self, candidate: Candidate) -> Costs:
        """Return the costs of a candidate's best load plan."""
        is_decoder = self.language is not None and self.language.kind is Kind.DECODER
        return choose(candidate.costs, SLOWER_TOKEN if is_decoder else SLOWER_1)

    def read(self, session: OnnxSession, model: Path) -> Tensors | None:
        """Read a model's signature and samples; generate a sample if none.

        Returns the outputs of a generated sample, else None.

        Raises:
            InvalidModel: `BAD_SAMPLE`, `UNSUPPORTED_TYPE`, `UNKNOWN_RANK` or `NO_ANSWER`.
        """
        self.signature = session.signature(model)
        if not self.signature.outputs:
            raise InvalidModel(
                "the model has no outputs, so no request could be answered; export it with some",
                code="NO_ANSWER",
            )
        likely = self._read_language()
        self.samples = read_samples(self._brief.samples, self.signature)
        if self.samples:
            self.sample = self.samples[0]
            return None
        self.sample, outputs = synthesise(session, self.signature, likely)
        return outputs

    def _read_language(self) -> Tensors | None:
        """Read a language model's facts; return a request for it."""
        if self._checks is None:
            return None
        self.language = self._checks.facts(self.signature)
        if self.language is None:
            return None
        return request(self.signature, self.language, self._checks.prompt(self.language))

    # --- the reference

    def reference(
        self,
        model: Path,
        session: OnnxSession,
        first: Tensors | None,
        *,
        is_final: bool,
        is_exact: bool,
    ) -> Reference:
        """Return a session's outputs for the requests used to compare load plans.

        `first` are its outputs for the first request, if that ran before. Requests for which there
        is no time or memory are left out. `is_exact` sets the tolerance to zero: quantising a value
        can turn a difference in its last bit into one of a whole quantisation step.

        Raises:
            InvalidModel: `SAMPLE_FAILED`, the session fails on the first request.
        """
        answers: dict[str, tuple[Tensors, Tensors | None]] = {}
        requests = compared_requests(
            self.samples, self.sample, self.signature, is_large=self._is_large
        )
        for label, inputs in requests.items():
            if not answers:
                answers[label] = inputs, first or self._run_sample(label, session, inputs)
            elif not self.is_over(COMPARED_S):
                with suppress(TimedOut, MemoryError):
                    answers[label] = inputs, self._run_or_none(session, inputs)
        plan = Plan(threads=self._brief.threads, prepacking=is_final)
        rtol, atol = (0.0, 0.0) if is_exact else (self._brief.rtol, self._brief.atol)
        return Reference(model, plan, answers, rtol, atol, is_final)

    def _default(self, reference: Reference) -> Reference:
        """Return the reference outputs from ONNX Runtime's default session.

        If there is no memory or time for it, `reference` itself becomes final.
        """
        plan = Plan(threads=self._brief.threads)
        try:
            session = self._runtime.load(reference.model, plan)
            answers = {
                label: (inputs, self._run_or_none(session, inputs))
                for label, (inputs, _) in reference.answers.items()
            }
        except (MemoryError, TimedOut):
            return replace(reference, is_final=True)
        return replace(reference, plan=plan, answers=answers, is_final=True)

    def _run_or_none(self, session: OnnxSession, inputs: Tensors) -> Tensors | None:
        """Run a model, or return None if it refuses the inputs."""
        try:
            return run_model(session, inputs, self.signature)
        except TimedOut:
            raise
        except REFUSALS:
            return None

    # --- plans

    def measure_plans(self, candidate: Candidate) -> None:
        """Measure load plans (session options); drop those whose outputs differ.

        The first plan is always tried. Without a sample request, the others cannot be compared.

        Raises:
            InvalidModel: `NOT_LOADABLE`, no plan is left for the model as it was uploaded.
        """
        plans = plans_for(candidate.path, candidate.optimised, self._brief.threads)
        self._measure(candidate, plans[0])
        for plan in self._with_one_thread(candidate, plans):
            tried = {costs.plan for costs in candidate.costs} | {
                drop[0] for drop in candidate.dropped
            }
            if plan in tried:
                continue
            if candidate.costs and self.sample is None:
                break
            if candidate.costs and self.is_over(PLANS_S):
                candidate.dropped.append((plan, explanations.NO_TIME.format(seconds=PLANS_S)))
            else:
                self._measure(candidate, plan)
        if not candidate.costs and candidate.optimised == "none":
            _, problem = candidate.dropped[0]
            raise InvalidModel(f"the model ran once and not again: {problem}", code="NOT_LOADABLE")

    def _with_one_thread(self, candidate: Candidate, plans: list[Plan]) -> list[Plan]:
        """Reduce load plans to one thread if a model run is short.

        A short run may lose more by starting threads than it gains.
        """
        run_ms = candidate.costs[0].batch_1_ms if candidate.costs else None
        if run_ms is not None and run_ms < SINGLE_THREAD_MS:
            return [replace(plan, threads=1) for plan in plans]
        return plans

    def _measure(self, candidate: Candidate, plan: Plan) -> None:
        """Measure a load plan; record its costs or the reason for rejection."""
        try:
            costs, session = measure(
                lambda: self._runtime.load(candidate.path, plan),
                plan,
                self.sample,
                self.signature,
                candidate.size_bytes,
                lambda outputs: self._check_first(candidate, plan, outputs),
            )
            costs = replace(costs, answers=self._answers(candidate.reference, session, costs))
        except (*REFUSALS, InvalidModel, MemoryError) as error:
            candidate.dropped.append((plan, explanations.reason(error)))
            return
        del session  # before another is loaded
        candidate.costs.append(costs)
        self._drop_differing(candidate)

    def _check_first(self, candidate: Candidate, plan: Plan, outputs: Tensors) -> None:
        """Raise `InvalidModel` if a load plan's first outputs differ from the reference."""
        reference = candidate.reference
        if reference.is_final and not candidate.is_reference(plan):
            reference.difference({next(iter(reference.answers)): outputs})

    def _answers(
        self, reference: Reference, session: OnnxSession, costs: Costs
    ) -> dict[str, Tensors | None]:
        """Return a load plan's outputs for each compared request."""
        answers: dict[str, Tensors | None] = {}  # the first request ran when it was measured
        for label, (inputs, _) in reference.answers.items():
            answers[label] = try_run(session, inputs, self.signature) if answers else costs.outputs
        return answers

    def _drop_differing(self, candidate: Candidate) -> None:
        """Drop load plans whose outputs differ from the reference outputs.

        As soon as one differs, ONNX Runtime's default session is the reference for all.
        """
        for costs in [*candidate.costs]:
            if candidate.is_reference(costs.plan):
                continue
            try:
                difference = candidate.reference.difference(costs.answers)
            except InvalidModel as error:
                if not candidate.reference.is_final:
                    candidate.reference = self._default(candidate.reference)
                    self._drop_differing(candidate)
                    return
                candidate.costs.remove(costs)
                candidate.dropped.append((costs.plan, explanations.reason(error)))
            else:
                at = candidate.costs.index(costs)
                candidate.costs[at] = replace(costs, difference=difference)

    # --- samples

    def drop_failing_plans(self, candidate: Candidate) -> None:
        """Remove load plans in place until the best reproduces all samples.

        Raises:
            InvalidModel: `SAMPLE_MISMATCH` or `SAMPLE_FAILED`, under every plan.
        """
        failure: InvalidModel | None = None
        while candidate.costs:
            best = self.best(candidate)
            try:
                self._check_samples(candidate, best)
                return
            except InvalidModel as error:
                failure = failure or error
                candidate.costs.remove(best)
                candidate.dropped.append((best.plan, str(error)))
        if failure is not None:
            raise failure

    def _check_samples(self, candidate: Candidate, costs: Costs) -> None:
        """Run all samples under a load plan and check the outputs."""
        candidate.checked = 0
        session: OnnxSession | None = None
        for at, sample in enumerate(self.samples):
            if at and self.is_over(SAMPLES_S):
                break
            outputs = costs.outputs or {}  # the first sample ran when the plan was measured
            if at:
                session = session or self._runtime.load(candidate.path, costs.plan)
                outputs = self._run_sample(f"sample {at}", session, sample.inputs)
            check(f"sample {at}", sample.expected, outputs, self._brief.rtol, self._brief.atol)
            candidate.checked += 1

    def _run_sample(self, label: str, session: OnnxSession, inputs: Tensors) -> Tensors:
        try:
            return run_model(session, inputs, self.signature)
        except TimedOut as error:
            raise InvalidModel(
                f"{label}: no answer within {RUN_S:.0f} s of processor time, longer than any "
                "request may take; make the model faster or the sample smaller",
                code="SAMPLE_FAILED",
            ) from error
        except REFUSALS as error:
            raise InvalidModel(f"{label}: {error}", code="SAMPLE_FAILED") from error
