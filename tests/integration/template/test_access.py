"""template.yaml after the SAM transform: who may do what, and what survives a deletion.

No emulator enforces these rules.
"""

import json
from typing import Any

import pytest

from tests.integration.template.transformed import (
    Deployment,
    actions,
    allowed_actions,
    of_type,
    policies,
    resource_names,
)

# Actions for which AWS knows no resources
WITHOUT_RESOURCE = {"cloudwatch:PutMetricData", "ecr:GetAuthorizationToken"}
LOGGING = {"logs:CreateLogStream", "logs:PutLogEvents"}
KEY = "arn:aws:kms:us-east-1:123456789012:key/k"

# Whole permissions of each role: statement → actions, resources, and the keys of its table items
ROLES: dict[str, dict[str, tuple[set[str], set[str], set[str]]]] = {
    "RegisterFunctionRole": {
        "ReadUploads": (
            {"s3:GetObject", "s3:GetObjectVersion"},
            {"ArtifactsBucket/models/*"},
            set(),
        ),
        "OrderUploads": ({"s3:ListBucketVersions"}, {"ArtifactsBucket"}, set()),
        "MissingIs404": ({"s3:ListBucket"}, {"ArtifactsBucket", "ServingBucket"}, set()),
        "StoreBlobs": (
            {"s3:PutObject", "s3:GetObject", "s3:AbortMultipartUpload"},
            {"ServingBucket/blobs/*"},
            set(),
        ),
        "Registry": (
            {"dynamodb:BatchGetItem", "dynamodb:PutItem"},
            {"RegistryTable"},
            {"MODEL#*", "BLOB#*", "UPLOAD#*", "IGNORED"},
        ),
        "PutOffUploads": ({"sqs:SendMessage"}, {"RegistrationQueue"}, set()),
        "StartCanaries": ({"states:StartExecution"}, {"CanaryStateMachine"}, set()),
        "TakeUploads": (
            {
                *("sqs:ReceiveMessage", "sqs:DeleteMessage"),
                *("sqs:ChangeMessageVisibility", "sqs:GetQueueAttributes"),
            },
            {"RegistrationQueue"},
            set(),
        ),
        "WriteLog": (LOGGING, {"RegisterLogs"}, set()),
    },
    "ReconcileFunctionRole": {
        "ListUploads": ({"s3:ListBucketVersions"}, {"ArtifactsBucket"}, set()),
        "ListBlobs": ({"s3:ListBucketVersions", "s3:ListBucket"}, {"ServingBucket"}, set()),
        "CheckAndCollectBlobs": (
            {"s3:GetObject", "s3:DeleteObjectVersion"},
            {"ServingBucket/blobs/*"},
            set(),
        ),
        "Registry": (
            {"dynamodb:BatchGetItem", "dynamodb:PutItem"},
            {"RegistryTable"},
            {"MODEL#*", "BLOB#*", "RECONCILE"},
        ),
        "ReadUsage": ({"dynamodb:BatchGetItem"}, {"RegistryTable"}, {"USAGE#*"}),
        "SumUsage": ({"dynamodb:PutItem"}, {"RegistryTable"}, {"USAGE#ALL#*"}),
        "AliasesOfEarlierReleases": ({"dynamodb:Query"}, {"RegistryTable"}, {"MODEL#*"}),
        "Listings": (
            {"dynamodb:Query"},
            {"RegistryTable/index/listing", "RegistryTable/index/pending"},
            set(),
        ),
        "SendUploads": ({"sqs:SendMessage"}, {"RegistrationQueue"}, set()),
        "DeadLetters": (
            {
                *("sqs:ReceiveMessage", "sqs:ChangeMessageVisibility", "sqs:DeleteMessage"),
                *("sqs:StartMessageMoveTask", "sqs:GetQueueAttributes"),
            },
            {"RegistrationDeadLetters"},
            set(),
        ),
        "WriteLog": (LOGGING, {"ReconcileLogs"}, set()),
    },
    "InferFunctionRole": {
        "ReadBlobs": ({"s3:GetObject"}, {"ServingBucket/blobs/*"}, set()),
        "MissingIs404": ({"s3:ListBucket"}, {"ServingBucket"}, set()),
        "ReadRegistry": (
            {"dynamodb:GetItem", "dynamodb:BatchGetItem", "dynamodb:Query"},
            {"RegistryTable", "RegistryTable/index/listing"},
            set(),
        ),
        "CountUsage": ({"dynamodb:UpdateItem"}, {"RegistryTable"}, {"USAGE#*"}),
        "ServingSwitch": (
            {"dynamodb:PutItem", "dynamodb:ConditionCheckItem"},
            {"RegistryTable"},
            {"SERVING#*"},
        ),
        "WriteLog": (LOGGING, {"InferLogs"}, set()),
    },
    "GenerateFunctionRole": {
        "ReadBlobs": ({"s3:GetObject"}, {"ServingBucket/blobs/*"}, set()),
        "MissingIs404": ({"s3:ListBucket"}, {"ServingBucket"}, set()),
        "ReadRegistry": (
            {"dynamodb:GetItem", "dynamodb:BatchGetItem", "dynamodb:Query"},
            {"RegistryTable", "RegistryTable/index/listing"},
            set(),
        ),
        "CountUsage": ({"dynamodb:UpdateItem"}, {"RegistryTable"}, {"USAGE#*"}),
        "WriteLog": (LOGGING, {"GenerateLogs"}, set()),
    },
    "ManageFunctionRole": {
        "ReadModelsAndKeys": (
            {"dynamodb:BatchGetItem", "dynamodb:Query"},
            {"RegistryTable"},
            {"MODEL#*", "SERVING#*", "KEY#*", "USAGE#*"},
        ),
        "ChangeModelsAndKeys": ({"dynamodb:PutItem"}, {"RegistryTable"}, {"MODEL#*", "KEY#*"}),
        "BeginQuotas": ({"dynamodb:PutItem"}, {"RegistryTable"}, {"USAGE#KEY#*"}),
        "DeleteAliases": ({"dynamodb:DeleteItem"}, {"RegistryTable"}, {"MODEL#*"}),
        "ListModelsKeysAndAudit": (
            {"dynamodb:Query"},
            {"RegistryTable/index/listing"},
            {"MODEL", "ARCHIVED", "VERSION", "AUDIT", "KEY", "UPLOAD", "USAGE"},
        ),
        "StartCanaries": ({"states:StartExecution"}, {"CanaryStateMachine"}, set()),
        "Uploads": ({"dynamodb:BatchGetItem", "dynamodb:PutItem"}, {"RegistryTable"}, {"UPLOAD#*"}),
        "RepeatedChanges": (
            {
                *("dynamodb:GetItem", "dynamodb:PutItem"),
                *("dynamodb:UpdateItem", "dynamodb:DeleteItem"),
            },
            {"RegistryTable"},
            {"IDEMPOTENCY"},
        ),
        "SignUploads": ({"s3:PutObject"}, {"ArtifactsBucket/models/*"}, set()),
        "SeeUploads": ({"s3:GetObject"}, {"ArtifactsBucket/models/*"}, set()),
        "MissingIs404": ({"s3:ListBucket"}, {"ArtifactsBucket"}, set()),
        "DeadLetters": ({"lambda:InvokeFunction"}, {"ReconcileFunction"}, set()),
        "ReadSamples": ({"s3:GetObject"}, {"ServingBucket/blobs/*"}, set()),
        "WriteLog": (LOGGING, {"ManageLogs"}, set()),
    },
    "JudgeFunctionRole": {
        "Aliases": (
            {"dynamodb:BatchGetItem", "dynamodb:PutItem"},
            {"RegistryTable"},
            {"MODEL#*"},
        ),
        "Counters": ({"dynamodb:Query"}, {"RegistryTable"}, {"USAGE#*"}),
        "WriteLog": (LOGGING, {"JudgeLogs"}, set()),
    },
    "CanaryStateMachineRole": {"Judge": ({"lambda:InvokeFunction"}, {"JudgeFunction"}, set())},
}


def leading_keys(statement: dict[str, Any]) -> set[str]:
    """Return the partition keys of the only table items that a statement allows."""
    condition = statement.get("Condition", {})
    return set(condition.get("ForAllValues:StringLike", {}).get("dynamodb:LeadingKeys", ()))


@pytest.mark.parametrize("role", ROLES)
def test_a_function_has_these_permissions_and_no_others(
    role: str, resources: dict[str, Any]
) -> None:
    permissions = {
        statement["Sid"]: (
            set(actions(statement)),
            set(resource_names(statement)),
            leading_keys(statement),
        )
        for name, statement in policies(resources)
        if name == role
    }

    assert permissions == ROLES[role]
    # AWS's managed policies reach every queue and every log of the account.
    assert "ManagedPolicyArns" not in resources[role]["Properties"]


def test_every_write_to_the_table_is_bound_to_partitions(resources: dict[str, Any]) -> None:
    writes = {"dynamodb:PutItem", "dynamodb:UpdateItem", "dynamodb:DeleteItem"}
    for name, statement in policies(resources):
        if writes & set(actions(statement)):
            assert leading_keys(statement), name


def test_no_role_may_do_everything_or_touch_everything(deployment: Deployment) -> None:
    everything = {"KmsKeyArn": KEY, "TrainingDataBucket": "data", "AccessLog": "with-role"}
    statements = list(policies(deployment.with_parameters(**everything).resources))

    assert {name for name, _ in statements} == {*ROLES, "TrainingRole"}
    for name, statement in statements:
        assert not any("*" in action for action in actions(statement)), name
        if set(actions(statement)) - WITHOUT_RESOURCE:
            assert "*" not in resource_names(statement), (name, statement)


def test_nothing_is_deleted_but_blob_versions_aliases_and_repeats(
    resources: dict[str, Any],
) -> None:
    deleting = [
        (name, action, resource_names(statement))
        for name, statement in policies(resources)
        for action in actions(statement)
        if "Delete" in action and not action.startswith("sqs:")
    ]

    blobs = ["ServingBucket/blobs/*"]
    assert deleting == [
        ("ManageFunctionRole", "dynamodb:DeleteItem", ["RegistryTable"]),  # aliases
        ("ManageFunctionRole", "dynamodb:DeleteItem", ["RegistryTable"]),  # replies for repeats
        ("ReconcileFunctionRole", "s3:DeleteObjectVersion", blobs),
    ]
    versioning = resources["ServingBucket"]["Properties"]["VersioningConfiguration"]
    assert versioning == {"Status": "Enabled"}


def test_the_only_items_that_may_be_deleted_are_aliases_and_replies_for_repeats(
    resources: dict[str, Any],
) -> None:
    deleting = [
        (name, leading_keys(statement))
        for name, statement in policies(resources)
        if "dynamodb:DeleteItem" in actions(statement)
    ]

    assert deleting == [
        ("ManageFunctionRole", {"MODEL#*"}),
        ("ManageFunctionRole", {"IDEMPOTENCY"}),
    ]


def test_training_jobs_write_to_folders_of_their_own(resources: dict[str, Any]) -> None:
    writable = [
        resource_names(statement)
        for name, statement in policies(resources)
        if name == "TrainingRole" and "s3:PutObject" in actions(statement)
    ]

    assert writable == [[f"ArtifactsBucket/{f}/*" for f in ("models", "trials", "checkpoints")]]
    trust = resources["TrainingRole"]["Properties"]["AssumeRolePolicyDocument"]["Statement"]
    assert [statement["Principal"] for statement in trust] == [
        {"Service": "sagemaker.amazonaws.com"}
    ]
    assert trust[0]["Condition"] == {
        "StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}
    }


def test_a_training_key_is_for_jobs_and_register_alone(deployment: Deployment) -> None:
    without = policies(deployment.resources)
    with_key = policies(deployment.with_parameters(KmsKeyArn=KEY).resources)
    using = [(role, s) for role, s in with_key if any("kms:" in action for action in actions(s))]

    assert not [s for _, s in without if any("kms:" in action for action in actions(s))]
    assert {role for role, _ in using} == {"RegisterFunctionRole", "TrainingRole"}
    [(_, register)] = [pair for pair in using if pair[0] == "RegisterFunctionRole"]
    assert actions(register) == ["kms:Decrypt"]
    assert "kms:ViaService" in register["Condition"]["StringEquals"]
    for _, statement in using:
        assert statement["Resource"] == {"Ref": "KmsKeyArn"}


def test_another_bucket_of_data_is_only_read(deployment: Deployment) -> None:
    resources = deployment.with_parameters(TrainingDataBucket="data").resources
    statements = [s for _, s in policies(resources) if "TrainingDataBucket" in json.dumps(s)]

    assert [actions(statement) for statement in statements] == [["s3:GetObject", "s3:ListBucket"]]


@pytest.mark.parametrize("function", ["InferFunction", "GenerateFunction"])
def test_a_function_is_told_of_a_missing_blob(function: str, resources: dict[str, Any]) -> None:
    # Without s3:ListBucket, S3 answers 403 for a missing object, and not 404.
    assert "s3:ListBucket" in allowed_actions(resources, f"{function}Role")


@pytest.mark.parametrize(
    "function", ["RegisterFunction", "ReconcileFunction", "InferFunction", "GenerateFunction"]
)
def test_every_function_names_the_owner_of_its_buckets(
    function: str, resources: dict[str, Any]
) -> None:
    variables = resources[function]["Properties"]["Environment"]["Variables"]
    assert variables["BUCKET_OWNER"] == {"Ref": "AWS::AccountId"}


# --- data


def test_every_bucket_is_private_encrypted_and_versioned(resources: dict[str, Any]) -> None:
    buckets = of_type(resources, "AWS::S3::Bucket")
    assert buckets.keys() == {"ArtifactsBucket", "ServingBucket"}
    for bucket in buckets.values():
        assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
        assert bucket["OwnershipControls"]["Rules"] == [{"ObjectOwnership": "BucketOwnerEnforced"}]
        assert bucket["BucketEncryption"]
        assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}


@pytest.mark.parametrize(
    ("kind", "policy", "target"),
    [
        ("AWS::S3::Bucket", "AWS::S3::BucketPolicy", "Bucket"),
        ("AWS::SQS::Queue", "AWS::SQS::QueuePolicy", "Queues"),
    ],
)
def test_buckets_and_queues_are_reached_by_tls_only(
    resources: dict[str, Any], kind: str, policy: str, target: str
) -> None:
    refusing = {
        reference["Ref"]
        for properties in of_type(resources, policy).values()
        for reference in as_list(properties[target])
        for statement in properties["PolicyDocument"]["Statement"]
        if statement["Effect"] == "Deny"
        and statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
        and statement["Principal"] == "*"
        and set(resource_names(statement)) >= {reference["Ref"]}
    }

    assert refusing == of_type(resources, kind).keys()


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def test_the_queue_takes_messages_of_s3_in_this_account_alone(resources: dict[str, Any]) -> None:
    statements = resources["RegistrationQueuePolicy"]["Properties"]["PolicyDocument"]["Statement"]
    [allowing] = [statement for statement in statements if statement["Effect"] == "Allow"]

    assert allowing["Principal"] == {"Service": "s3.amazonaws.com"}
    assert allowing["Condition"] == {
        "StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}
    }


def test_models_and_registry_survive_the_stack_once_it_was_created(
    resources: dict[str, Any],
) -> None:
    kept = {
        name
        for name, resource in resources.items()
        if resource.get("DeletionPolicy") == "RetainExceptOnCreate"
    }

    assert kept == {"ArtifactsBucket", "ServingBucket", "RegistryTable"}
    assert {resources[name]["UpdateReplacePolicy"] for name in kept} == {"Retain"}


def test_the_registry_is_encrypted_and_can_be_brought_back(resources: dict[str, Any]) -> None:
    table = resources["RegistryTable"]["Properties"]

    assert table["DeletionProtectionEnabled"] == {"Ref": "DeletionProtection"}
    assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    assert table["SSESpecification"] == {"SSEEnabled": True}
