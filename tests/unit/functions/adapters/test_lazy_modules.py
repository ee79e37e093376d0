"""orjson without the modules that it imports, and these for whoever uses them."""

import subprocess
import sys

SCRIPT = """
import sys
from functions.adapters.lazy_modules import defer_imports_of_orjson
defer_imports_of_orjson()
import orjson
assert orjson.loads(orjson.dumps({"a": [1.5, None, "ä"]})) == {"a": [1.5, None, "ä"]}
print({"inspect", "platform"} & set(sys.modules))
from dataclasses import dataclass, fields
@dataclass
class Point:
    x: int
    y: int = 2
assert [field.name for field in fields(Point(1))] == ["x", "y"]
import uuid
assert isinstance(uuid.uuid4(), uuid.UUID)
print("inspect" in sys.modules, sys.modules["dataclasses"]._FIELD is not None)
"""


def run(script: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path = {sys.path}" + script],
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_deferred_modules_load_on_their_first_use() -> None:
    assert run(SCRIPT) == ["set()", "True True"]


def test_loaded_modules_stay() -> None:
    script = "\nimport dataclasses as first\n" + SCRIPT
    script += "import dataclasses\nassert dataclasses is first\n"

    assert run(script)[1:] == ["True True"]
