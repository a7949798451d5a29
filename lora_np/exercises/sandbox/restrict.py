"""Give up the rights of this process, so that a student's program can do no more than compute.

On Linux three mechanisms of the kernel work without root. The effect of the mechanisms on this process is permanent:

- Landlock (since Linux 5.13) allows reading the interpreter, the installed packages and system libraries, and writing
  to one folder. It does not allow reading the folders of lora_np and of the submissions. Landlock also denies network
  connections by TCP (since 6.7) and signals to other processes (since 6.12).
- seccomp denies system calls: to start a process or a program, to open a socket, to send a signal to another process,
  to read the memory of another process, and to change the limits and the priority of another process. seccomp also
  denies changes that Landlock does not check: to the permissions, owner, times and attributes of a file and, before
  Linux 6.2, to its length. Finally, seccomp denies files in memory, because the memory limit does not count them.
- setrlimit and timers limit time, memory and the size of files.

Other systems have only the third mechanism or a part of it; `confine` returns the protections that work.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

CPU_SECONDS = 1.0  # of processor time after the imports; then the process is ended
MEMORY = 2 << 30  # bytes of address space beyond the use after the imports; a larger allocation raises MemoryError
PRINTED = 1 << 20  # bytes: largest size of a file, and so of the printed output

SYSTEM = ["lib", "lib64", "lib32", "usr/lib", "usr/lib64", "usr/local/lib", "usr/local/cuda", "usr/share", "nix/store"]
SYSTEM += [
    "etc/ld.so.cache",
    "etc/localtime",
    "etc/fonts",
    "etc/ssl",
    "proc/cpuinfo",
    "proc/meminfo",
    "proc/self/statm",
    "sys/devices/system",
]
DEVICES = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"]

WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_FILE, TRUNCATE = (
    1 << bit for bit in (1, 2, 3, 4, 5, 7, 8, 14)
)  # rights of linux/landlock.h
READ, OF_FILES = READ_FILE | READ_DIR, READ_FILE | WRITE_FILE | TRUNCATE
OWN = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_FILE | TRUNCATE


def lift_memory_limit() -> None:
    """Remove the limit of memory that a judge has set for itself, because some packages reserve much memory when they
    are imported."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def confine(hidden: Sequence[str], own: str) -> list[str]:
    """Give up the rights to the network, to processes, and to files outside the installed packages and `own`.

    Return the names of the lost rights. `own` is the folder that the process may write to.

    Nothing in `hidden` can be read, even if a folder that contains it can be read.
    """
    if sys.platform != "linux":
        return []
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall.restype = ctypes.c_long
        libc.prctl(1, ctypes.c_ulong(signal.SIGKILL))  # PR_SET_PDEATHSIG: end with the grader
        if libc.prctl(38, *map(ctypes.c_ulong, (1, 0, 0, 0))) == 0:  # PR_SET_NO_NEW_PRIVS, required by both
            return [*_landlock(libc, readable(hidden), own), *_seccomp(libc)]
    return []


def readable(hidden: Iterable[str]) -> Iterator[str]:
    """Yield the files and folders that a program may need, without those in `hidden`."""
    out = [os.path.realpath(path) for path in hidden]
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix}
    roots = [f"/{path}" for path in SYSTEM]
    roots += [os.path.join(prefix, name) for prefix in prefixes for name in ("lib", "lib64", "share", "etc")]
    roots += [*sys.path, *os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)]

    def below(folder: str) -> Iterator[str]:
        if not any(path == folder or path.startswith(f"{folder.rstrip('/')}/") for path in out):
            yield folder
        elif folder not in out:
            for name in os.listdir(folder):
                path = os.path.join(folder, name)
                if not os.path.islink(path):
                    yield from below(path)

    for root in dict.fromkeys(os.path.realpath(root) for root in roots if root):
        if not any(root == path or root.startswith(f"{path}/") for path in out) or _is_prefix(root, prefixes):
            with contextlib.suppress(OSError):
                yield from below(root)


def _is_prefix(root: str, prefixes: Iterable[str]) -> bool:
    """Return True if the folder belongs to the interpreter. A virtual environment may be inside a clone."""
    return any(root.startswith(f"{os.path.realpath(prefix)}/") for prefix in prefixes)


def _landlock(libc: ctypes.CDLL, paths: Iterable[str], own: str) -> list[str]:
    """Restrict this thread, and every thread and process that it starts, by Landlock."""

    def call(number: int, *arguments: object) -> int:
        return int(libc.syscall(ctypes.c_long(number), *arguments))

    size, flag = ctypes.c_size_t, ctypes.c_uint
    abi = call(444, None, size(0), flag(1))  # landlock_create_ruleset: the version
    if abi < 1:
        return []
    rights = (1 << 13) - 1 | (abi >= 2) << 13 | (abi >= 3) << 14 | (abi >= 5) << 15
    attributes = struct.pack("QQQ", rights, 3, 3)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    rules = call(444, attributes, size(len(attributes)), flag(0))
    if rules < 0:
        return []
    allowed = [*((path, READ) for path in paths), (own, OWN), *((path, READ | WRITE_FILE) for path in DEVICES)]
    allowed += [(path, READ_DIR) for path in sys.path]  # `import` lists folders
    for path, right in allowed:
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            right &= rights if os.path.isdir(path) else OF_FILES & rights
            call(445, ctypes.c_int(rules), ctypes.c_int(1), struct.pack("=Qi", right, fd), flag(0))
            os.close(fd)
    failed = call(446, ctypes.c_int(rules), flag(0))
    os.close(rules)
    return [] if failed else ["files"] + ["network"] * (abi >= 4) + ["signals"] * (abi >= 6)


# The numbers of system calls that are denied, for x86_64 and for aarch64
DENIED = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "socket": (41, 198),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "io_uring_setup": (425, 425), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180), "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "socketpair": (53, 199), "reboot": (169, 142), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88), "truncate": (76, 45),
    "shmat": (30, 196), "shmctl": (31, 195), "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191),
    "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "mq_unlink": (241, 181),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
}  # fmt: skip
NEWER = 452  # fchmodat2 of Linux 6.6, the first of the newer system calls: they are answered as by an older kernel
CLONE, KILL, TGKILL, PRLIMIT, FCNTL = (56, 220), (62, 129), (234, 131), (302, 261), (72, 25)
OPEN, OPENAT, CLONE3, OPENAT2 = (2, None), (257, 56), 435, 437
LOAD, AND, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06  # instructions of BPF
ALLOW, DENY, UNKNOWN_CALL = 0x7FFF0000, 0x00050001, 0x00050026  # let it pass; fail with EPERM; fail with ENOSYS
NUMBER, ARCHITECTURE, FIRST, SECOND, THIRD = 0, 4, 16, 24, 32  # positions in struct seccomp_data (little-endian)
CLONE_THREAD, OWN_SIGNALS = 0x10000, (8, 15)  # F_SETOWN and F_SETOWN_EX: who gets a file's signals


def _seccomp(libc: ctypes.CDLL) -> list[str]:
    """Deny the system calls listed above to this thread and to every thread and process that it starts."""
    machine = platform.machine()
    if machine not in ("x86_64", "aarch64"):
        return []
    i = ("x86_64", "aarch64").index(machine)

    def only(
        call: tuple[int | None, int | None],
        where: int,
        test: int,
        values: Sequence[int],
        then: int,
        otherwise: int,
        bits: int = -1,
    ) -> list:
        """Return the filter of one system call. Its result is `then` if an argument passes the test with any of
        `values`, else `otherwise`.

        `bits` selects the bits of the argument that are tested.
        """
        steps = [(LOAD, 0, 0, where), (AND, 0, 0, bits & 0xFFFFFFFF)]
        steps += [(test, len(values) - k, 0, value) for k, value in enumerate(values)]
        steps += [(RETURN, 0, 0, otherwise), (RETURN, 0, 0, then)]
        return [] if call[i] is None else [(EQUAL, 0, len(steps), call[i]), *steps]

    code = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, (0xC000003E, 0xC00000B7)[i]), (RETURN, 0, 0, DENY)]
    code += [(LOAD, 0, 0, NUMBER), (AT_LEAST, 0, 1, NEWER), (RETURN, 0, 0, UNKNOWN_CALL)]  # also all of x32
    for number in (numbers[i] for numbers in DENIED.values()):
        if number is not None:
            code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, DENY)]
    for number in (CLONE3, OPENAT2):  # their flags are in memory; libc then calls clone and openat
        code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, UNKNOWN_CALL)]
    code += only(CLONE, FIRST, ANY_BIT, [CLONE_THREAD], ALLOW, DENY)
    for call, others in ((KILL, []), (TGKILL, []), (PRLIMIT, [0])):
        code += only(call, FIRST, EQUAL, [os.getpid(), *others], ALLOW, DENY)
    code += only(FCNTL, SECOND, EQUAL, OWN_SIGNALS, DENY, ALLOW)
    for opening, flags in ((OPEN, SECOND), (OPENAT, THIRD)):  # O_TRUNC of a file that is not opened for writing
        code += only(opening, flags, EQUAL, [os.O_TRUNC, os.O_TRUNC | 3], DENY, ALLOW, os.O_TRUNC | os.O_ACCMODE)
    code.append((RETURN, 0, 0, ALLOW))
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in code)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(buffer))
    failed = libc.prctl(22, ctypes.c_ulong(2), program)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    return [] if failed else ["processes"]


def limit() -> None:
    """Set the limits of time, memory and files, as far as the operating system supports them."""
    try:
        import resource
    except ImportError:
        return
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the default ends the process
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + CPU_SECONDS) + 5  # for a program that ignores the timer
    limits = {resource.RLIMIT_CPU: seconds, resource.RLIMIT_FSIZE: PRINTED, resource.RLIMIT_CORE: 0}
    with contextlib.suppress(OSError, ValueError):  # only Linux reports the size of the process
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limits[resource.RLIMIT_AS] = pages * resource.getpagesize() + MEMORY
    for which, most in limits.items():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(which, (most, most))
