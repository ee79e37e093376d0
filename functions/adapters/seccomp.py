"""Seccomp system call filter for the process that checks uploaded models.

It forbids new processes, sockets, signals to other processes, changes of their priority, reading
their memory, and memory that outlives the process or that RLIMIT_DATA does not count. Threads stay
allowed. A kernel without seccomp leaves the process unfiltered: the resource limits, and the
parent that ends every descendant, do not depend on it.
"""

import ctypes
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Any

_SET_MODE_FILTER, _ALL_THREADS = 1, 1  # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # linux/bpf_common.h
_AND = 0x54
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
_EPERM, _ENOSYS = _ERRNO | 1, _ERRNO | 38
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_CLONE_THREAD = 0x00010000
_SHARED_ANONYMOUS = 0x21  # MAP_SHARED | MAP_ANONYMOUS: memory that RLIMIT_DATA does not count
_SET_PDEATHSIG = 1  # prctl: the process would outlive its parent
_SIGNAL_OTHERS = (8, 10, 15)  # fcntl F_SETOWN, F_SETSIG, F_SETOWN_EX: signals without kill()
_X32 = 0x40000000  # x86-64 system calls under other numbers begin here

# System calls that are numbered alike on every architecture, since Linux 5.0.
_NEW = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "pidfd_open": 434, "clone3": 435,
    "pidfd_getfd": 438, "process_madvise": 440,
}  # fmt: skip
# Machine -> (AUDIT_ARCH_*, numbers of system calls); asm/unistd_64.h and asm-generic/unistd.h.
_TABLES = {
    "x86_64": (0xC000003E, {
        "mmap": 9, "shmget": 29, "shmat": 30, "socket": 41, "socketpair": 53, "clone": 56,
        "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "semget": 64, "msgget": 68,
        "fcntl": 72, "ptrace": 101, "setpgid": 109, "setsid": 112, "rt_sigqueueinfo": 129,
        "setpriority": 141, "sched_setparam": 142, "sched_setscheduler": 144, "prctl": 157,
        "setrlimit": 160, "chroot": 161, "mount": 165, "tkill": 200, "sched_setaffinity": 203,
        "tgkill": 234, "mq_open": 240, "add_key": 248, "request_key": 249, "keyctl": 250,
        "ioprio_set": 251, "unshare": 272, "rt_tgsigqueueinfo": 297, "perf_event_open": 298,
        "prlimit64": 302, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311,
        "kcmp": 312, "sched_setattr": 314, "seccomp": 317, "memfd_create": 319, "bpf": 321,
        "execveat": 322, "userfaultfd": 323,
    }),
    "aarch64": (0xC00000B7, {
        "fcntl": 25, "ioprio_set": 30, "mount": 40, "chroot": 51, "unshare": 97, "ptrace": 117,
        "sched_setparam": 118, "sched_setscheduler": 119, "sched_setaffinity": 122, "kill": 129,
        "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "setpriority": 140, "setpgid": 154,
        "setsid": 157, "setrlimit": 164, "prctl": 167, "mq_open": 180, "msgget": 186,
        "semget": 190, "shmget": 194, "shmat": 196, "socket": 198, "socketpair": 199,
        "add_key": 217, "request_key": 218, "keyctl": 219, "clone": 220, "execve": 221,
        "mmap": 222, "rt_tgsigqueueinfo": 240, "perf_event_open": 241, "prlimit64": 261,
        "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272,
        "sched_setattr": 274, "seccomp": 277, "memfd_create": 279, "bpf": 280, "execveat": 281,
        "userfaultfd": 282,
    }),
}  # fmt: skip

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand
# Allow prlimit64 if its third argument, the new limit, is a null pointer in both halves.
_IF_IT_READS: list[Instruction] = [
    (_LOAD, 0, 0, _ARGUMENTS + 16),
    (_EQUAL, 0, 3, 0),
    (_LOAD, 0, 0, _ARGUMENTS + 20),
    (_EQUAL, 0, 1, 0),
    (_RETURN, 0, 0, _ALLOW),
    (_RETURN, 0, 0, _EPERM),
]


class _Program(ctypes.Structure):
    """C struct `sock_fprog`: length and instructions of a BPF filter."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def restrict_system_calls() -> bool:
    """Install a seccomp filter: no new processes, sockets or signals to others.

    It holds for all threads and cannot be undone. The process must have set PR_SET_NO_NEW_PRIVS.

    Returns:
        False if the kernel or the machine's architecture does not support the filter.
    """
    machine = os.uname().machine
    if machine not in _TABLES:
        return False
    code = b"".join(struct.pack("<HBBI", *instruction) for instruction in _filter(machine))
    program = _Program(len(code) // 8, code)
    seccomp = _TABLES[machine][1]["seccomp"]
    libc: Any = ctypes.CDLL(None)
    status = libc.syscall(seccomp, _SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(program))
    return bool(status == 0)


def _filter(machine: str) -> Iterator[Instruction]:
    """Yield BPF code that denies the listed system calls and allows others."""
    architecture, numbers = _TABLES[machine]
    numbers = numbers | _NEW
    yield _LOAD, 0, 0, _ARCHITECTURE
    yield _EQUAL, 1, 0, architecture
    yield _RETURN, 0, 0, _EPERM
    yield _LOAD, 0, 0, _NUMBER
    if machine == "x86_64":
        yield _AT_LEAST, 0, 1, _X32
        yield _RETURN, 0, 0, _EPERM
    yield from _when(numbers.pop("clone3"), [(_RETURN, 0, 0, _ENOSYS)])  # glibc falls back to clone
    yield from _when(numbers.pop("clone"), _if_argument(0, _ANY_BIT, _CLONE_THREAD))
    for name in ("kill", "tgkill"):  # abort() and raise() signal their own process
        yield from _when(numbers.pop(name), _if_argument(0, _EQUAL, os.getpid()))
    yield from _when(numbers.pop("prlimit64"), _IF_IT_READS)
    yield from _when(numbers.pop("prctl"), _unless_argument(0, _SET_PDEATHSIG))
    yield from _when(numbers.pop("fcntl"), _unless_argument(1, *_SIGNAL_OTHERS))
    shared = (_AND, 0, 0, _SHARED_ANONYMOUS)
    yield from _when(numbers.pop("mmap"), _unless_argument(3, _SHARED_ANONYMOUS, mask=[shared]))
    for number in numbers.values():
        yield from _when(number, [(_RETURN, 0, 0, _EPERM)])
    yield _RETURN, 0, 0, _ALLOW


def _when(number: int, instructions: list[Instruction]) -> list[Instruction]:
    """Return BPF code applying instructions to one system call only."""
    return [(_EQUAL, 0, len(instructions), number), *instructions]


def _if_argument(position: int, comparison: int, operand: int) -> list[Instruction]:
    """Return BPF code allowing system calls whose argument's low 32 bits match."""
    return [
        (_LOAD, 0, 0, _ARGUMENTS + 8 * position),
        (comparison, 0, 1, operand),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _EPERM),
    ]


def _unless_argument(
    position: int, *refused: int, mask: Sequence[Instruction] = ()
) -> list[Instruction]:
    """Return BPF code refusing a system call with certain argument values."""
    checks = [
        instruction
        for value in refused
        for instruction in ((_EQUAL, 0, 1, value), (_RETURN, 0, 0, _EPERM))
    ]
    return [
        (_LOAD, 0, 0, _ARGUMENTS + 8 * position),
        *mask,
        *checks,
        (_RETURN, 0, 0, _ALLOW),
    ]
