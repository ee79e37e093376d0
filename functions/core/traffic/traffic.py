"""Traffic object of an alias: weights of versions, a shadow, a canary.

It is replaced whole, with the alias's revision. Every replacement has an id of its own, under which
the requests of its versions are counted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from functions.core.errors import InvalidRequest, shown
from functions.core.records import record, replace
from functions.core.traffic.buckets import BUCKETS, bucket_of, place_of

PERCENT = BUCKETS // 100  # buckets of one per cent
VERSIONS_MAX = 3  # limit of a split: the alias's own, and a candidate at each end of the buckets
AUTO, BY_USER, BY_REQUEST = "auto", "user", "request"
NUMBER_MAX = 9_999_999_999  # version numbers have up to 10 digits
STICKY = (AUTO, BY_USER, BY_REQUEST)
FIELDS = ("weights", "shadow", "sticky")


@record
class Weight:
    """Version with its number of buckets, of 10,000."""

    version: int
    buckets: int


@record
class Traffic:
    """Split of an alias's requests between versions.

    `weights` begin with the version that the alias points at; the sum of their buckets is 10,000.
    A second candidate keeps its end of the buckets when the first has gone: then the first has a
    weight of version 0 without buckets. `sticky` says what keeps a caller on one side: the header
    x-mayfly-user or else the access key (`auto`), only the header (`user`), or nothing
    (`request`). Without these, chance draws a side for each request.
    """

    weights: tuple[Weight, ...]
    shadow: Weight | None = None  # runs copies of this share of the stable version's requests
    sticky: str = AUTO
    canary: Mapping[str, Any] | None = None  # record of the canary that set this
    id: str = ""

    @property
    def candidates(self) -> dict[int, int]:
        """Versions besides the alias's own, with their numbers of buckets."""
        return {weight.version: weight.buckets for weight in self.weights[1:] if weight.version}

    @property
    def versions(self) -> tuple[int, ...]:
        """Versions that the object names, its shadow included."""
        shadow = (self.shadow.version,) if self.shadow else ()
        named = [weight.version for weight in self.weights if weight.version]
        return tuple(dict.fromkeys((*named, *shadow)))

    def version_for(self, bucket: int) -> int:
        """Return the version that serves a bucket's callers.

        >>> traffic = Traffic((Weight(7, 9_000), Weight(8, 1_000)))
        >>> traffic.version_for(999), traffic.version_for(1_000)
        (8, 7)
        """
        weights = self.weights
        first = weights[1].buckets if len(weights) > 1 else 0
        second = weights[2].buckets if len(weights) > 2 else 0
        return weights[place_of(bucket, first, second)].version

    def caller_of(self, user: str | None, key_id: str) -> str:
        """Return the caller who stays on a side, "" without one.

        >>> split(7, 8, 10, sticky="user").caller_of(None, "key-id")
        ''
        """
        if self.sticky == BY_REQUEST:
            return ""
        return user or (key_id if self.sticky == AUTO else "")

    def copies(self, request_id: str) -> bool:
        """Return True if the shadow gets a copy of this request."""
        shadow = self.shadow
        return shadow is not None and bucket_of(self.id, "shadow", request_id) < shadow.buckets

    def to_record(self) -> dict[str, Any]:
        """Return the traffic object as stored, with weights in per cent."""
        document = self.to_document()
        if self.weights[1:] and not self.weights[1].version:
            document["weights"].insert(1, {"version": 0, "weight": 0})
        return document

    def to_document(self) -> dict[str, Any]:
        """Return the traffic object for callers."""
        shadow = self.shadow
        return {
            "id": self.id,
            "weights": [
                {"version": weight.version, "weight": _percent(weight.buckets)}
                for weight in self.weights
                if weight.version
            ],
            "shadow": (
                {"version": shadow.version, "percent": _percent(shadow.buckets)} if shadow else None
            ),
            "sticky": self.sticky,
            "canary": dict(self.canary) if self.canary is not None else None,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Traffic":
        """Build a traffic object from the record of `to_record`."""
        shadow = record["shadow"]
        return cls(
            tuple(
                Weight(weight["version"], _buckets(weight["weight"]))
                for weight in record["weights"]
            ),
            Weight(shadow["version"], _buckets(shadow["percent"])) if shadow else None,
            record["sticky"],
            record["canary"],
            record["id"],
        )

    def arranged(self, stable: int, standing: "Traffic | None") -> "Traffic":
        """Put the weights in order for an alias that points at `stable`.

        Candidates of the `standing` object keep their ends of the buckets.

        >>> asked = Traffic((Weight(8, 500), Weight(9, 500), Weight(7, 9_000)))
        >>> [weight.version for weight in asked.arranged(7, None).weights]
        [7, 8, 9]
        >>> standing = Traffic((Weight(7, 9_500), Weight(9, 500)))
        >>> [weight.version for weight in asked.arranged(7, standing).weights]
        [7, 9, 8]

        Raises:
            InvalidRequest: the weights lack `stable`, or the shadow is the stable version.
        """
        weights = {weight.version: weight for weight in self.weights if weight.version}
        own = weights.pop(stable, None)
        if own is None:
            raise InvalidRequest(
                f"weights: version {stable}, which the alias points at, is missing; "
                "give it a weight, which may be 0"
            )
        if self.shadow and self.shadow.version == stable:
            raise InvalidRequest(
                f"shadow.version: {stable} is the version that the alias points at; "
                "name another one, or no shadow"
            )
        ends: list[Weight | None] = [None, None]
        places = standing.weights[1:] if standing else ()
        for end, place in enumerate(places):
            ends[end] = weights.pop(place.version, None)
        for weight in weights.values():
            ends[ends.index(None)] = weight
        first, second = ends
        candidates = (first or Weight(0, 0), second) if second else (first,) if first else ()
        return replace(self, weights=(own, *candidates))

    @property
    def is_plain(self) -> bool:
        """True if an alias without traffic object would do the same."""
        return not self.candidates and self.shadow is None


def split(stable: int, candidate: int, percent: float, **fields: Any) -> Traffic:
    """Return a traffic object with a candidate's share of the requests.

    >>> split(7, 8, 12.5).to_document()["weights"]
    [{'version': 7, 'weight': 87.5}, {'version': 8, 'weight': 12.5}]
    """
    buckets = _buckets(percent)
    return Traffic((Weight(stable, BUCKETS - buckets), Weight(candidate, buckets)), **fields)


def read_traffic(document: Mapping[str, Any]) -> Traffic:
    """Read the traffic object that a caller sends.

    Raises:
        InvalidRequest: naming the field at fault.
    """
    if unknown := sorted(set(document) - set(FIELDS)):
        raise InvalidRequest(f"{shown(unknown[0])}: no such field; send {', '.join(FIELDS)}")
    sticky = document.get("sticky", AUTO)
    if sticky not in STICKY:
        raise InvalidRequest(f"sticky: {shown(sticky)} is not offered; send auto, user or request")
    return Traffic(_read_weights(document.get("weights")), _read_shadow(document), sticky)


def _read_weights(entries: object) -> tuple[Weight, ...]:
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise InvalidRequest('weights: send a list such as [{"version": 7, "weight": 100}]')
    if len(entries) > VERSIONS_MAX:
        raise InvalidRequest(
            f"weights: {len(entries)} versions; an alias splits between at most {VERSIONS_MAX}"
        )
    weights = tuple(
        _read_weight(f"weights.{at}", entry, "weight") for at, entry in enumerate(entries)
    )
    numbers = [weight.version for weight in weights]
    if twice := [number for number in numbers if numbers.count(number) > 1]:
        raise InvalidRequest(f"weights: version {twice[0]} comes twice; give it one weight")
    total = sum(weight.buckets for weight in weights)
    if total != BUCKETS:
        raise InvalidRequest(f"weights: their sum is {_percent(total)}; it has to be 100")
    return weights


def _read_shadow(document: Mapping[str, Any]) -> Weight | None:
    entry = document.get("shadow")
    if entry is None:
        return None
    shadow = _read_weight("shadow", entry, "percent")
    if not shadow.buckets:
        raise InvalidRequest("shadow.percent: 0; send 0.01 to 100, or no shadow")
    return shadow


def _read_weight(path: str, entry: object, share: str) -> Weight:
    """Read one version with its share, named "weight" or "percent"."""
    if not isinstance(entry, Mapping) or set(entry) != {"version", share}:
        raise InvalidRequest(f'{path}: send an object such as {{"version": 7, "{share}": 10}}')
    version, percent = entry["version"], entry[share]
    if type(version) is not int or not 1 <= version <= NUMBER_MAX:
        raise InvalidRequest(
            f"{path}.version: {shown(version)} is no version number; send 1 or more"
        )
    is_number = type(percent) in (int, float)
    if not is_number or not 0 <= percent <= 100:
        raise InvalidRequest(f"{path}.{share}: {shown(percent)} is no number from 0 to 100")
    if abs(percent * PERCENT - _buckets(percent)) > 1e-6:
        raise InvalidRequest(f"{path}.{share}: {shown(percent)} has steps below 0.01; round it")
    return Weight(version, _buckets(percent))


def _buckets(percent: float) -> int:
    return round(percent * PERCENT)


def _percent(buckets: int) -> int | float:
    """Return per cent for a number of buckets, whole ones as integers."""
    return buckets // PERCENT if buckets % PERCENT == 0 else buckets / PERCENT
