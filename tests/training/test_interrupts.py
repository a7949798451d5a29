"""Ctrl-C in any part of a step: the checkpoint has every complete update and no part of another one."""

from __future__ import annotations

import os
import signal
import sys
import threading

import numpy as np
import pytest
from on_device import host

import lora_np as ln
from lora_np.files import arrays as arrays_module
from lora_np.files import load_arrays
from lora_np.training import loop
from lora_np.training.interrupts import Interrupts, sigterm_as_ctrl_c

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C to every process of a console")

STEPS, STOPPED = 5, 3


@pytest.fixture(autouse=True)
def handler():
    """Python's own handler of Ctrl-C: a shell that starts tests in the background lets them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ctrl_c(number=signal.SIGINT):
    os.kill(os.getpid(), number)


class Once:
    """A function that sends Ctrl-C in call `at`, before or after the call that it wraps."""

    def __init__(self, call, at, after=False):
        self.call, self.at, self.after, self.calls = call, at, after, 0

    def __call__(self, *args, **named):
        self.calls += 1
        now = self.calls == self.at
        if now and not self.after:
            ctrl_c()
        found = self.call(*args, **named)
        if now and self.after:
            ctrl_c()
        return found


@pytest.fixture
def run(make_model, random_batch, tmp_path):
    """`run()` trains with a checkpoint, or continues from it, and returns everything that must be equal."""
    text = [random_batch(seed=seed) for seed in range(3)]

    def run(folder="run", **more):
        config = ln.LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.3)
        model = ln.get_peft_model(make_model(np.float32), config)
        given = {
            "heldout": text[:1],
            "eval_every": 2,
            "checkpoint_every": 100,
            "resume": True,
            "progress": False,
        } | more
        history = ln.train(model, text, ln.AdamW(0.05), STEPS, checkpoint=tmp_path / folder / "checkpoint", **given)
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in history.rows]
        values = {name: host(p.value).tobytes() for name, p in model.named_parameters() if p.trainable}
        return rows, values

    return run


def saved_step(tmp_path):
    return int(load_arrays(tmp_path / "run" / "checkpoint")[1]["step"])


def in_the_backward_pass(patch):
    patch.setattr(loop, "loss_and_gradients", Once(loop.loss_and_gradients, STOPPED + 1, after=True))
    return STOPPED


def in_an_update(patch):
    """Between the first and the second parameter; the update is finished first."""
    update, seen = ln.AdamW._update, []

    def with_ctrl_c(self, *given):
        seen.append(self.t)
        if self.t == STOPPED and seen.count(STOPPED) == 2:
            ctrl_c()
        update(self, *given)

    patch.setattr(ln.AdamW, "_update", with_ctrl_c)
    return STOPPED


def in_an_evaluation(patch):
    patch.setattr(loop, "evaluate", Once(loop.evaluate, 2, after=True))  # after two updates
    return 2


def in_the_last_evaluation(patch):
    patch.setattr(loop, "evaluate", Once(loop.evaluate, 4))
    return STEPS


def in_the_first_evaluation(patch):
    patch.setattr(loop, "evaluate", Once(loop.evaluate, 1))
    return 0


def in_a_save(patch):
    patch.setattr(arrays_module, "_write", Once(arrays_module._write, 1))  # the first save, before the first update
    return 1


def in_the_last_save(patch):
    patch.setattr(arrays_module, "_write", Once(arrays_module._write, 2, after=True))
    return STEPS


PLACES = [in_the_backward_pass, in_an_update, in_an_evaluation, in_the_first_evaluation, in_the_last_evaluation]


@pytest.mark.parametrize("place", [*PLACES, in_a_save, in_the_last_save])
def test_ctrl_c_anywhere_saves_the_last_complete_update(place, run, tmp_path, monkeypatch):
    expected = run(folder="never stopped")
    with monkeypatch.context() as patch:
        step = place(patch)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert saved_step(tmp_path) == step
    assert run() == expected
    assert os.listdir(tmp_path / "run") == ["checkpoint"], "the lock and all temporary files must be removed"


def test_a_second_ctrl_c_does_not_stop_the_save(run, tmp_path, monkeypatch):
    """Programs that start others pass Ctrl-C on, and the terminal sends it to all: it often comes twice."""
    with monkeypatch.context() as patch:
        in_the_backward_pass(patch)
        patch.setattr(arrays_module, "_write", Once(arrays_module._write, 2))  # the first save is at step 0
        with pytest.raises(KeyboardInterrupt):
            run()
    assert saved_step(tmp_path) == STOPPED


def test_without_a_checkpoint_ctrl_c_stops(make_model, random_batch, monkeypatch):
    monkeypatch.setattr(loop, "loss_and_gradients", Once(loop.loss_and_gradients, 2))
    with pytest.raises(KeyboardInterrupt):
        ln.train(make_model(), [random_batch()], ln.SGD(0.1), 3)


def test_handlers_are_as_before_afterwards(run):
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_as_ctrl_c(), pytest.raises(KeyboardInterrupt):
        ctrl_c(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_handler_of_the_caller_stays():
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with Interrupts():
            ctrl_c()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]


def test_training_in_a_thread_sets_no_handler(run):
    """Python lets only the main thread set one."""
    found = []
    thread = threading.Thread(target=lambda: found.append(run()))
    thread.start()
    thread.join()
    assert found
