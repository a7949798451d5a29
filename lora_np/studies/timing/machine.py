"""The conditions of a timing: the processor, the BLAS and its kernel, memory, and environment variables."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ...optional import extra

# The variables that set the number of threads: of OpenBLAS, OpenMP (PyTorch), MKL, Apple's Accelerate and BLIS.
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "BLIS_NUM_THREADS")

OBEYED = {  # the first letters of a variable's name → the library that reads it
    ("OPENBLAS_", "GOTO_", "NPY_", "BLIS_", "VECLIB_"): "NumPy",
    ("MKL_", "KMP_", "ATEN_", "ONEDNN_", "DNNL_", "TORCHDYNAMO_", "TORCHINDUCTOR_", "TORCH_COMPILE"): "PyTorch",
    ("OMP_", "GOMP_"): "PyTorch, and NumPy where its BLAS is built with OpenMP",
}

# Busy processors in the minute before this module is imported, before any timing. Windows does not report this number.
LOAD = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def processor() -> str:
    """Return the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def warnings_for(threads: int, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return a warning for each environment variable that may slow a competitor, and one for too many `threads`.

    The function `in_environment` overrides the variables in `THREADS`; a warning about such a variable says so.
    """
    found = []
    for name, value in sorted(environment.items()):
        who = next((who for starts, who in OBEYED.items() if name.startswith(starts)), None)
        if name == "KMP_DUPLICATE_LIB_OK":  # threadpoolctl sets this variable; it does not change the speed
            continue
        if name in THREADS:
            if value != str(threads):
                found.append(f"{name}={value} is overridden: all competitors use --threads {threads}")
        elif who is not None:
            found.append(f"{name}={value} is set and may slow {who}: unset it")
    if hasattr(os, "sched_getaffinity") and (processors := len(os.sched_getaffinity(0))) < threads:
        found.append(f"--threads {threads} exceeds the {processors} processors that this process may use")
    return found


def conditions(threads: int, rounds: int, blas: Mapping[str, Mapping[str, Any]], load: float = LOAD) -> dict[str, Any]:
    """Return the settings `threads`, `rounds`, `processor`, `blas` (per competitor) and `warnings` of a table.

    `load` is the number of processors that were busy before the timing.
    """
    warnings = warnings_for(threads)
    if load >= 1:
        warnings.append(
            f"{load:.1f} processors were busy before the timing; this slows some competitors more than others"
        )
    for name, used in blas.items():
        if used["threads"] is None:
            warnings.append(f"{name}: the number of threads of {used['blas']} is unknown")
        elif used["threads"] != threads:
            warnings.append(f"{name} runs {used['threads']} threads instead of {threads}")
    return {"threads": threads, "rounds": rounds, "processor": processor(), "blas": dict(blas), "warnings": warnings}


def in_environment(threads: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of a process with `threads` threads in each BLAS and without network access."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return dict(environment) | dict.fromkeys(THREADS, str(threads)) | quiet


def limited(threads: int) -> Any:
    """Return a context manager that limits each BLAS of this process to `threads` threads."""
    with extra("studies", "timing on a number of threads"):
        from threadpoolctl import threadpool_limits

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    return threadpool_limits(threads)


def numpy_blas() -> dict[str, str | int | None]:
    """Return the name, the kernel and the threads of NumPy's BLAS in this process, as threadpoolctl reports them.

    threadpoolctl does not know Apple's Accelerate. For Accelerate, the name is read from NumPy's build, and the number
    of threads is None.
    """
    with extra("studies", "the name of NumPy's BLAS"):
        from threadpoolctl import threadpool_info

    numpys = [pool for pool in threadpool_info() if pool["user_api"] == "blas" and "torch" not in pool["filepath"]]
    if not numpys:
        built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
        return {"blas": {"accelerate": "Accelerate"}.get(built, built), "kernel": "unknown", "threads": None}
    pool = numpys[0]
    name = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS"}.get(pool["internal_api"], pool["internal_api"])
    kernel = pool.get("architecture") or "unknown"
    return {"blas": f"{name} {pool['version']}", "kernel": kernel, "threads": pool["num_threads"]}


def torch_blas() -> dict[str, str | int | None]:
    """Return the name, the kernel and the threads of PyTorch's BLAS in this process.

    threadpoolctl does not see PyTorch's MKL, so MKL itself reports the name.
    """
    import torch

    build = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    blas, kernel = build[1] if build else "unknown", torch.backends.cpu.get_cpu_capability()
    if torch.backends.mkl.is_available():
        code = "import torch; torch.ones(64, 64) @ torch.ones(64, 64)"
        environment = dict(os.environ) | {"MKL_VERBOSE": "1"}
        said = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        version = re.search(r"oneMKL ([\d.]+(?: Update \d+)?)", said.stdout)
        used = re.search(r"\(Intel\(R\) ([^)]+)\)", said.stdout)
        blas, kernel = f"MKL {version[1] if version else ''}".strip(), used[1] if used else kernel
    return {"blas": blas, "kernel": kernel, "threads": torch.get_num_threads()}


def resident_memory(pid: int | None = None) -> dict[str, int]:
    """Return the resident bytes of a process, `now` and at the `peak`, including libraries and mapped files.

    If `pid` is None, the process is this process. Returns {} on Windows; macOS reports only this process.
    """
    status = Path(f"/proc/{pid or 'self'}/status")
    if status.is_file():
        found = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", status.read_text()))
        if len(found) == 2:
            return {"now": 1024 * int(found["VmRSS"]), "peak": 1024 * int(found["VmHWM"])}
    if sys.platform == "darwin" and pid is None:
        import resource

        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    return {}


def release_freed_memory() -> None:
    """Let the C library give freed memory back to the system, so that this memory does not count in the next peak."""
    gc.collect()
    with suppress(OSError, TypeError, AttributeError):  # the C library is not GNU's, or cannot be loaded this way
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> bool:
    """Reset the peak memory to the memory in use now. Returns False if the system cannot do this (only Linux can)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
