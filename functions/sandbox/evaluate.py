"""Evaluate uploaded and compiled models: measure load plans, check sample outputs."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from functions.adapters.lambda_size import MB
from functions.adapters.onnx.sessions import OnnxRuntime, OnnxSession
from functions.core.errors import InvalidModel
from functions.core.protocol.signature import Signature
from functions.core.registration.sandbox_protocol import Brief
from functions.core.registry.load_plan import Plan
from functions.sandbox.comparison import REFUSALS, Tensors, check, run_all, run_model, same_bits
from functions.sandbox.measure import BATCH, Costs, measure
from functions.sandbox.plans import choose, plans_for
from functions.sandbox.samples import Sample, read_samples, rows, size_bytes
from functions.sandbox.synthetic import synthesise

SINGLE_THREAD_MS = 1.0  # if one row takes less, plans with one thread are measured, too
PLANS_S = 12.0  # no further plan is measured after this time
SAMPLES_S = 30.0  # no further sample is checked after this time
COMPARED_SAMPLES = 4  # most samples whose answers are compared bit by bit
SMALL_ROWS_BYTES = 64 * 1024  # samples up to this size are also compared with repeated rows
LARGE_BYTES = 64 * MB  # larger uploads are compared on fewer rows


@dataclass(slots=True)
class Candidate:
    """Candidate to serve: files of the uploaded, compiled or approximated model."""

    folder: Path
    files: tuple[str, ...]  # file names, the model first
    optimised: str  # graph optimisation of the files, as in `Plan.optimised`
    compile_ms: float = 0.0
    costs: list[Costs] = field(default_factory=list)  # measured plans, without those that failed
    checked: int = 0  # samples with the expected answer

    @property
    def path(self) -> Path:
        return self.folder / self.files[0]

    @property
    def size_bytes(self) -> int:
        return sum((self.folder / name).stat().st_size for name in self.files)


class Evaluator:
    """Evaluator of candidate models: measures load plans and checks samples."""

    def __init__(self, runtime: OnnxRuntime, brief: Brief, upload_bytes: int) -> None:
        self.signature = Signature((), ())
        self.samples: list[Sample] = []
        self.sample: Sample | None = None  # the first sample, or a synthetic one
        self._runtime = runtime
        self._brief = brief
        self._is_large = upload_bytes > LARGE_BYTES
        self._began = time.monotonic()

    def is_over(self, seconds: float) -> bool:
        """Return True if the model's build has taken longer than `seconds`."""
        return time.monotonic() - self._began > seconds

    def read(self, session: OnnxSession, model: Path) -> Tensors | None:
        """Read a model's signature and samples; generate a sample if none.

        Returns the outputs of a generated sample, else None.

        Raises:
            InvalidModel: `BAD_SAMPLE`, `UNSUPPORTED_TYPE` or `UNKNOWN_RANK`.
        """
        self.signature = session.signature(model)
        self.samples = read_samples(self._brief.samples, self.signature)
        if self.samples:
            self.sample = self.samples[0]
            return None
        self.sample, outputs = synthesise(session, self.signature)
        return outputs

    # --- two forms of the model

    def compared_requests(self) -> list[Tensors]:
        """Return the requests on which compiled and uploaded model must agree.

        Those are the samples and, where rows are a batch, the rows of the first one repeated to
        three and to eight. A large model, whose runs take long, gets two rows: an answer that
        depends on the number of rows differs for two as well.
        """
        if self.sample is None:
            return []
        samples = self.samples[:COMPARED_SAMPLES] or [self.sample]
        requests = [sample.inputs for sample in samples]
        if self.signature.batches and size_bytes(self.sample.inputs) < SMALL_ROWS_BYTES:
            counts = (2,) if self._is_large else (3, BATCH)
            batches = [rows(self.sample.inputs, count) for count in counts]
            requests += [batch for batch in batches if batch is not None]
        return requests

    def gives_same_bits(
        self, candidate: Candidate, requests: list[Tensors], expected: list[Tensors | None]
    ) -> bool:
        """Measure the first load plan; return True if outputs are bit-identical."""
        session = self._measure(candidate, self._plans(candidate)[0])
        if session is None:
            return False
        outputs = run_all(session, requests, self.signature, candidate.costs[0].outputs)
        return all(same_bits(*pair) for pair in zip(expected, outputs, strict=True))

    # --- plans

    def measure_plans(self, candidate: Candidate) -> None:
        """Measure the remaining load plans; drop those whose outputs differ.

        Raises:
            InvalidModel: `NOT_LOADABLE` or `SAMPLE_FAILED`.
        """
        measured = {costs.plan for costs in candidate.costs}
        for plan in self._further_plans(candidate):
            enough = candidate.costs and (self.sample is None or self.is_over(PLANS_S))
            if plan in measured or enough or self._measure(candidate, plan) is None:
                continue
            if not self._agree(candidate.costs[0], candidate.costs[-1]):
                candidate.costs.pop()
        if not candidate.costs:
            self._measure_load(candidate)

    def _plans(self, candidate: Candidate) -> list[Plan]:
        return plans_for(candidate.path, candidate.optimised, self._brief.threads)

    def _further_plans(self, candidate: Candidate) -> list[Plan]:
        """Return all load plans, with one thread if runs are short.

        A short run may lose more by starting threads than it gains.
        """
        plans = self._plans(candidate)
        run_ms = candidate.costs[0].batch_1_ms if candidate.costs else None
        if run_ms is not None and run_ms < SINGLE_THREAD_MS:
            return [replace(plan, threads=1) for plan in plans]
        return plans

    def _measure(self, candidate: Candidate, plan: Plan) -> OnnxSession | None:
        """Measure and record a load plan; return its session, None if failed."""
        try:
            costs, session = measure(
                lambda: self._runtime.load(candidate.path, plan),
                plan,
                self.sample,
                self.signature,
                candidate.size_bytes,
            )
        except (*REFUSALS, InvalidModel, MemoryError):
            return None
        candidate.costs.append(costs)
        return session

    def _agree(self, first: Costs, second: Costs) -> bool:
        """Return True if outputs under two load plans agree within tolerance.

        Last bits may differ, because kernels add up in different orders.
        """
        if first.outputs is None or second.outputs is None:
            return True
        try:
            check("", first.outputs, second.outputs, self._brief.rtol, self._brief.atol)
        except InvalidModel:
            return False
        return True

    def _measure_load(self, candidate: Candidate) -> None:
        """Measure only loading, for a model that failed under every plan.

        Raises:
            InvalidModel: `NOT_LOADABLE`, or `SAMPLE_FAILED` if it is the sample that it refuses.
        """
        plan = self._plans(candidate)[-1]
        session = self._runtime.load(candidate.path, plan)
        for sample in self.samples[:1]:
            self._run_sample("sample 0", session, sample)
        size = candidate.size_bytes
        costs, _ = measure(lambda: session, plan, None, self.signature, size)
        candidate.costs.append(costs)

    # --- samples

    def drop_failing_plans(self, candidate: Candidate) -> None:
        """Remove load plans in place until the best reproduces all samples.

        Raises:
            InvalidModel: `SAMPLE_MISMATCH` or `SAMPLE_FAILED`, under every plan.
        """
        failure: InvalidModel | None = None
        while candidate.costs:
            best = choose(candidate.costs)
            try:
                self._check_samples(candidate, best)
                return
            except InvalidModel as error:
                failure = failure or error
                candidate.costs.remove(best)
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
                outputs = self._run_sample(f"sample {at}", session, sample)
            check(f"sample {at}", sample.expected, outputs, self._brief.rtol, self._brief.atol)
            candidate.checked += 1

    def _run_sample(self, label: str, session: OnnxSession, sample: Sample) -> Tensors:
        try:
            return run_model(session, sample.inputs, self.signature)
        except REFUSALS as error:
            raise InvalidModel(f"{label}: {error}", code="SAMPLE_FAILED") from error
