"""Canaries of aliases in the registry: start, step, promote, roll back, stop.

Each change is one conditional transaction with its audit record, which holds the reason and the
numbers. A canary is over as soon as the alias's traffic object names another one, or none: a
person's move, rollback or end of the traffic ends it, and a late or repeated judgement changes
nothing. Other traffic, also another shadow, is refused while it runs.
"""

from collections.abc import Callable, Mapping
from typing import Any

from functions.core.canary.verdict import Action, Verdict
from functions.core.errors import StateConflict
from functions.core.registry.releases import Releases, check_releasable, unknown_alias
from functions.core.registry.table import Item
from functions.core.registry.transactions import unknown_version
from functions.core.registry.version import Alias
from functions.core.traffic.canary import Canary, Settings, launch_input, new_canary, traffic_of

JUDGE = "judge"  # actor of the changes that nobody asked for

# Starts the state machine's execution of this name with this input; repeated, changes nothing.
Launch = Callable[[str, Mapping[str, Any]], None]


class Canaries:
    """Canaries of models' aliases.

    Every method raises `Unavailable` if the registry fails or other writers interfere too often.
    """

    def __init__(self, releases: Releases, now: Callable[[], str]) -> None:
        self._releases = releases
        self._now = now

    def alias(self, model: str, name: str) -> Alias | None:
        """Return a model's alias by name, or None if missing."""
        return self._releases.alias(model, name)

    def running(self, model: str, name: str) -> tuple[Alias, Canary]:
        """Return an alias with the canary that runs on it.

        Raises:
            ModelNotFound: no such model or alias.
            StateConflict: no canary runs.
        """
        alias = self._existing(model, name)
        canary = canary_of(alias)
        if canary is None:
            raise StateConflict(f"alias {name} of '{model}' has no canary", revision=alias.revision)
        return alias, canary

    def start(
        self,
        model: str,
        name: str,
        number: int,
        settings: Settings,
        launch: Launch,
        *,
        actor: str,
        expected: int | None = None,
    ) -> Alias:
        """Give a version the first share of an alias's requests.

        The judging execution is launched before the canary is stored: if this process dies in
        between, it finds no canary and ends. The other way round, nobody might judge the canary.

        Raises:
            InvalidRequest: a setting is wrong, or `name` is `latest`.
            ModelNotFound: no such model, alias or version.
            StateConflict: the version is not READY or is the stable one, the alias has a canary or
                a split already, or has changed meanwhile.
        """
        settings.check()
        alias = self._free_alias(model, name, number, expected)
        version = self._releases.version(model, number)
        if version is None:
            raise unknown_version(model, number)
        check_releasable(version)
        canary = new_canary(number, settings, actor, self._now())
        launch(canary.id, launch_input(model, name, canary))
        return self._releases.set_traffic(
            model,
            name,
            traffic_of(alias.version, canary),
            actor=actor,
            expected=alias.revision,
            action="start_canary",
            facts={"canary": canary.id, "candidate": number},
        )

    def apply(self, model: str, name: str, canary: Canary, verdict: Verdict) -> bool:
        """Carry out a verdict; return False if the canary has changed meanwhile.

        A candidate that cannot be released any more, e.g. because it is damaged, is rolled back.
        """
        alias = self.alias(model, name)
        if alias is None or canary_of(alias) != canary:
            return False
        facts = _facts(canary, verdict.text, verdict.numbers)
        try:
            self._change(model, alias, canary, verdict.action, facts, JUDGE, alias.revision)
        except StateConflict as error:
            if self.alias(model, name) != alias:
                return False
            facts = _facts(canary, str(error), verdict.numbers)
            self._change(model, alias, canary, Action.ROLL_BACK, facts, JUDGE, alias.revision)
        return True

    def promote(self, model: str, name: str, *, actor: str, expected: int | None = None) -> Alias:
        """Point an alias at its canary's candidate now.

        Raises:
            ModelNotFound: no such model or alias.
            StateConflict: no canary runs, its version is not READY any more, or the alias has
                changed meanwhile.
        """
        return self._end(model, name, Action.PROMOTE, "promoted by hand", actor, expected)

    def stop(self, model: str, name: str, *, actor: str, expected: int | None = None) -> Alias:
        """End an alias's canary; all requests go to the stable version.

        Raises:
            ModelNotFound: no such model or alias.
            StateConflict: no canary runs, or the alias has changed meanwhile.
        """
        return self._end(model, name, Action.STOP, "stopped by hand", actor, expected)

    def _existing(self, model: str, name: str) -> Alias:
        alias = self.alias(model, name)
        if alias is None:
            raise unknown_alias(model, name)
        return alias

    def _free_alias(self, model: str, name: str, number: int, expected: int | None) -> Alias:
        """Return an alias that can get a canary to a version."""
        alias, title = self._existing(model, name), f"alias {name} of '{model}'"
        if expected not in (None, alias.revision):
            text = f"{title} is at revision {alias.revision}, not {expected}: look again"
            raise StateConflict(text, revision=alias.revision)
        if alias.version == number:
            text = f"{title} points at version {number} already: choose another version"
            raise StateConflict(text, revision=alias.revision)
        if alias.traffic is not None:
            kind = "a canary" if alias.traffic.canary else "a traffic split"
            text = f"{title} has {kind}: end it first, or wait"
            raise StateConflict(text, revision=alias.revision)
        return alias

    def _end(
        self, model: str, name: str, action: Action, text: str, actor: str, expected: int | None
    ) -> Alias:
        alias, canary = self.running(model, name)
        text = f"{text} in step {canary.step + 1} of {len(canary.settings.steps)}"
        seen = alias.revision if expected is None else expected
        return self._change(model, alias, canary, action, _facts(canary, text, {}), actor, seen)

    def _change(
        self,
        model: str,
        alias: Alias,
        canary: Canary,
        action: Action,
        facts: Item,
        actor: str,
        expected: int,
    ) -> Alias:
        """Commit a change of a canary, if the alias is as expected."""
        name = alias.name
        if action is Action.PROMOTE:
            return self._releases.move_alias(
                model,
                name,
                canary.version,
                actor=actor,
                expected=expected,
                action=action.value,
                facts=facts,
            )
        steps = action is Action.STEP
        traffic = traffic_of(alias.version, canary.next_step(self._now())) if steps else None
        return self._releases.set_traffic(
            model, name, traffic, actor=actor, expected=expected, action=action.value, facts=facts
        )


def canary_of(alias: Alias) -> Canary | None:
    """Return the canary that runs on an alias, or None."""
    record = alias.traffic.canary if alias.traffic else None
    return Canary.from_record(record) if record else None


def _facts(canary: Canary, reason: str, numbers: Mapping[str, Any]) -> Item:
    """Return what the audit record says about a change of a canary."""
    facts = {"canary": canary.id, "candidate": canary.version, "reason": reason}
    return {**facts, "numbers": dict(numbers)} if numbers else facts
