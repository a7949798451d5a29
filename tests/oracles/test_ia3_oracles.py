"""IA³ against PEFT: logits, gradients, merged weights, and files in both directions."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.oracle
pytest.importorskip("peft")

from oracle_models import (  # noqa: E402
    UNTIED,
    DoubleTorch,
    base_pair,
    largest_difference,
    modeling_llama,
    peft,
    random_batch,
    torch,
)

import lora_np as ln  # noqa: E402


def host(x):
    return x.detach().numpy()


SETTINGS = {
    "target_modules": ["k_proj", "v_proj", "o_proj", "down_proj"],
    "feedforward_modules": ["o_proj", "down_proj"],
}


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Theirs, drawn by PEFT and saved; ours, loaded from the folder, to train."""
    monkeypatch.setattr(modeling_llama, "torch", DoubleTorch("torch"))
    ours, theirs = base_pair(UNTIED)
    theirs = peft.get_peft_model(theirs, peft.IA3Config(**SETTINGS, init_ia3_weights=False)).double()
    theirs.save_pretrained(tmp_path)
    return ln.PeftModel.from_pretrained(ours, tmp_path, is_trainable=True), theirs


def test_logits_and_gradients_are_pefts(pair):
    ours, theirs = pair
    tokens, targets = random_batch(0, ignored=0)
    assert largest_difference(ours(tokens), host(theirs(torch.tensor(tokens)).logits)) < 1e-12
    _, cache = ours.loss(tokens, targets)
    ours.backward(cache)
    logits = theirs(torch.tensor(tokens)).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten()).backward()
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    found = {name: p.grad for name, p in ours.named_parameters() if p.trainable}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert largest_difference(gradient, host(expected[name])) < 1e-12, name


def test_what_is_saved_here_answers_in_peft(pair, tmp_path):
    ours, _ = pair
    tokens, _ = random_batch(0, ignored=0)
    for _, p in ours.named_parameters():
        if p.trainable:
            p.value += 0.1
    expected = ours(tokens)
    ours.save_pretrained(tmp_path / "again")
    _, base = base_pair(UNTIED)
    again = peft.PeftModel.from_pretrained(base, tmp_path / "again", autocast_adapter_dtype=False)
    assert largest_difference(expected, host(again(torch.tensor(tokens)).logits)) < 1e-6, "PEFT keeps l in float32"
    assert largest_difference(ours.merge_and_unload(safe_merge=True)(tokens), expected) < 1e-12


def test_it_starts_as_the_base_to_the_bit():
    ours, _ = base_pair(UNTIED, np.float32)
    tokens, _ = random_batch(0, ignored=0)
    base = ours(tokens)
    assert (ln.get_peft_model(ours, ln.IA3Config(**SETTINGS))(tokens) == base).all()
