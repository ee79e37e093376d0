"""Release of READY versions by the policies of their models."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from functions.core.canary.canaries import Launch
from functions.core.records import replace
from functions.core.registry.releases import ID_BYTES
from functions.core.registry.transactions import DEFAULT_ALIAS
from functions.core.registry.version import Alias, Release, Version
from functions.core.traffic.canary import launch_input, new_canary, traffic_of
from functions.core.traffic.policy import canary_settings, rule

ACTOR = "policy"  # whoever starts a policy's canaries


@dataclass(frozen=True, slots=True)
class PolicyRelease:
    """Rule that releases a READY version at once, by canary, or not."""

    launch: Launch
    now: Callable[[], str]

    def __call__(
        self, policy: Mapping[str, Any], version: Version, standing: Version, prod: Alias
    ) -> Release:
        """Decide on a new version beside the one that `prod` points at.

        A canary's execution is launched; without the canary it ends by itself.

        Raises:
            Unavailable: the state machine does not answer.
        """
        ruling = rule(policy, version.card, standing.card)
        if not ruling.releases:
            return Release(ruling.reason)
        if prod.traffic is not None:
            kind = "a canary" if prod.traffic.canary else "a traffic split"
            return Release(f"{ruling.reason}; but {DEFAULT_ALIAS} has {kind} already")
        settings = canary_settings(policy)
        if settings is None:
            return Release(ruling.reason, moves=True)
        canary = new_canary(version.number, settings, ACTOR, self.now())
        self.launch(canary.id, launch_input(version.model, DEFAULT_ALIAS, canary))
        traffic = replace(traffic_of(prod.version, canary), id=secrets.token_hex(ID_BYTES))
        return Release(ruling.reason, traffic=traffic)
