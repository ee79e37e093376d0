"""Training job of the tests."""

from training.sagemaker.training_job import Job

JOB = Job(
    name="digits-20261122-081530-1a2b",
    recipe="digits",
    model="digits",
    bucket="my-artifacts",
    role="arn:aws:iam::123456789012:role/training",
    code_uri="s3://my-artifacts/code/abc/",
    hyperparameters={"epochs": 3, "lr": "3e-4", "note": "o'brien", "flag": True},
)
