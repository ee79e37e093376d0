"""Bootstrap: the contract as variables, SIGTERM forwarded, failures with their reason."""

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from training.sagemaker import bootstrap

SCRIPT = Path(bootstrap.__file__)


def make_base(folder: Path, hyperparameters: dict[str, str] | None = None, code: str = "") -> Path:
    """Fill `folder` as SageMaker fills /opt/ml."""
    (folder / "input" / "config").mkdir(parents=True)
    (folder / "input" / "data" / "code").mkdir(parents=True)
    (folder / "input" / "data" / "code" / "entry.py").write_text(code, encoding="utf-8")
    files = {
        "hyperparameters": hyperparameters or {},
        "inputdataconfig": {"code": {}, "train-set": {}},
        "resourceconfig": {
            "current_host": "algo-1",
            "hosts": ["algo-1"],
            "current_instance_type": "ml.g5.xlarge",
        },
    }
    for name, content in files.items():
        (folder / "input" / "config" / f"{name}.json").write_text(
            json.dumps(content), encoding="utf-8"
        )
    return folder


def start(base: Path, **more: str) -> "subprocess.Popen[str]":
    environment = {"PATH": os.environ["PATH"], "SAGEMAKER_BASE_DIR": str(base), **more}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), "entry.py"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_contract_becomes_variables(tmp_path: Path) -> None:
    variables = bootstrap.contract(
        make_base(tmp_path, {"note": "o'brien", "flag": "true"}), {"KEPT": "1"}
    )

    assert variables["SM_MODEL_DIR"] == str(tmp_path / "model")
    assert variables["SM_CHANNEL_CODE"] == str(tmp_path / "input" / "data" / "code")
    assert variables["SM_CHANNEL_TRAIN-SET"] == str(tmp_path / "input" / "data" / "train-set")
    assert json.loads(variables["SM_CHANNELS"]) == ["code", "train-set"]
    assert json.loads(variables["SM_HPS"]) == {"note": "o'brien", "flag": "true"}
    assert variables["SM_CURRENT_INSTANCE_TYPE"] == "ml.g5.xlarge"
    assert variables["KEPT"] == "1"


@pytest.mark.parametrize(
    "text", ["o'brien", 'a "b" c', "grün 数 🪰", "$(touch x); `y`", "line\nbreak", "true"]
)
def test_hyperparameters_reach_the_script_unharmed(tmp_path: Path, text: str) -> None:
    code = """
import json, os, pathlib
pathlib.Path(os.environ["SM_MODEL_DIR"], "x").write_text(json.loads(os.environ["SM_HPS"])["note"])
"""
    start(make_base(tmp_path, {"note": text}, code), PYTHONUTF8="1").communicate(timeout=10)

    assert (tmp_path / "model" / "x").read_text(encoding="utf-8") == text


def test_sagemakers_own_hyperparameters_are_left_out(tmp_path: Path) -> None:
    hyperparameters = {
        "lr": "0.1",
        "sagemaker_program": "training/sagemaker/bootstrap.py",
        "_tuning_objective_metric": "validation:rmse",
    }

    assert json.loads(bootstrap.contract(make_base(tmp_path, hyperparameters), {})["SM_HPS"]) == {
        "lr": "0.1"
    }


def test_jobs_of_one_tuning_job_do_not_share_checkpoints(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    environ = {"TRAINING_JOB_NAME": "mlp-007"}

    assert bootstrap.contract(base, environ)["SM_CHECKPOINT_DIR"] == str(tmp_path / "checkpoints")
    variables = bootstrap.contract(base, environ | {"MAYFLY_RECIPE": "mlp"})
    assert variables["SM_CHECKPOINT_DIR"] == str(tmp_path / "checkpoints" / "mlp-007")


def cluster(folder: Path, hosts: int, environ: dict[str, str]) -> list[str]:
    """Return torchrun's part of the command on the second host, or on the only one."""
    base = make_base(folder)
    names = [f"algo-{number}" for number in range(hosts, 0, -1)]
    resources = {"current_host": names[0], "hosts": names, "network_interface_name": "eth0"}
    (base / "input" / "config" / "resourceconfig.json").write_text(json.dumps(resources))
    return bootstrap.torchrun(bootstrap.contract(base, environ))


def test_several_hosts_meet_at_the_first(tmp_path: Path) -> None:
    assert cluster(tmp_path, 2, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}) == [
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--node-rank=1",
        "--nproc-per-node=4",
        "--master-addr=algo-1",
        "--master-port=29500",
        "--shutdown-timeout=110",
    ]


@pytest.mark.parametrize(
    ("environ", "processes"),
    [
        ({"CUDA_VISIBLE_DEVICES": ""}, 1),
        ({"CUDA_VISIBLE_DEVICES": "2"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "MAYFLY_PROCESSES": "1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "", "MAYFLY_PROCESSES": "3"}, 3),
    ],
)
def test_one_process_runs_on_each_gpu_by_default(
    tmp_path: Path, environ: dict[str, str], processes: int
) -> None:
    started = cluster(tmp_path, 1, environ)

    assert started == [] if processes == 1 else f"--nproc-per-node={processes}" in started
    assert processes == 1 or "--master-addr=127.0.0.1" in started  # no name to look up


def test_hosts_talk_over_the_network_that_sagemaker_names(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    resources = {
        "current_host": "algo-1",
        "hosts": ["algo-1", "algo-2"],
        "network_interface_name": "eth7",
    }
    (base / "input" / "config" / "resourceconfig.json").write_text(json.dumps(resources))
    variables = bootstrap.contract(base, {"NCCL_SOCKET_IFNAME": "mine"})

    interfaces = (variables["GLOO_SOCKET_IFNAME"], variables["NCCL_SOCKET_IFNAME"])
    assert interfaces == ("eth7", "mine")


def test_the_older_contract_names_the_recipe_in_a_variable(tmp_path: Path) -> None:
    """The arguments are hyperparameters, and the code lies beside bootstrap.py."""
    package = tmp_path / "code" / "training"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "train.py").write_text("import os, sys; print(sys.argv[1:], os.getcwd())")
    (package / "sagemaker").mkdir()
    (package / "sagemaker" / "bootstrap.py").write_text(SCRIPT.read_text())
    base = make_base(tmp_path / "ml")
    (base / "input" / "config" / "inputdataconfig.json").write_text("{}")
    environment = {
        "PATH": os.environ["PATH"],
        "SAGEMAKER_BASE_DIR": str(base),
        "MAYFLY_RECIPE": "mlp",
    }
    done = subprocess.run(
        [sys.executable, str(package / "sagemaker" / "bootstrap.py"), "--lr", "0.1"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == f"['mlp'] {tmp_path / 'code'}\n"


def test_sigterm_reaches_the_script_which_may_save_its_state(tmp_path: Path) -> None:
    code = """
import pathlib, signal, sys
def stop(*_):
    pathlib.Path("saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
while True:
    signal.pause()
"""
    process = start(make_base(tmp_path, code=code))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)

    assert process.returncode == 143
    assert (tmp_path / "input" / "data" / "code" / "saved").exists()
    assert not (tmp_path / "output" / "failure").exists()  # being stopped is no failure


def test_a_failure_leaves_the_end_of_its_traceback(tmp_path: Path) -> None:
    error = "boom: channel 'train' has 3 columns, expected 64"
    code = f"def load():\n    raise ValueError({error!r})\nload()\n"
    process = start(make_base(tmp_path, code=code))
    process.communicate(timeout=10)
    reason = (tmp_path / "output" / "failure").read_text()

    assert process.returncode == 1
    assert reason.endswith("ValueError: boom: channel 'train' has 3 columns, expected 64")
    assert "in load" in reason
    assert len(reason) <= 1024


def test_a_long_traceback_loses_its_beginning(tmp_path: Path) -> None:
    code = """
def f(n):
    if n == 0: raise KeyError('the end')
    f(n - 1) if n % 2 else f(n - 1)
f(60)
"""
    start(make_base(tmp_path, code=code)).communicate(timeout=10)
    reason = (tmp_path / "output" / "failure").read_text()

    assert reason.endswith("KeyError: 'the end'")
    assert len(reason) <= 1024


def test_the_scripts_own_failure_file_stays(tmp_path: Path) -> None:
    code = "import os, sys; open(os.environ['SM_OUTPUT_FAILURE'], 'w').write('mine'); sys.exit(3)"
    process = start(make_base(tmp_path, code=code))
    process.communicate(timeout=10)

    assert process.returncode == 3
    assert (tmp_path / "output" / "failure").read_text() == "mine"


def test_a_killed_script_is_reported_as_killed(tmp_path: Path) -> None:
    process = start(
        make_base(tmp_path, code="import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    )
    process.communicate(timeout=10)

    assert process.returncode == 137
    assert (tmp_path / "output" / "failure").read_text() == "killed by SIGKILL; out of memory?"


def test_only_missing_packages_are_installed(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text(
        "# a comment\nnumpy>=1  # here\n\nno-such-package-here>=0.7,<0.8\n"
    )

    assert list(bootstrap.missing_requirements(tmp_path / "requirements.txt")) == [
        "no-such-package-here>=0.7,<0.8"
    ]


@pytest.mark.parametrize("place", ["training/requirements.txt", "requirements.txt"])
def test_uploaded_wheels_need_no_package_index(tmp_path: Path, place: str) -> None:
    base = make_base(tmp_path, code="import no_such_package_here; print(no_such_package_here.WORD)")
    code = base / "input" / "data" / "code"
    for folder in ("training", "wheels"):
        (code / folder).mkdir()
    (code / place).write_text("no-such-package-here>=1\n")
    about = "no_such_package_here-1.0.dist-info"
    with zipfile.ZipFile(
        code / "wheels" / "no_such_package_here-1.0-py3-none-any.whl", "w"
    ) as wheel:
        wheel.writestr("no_such_package_here.py", "WORD = 'brought along'")
        wheel.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: no-such-package-here\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{about}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{about}/RECORD", "")
    target = str(tmp_path / "installed")  # and not this interpreter's own packages
    process = start(base, PIP_TARGET=target, PYTHONPATH=target, PIP_INDEX_URL="http://127.0.0.1:9/")
    out, errors = process.communicate(timeout=60)

    assert process.returncode == 0, errors
    shown = f"-r {code / place}" if place == "requirements.txt" else "no-such-package-here>=1"
    assert out.splitlines() == [f"installing {shown}", "brought along"]


def test_a_failed_installation_is_the_reason(tmp_path: Path) -> None:
    base = make_base(tmp_path, code="print('never')")
    (base / "input" / "data" / "code" / "training").mkdir()
    (base / "input" / "data" / "code" / "training" / "requirements.txt").write_text(
        "no-such-package-here==1\n"
    )
    process = start(base, PIP_NO_INDEX="1")
    out, _ = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "never" not in out
    assert "no-such-package-here" in (tmp_path / "output" / "failure").read_text()
