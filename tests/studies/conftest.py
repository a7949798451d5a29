"""What the tests of studies share: a base and a setting with which a study takes seconds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_studies import serially

from lora_np import Transformer, save_model
from lora_np.studies.convergence.study import QUICK
from lora_np.studies.harness import runs, tiny_task
from lora_np.studies.pretraining.study import TINY


@pytest.fixture
def small_base(tmp_path):
    """A random model that reads bytes, in a folder."""
    config = replace(TINY, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    save_model(Transformer.random(config), tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def setting(small_base, monkeypatch):
    batch = np.arange(64).reshape(2, 32), np.arange(1, 65).reshape(2, 32)
    monkeypatch.setattr(tiny_task, "_unseen", lambda: [batch, (batch[1], batch[0])])
    monkeypatch.setattr(runs, "run_all", serially)
    return replace(QUICK, base=small_base, steps=3, batch_size=2, eval_every=1, ranks=(1, 4), seeds=(0, 1))
