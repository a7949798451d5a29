"""Four bits a weight: the codes by their rule, the bytes to the byte, and gradients through them as exact as through floats."""

from __future__ import annotations

import json
import tracemalloc
from statistics import NormalDist

import numpy as np
import pytest
from adapted import adapted
from on_device import DEVICE, assert_array_equal, host, xp
from safetensors.numpy import load_file, save_file

import lora_np as ln
from lora_np import Linear, LoraConfig, QuantizedLinear, get_peft_model, gradcheck_model, load_model, save_model
from lora_np.quantization import (
    QUANT_TYPES,
    Quantized4bit,
    code_book,
    dequantize_4bit,
    dynamic_map,
    quantize_4bit,
)
from lora_np.training.checkpoint import digests
from lora_np.training.parallel import loss_and_gradients

types = pytest.mark.parametrize("quant_type", QUANT_TYPES)
double_quants = pytest.mark.parametrize("double_quant", [False, True], ids=["absmax in float32", "double quantisation"])
TOKENS = np.random.default_rng(5).integers(0, 11, (2, 7))


def normal(*shape, seed=0, dtype=np.float32):
    return xp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


def quantized(model, **settings):
    """The model of the tests, all of it quantised but the embedding, in blocks that end within a matrix."""
    return ln.quantize_model(model, **{"block_size": 32} | settings)


# --------------------------------------------------------------------------------------------------------- the code books


def test_nf4_is_the_quantiles_of_the_normal_distribution():
    """Published: bitsandbytes, `get_4bit_type`. They were made from probabilities in float32: with exact ones 1e-7 is left."""
    published = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635]
    published += [-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725]
    published += [
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
    assert code_book("nf4") == tuple(published), "derived, and equal in every bit"
    outermost = 1 - (1 / 30 + 1 / 32) / 2
    quantile, largest = NormalDist().inv_cdf, NormalDist().inv_cdf(outermost)
    above = [quantile(p) / largest for p in np.linspace(outermost, 0.5, 9)[:-1]]
    below = [-quantile(p) / largest for p in np.linspace(outermost, 0.5, 8)[:-1]]
    np.testing.assert_allclose(sorted([*below, 0.0, *above]), published, atol=2.5e-7)


def test_equation_4_of_the_paper_gives_other_numbers():
    """½(Q(i/17) + Q((i+1)/17)): the two outermost of the 16 would be infinite, and the 14 between are not NF4's."""
    quantile = NormalDist().inv_cdf
    inner = np.array([(quantile(i / 17) + quantile((i + 1) / 17)) / 2 for i in range(1, 16)])
    distance = np.abs((inner / inner.max())[:, None] - code_book("nf4")).min(axis=1)
    assert np.sum(distance > 0.003) >= 10, distance


def test_fp4_is_sign_exponent_and_mantissa():
    """Exponent e and mantissa m: 2^e (1 + m/2), subnormal at the lowest, over the largest, 12; bit patterns in bnb's order."""
    codes = np.array(code_book("fp4"))
    np.testing.assert_allclose(codes[:8] * 12, [0, 0.0625, 8, 12, 4, 6, 2, 3], rtol=1e-7)
    np.testing.assert_array_equal(codes[8:], -codes[:8])


def test_int4_is_evenly_spaced_and_symmetric():
    np.testing.assert_array_equal(np.float32(code_book("int4")), np.arange(-8, 8, dtype=np.float32) / np.float32(7))
    assert 0 not in [b >> 4 for b in host(quantize_4bit(normal(999), 64, "int4").packed).ravel()], "−8/7 is never used"


def test_the_dynamic_map_has_twice_as_many_values_in_each_higher_decade():
    x = np.array(dynamic_map())
    assert len(x) == 256 and (np.diff(x) > 0).all() and {0.0, 1.0} < set(x)
    for i in range(7):
        decade = (x > 0.1 * 10.0 ** (i - 6)) & (x < 10.0 ** (i - 6))
        assert decade.sum() == 2**i, f"1, 2, 4 … values; decade {i} has {decade.sum()}"
        assert ((-x > 0.1 * 10.0 ** (i - 6)) & (-x < 10.0 ** (i - 6))).sum() == 2**i


# -------------------------------------------------------------------------------------------------------------- the rule


def reference(w, block_size, quant_type):
    """The rule as a child would write it: weight by weight → (codes, absmax)."""
    book, codes, absmax = np.array(code_book(quant_type), np.float32), [], []
    for start in range(0, len(w), block_size):
        block = w[start : start + block_size]
        m = np.float32(max(np.abs(block).max(), 1e-38))
        whole = len(block) == block_size
        for x in block:
            x = x * (np.float32(1) / m) if whole else x / m
            distance = np.abs(book.astype(np.float64) - np.float64(x))
            nearest = np.flatnonzero(distance == distance.min())
            codes.append(nearest[np.argmin(book[nearest])])  # of two that are as near, the lower
        absmax.append(np.abs(block).max() if whole else m)
    return np.array(codes), np.array(absmax, np.float32)


def unpack(packed):
    packed = host(packed).ravel()
    return np.stack([packed >> 4, packed & 15], axis=1).ravel()


@types
@pytest.mark.parametrize("block_size", [2, 64, 256])
@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 127, 300])
def test_each_weight_gets_the_code_nearest_to_it(n, block_size, quant_type):
    w = normal(n, seed=n)
    codes, absmax = reference(host(w), block_size, quant_type)
    q = quantize_4bit(w, block_size, quant_type)
    np.testing.assert_array_equal(host(q.absmax), absmax)
    mine = unpack(q.packed)
    if quant_type == "fp4":  # its codes 0 and 8 are both zero
        mine, codes = (np.where(x == 8, 0, x) for x in (mine, codes))
    np.testing.assert_array_equal(mine[:n], codes)


def test_a_value_on_a_midpoint_gets_the_lower_code():
    """Differences of float32 codes are not all float32 numbers: those midpoints that are, are met exactly."""
    codes = np.array(code_book("nf4"))
    midpoints = np.float32((codes[:-1] + codes[1:]) / 2)
    w = np.concatenate([[1.0], midpoints, np.nextafter(midpoints, np.float32(2))]).astype(np.float32)
    mine = unpack(quantize_4bit(xp.asarray(w), 64).packed)
    np.testing.assert_array_equal(mine[1:16], np.arange(15), err_msg="on a midpoint: the lower of the two codes")
    np.testing.assert_array_equal(mine[16:31], np.arange(1, 16), err_msg="just above it: the upper")


def test_full_blocks_are_multiplied_by_the_reciprocal_and_the_rest_is_divided():
    """Where w is a midpoint times absmax, a last bit decides: as in bitsandbytes, so that the bytes are the same."""
    codes = np.array(code_book("nf4"))
    midpoints = np.float32((codes[:-1] + codes[1:]) / 2)
    absmax = np.random.default_rng(0).uniform(0.1, 1, (501, 1)).astype(np.float32)
    w = np.concatenate([absmax, midpoints * absmax], axis=1).ravel()[:-1]  # blocks of 16, and a last one of 15
    multiplied, divided = (
        (x.reshape(-1, 1) > midpoints).sum(axis=1)
        for x in (w * np.repeat(1 / absmax, 16)[:-1], w / np.repeat(absmax, 16)[:-1])
    )
    assert (multiplied != divided)[:8000].any() and (multiplied != divided)[8000:].any(), (
        "they must differ to be told apart"
    )
    mine = unpack(quantize_4bit(xp.asarray(w), 16).packed)[:-1]
    np.testing.assert_array_equal(mine[:8000], multiplied[:8000])
    np.testing.assert_array_equal(mine[8000:], divided[8000:])


def test_the_first_of_two_codes_is_in_the_high_nibble_and_an_odd_end_is_filled_with_zero():
    assert host(quantize_4bit(xp.asarray(np.float32([1, -1, 1]))).packed).tolist() == [[0xF0], [0xF7]]
    back = dequantize_4bit(quantize_4bit(xp.asarray(np.float32([1, -1, 1]))))
    assert_array_equal(back, np.float32([1, -1, 1]))


def test_blocks_run_through_the_flattened_matrix_and_not_along_its_rows():
    W = normal(5, 32)
    absmax = host(quantize_4bit(W, 64).absmax)
    flat = np.abs(host(W)).ravel()
    np.testing.assert_array_equal(absmax, [flat[:64].max(), flat[64:128].max(), flat[128:].max()])


@types
@double_quants
def test_zeros_stay_zeros(quant_type, double_quant):
    W = xp.zeros((3, 55), "float32")
    q = quantize_4bit(W, 64, quant_type, double_quant)
    assert float(abs(dequantize_4bit(q)).max()) <= 1e-37
    if quant_type == "nf4":
        assert set(host(q.packed).ravel()) == {0x77}


@types
def test_a_constant_matrix_comes_back_to_the_bit(quant_type):
    for value in (0.3, -0.3) if quant_type != "int4" else (0.3,):
        W = xp.full((7, 31), value, dtype="float32")
        assert_array_equal(dequantize_4bit(quantize_4bit(W, 64, quant_type)), W)


@types
def test_what_was_quantised_quantises_to_the_same_codes_again(quant_type):
    once = quantize_4bit(normal(40, 33), 64, quant_type)
    twice = quantize_4bit(dequantize_4bit(once), 64, quant_type)
    assert_array_equal(dequantize_4bit(twice), dequantize_4bit(once))


@types
@double_quants
def test_dequantising_looks_up_the_code_and_multiplies_by_absmax(quant_type, double_quant):
    """In pieces or at once, and whether a block, a piece or a byte ends where the matrix does."""
    for shape in [(1, 1), (3, 5), (64, 64), (515, 129)]:
        q = quantize_4bit(normal(*shape), 64, quant_type, double_quant)
        absmax = reconstructed(q.absmax) if double_quant else host(q.absmax)
        codes = np.float32(code_book(quant_type))[unpack(q.packed)][: q.size]
        expected = codes * np.repeat(absmax, 64)[: q.size]
        assert_array_equal(dequantize_4bit(q), expected.reshape(shape))


# ------------------------------------------------------------------------------------------------ double quantisation


def reconstructed(absmax):
    codes, scale = host(absmax.codes), host(absmax.absmax)
    return np.float32(dynamic_map())[codes] * np.repeat(scale, 256)[: len(codes)] + host(absmax.offset)


def test_double_quantisation_stores_absmax_about_its_mean_by_the_nearest_of_256_values():
    W = normal(700, 64, seed=2)
    plain, double = quantize_4bit(W).absmax, quantize_4bit(W, double_quant=True).absmax
    plain = host(plain)
    offset = host(double.offset)
    assert abs(offset - plain.astype(np.float64).mean()) <= np.spacing(offset), (
        "one ulp is left to the order of the sum"
    )
    book = np.array(dynamic_map())
    for i, block in enumerate(np.split(plain - offset, [256, 512])):
        scale = np.abs(block).max()
        assert host(double.absmax)[i] == scale
        distance = np.abs(book - np.float64(block * (np.float32(1) / scale))[:, None])
        np.testing.assert_array_equal(host(double.codes)[256 * i : 256 * i + len(block)], distance.argmin(axis=1))


def test_the_mean_is_what_double_quantisation_needs_for_positive_numbers():
    """Without it, half of the symmetric map would never be used, and the error in absmax would be larger."""
    plain = host(quantize_4bit(normal(700, 64)).absmax)
    error = np.abs(reconstructed(quantize_4bit(normal(700, 64), double_quant=True).absmax) - plain).mean()
    book = np.array(dynamic_map())
    without = book[np.abs(book - (plain / plain.max())[:, None]).argmin(axis=1)] * plain.max()
    assert error < 0.6 * np.abs(without - plain).mean()


def test_equal_absmax_survive_double_quantisation():
    W = xp.full((40, 64), 0.3, dtype="float32")
    np.testing.assert_allclose(host(dequantize_4bit(quantize_4bit(W, double_quant=True))), 0.3, rtol=1e-6)


# ------------------------------------------------------------------------------------------------------------ the error


def test_the_error_on_normal_weights_is_that_of_the_literature():
    """FACTS: mean |error| 0.0728 for NF4 in blocks of 64. int4 does better than FP4 here, in blocks as small as these."""
    W = normal(4096, 256)
    error = {t: float(abs(dequantize_4bit(quantize_4bit(W, 64, t)) - W).mean()) for t in QUANT_TYPES}
    print(error)
    assert error["nf4"] == pytest.approx(0.0728, rel=0.01)
    assert error["int4"] == pytest.approx(0.0915, rel=0.01)
    assert error["fp4"] == pytest.approx(0.0966, rel=0.01)


def test_on_real_weights_nf4_is_best_and_fp4_worst():
    """Expected was FP4 before int4. In each matrix it is the other way round: FP4 has nothing between ⅔ and 1, a third of its
    range, and what it has near zero does not make up for that."""
    for name, W in load_model("tiny").state_dict().items():
        if name.endswith("_proj.weight"):
            nf4, fp4, int4 = (float(abs(dequantize_4bit(quantize_4bit(W, 64, t)) - W).mean()) for t in QUANT_TYPES)
            assert nf4 < int4 < fp4, name


# ------------------------------------------------------------------------------------------------------------- the bytes


@pytest.mark.parametrize("shape", [(576, 576), (192, 576), (1536, 576), (576, 1536), (7, 13)])
def test_stored_bytes_to_the_byte(shape):
    n = shape[0] * shape[1]
    blocks = -(-n // 64)
    W = normal(*shape)
    assert quantize_4bit(W).nbytes == -(-n // 2) + 4 * blocks
    assert quantize_4bit(W, double_quant=True).nbytes == -(-n // 2) + blocks + 4 * -(-blocks // 256) + 4, (
        "codes, 8 bits a block, a scale for 256 of them, and one mean"
    )


def test_a_large_matrix_takes_4_5_bits_a_weight_and_4_127_with_double_quantisation():
    W = xp.zeros((1024, 1024), "float32")
    assert 8 * quantize_4bit(W).nbytes / W.size == 4.5
    assert 8 * (quantize_4bit(W, double_quant=True).nbytes - 4) / W.size == 4 + 8 / 64 + 32 / 16384
    assert round(4 + 8 / 64 + 32 / 16384, 3) == 4.127


@pytest.mark.skipif(DEVICE != "numpy", reason="tracemalloc sees NumPy's memory")
@double_quants
def test_quantised_linear_weights_take_at_most_0_16_of_float32s_memory(double_quant):
    model = load_model("tiny", device="numpy")
    floats = sum(p.value.nbytes for name, p in model.named_parameters() if name.endswith("_proj.weight"))
    tracemalloc.start()
    ln.quantize_model(model, double_quant=double_quant)
    resident = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    stored = sum(p.value.nbytes for name, p in model.named_parameters() if name.endswith("_proj.weight"))
    print(f"{stored / floats:.4f} stored, {resident / floats:.4f} resident")
    assert stored <= 0.1410 * floats and resident <= 0.16 * floats


# --------------------------------------------------------------------------------------------------------- the layer


@pytest.fixture(params=[False, True], ids=["no bias", "bias"])
def pair(request):
    """(QuantizedLinear, the Linear of its dequantised weight), in float64."""
    bias = normal(7, seed=1, dtype=np.float64) if request.param else None
    layer = QuantizedLinear(quantize_4bit(normal(7, 13, dtype=np.float64), 32, double_quant=True), bias)
    return layer, layer.dequantized()


def test_the_layer_computes_what_a_linear_of_the_dequantised_weight_computes_to_the_bit(pair):
    quantised, linear = pair
    x, dy = normal(2, 3, 13, dtype=np.float64), normal(2, 3, 7, seed=1, dtype=np.float64)
    (y, cache), (expected, linear_cache) = quantised.forward(x), linear.forward(x)
    assert_array_equal(y, expected)
    assert_array_equal(quantised.backward(dy, cache), linear.backward(dy, linear_cache))
    if hasattr(linear, "bias"):
        assert_array_equal(quantised.bias.grad, 2 * dy.reshape(-1, 7).sum(axis=0))  # the two share one bias
    assert quantised.weight.grad is None and (quantised.in_features, quantised.out_features) == (13, 7)


def test_what_nobody_needs_is_not_dequantised(pair, monkeypatch):
    quantised, _ = pair
    x, dy = normal(3, 13, dtype=np.float64), normal(3, 7, dtype=np.float64)
    _, cache = quantised.forward(x)
    monkeypatch.setattr("lora_np.quantization.linear.dequantize_4bit", None)
    assert quantised.backward(dy, cache, need_dx=False) is None


@pytest.mark.skipif(DEVICE != "numpy", reason="tracemalloc sees NumPy's memory")
def test_one_dequantised_matrix_is_held_at_a_time_and_none_between_calls():
    layers = [QuantizedLinear(quantize_4bit(normal(512, 512), double_quant=True)) for _ in range(4)]
    one, x = 4 * 512 * 512, normal(4, 512)
    layers[0].forward(x)  # makes the tables
    tracemalloc.start()
    caches = []
    for layer in layers:
        x, cache = layer.forward(x)
        caches.append(cache)
    for layer, cache in zip(layers, caches, strict=True):
        layer.backward(x, cache)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 0.1 * one, "a cache holds a dequantised matrix"
    assert peak < 1.7 * one, "beside the one matrix there are the indices of a piece of it, and no second matrix"


@double_quants
@pytest.mark.parametrize(
    "settings",
    [{}, {"target_modules": ["q_proj", "v_proj"]}, {"lora_dropout": 0.3}],
    ids=["all-linear", "q and v", "dropout"],
)
def test_lora_over_a_quantised_model_agrees_with_the_complex_step_to_1e_12(
    make_model, random_batch, settings, double_quant
):
    peft_model = adapted(quantized(make_model(), double_quant=double_quant), **settings)
    dropout_seed = 5 if "lora_dropout" in settings else None
    gradcheck_model(peft_model, *random_batch(), tolerance=1e-12, dropout_seed=dropout_seed).raise_if_wrong()


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_not_quantised_still_has_the_gradient_of_the_complex_step(make_model, random_batch, tied):
    model = quantized(make_model(tie_word_embeddings=tied))
    result = gradcheck_model(model, *random_batch(), tolerance=1e-12).raise_if_wrong()
    assert len(result.errors) == 6 + (not tied), "the embedding, five norms, and the head"


@types
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_its_gradients_are_those_over_a_dequantised_base_to_the_bit(make_model, random_batch, quant_type, dtype):
    peft_model = adapted(quantized(make_model(dtype), quant_type=quant_type))
    results = []
    for _ in range(2):
        peft_model.zero_grad()
        loss, cache = peft_model.loss(*random_batch())
        peft_model.backward(cache)
        results.append({n: p.grad for n, p in peft_model.named_parameters() if p.grad is not None} | {"loss": loss})
        ln.dequantize_model(peft_model)
    assert len(results[0]) == 29 and results[0].keys() == results[1].keys()
    for name, x in results[0].items():
        assert x.dtype == dtype
        assert_array_equal(x, results[1][name], err_msg=name)


def test_threads_share_the_codes_and_agree_with_one(make_model, random_batch):
    pytest.importorskip("threadpoolctl")
    peft_model = adapted(quantized(make_model()))
    replica = dict(peft_model.replica().named_parameters())
    gradients = []
    for workers in (1, 2):
        peft_model.zero_grad()
        loss_and_gradients(peft_model, *random_batch(4), workers=workers)
        gradients.append({n: p.grad for n, p in peft_model.named_parameters() if p.grad is not None})
    for name, p in peft_model.named_parameters():
        assert replica[name].value is p.value, f"{name} is copied"
    for name, grad in gradients[0].items():
        np.testing.assert_allclose(host(gradients[1][name]), host(grad), rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------- the model


def test_every_linear_is_quantised_but_the_head_and_what_is_named(make_model):
    def left(model):
        return [n for n, m in model.named_modules() if type(m) is Linear]

    assert left(quantized(make_model())) == ["lm_head"]
    assert left(quantized(make_model(), skip_modules=())) == []
    assert left(quantized(make_model(), skip_modules=["k_proj", "layers.0.mlp.up_proj"])) == [
        "model.layers.0.self_attn.k_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.1.self_attn.k_proj",
    ]
    model = quantized(make_model())
    again = {n: m for n, m in ln.quantize_model(model, skip_modules=()).named_modules() if type(m) is QuantizedLinear}
    assert again["lm_head"].weight.value.block_size == 64, "what is quantised stays, the rest follows"
    assert again["model.layers.0.self_attn.q_proj"].weight.value.block_size == 32


def test_a_quantised_weight_counts_as_the_weights_it_stands_for(make_model):
    plain, model = make_model(), quantized(make_model())
    assert ln.costs.count(model).total == ln.costs.count(plain).total
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert {n: p.value.shape for n, p in model.named_parameters()} == {
        n: p.value.shape for n, p in plain.named_parameters()
    }


def test_adapters_find_quantised_layers_by_all_the_ways_to_name_them(make_model):
    for targets in ("all-linear", ["q_proj", "v_proj"], r".*\.1\.mlp\..*"):
        config = LoraConfig(r=2, target_modules=targets)
        mine, plain = get_peft_model(quantized(make_model()), config), get_peft_model(make_model(), config)
        assert [n for n, _ in mine.named_parameters()] == [n for n, _ in plain.named_parameters()]
        assert ln.costs.count(mine) == ln.costs.count(plain)


def test_astype_leaves_the_codes_and_says_what_they_become(make_model):
    model = quantized(make_model(np.float32))
    before = [p.value.packed for n, p in model.named_parameters() if n.endswith("_proj.weight")]
    model.astype(np.float64)
    after = [p.value for n, p in model.named_parameters() if n.endswith("_proj.weight")]
    assert all(q.packed is packed and q.dtype == np.float64 for q, packed in zip(after, before, strict=True))
    assert model.forward(TOKENS)[0].dtype == np.float64


def test_a_quantised_model_cannot_be_unfrozen(make_model):
    model = quantized(make_model()).freeze()
    with pytest.raises(ValueError, match=r"a quantised weight cannot be trained; .*get_peft_model"):
        model.unfreeze()
    assert not model.trainable, "a refusal changes nothing"


def test_a_state_dict_goes_back_in_and_no_other_kind_does(make_model):
    model, other = quantized(make_model()), quantized(make_model(seed=1))
    other.load_state_dict(model.state_dict())
    assert_array_equal(other.forward(TOKENS)[0], model.forward(TOKENS)[0])
    with pytest.raises(
        TypeError, match=r"q_proj\.weight is quantised in the model, but the given array has dtype float64"
    ):
        model.load_state_dict(make_model().state_dict())
    with pytest.raises(TypeError, match="expected a NumPy or CuPy array, got Quantized4bit"):
        make_model().load_state_dict(model.state_dict())


def test_a_dequantised_model_computes_the_same(make_model):
    model = quantized(make_model())
    before, _ = model.forward(TOKENS)
    assert ln.dequantize_model(model) is model
    assert not any(isinstance(m, QuantizedLinear) for _, m in model.named_modules())
    assert_array_equal(model.forward(TOKENS)[0], before)
    assert not model.model.layers[0].self_attn.q_proj.trainable, "it was frozen, and comes back so"


def test_merging_over_a_quantised_base_is_refused_and_possible_once_it_is_dequantised(make_model):
    peft_model = adapted(quantized(make_model(), skip_modules=["k_proj"]))
    before, _ = peft_model.forward(TOKENS)
    with pytest.raises(RuntimeError, match=r"the base is quantised.*dequantize_model"):
        peft_model.merge_adapter()
    assert not peft_model.merged, "no layer may be merged while others are not"
    assert_array_equal(peft_model.forward(TOKENS)[0], before)
    plain = ln.dequantize_model(peft_model).merge_and_unload()
    np.testing.assert_allclose(host(plain.forward(TOKENS)[0]), host(before), rtol=1e-10, atol=1e-12)


def test_training_over_a_quantised_base_moves_the_adapter_alone_and_resumes_to_the_bit(
    make_model, random_batch, tmp_path
):
    def run(steps, resume=False):
        peft_model = adapted(quantized(make_model(np.float32)))
        history = ln.train(
            peft_model,
            [random_batch()],
            ln.AdamW(lr=1e-2),
            steps=8,
            checkpoint=tmp_path / f"{steps}",
            checkpoint_every=4,
            resume=resume,
        )
        return peft_model, history.column("loss")

    peft_model, losses = run("a")
    assert losses[-1] < losses[0]
    codes = {n: host(p.value.packed) for n, p in peft_model.named_parameters() if isinstance(p.value, Quantized4bit)}
    for name, p in adapted(quantized(make_model(np.float32))).named_parameters():
        if name in codes:
            np.testing.assert_array_equal(codes[name], host(p.value.packed))
    with pytest.raises(ValueError, match="digest of the frozen weights was"):
        other = adapted(quantized(make_model(np.float32, seed=9)))
        ln.train(other, [random_batch()], ln.AdamW(lr=1e-2), steps=8, checkpoint=tmp_path / "a", resume=True)


@double_quants
def test_the_digest_of_a_quantised_base_tells_what_its_codes_alone_do_not(double_quant, make_model):
    """Weights of twice the size have the same codes: what differs is their absmax."""

    def digest(factor=1, **settings):
        model = make_model(np.float32)
        for name, p in model.named_parameters():
            p.value *= factor if "proj" in name else 1
        return digests(ln.quantize_model(model, **{"double_quant": double_quant} | settings).freeze(), [])

    assert digest() == digest()
    others = {"factor": 2}, {"block_size": 128}, {"quant_type": "int4"}, {"double_quant": not double_quant}
    for other in others:
        assert digest(**other) != digest(), other


def test_on_a_device_the_codes_live_there_and_a_step_moves_only_ids(make_model, random_batch, double):
    if DEVICE != "numpy":
        pytest.skip("the tests are on a device already")
    peft_model = adapted(quantized(make_model(np.float32)))
    expected, _ = peft_model.loss(*random_batch())
    peft_model.to("cupy")
    peft_model.loss(*random_batch())  # makes the tables
    double.traffic.reset()
    loss, cache = peft_model.loss(*random_batch())
    peft_model.backward(cache)
    assert double.traffic.waits == 0 and double.traffic.to_device <= 2, "tokens and targets, and no table"
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert isinstance(peft_model.lora_layers()[0].base_layer.weight.value.absmax.codes, double.ndarray)
    there = quantize_4bit(double.asarray(host(normal(33, 5))), 64, double_quant=True)  # quantised on the device itself
    here = quantize_4bit(normal(33, 5), 64, double_quant=True)
    np.testing.assert_array_equal(there.packed.get(), host(here.packed))
    np.testing.assert_array_equal(there.absmax.codes.get(), host(here.absmax.codes))
    ln.dequantize_model(peft_model).to("numpy")


# -------------------------------------------------------------------------------------------------- adapters in 16 bits


DTYPES = pytest.mark.parametrize("adapter_dtype", ["float16", "bfloat16"])


def adapted_in_16_bits(model, adapter_dtype, **changes):
    settings = {"r": 3, "lora_alpha": 7, "target_modules": "all-linear", "init_lora_weights": False} | changes
    return get_peft_model(model, LoraConfig(**settings), adapter_dtype=adapter_dtype)


def factors_of(peft_model):
    return {n: p for n, p in peft_model.named_parameters() if ".lora_" in n}


@pytest.fixture(autouse=True)
def no_bfloat16_on_cupy(request):
    if DEVICE != "numpy" and "bfloat16" in request.node.name:
        pytest.skip("CuPy has no bfloat16")


@DTYPES
def test_an_adapter_in_16_bits_is_stored_in_16_and_computed_in_32(make_model, random_batch, adapter_dtype):
    peft_model = adapted_in_16_bits(quantized(make_model(np.float32)), adapter_dtype)
    plain = adapted_in_16_bits(quantized(make_model(np.float32)), "float32")
    for name, p in factors_of(plain).items():  # the same numbers, those that 16 bits hold, in both
        p.value = factors_of(peft_model)[name].value.astype("float32")
    results = []
    for each in (peft_model, plain):
        loss, cache = each.loss(*random_batch())
        each.backward(cache)
        results.append((loss, {n: p.grad for n, p in factors_of(each).items()}))
    assert float(results[0][0]) == float(results[1][0])
    for name, p in factors_of(peft_model).items():
        assert p.value.nbytes == 2 * p.value.size and p.grad.dtype == np.float32
        assert_array_equal(p.grad, results[1][1][name], err_msg=name)


@pytest.mark.parametrize(("base", "other"), [("float32", "float64"), ("float64", "float32"), ("float32", "int8")])
def test_an_adapter_of_a_dtype_that_does_not_go_with_the_base_is_refused(base, other, make_model):
    """Else the first forward would say it, of arrays that nobody named."""
    with pytest.raises(
        TypeError, match=f"'{other}' and the base is in {base}; expected 'float16', 'bfloat16' or '{base}'"
    ):
        adapted_in_16_bits(make_model(np.dtype(base)), other)
    assert len(factors_of(adapted_in_16_bits(make_model(np.dtype(base)), base))) == 28


@DTYPES
@pytest.mark.parametrize("optimizer", [ln.AdamW(lr=1e-6), ln.SGD(lr=1e-6), ln.SGD(lr=1e-6, momentum=0.5)], ids=str)
def test_updates_too_small_for_16_bits_add_up(adapter_dtype, optimizer, make_model):
    p = factors_of(adapted_in_16_bits(make_model(np.float32), adapter_dtype)).popitem()[1]
    p.value[...] = xp.ones(p.value.shape, "float32").astype(p.value.dtype)
    p.trainable = True
    optimizer.state.clear()
    for t in range(1, 20_001):
        p.grad = xp.ones(p.value.shape, "float32")
        optimizer.step([("p", p)], t=t)
        if t == 1:
            assert float(p.value.astype("float32").min()) == 1.0, "one update is less than half of the last bit"
    assert 0.95 < float(p.value.astype("float32").max()) < 0.985, "twenty thousand of them are 0.02 or more"


@DTYPES
def test_a_run_with_16_bits_resumes_to_the_bit(make_model, random_batch, tmp_path, adapter_dtype):
    def run(path, batches, resume=False, dtype=adapter_dtype):
        model = adapted_in_16_bits(quantized(make_model(np.float32)), dtype)
        ln.train(model, batches, ln.AdamW(lr=1e-2), 6, checkpoint=path, checkpoint_every=3, resume=resume)
        return {n: host(p.value) for n, p in factors_of(model).items()}

    class Stops:
        """Batches until the power goes."""

        def __getitem__(self, step):
            if step == 5:
                raise KeyboardInterrupt
            return random_batch(seed=step)

    class Goes:
        def __getitem__(self, step):
            return random_batch(seed=step)

    whole = run(tmp_path / "whole", Goes())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", Stops())
    for name, x in run(tmp_path / "stopped", Goes(), resume=True).items():
        assert x.dtype.itemsize == 2
        np.testing.assert_array_equal(x, whole[name], err_msg=name)
    with pytest.raises(ValueError, match="adapter_dtype was"):
        run(tmp_path / "whole", Goes(), resume=True, dtype=None)


@DTYPES
def test_an_adapter_in_16_bits_is_saved_in_16_and_loaded_into_either(make_model, tmp_path, adapter_dtype):
    peft_model = adapted_in_16_bits(quantized(make_model(np.float32)), adapter_dtype)
    peft_model.save_pretrained(tmp_path)
    wide = ln.PeftModel.from_pretrained(quantized(make_model(np.float32)), tmp_path)
    narrow = ln.PeftModel.from_pretrained(quantized(make_model(np.float32)), tmp_path, adapter_dtype=adapter_dtype)
    assert {p.value.dtype for p in factors_of(wide).values()} == {np.dtype(np.float32)}
    for name, p in factors_of(peft_model).items():
        assert_array_equal(factors_of(wide)[name].value, p.value.astype("float32"))
        assert_array_equal(factors_of(narrow)[name].value, p.value)
    for model in (wide, narrow):
        assert_array_equal(model.forward(TOKENS)[0], peft_model.forward(TOKENS)[0])


def test_an_adapter_cannot_be_stored_in_whole_numbers(make_model):
    for wrong in ("int8", "float17"):
        with pytest.raises(TypeError, match=wrong):
            adapted_in_16_bits(make_model(), wrong)


# ---------------------------------------------------------------------------------------------------------------- on disk


@types
@double_quants
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}], ids=["untied", "tied"])
def test_a_quantised_model_is_saved_and_loaded_to_the_bit(make_model, tmp_path, quant_type, double_quant, changes):
    model = quantized(
        make_model(np.float32, **changes), quant_type=quant_type, double_quant=double_quant, skip_modules=["k_proj"]
    )
    save_model(model, tmp_path)
    back = load_model(tmp_path)
    assert_array_equal(back.forward(TOKENS)[0], model.forward(TOKENS)[0])
    for name, p in model.named_parameters():
        other = dict(back.named_parameters())[name].value
        if isinstance(p.value, Quantized4bit):
            assert_array_equal(other.packed, p.value.packed)
            assert (other.shape, other.block_size, other.quant_type) == (p.value.shape, 32, quant_type)
        else:
            assert_array_equal(other, p.value)


def test_a_quantised_base_and_its_adapter_come_back_together(make_model, random_batch, tmp_path):
    base = quantized(make_model(np.float32))
    save_model(base, tmp_path / "base")
    peft_model = adapted(base)
    ln.train(peft_model, [random_batch()], ln.AdamW(lr=1e-2), steps=3)
    peft_model.save_pretrained(tmp_path / "adapter")
    back = ln.PeftModel.from_pretrained(load_model(tmp_path / "base"), tmp_path / "adapter")
    assert_array_equal(back.forward(TOKENS)[0], peft_model.forward(TOKENS)[0])


def test_a_base_that_carries_an_adapter_is_not_saved_under_names_that_nobody_reads(make_model, tmp_path):
    base = quantized(make_model(np.float32))
    adapted(base)
    with pytest.raises(TypeError, match="has an adapter"):
        save_model(base, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_holds_the_packed_bytes_and_little_more(tmp_path):
    model = ln.quantize_model(load_model("tiny", device="numpy"))
    save_model(model, tmp_path)
    stored = sum(p.value.nbytes for _, p in model.named_parameters())
    layers = sum(isinstance(m, QuantizedLinear) for _, m in model.named_modules())
    tables = layers * (64 + 1024)  # bitsandbytes repeats its two tables in every layer
    assert 0 < (tmp_path / "model.safetensors").stat().st_size - stored - tables < layers * 1000, "the rest is names"


WEIGHT = "model.layers.1.mlp.up_proj.weight"


def set_state(arrays, **changes):
    key = f"{WEIGHT}.quant_state.bitsandbytes__nf4"
    state = json.loads(arrays[key].tobytes()) | changes
    arrays[key] = np.frombuffer(json.dumps(state).encode(), np.uint8)


DAMAGED = {
    "packed codes cut short": (
        lambda a: a.update({WEIGHT: a[WEIGHT][:-1]}),
        "packed has 119 entries; expected 120.*Is the",
    ),
    "codes of 16 bits": (lambda a: a.update({WEIGHT: a[WEIGHT].astype(np.uint16)}), "packed has dtype uint16"),
    "absmax cut short": (
        lambda a: a.update({f"{WEIGHT}.absmax": a[f"{WEIGHT}.absmax"][:-1]}),
        "absmax has 7 entries; expected 8",
    ),
    "absmax gone": (lambda a: a.pop(f"{WEIGHT}.absmax"), r"incomplete or damaged \('absmax'\)"),
    "the scales of absmax gone": (
        lambda a: a.pop(f"{WEIGHT}.nested_absmax"),
        "absmax has dtype uint8; expected float32",
    ),
    "absmax not finite": (
        lambda a: a.update({f"{WEIGHT}.nested_absmax": np.float32([np.nan])}),
        "absmax contains NaN or infinity",
    ),
    "absmax with two axes": (
        lambda a: a.update({f"{WEIGHT}.absmax": a[f"{WEIGHT}.absmax"][:, None]}),
        r"absmax has shape \(8, 1\); expected one axis",
    ),
    "another code": (
        lambda a: a.update({f"{WEIGHT}.quant_map": a[f"{WEIGHT}.quant_map"] ** 3}),
        "its array quant_map differs from the code values of its type",
    ),
    "an unknown type": (lambda a: set_state(a, quant_type="af4"), "unknown quant_type 'af4'"),
    "an odd block": (lambda a: set_state(a, blocksize=48), "block_size = 48; expected a power of two"),
    "an impossible shape": (lambda a: set_state(a, shape=[0, 12]), r"the shape is \(0, 12\)"),
    "another shape": (
        lambda a: set_state(a, shape=[12, 20]),
        r"up_proj\.weight has shape \(12, 20\); expected \(20, 12\)",
    ),
    "a state that is no JSON": (
        lambda a: a.update({f"{WEIGHT}.quant_state.bitsandbytes__nf4": np.uint8([1, 2])}),
        "up_proj.weight: ",
    ),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_quantised_file_is_a_clear_error(what, make_model, tmp_path):
    edit, message = DAMAGED[what]
    save_model(quantized(make_model(np.float32)), tmp_path)
    load_model(tmp_path)
    arrays = load_file(tmp_path / "model.safetensors")
    edit(arrays)
    save_file(arrays, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"up_proj\.weight.*{message}|{message}"):
        load_model(tmp_path)


def test_what_is_quantised_by_another_method_or_not_at_all_is_refused(make_model, tmp_path):
    save_model(quantized(make_model(np.float32)), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"quant_method": "awq"}, {"load_in_4bit": False}):
        changed = config | {"quantization_config": config["quantization_config"] | change}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=r"load_in_4bit .*; expected 'bitsandbytes' and true"):
            load_model(tmp_path)
    save_model(make_model(np.float32), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no weight is quantised"):
        load_model(tmp_path)


# ----------------------------------------------------------------------------------------------------------- bad input


def spoilt(model):
    model.model.layers[1].mlp.down_proj.weight.value[3, 5] = np.nan
    return model


BAD = {
    "NaN": (lambda m: quantize_4bit(xp.asarray(np.float32([1, np.nan]))), ValueError, "contains NaN or infinity"),
    "infinity": (lambda m: quantize_4bit(xp.asarray(np.float32([1, -np.inf]))), ValueError, "contains NaN or infinity"),
    "too large for float32": (lambda m: quantize_4bit(xp.asarray([1e300])), ValueError, "contains NaN or infinity"),
    "integers": (lambda m: quantize_4bit(xp.asarray([1, 2])), TypeError, "W has dtype int64; expected floats"),
    "nothing": (lambda m: quantize_4bit(xp.zeros((0, 3))), ValueError, "at least one weight"),
    "a list": (lambda m: quantize_4bit([1.0]), TypeError, "got list"),
    "an unknown type": (lambda m: quantized(m, quant_type="nf3"), ValueError, "'nf3'; expected one of nf4, fp4, int4"),
    "a block of 48": (lambda m: quantized(m, block_size=48), ValueError, "block_size = 48; expected a power of two"),
    "a block of 0": (lambda m: quantized(m, block_size=0), ValueError, "block_size = 0"),
    "a module that is not there": (
        lambda m: quantized(m, skip_modules=["query"]),
        ValueError,
        "'query' matches no linear layer; .*q_proj",
    ),
    "a NaN in one weight": (
        lambda m: quantized(spoilt(m)),
        ValueError,
        r"layers\.1\.mlp\.down_proj\.weight: W contains NaN",
    ),
    "quantised already": (lambda m: quantized(quantized(m)), ValueError, "no Linear to quantise"),
    "a merged adapter": (lambda m: quantized(merged(adapted(m))), RuntimeError, "an adapter is merged"),
    "a float matrix in a QuantizedLinear": (
        lambda m: QuantizedLinear(normal(3, 3)),
        TypeError,
        "expected a Quantized4bit",
    ),
}


def merged(peft_model):
    peft_model.merge_adapter()
    return peft_model


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_a_clear_error(what, make_model):
    call, error, message = BAD[what]
    with np.errstate(over="ignore"), pytest.raises(error, match=message):
        call(make_model())


def test_a_refusal_to_quantise_changes_nothing(make_model):
    model = spoilt(make_model())
    with pytest.raises(ValueError, match="NaN"):
        quantized(model)
    assert not any(isinstance(m, QuantizedLinear) for _, m in model.named_modules())


def test_loading_quantises_one_matrix_at_a_time(tmp_path):
    """The peak is the stored model and a few arrays of one matrix, far below the model in float32."""
    sizes = {"vocab_size": 64, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 12}
    config = ln.TransformerConfig(**sizes, num_attention_heads=4, num_key_value_heads=4)
    ln.Transformer.random(config).save_pretrained(tmp_path)
    tracemalloc.start()
    model = ln.load_model(tmp_path, device="numpy", quantize="nf4")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    stored = sum(p.value.nbytes for _, p in model.named_parameters())
    matrix = 4 * 512 * 256
    assert peak < stored + 8 * matrix < 4 * ln.costs.count(model).total / 2


def test_a_quantised_model_is_not_quantised_again(tmp_path):
    ln.quantize_model(ln.load_model("tiny")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="already quantised; leave out"):
        ln.load_model(tmp_path, quantize="nf4")
    with pytest.raises(ValueError, match="nf3"):
        ln.load_model("tiny", quantize="nf3")
