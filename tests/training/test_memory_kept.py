"""Freed memory stays in the process during training, and results do not depend on it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import lora_np as ln
from lora_np import memory
from lora_np.memory import keep_freed_memory

glibc = pytest.mark.skipif(memory._glibc() is None, reason="the C library is not glibc")

FAULTS = """
import resource, sys
import numpy as np
from lora_np.memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        a, b = np.ones(200_000), np.ones(800_000)
        del a, b
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
if sys.argv[1] == "kept":
    with keep_freed_memory() as kept:
        np.ones(2_000_000)
        print(kept, faults())
else:
    with keep_freed_memory() as kept:
        print(kept, faults())
"""


def page_faults(what, **environment):
    command = [sys.executable, "-c", FAULTS, what]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
    kept, faults = run.stdout.split()
    return kept == "True", int(faults)


@glibc
def test_freed_arrays_are_used_again_without_new_pages():
    kept, faults = page_faults("kept")
    assert kept and faults < 5_000, "20 × 8 MB in new pages would be about 39,000 page faults"


@glibc
def test_the_switch_turns_it_off():
    kept, _ = page_faults("off", LORA_NP_KEEP_MEMORY="0")
    assert not kept


def test_without_glibc_nothing_changes(monkeypatch):
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    with keep_freed_memory() as kept:
        assert not kept


def test_no_two_live_arrays_share_memory():
    with keep_freed_memory():
        arrays = [np.full(200_000, i, np.float32) for i in range(20)]
        del arrays[::2]
        arrays += [np.full(200_000, -1, np.float32) for _ in range(10)]
        assert not any(np.shares_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i])
        assert [int(a.sum() / a.size) for a in arrays[:10]] == list(range(1, 20, 2))


def test_training_gives_the_same_weights_to_the_bit(make_model, monkeypatch):
    def trained(switch):
        monkeypatch.setenv(memory.SWITCH, switch)
        model = ln.get_peft_model(make_model(np.float32), ln.LoraConfig(r=2, target_modules="all-linear"))
        tokens = np.arange(12).reshape(2, 6) % 11
        ln.train(model, [(tokens, tokens)], ln.AdamW(0.05), steps=3)
        return [p.value.tobytes() for _, p in model.named_parameters()]

    assert trained("1") == trained("0")
