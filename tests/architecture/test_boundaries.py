"""The rules that no single file can keep."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from local.template import Template

FUNCTIONS = Path("functions")
CODECS_IN_CORE = {  # what a request is spelled in: where it pays
    "http.py": {"pybase64"},
    "protocol.py": {"orjson"},
    "request_log.py": {"orjson"},
    "tensors.py": {"orjson"},
}


def imports(path: Path) -> Iterator[str]:
    """The first segment of everything that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).split(".")[0]


@pytest.mark.parametrize(
    "path", sorted((FUNCTIONS / "core").glob("*.py")), ids=lambda path: path.name
)
def test_core_knows_the_standard_library_and_codecs_only_where_these_are(path: Path) -> None:
    foreign = set(imports(path)) - sys.stdlib_module_names - {"functions"}

    assert foreign <= CODECS_IN_CORE.get(path.name, set())


def test_only_main_reads_the_environment() -> None:
    readers = {
        path
        for path in FUNCTIONS.rglob("*.py")
        if re.search(r"os\.(environ|getenv)", path.read_text())
    }

    # the runtime adapter switches telemetry off before it loads the library; it reads nothing
    assert readers <= {*FUNCTIONS.glob("*/main.py"), FUNCTIONS / "adapters/onnx/capi.py"}


@pytest.mark.parametrize("function", ["RegisterFunction", "InferFunction", "ReconcileFunction"])
def test_the_template_sets_every_variable_that_main_reads_and_no_other(function: str) -> None:
    declared = Template.load("template.yaml").functions[function]
    source = (FUNCTIONS / declared.handler.split(".")[1] / "main.py").read_text()
    read = set(re.findall(r"[\"']([A-Z][A-Z0-9_]{3,})[\"']", source))
    not_ours = {name for name in read if name.startswith("AWS_")} | {"LD_LIBRARY_PATH", "TMPDIR"}
    by_libraries = {
        "ORT_DISABLE_TELEMETRY",
        "POWERTOOLS_SERVICE_NAME",
        "POWERTOOLS_METRICS_NAMESPACE",
    }

    assert read - not_ours - by_libraries == set(declared.environment) - by_libraries


def test_nothing_is_unpickled_evaluated_or_unpacked_by_libraries() -> None:
    banned = {"pickle", "marshal", "shelve", "tarfile", "zipfile", "joblib", "dill"}
    for path in FUNCTIONS.rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert not banned & set(imports(path)), path
        called = {
            node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not {"eval", "exec", "__import__"} & called, path


def test_what_the_layers_hold_is_what_functions_import() -> None:
    held = {
        "aws_lambda_powertools",
        "orjson",
        "pybase64",
        "pydantic",
    }  # and onnxruntime, for its library
    in_the_runtime = {"boto3", "botocore", "snapshot_restore_py"}
    imported = {name for path in FUNCTIONS.rglob("*.py") for name in imports(path)}

    assert imported - sys.stdlib_module_names - {"functions"} == held | in_the_runtime


def test_every_make_target_is_described() -> None:
    text = Path("Makefile").read_text()
    [phony] = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)

    assert set(re.findall(r"^([a-z0-9-]+):.*## ", text, re.MULTILINE)) == set(phony.split())


def test_events_are_json_and_used() -> None:
    sources = [Path("README.md"), *Path("tests").rglob("*.py"), *Path("benchmarks").rglob("*.py")]
    used = "".join(path.read_text() for path in sources)
    for path in Path("events").glob("*.json"):
        assert yaml.safe_load(path.read_text())
        assert path.stem in used, f"nothing uses {path}"
