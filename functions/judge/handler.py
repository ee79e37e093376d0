"""Lambda handler that judges a canary, for the state machine.

An event is `{"model", "alias", "canary", "launched_at", "wait_seconds"}`; the answer has the same
fields, from which the state machine waits for the next look, `lost_since`, which the next look
needs if requests are being lost, and `continues`, which says if there is one.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from aws_lambda_powertools.logging import Logger

from functions.core.canary.canaries import canary_of
from functions.core.canary.judge import Arm
from functions.core.canary.verdict import Action, Verdict, judge
from functions.core.errors import InvalidRequest
from functions.core.registry.version import Alias
from functions.core.traffic.canary import Canary, seconds_between

LAUNCH_S = 60  # s after the launch in which a canary may not be stored yet
FIELDS = ("model", "alias", "canary", "launched_at", "wait_seconds")


class Canaries(Protocol):
    """Canaries in the registry; `core/canary/canaries.py` documents the methods."""

    def alias(self, model: str, name: str) -> Alias | None: ...
    def apply(self, model: str, name: str, canary: Canary, verdict: Verdict) -> bool: ...


# Returns the counters of two versions of a model under a traffic object: stable, candidate.
ReadArms = Callable[[str, str, int, int], tuple[Arm, Arm]]


@dataclass(frozen=True, slots=True)
class Look:
    """Result of one look: if another one follows, and when."""

    continues: bool
    wait_seconds: int
    verdict: str
    lost_since: str = ""  # first of the looks that have all seen lost requests


@dataclass(frozen=True, slots=True)
class JudgeHandler:
    """Lambda handler that judges a canary and acts on the verdict."""

    canaries: Canaries
    read_arms: ReadArms
    now: Callable[[], str]
    logger: Logger

    def __call__(self, event: Mapping[str, Any], context: Any) -> dict[str, Any]:
        """Judge an event's canary; return whether another look follows.

        Raises:
            InvalidRequest: the event lacks a field.
            Unavailable: the registry failed; the state machine tries again.
        """
        self.logger.append_keys(request_id=context.aws_request_id)
        if missing := [name for name in FIELDS if name not in event]:
            raise InvalidRequest(f"{', '.join(missing)}: missing; send {', '.join(FIELDS)}")
        now = self.now()
        look = self._look(event, now)
        self.logger.info("judged", canary=event["canary"], **asdict(look))
        return {**{name: event[name] for name in FIELDS}, **asdict(look)}

    def _look(self, event: Mapping[str, Any], now: str) -> Look:
        """Judge a canary and act on the verdict."""
        model, name = event["model"], event["alias"]
        alias = self.canaries.alias(model, name)
        traffic = alias.traffic if alias else None
        canary = canary_of(alias) if alias else None
        if alias is None or traffic is None or canary is None or canary.id != event["canary"]:
            is_early = seconds_between(event["launched_at"], now) < LAUNCH_S
            return Look(is_early, event["wait_seconds"], "it is not stored yet, or over")
        arms = self.read_arms(model, traffic.id, alias.version, canary.version)
        verdict = judge(canary, *arms, now, event.get("lost_since", ""))
        goes_on = verdict.action in (Action.WAIT, Action.STEP)
        if verdict.action is not Action.WAIT and not self.canaries.apply(
            model, name, canary, verdict
        ):
            goes_on = True  # a lost race: the next look sees what the winner has done
        wait_s = canary.settings.look_seconds(canary.age_s(now))
        return Look(goes_on, wait_s, verdict.text, verdict.lost_since)
