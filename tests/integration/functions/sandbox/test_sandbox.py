"""Sandbox process under hostile code: limits, isolation, bounded time, malformed answers."""

import contextlib
import errno
import json
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from functions.adapters import child_process
from functions.adapters.child_process import Limits
from functions.adapters.descendants import adopt_orphans
from functions.adapters.sandbox import ProcessSandbox
from functions.core.errors import InvalidModel, Unavailable
from functions.core.registration.sandbox_protocol import Brief
from functions.core.uploads import Form
from tests.models import scale_model

# The real start with the work replaced: `work` gets the task, `m` is the module of the process.
HOSTILE_START = """
import sys, json, os, signal, time, resource
sys.path[:] = json.loads(sys.argv.pop(1))
from functions.sandbox import __main__ as m
from functions.core.errors import InvalidModel
out = int(sys.argv[2])
def tell(value):
    raise InvalidModel(json.dumps(value), code="REPORTED")
def work(task):
{body}
m._step = lambda name: work
{filter}
m.main(sys.argv[1], out, int(sys.argv[3]), json.loads(sys.argv[4]))
"""
UNFILTERED = "m.restrict_system_calls = lambda: False"  # as on a kernel without seccomp
MB = 1024 * 1024


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for folder in ("upload", "package", "serving"):
        (tmp_path / folder).mkdir()
    (tmp_path / "upload/model.onnx").write_bytes(scale_model())
    return tmp_path


Unpack = Callable[..., object]


HostileSandbox = Callable[..., ProcessSandbox]


@pytest.fixture
def hostile_sandbox(monkeypatch: pytest.MonkeyPatch) -> HostileSandbox:
    """Return a factory for sandboxes that execute given hostile code."""

    def make(
        body: str, *, wait_s: float = 300, filtered: bool = True, **limits: int
    ) -> ProcessSandbox:
        start = HOSTILE_START.format(
            body=textwrap.indent(textwrap.dedent(body), "    "),
            filter="" if filtered else UNFILTERED,
        )
        monkeypatch.setattr(child_process, "_START", start)
        memory_mb = limits.pop("memory_mb", 512)
        sandbox = ProcessSandbox(Limits(memory_mb, **limits))
        sandbox.wait_at_most(wait_s)
        return sandbox

    return make


@pytest.fixture
def unpack(hostile_sandbox: HostileSandbox, directory: Path) -> Unpack:
    """Return a function that runs hostile code in the place of `unpack`."""

    def run(body: str, **options: Any) -> object:
        return hostile_sandbox(body, **options).unpack(Form.ONNX, directory)

    return run


def run_hostile(unpack: Unpack, body: str, **limits: int) -> object:
    with pytest.raises(InvalidModel) as caught:
        unpack(body, **limits)
    assert caught.value.instance_code == "REPORTED", caught.value
    return json.loads(str(caught.value))


def test_a_good_model_passes_both_steps_with_and_without_spares(
    directory: Path,
) -> None:
    for spare in (False, True):
        sandbox = ProcessSandbox(spare=spare)
        try:
            unpacked = sandbox.unpack(Form.ONNX, directory)
            built = sandbox.build(Brief(unpacked.model), directory)
        finally:
            sandbox.close()

        assert [spec.name for spec in built.signature.inputs] == ["x"]
        assert {path.name for path in (directory / "serving").iterdir()} == set(built.files)
        assert [usage.step for usage in sandbox.used] == ["unpack", "build"]
        for path in (directory / "serving").iterdir():
            path.unlink()
        (directory / "upload/model.onnx").write_bytes(scale_model())


def test_unknown_protobuf_fields_are_ignored(directory: Path) -> None:
    (directory / "upload/model.onnx").write_bytes(
        scale_model() + b"\xfd\x3e1234" + b"\xf9\x3e12345678"
    )

    sandbox = ProcessSandbox()

    assert sandbox.build(Brief(sandbox.unpack(Form.ONNX, directory).model), directory).files


def test_the_process_sees_only_its_own_environment(
    unpack: Unpack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")

    assert set(run_hostile(unpack, "tell(dict(os.environ))")) <= {
        "ORT_DISABLE_TELEMETRY",
        "OPENBLAS_NUM_THREADS",
        "LC_CTYPE",
    }


def test_the_process_inherits_no_descriptors(unpack: Unpack, tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        found = run_hostile(
            unpack,
            "tell({fd: os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')"
            " if os.path.exists(f'/proc/self/fd/{fd}')})",
        )

    assert (
        len([path for path in found.values() if path.startswith("pipe:")]) == 2
    )  # its task and its answer
    assert {path for path in found.values() if not path.startswith(("pipe:", "/proc/"))} <= {
        "/dev/null"
    }


def test_the_process_has_its_own_session_and_directory(unpack: Unpack, directory: Path) -> None:
    found = run_hostile(
        unpack,
        "tell([os.getsid(0) == os.getpid(), os.getcwd(),"
        " sys.flags.isolated, sys.flags.no_site, '' in sys.path])",
    )

    assert found == [True, str(directory), 1, 1, False]


def test_the_process_gains_no_privileges(unpack: Unpack) -> None:
    status = run_hostile(
        unpack,
        "tell([line for line in open('/proc/self/status') if line.startswith('NoNewPrivs')])",
    )

    assert status == ["NoNewPrivs:\t1\n"]


@pytest.mark.skipif(not os.getuid(), reason="root reads everything")
def test_the_process_cannot_read_its_parents_environment(unpack: Unpack) -> None:
    body = """
        try:
            open(f"/proc/{os.getppid()}/environ").read()
        except PermissionError:
            tell("kept out")
    """
    assert run_hostile(unpack, body) == "kept out"


def test_limits_are_set_before_the_task_is_read(unpack: Unpack) -> None:
    names = ["DATA", "AS", "CPU", "FSIZE", "NOFILE", "CORE"]
    found = run_hostile(
        unpack,
        f"tell([resource.getrlimit(getattr(resource, 'RLIMIT_' + n)) for n in {names}])",
        memory_mb=400,
        address_mb=1000,
        cpu_s=7,
        file_mb=5,
        files=33,
    )

    assert found == [[400 * MB] * 2, [1400 * MB] * 2, [7, 9], [5 * MB] * 2, [33, 33], [0, 0]]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SANDBOX_CRASHED"),
        ("os.kill(os.getpid(), signal.SIGFPE)", "SANDBOX_CRASHED"),
        ("os.abort()", "SANDBOX_CRASHED"),
        ("os._exit(0)", "SANDBOX_CRASHED"),
        ("sys.exit(3)", "SANDBOX_CRASHED"),
        ("raise KeyError('a fault of ours')", "SANDBOX_CRASHED"),
        ("def deeper(): deeper()\ndeeper()", "SANDBOX_CRASHED"),
        ("os.kill(os.getpid(), signal.SIGKILL if b'x' * 300_000_000 else 0)", "SANDBOX_MEMORY"),
        ("bytearray(600 * 1024 * 1024)", "SANDBOX_MEMORY"),
        ("time.sleep(60)", "SANDBOX_TIMEOUT"),
        (
            "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\ntime.sleep(60)",
            "SANDBOX_TIMEOUT",
        ),
        ("while True: pass", "SANDBOX_TIMEOUT"),
        ("signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "SANDBOX_TIMEOUT"),
        ("os.close(out)\ntime.sleep(60)", "SANDBOX_TIMEOUT"),
        ("m._write_line(out, 'x' * 20_000_000)", "SANDBOX_BAD_ANSWER"),
        ("while True: os.write(out, b'x' * 65536)", "SANDBOX_BAD_ANSWER"),
        ("m._write_line(out, 'no json')", "SANDBOX_BAD_ANSWER"),
        ("m._write_line(out, '[' * 100_000)", "SANDBOX_BAD_ANSWER"),
        ("m._write_line(out, '{\"model\": NaN}')", "SANDBOX_BAD_ANSWER"),
        ("m._write_line(out, '1' * 5000)", "SANDBOX_BAD_ANSWER"),
        ("return {}", "SANDBOX_BAD_ANSWER"),
        ("return []", "SANDBOX_BAD_ANSWER"),
        ("return {'model': 'm', 'weights': [{}], 'manifest': False}", "SANDBOX_BAD_ANSWER"),
        ("return {'rejected': {'code': 'no code', 'message': ''}}", "SANDBOX_BAD_ANSWER"),
        ("open('big', 'wb').truncate(2**40)", "SANDBOX_CRASHED"),
        ("[os.open('/', 0) for _ in range(500)]", "SANDBOX_CRASHED"),
    ],
)
def test_hostile_code_ends_in_a_rejection_in_time(
    unpack: Unpack, monkeypatch: pytest.MonkeyPatch, body: str, code: str
) -> None:
    monkeypatch.setattr(child_process, "REST_S", 1)
    began = time.monotonic()

    with pytest.raises(InvalidModel) as caught:
        unpack(body, cpu_s=1, file_mb=64)

    assert caught.value.instance_code == code
    assert time.monotonic() - began < 50  # without limits some would take 60 s


def test_a_model_that_uses_up_its_processor_time_is_told_how_much(unpack: Unpack) -> None:
    with pytest.raises(InvalidModel, match="not checked within 1 s of processor time"):
        unpack("while True: pass", cpu_s=1)


def test_a_machine_without_time_for_the_child_puts_the_upload_off(unpack: Unpack) -> None:
    with pytest.raises(Unavailable) as caught:
        unpack("while True: pass", wait_s=0.5)

    assert caught.value.instance_code == "SANDBOX_BUSY"
    assert re.search(r"got \d+\.\d of 30 s of processor time; the queue", str(caught.value))


def test_a_child_killed_far_from_its_limits_puts_the_upload_off(unpack: Unpack) -> None:
    with pytest.raises(Unavailable, match="ended from outside") as caught:
        unpack("os.kill(os.getpid(), signal.SIGKILL)", memory_mb=16 * 1024)

    assert caught.value.instance_code == "SANDBOX_BUSY"


def test_a_child_that_waits_for_its_own_thread_does_not_hang(
    unpack: Unpack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_process, "REST_S", 1)
    body = """
        import threading
        def spin():
            while time.thread_time() < 3: pass
        thread = threading.Thread(target=spin)
        thread.start()
        thread.join()
        tell("done")
    """

    assert run_hostile(unpack, body) == "done"


@pytest.mark.parametrize(
    ("states", "hangs"), [("SS", True), ("ST", True), ("SR", False), ("DS", False)]
)
def test_threads_that_wait_for_a_processor_or_a_disk_do_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: str, hangs: bool
) -> None:
    monkeypatch.setattr(child_process, "REST_S", 0)
    for number, state in enumerate(states):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "stat").write_text(f"7 (a) b) {state} {' 5' * 48}")
    wait = child_process._Wait(os.getpid(), deadline=0)
    wait._tasks = tmp_path
    wait.cause_to_end()  # the first look only counts the ticks

    assert (wait.cause_to_end() == "hangs") is hangs
    (tmp_path / "0" / "stat").write_text(f"7 (a) b) S {' 6' * 48}")
    assert wait.cause_to_end() == "late"  # it got processor time in between


def test_refill_starts_the_missing_spares(directory: Path) -> None:
    sandbox = ProcessSandbox(spare=True)
    try:
        sandbox.unpack(Form.ONNX, directory)
        assert [len(spares) for spares in sandbox._spares.values()] == [0, 1]
        sandbox.refill()
        sandbox.refill()
        assert [len(spares) for spares in sandbox._spares.values()] == [1, 1]
    finally:
        sandbox.close()


# Each starts a process that outlives the child, writes its pid to the file `pid`, and works on.
LEFT_BEHIND = {
    "the same group": "fork(work_on)",
    "a session of its own": "fork(lambda: (os.setsid(), work_on()))",
    "forked twice": "fork(lambda: (os.setsid(), fork(work_on), os._exit(0)))",
    "forked thrice": "fork(lambda: (os.setsid(), fork(lambda: (fork(work_on), os._exit(0)))))",
    "a chain that forks on": """
def chain():
    while True:
        if os.fork():
            os._exit(0)
        os.setsid()
        note()
fork(chain)""",
}
FORK = """
def fork(run):
    if not os.fork():
        run()
        os._exit(0)
def note():
    open('written', 'w').write(str(os.getpid()))
    os.rename('written', 'pid')
def work_on():
    for signum in range(1, 32):
        if signum not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(signum, signal.SIG_IGN)
    while True:
        note()
def wait():
    while not os.path.exists('pid'):
        time.sleep(0.01)
"""


@pytest.mark.parametrize(
    ("start", "end"),
    [
        *((start, "return {}") for start in LEFT_BEHIND),
        ("forked twice", "os._exit(0)"),
        ("forked twice", "time.sleep(60)"),
    ],
)
def test_no_process_outlives_its_child(
    unpack: Unpack, directory: Path, start: str, end: str
) -> None:
    with pytest.raises(InvalidModel) as caught:
        unpack(f"{FORK}{LEFT_BEHIND[start]}\nwait()\n{end}", filtered=False, wait_s=5)

    assert caught.value.instance_code == "SANDBOX_BAD_ANSWER"
    assert not psutil.pid_exists(int((directory / "pid").read_text()))
    (directory / "pid").unlink()  # nothing is left that writes it again
    left = [process for process in psutil.Process().children() if "functions" in _command(process)]
    assert left == []
    assert not (directory / "pid").exists()


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended
        return ""


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: answer["signature"]["inputs"][0].update(datatype=[]),
        lambda answer: answer["measured"].update(load_ms=10**400),
        lambda answer: answer.update(files=[["model.onnx"]]),
    ],
)
def test_values_of_impossible_types_are_a_bad_answer(
    monkeypatch: pytest.MonkeyPatch, directory: Path, change: Callable[[Any], None]
) -> None:
    sandbox = ProcessSandbox()
    unpacked = sandbox.unpack(Form.ONNX, directory)
    run = ProcessSandbox._run

    def answer(*arguments: Any) -> Any:
        fields = run(*arguments)
        change(fields)
        return fields

    monkeypatch.setattr(ProcessSandbox, "_run", answer)
    with pytest.raises(InvalidModel) as caught:
        sandbox.build(Brief(unpacked.model), directory)

    assert caught.value.instance_code == "SANDBOX_BAD_ANSWER"
    assert sandbox.suspect


OWNER = """
import os
from functions.adapters.sandbox import ProcessSandbox
sandbox = ProcessSandbox(spare=True)
for [child] in sandbox._spares.values():
    child._read_line(float("inf"))  # its limits are set
os._exit(0)
"""


def test_spares_of_another_process_that_ended_are_no_orphans_of_an_upload(directory: Path) -> None:
    adopt_orphans()
    subprocess.run([sys.executable, "-c", OWNER], check=True)
    sandbox = ProcessSandbox()

    assert sandbox.unpack(Form.ONNX, directory).model == "model.onnx"
    assert sandbox.build(Brief("model.onnx"), directory)


def test_ending_what_is_left_spares_other_children(unpack: Unpack, directory: Path) -> None:
    spare = ProcessSandbox(spare=True)
    other = subprocess.Popen(["/bin/sleep", "600"])
    try:
        with pytest.raises(InvalidModel):
            unpack(f"{FORK}fork(work_on)\nwait()\nreturn {{}}", filtered=False)
        spares = [child for spares in spare._spares.values() for child in spares]
        assert [child._process.poll() for child in spares] == [None, None]
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
        spare.close()


@pytest.mark.parametrize(
    "call",
    [
        "os.fork()",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.execv('/bin/true', ['true'])",
        "os.setsid()",
        "os.kill(os.getppid(), 0)",
        "os.kill(0, 0)",
        "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
        "__import__('socket').socket()",
        "__import__('socket').socketpair()",
        "signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0)",
        "libc('ptrace', 16, os.getppid(), 0, 0)",  # PTRACE_ATTACH
        "libc('process_vm_readv', os.getppid(), 0, 0, 0, 0, 0)",
        "libc('unshare', 0x10000000)",  # CLONE_NEWUSER
        "fcntl.fcntl(out, fcntl.F_SETOWN, os.getppid())",  # SIGIO, or with F_SETSIG any signal
        "fcntl.fcntl(out, 10, signal.SIGKILL)",  # F_SETSIG
        "libc('prctl', 1, 0)",  # PR_SET_PDEATHSIG: to outlive the parent
        "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "os.sched_setaffinity(os.getppid(), [0])",
        "os.sched_setscheduler(os.getppid(), os.SCHED_IDLE, os.sched_param(0))",
        "libc('shmget', 0, 4096, 0o1600)",
        "os.memfd_create('hidden')",
        "libc('mmap', 0, 4096, 3, 0x21, -1, 0)",  # MAP_SHARED | MAP_ANONYMOUS
    ],
)
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux alone has the filter")
def test_the_process_may_not_reach_other_processes(unpack: Unpack, call: str) -> None:
    body = f"""
        import ctypes, fcntl
        def libc(name, *arguments):
            library = ctypes.CDLL(None, use_errno=True)
            if getattr(library, name)(*map(ctypes.c_long, arguments)) < 0:
                raise OSError(ctypes.get_errno(), name)
        try:
            {call}
            tell("allowed")
        except OSError as error:
            tell(error.errno)
    """
    assert run_hostile(unpack, body) == errno.EPERM


def test_the_process_may_start_threads(unpack: Unpack) -> None:
    body = """
        import threading
        answers = []
        thread = threading.Thread(target=answers.append, args=["ran"])
        thread.start()
        thread.join()
        tell(answers)
    """
    assert run_hostile(unpack, body) == ["ran"]


@pytest.mark.parametrize(
    ("body", "suspect"),
    [
        ("os._exit(0)", True),
        ("return {}", True),
        ("time.sleep(60)", True),
        ("tell('a rejection')", False),
        ("bytearray(600 * 1024 * 1024)", False),
    ],
)
def test_a_crash_lie_or_timeout_makes_the_sandbox_suspect(
    hostile_sandbox: HostileSandbox,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    suspect: bool,
) -> None:
    monkeypatch.setattr(child_process, "REST_S", 1)
    sandbox = hostile_sandbox(body)

    with pytest.raises(InvalidModel):
        sandbox.unpack(Form.ONNX, directory)

    assert sandbox.suspect is suspect


def test_a_process_that_cannot_start_is_unavailable(
    unpack: Unpack, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(Unavailable, match="no process could be started"):
        ProcessSandbox().unpack(Form.ONNX, directory)


def test_code_that_does_not_load_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    monkeypatch.setattr(child_process, "_START", "import nothing_of_this_name")
    with pytest.raises(Unavailable, match="did not start"):
        ProcessSandbox().unpack(Form.ONNX, directory)


@pytest.mark.parametrize("waited", [False, True])
def test_a_spare_that_died_is_replaced(directory: Path, waited: bool) -> None:
    sandbox = ProcessSandbox(spare=True)
    try:
        for [child] in sandbox._spares.values():
            if waited:  # it had reported that it is ready
                select.select([child._answers], [], [])
            os.kill(child._process.pid, signal.SIGKILL)
            os.waitid(os.P_PID, child._process.pid, os.WEXITED | os.WNOWAIT)
        assert sandbox.unpack(Form.ONNX, directory).model == "model.onnx"
    finally:
        sandbox.close()


PARENT = """
import sys, tempfile
from pathlib import Path
from functions.adapters import child_process, sandbox
from functions.core.uploads import Form
child_process._START = sys.argv[1]
directory = Path(sys.argv[2])
sandbox.ProcessSandbox(spare=False).unpack(Form.ONNX, directory)
"""


def test_the_process_ends_when_its_parent_is_killed(directory: Path) -> None:
    body = """
    open('pid', 'w').write(str(os.getpid()))
    os.rename('pid', 'started')
    time.sleep(600)"""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, HOSTILE_START.format(body=body, filter=""), str(directory)]
    )
    try:
        started = directory / "started"
        deadline = time.monotonic() + 60
        while not started.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        pid = int(started.read_text())
        assert psutil.pid_exists(pid)
    finally:
        parent.kill()
        parent.wait()

    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with contextlib.suppress(ChildProcessError):  # this process may have adopted the orphan
        os.waitpid(pid, 0)
