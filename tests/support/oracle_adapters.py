"""Adapters written by PEFT and here, and whether both models answer the same."""

from __future__ import annotations

import numpy as np
import pytest
from oracle_models import UNTIED, largest_difference, peft, random_batch, torch

import lora_np as ln

TOKENS = random_batch(seed=3)[0]
BOUNDS = {np.float64: 1e-10, np.float32: 1e-4}  # on logits of size 1 to 10; measured 2e-14 and 2e-5
dtypes = pytest.mark.parametrize("dtype", BOUNDS, ids=lambda dtype: dtype.__name__)
DEEP = UNTIED | {
    "num_hidden_layers": 3
}  # with 21 linear layers PEFT writes suffixes for all-linear, with 14 full names

ALL_LINEAR = {"r": 3, "lora_alpha": 8, "target_modules": "all-linear"}


def fill(model, seed=1):
    """Random A and B, with B ≠ 0: at B = 0 an adapter that was not loaded would pass for one that was."""
    rng = np.random.default_rng(seed)
    for name, p in model.named_parameters():
        adapted = ".lora_" in name or ".modules_to_save." in name
        if adapted and isinstance(model, ln.Module):
            p.value = rng.standard_normal(p.value.shape).astype(p.value.dtype) / 3
        elif adapted:
            p.data.copy_(torch.from_numpy(rng.standard_normal(tuple(p.shape)) / 3))
    return model


def peft_config(settings):
    return peft.LoraConfig(task_type="CAUSAL_LM", **settings)


def written_by_peft(theirs, settings, folder, seed=1):
    """Adapt their model, and save the adapter."""
    theirs = fill(peft.get_peft_model(theirs, peft_config(settings)), seed)
    theirs.save_pretrained(str(folder))
    return theirs.eval()


def written_here(ours, settings, folder, seed=1):
    """The same with our model."""
    ours = fill(ln.get_peft_model(ours, ln.LoraConfig(**settings)), seed)
    ours.save_pretrained(folder)
    return ours


def logits_of(model):
    if isinstance(model, ln.Module):
        return model.forward(TOKENS)[0]
    with torch.no_grad():
        return model.eval()(input_ids=torch.from_numpy(TOKENS)).logits.numpy()


def assert_same_logits(ours, theirs, bound):
    error = largest_difference(logits_of(ours), logits_of(theirs))
    print(f"measured {error:.1e}; bound {bound:.0e}")
    assert error <= bound, (
        f"logits differ by {error:.1e}: another scaling, rank or layer than the adapter was made with"
    )
