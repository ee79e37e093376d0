"""Memory of the current process, as Linux reports in /proc/self/status."""

from pathlib import Path


def memory_mb(field: str) -> float:
    """Return the process's VmRSS (resident memory) or VmHWM (peak) in MiB.

    Both include mapped files.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise LookupError(field)
