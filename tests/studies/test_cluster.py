"""The same call on a Dask cluster: a real scheduler and two worker processes on this machine, some of which are killed.

The runs tell by files when they begin, and wait for a file before they end, so that each process dies in the middle.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import cluster_runs
import pytest
from cluster_runs import Told, until
from threadpoolctl import threadpool_limits

from lora_np import Transformer, save_model
from lora_np.studies.convergence.study import QUICK, convergence
from lora_np.studies.harness import workers
from lora_np.studies.harness.runs import StudyFailed, run_all
from lora_np.studies.pretraining.study import TINY

pytest.importorskip("distributed", reason='Dask is not installed: pip install -e ".[cluster,dev]"')
pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(cluster_runs.__file__).parent)]),
    "OPENBLAS_NUM_THREADS": "1",
}
NO_KILL = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")


def written(card: Path) -> bool:
    """Whether the scheduler's file is there as a whole."""
    try:
        return bool(json.loads(card.read_text()))
    except (FileNotFoundError, json.JSONDecodeError):
        return False


@contextlib.contextmanager
def dask_cluster(folder: Path, workers: int = 2):
    """(address, scheduler's process) of a scheduler with so many workers of one thread; every process is ended at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    card = folder / "scheduler.json"
    scheduler = ["scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(card)]
    worker = ["worker", "--scheduler-file", str(card), "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny"]
    commands = [scheduler, *([*worker, "--local-directory", str(folder / str(i))] for i in range(workers))]
    with contextlib.ExitStack() as stack:
        started = []
        for command in commands:
            log = stack.enter_context(open(folder / f"{len(started)}.log", "w"))
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *command, "--no-dashboard"], env=ENVIRONMENT, stdout=log, stderr=log
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            started.append(process)
            until(lambda: written(card))
        yield json.loads(card.read_text())["address"], started[0]


@contextlib.contextmanager
def stopped(pid: int):
    """A process that hangs: stopped, and able to continue when the block ends, so that it can be ended."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with dask_cluster(tmp_path_factory.mktemp("cluster")) as (address, _):
        yield address


def test_the_table_is_the_local_runs_to_the_bit(address, tmp_path):
    config = replace(TINY, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    save_model(Transformer.random(config), tmp_path)  # as "tiny" in all but its size, or the evaluation takes a minute
    setting = replace(QUICK, base=str(tmp_path), ranks=(4,), seeds=(0,), steps=3, eval_every=3)
    with threadpool_limits(1):
        here = convergence(setting, 1)
    there = convergence(setting, address)
    assert len(here.rows) == 2 + 2 and here.settings == there.settings and here.command == there.command
    for mine, other in zip(here.rows, there.rows, strict=True):
        assert len(mine.pop("seconds")) == len(other.pop("seconds")) == 2, "and the seconds alone differ"
        assert mine == other


def test_a_run_that_fails_on_the_cluster_is_told_and_the_others_are_kept(address, tmp_path, capfd):
    runs = [Told(lr, str(tmp_path), fails=lr == 2) for lr in (1.0, 2.0, 3.0)]
    with pytest.raises(
        StudyFailed, match=r"1 of 3 runs failed.*\n.*lr=2\.0.*and the last tells \(cluster_runs\.py, line"
    ):
        run_all(cluster_runs.measure, runs, address, tmp_path / "kept", "told")
    assert "told: one run failed, the others continue: Told(lr=2.0" in capfd.readouterr().err
    (tmp_path / "mended").touch()
    rows = run_all(cluster_runs.measure, runs, address, tmp_path / "kept", "told")
    assert [row["lr"] for row in rows] == [1, 2, 3]
    assert [len(run.begun()) for run in runs] == [1, 2, 1]


@NO_KILL
def test_the_run_of_a_worker_that_is_killed_is_done_by_another(tmp_path):
    runs = [Told(lr, str(tmp_path), waits_for="go") for lr in (1.0, 2.0, 3.0)]

    def kill_one():
        until(lambda: runs[0].begun() and runs[1].begun())
        killed.extend(runs[0].begun())
        os.kill(killed[0], signal.SIGKILL)
        (tmp_path / "go").touch()

    killed, killer = [], threading.Thread(target=kill_one)
    with dask_cluster(tmp_path / "cluster") as (address, _):
        killer.start()
        rows = run_all(cluster_runs.measure, runs, address, None, "told")
        killer.join()
    assert [row["lr"] for row in rows] == [1, 2, 3]
    survivor = runs[1].begun()
    assert sorted(runs[0].begun()) == sorted([*killed, *survivor]), "begun on the one, done by the other"
    assert len(survivor) == 1 and runs[2].begun() == survivor


CLIENT = """
import sys
from functools import partial
import cluster_runs
from lora_np.__main__ import main
from lora_np.studies.catalogue import STUDIES, Study

told, address = sys.argv[1:]
STUDIES["told"] = Study("Does it resume?", partial(cluster_runs.study, told))
where = ["--folder", f"{told}/runs", "--figures", f"{told}/figures"]
sys.exit(main(["study", "told", "--scheduler", address, *where]))
"""


@NO_KILL
def test_a_command_that_was_killed_does_what_is_left(tmp_path):
    with dask_cluster(tmp_path / "cluster") as (address, _):
        command = [sys.executable, "-c", CLIENT, str(tmp_path), address]
        client = subprocess.Popen(command, env=ENVIRONMENT)
        try:
            until(lambda: len(list((tmp_path / "runs" / "told").glob("told-*.json"))) == 2)
        finally:
            client.kill()
        assert client.wait() == -signal.SIGKILL
        assert not (tmp_path / "figures").exists(), "it was killed in the middle"
        for path in tmp_path.glob("begun-*"):  # what begins from here on was not done before
            path.unlink()
        (tmp_path / "go").touch()
        again = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0, again.stderr
    assert "told: 2 of 4 runs read from files" in again.stderr
    assert {path.name.split("-")[1] for path in tmp_path.glob("begun-*")} == {"3.0", "4.0"}
    rows = json.loads((tmp_path / "figures" / "data" / "told.json").read_text())["rows"]
    assert [row["lr"] for row in rows] == [1, 2, 3, 4]


@NO_KILL
def test_a_scheduler_that_goes_away_is_an_error_and_no_hang(tmp_path):
    runs = [Told(1.0, str(tmp_path)), Told(2.0, str(tmp_path), waits_for="go")]

    def kill_it():
        until(lambda: list((tmp_path / "kept").glob("*.json")) and runs[1].begun())
        scheduler.kill()

    with dask_cluster(tmp_path / "cluster") as (address, scheduler):
        killer = threading.Thread(target=kill_it)
        killer.start()
        with pytest.raises(ConnectionError, match="ended; finished runs are kept"):
            run_all(cluster_runs.measure, runs, address, tmp_path / "kept", "told")
        killer.join()
        (tmp_path / "go").touch()


def test_a_cluster_with_another_version_is_refused(address, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "version", lambda package: "0.0")
    workers.fingerprint.cache_clear()
    try:
        with pytest.raises(
            RuntimeError, match=r"the scheduler has numpy .* \(here 0\.0\); the worker tcp://.*install the same"
        ):
            run_all(cluster_runs.measure, [Told(1.0, str(tmp_path))], address, None, "told")
    finally:
        workers.fingerprint.cache_clear()
    assert not Told(1.0, str(tmp_path)).begun()


def test_where_no_scheduler_answers_the_error_says_how_to_start_one(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (silent.getsockname()[1], 9):
            with pytest.raises(
                ConnectionError, match=f"no scheduler answers at tcp://127.0.0.1:{port}. Start a scheduler with"
            ):
                run_all(cluster_runs.measure, [Told(1.0, str(tmp_path))], f"tcp://127.0.0.1:{port}", None, "told")


def test_a_scheduler_without_workers_is_an_error_and_no_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 3.0)
    with (
        dask_cluster(tmp_path / "cluster", workers=0) as (address, _),
        pytest.raises(ConnectionError, match="has no workers"),
    ):
        run_all(cluster_runs.measure, [Told(1.0, str(tmp_path))], address, None, "told")


@pytest.fixture
def impatient(monkeypatch):
    """`impatient()` shortens the waits. It is called when the workers have started, which can take seconds."""

    def shorten():
        monkeypatch.setattr(workers, "PATIENCE", 3.0)
        monkeypatch.setattr(workers, "SILENCE", 6.0)

    return shorten


@NO_KILL
def test_a_worker_that_hangs_is_told_before_the_first_run(tmp_path, impatient):
    """A stopped process keeps its connection: the scheduler still counts it, and a call of it would never return."""
    with dask_cluster(tmp_path / "cluster") as (address, _):
        told = Told(1.0, str(tmp_path), waits_for="go")
        (tmp_path / "go").touch()
        run_all(cluster_runs.measure, [told, replace(told, lr=2.0)], address, None, "told")
        impatient()
        with (
            stopped(told.begun()[0]),
            pytest.raises(ConnectionError, match=r"the worker tcp://\S+ does not answer within 3 s\. End the process"),
        ):
            run_all(cluster_runs.measure, [replace(told, lr=3.0)], address, None, "told")
    assert not Told(3.0, str(tmp_path)).begun()


@NO_KILL
def test_a_worker_that_hangs_in_a_run_is_told_and_the_others_continue(tmp_path, monkeypatch, impatient):
    runs = [Told(lr, str(tmp_path), waits_for="go") for lr in (1.0, 2.0, 3.0)]

    def hang():
        until(lambda: runs[0].begun() and runs[1].begun())
        impatient()
        pid = runs[0].begun()[0]
        os.kill(pid, signal.SIGSTOP)
        until(told.is_set)
        os.kill(pid, signal.SIGKILL)  # what the warning says to do
        (tmp_path / "go").touch()

    told, hanging = threading.Event(), threading.Thread(target=hang)
    monkeypatch.setattr(workers.warnings, "warn", lambda text, *_, **__: (texts.append(text), told.set()))
    texts = []
    with dask_cluster(tmp_path / "cluster") as (address, _):
        hanging.start()
        rows = run_all(cluster_runs.measure, runs, address, None, "told")
        hanging.join()
    assert [row["lr"] for row in rows] == [1, 2, 3]
    (text,) = texts
    assert re.match(
        r"the worker tcp://\S+ hangs: no heartbeat for 6 s\. End the process of tcp://\S+ \(kill -9\)", text
    )


@NO_KILL
@pytest.mark.parametrize(
    ("signal_sent", "message"),
    [(signal.SIGKILL, "all workers have left"), (getattr(signal, "SIGSTOP", None), r"all workers hang \(tcp://")],
    ids=["killed", "stopped"],
)
def test_a_cluster_that_loses_its_last_worker_is_an_error_and_no_hang(signal_sent, message, tmp_path, impatient):
    runs = [Told(1.0, str(tmp_path)), Told(2.0, str(tmp_path), waits_for="go")]

    def lose():
        until(lambda: list((tmp_path / "kept").glob("*.json")) and runs[1].begun())
        impatient()
        os.kill(runs[1].begun()[0], signal_sent)

    with dask_cluster(tmp_path / "cluster", workers=1) as (address, _):
        losing = threading.Thread(target=lose)
        losing.start()
        with pytest.raises(
            ConnectionError, match=f"{message}.*finished runs are kept.*Start workers with `dask worker"
        ):
            run_all(cluster_runs.measure, runs, address, tmp_path / "kept", "told")
        losing.join()


@NO_KILL
def test_a_scheduler_that_hangs_is_an_error_and_no_hang(tmp_path, impatient):
    runs = [Told(1.0, str(tmp_path)), Told(2.0, str(tmp_path), waits_for="go")]

    def hang():
        until(lambda: list((tmp_path / "kept").glob("*.json")) and runs[1].begun())
        impatient()
        scheduler.send_signal(signal.SIGSTOP)

    with dask_cluster(tmp_path / "cluster") as (address, scheduler):
        hanging = threading.Thread(target=hang)
        hanging.start()
        with pytest.raises(ConnectionError, match="ended; finished runs are kept"):
            run_all(cluster_runs.measure, runs, address, tmp_path / "kept", "told")
        hanging.join()


@pytest.mark.parametrize("wrong", ["localhost", "tcp://localhost", "8786"])
def test_what_is_no_address_is_refused(wrong, tmp_path):
    with pytest.raises(ValueError, match="missing port number"):
        run_all(cluster_runs.measure, [Told(1.0, str(tmp_path))], wrong, None, "told")
