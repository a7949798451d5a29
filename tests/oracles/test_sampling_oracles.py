"""Sampling excludes and penalises the same tokens as the logits processors of transformers."""

from __future__ import annotations

import numpy as np
import pytest
from oracle_models import torch, transformers

from lora_np.transformer.generation import Sampling

pytestmark = pytest.mark.oracle


def theirs(z, prompt, new, settings):
    """Return the probabilities that transformers draws from, in the order in which its `generate` applies the options."""
    from transformers.generation import logits_process as processors

    classes = {
        "repetition_penalty": processors.RepetitionPenaltyLogitsProcessor,
        "temperature": processors.TemperatureLogitsWarper,
        "top_k": processors.TopKLogitsWarper,
        "top_p": processors.TopPLogitsWarper,
        "min_p": processors.MinPLogitsWarper,
    }
    chain = transformers.LogitsProcessorList(
        [kind(settings[name]) for name, kind in classes.items() if name in settings]
    )
    scores = chain(torch.tensor([[*prompt, *new]]), torch.from_numpy(z[None].copy()))
    return torch.softmax(scores, -1).numpy()[0]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "settings",
    [
        {"min_p": 0.2},
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.6},
        {"top_k": 9, "min_p": 0.3},
        {"top_p": 0.8, "min_p": 0.1},
        {"repetition_penalty": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
def test_the_probabilities_equal_those_of_transformers(settings, seed):
    rng = np.random.default_rng(seed)
    z, settings = rng.standard_normal(50) * 2, {"temperature": float(rng.uniform(0.5, 2))} | settings
    prompt, new = rng.integers(0, 50, 7).tolist(), rng.integers(0, 50, 5).tolist()
    sampling = Sampling(**settings)
    penalised = sampling.penalised(z, prompt, new) if sampling.has_penalties else z
    expected = theirs(z, prompt, new, settings)
    ours = sampling.probabilities(penalised)
    assert np.array_equal(ours > 0, expected > 0)
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-15)
