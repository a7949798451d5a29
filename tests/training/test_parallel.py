"""Tests of several workers: gradients equal those of one worker, are reproducible to the bit, and only weights are shared."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from adapted import adapted

from lora_np import ops
from lora_np.training import parallel
from lora_np.training.parallel import loss_and_gradients
from lora_np.training.rows import RowsOfMasks, pieces


@pytest.fixture
def batch():
    rng = np.random.default_rng(3)
    tokens, targets = rng.integers(0, 11, (2, 5, 6))
    targets[1, 2:] = targets[4, 1:] = ops.IGNORE_INDEX  # the shards have different numbers of counted tokens
    return tokens, targets


def run(model, batch, **settings):
    model.zero_grad()
    loss = loss_and_gradients(model, *batch, **settings)
    return loss, {name: p.grad for name, p in model.named_parameters() if p.trainable}


@pytest.mark.parametrize("workers", [2, 3, 5, 8])
@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_shards_add_up_to_the_whole_batch(make_model, batch, workers, full):
    model = make_model(tie_word_embeddings=True) if full else adapted(make_model())
    loss, gradients = run(model, batch)
    shared_loss, shared = run(model, batch, workers=workers)
    assert float(shared_loss) == pytest.approx(float(loss), rel=1e-14)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(shared[name], gradient, rtol=1e-10, atol=1e-15, err_msg=name)


def test_the_result_is_the_same_to_the_bit_however_the_threads_interleave(make_model, batch):
    model = adapted(make_model(np.float32))
    _, first = run(model, batch, workers=3)
    for _ in range(5):
        _, again = run(model, batch, workers=3)
        assert all(np.array_equal(again[name], gradient) for name, gradient in first.items())


def test_the_order_of_the_sum_is_the_shards_whoever_is_done_first(make_model, batch):
    model, last_is_done = adapted(make_model(np.float32)), threading.Event()
    _, expected = run(model, batch, workers=3)
    counted = [int((rows != ops.IGNORE_INDEX).sum()) for rows in np.array_split(batch[1], 3)]
    first, _, last = shares = [n / sum(counted) for n in counted]
    assert len(set(shares)) == 3, "different shares, so that each shard can be identified"

    class Late(type(model)):
        def backward(self, cache, dloss=1.0):
            super().backward(cache, dloss)
            if dloss == last:
                last_is_done.set()
            elif dloss == first:
                assert last_is_done.wait(10)

    model.__class__ = Late
    _, again = run(model, batch, workers=3)
    assert all(np.array_equal(again[name], gradient) for name, gradient in expected.items())


@pytest.mark.parametrize(("workers", "rows", "each"), [(2, 5, 1), (8, 2, 4), (7, 3, 2)])
def test_no_core_is_left_idle_and_blas_gets_its_threads_back(make_model, batch, monkeypatch, workers, rows, each):
    import contextlib

    seen = []

    class Blas:
        @contextlib.contextmanager
        def limit(self, limits, user_api):
            seen.append(limits)
            yield

    monkeypatch.setattr(parallel, "_blas", Blas)
    run(adapted(make_model()), tuple(x[:rows] for x in batch), workers=workers)
    assert seen == [each]


def settings_of_the_process():
    return sys.getswitchinterval(), [pool["num_threads"] for pool in parallel._blas().info()]


def test_two_calls_at_once_leave_the_settings_of_the_process_as_they_were(make_model, batch):
    pytest.importorskip("threadpoolctl")
    before = settings_of_the_process()
    models = [adapted(make_model()) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda model: run(model, batch, workers=2), models))
    assert settings_of_the_process() == before


def test_a_failed_step_leaves_the_settings_of_the_process_as_they_were(make_model, batch):
    pytest.importorskip("threadpoolctl")
    before, during, model = settings_of_the_process(), [], adapted(make_model())

    class Failing(type(model)):
        def backward(self, cache, dloss=1.0):
            during.append(sys.getswitchinterval())
            raise MemoryError("no room for the backward pass")

    model.__class__ = Failing
    with pytest.raises(MemoryError, match="no room"):
        run(model, batch, workers=2)
    assert during[0] == pytest.approx(parallel.SWITCH_INTERVAL)  # the pool may cancel the second shard
    assert settings_of_the_process() == before


def test_dloss_scales_the_gradient_and_what_is_there_already_stays(make_model, batch):
    model = adapted(make_model())
    once = {name: gradient.copy() for name, gradient in run(model, batch, workers=2)[1].items()}
    loss_and_gradients(model, *batch, workers=2, dloss=0.5)
    for name, p in model.named_parameters():
        if p.trainable:
            np.testing.assert_allclose(p.grad, 1.5 * once[name], rtol=1e-12)


@pytest.mark.parametrize("tokens_at_once", [None, 6, 13])
@pytest.mark.parametrize("workers", [1, 2])
def test_dropout_masks_depend_neither_on_the_workers_nor_on_the_pieces(make_model, batch, workers, tokens_at_once):
    """Also for an adapter of the head, which sees the counted tokens only."""
    model = adapted(make_model(), target_modules=["q_proj", "down_proj", "lm_head"], lora_dropout=0.5)
    whole, gradients = run(model, batch, rng=np.random.default_rng(1))
    without, _ = run(model, batch)
    model.tokens_at_once = tokens_at_once
    loss, shared = run(model, batch, rng=np.random.default_rng(1), workers=workers)
    assert float(loss) == pytest.approx(float(whole), rel=1e-14) and abs(float(without) - float(whole)) > 1e-4
    for name, gradient in gradients.items():
        np.testing.assert_allclose(shared[name], gradient, rtol=1e-9, atol=1e-15, err_msg=name)


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.MT19937], ids=["can advance", "cannot advance"])
@pytest.mark.parametrize("size", [(7, 4, 6), (7, 3, 5)], ids=["even", "odd"])
def test_the_masks_of_some_rows_are_rows_of_the_masks_of_the_batch(bits, size):
    counted = np.array([1, 0, 3, 4, 2, 0, 1])
    rng, parts = np.random.Generator(bits(5)), [slice(0, 2), slice(2, 3), slice(3, 7)]
    some = [RowsOfMasks(rng, rows, counted) for rows in parts]
    for _ in range(3):  # several layers draw, one after the other
        whole = rng.random(size, np.float32)
        drawn = [
            each.random((rows.stop - rows.start, *size[1:]), np.float32) for each, rows in zip(some, parts, strict=True)
        ]
        np.testing.assert_array_equal(np.concatenate(drawn), whole)
        head = rng.random((11, size[2]), np.float32)
        drawn = [each.random((n, size[2]), np.float32) for each, n in zip(some, (1, 3, 7), strict=True)]
        np.testing.assert_array_equal(np.concatenate(drawn), head)


@pytest.mark.parametrize("tokens_at_once", [1, 6, 12, 18, 1000])
@pytest.mark.parametrize("workers", [1, 2])
def test_pieces_that_fit_the_cache_add_up_to_the_whole_batch(make_model, batch, tokens_at_once, workers):
    model = adapted(make_model())
    model.tokens_at_once = None
    loss, gradients = run(model, batch)
    seen = []

    class Spy(type(model)):
        def loss(self, tokens, targets, rng=None):
            seen.append(tokens.size)
            return super().loss(tokens, targets, rng=rng)

    model.__class__ = Spy
    model.tokens_at_once = tokens_at_once
    pieced_loss, pieced = run(model, batch, workers=workers)
    assert max(seen) <= max(6, tokens_at_once) and sum(seen) == 30
    assert float(pieced_loss) == pytest.approx(float(loss), rel=1e-14)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(pieced[name], gradient, rtol=1e-10, atol=1e-15, err_msg=name)


@pytest.mark.parametrize(
    ("rows", "workers", "at_once", "sizes"),
    [
        (16, 1, 512, [[4, 4, 4, 4]]),
        (16, 2, 512, [[4, 4], [4, 4]]),
        (5, 2, 256, [[2, 1], [2]]),
        (3, 8, 1, [[1], [1], [1]]),
    ],
)
def test_a_piece_has_at_most_so_many_tokens_or_one_row(rows, workers, at_once, sizes):
    found = pieces(rows, 128, workers, at_once)
    assert [[part.stop - part.start for part in shard] for shard in found] == sizes
    assert [row for shard in found for part in shard for row in range(rows)[part]] == list(range(rows))
    assert [len(shard) for shard in pieces(rows, 128, workers, None)] == [1] * min(rows, workers)


def test_the_shards_really_run_side_by_side(make_model, batch):
    """Each worker waits for the other inside its forward pass. If they ran one after the other, the test would hang."""
    model, meet = adapted(make_model()), threading.Barrier(2, timeout=10)

    class Spy(type(model)):
        def loss(self, *arguments, **settings):
            meet.wait()
            return super().loss(*arguments, **settings)

    model.__class__ = Spy
    loss_and_gradients(model, *batch, workers=2)


def test_a_shard_in_which_nothing_counts_is_left_out(make_model, batch):
    tokens, targets = batch
    targets = targets.copy()
    targets[3:] = ops.IGNORE_INDEX
    model = adapted(make_model())
    loss, gradients = run(model, (tokens, targets))
    shared_loss, shared = run(model, (tokens, targets), workers=5)
    assert float(shared_loss) == pytest.approx(float(loss), rel=1e-14)
    assert all(np.allclose(shared[name], gradient) for name, gradient in gradients.items())
    with pytest.raises(ValueError, match="every target is ignore_index"):
        run(model, (tokens, np.full_like(targets, ops.IGNORE_INDEX)), workers=2)


def test_a_replica_shares_the_weights_and_not_the_gradients(make_model, batch):
    model = make_model(tie_word_embeddings=True)
    twin = model.replica()
    pairs = list(zip(model.named_parameters(), twin.named_parameters(), strict=True))
    for (name, p), (twins_name, q) in pairs:
        assert name == twins_name and p is not q and p.value is q.value and p.trainable == q.trainable
    twin.backward(twin.loss(*batch)[1])
    assert all(p.grad is None and q.grad is not None for (_, p), (_, q) in pairs)


def test_the_gradients_of_a_replica_are_freed_with_the_replica(make_model, batch):
    """Else full fine-tuning with workers keeps the gradients of earlier steps until the garbage collector runs."""
    gc.collect()
    gc.disable()
    try:
        replica = make_model().replica()
        replica.backward(replica.loss(*batch)[1])
        gradients = [weakref.ref(p.grad) for _, p in replica.named_parameters()]
        del replica
        assert [name for name in map(repr, gradients) if "dead" not in name] == []
    finally:
        gc.enable()


def test_an_error_in_a_shard_is_raised_and_leaves_no_gradient(make_model, batch):
    model = adapted(make_model())
    tokens = batch[0].copy()
    tokens[4, 0] = 999
    with pytest.raises(ValueError, match="contains 999"):
        loss_and_gradients(model, tokens, batch[1], workers=2)
    assert all(p.grad is None for _, p in model.named_parameters())


@pytest.mark.parametrize("rows", [slice(0, 3), slice(1, 3), slice(4, 7)])
def test_a_mask_after_an_odd_number_of_numbers_is_that_of_the_whole_batch(rows):
    """7 · 5 · 3 numbers are odd: the generator keeps half a step, which belongs to the next mask."""
    whole, some = np.random.default_rng(8), RowsOfMasks(np.random.default_rng(8), rows, np.full(7, 5))
    for width in (3, 4, 3, 4, 4):
        expected = whole.random((7, 5, width), np.float32)[rows]
        drawn = some.random((rows.stop - rows.start, 5, width), np.float32)
        np.testing.assert_array_equal(drawn, expected)


def test_a_model_of_another_class_can_draw_masks_of_more_axes_and_single_numbers():
    whole, some = np.random.default_rng(8), RowsOfMasks(np.random.default_rng(8), slice(2, 5), np.full(6, 4))
    for _ in range(2):
        expected = whole.random((6, 2, 4, 3), np.float32)[2:5]
        np.testing.assert_array_equal(some.random((3, 2, 4, 3), np.float32), expected)
        assert some.random() == whole.random()
