"""Access keys on every route: scopes, models, bad keys, log lines, reads of the registry."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from functions.core.access.grants import Scope
from functions.core.access.keys import key_digest, new_id, new_key, parse_key
from functions.core.registry.registry import Registry
from functions.core.registry.version import Reason
from functions.core.serving.paths import compile_path
from functions.core.serving.routing import ROUTES
from tests.data_plane import KEY_SECONDS, Client, DataPlane, Reply, rows

OPEN = "open"  # needs no key
ANY = {"infer", "read", "deploy", "admin"}
CALLS = {"infer", "admin"}
CHANGES = {"deploy", "admin"}

# The scopes that permit each route. {m} is a model.
TABLE: list[tuple[str, str, object]] = [
    ("POST", "/v2/models/{m}/infer", CALLS),
    ("POST", "/v2/models/{m}/versions/1/infer", CALLS),
    ("POST", "/v2/models/{m}/versions/latest/infer", CALLS),
    ("GET", "/v2", ANY),
    ("HEAD", "/v2", ANY),
    ("GET", "/v2/health/live", OPEN),
    ("GET", "/v2/health/ready", OPEN),
    ("GET", "/v2/models", ANY),
    ("GET", "/v2/models/stats", ANY),
    ("GET", "/v2/models/{m}", ANY),
    ("GET", "/v2/models/{m}/versions/1", ANY),
    ("GET", "/v2/models/{m}/ready", ANY),
    ("GET", "/v2/models/{m}/versions/9/ready", ANY),
    ("HEAD", "/v2/models/{m}/ready", ANY),
    ("GET", "/v2/models/{m}/config", ANY),
    ("GET", "/v2/models/{m}/stats", ANY),
    ("POST", "/v2/repository/index", ANY),
    ("POST", "/v2/repository/models/{m}/load", CHANGES),
    ("POST", "/v2/repository/models/{m}/unload", CHANGES),
    ("POST", "/v2/models/{m}/generate", ANY),
    ("POST", "/v2/models/{m}/generate_stream", ANY),
    ("GET", "/v2/models/{m}/trace/setting", ANY),
    ("GET", "/v2/trace/setting", ANY),
    ("POST", "/v2/logging", ANY),
    ("GET", "/v2/systemsharedmemory/status", ANY),
    ("GET", "/v2/cudasharedmemory/status", ANY),
    ("GET", "/v2/xpusharedmemory/status", ANY),
]
ROWS = [(method, path, scopes) for method, path, scopes in TABLE]
NAMED = [(method, path) for method, path, _ in TABLE if "{m}" in path]


class Plane(DataPlane):
    """Environment of infer that checks keys; `own` may be called by every key."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        for model in ("own", "own-2", "other"):
            self.register(model)
        self.client = Client(self.handler(gate=self.gate))
        self.replies: list[Reply] = []

    def send(self, method: str, path: str, key: str | None = None, model: str = "own") -> Reply:
        body: Any = rows([1.0, 2.0, 3.0]) if path.endswith("infer") else b""
        sent = {} if key is None else {"authorization": f"Bearer {key}"}
        reply = self.client.send(method, path.replace("{m}", model), body, headers=sent)
        self.replies.append(reply)
        return reply

    def bad_keys(self) -> dict[str, str]:
        """Return a key of each kind that must be refused."""
        good = self.create_key(*Scope)
        revoked, replaced = self.create_key(*Scope), self.create_key(*Scope)
        self.keys.revoke(str(parse_key(revoked)), actor="anna")
        self.keys.rotate(str(parse_key(replaced)), 0, actor="anna")
        expiring = self.create_key(*Scope, valid_until=int(self.unix_s()) + 10)
        self.clock.now += 11
        return {
            "unknown": new_key(new_id()),
            "wrong secret": new_key(str(parse_key(good))),
            "revoked": revoked,
            "replaced": replaced,
            "expired": expiring,
            "mistyped": good[:30] + ("a" if good[30] != "a" else "b") + good[31:],
            "cut off": good[:-1],
            "no key at all": "x",
            "not ASCII": "é" * 66,
        }


@pytest.fixture
def plane(tmp_path: Path) -> Plane:
    return Plane(tmp_path)


def without_ids(reply: Reply, model: str) -> tuple[int, dict[str, str], str]:
    """Return a reply in a form that is equal for two models."""
    headers = {name: value for name, value in reply.headers.items() if name != "server-timing"}
    return reply.status, headers, reply.body.decode().replace(model, "<model>")


def test_the_table_has_every_route() -> None:
    tested = {
        route.pattern
        for route, (method, path, _) in itertools.product(ROUTES, TABLE)
        if compile_path(route.pattern).fullmatch(path) and route.method in (method, "*")
    }

    assert tested == {route.pattern for route in ROUTES}


@pytest.mark.parametrize(("method", "path", "scopes"), ROWS)
def test_exactly_the_permitted_scopes_pass(
    plane: Plane, method: str, path: str, scopes: object
) -> None:
    for scope in Scope:
        key = plane.create_key(scope)
        reply = plane.send(method, path, key)
        if scopes == OPEN or scope.value in scopes:  # type: ignore[operator]
            assert reply.status in (200, 404 if "/9/" in path else 200, 501), scope
        else:
            assert reply.status == 403, scope
            assert reply.json["code"] == "SCOPE_MISSING"
            needed = "infer" if scopes is CALLS else "deploy"
            assert f"the scope {needed}; yours has {scope}" in reply.json["error"]


@pytest.mark.parametrize(("method", "path", "scopes"), ROWS)
def test_every_bad_key_is_refused_in_the_same_way(
    plane: Plane, method: str, path: str, scopes: object
) -> None:
    replies = {kind: plane.send(method, path, key) for kind, key in plane.bad_keys().items()}
    replies["none"] = plane.send(method, path)

    if scopes == OPEN:
        assert {reply.status for reply in replies.values()} == {200}
        return
    assert {reply.status for reply in replies.values()} == {401}
    assert {reply.headers["www-authenticate"] for reply in replies.values()} == {"Bearer"}
    without_key = replies.pop("none")
    if method != "HEAD":
        assert without_key.json["code"] == "KEY_MISSING"
    forms = {json.dumps(without_ids(reply, "own")[1:]) for reply in replies.values()}
    assert len({form.replace('"x-cold-start": "1"', '"x-cold-start": "0"') for form in forms}) == 1


@pytest.mark.parametrize(("method", "path"), NAMED)
def test_a_foreign_model_is_answered_as_one_that_does_not_exist(
    plane: Plane, method: str, path: str
) -> None:
    """`own-none` is unknown, `other` and `none` are foreign; only `other` exists."""
    key = plane.create_key(Scope.INFER, Scope.DEPLOY, models=["own*"])
    plane.send("GET", "/v2", key)  # the environment's first reply says so
    forms = {
        model: without_ids(plane.send(method, path, key, model), model)
        for model in ("own-none", "other", "none")
    }

    assert forms["other"] == forms["none"] == forms["own-none"]
    unsupported = "generate" in path or "trace" in path
    assert forms["other"][0] == (501 if unsupported else 404)
    assert plane.send(method, path, key, "own").status == (
        501 if unsupported else 404 if "/9/" in path else 200
    )


@pytest.mark.parametrize(
    ("method", "path", "body", "headers"),
    [
        ("POST", "/v2/models/{m}/infer", b"{", {}),
        ("POST", "/v2/models/{m}/infer", b"", {"content-encoding": "br"}),
        ("POST", "/v2/models/{m}/versions/NO/infer", b"", {}),
        ("POST", "/v2/repository/models/{m}/load", {"parameters": {"config": "x"}}, {}),
        ("POST", "/v2/repository/models/{m}/unload", {"parameters": 1}, {}),
        ("GET", "/v2/models/{m}", b"", {"x-model-version": "7"}),
    ],
)
def test_a_bad_request_tells_no_foreign_model_from_an_unknown_one(
    plane: Plane, method: str, path: str, body: Any, headers: dict[str, str]
) -> None:
    key = plane.create_key(Scope.INFER, Scope.DEPLOY, models=["own*"])
    plane.send("GET", "/v2", key)
    forms = []
    for model in ("other", "own-none", "o" * 128):
        sent = {**headers, "x-api-key": key}
        target = path.replace("{m}", model)
        forms.append(without_ids(plane.client.send(method, target, body, headers=sent), model))

    assert forms[0] == forms[1]


def test_a_long_foreign_name_is_answered_as_a_long_unknown_one(plane: Plane) -> None:
    key = plane.create_key(Scope.READ, models=["a*"])
    unknown, foreign = (
        plane.send("GET", "/v2/models/{m}", key, letter * 128).json["error"] for letter in "ab"
    )

    assert foreign.replace("b", "a") == unknown.replace("b", "a")


def test_a_foreign_model_costs_no_read_of_the_registry(plane: Plane) -> None:
    key = plane.create_key(Scope.INFER, models=["own*"])
    plane.send("GET", "/v2", key)
    reads = plane.table.reads

    for method, path in NAMED:
        plane.send(method, path, key, "other")
    assert plane.table.reads == reads


def test_lists_hold_visible_models_alone(plane: Plane) -> None:
    plane.register("own")
    plane.reject("own-3")
    plane.reject("other-3")
    reason = Reason("UNUSED_FILE", "this file is no model")
    for key in ("models/own/notes.txt", "models/other/notes.txt"):
        plane.registry.note_ignored(key, reason)
    caller = plane.create_key(Scope.READ, models=["own", "own-*"])
    everything = plane.create_key(Scope.INFER)
    plane.send("POST", "/v2/models/{m}/infer", everything, "other")  # has statistics now

    index = plane.send("POST", "/v2/repository/index", caller).json
    assert [(row["name"], row.get("version")) for row in index] == [
        ("own", "1"), ("own", "2"), ("own-2", "1"), ("own-3", "1"), ("own", None),
    ]  # fmt: skip
    assert "other" not in json.dumps(index)
    assert plane.send("GET", "/v2/models", caller).json == {"models": ["own", "own-2"]}
    statistics = plane.send("GET", "/v2/models/stats", caller).json["model_stats"]
    assert {row["name"] for row in statistics} == {"own", "own-2"}
    names = {row["name"] for row in plane.send("POST", "/v2/repository/index", everything).json}
    assert names == {"own", "own-2", "own-3", "other", "other-3"}


def test_others_ignored_uploads_hide_none_of_the_callers(plane: Plane) -> None:
    reason = Reason("UNUSED_FILE", "this file is no model")
    times = (f"2026-11-22T08:{n // 60:02}:{n % 60:02}.000Z" for n in range(1000))
    registry = Registry(plane.table, lambda: next(times))
    registry.note_ignored("models/own/notes.txt", reason)
    for n in range(150):
        registry.note_ignored(f"models/other/{n}.txt", reason)
    key = plane.create_key(Scope.READ, models=["own"])

    index = plane.send("POST", "/v2/repository/index", key).json
    assert [row["name"] for row in index if "version" not in row] == ["own"]


def test_a_warm_request_reads_nothing(plane: Plane) -> None:
    key = plane.create_key(Scope.INFER)
    plane.send("POST", "/v2/models/{m}/infer", key)
    reads = plane.table.reads

    for _ in range(20):
        assert plane.send("POST", "/v2/models/{m}/infer", key).status == 200
    assert plane.table.reads == reads


def test_a_refused_request_reads_nothing_but_its_key(plane: Plane) -> None:
    def reads(key: str | None) -> int:
        before = plane.table.reads
        assert plane.send("POST", "/v2/models/{m}/infer", key).status in (401, 403)
        return plane.table.reads - before

    assert reads(None) == 0
    assert reads("mfy_nonsense") == 0
    unknown, read_only = new_key(new_id()), plane.create_key(Scope.READ)
    assert [reads(unknown), reads(unknown)] == [1, 0]
    assert [reads(read_only), reads(read_only)] == [1, 0]


def test_revoked_and_replaced_keys_stop_within_the_stated_seconds(plane: Plane) -> None:
    revoked, replaced = plane.create_key(Scope.INFER), plane.create_key(Scope.INFER)

    def statuses() -> tuple[int, int]:
        first, second = (
            plane.send("POST", "/v2/models/{m}/infer", key).status for key in (revoked, replaced)
        )
        return first, second

    assert statuses() == (200, 200)
    plane.keys.revoke(str(parse_key(revoked)), actor="anna")
    plane.keys.rotate(str(parse_key(replaced)), 20, actor="anna")
    seen = []
    for _ in range(70):
        plane.clock.now += 1
        seen.append(statuses())
    # The overlap ends after 20 s, while the answer from before the rotation is still cached.
    assert seen[int(KEY_SECONDS) - 1 :] == [(401, 401)] * 11
    assert (401, 200) not in seen


def test_a_rotated_key_works_at_once(plane: Plane) -> None:
    key = plane.create_key(Scope.INFER)
    plane.send("POST", "/v2/models/{m}/infer", key)
    _, new = plane.keys.rotate(str(parse_key(key)), 20, actor="anna")

    assert plane.send("POST", "/v2/models/{m}/infer", new).status == 200


def test_wrong_keys_in_great_number_are_answered_429(plane: Plane) -> None:
    replies = [plane.send("GET", "/v2", new_key(new_id())) for _ in range(101)]

    assert {reply.status for reply in replies[:100]} == {401}
    assert replies[100].status == 429
    assert replies[100].json["code"] == "TOO_MANY_REQUESTS"
    assert replies[100].headers["retry-after"] == "1"
    assert plane.send("GET", "/v2/health/live").status == 200


def test_two_different_keys_are_a_bad_request(plane: Plane) -> None:
    first, second = plane.create_key(Scope.READ), plane.create_key(Scope.READ)
    sent = {"authorization": f"Bearer {first}", "x-api-key": second}

    reply = plane.client.get("/v2", headers=sent)
    assert (reply.status, reply.json["code"]) == (400, "INVALID_REQUEST")


# Headers that hold a key in the right way, {key} in its place
GOOD_FORMS = {
    "bearer": {"authorization": "Bearer {key}"},
    "lower case": {"authorization": "bearer {key}"},
    "upper case": {"AUTHORIZATION": "BEARER {key}"},
    "spaces": {"authorization": "Bearer   {key}  "},
    "plain": {"x-api-key": "{key}"},
    "plain with spaces": {"X-API-Key": " {key} "},
    "both": {"authorization": "Bearer {key}", "x-api-key": "{key}"},
    "another scheme beside": {"authorization": "Basic YTpi", "x-api-key": "{key}"},
    "an empty one beside": {"authorization": "Bearer ", "x-api-key": "{key}"},
    "the last of two": {"X-Api-Key": "mfy_x", "x-api-key": "{key}"},  # as API Gateway passes both
}


@pytest.mark.parametrize("form", GOOD_FORMS)
def test_a_key_is_taken_in_every_usual_form(plane: Plane, form: str) -> None:
    key = plane.create_key(Scope.INFER)
    headers = {name: text.format(key=key) for name, text in GOOD_FORMS[form].items()}

    assert plane.client.get("/v2/models/own", headers=headers).status == 200


# Headers that hold a valid key in a wrong way, {key} in its place, and the code of the refusal
BAD_FORMS: dict[str, tuple[dict[str, str], str]] = {
    "no scheme": ({"authorization": "{key}"}, "KEY_MISSING"),
    "tab": ({"authorization": "Bearer\t{key}"}, "KEY_MISSING"),
    "no space": ({"authorization": "Bearer{key}"}, "KEY_MISSING"),
    "colon": ({"authorization": "Bearer: {key}"}, "KEY_MISSING"),
    "another scheme": ({"authorization": "Basic {key}"}, "KEY_MISSING"),
    "scheme of look-alikes": ({"authorization": "\u0412earer {key}"}, "KEY_MISSING"),
    "space before": ({"authorization": " Bearer {key}"}, "KEY_MISSING"),
    "other header": ({"x-mayfly-key": "{key}"}, "KEY_MISSING"),
    "underscores": ({"x_api_key": "{key}"}, "KEY_MISSING"),
    "cookie": ({"cookie": "x-api-key={key}"}, "KEY_MISSING"),
    "forwarded": ({"x-forwarded-authorization": "Bearer {key}"}, "KEY_MISSING"),
    "empty": ({"authorization": "Bearer ", "x-api-key": " "}, "KEY_MISSING"),
    "twice in one": ({"authorization": "Bearer {key}, Bearer {key}"}, "KEY_INVALID"),
    "list": ({"x-api-key": "{key},{key}"}, "KEY_INVALID"),
    "scheme in the plain one": ({"x-api-key": "Bearer {key}"}, "KEY_INVALID"),
    "two schemes": ({"authorization": "Bearer Bearer {key}"}, "KEY_INVALID"),
    "quoted": ({"x-api-key": '"{key}"'}, "KEY_INVALID"),
    "a character behind": ({"x-api-key": "{key}a"}, "KEY_INVALID"),
    "a null byte behind": ({"x-api-key": "{key}\0"}, "KEY_INVALID"),
    "a line behind": ({"x-api-key": "{key}\nx: y"}, "KEY_INVALID"),
    "another prefix": ({"x-api-key": "MFY{key}"}, "KEY_INVALID"),
    "10 kB": ({"x-api-key": "{key}" * 140}, "KEY_INVALID"),
    "a surrogate": ({"x-api-key": "{key}\udfff"}, "KEY_INVALID"),
    "first of two": ({"x-api-key": "{key}", "X-API-KEY": "mfy_x"}, "KEY_INVALID"),
}


@pytest.mark.parametrize("form", BAD_FORMS)
def test_a_valid_key_in_a_wrong_form_is_refused_without_a_read(plane: Plane, form: str) -> None:
    key = plane.create_key(Scope.ADMIN)
    fields, code = BAD_FORMS[form]
    headers = {name: text.format(key=key) for name, text in fields.items()}
    reads = plane.table.reads

    reply = plane.client.post("/v2/models/own/infer", rows([1, 2, 3]), headers=headers)

    assert (reply.status, reply.json["code"]) == (401, code)
    assert reply.headers["www-authenticate"] == "Bearer"
    assert plane.table.reads == reads
    assert key not in f"{reply.headers}{reply.body!r}{plane.lines}"


@pytest.mark.parametrize(
    "digits", ["\u0661", "\u0967", "\uff11", "\u00b2"], ids=["Arabic", "Devanagari", "wide", "2"]
)
def test_digits_of_other_scripts_are_no_digits_of_a_key(plane: Plane, digits: str) -> None:
    key = plane.create_key(Scope.ADMIN)
    for at in (4, 30, len(key) - 1):  # in the id, the secret and the checksum
        changed = key[:at] + digits + key[at + 1 :]
        assert plane.send("GET", "/v2", changed).status == 401


@pytest.mark.parametrize("name", ["x-api-key", "api_key", "authorization", "access_token", "key"])
def test_a_key_in_the_query_is_no_key(plane: Plane, name: str) -> None:
    query = {name: plane.create_key(Scope.ADMIN)}
    reply = plane.client.get("/v2/models/own", query=query)

    assert (reply.status, reply.json["code"]) == (401, "KEY_MISSING")
    assert query[name] not in f"{reply.body!r}{plane.lines}"


# Other spellings of routes that need a key
SPELLINGS = [
    *("//v2/models/own/infer", "/live/v2/models/own/infer", "/v2/models/own/infer/"),
    *("/v2/models/%6fwn/infer", "/v2/models/own%2Finfer", "/v2%2Fmodels/own/infer"),
    *("/v2/health/live/v2/models/own/infer", "/v2/health/live/../../models/own/infer"),
    *("/v2/models/own/infer?x", "/v2/models/own/infer;x", "/V2/models/own/infer"),
    *("/v2/models/own/./infer", "/v2/%2e%2e/v2/models/own/infer", "/v2/models//own/infer"),
    *("/v2/models/own/infer%00", "/v2/models/own/infer#", "/v2/health/live%2F../models/own/infer"),
]


@pytest.mark.parametrize("path", SPELLINGS)
def test_no_spelling_of_a_route_goes_past_the_key(plane: Plane, path: str) -> None:
    reads = plane.table.reads
    for method in ("GET", "HEAD", "POST", "PUT", "OPTIONS", "post"):
        reply = plane.client.send(method, path, rows([1, 2, 3]))
        assert reply.status in (401, 404, 405), method

    assert plane.runtime.runs == []
    assert plane.table.reads == reads


# Paths of a key for `own*` that mean `other`, or nothing
DETOURS = [
    *("/v2/models/own%2F..%2Fother", "/v2/models/own/../other", "/v2/models/own%252F..%252Fother"),
    *("/v2/models/%6fther", "/v2/models/other%00", "/v2/models/own%00other", "/v2/models/OTHER"),
    *("/v2/models/*", "/v2/models/own*", "/v2/models/own%2A", "/v2/models/other/versions/prod"),
    *("/v2/models/other/versions/latest/ready", "/v2/models/other/versions/1/stats"),
    *("//v2/models/other", "/v2/models/other/", "/v2/models/own,other", "/v2/models/own other"),
    *("/live/v2/models/other", "/v2/models/own/v2/models/other", "/v2/models/OWN"),
]


@pytest.mark.parametrize("path", DETOURS)
def test_no_detour_leads_a_key_to_a_foreign_model(plane: Plane, path: str) -> None:
    key = plane.create_key(Scope.INFER, models=["own*"])
    plane.send("GET", "/v2", key)
    reads = plane.table.reads

    reply = plane.client.get(path, headers={"x-api-key": key, "x-model-version": "1"})

    assert reply.status in (400, 404)
    assert plane.table.reads == reads
    assert "x-model-version" not in reply.headers
    assert "FP32" not in reply.body.decode()


def test_loading_and_unloading_are_audited_with_the_key(plane: Plane) -> None:
    key = plane.create_key(Scope.DEPLOY)
    plane.send("POST", "/v2/repository/models/{m}/unload", key)
    plane.send("POST", "/v2/repository/models/{m}/load", key)

    records = list(plane.table.query("SERVING#own", "AUDIT#"))
    assert [(record["action"], record["actor"]) for record in records] == [
        ("unload", f"key:{parse_key(key)}"),
        ("load", f"key:{parse_key(key)}"),
    ]


def secrets_of(keys: list[str]) -> Iterator[str]:
    """Yield all that must not be written: the secrets, their digests, and parts of both."""
    for key in keys:
        secret, digest = key.rpartition("_")[2], key_digest(key)
        yield from (secret[n : n + 12] for n in range(len(secret) - 11))
        yield from (digest[:12], digest[-12:])


def test_no_log_line_or_reply_holds_a_key_or_digest(plane: Plane) -> None:
    good = [plane.create_key(scope) for scope in Scope]
    keys = [*good, *(key for key in plane.bad_keys().values() if key.startswith("mfy_"))]
    for (method, path, _), key in itertools.product(ROWS, keys):
        plane.send(method, path, key)

    written = json.dumps(plane.lines)
    replied = "".join(f"{reply.headers}{reply.body!r}" for reply in plane.replies)
    assert len(plane.lines) == len(ROWS) * len(keys)
    assert not [text for text in secrets_of(keys) if text in written or text in replied]
    logged = {line["key"] for line in plane.lines if "key" in line}
    assert logged >= {parse_key(key) for key in good}
