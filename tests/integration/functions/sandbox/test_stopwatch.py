"""Times of runs in a process with a limit on its CPU time, as the sandbox has."""

import subprocess
import sys

CODE = """
import resource, time
from functions.sandbox.measure import Stopwatch

resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for threads in (1, 2):
    for _ in range(20):
        stopwatch, began = Stopwatch(threads), time.thread_time()
        while time.thread_time() - began < 0.0005:
            pass
        print(stopwatch.seconds())
"""


def test_short_runs_take_time_under_a_cpu_limit() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=120
    )

    assert min(map(float, done.stdout.split())) > 0.0004
