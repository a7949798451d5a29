"""Who does a study's runs: processes on this machine, through joblib, or the workers of a Dask cluster.

Both hand over each result as it comes, and both outlive a run that fails and a process that is killed. A study does not see
which of them worked: the runs are the same. Each worker has one BLAS thread; one worker alone, which is this process, has all.
"""

from __future__ import annotations

import asyncio
import hashlib
import platform
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...optional import extra

Row = dict[str, Any]
Workers = int | str  # so many processes here, or a Dask scheduler's address, "tcp://host:port"

PATIENCE = 10.0  # seconds in which a scheduler answers and has a worker


@dataclass(frozen=True)
class Failure:
    """What stands in a row's place where a run raised an exception, or ended its process."""

    run: Any
    error: str

    def __str__(self) -> str:
        return f"{describe(self.run)}: {self.error}"


Results = Generator[tuple[int, Row | Failure], None, None]  # a run's number, and what came of it


def each(measure: Callable[[Any], Row], runs: Sequence[Any], workers: Workers) -> Results:
    """(i, measure(runs[i])) of every i, in the order in which they are finished.

    One worker: in this process, with all of BLAS's threads. Raises ValueError where `workers` is neither a number of
    processes nor an address, ConnectionError where no scheduler answers there or it goes away.
    """
    if isinstance(workers, str):
        return _on_cluster(measure, runs, workers)
    if workers < 1:
        expected = "expected 1 or more, or a scheduler's address as in tcp://127.0.0.1:8786."
        raise ValueError(f"workers is {workers}; {expected}")
    return _here(measure, runs, workers)


def describe(run: Any) -> str:
    """A run, a dataclass, by the fields that are not its defaults: "Run(method='full', lr=0.002)"."""
    told = [f"{f.name}={value!r}" for f in fields(run) if (value := getattr(run, f.name)) != f.default]
    return f"{type(run).__name__}({', '.join(told)})"


def attempt(measure: Callable[[Any], Row], run: Any) -> Row | Failure:
    """measure(run), or the exception that it raised and where."""
    try:
        return measure(run)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return Failure(run, f"{_last_line(error)} ({Path(place.filename).name}, line {place.lineno})")


def _last_line(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]


def _here(measure: Callable[[Any], Row], runs: Sequence[Any], processes: int) -> Results:
    """Where the system ends a process (it does so when memory runs out), all of them are started again.

    Which run ended it is not known, so each may try again; but if nothing was finished since the last start, it is one of
    those that began first, and these are failures.
    """
    with extra("studies", "a study of several runs"):
        from joblib import Parallel, delayed, parallel_config
        from joblib.externals.loky.process_executor import TerminatedWorkerError

    left = list(range(len(runs)))
    while left:
        started = list(left)
        with parallel_config("loky", inner_max_num_threads=1):
            pool = Parallel(n_jobs=processes, return_as="generator_unordered")
        try:
            for i, row in pool(delayed(_numbered)(measure, i, runs[i]) for i in started):
                left.remove(i)
                yield i, row
        except TerminatedWorkerError:
            if left == started:
                why = "its process was ended, or that of a run beside it: was there enough memory?"
                for i in started[:processes]:
                    left.remove(i)
                    yield i, Failure(runs[i], why)


def _numbered(measure: Callable[[Any], Row], i: int, run: Any) -> tuple[int, Row | Failure]:
    return i, attempt(measure, run)


def _on_cluster(measure: Callable[[Any], Row], runs: Sequence[Any], address: str) -> Results:
    """Futures rather than joblib's "dask" backend: the scheduler gives the run of a dead worker to another by itself."""
    if not runs:
        return
    with _connected(address) as client:
        from distributed import as_completed

        futures = client.map(_attempt_there, [measure] * len(runs), runs, expected=fingerprint(), pure=False)
        numbers = {future.key: i for i, future in enumerate(futures)}
        for future in as_completed(futures):
            i = numbers[future.key]
            if future.cancelled():
                raise ConnectionError(f"the scheduler at {address} went away; what was finished is kept.")
            error = future.exception()
            yield i, future.result() if error is None else Failure(runs[i], _last_line(error))


def _attempt_there(measure: Callable[[Any], Row], run: Any, expected: dict[str, str]) -> Row | Failure:
    """`attempt` on a cluster's worker: with this code, and one BLAS thread.

    The thread's limit stays, as Dask's own does: to set it back would give a run in another thread of the worker many.
    """
    with extra("studies", "a study's run"):
        from threadpoolctl import threadpool_limits

    if wrong := _differences(expected, fingerprint()):
        return Failure(run, f"this worker has {wrong}")
    threadpool_limits(1)
    return attempt(measure, run)


@cache
def fingerprint() -> dict[str, str]:
    """What a run's row depends on beside the run: this package's files, NumPy, and Python, whose library is the text."""
    package = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return {"lora_np": digest.hexdigest()[:12], "numpy": version("numpy"), "python": platform.python_version()}


def _differences(expected: dict[str, str], found: dict[str, str]) -> str:
    return ", ".join(f"{name} {found[name]} (here {mine})" for name, mine in expected.items() if found[name] != mine)


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """A client of the scheduler at `address`, which and whose workers have what is here. Every error is one line."""
    with extra("cluster", "a Dask cluster"):
        from distributed import Client
        from distributed.comm.addressing import get_address_host_port
    get_address_host_port(address)  # ValueError where it is none
    start = f"Start one with `dask scheduler`, and workers with `dask worker {address}`."
    with ThreadPoolExecutor(1) as thread:  # a notebook's own thread has an event loop already
        if not thread.submit(asyncio.run, _answers(address)).result():
            raise ConnectionError(f"no scheduler answers at {address}. {start}")
    with Client(address) as client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            raise ConnectionError(f"the scheduler at {address} has no workers. {start}") from None
        _check_code(client)
        yield client


async def _answers(address: str) -> bool:
    """Whether a Dask scheduler does; asked here, because a Client waits for ever for one that is something else."""
    from distributed.core import rpc

    try:
        async with asyncio.timeout(PATIENCE), rpc(address) as scheduler:
            return (await scheduler.identity())["type"] == "Scheduler"
    except Exception:  # of a connection, or of what else listens there
        return False


def _check_code(client: Any) -> None:
    """Raises RuntimeError naming each machine whose code is not this one's: its rows would be another table's."""
    found = {"the scheduler": _ask(client.run_on_scheduler)}
    found |= {f"the worker {name}": answer for name, answer in _ask(client.run, on_error="return").items()}
    wrong = {
        name: _last_line(answer) if isinstance(answer, BaseException) else _differences(fingerprint(), answer)
        for name, answer in found.items()
    }
    if told := "; ".join(f"{name} has {what}" for name, what in wrong.items() if what):
        raise RuntimeError(f"the cluster would make another table: {told}. Install the same everywhere.")


def _ask(call: Callable[..., Any], **options: Any) -> Any:
    try:
        return call(fingerprint, **options)
    except Exception as error:
        return error
