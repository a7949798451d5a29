"""What a GPU would punish and NumPy forgives: each mistake below runs on NumPy as if nothing were wrong, and the double sees it.

A mutant is one edit of a function's source, as in test_mutants.py. Where this file runs over the double (test_devices.py
starts that), the named test must fail; on NumPy it must pass. Tests of the traffic count on the double in either case.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext

import pytest
from by_path import by_path
from mutants import Mutant, mutated
from on_device import DEVICE

from lora_np import ops
from lora_np.backend import scalars_to_host
from lora_np.training import clip_grad_norm, train
from lora_np.training.checkpoint import Checkpoint
from lora_np.training.loop import _gradients

test_ops, test_device_traffic = by_path("proofs/test_ops.py"), by_path("devices/test_device_traffic.py")

EXACT = test_ops.test_backward_agrees_with_the_complex_step_to_1e_12
DTYPE = test_ops.test_the_dtype_that_goes_in_comes_out
NUMPY = '__import__("numpy")'


def op(function, right, wrong, case) -> Mutant:
    return Mutant(function, right, wrong, EXACT, {"case": case})


def waits(function, right, wrong, max_grad_norm=None) -> Mutant:
    caught_by = test_device_traffic.test_a_lora_step_takes_its_batch_in_and_brings_one_answer_out
    return Mutant(function, right, wrong, caught_by, {"max_grad_norm": max_grad_norm})


MUTANTS = {
    # host and device
    "np.exp for xp.exp": op(ops.activation.sigmoid, "xp.exp(e, out=e)", f"{NUMPY}.exp(e, out=e)", "silu"),
    "a constant array on the host": op(
        ops.activation.sigmoid, "xp.divide(1, e, out=e)", f"xp.divide({NUMPY}.ones(1), e, out=e)", "silu"
    ),
    "an index on the host": op(
        ops.cross_entropy_backward, "dz[xp.arange(safe", f"dz[{NUMPY}.arange(safe", "cross_entropy"
    ),
    "np.asarray of a device array": op(
        ops.attention_forward, "e.real.max(axis", f"{NUMPY}.asarray(e.real).max(axis", "attention"
    ),
    "a loop over rows": op(ops.lora_forward, "h *= scaling", "for row in h: row *= scaling", "lora"),
    "reductions taken for NumPy's scalars": waits(
        scalars_to_host, "np.array(scalars) if isinstance(first, np.generic) else", "np.array(scalars) if True else"
    ),
    # what CuPy has not
    "a sum with where": op(ops.softmax_forward, "keepdims=True)\n    return", "keepdims=True, where=True)\n    return", "softmax"),
    "errstate": op(
        ops.rms_norm_forward, "rho = 1 /", "with xp.errstate(all='ignore'): rho = 1 /", "rms_norm"
    ),
    "complex numbers in add.at": Mutant(
        ops.embedding_backward,
        "xp.add.at(dE.view(real), ids, dy.view(real))",
        "xp.add.at(dE, ids, dy)",
        DTYPE,
        {"case": "embedding", "dtype": "complex128"},
    ),
    "a mask of float64 on scores of float32": Mutant(
        ops.attention_forward, ", dtype=e.real.dtype", "", DTYPE, {"case": "attention", "dtype": "float32"}
    ),
    # waits and transfers
    "if x.max() > 0": waits(
        ops.activation.sigmoid, "xp.exp(e, out=e)", "xp.exp(e, out=e) if e.max() > -1e9 else None"
    ),
    "a loss that is looked at in the loop": waits(
        _gradients,
        "losses.append(share * loss_and_gradients(model, tokens, targets, rng, workers, share))",
        "losses.append(share * float(loss_and_gradients(model, tokens, targets, rng, workers, share)))",
    ),
    "loss and norm fetched one by one": waits(
        train,
        "map(float, scalars_to_host([total, size]))",
        "float(total), float(size)",
    ),
    "clipping that asks how long the gradient is": waits(
        clip_grad_norm, "(max_norm / (norm + 1e-6)).clip(None, 1.0)", "min(1.0, max_norm / (float(norm) + 1e-6))", 1.0
    ),
    "ids looked at where they compute": waits(ops.checks.check_ids, "if not on_host(ids)", "if False"),
    "a mean over a boolean index": waits(
        ops.loss.shares, "counts / counts.sum()", "counts / targets[counts].size"
    ),
    "a constant brought from the host in each step": waits(
        ops.rotary_tables, "xp.arange(0, head_dim, 2)", f"xp.asarray({NUMPY}.arange(0, head_dim, 2))"
    ),
    "weights asked one by one whether they are finite": Mutant(
        Checkpoint.save,
        "isfinite(p.value).all() for p",
        "asarray(bool(array_module(p.value).isfinite(p.value).all())) for p",
        test_device_traffic.test_a_checkpoint_waits_once_for_all_weights_to_be_finite_and_once_for_each_array,
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_device_catches_what_numpy_lets_pass(name, monkeypatch, request):
    mutant = MUTANTS[name]
    fixtures = [p for p in inspect.signature(mutant.caught_by).parameters if p not in mutant.arguments]

    def run():
        mutant.caught_by(**mutant.arguments | {fixture: request.getfixturevalue(fixture) for fixture in fixtures})

    run()
    monkeypatch.setattr(mutant.function, "__code__", mutated(mutant.function, mutant.right, mutant.wrong))
    on_the_double = DEVICE == "double" or mutant.caught_by.__module__ == "test_device_traffic"
    with pytest.raises((AssertionError, TypeError, AttributeError)) if on_the_double else nullcontext():
        run()
