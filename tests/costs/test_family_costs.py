"""What a step over each family keeps, to the byte, and the peak of a step."""

from __future__ import annotations

import numpy as np
import pytest
from family_models import FAMILIES, family_model

import lora_np as ln
from lora_np.costs import memory
from lora_np.studies.timing.step_cost import training_peak

METHODS = {"full": None, "LoRA": ln.LoraConfig(target_modules="all-linear"), "prefix": ln.PrefixTuningConfig()}
families = pytest.mark.parametrize("family", FAMILIES)
methods = pytest.mark.parametrize("method", METHODS)


def prepared(family, method):
    model = family_model(family, np.float32)
    return model if METHODS[method] is None else ln.get_peft_model(model, METHODS[method])


def batch_of(model, rows, length):
    window = np.random.default_rng(0).integers(0, model.config.vocab_size, (rows, length + 1))
    return window[:, :-1].copy(), window[:, 1:].copy()


def memories(cache, found):
    """The arrays of a cache that own their memory, by id. A view is replaced by its base array."""
    if isinstance(cache, np.ndarray):
        while isinstance(cache.base, np.ndarray):
            cache = cache.base
        found[id(cache)] = cache
    elif isinstance(cache, tuple | list):
        for each in cache:
            memories(each, found)
    return found


@families
@methods
def test_what_the_forward_keeps_is_predicted_to_the_byte(family, method):
    model = prepared(family, method)
    tokens, targets = batch_of(model, 3, 70)
    _, cache = model.loss(tokens, targets)
    there_anyway = memories([tokens, targets, *model.state_dict().values()], {})
    kept = sum(x.nbytes for key, x in memories(cache, {}).items() if key not in there_anyway)
    assert memory(model, batch=3, seq=70).activations == kept


@families
def test_gradients_are_the_bytes_of_the_arrays(family):
    model = prepared(family, "full")
    tokens, targets = batch_of(model, 2, 5)
    model.backward(model.loss(tokens, targets)[1])
    assert memory(model, batch=2, seq=5).gradients == sum(p.grad.nbytes for _, p in model.named_parameters())


@families
@methods
def test_the_peak_is_what_tracemalloc_sees(family, method):
    model = prepared(family, method)
    seen = training_peak(model, [batch_of(model, 4, 100)])
    assert memory(model, batch=4, seq=100).total - memory(model, batch=4, seq=100).weights == pytest.approx(
        seen, rel=0.05
    )
