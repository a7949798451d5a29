"""A training step on a device: the batch goes in, one answer comes out, and nobody waits in between. Counted on the double."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cupy_double import Traffic, traffic

from lora_np import AdamW, evaluate, load_model, train

STEP = Traffic(to_device=2, to_host=1, waits=1)  # tokens and targets in; the loss with the gradient norm out


@pytest.fixture
def tiny(double):
    """The base that comes with the package, on the double."""
    return load_model("tiny", device="cupy")


class Metered:
    """Short batches on the host. Asked for the next one, it writes down what moved since the one before."""

    def __init__(self):
        self.seen = []

    def __getitem__(self, step):
        self.seen.append(replace(traffic))
        traffic.reset()
        window = np.random.default_rng(step).integers(0, 256, (2, 17))
        return window[:, :-1], window[:, 1:]


def steps(model, accumulate=1, **settings):
    """What moved between a batch and the next, from the second step on: the first one also looks for the checkpoint's sake."""
    batches = Metered()
    train(model, batches, AdamW(1e-3), steps=4, accumulate=accumulate, **settings)
    return batches.seen[accumulate + 1 :]


@pytest.mark.parametrize("max_grad_norm", [None, 1.0], ids=["free", "clipped"])
def test_a_lora_step_takes_its_batch_in_and_brings_one_answer_out(adapted, max_grad_norm):
    assert steps(adapted(), max_grad_norm=max_grad_norm) == [STEP, STEP]


@pytest.mark.parametrize("max_grad_norm", [None, 1.0], ids=["free", "clipped"])
def test_a_full_fine_tuning_step_does_the_same(tiny, max_grad_norm):
    assert steps(tiny, max_grad_norm=max_grad_norm) == [STEP, STEP]


def test_three_batches_to_a_step_bring_one_answer_out_together(adapted):
    """They are asked for at once, to weigh them by their tokens; then nobody waits until the one answer of the step."""
    none, step = Traffic(), replace(STEP, to_device=3 * STEP.to_device)
    assert steps(adapted(), accumulate=3) == [none, none, step, none, none, step, none, none]


def test_dropout_brings_its_masks_from_the_host(adapted):
    """One for each adapted layer, a byte a number: the price of the same masks on every device. Without dropout: none."""
    model = adapted(lora_dropout=0.1)
    masks = len(model.lora_layers())
    assert masks == 35
    assert steps(model) == [Traffic(to_device=2 + masks, to_host=1, waits=1)] * 2


def test_a_checkpoint_waits_once_for_all_weights_to_be_finite_and_once_for_each_array(adapted, tmp_path):
    model = adapted()
    trainable = sum(p.trainable for _, p in model.named_parameters())
    saved, arrays = STEP.waits + 1, 3 * trainable  # a value and AdamW's two moments for each
    assert steps(model, checkpoint_every=1) == [replace(STEP, to_host=saved, waits=saved)] * 2, "without a file"
    written = saved + arrays
    expected = [replace(STEP, to_host=written, waits=written)] * 2
    assert steps(model, checkpoint=tmp_path / "run", checkpoint_every=1) == expected


def test_evaluating_waits_once_a_batch(tiny):
    batches = [Metered()[i] for i in range(3)]
    traffic.reset()
    evaluate(tiny, batches)
    assert traffic == Traffic(to_device=6, to_host=3, waits=3)


def test_a_forward_and_backward_wait_for_nothing(tiny):
    tokens, targets = Metered()[0]
    traffic.reset()
    loss, cache = tiny.loss(tokens, targets)
    tiny.backward(cache)
    assert traffic == Traffic(to_device=2)
    assert loss.shape == () and loss.dtype == np.float32


def test_a_batch_that_is_there_already_moves_nothing(tiny, double):
    tokens, targets = map(double.asarray, Metered()[0])
    traffic.reset()
    tiny.backward(tiny.loss(tokens, targets)[1])
    assert traffic == Traffic()


def test_moving_a_model_takes_each_parameter_over_once(double):
    model = load_model("tiny", device="numpy")
    parameters = len(list(model.named_parameters()))
    assert traffic == Traffic()
    model.to("cupy")
    assert traffic == Traffic(to_device=parameters)
    model.to("cupy")
    assert traffic == Traffic(to_device=parameters), "what is there already stays"
    model.to("numpy")
    assert traffic == Traffic(to_device=parameters, to_host=parameters, waits=parameters)
