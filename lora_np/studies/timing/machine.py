"""What a timing depends on besides the code: the processor, the BLAS and its kernel, memory, and the environment's variables."""

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

from ...optional import extra

# Where the number of threads is told to a BLAS before it starts: OpenBLAS, OpenMP (PyTorch), MKL, Apple's Accelerate, BLIS.
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "BLIS_NUM_THREADS")

OBEYED = {  # how a variable's name begins → who obeys it
    ("OPENBLAS_", "GOTO_", "NPY_", "BLIS_", "VECLIB_"): "NumPy",
    ("MKL_", "KMP_", "ATEN_", "ONEDNN_", "DNNL_", "TORCHDYNAMO_", "TORCHINDUCTOR_", "TORCH_COMPILE"): "PyTorch",
    ("OMP_", "GOMP_"): "PyTorch, and NumPy where its BLAS is built with OpenMP",
}


def processor() -> str:
    """The processor's name, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def warnings_for(threads: int, environment: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence for each variable that holds one side back, and for more threads than this process has processors.

    The numbers of threads in `THREADS` are overridden by `in_environment`, which the sentence then says.
    """
    found = []
    for name, value in sorted(environment.items()):
        who = next((who for starts, who in OBEYED.items() if name.startswith(starts)), None)
        if name == "KMP_DUPLICATE_LIB_OK":  # threadpoolctl sets it, and it changes no speed
            continue
        if name in THREADS:
            if value != str(threads):
                found.append(f"{name}={value} is set, and overridden: every side has --threads {threads}")
        elif who is not None:
            found.append(f"{name}={value} is set, which {who} obeys: unset it, or it may hold that side back")
    if hasattr(os, "sched_getaffinity") and (processors := len(os.sched_getaffinity(0))) < threads:
        found.append(f"--threads {threads}, and this process may use {processors} of the processors")
    return found


def in_environment(threads: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a process with that many threads in every BLAS, and without network."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return dict(environment) | dict.fromkeys(THREADS, str(threads)) | quiet


def limited(threads: int) -> Any:
    """A context in which every BLAS of this process has so many threads."""
    with extra("studies", "timing on a number of threads"):
        from threadpoolctl import threadpool_limits

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    return threadpool_limits(threads)


def numpy_blas() -> dict[str, str | int]:
    """{blas, kernel, threads} of this process's NumPy, as threadpoolctl finds them in the loaded libraries."""
    with extra("studies", "the name of NumPy's BLAS"):
        from threadpoolctl import threadpool_info

    numpys = [pool for pool in threadpool_info() if pool["user_api"] == "blas" and "torch" not in pool["filepath"]]
    if not numpys:  # Apple's Accelerate, which threadpoolctl does not know
        return {"blas": "unknown", "kernel": "unknown", "threads": 0}
    pool = numpys[0]
    name = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS"}.get(pool["internal_api"], pool["internal_api"])
    kernel = pool.get("architecture") or "unknown"
    return {"blas": f"{name} {pool['version']}", "kernel": kernel, "threads": pool["num_threads"]}


def torch_blas() -> dict[str, str | int]:
    """{blas, kernel, threads} of PyTorch. Its MKL is linked in, where threadpoolctl cannot see it: MKL is asked itself."""
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


def resident_memory() -> dict[str, int]:
    """{now, peak}: bytes of this process in RAM; shared libraries and pages of mapped files among them. {} on Windows."""
    status = Path("/proc/self/status")
    if status.is_file():
        found = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", status.read_text()))
        if len(found) == 2:
            return {"now": 1024 * int(found["VmRSS"]), "peak": 1024 * int(found["VmHWM"])}
    if sys.platform == "darwin":
        import resource

        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    return {}


def give_back_memory() -> None:
    """Return to the system what was freed and C's library keeps for later, so that the next peak owes nothing to it."""
    gc.collect()
    with suppress(OSError, TypeError, AttributeError):  # no C library by that way, or not GNU's
        ctypes.CDLL(None).malloc_trim(0)


def forget_peak() -> bool:
    """Let the peak begin again from what is resident now (Linux). Whether the system could."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
