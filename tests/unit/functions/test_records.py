"""Records behave as the dataclasses that they replace in a cold start."""

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from functions.core.records import field, mutable_record, record, replace


@record
class Point:
    """Point with a tag that tells no two points apart."""

    x: int
    y: int = 0
    path: list[str] = field(default_factory=list)
    tag: str = field(default="", compare=False, repr=False)

    @property
    def sum(self) -> int:
        return self.x + self.y


@dataclasses.dataclass(frozen=True, slots=True)
class Twin:
    """Dataclass with the same fields."""

    x: int
    y: int = 0
    path: list[str] = dataclasses.field(default_factory=list)
    tag: str = dataclasses.field(default="", compare=False, repr=False)


@mutable_record
class Counter:
    """Count that may change."""

    count: int = 0


@record
class Pair:
    """Two values that have a hash."""

    first: str
    second: int = 2


@pytest.mark.parametrize(
    "arguments", [((1,), {}), ((1, 2), {"tag": "a"}), ((), {"x": 1, "path": ["p"]})]
)
def test_a_record_is_made_compared_and_shown_as_a_dataclass(
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
) -> None:
    values, named = arguments
    point, twin = Point(*values, **named), Twin(*values, **named)

    assert repr(point) == repr(twin).replace("Twin", "Point")
    assert dataclasses.astuple(point) == dataclasses.astuple(twin)
    assert point == Point(*values, **named) == replace(point, tag="other")
    assert point != replace(point, x=9)
    assert point != twin


@pytest.mark.parametrize("arguments", [((), {}), ((1, 2, [], "", 5), {}), ((1,), {"z": 1})])
def test_wrong_arguments_are_refused_with_the_name_of_the_record(
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
) -> None:
    for _ in range(2):  # the first call compiles __init__
        with pytest.raises(TypeError, match=r"Point\.__init__\(\)"):
            Point(*arguments[0], **arguments[1])


def test_a_record_cannot_change_and_has_a_hash() -> None:
    pair = Pair("a")
    with pytest.raises(AttributeError, match=r"Pair\.first cannot be changed"):
        pair.first = "b"
    with pytest.raises(AttributeError):
        del pair.first
    with pytest.raises(AttributeError):
        pair.third = 3

    assert {pair, Pair("a", 2)} == {pair}


def test_a_mutable_record_changes_and_has_no_hash() -> None:
    counter = Counter()
    counter.count += 1

    assert counter == Counter(1)
    with pytest.raises(TypeError, match="unhashable"):
        hash(counter)
    with pytest.raises(AttributeError):
        counter.other = 1


def test_a_default_made_anew_is_shared_by_no_two_records() -> None:
    first, second = Point(1), Point(1)
    first.path.append("a")

    assert second.path == []


def test_the_functions_of_dataclasses_take_records() -> None:
    point = dataclasses.replace(Point(1, tag="a"), y=2)

    assert (point.sum, point.tag) == (3, "a")
    assert dataclasses.asdict(point) == {"x": 1, "y": 2, "path": [], "tag": "a"}
    assert [entry.name for entry in dataclasses.fields(Point)] == ["x", "y", "path", "tag"]


def test_a_mutable_default_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Bad\.values"):

        @record
        class Bad:
            values: list[int] = []  # noqa: RUF012


def test_records_need_neither_dataclasses_nor_inspect() -> None:
    script = """
import sys
from functions.core.registry.version import Source
assert Source("b", "k", "v") == Source("b", "k", object_version="v")
print({"dataclasses", "inspect"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True)

    assert (done.stdout, done.stderr) == ("set()\n", "")
