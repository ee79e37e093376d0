"""Write import files that adopt a deleted stack's buckets and table.

    python -m scripts.adopt --artifacts NAME --serving NAME --table NAME

CloudFormation imports them with `aws cloudformation create-change-set --change-set-type IMPORT`;
docs/operations.md has the commands.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from local.template import Template

# CloudFormation's name of each resource's identifier
IDENTIFIERS = {
    "ArtifactsBucket": "BucketName",
    "ServingBucket": "BucketName",
    "RegistryTable": "TableName",
}


def template_of(source: Template) -> dict[str, Any]:
    """Return a template of the kept resources alone, without references to others.

    The table keeps its properties: an update would create indexes that exist already. A bucket
    needs none; the next deployment sets them again.
    """
    table = source.properties("RegistryTable")
    resources = {
        name: {
            "Type": source.document["Resources"][name]["Type"],
            "DeletionPolicy": "Retain",
            "UpdateReplacePolicy": "Retain",
            **({"Properties": table} if name == "RegistryTable" else {}),
        }
        for name in IDENTIFIERS
    }
    return {"AWSTemplateFormatVersion": "2010-09-09", "Resources": resources}


def imports(names: dict[str, str], template: dict[str, Any]) -> list[dict[str, Any]]:
    """Return CloudFormation's list of existing resources to import."""
    return [
        {
            "ResourceType": template["Resources"][logical_id]["Type"],
            "LogicalResourceId": logical_id,
            "ResourceIdentifier": {identifier: names[logical_id]},
        }
        for logical_id, identifier in IDENTIFIERS.items()
    ]


def main(arguments: list[str] | None = None) -> None:
    """Write adopt-template.json and adopt-resources.json into the folder."""
    parser = argparse.ArgumentParser(prog="python -m scripts.adopt", description=__doc__)
    parser.add_argument("--artifacts", required=True, help="ArtifactsBucketName of the old stack")
    parser.add_argument("--serving", required=True, help="ServingBucketName of the old stack")
    parser.add_argument("--table", required=True, help="RegistryTableName of the old stack")
    parser.add_argument("--folder", type=Path, default=Path(".aws-sam"), help="[%(default)s]")
    options = parser.parse_args(arguments)
    names = dict(zip(IDENTIFIERS, (options.artifacts, options.serving, options.table), strict=True))
    template = template_of(Template.load("template.yaml"))
    options.folder.mkdir(exist_ok=True)
    for name, content in {"template": template, "resources": imports(names, template)}.items():
        path = options.folder / f"adopt-{name}.json"
        path.write_text(json.dumps(content, indent=2))
        print(f"wrote {path}")  # noqa: T201


if __name__ == "__main__":
    main()
