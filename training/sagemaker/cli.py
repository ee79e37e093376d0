"""Command line that submits training jobs and hyperparameter searches to SageMaker."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from training.errors import InvalidJob, InvalidRecipe, TrainingError
from training.hyperparameters import override, pairs
from training.manifest import code_revision
from training.recipe import Task
from training.recipe_loading import RECIPES, load
from training.runs.config import SAGEMAKER
from training.sagemaker import backends, job_config
from training.sagemaker.source_code import SourceCode, collect_code
from training.sagemaker.training_job import Job, build, job_name
from training.sagemaker.validation import EXAMPLE_ROLE, check_role, validate
from training.tuning.options import (
    BUDGET,
    add_run_options,
    add_search_options,
    require_optuna,
)

LOCAL_STACK = "http://127.0.0.1:8081"
LOCAL_CREDENTIALS = {  # placeholders: real ones are never sent to the local stack
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",
}
EXAMPLE_BUCKET = "my-artifacts"


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Submit a training job from the command line; return the exit status."""
    try:
        return _submit(parse(arguments), environ)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse a job's command line, over the options of a --config file.

    Raises:
        InvalidConfig: the file is missing, or has an option that is wrong or fits no job.
    """
    command = _parser()
    flags = command.parse_args(arguments)
    from_file = {}
    if flags.config is not None:
        from_file = job_config.read(flags.config, searches=flags.tune > 0)
        command.set_defaults(**from_file)
    options = command.parse_args(arguments)
    if options.recipe is None:
        command.error("give a RECIPE, or --config with one")
    job_config.check(flags.config, from_file, options.data, options.weights)
    if options.checkpoint_dir and not options.tune:
        raise InvalidJob(
            "--checkpoint-dir saves a search: add --tune; the checkpoints of a job are in S3, "
            "and --resume JOB continues from them"
        )
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training train RECIPE --on sagemaker",
        description="Run a recipe as a training job.",
    )
    add_run_options(parser, ["--data", "--channel"], "S3URI")
    add_search_options(parser, SAGEMAKER)
    _add_target_options(parser)
    _add_resource_options(parser)
    return parser


def _add_target_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--on", choices=["sagemaker", "local-stack"], default="sagemaker", help="[%(default)s]")
    add("--bucket", help="the artifacts bucket [$MAYFLY_BUCKET; on the local stack: its own]")
    add("--role", help="ARN of the role the job runs as [$MAYFLY_ROLE]")
    add("--region", help="[$AWS_REGION, $AWS_DEFAULT_REGION or us-east-1]")
    add("--model", help="name of the model [the recipe's]")
    add(
        "--backend",
        choices=["boto3", "sagemaker"],
        default="boto3",
        help="what sends the request: boto3, or the SageMaker SDK where it is installed",
    )
    add("--resume", metavar="JOB", help="continue from the checkpoint of an earlier job")
    add("--weights", metavar="S3URI", help="prefix of a checkpoint.pt to start from")
    add("--tag", action="append", default=[], metavar="NAME=VALUE")
    add("--dry-run", action="store_true", help="print the request; send and upload nothing")
    add("--wait", action="store_true", help="follow the job to its end")


def _add_resource_options(parser: argparse.ArgumentParser) -> None:
    def add_number(name: str, default: int | None, unit: str, text: str) -> None:
        parser.add_argument(name, type=int, default=default, metavar=unit, help=text)

    add = parser.add_argument
    add("--instance", default=Job.instance_type, help="instance type [%(default)s]")
    add_number("--instances", Job.instances, "N", "hosts, by torchrun [%(default)s]")
    add_number("--processes", None, "N", "on each host, by torchrun [one for each GPU]")
    add("--image", help="container image [AWS's PyTorch image for the instance]")
    spot = argparse.BooleanOptionalAction
    add("--spot", action=spot, default=True, help="a spot instance, or not")
    add_number("--max-runtime", Job.max_runtime_s, "SECONDS", "[%(default)s]")
    add_number("--max-wait", None, "SECONDS", "for a spot instance, runtime included")
    add_number("--retries", Job.retries, "N", "after SageMaker's own errors, 30 at most")
    add_number("--volume", Job.volume_gb, "GB", "[%(default)s]")
    add_number("--keep-alive", Job.keep_alive_s, "SECONDS", "warm pool after the job")
    add(
        "--source-dir",
        type=Path,
        metavar="DIR",
        help="send this folder with the recipe [the modules that the recipe imports]",
    )
    add("--requirements", type=Path, metavar="FILE", help="packages to install in the job")
    add("--kms-key", help="encrypts volume and output")
    add("--subnet", action="append", default=[])
    add("--security-group", action="append", default=[])
    add(
        "--wheels",
        type=Path,
        metavar="DIR",
        help="packages for a job without a way to the package index",
    )


def _submit(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    if options.on == "local-stack":
        os.environ["AWS_ENDPOINT_URL"] = environ.get("AWS_ENDPOINT_URL", LOCAL_STACK)
        os.environ |= LOCAL_CREDENTIALS
    code = collect_code(options.recipe, options.wheels, options.requirements, options.source_dir)
    job = _make_job(options, environ, code)
    if options.tune:
        best = _search(job, options, code)
        if best is None:
            return 0
        job = replace(job, hyperparameters={**job.hyperparameters, **best})
    request = build(job)
    validate(request)
    if options.dry_run:
        print(json.dumps(request, indent=2, ensure_ascii=False))
        return 0
    backends.upload_code(code, job.bucket, job.region)
    backends.BACKENDS[options.backend](request, job.region)
    print(f"submitted {job.name}", flush=True)
    if options.wait:
        backends.wait(job.name, job.region)
    return 0


def _search(job: Job, options: argparse.Namespace, code: SourceCode) -> Mapping[str, object] | None:
    """Search hyperparameters with training jobs; return the best settings, or None.

    None where a tuning job was only printed or only submitted. A dry run of another search tries
    nothing: the request of the last job is printed.
    """
    if options.dry_run and options.search != SAGEMAKER:
        return {}
    require_optuna()
    from training.sagemaker import trials, tuning_job  # they import Optuna: 0.3 s

    if options.search == SAGEMAKER:
        return tuning_job.run(job, options, code)
    backends.upload_code(code, job.bucket, job.region)
    return trials.run_over_jobs(job, options, backends.BACKENDS[options.backend])


def _make_job(options: argparse.Namespace, environ: Mapping[str, str], code: SourceCode) -> Job:
    region = _region(options, environ)
    hyperparameters = pairs(options.set)
    channels = pairs(options.data, "--data")
    if options.weights:
        channels["weights"] = options.weights
    for name in ("resume", "weights"):
        if options.tune and getattr(options, name):
            raise InvalidJob(f"--{name} is for one run and no search: leave out --tune")
    name, task = check_recipe(options.recipe, hyperparameters)
    bucket = _bucket(options, environ, region)
    return Job(
        name=job_name(options.model or name),
        recipe=code.entry,
        model=options.model or name,
        bucket=bucket,
        role=_role(options, environ),
        code_uri=code.uri(bucket),
        region=region,
        hyperparameters=hyperparameters,
        channels=channels,
        instance_type=options.instance,
        image=options.image,
        spot=options.spot,
        max_runtime_s=options.max_runtime,
        resume=options.resume,
        max_wait_s=options.max_wait,
        volume_gb=options.volume,
        retries=options.retries,
        keep_alive_s=options.keep_alive,
        kms_key=options.kms_key,
        subnets=options.subnet,
        security_groups=options.security_group,
        tags=pairs(options.tag, "--tag"),
        code_revision=code_revision(environ),
        expected=options.expected,
        task=task,
        instances=options.instances,
        processes=options.processes,
        arguments=_job_arguments(options),
    )


def check_recipe(recipe: str, hyperparameters: Mapping[str, object]) -> tuple[str, Task | None]:
    """Check a recipe and its hyperparameters; return the recipe's name and task.

    Mistakes are found here, before an instance is paid for.

    Where torch is missing, as beside the SageMaker SDK, a recipe cannot be loaded: its file's name
    is returned, and no task.

    Raises:
        TrainingError: there is no such recipe, or a hyperparameter is wrong.
    """
    if importlib.util.find_spec("torch") is None:
        if not recipe.endswith(".py") and not (RECIPES / f"{recipe}.py").is_file():
            raise InvalidRecipe(f"there is no recipe {recipe!r}")
        return Path(recipe).stem, None
    loaded = load(recipe)
    override(loaded.hyperparameters(), hyperparameters)
    return loaded.name, loaded.task


def _region(options: argparse.Namespace, environ: Mapping[str, str]) -> str:
    names = ("AWS_REGION", "AWS_DEFAULT_REGION")
    candidates = [options.region, *(environ.get(name) for name in names), Job.region]
    return str(next(filter(None, candidates)))


def _bucket(options: argparse.Namespace, environ: Mapping[str, str], region: str) -> str:
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
        check_role(role)  # here: botocore would complain of its length first
        return role
    if options.dry_run or options.on == "local-stack":
        return EXAMPLE_ROLE
    raise InvalidJob("name the role the job runs as: --role, or MAYFLY_ROLE")


def _job_arguments(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the command-line options for the training command inside a job.

    Options at their defaults are left out.
    """
    arguments: list[str] = []
    if options.seeds != 1:
        arguments += ["--seeds", str(options.seeds)]
    if options.compress:
        arguments += ["--compress", options.compress]
    if options.budget != BUDGET:
        arguments += ["--budget", str(options.budget)]
    return tuple(arguments)


if __name__ == "__main__":
    sys.exit(main())
