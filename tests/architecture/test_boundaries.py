"""Rules that hold across files: imports, environment variables, layers, Makefile, events."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from local.template import Template

FUNCTIONS = Path("functions")
CORE = FUNCTIONS / "core"
RUNTIME = FUNCTIONS / "runtime"
# Fast codecs and digests; all other files of core use the standard library.
CODECS_IN_CORE = {
    "openai/fields.py": {"orjson"},
    "openai/messages.py": {"orjson"},
    "openai/tool_calls.py": {"orjson"},
    "protocol/fast_decoder.py": {"orjson"},
    "protocol/infer_reply.py": {"orjson"},
    "registration/digests.py": {"blake3"},
    "serving/http.py": {"orjson", "pybase64"},
    "serving/request_log.py": {"orjson"},
}


def imports(path: Path) -> Iterator[str]:
    """Yield the top-level package of each import in a module, also of those in functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).split(".")[0]


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=str)
def test_core_imports_the_standard_library_and_codecs_in_listed_files(path: Path) -> None:
    foreign = set(imports(path)) - sys.stdlib_module_names - {"functions"}

    assert foreign == CODECS_IN_CORE.get(path.relative_to(CORE).as_posix(), set())


def test_the_runtime_client_imports_the_standard_library_alone() -> None:
    foreign = {name for path in RUNTIME.rglob("*.py") for name in imports(path)}

    assert foreign - sys.stdlib_module_names == {"functions"}


def test_only_main_reads_the_environment() -> None:
    readers = {
        path
        for path in FUNCTIONS.rglob("*.py")
        if re.search(r"os\.(environ|getenv)", path.read_text())
    }

    # the adapter of ONNX Runtime sets a variable, to switch telemetry off, and reads none
    assert readers <= {*FUNCTIONS.glob("*/main.py"), FUNCTIONS / "adapters/onnx/capi.py"}


@pytest.mark.parametrize(
    "function",
    [
        "RegisterFunction",
        "InferFunction",
        "GenerateFunction",
        "ReconcileFunction",
        "ManageFunction",
        "JudgeFunction",
    ],
)
def test_the_template_sets_every_variable_that_main_reads_and_no_other(function: str) -> None:
    declared = Template.load("template.yaml").functions[function]
    source = (FUNCTIONS / declared.handler.split(".")[1] / "main.py").read_text()
    if "ServingEnvironment(os.environ)" in source:
        source += (FUNCTIONS / "adapters/aws_http/environment.py").read_text()
    read = set(re.findall(r"[\"']([A-Z][A-Z0-9_]{3,})[\"']", source))
    of_lambda = {name for name in read if name.startswith("AWS_")} | {"LD_LIBRARY_PATH", "TMPDIR"}
    of_libraries = {
        "AWS_ENDPOINT_URL",
        "AWS_LAMBDA_EXEC_WRAPPER",
        "ORT_DISABLE_TELEMETRY",
        "POWERTOOLS_SERVICE_NAME",
        "POWERTOOLS_METRICS_NAMESPACE",
        "RUNTIME_CLIENT",
    }

    assert read - of_lambda - of_libraries == set(declared.environment) - of_libraries


def test_no_function_unpickles_evaluates_or_unpacks_archives_with_a_library() -> None:
    banned = {"pickle", "marshal", "shelve", "tarfile", "zipfile", "joblib", "dill"}
    for path in FUNCTIONS.rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert not banned & set(imports(path)), path
        called = {
            node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        allowed = {"exec"} if path == CORE / "records.py" else set()  # of names in our source
        assert {"eval", "exec", "__import__"} & called == allowed, path


def test_functions_import_the_packages_of_layers_and_runtime() -> None:
    # The layers have onnxruntime, too: its library is loaded, its Python package never imported.
    in_layers = {
        "aws_lambda_powertools",
        "blake3",
        "llguidance",
        "minijinja",
        "orjson",
        "pybase64",
        "pydantic",
        "tokenizers",
    }
    in_runtime = {"boto3", "botocore", "snapshot_restore_py"}
    imported = {name for path in FUNCTIONS.rglob("*.py") for name in imports(path)}

    assert imported - sys.stdlib_module_names - {"functions"} == in_layers | in_runtime


def test_every_make_target_has_a_description() -> None:
    text = Path("Makefile").read_text()
    [phony] = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)

    assert set(re.findall(r"^([a-z0-9-]+):.*## ", text, re.MULTILINE)) == set(phony.split())


def test_every_event_file_is_json_and_used() -> None:
    sources = [Path("README.md"), *Path("tests").rglob("*.py"), *Path("benchmarks").rglob("*.py")]
    used = "".join(path.read_text() for path in sources)
    for path in Path("events").glob("*.json"):
        assert yaml.safe_load(path.read_text())
        assert path.stem in used, f"nothing uses {path}"
