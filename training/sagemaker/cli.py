"""Submit a recipe as a SageMaker training or tuning job."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from training.errors import InvalidJob, TrainingError
from training.hyperparameters import pairs
from training.sagemaker.training_job import Job, build, job_name
from training.sagemaker.validation import EXAMPLE_ROLE, validate
from training.tuning import study

LOCAL_STACK = "http://127.0.0.1:8081"
LOCAL_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",
}  # real ones stay at home
EXAMPLE_BUCKET = "my-artifacts"


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    try:
        return _submit(_options(arguments), environ)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training train RECIPE --on sagemaker",
        description="Run a recipe as a training job.",
    )
    parser.add_argument("recipe", help="a built-in recipe (digits) or a .py file that defines one")
    parser.add_argument(
        "--on", choices=["sagemaker", "local-stack"], default="sagemaker", help="[%(default)s]"
    )
    parser.add_argument(
        "--bucket", help="the artifacts bucket [$MAYFLY_BUCKET; on the local stack: its own]"
    )
    parser.add_argument("--role", help="ARN of the role the job runs as [$MAYFLY_ROLE]")
    parser.add_argument("--model", help="name of the model [the recipe's]")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a hyperparameter: lr=3e-4"
    )
    parser.add_argument(
        "--data", "--channel", action="append", default=[], metavar="NAME=S3URI", help="input data"
    )
    parser.add_argument("--seeds", metavar="N", help="train N times; the first is written")
    parser.add_argument("--compress", metavar="KINDS", help="as in training here")
    parser.add_argument("--budget", help="share of the metric a compressed form may lose")
    study.add_options(parser, "sagemaker")
    parser.add_argument(
        "--backend",
        choices=["boto3", "sagemaker"],
        default="boto3",
        help="what sends the request: boto3, or the SageMaker SDK where it is installed",
    )
    parser.add_argument("--region", help="[$AWS_REGION, $AWS_DEFAULT_REGION or us-east-1]")
    parser.add_argument("--instance", default=Job.instance_type, help="instance type [%(default)s]")
    parser.add_argument(
        "--instances", type=int, default=Job.instances, metavar="N", help="hosts, by torchrun [1]"
    )
    parser.add_argument(
        "--processes", type=int, metavar="N", help="on each host, by torchrun [one for each GPU]"
    )
    parser.add_argument("--image", help="container image [AWS's PyTorch image for the instance]")
    parser.add_argument(
        "--spot",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="a spot instance, or not",
    )
    parser.add_argument("--max-runtime", type=int, default=Job.max_runtime_s, metavar="SECONDS")
    parser.add_argument(
        "--max-wait", type=int, metavar="SECONDS", help="for a spot instance, runtime included"
    )
    parser.add_argument(
        "--retries",
        type=int,
        default=Job.retries,
        metavar="N",
        help="after SageMaker's own errors, 30 at most",
    )
    parser.add_argument(
        "--volume", type=int, default=Job.volume_gb, metavar="GB", help="[%(default)s]"
    )
    parser.add_argument(
        "--keep-alive", type=int, default=0, metavar="SECONDS", help="warm pool after the job"
    )
    parser.add_argument("--kms-key", help="encrypts volume and output")
    parser.add_argument("--subnet", action="append", default=[])
    parser.add_argument("--security-group", action="append", default=[])
    parser.add_argument(
        "--wheels",
        type=Path,
        metavar="DIR",
        help="packages for a job without a way to the package index",
    )
    parser.add_argument("--tag", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the request; send and upload nothing"
    )
    parser.add_argument("--wait", action="store_true", help="follow the job to its end")
    return parser.parse_args(arguments)


def _submit(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from training import manifest
    from training.sagemaker import backends, tuning_job

    if options.on == "local-stack":
        os.environ["AWS_ENDPOINT_URL"] = environ.get("AWS_ENDPOINT_URL", LOCAL_STACK)
        os.environ |= LOCAL_CREDENTIALS
    region = (
        options.region
        or environ.get("AWS_REGION")
        or environ.get("AWS_DEFAULT_REGION")
        or Job.region
    )
    code = backends.collect_code(options.recipe, options.wheels)
    hyperparameters = pairs(options.set)
    name, task = backends.check_recipe(options.recipe, hyperparameters)
    bucket = _bucket(options, environ, region)
    job = Job(
        name=job_name(options.model or name),
        recipe=code.entry,
        model=options.model or name,
        bucket=bucket,
        role=_role(options, environ),
        code_uri=code.uri(bucket),
        region=region,
        hyperparameters=hyperparameters,
        channels=pairs(options.data, "--data"),
        instance_type=options.instance,
        image=options.image,
        spot=options.spot,
        max_runtime_s=options.max_runtime,
        max_wait_s=options.max_wait,
        volume_gb=options.volume,
        retries=options.retries,
        keep_alive_s=options.keep_alive,
        kms_key=options.kms_key,
        subnets=options.subnet,
        security_groups=options.security_group,
        tags=pairs(options.tag, "--tag"),
        code_revision=manifest.code_revision(environ),
        task=task,
        instances=options.instances,
        processes=options.processes,
        arguments=_passed_on(options),
    )
    send = backends.BACKENDS[options.backend]
    if options.tune and (options.search == "sagemaker" or not options.dry_run):
        if options.search == "sagemaker":
            found = tuning_job.run(job, options, code)
            if found is None:
                return 0
        else:
            code.upload(bucket, region)
            found = study.over_jobs(job, options, send)
        job = replace(job, hyperparameters={**hyperparameters, **found})
    request = build(job)
    validate(request)
    if options.dry_run:
        print(json.dumps(request, indent=2, ensure_ascii=False))
        return 0
    code.upload(bucket, region)
    send(request, region)
    print(f"submitted {job.name}", flush=True)
    if options.wait:
        backends.wait(job.name, region)
    return 0


def _bucket(options: argparse.Namespace, environ: Mapping[str, str], region: str) -> str:
    from training.sagemaker import backends

    bucket: str | None = options.bucket or environ.get("MAYFLY_BUCKET")
    if bucket:
        return bucket
    if options.dry_run:
        return EXAMPLE_BUCKET
    if options.on == "local-stack":
        return backends.artifacts_bucket(region)
    raise InvalidJob("name the artifacts bucket: --bucket, or MAYFLY_BUCKET")


def _role(options: argparse.Namespace, environ: Mapping[str, str]) -> str:
    role: str | None = options.role or environ.get("MAYFLY_ROLE")
    if role:
        return role
    if options.dry_run or options.on == "local-stack":
        return EXAMPLE_ROLE
    raise InvalidJob("name the role the job runs as: --role, or MAYFLY_ROLE")


def _passed_on(options: argparse.Namespace) -> tuple[str, ...]:
    """The arguments that mean the same in the job."""
    given = {"--seeds": options.seeds, "--compress": options.compress, "--budget": options.budget}
    return tuple(part for name, value in given.items() if value for part in (name, value))


if __name__ == "__main__":
    sys.exit(main())
