"""Mixed batches: each row equals a batch with its adapter alone, and a call leaves no state in the model."""

from __future__ import annotations

import gc
import weakref
from functools import partial

import numpy as np
import pytest
from on_device import assert_allclose, assert_array_equal, host, xp

from lora_np import AdaptedLinear, Linear, LoraConfig, PeftModel, VeraConfig, generate, get_peft_model, gradcheck_model
from lora_np.nn import BASE, Context
from lora_np.ops import IGNORE_INDEX
from lora_np.peft import management
from lora_np.peft.lora.dora import DoraAdapter
from lora_np.peft.lora.method import LoraMethod
from lora_np.peft.mixed import AdapterRows
from lora_np.studies.serving.serving import WORKLOADS, workload

RANKS = (1, 2, 3, 8, 16, 64)


def with_adapters(model, n, **changes):
    """Return a PeftModel with n adapters "0", "1", … of mixed ranks; every third adapter has only q and v."""
    peft_model = PeftModel(model)
    model.freeze()
    for i in range(n):
        target = ["q_proj", "v_proj"] if i % 3 == 2 else "all-linear"
        settings = {"r": RANKS[i % 6], "lora_alpha": 3 + i, "target_modules": target, "init_lora_weights": False}
        peft_model.add_adapter(str(i), LoraConfig(**settings | changes), seed=i)
    return peft_model


def training(peft_model, names):
    """Return the model with all adapters trainable and with the loss of the mixed batch `names`, for gradcheck_model."""
    for name, p in peft_model.named_parameters():
        p.trainable = "lora_" in name
    peft_model.loss = partial(peft_model.loss, adapter_names=names)
    return peft_model


def layer_with_adapters(n, dtype=np.float32):
    rng = np.random.default_rng(0)
    layer = AdaptedLinear(Linear(xp.asarray(rng.standard_normal((7, 5)).astype(dtype))))
    for i in range(n):
        config = LoraConfig(r=RANKS[i % 6], lora_alpha=2 + i % 5, init_lora_weights=False)
        layer.adapters[str(i)] = LoraMethod().draw(config, layer.base_layer, rng, None)
    return layer


def the_slow_loop(layer, x, names):
    """Compute y[i] = x[i] Wᵀ + s·(x[i] A[idx[i]]ᵀ) B[idx[i]]ᵀ row by row, as a reference."""
    y = host(x) @ host(layer.base_layer.weight.value).T
    for i, name in enumerate(names):
        if name != BASE:
            A, B = host(layer.adapters[name].lora_A.value), host(layer.adapters[name].lora_B.value)
            y[i] += layer.adapters[name].config.scaling * (host(x)[i] @ A.T) @ B.T
    return y


def names_of(kind, rows, adapters):
    """Return the adapter names of a workload's rows; every fifth row uses the base."""
    return [BASE if i % 5 == 4 else str(k) for i, k in enumerate(workload(kind, rows, adapters, seed=rows))]


def alone(peft_model, tokens, name):
    return peft_model.model.forward(tokens, context=Context(adapter=None if name == BASE else name))[0]


@pytest.mark.parametrize("time", [1, 3], ids=["decoding", "prompts"])
@pytest.mark.parametrize("adapters", [1, 16, 128])
@pytest.mark.parametrize("kind", WORKLOADS)
def test_a_layer_equals_the_loop_over_rows_to_1e_4(kind, adapters, time):
    layer = layer_with_adapters(adapters)
    for rows in (1, 2, 7, 33, 64):
        names = names_of(kind, rows, adapters)
        x = xp.asarray(np.random.default_rng(rows).standard_normal((rows, time, 5)).astype(np.float32))
        y, _ = layer.forward(x, Context(adapter=AdapterRows(names)))
        assert_allclose(y, the_slow_loop(layer, x, names), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adapters", [1, 16, 128])
@pytest.mark.parametrize("kind", WORKLOADS)
def test_each_row_equals_the_row_run_alone_with_its_adapter_to_1e_4(kind, adapters, make_model, random_batch):
    peft_model = with_adapters(make_model(np.float32), adapters)
    for rows in (1, 7, 64):
        names, (tokens, _) = names_of(kind, rows, adapters), random_batch(rows, 4)
        mixed = host(peft_model.forward(tokens, adapter_names=names)[0])
        for row, name in enumerate(names):
            expected = host(alone(peft_model, tokens[row : row + 1], name))[0]
            np.testing.assert_allclose(mixed[row], expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_generation_gives_each_row_what_it_gets_alone(make_model):
    peft_model = with_adapters(make_model(), 7)
    prompts, names = [[1, 2, 3], [4], [5, 6], [1, 2, 3], [7], [4]], ["0", "1", BASE, "2", "6", "6"]
    expected = []
    for prompt, name in zip(prompts, names, strict=True):
        with peft_model.disable_adapter():
            if name == BASE:
                expected += generate(peft_model, [prompt], 8)
        if name != BASE:
            peft_model.set_adapter(name)
            expected += generate(peft_model, [prompt], 8)
    assert generate(peft_model, prompts, 8, adapter_names=names) == expected
    assert len({tuple(new) for new in expected}) > 3, (
        "the adapters must give different texts, otherwise the test proves nothing"
    )


def family(model, dropout=0.0):
    """Return a PeftModel with LoRA, DoRA, VeRA and rsLoRA adapters, of which no two adapt the same layers with one rank."""
    peft_model, lora = PeftModel(model.freeze()), {"target_modules": "all-linear", "init_lora_weights": False}
    lora |= {"lora_dropout": dropout}
    peft_model.add_adapter("lora", LoraConfig(r=2, **lora), seed=1)
    peft_model.add_adapter("dora", LoraConfig(r=3, use_dora=True, dora_norm="true", **lora), seed=2)
    few = lora | {"target_modules": ["q_proj", "down_proj"]}
    peft_model.add_adapter("dora2", LoraConfig(r=2, use_dora=True, dora_norm="true", **few), seed=3)
    vera = {"init_weights": False, "target_modules": "all-linear", "vera_dropout": dropout}
    peft_model.add_adapter("vera", VeraConfig(r=5, **vera), seed=4)
    peft_model.add_adapter("rslora", LoraConfig(r=2, use_rslora=True, **lora), seed=5)
    return peft_model


FAMILY = ["dora", "vera", "lora", BASE, "dora2", "rslora", "dora", "vera"]


@pytest.mark.parametrize("time", [1, 5], ids=["decoding", "prompts"])
def test_rows_of_dora_and_vera_equal_the_rows_alone_beside_lora(time, make_model, random_batch):
    peft_model, (tokens, _) = family(make_model()), random_batch(len(FAMILY), time)
    mixed, seen = host(peft_model.forward(tokens, adapter_names=FAMILY)[0]), set()
    for row, name in enumerate(FAMILY):
        expected = host(alone(peft_model, tokens[row : row + 1], name))[0]
        np.testing.assert_allclose(mixed[row], expected, rtol=1e-11, atol=1e-12, err_msg=name)
        same = host(alone(peft_model, tokens[:1], name)).round(9)
        seen.add(same.tobytes())
    assert len(seen) == len(set(FAMILY)), "the adapters must differ, otherwise the test proves nothing"


def test_the_row_lengths_of_dora_are_computed_once_for_many_steps(make_model, random_batch, monkeypatch):
    """They depend on the weights alone, and take longer than the rest of the adapter."""
    peft_model, (tokens, _), computed = family(make_model()), random_batch(3, 1), []
    expected = {name: host(alone(peft_model, tokens, name)) for name in ("dora", "dora2", "vera", "lora", BASE)}
    prepare, rows = DoraAdapter.prepare, AdapterRows([])
    monkeypatch.setattr(DoraAdapter, "prepare", lambda self, *rest: computed.append(self) or prepare(self, *rest))
    for names in (["dora", BASE, "lora"], ["dora", "dora", "vera"], ["dora2", "dora", "dora"]):
        rows = rows.next_call(names)
        for _ in range(3):
            mixed = host(peft_model.model.forward(tokens, context=Context(adapter=rows))[0])
            for row, name in enumerate(names):
                np.testing.assert_allclose(mixed[row], expected[name][row], rtol=1e-11, atol=1e-12)
    assert len(computed) == len(set(map(id, computed))) == 14 + 4, (
        "seven layers per block, and two for the second adapter"
    )


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_of_dora_and_vera_in_a_mixed_batch_agree_with_the_complex_step(make_model, random_batch, dropout):
    peft_model = training(family(make_model(), dropout), FAMILY)
    for name, p in peft_model.named_parameters():
        p.trainable |= "vera_lambda" in name
    seed = 5 if dropout else None
    gradcheck_model(peft_model, *random_batch(len(FAMILY)), tolerance=1e-11, dropout_seed=seed).raise_if_wrong()


def test_rows_of_the_base_beside_pissa_use_the_whole_weight(make_model, random_batch):
    """PiSSA changed the base in memory. A row without the adapter adds the part that PiSSA removed."""
    tokens, _ = random_batch(3)
    expected = host(make_model().forward(tokens)[0])
    peft_model = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"))
    for layer in peft_model.lora_layers():
        layer.adapters["default"].lora_A.value *= 1.5
    mixed = host(peft_model.forward(tokens, adapter_names=["default", BASE, "default"])[0])
    np.testing.assert_allclose(mixed[1], expected[1], rtol=1e-10, atol=1e-11)
    for row in (0, 2):
        np.testing.assert_allclose(mixed[row], host(peft_model.forward(tokens)[0])[row], rtol=1e-10, atol=1e-11)
        assert not np.allclose(mixed[row], expected[row])


def test_the_base_product_runs_once_for_the_whole_batch(make_model, random_batch, monkeypatch):
    peft_model, shapes = with_adapters(make_model(), 4), []
    forward = Linear.forward
    monkeypatch.setattr(Linear, "forward", lambda self, x, *rest: shapes.append(x.shape[:2]) or forward(self, x, *rest))
    peft_model.forward(random_batch(6, 5)[0], adapter_names=["0", "1", "2", "3", BASE, "0"])
    assert shapes == [(6, 5)] * 15, "seven layers per block in two blocks, and the head"


def test_as_many_adapters_as_rows_are_checked_by_one_walk_through_the_model(make_model, monkeypatch):
    peft_model = PeftModel(make_model())
    names = [f"a{i}" for i in range(9)]
    for i, name in enumerate(names):
        peft_model.add_adapter(name, LoraConfig(r=2), seed=i)
    walks, walk = [], management.adapted_layers
    monkeypatch.setattr(management, "adapted_layers", lambda model, *name: walks.append(model) or walk(model, *name))
    peft_model.adapter_rows(names, 9)
    assert len(walks) == 1, "one search, to find merged adapters"


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_through_a_mixed_batch_agree_with_the_complex_step_to_1e_12(make_model, random_batch, dropout):
    peft_model = training(with_adapters(make_model(), 3, r=2, lora_dropout=dropout), ["0", "2", BASE, "1", "0"])
    seed = 5 if dropout else None
    gradcheck_model(peft_model, *random_batch(5), tolerance=1e-12, dropout_seed=seed).raise_if_wrong()


def test_an_adapter_of_the_head_finds_its_rows_where_some_targets_do_not_count(make_model, random_batch):
    """Without a mixed batch, the head gets only the counted positions, without the row structure of the batch."""
    model, (tokens, targets) = make_model(tie_word_embeddings=False), random_batch()
    peft_model = with_adapters(model, 2, target_modules=["lm_head"])
    targets = targets.copy()
    targets[0, :4] = IGNORE_INDEX
    counted, expected = [2, 6], 0.0
    for i, name in enumerate("01"):
        peft_model.set_adapter(name)
        loss, _ = peft_model.loss(tokens[i : i + 1], targets[i : i + 1])
        expected += float(loss) * counted[i] / sum(counted)
    mixed, _ = peft_model.loss(tokens, targets, adapter_names=["0", "1"])
    assert float(mixed) == pytest.approx(expected, rel=1e-12)
    checked = gradcheck_model(training(peft_model, ["0", "1"]), tokens, targets, tolerance=1e-12)
    checked.raise_if_wrong()


def test_a_layer_refuses_another_number_of_rows_than_of_names():
    layer = layer_with_adapters(2)
    x = xp.asarray(np.ones((3, 4, 5), np.float32))
    with pytest.raises(ValueError, match="3 rows, but there are 2 adapter names"):
        layer.forward(x, Context(adapter=AdapterRows(["0", "1"])))


def test_gradients_of_a_token_a_row_are_those_of_one_segment_after_another():
    """Decoding uses batched products for all adapters; training computes each segment alone."""
    names, rng, found = ["0", "6", "1", BASE, "6", "7", "12"], np.random.default_rng(2), []
    x, dy = (xp.asarray(rng.standard_normal((7, 1, width))) for width in (5, 7))
    for dropout in (None, rng):  # the dropout probability is 0
        layer = layer_with_adapters(13, np.float64)
        _, cache = layer.forward(x, Context(dropout, AdapterRows(names)))
        found.append({"dx": layer.backward(dy, cache)} | {name: p.grad for name, p in layer.named_parameters()})
    for name, batched in found[0].items():
        assert (batched is None) == (found[1][name] is None), name
        if batched is not None:
            assert_allclose(batched, found[1][name], rtol=1e-12, atol=1e-12, err_msg=name)
    used = {name[-1] for name, grad in found[0].items() if "lora_" in name and grad is not None}
    assert used == {"0", "6", "1", "7", "2"}, "12 ends in a 2"


def test_what_comes_and_goes_between_steps_finds_its_own_factors():
    """The stacks are reused in the next step, and only the factors of new adapters are copied."""
    layer, rng, rows = layer_with_adapters(24), np.random.default_rng(3), AdapterRows([])
    names = ["0", "6", "12"]
    for step in range(60):
        if step % 3 == 0 and len(names) > 1:
            names[int(rng.integers(len(names)))] = names.pop()
        else:
            names.append(str(rng.integers(24)))
        rows = rows.next_call(names)
        x = xp.asarray(rng.standard_normal((len(names), 1, 5)).astype(np.float32))
        y, _ = layer.forward(x, Context(adapter=rows))
        assert_allclose(y, the_slow_loop(layer, x, names), rtol=1e-4, atol=1e-4)


def test_a_name_that_another_adapter_took_over_means_the_new_one():
    layer, names = layer_with_adapters(13), ["0", "6", "12"]
    x = xp.asarray(np.random.default_rng(1).standard_normal((3, 1, 5)).astype(np.float32))
    rows = AdapterRows(names)
    layer.forward(x, Context(adapter=rows))
    config, rng = LoraConfig(r=1, init_lora_weights=False), np.random.default_rng(9)
    layer.adapters["6"] = LoraMethod().draw(config, layer.base_layer, rng, None)
    y, _ = layer.forward(x, Context(adapter=rows.next_call(names)))
    assert_allclose(y, the_slow_loop(layer, x, names), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0"], "1 names for a batch of 2 rows"),
        (["0", "1", "0"], "3 names for a batch of 2 rows"),
        (["0", "poet"], "unknown adapter 'poet'"),
        (["0", None], "unknown adapter 'None'"),
        ("01", "expected one name per row"),
    ],
)
def test_bad_names_are_a_value_error_as_in_peft(names, message, make_model, random_batch):
    peft_model = with_adapters(make_model(), 2)
    tokens, targets = random_batch()
    for call in (
        lambda: peft_model.forward(tokens, adapter_names=names),
        lambda: peft_model.loss(tokens, targets, adapter_names=names),
        lambda: generate(peft_model, tokens.tolist(), 2, adapter_names=names),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_transformer_without_adapters_takes_no_names(make_model):
    with pytest.raises(ValueError, match="adapter_names needs a PeftModel"):
        generate(make_model(), [[1]], 2, adapter_names=[BASE])


def test_a_mixed_batch_while_merged_or_disabled_is_refused(make_model, random_batch):
    peft_model, (tokens, _) = with_adapters(make_model(), 2), random_batch()
    peft_model.set_adapter("0")
    peft_model.merge_adapter()
    with pytest.raises(RuntimeError, match="unmerge"):
        peft_model.forward(tokens, adapter_names=["0", "1"])
    with pytest.raises(RuntimeError, match="a mixed batch"):
        peft_model.model.forward(tokens, context=Context(adapter=AdapterRows(["0", "1"])))
    peft_model.unmerge_adapter()
    with peft_model.disable_adapter(), pytest.raises(RuntimeError, match="disabled"):
        peft_model.forward(tokens, adapter_names=["0", "1"])


def test_a_call_that_fails_leaves_no_state(make_model, random_batch, monkeypatch):
    """PEFT keeps the rows' adapters in hooks on the model. Here they are an argument of the call."""
    peft_model, (tokens, _) = with_adapters(make_model(), 3), random_batch()
    peft_model.set_adapter("2")
    before, seen = host(peft_model.forward(tokens)[0]), dict(vars(peft_model))
    last = peft_model.model.model.layers[1].mlp.down_proj
    del last.adapters["1"].lora_A.value  # the last layer then raises an error
    with pytest.raises(AttributeError):
        peft_model.forward(tokens, adapter_names=["0", "1"])
    assert dict(vars(peft_model)) == seen
    assert_array_equal(peft_model.forward(tokens)[0], before)


def test_rows_of_a_batch_may_stand_at_places_of_their_own(make_model, random_batch):
    """A serving engine needs `position_ids`, because its rows joined at different times."""
    model, (tokens, _) = make_model(), random_batch(2, 5)
    places = xp.asarray(np.array([[0, 1, 2, 3, 4], [9, 10, 11, 12, 13]]))
    expected = host(model.forward(tokens)[0])  # rotary positions are relative
    assert_allclose(model.forward(tokens, context=Context(position_ids=places))[0], expected, rtol=1e-9, atol=1e-11)
    with pytest.raises(ValueError, match="position_ids has shape"):
        model.forward(tokens, context=Context(position_ids=places[:, :3]))


@pytest.mark.parametrize("time", [1, 3], ids=["decoding", "prompts"])
def test_adapters_stored_in_16_bits_are_computed_in_32_here_too(time, make_model, random_batch):
    peft_model = with_adapters(make_model(np.float32), 6)
    for layer in peft_model.lora_layers():
        for p in [p for adapter in layer.adapters.values() for p in adapter.learned]:
            p.value = p.value.astype(np.float16)
    tokens, _ = random_batch(rows=4, length=time)
    names = ["4", *[BASE] * (len(tokens) - 2), "1"]
    mixed, _ = peft_model.forward(tokens, adapter_names=names)
    assert mixed.dtype == np.float32
    for i, name in enumerate(names):
        assert_allclose(mixed[i], alone(peft_model, tokens[i : i + 1], name)[0], rtol=1e-5, atol=1e-5)


def test_the_rows_of_a_call_are_freed_with_it(make_model, random_batch):
    """The stacks are freed without the garbage collector, because they hold the factors of all layers."""
    peft_model = with_adapters(make_model(), 2)
    rows = peft_model.adapter_rows(["0", "1"], 2)
    peft_model.model.forward(random_batch(2)[0], context=Context(adapter=rows))
    gc.disable()
    try:
        gone = weakref.ref(rows)
        del rows
        assert gone() is None
    finally:
        gc.enable()
