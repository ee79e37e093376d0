"""Files with which a new stack adopts the buckets and table of a deleted one."""

import json
from pathlib import Path

from local.template import Template
from scripts.adopt import main

KEPT = {"ArtifactsBucket": "up", "ServingBucket": "served", "RegistryTable": "registry"}


def test_the_files_name_what_a_deleted_stack_keeps(tmp_path: Path) -> None:
    names = ["--artifacts", "up", "--serving", "served", "--table", "registry"]
    main([*names, "--folder", str(tmp_path)])

    template = json.loads((tmp_path / "adopt-template.json").read_text())["Resources"]
    imports = json.loads((tmp_path / "adopt-resources.json").read_text())
    ours = Template.load("template.yaml")
    retained = {
        name
        for name, resource in ours.document["Resources"].items()
        if resource.get("DeletionPolicy") == "RetainExceptOnCreate"
    }
    assert template.keys() == KEPT.keys() == retained
    assert {
        i["LogicalResourceId"]: next(iter(i["ResourceIdentifier"].values())) for i in imports
    } == KEPT
    # A deployment over the import creates no index that the table has already.
    assert template["RegistryTable"]["Properties"] == ours.properties("RegistryTable")
    assert "Ref" not in json.dumps(template)
