"""Reads and writes of the model registry as DynamoDB operations.

Any client can carry them out.

Clients are `aws/dynamodb.py` (boto3) and `aws_http/dynamodb.py`.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from functions.adapters.aws_errors import TRANSIENT
from functions.core.errors import Unavailable
from functions.core.registry.table import Add, Conflict, Item, Put, Write

IDLE_READS = 6  # replies without any item, about 1 s, after which the table counts as throttled
_LOST_RACE = {"ConditionalCheckFailed", "TransactionConflict"}


class OperationFailed(Exception):
    """DynamoDB's refusal of an operation, with its error code.

    `reasons` are the codes for each part of a cancelled transaction.
    """

    def __init__(self, code: str, message: str, reasons: Sequence[str] = ()) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.reasons = reasons


class Call(Protocol):
    """Client function that runs a DynamoDB operation and returns its reply."""

    def __call__(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Run a DynamoDB operation, e.g. "Query", with retries; return its reply.

        Raises:
            OperationFailed: DynamoDB refused it.
            Unavailable: DynamoDB failed, throttled or could not be reached.
        """


class ItemTable:
    """Model registry's DynamoDB table, with partition key `pk`, sort key `sk`.

    Its indexes are `listing` (`kind`, `listed`) and `pending` (`pending`, `claimed_at`). Reads
    are strongly consistent, except those of the two indexes.

    Raises:
        Unavailable: DynamoDB failed, throttled or could not be reached.
    """

    def __init__(self, call: Call, name: str, pause: Callable[[float], None] = time.sleep) -> None:
        self._call = call
        self._name = name
        self._pause = pause
        self._ahead: dict[tuple[str, str], Item | None] = {}  # read before they are asked for

    @contextmanager
    def read_ahead(self, keys: Sequence[tuple[str, str]]) -> Iterator[None]:
        """Prefetch DynamoDB items by one request.

        In the `with` block, `get` and `get_valid` return each of them once without another. For
        one thread.
        """
        self._ahead = dict(zip(keys, self.get(keys), strict=True))
        try:
            yield
        finally:
            self._ahead = {}

    def get(self, keys: Sequence[tuple[str, str]]) -> list[Item | None]:
        """Return the DynamoDB items of up to 100 keys, in their order."""
        if self._ahead and all(key in self._ahead for key in keys):
            return [self._ahead.pop(key) for key in keys]
        items: dict[tuple[str, str], Item] = {}
        request_keys = [{"pk": {"S": pk}, "sk": {"S": sk}} for pk, sk in keys]
        # DynamoDB refuses a request without keys.
        request = {self._name: {"Keys": request_keys, "ConsistentRead": True}} if keys else {}
        idle = 0
        while request:
            reply = self._call("BatchGetItem", {"RequestItems": request})
            batch = [_unmarshal(raw) for raw in reply["Responses"].get(self._name, [])]
            items |= {(item["pk"], item["sk"]): item for item in batch}
            request = reply.get("UnprocessedKeys") or {}
            if request and not batch:
                idle += 1
                if idle == IDLE_READS:
                    raise Unavailable("the registry is throttled; try again")
                self._pause(random.uniform(0, 0.025 * 2**idle))  # noqa: S311 (jitter, no secret)
        return [items.get(key) for key in keys]

    def get_valid(self, pk: str, sk: str, now_s: float) -> Item | None:
        """Return a DynamoDB item unless its `valid_until` is past.

        DynamoDB filters, so that the reply to a past item is that to a missing one.
        """
        if (pk, sk) in self._ahead:
            item = self._ahead.pop((pk, sk))
            return item if item and is_valid(item, now_s) else None
        values = {":pk": pk, ":sk": sk, ":now": now_s, ":null": "NULL"}
        pages = self._pages(
            None,
            KeyConditionExpression="pk = :pk AND sk = :sk",
            FilterExpression="valid_until > :now OR attribute_type(valid_until, :null)",
            ExpressionAttributeValues=marshal(values),
            ConsistentRead=True,
        )
        return next(pages, None)

    def query(self, pk: str, prefix: str) -> Iterator[Item]:
        """Yield a DynamoDB partition's items by sort-key prefix, in ascending order."""
        return self._pages(
            None,
            KeyConditionExpression="pk = :pk AND begins_with(sk, :prefix)",
            ExpressionAttributeValues={":pk": {"S": pk}, ":prefix": {"S": prefix}},
            ConsistentRead=True,
        )

    def between(self, pk: str, first: str, last: str) -> Iterator[Item]:
        """Yield a DynamoDB partition's items in a range of sort keys, ascending."""
        return self._pages(
            None,
            KeyConditionExpression="pk = :pk AND sk BETWEEN :first AND :last",
            ExpressionAttributeValues={
                ":pk": {"S": pk},
                ":first": {"S": first},
                ":last": {"S": last},
            },
            ConsistentRead=True,
        )

    def usage_hours(self, after: str, limit: int) -> Iterator[Item]:
        """Query DynamoDB for hours of usage above `after`, oldest first."""
        return self._listed("USAGE", after, limit)

    def last(self, pk: str, prefix: str, before: str, limit: int) -> Iterator[Item]:
        """Yield a DynamoDB partition's items below a sort key, in descending order."""
        # No sort key has a character above "~".
        values = {":pk": {"S": pk}, ":first": {"S": prefix}, ":last": {"S": before or prefix + "~"}}
        for item in self._pages(
            limit + 1,  # BETWEEN includes `before`
            KeyConditionExpression="pk = :pk AND sk BETWEEN :first AND :last",
            ExpressionAttributeValues=values,
            ConsistentRead=True,
            ScanIndexForward=False,
        ):
            if item["sk"] != before and limit > 0:
                limit -= 1
                yield item

    def listed(self, kind: str, after: str, limit: int, prefix: str = "") -> Iterator[Item]:
        """Query DynamoDB for a kind's entries above the index key `after`, ascending."""
        if not prefix or after >= prefix:
            rows = self._listed(kind, after, limit)
            return (row for row in rows if row["listed"].startswith(prefix)) if prefix else rows
        return self._pages(
            limit,
            IndexName="listing",
            KeyConditionExpression="kind = :kind AND begins_with(listed, :prefix)",
            ExpressionAttributeValues={":kind": {"S": kind}, ":prefix": {"S": prefix}},
        )

    def newest(self, kind: str, before: str, limit: int) -> Iterator[Item]:
        """Query DynamoDB for entries of a kind below `before`, newest first."""
        values = {":kind": {"S": kind}} | ({":before": {"S": before}} if before else {})
        return self._pages(
            limit,
            IndexName="listing",
            KeyConditionExpression="kind = :kind AND listed < :before"
            if before
            else "kind = :kind",
            ExpressionAttributeValues=values,
            ScanIndexForward=False,
        )

    def listing(self, after: str = "", limit: int | None = None) -> Iterator[Item]:
        """Yield version items of the DynamoDB index `listing` above key `after`.

        The order is ascending.
        """
        return self._listed("VERSION", after, limit)

    def pending(self, before: str, limit: int) -> Iterator[Item]:
        """Yield keys of unfinished (PENDING) versions claimed before a time, oldest first."""
        return self._pages(
            limit,
            IndexName="pending",
            KeyConditionExpression="pending = :pending AND claimed_at < :before",
            ExpressionAttributeValues={":pending": {"S": "PENDING"}, ":before": {"S": before}},
        )

    def ignored(self, limit: int) -> Iterator[Item]:
        """Query DynamoDB for records of ignored S3 uploads, newest first."""
        return self._pages(
            limit,
            IndexName="listing",
            KeyConditionExpression="kind = :kind",
            ExpressionAttributeValues={":kind": {"S": "IGNORED"}},
            ScanIndexForward=False,
        )

    def access_keys(self, after: str, limit: int) -> Iterator[Item]:
        """Query DynamoDB for access keys above the index key `after`, oldest first."""
        return self._listed("KEY", after, limit)

    def transact(self, puts: Sequence[Write]) -> None:
        """Write several DynamoDB items in one transaction: all or none.

        Raises:
            Conflict: a condition does not hold, or another transaction interferes.
        """
        self._transact([self._write(put) for put in puts])

    def add(self, adds: Sequence[Add], token: str) -> None:
        """Increase numbers of several DynamoDB items in one transaction: all or none.

        The token makes a repetition harmless for ten minutes.

        Raises:
            Conflict: another transaction interferes.
        """
        self._transact([{"Update": self._update(add)} for add in adds], ClientRequestToken=token)

    def _transact(self, parts: Sequence[Mapping[str, Any]], **options: str) -> None:
        try:
            self._call("TransactWriteItems", {"TransactItems": parts, **options})
        except OperationFailed as error:
            if error.code == "TransactionInProgressException":  # the same token, sent before
                raise Unavailable("the registry is still writing; try again") from error
            codes = set(error.reasons)
            if codes & _LOST_RACE:
                raise Conflict(", ".join(sorted(codes))) from error
            if codes & TRANSIENT:
                raise Unavailable("the registry is throttled; try again") from error
            raise

    def _listed(self, kind: str, after: str, limit: int | None) -> Iterator[Item]:
        """Yield items of one kind from the DynamoDB index `listing`, ascending."""
        values = {":kind": {"S": kind}} | ({":after": {"S": after}} if after else {})
        return self._pages(
            limit,
            IndexName="listing",
            KeyConditionExpression="kind = :kind AND listed > :after" if after else "kind = :kind",
            ExpressionAttributeValues=values,
        )

    def _write(self, write: Write) -> dict[str, Any]:
        request: dict[str, Any] = {"TableName": self._name}
        if not isinstance(write, Put):
            pk, sk = write.key
            key = {"Key": {"pk": {"S": pk}, "sk": {"S": sk}}}
            return {"Delete": request | key | _condition(write.condition)}
        request["Item"] = marshal(write.item)
        if write.condition is None:
            return {"Put": request | {"ConditionExpression": "attribute_not_exists(pk)"}}
        return {"Put": request | (_condition(write.condition) if write.condition else {})}

    def _update(self, add: Add) -> dict[str, Any]:
        names = [*add.amounts, *add.values]
        amounts = ", ".join(f"#{n} :{n}" for n in range(len(add.amounts)))
        values = ", ".join(f"#{n} = :{n}" for n in range(len(add.amounts), len(names)))
        clauses = [f"ADD {amounts}" if amounts else "", f"SET {values}" if values else ""]
        numbers = [*add.amounts.values(), *add.values.values()]
        return {
            "TableName": self._name,
            "Key": {"pk": {"S": add.pk}, "sk": {"S": add.sk}},
            "UpdateExpression": " ".join(filter(None, clauses)),
            "ExpressionAttributeNames": {f"#{n}": name for n, name in enumerate(names)},
            "ExpressionAttributeValues": {f":{n}": _value(v) for n, v in enumerate(numbers)},
        }

    def _pages(self, limit: int | None, **query: Any) -> Iterator[Item]:
        """Yield up to `limit` items of a DynamoDB query, page by page."""
        page: dict[str, Any] = {}
        while limit is None or limit > 0:
            if limit is not None:
                page["Limit"] = limit
            reply = self._call("Query", {"TableName": self._name, **query, **page})
            yield from map(_unmarshal, reply["Items"])
            if not reply.get("LastEvaluatedKey"):
                return
            page["ExclusiveStartKey"] = reply["LastEvaluatedKey"]
            if limit is not None:
                limit -= len(reply["Items"])


def is_valid(item: Item, now_s: float) -> bool:
    """Return True unless an item's `valid_until` is past."""
    return item["valid_until"] is None or bool(item["valid_until"] > now_s)


def _condition(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a request that ask for attribute values."""
    tests = [f"#{n} = :{n}" for n in range(len(values))]
    return {
        "ConditionExpression": " AND ".join(tests),
        "ExpressionAttributeNames": {f"#{n}": name for n, name in enumerate(values)},
        "ExpressionAttributeValues": {
            f":{n}": _value(value) for n, value in enumerate(values.values())
        },
    }


def marshal(item: Mapping[str, Any]) -> dict[str, Any]:
    """Convert an item to DynamoDB's typed JSON, e.g. {"n": {"N": "1"}}."""
    return {name: _value(value) for name, value in item.items()}


def _value(value: Any) -> dict[str, Any]:
    match value:
        case None:
            return {"NULL": True}
        case bool():
            return {"BOOL": value}
        case str():
            return {"S": value}
        case int() | float():
            return {"N": repr(value)}
        case list():
            return {"L": [_value(item) for item in value]}
        case dict():
            return {"M": marshal(value)}
    raise TypeError(f"a {type(value).__name__} cannot be stored in the registry")


def _unmarshal(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in raw.items()}


def _plain(value: Mapping[str, Any]) -> Any:
    [(kind, content)] = value.items()
    match kind:
        case "NULL":
            return None
        case "BOOL" | "S":
            return content
        case "N":
            return int(content) if content.lstrip("-").isdigit() else float(content)
        case "L":
            return [_plain(item) for item in content]
        case "M":
            return _unmarshal(content)
    raise TypeError(f"the registry holds a value of type {kind}")
