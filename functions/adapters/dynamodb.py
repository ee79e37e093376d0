"""The registry's table in DynamoDB."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from functions.core.errors import Unavailable
from functions.core.registry import Conflict, Item, Put

# What a second try can mend, in DynamoDB's words.
_TRANSIENT = {
    "InternalServerError",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "ServiceUnavailable",
    "ThrottlingException",
}
_LOST_RACE = {"ConditionalCheckFailed", "TransactionConflict"}


class DynamoTable:
    """`core.registry.Table` over a table with keys `pk` and `sk`.

    Its indexes are `listing` (`kind`, `listed`) and `pending` (`pending`, `claimed_at`). Reads are strongly
    consistent, but for these two.

    Raises:
        Unavailable: DynamoDB failed, throttled or could not be reached, botocore's own retries included.
    """

    def __init__(self, client: Any, name: str) -> None:
        self._client = client
        self._name = name

    def get(self, keys: Sequence[tuple[str, str]]) -> list[Item | None]:
        wanted = [{"pk": {"S": pk}, "sk": {"S": sk}} for pk, sk in keys]
        found: dict[tuple[str, str], Item] = {}
        request = {self._name: {"Keys": wanted, "ConsistentRead": True}}
        while request:
            reply = self._call("batch_get_item", RequestItems=request)
            for raw in reply["Responses"].get(self._name, []):
                item = _unmarshal(raw)
                found[item["pk"], item["sk"]] = item
            request = reply.get("UnprocessedKeys") or {}
        return [found.get(key) for key in keys]

    def query(self, pk: str, prefix: str) -> Iterator[Item]:
        return self._pages(
            None,
            KeyConditionExpression="pk = :pk AND begins_with(sk, :prefix)",
            ExpressionAttributeValues={":pk": {"S": pk}, ":prefix": {"S": prefix}},
            ConsistentRead=True,
        )

    def listing(self, after: str = "", limit: int | None = None) -> Iterator[Item]:
        values = {":kind": {"S": "VERSION"}} | ({":after": {"S": after}} if after else {})
        return self._pages(
            limit,
            IndexName="listing",
            KeyConditionExpression="kind = :kind AND listed > :after" if after else "kind = :kind",
            ExpressionAttributeValues=values,
        )

    def pending(self, before: str, limit: int) -> Iterator[Item]:
        return self._pages(
            limit,
            IndexName="pending",
            KeyConditionExpression="pending = :pending AND claimed_at < :before",
            ExpressionAttributeValues={":pending": {"S": "PENDING"}, ":before": {"S": before}},
        )

    def transact(self, puts: Sequence[Put]) -> None:
        try:
            self._call("transact_write_items", TransactItems=[{"Put": self._put(put)} for put in puts])
        except ClientError as error:
            if error.response["Error"]["Code"] != "TransactionCanceledException":
                raise
            codes = {reason.get("Code", "None") for reason in error.response.get("CancellationReasons", [])}
            if codes & _LOST_RACE:
                raise Conflict(", ".join(sorted(codes))) from error
            if codes & {"ThrottlingError", "ProvisionedThroughputExceeded"}:
                raise Unavailable("the registry is throttled; try again") from error
            raise

    def _put(self, put: Put) -> dict[str, Any]:
        request: dict[str, Any] = {"TableName": self._name, "Item": _marshal(put.item)}
        if put.where is None:
            request["ConditionExpression"] = "attribute_not_exists(pk)"
        elif put.where:
            request["ConditionExpression"] = " AND ".join(f"#{n} = :{n}" for n in range(len(put.where)))
            request["ExpressionAttributeNames"] = {f"#{n}": name for n, name in enumerate(put.where)}
            request["ExpressionAttributeValues"] = {f":{n}": _value(v) for n, v in enumerate(put.where.values())}
        return request

    def _pages(self, limit: int | None, **query: Any) -> Iterator[Item]:
        """The items of a query, or the first `limit` of them."""
        page: dict[str, Any] = {}
        while limit is None or limit > 0:
            if limit is not None:
                page["Limit"] = limit
            reply = self._call("query", TableName=self._name, **query, **page)
            yield from map(_unmarshal, reply["Items"])
            if not reply.get("LastEvaluatedKey"):
                return
            page["ExclusiveStartKey"] = reply["LastEvaluatedKey"]
            if limit is not None:
                limit -= len(reply["Items"])

    def _call(self, operation: str, **arguments: Any) -> Any:
        try:
            return getattr(self._client, operation)(**arguments)
        except ClientError as error:
            if error.response["Error"]["Code"] in _TRANSIENT:
                raise Unavailable("the registry does not answer; try again") from error
            raise
        except BotoCoreError as error:  # connections, timeouts, missing credentials
            raise Unavailable("the registry cannot be reached; try again") from error


def _marshal(item: Mapping[str, Any]) -> dict[str, Any]:
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
            return {"M": _marshal(value)}
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
