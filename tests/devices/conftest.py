"""What the tests of devices share."""

from __future__ import annotations

import pytest

from lora_np import LoraConfig, get_peft_model, load_model


@pytest.fixture
def adapted(double):
    """`adapted(**settings)`: a fresh one, with an adapter in each linear layer."""

    def make(**settings):
        return get_peft_model(
            load_model("tiny", device="cupy"), LoraConfig(r=2, target_modules="all-linear", **settings)
        )

    return make
