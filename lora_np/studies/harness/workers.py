"""Run a study's runs in processes on this machine (joblib) or on the workers of a Dask cluster.

In both cases, each result is yielded as soon as the run has finished. If a run fails or a process is killed, the other
runs continue. Processes and clusters give the same rows. Each worker uses one BLAS thread. With workers=1, the runs
stay in this process, which uses all BLAS threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import platform
import time
import traceback
import warnings
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
Workers = int | str  # a number of processes on this machine, or the address of a Dask scheduler, "tcp://host:port"

PATIENCE = 10.0  # seconds to wait for the first worker, and for each answer of the scheduler or of a worker
SILENCE = 30.0  # seconds without a heartbeat, after which a worker counts as hung; a heartbeat is due every second
POLL = 0.05  # seconds between two checks for finished runs


@dataclass(frozen=True)
class Failure:
    """The result of a run that raised an exception or whose process was killed."""

    run: Any
    error: str

    def __str__(self) -> str:
        return f"{describe(self.run)}: {self.error}"


Results = Generator[tuple[int, Row | Failure], None, None]  # the index of a run, and its result


def each(measure: Callable[[Any], Row], runs: Sequence[Any], workers: Workers) -> Results:
    """Yield (i, measure(runs[i])) for every i, in the order in which the runs finish.

    With workers=1, the runs are measured in this process, with all BLAS threads. Raises ValueError if `workers` is
    neither a positive number of processes nor an address. Raises ConnectionError if no scheduler answers at the
    address, or if the connection ends.
    """
    if isinstance(workers, str):
        return _on_cluster(measure, runs, workers)
    if workers < 1:
        expected = "expected 1 or more processes, or the address of a Dask scheduler such as tcp://127.0.0.1:8786"
        raise ValueError(f"workers is {workers}; {expected}")
    return _here(measure, runs, workers)


def describe(run: Any) -> str:
    """Return a run as text, without fields that have default values: "Run(method='full', lr=0.002)"."""
    given = [f"{f.name}={value!r}" for f in fields(run) if (value := getattr(run, f.name)) != f.default]
    return f"{type(run).__name__}({', '.join(given)})"


def attempt(measure: Callable[[Any], Row], run: Any) -> Row | Failure:
    """Return measure(run), or a Failure with the exception and the line that raised it."""
    try:
        return measure(run)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return Failure(run, f"{_last_line(error)} ({Path(place.filename).name}, line {place.lineno})")


def _last_line(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]


def _here(measure: Callable[[Any], Row], runs: Sequence[Any], processes: int) -> Results:
    """Measure the runs in processes on this machine.

    If the system kills a process, for example because memory runs out, joblib ends all processes. New processes then
    continue with the unfinished runs. It is unknown which run ended the process. If no run has finished since the last
    start, the first `processes` runs count as failures.
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
                why = "the system killed its process or a neighbouring one; probably there was too little memory"
                for i in started[:processes]:
                    left.remove(i)
                    yield i, Failure(runs[i], why)


def _numbered(measure: Callable[[Any], Row], i: int, run: Any) -> tuple[int, Row | Failure]:
    return i, attempt(measure, run)


def _on_cluster(measure: Callable[[Any], Row], runs: Sequence[Any], address: str) -> Results:
    """Measure the runs on a Dask cluster; if a worker dies, the scheduler gives the worker's run to another worker.

    Raises ConnectionError if the connection ends, if no worker is left, or if all workers hang for SILENCE seconds.
    """
    if not runs:
        return
    with _connected(address) as client:
        from distributed import as_completed

        futures = client.map(_attempt_there, [measure] * len(runs), runs, expected=fingerprint(), pure=False)
        numbers = {future.key: i for i, future in enumerate(futures)}
        watch, waiting = Watch(client, address), as_completed(futures)
        while not waiting.is_empty():
            for future in waiting.next_batch(block=False):
                i = numbers[future.key]
                if future.cancelled():
                    raise ConnectionError(f"the connection to the scheduler at {address} ended; finished runs are kept")
                error = future.exception()
                yield i, future.result() if error is None else Failure(runs[i], _last_line(error))
            watch.look()
            time.sleep(POLL)


class Watch:
    """Watches the heartbeats of a cluster's workers. Without this class, a run on a hung worker would never end.

    The time of a heartbeat comes from the scheduler's clock, so a heartbeat is compared only with earlier heartbeats.
    """

    def __init__(self, client: Any, address: str) -> None:
        self.client, self.address = client, address
        self.heartbeats: dict[
            str, tuple[float, float]
        ] = {}  # worker → its last heartbeat, and the time at which this heartbeat was first seen
        self.looked = self.manned = time.monotonic()  # the last check, and the last check that found a worker
        self.reported: set[str] = set()

    def look(self) -> None:
        """Warn about each worker that hangs; raise ConnectionError if no other worker is left. Most calls return at once."""
        now = time.monotonic()
        if now - self.looked < min(PATIENCE, SILENCE) / 2:
            return
        self.looked = now
        try:
            scheduler = self.client.sync(self.client.scheduler.identity, n_workers=-1, callback_timeout=PATIENCE)
        except (OSError, TimeoutError):
            raise ConnectionError(
                f"the connection to the scheduler at {self.address} ended; finished runs are kept. Start the scheduler and "
                "its workers again, then run the same command again"
            ) from None
        found = {name: worker["last_seen"] for name, worker in scheduler["workers"].items()}
        for name, heartbeat in found.items():
            if self.heartbeats.get(name, (None,))[0] != heartbeat:
                self.heartbeats[name] = heartbeat, now
        silent = sorted(name for name in found if now - self.heartbeats[name][1] > SILENCE)
        if found:
            self.manned = now
        if (found and len(silent) == len(found)) or now - self.manned > SILENCE:
            what = f"all workers hang ({', '.join(silent)})" if silent else "all workers have left"
            raise ConnectionError(
                f"the scheduler at {self.address} has no working worker: {what}; finished runs are kept. {what_to_do(silent)}"
                f"Start workers with `dask worker {self.address}`, then run the same command again"
            )
        for name in silent:
            if name not in self.reported:
                self.reported.add(name)
                warnings.warn(
                    f"the worker {name} hangs: no heartbeat for {SILENCE:.0f} s. {what_to_do([name])}Its run then goes to "
                    "another worker",
                    RuntimeWarning,
                    stacklevel=2,
                )


def what_to_do(hung: Sequence[str]) -> str:
    """Return the advice for workers that hang, or "" if no worker hangs."""
    return f"End the process of {' and of '.join(hung)} (kill -9), because it does not end by itself. " if hung else ""


def _attempt_there(measure: Callable[[Any], Row], run: Any, expected: dict[str, str]) -> Row | Failure:
    """Call `attempt` on a worker of the cluster, with one BLAS thread, if the worker has the same code as this machine.

    The limit of one thread is not removed afterwards, because another run may be active in the same worker.
    """
    with extra("studies", "a study's run"):
        from threadpoolctl import threadpool_limits

    if wrong := _differences(expected, fingerprint()):
        return Failure(run, f"this worker has {wrong}")
    threadpool_limits(1)
    return attempt(measure, run)


@cache
def fingerprint() -> dict[str, str]:
    """Return a digest of this package's files, and the versions of NumPy and Python, because each of them can change a
    run's result.

    Python's version matters because the text to train on is Python's standard library.
    """
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
    """Connect to the scheduler at `address` and check that it and its workers have the same code as this machine."""
    with extra("cluster", "a Dask cluster"):
        from distributed import Client
        from distributed.comm.addressing import get_address_host_port
    get_address_host_port(address)  # raises ValueError if it is not an address
    start = f"Start a scheduler with `dask scheduler` and workers with `dask worker {address}`."
    with ThreadPoolExecutor(1) as thread:  # a notebook's own thread has an event loop already
        if not thread.submit(asyncio.run, _answers(address)).result():
            raise ConnectionError(f"no scheduler answers at {address}. {start}")
    with Client(address, timeout=PATIENCE) as client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            raise ConnectionError(f"the scheduler at {address} has no workers. {start}") from None
        _check_code(client)
        yield client


async def _answers(address: str) -> bool:
    """Return whether a Dask scheduler answers at `address`.

    This check is needed, because a Dask Client never returns if another program listens at the address.
    """
    from distributed.core import rpc

    try:
        async with asyncio.timeout(PATIENCE), rpc(address) as scheduler:
            return (await scheduler.identity())["type"] == "Scheduler"
    except Exception:  # the connection failed, or another program listens there
        return False


def _check_code(client: Any) -> None:
    """Raise RuntimeError if the scheduler or a worker has other code or other versions than this machine.

    Raises ConnectionError if a worker does not answer.
    """
    answers = client.sync(_ask_workers, client)
    if hung := sorted(name for name, answer in answers.items() if answer is None):
        raise ConnectionError(
            f"the worker {' and the worker '.join(hung)} does not answer within {PATIENCE:.0f} s. {what_to_do(hung)}"
            "Start a new worker, then run the same command again"
        )
    found = {"the scheduler": _ask(client.run_on_scheduler)}
    found |= {f"the worker {name}": answer for name, answer in answers.items()}
    wrong = {
        name: _last_line(answer) if isinstance(answer, BaseException) else _differences(fingerprint(), answer)
        for name, answer in found.items()
    }
    if differing := "; ".join(f"{name} has {what}" for name, what in wrong.items() if what):
        raise RuntimeError(
            f"the cluster would make a different table: {differing}; install the same versions on all machines"
        )


def _ask(call: Callable[..., Any]) -> Any:
    try:
        return call(fingerprint)
    except Exception as error:
        return error


async def _ask_workers(client: Any) -> dict[str, Any]:
    """Return a mapping from each worker's address to its fingerprint.

    The value is an exception if the call failed, and None if the worker did not answer. Each worker gets its own call,
    because one call to all workers returns only after the slowest answer.
    """

    async def ask(name: str) -> Any:
        try:
            async with asyncio.timeout(PATIENCE):
                return (await client.run(fingerprint, workers=[name], on_error="return")).get(name)
        except TimeoutError:
            return None

    names = list((await client.scheduler.identity(n_workers=-1))["workers"])
    return dict(zip(names, await asyncio.gather(*map(ask, names)), strict=True))
