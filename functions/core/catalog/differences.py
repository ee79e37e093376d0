"""Differences of two versions: signature, metrics, sizes, plan, notes."""

from collections.abc import Mapping
from typing import Any

from functions.core.protocol.signature import DYNAMIC, Signature, TensorSpec
from functions.core.registry.version import Version

FACTS = ("size_bytes", "memory_mb")
CARD_PARTS = ("hyperparameters", "data", "training")


def compare(old: Version, new: Version) -> dict[str, Any]:
    """Return what differs between two versions; equal parts are left out.

    Each difference has `from` and `to`. `signature` also has a sentence for each change, and says
    whether a caller of the old version would be refused or misled by the new one.
    """
    parts = {
        "state": _pair(old.state.value, new.state.value),
        "signature": _signatures(old.signature, new.signature),
        "metrics": _metrics(old.card, new.card),
        "sizes": _by_name(_sizes(old), _sizes(new)),
        "measured": _by_name(old.measured, new.measured),
        "plan": _by_name(old.plan, new.plan),
        "language": _by_name(_language(old), _language(new)),
        "graph": _by_name(old.graph, new.graph),
        "notes": _pair(list(old.notes), list(new.notes)),
        "task": _pair(old.card.get("task"), new.card.get("task")),
        "description": _pair(old.card.get("description"), new.card.get("description")),
        **{name: _by_name(_part(old, name), _part(new, name)) for name in CARD_PARTS},
    }
    return {name: part for name, part in parts.items() if part}


def _pair(old: Any, new: Any) -> dict[str, Any] | None:
    return None if old == new else {"from": old, "to": new}


def _by_name(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pair for each name whose values differ."""
    names = dict.fromkeys([*old, *new])
    pairs = {name: _pair(old.get(name), new.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair}


def _language(version: Version) -> Mapping[str, Any]:
    """Return the facts of a language model, without its golden reply."""
    facts = version.language or {}
    return {name: fact for name, fact in facts.items() if name != "golden"}


def _part(version: Version, name: str) -> Mapping[str, Any]:
    part = version.card.get(name)
    return part if isinstance(part, dict) else {}


def _sizes(version: Version) -> dict[str, int]:
    return {name: getattr(version, name) for name in FACTS if version.files}


def _metrics(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return each metric that differs, with its confidence intervals."""
    sides = (old, new)
    values = [card.get("metrics") or {} for card in sides]
    intervals = [(card.get("evaluation") or {}).get("intervals") or {} for card in sides]
    rows = {}
    for name in dict.fromkeys([*values[0], *values[1]]):
        pair = _pair(values[0].get(name), values[1].get(name))
        if pair:
            first, second = (side.get(name) for side in intervals)
            rows[name] = {**pair, "from_interval": first, "to_interval": second}
            rows[name]["change"] = _change(pair)
    return rows


def _change(pair: Mapping[str, Any]) -> float | None:
    numbers = [v for v in pair.values() if isinstance(v, int | float) and not isinstance(v, bool)]
    return numbers[1] - numbers[0] if len(numbers) == 2 else None


def _signatures(old: Signature | None, new: Signature | None) -> dict[str, Any] | None:
    if old is None or new is None or old == new:
        return _pair(
            old.to_record() if old else None,
            new.to_record() if new else None,
        )
    breaks, changes = [], []
    for kind, before, after in (
        ("input", old.inputs, new.inputs),
        ("output", old.outputs, new.outputs),
    ):
        for text, is_break in _tensor_changes(kind, before, after):
            changes.append(text)
            if is_break:
                breaks.append(text)
    pair = {"from": old.to_record(), "to": new.to_record()}
    return {**pair, "changes": changes, "breaks": breaks, "breaks_callers": bool(breaks)}


def _tensor_changes(
    kind: str, old: tuple[TensorSpec, ...], new: tuple[TensorSpec, ...]
) -> list[tuple[str, bool]]:
    """Return (sentence, breaks old callers) for each change of tensors."""
    before, after = ({spec.name: spec for spec in specs} for specs in (old, new))
    changes = [(f"{kind} {name} is removed", True) for name in before if name not in after]
    # A request of an old caller lacks a new input; a new output is one more in its reply.
    changes += [(f"{kind} {name} is new", kind == "input") for name in after if name not in before]
    for name in before:
        if name in after:
            changes += _spec_changes(f"{kind} {name}", kind, before[name], after[name])
    if not changes and [*before] != [*after]:
        changes.append((f"the order of the {kind}s differs", False))
    return changes


def _spec_changes(
    title: str, kind: str, old: TensorSpec, new: TensorSpec
) -> list[tuple[str, bool]]:
    changes = []
    if old.datatype != new.datatype:
        changes.append((f"{title} is {new.datatype} instead of {old.datatype}", True))
    if old.shape != new.shape:
        # Old requests have to fit the new input, new replies what callers read from the old ones.
        target, offered = (new, old) if kind == "input" else (old, new)
        text = f"{title} has shape {list(new.shape)} instead of {list(old.shape)}"
        changes.append((text, not _accepts(target.shape, offered.shape)))
    if old.labels != new.labels:
        # An old caller may read classes by their position.
        kept = new.labels[: len(old.labels)] == old.labels
        changes.append((f"{title} has other labels", not kept))
    return changes


def _accepts(target: tuple[int, ...], offered: tuple[int, ...]) -> bool:
    """Return True if every tensor of the shape `offered` also fits `target`.

    >>> _accepts((-1, 3), (1, 3)), _accepts((1, 3), (-1, 3)), _accepts((-1, 3), (-1, 4))
    (True, False, False)
    """
    return len(target) == len(offered) and all(
        size in (DYNAMIC, dimension) for size, dimension in zip(target, offered, strict=True)
    )
