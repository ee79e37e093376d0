"""Print template.yaml before and after the SAM transform, offline.

Runs in .venv-sam, because SAM pins an older pydantic.
"""

import json
import os
from pathlib import Path
from typing import Any

from samcli.yamlhelper import yaml_parse
from samtranslator.translator.transform import transform

LOGS_POLICY = "arn:aws:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole"


class ManagedPolicies:
    """Loader of the managed IAM policies that SAM adds to functions."""

    def load(self) -> dict[str, str]:
        """Return the ARNs of managed IAM policies by name."""
        return {"AWSLambdaBasicExecutionRole": LOGS_POLICY}


def main() -> None:
    """Print {"before": template, "after": transformed template} as JSON."""
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    source: dict[str, Any] = yaml_parse(Path("template.yaml").read_text())
    for resource in source["Resources"].values():
        for name in {"CodeUri", "ContentUri"} & resource.get("Properties", {}).keys():
            resource["Properties"][name] = "s3://bucket/key"  # as if SAM CLI had uploaded the code
    defaults = {name: parameter["Default"] for name, parameter in source["Parameters"].items()}
    before = json.loads(json.dumps(source))
    after = transform(source, {**defaults, "AWS::Region": "us-east-1"}, ManagedPolicies())
    print(json.dumps({"before": before, "after": after}))  # noqa: T201


if __name__ == "__main__":
    main()
