"""Text that a person sees once the local stack is up."""

import shlex
from dataclasses import replace
from pathlib import Path

from local.screen import Screen

SCREEN = Screen(
    api_url="http://127.0.0.1:8080/live",
    root_url="http://127.0.0.1:8082",
    endpoint_url="http://127.0.0.1:8081",
    lambda_url="http://127.0.0.1:8083",
    log_dir=Path("logs"),
    bucket="mayfly-artifactsbucket",
    table="mayfly-RegistryTable",
    functions=["RegisterFunction", "InferFunction"],
    models=["digits"],
    key="mfy_id_secret",
    outputs={"RegistryTableName": "mayfly-registry"},
)


def test_exports_can_be_pasted_into_a_shell() -> None:
    exports = [line.strip() for line in SCREEN.text().splitlines() if "export" in line]
    assigned = dict(word.split("=", 1) for line in exports for word in shlex.split(line)[1:])

    assert assigned["API"] == SCREEN.api_url
    assert assigned["BUCKET"] == SCREEN.bucket
    assert assigned["TABLE"] == SCREEN.table
    assert (assigned["MAYFLY_URL"], assigned["MAYFLY_KEY"]) == ("$API", SCREEN.key)
    assert assigned["AWS_ENDPOINT_URL_LAMBDA"] == SCREEN.lambda_url
    assert assigned["AWS_ENDPOINT_URL"] == SCREEN.endpoint_url
    assert assigned.keys() >= {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"}


def test_addresses_outputs_and_the_model_are_named() -> None:
    text = SCREEN.text()

    for address in (SCREEN.root_url, SCREEN.lambda_url, "mayfly-registry", "InferFunction"):
        assert address in text
    assert 'curl -s -H "x-api-key: $MAYFLY_KEY" $API/v2/models/digits' in text
    assert "python -m mayfly keys create --function ManageFunction" in text
    assert "Ctrl-C" in text


def test_the_last_lines_are_the_consoles_address_and_the_key() -> None:
    assert SCREEN.text().splitlines()[-2:] == [
        f"Console: {SCREEN.api_url}/console/",
        f"Key:     {SCREEN.key}",
    ]


def test_without_a_key_no_line_has_one() -> None:
    text = replace(SCREEN, key="").text()

    assert "MAYFLY_KEY" not in text
    assert "keys create" not in text
    assert text.endswith("/console/")
    assert "curl -s $API/v2/models/digits" in text
