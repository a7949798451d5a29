"""PyTorch computes in one thread: it waits for others by spinning, and bounds are of one order of summation."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def one_thread():
    torch = pytest.importorskip("torch", reason="the oracles are not installed: run `make test-oracles`")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
