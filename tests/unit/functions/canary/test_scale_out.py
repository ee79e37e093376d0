"""Simulated canaries while environments start: late requests are no lost ones."""

import heapq
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from functions.core.canary.judge import Arm
from functions.core.canary.verdict import Action, Verdict, judge
from functions.core.traffic.canary import Canary, Settings

START = datetime(2026, 11, 30, tzinfo=UTC)
SETTINGS = Settings(steps=(10, 50), bake_seconds=120)
SCALE_OUT_S = SETTINGS.bake_seconds  # time at which the traffic grows: the judge may act by then
END_S = SCALE_OUT_S + 360
RATES = 1, 100  # requests a second before and after
RUN_S = 0.05
CANARIES = 20


@dataclass(eq=False)
class Environment:
    """Lambda environment, which runs one request at a time."""

    loaded: set[int] = field(default_factory=set)  # arms: 0 stable, 1 candidate
    counts: list[int] = field(default_factory=lambda: [0, 0])
    written: float = -60.0


class Simulation:
    """Canary whose environments load both versions; the candidate may lose requests."""

    def __init__(
        self, seed: int, loads_s: tuple[float, float], write_s: float, lost: float
    ) -> None:
        self.rng = random.Random(seed)  # noqa: S311 (a simulation)
        self.loads_s, self.write_s, self.lost = loads_s, write_s, lost
        self.idle: list[Environment] = []
        self.running: list[tuple[float, int, int, int, Environment]] = []
        self.counts = [0, 0]
        self.canary = Canary("c-1", 8, SETTINGS, "key:a", iso(0), iso(0), 0)

    def run(self) -> Verdict:
        """Return the verdict that ends the canary, or the last one."""
        at, look_s, number = 0.0, self.rng.uniform(0, 1), 0
        lost_since = ""
        while at < END_S:
            at, number = at + self.rng.expovariate(RATES[at >= SCALE_OUT_S]), number + 1
            while look_s < at:
                self.finish(look_s)
                verdict = judge(self.canary, *self.arms(), iso(look_s), lost_since)
                if verdict.action is Action.STEP:
                    self.step(look_s)
                elif verdict.action is not Action.WAIT:
                    return verdict
                lost_since = verdict.lost_since
                look_s += SETTINGS.look_seconds(look_s)
            self.finish(at)
            self.begin(at, number)
        return verdict

    def step(self, now: float) -> None:
        """Begin the next step, with counts of its own."""
        self.canary = self.canary.next_step(iso(now))
        self.counts = [0, 0]
        for environment in (*self.idle, *(environment for *_, environment in self.running)):
            environment.counts = [0, 0]

    def begin(self, at: float, number: int) -> None:
        """Start a request in an environment, a new one if all are busy."""
        arm = int(self.rng.random() < self.canary.percent / 100)
        environment = self.idle.pop() if self.idle else Environment()
        end = at + RUN_S + (0 if arm in environment.loaded else self.loads_s[arm])
        environment.loaded.add(arm)
        heapq.heappush(self.running, (end, number, arm, self.canary.step, environment))

    def finish(self, now: float) -> None:
        """End the requests that are over; a lost one ends its environment."""
        while self.running and self.running[0][0] <= now:
            end, _, arm, step, environment = heapq.heappop(self.running)
            if arm and self.rng.random() < self.lost:
                continue
            environment.counts[arm] += step == self.canary.step
            if end - environment.written >= self.write_s:
                self.counts = [a + b for a, b in zip(self.counts, environment.counts, strict=True)]
                environment.counts, environment.written = [0, 0], end
            self.idle.append(environment)

    def arms(self) -> tuple[Arm, Arm]:
        stable, candidate = (Arm(count, drawn=count) for count in self.counts)
        return stable, candidate


def iso(at: float) -> str:
    return (START + timedelta(seconds=at)).isoformat()


def run(loads_s: tuple[float, float], write_s: float, lost: float = 0.0) -> list[Verdict]:
    return [Simulation(seed, loads_s, write_s, lost).run() for seed in range(CANARIES)]


LOADS_S = pytest.mark.parametrize("loads_s", [(1, 1), (1, 20)], ids=["equal", "loads slowly"])
# s between an environment's writes of its counts
WRITE_S = pytest.mark.parametrize("write_s", [0, 10], ids=["at once", "rarely"])


@LOADS_S
@WRITE_S
def test_a_version_without_losses_survives_a_scale_out(
    loads_s: tuple[float, float], write_s: float
) -> None:
    verdicts = run(loads_s, write_s)

    harms = [verdict for verdict in verdicts if verdict.action is Action.ROLL_BACK]
    assert len(harms) <= CANARIES // 20


@LOADS_S
@WRITE_S
def test_a_version_that_loses_a_quarter_is_rolled_back(
    loads_s: tuple[float, float], write_s: float
) -> None:
    verdicts = run(loads_s, write_s, lost=0.25)

    assert [verdict.numbers.get("test") for verdict in verdicts] == ["lost"] * CANARIES
