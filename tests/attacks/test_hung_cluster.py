"""A Dask cluster that loses its workers is told within a minute, by a clock of the test's own (test_cluster.py: for real)."""

from __future__ import annotations

import pytest

from lora_np.studies.harness import workers
from lora_np.studies.harness.workers import Watch

ADDRESS = "tcp://10.0.0.1:8786"


class Cluster:
    """A Dask client and its scheduler: `alive` workers send heartbeats, `hung` workers stay connected and do not."""

    def __init__(self, monkeypatch, alive=(), hung=()) -> None:
        self.now, self.alive, self.hung, self.answers, self.scheduler = 1000.0, alive, hung, True, self
        self.last = dict.fromkeys([*alive, *hung], 5.0)  # the scheduler's clock is another one
        monkeypatch.setattr(workers.time, "monotonic", lambda: self.now)

    def identity(self, n_workers):
        assert n_workers == -1, "or Dask leaves out workers"
        return {"workers": {name: {"last_seen": self.last[name]} for name in [*self.alive, *self.hung]}}

    def sync(self, call, callback_timeout, **options):
        if not self.answers:
            self.now += callback_timeout
            raise TimeoutError("timed out")
        return call(**options)

    def pass_time(self, watch, seconds):
        """Look as `_on_cluster` does, while the alive workers send heartbeats."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.5
            self.last.update({name: self.last[name] + 0.5 for name in self.alive})
            watch.look()


def test_workers_that_send_heartbeats_are_never_reported(monkeypatch):
    cluster = Cluster(monkeypatch, alive=("a", "b"))
    cluster.pass_time(Watch(cluster, ADDRESS), 10_000)


def test_one_that_hangs_is_told_once_and_the_others_continue(monkeypatch):
    cluster = Cluster(monkeypatch, alive=("tcp://a",), hung=("tcp://b",))
    watch = Watch(cluster, ADDRESS)
    cluster.pass_time(watch, 20)
    with pytest.warns(
        RuntimeWarning, match=r"the worker tcp://b hangs: no heartbeat for 30 s\. End the process of tcp://b"
    ):
        cluster.pass_time(watch, 40)
    cluster.pass_time(watch, 1000)  # a second warning would be an error


LOST = {
    "all workers hang": (
        {"hung": ("tcp://a", "tcp://b")},
        r"all workers hang \(tcp://a, tcp://b\).* kept\. End the process of",
    ),
    "no worker is left": (
        {},
        r"all workers have left; finished runs are kept\. Start workers with `dask worker tcp://10",
    ),
}


@pytest.mark.parametrize("what", LOST)
def test_a_cluster_without_a_working_worker_is_an_error(what, monkeypatch):
    cluster = Cluster(monkeypatch, **LOST[what][0])
    watch, began = Watch(cluster, ADDRESS), cluster.now
    with pytest.raises(ConnectionError, match=LOST[what][1]):
        cluster.pass_time(watch, 10_000)
    assert cluster.now - began <= 60, "within a minute"


def test_workers_that_start_again_in_time_are_no_error(monkeypatch):
    cluster = Cluster(monkeypatch, alive=("a",))
    watch = Watch(cluster, ADDRESS)
    for _ in range(5):
        cluster.alive = ()
        cluster.pass_time(watch, 20)
        cluster.alive = ("a",)
        cluster.pass_time(watch, 20)


def test_a_scheduler_that_hangs_is_an_error(monkeypatch):
    cluster = Cluster(monkeypatch, alive=("a",))
    watch = Watch(cluster, ADDRESS)
    cluster.pass_time(watch, 100)
    cluster.answers, began = False, cluster.now
    with pytest.raises(
        ConnectionError, match=f"the scheduler at {ADDRESS} ended; finished runs are kept. Start the scheduler"
    ):
        cluster.pass_time(watch, 10_000)
    assert cluster.now - began <= 60, "within a minute"
