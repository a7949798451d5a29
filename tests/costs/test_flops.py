"""The FLOPs of a step, compared with published formulas and with every matrix product of a live step."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import pytest

from lora_np import BottleneckConfig, LoraConfig, PrefixTuningConfig, VeraConfig, costs, get_peft_model, ops
from lora_np.costs.flops import adapter_products, causal_scores, weight_products
from lora_np.nn import Linear
from lora_np.peft.lora.layer import LoraCost
from lora_np.peft.registry import METHODS

N = 64  # a square matrix


def lora(r, target_modules="all-linear"):
    return LoraConfig(r=r, target_modules=target_modules)


def per_token(layer, need_dx=True):
    products = weight_products(layer, 1, need_dx) + adapter_products(layer, 1, need_dx)
    return products.forward // 2, products.dx // 2, products.dW // 2  # multiply-adds


def test_full_fine_tuning_of_a_square_matrix_costs_three_passes():
    layer = costs.Layer("W", N, N, trained=True, trainable=True)
    assert per_token(layer) == (N**2, N**2, N**2), "x Wᵀ, dy W and dyᵀ x: 3N² multiply-adds, or 6N² FLOPs, per token"


@pytest.mark.parametrize("r", [1, 8, 64])
def test_lora_on_a_square_matrix_costs_two_passes_and_6_n_r(r):
    """2N² + 6Nr multiply-adds instead of 3N² (Schulman 2025, "LoRA Without Regret")."""
    layer = costs.Layer("W", N, N, trained=False, adapter=LoraCost(r=r), trainable=True)
    assert sum(per_token(layer)) == 2 * N**2 + 6 * N * r


def test_lora_at_full_rank_costs_more_than_full_fine_tuning():
    assert 2 * N**2 + 6 * N * (N // 6 + 1) > 3 * N**2, "for r > N/6, LoRA needs more FLOPs than full fine-tuning"


def test_what_is_below_the_lowest_trainable_layer_gets_no_gradient():
    one = costs.flops("llama-2-7b", lora(8, ["model.layers.31.self_attn.q_proj"]), batch=1, seq=10)
    q = 2 * 10 * 4096**2
    assert one.linear.dx == 2 * 10 * (3 * 4096 * 11_008 + 4096**2), (
        "only the last MLP and o_proj compute dx; no layer below q does"
    )
    assert one.linear.dW == 0 and one.adapter.total == 5 * q * 8 // 4096, "no dx through A"


def test_the_frozen_products_of_smollm2_are_275_gflop():
    model, tokens = costs.MODELS["smollm2-135m"], 512
    step = costs.flops(model, lora(8), batch=2, seq=256)
    frozen = step.linear.total + step.head.total
    below_is_nothing_trained = 2 * tokens * 576 * (576 + 192 + 192)
    assert frozen == 4 * tokens * (model.block_linear_parameters + model.head.parameters) - below_is_nothing_trained
    assert frozen == pytest.approx(275e9, rel=2e-3)


def test_qlora_multiplies_what_lora_multiplies():
    quantized, plain = (costs.flops("llama-2-7b", lora(8), batch=1, seq=64, quantize=how) for how in ("nf4", None))
    assert quantized == plain, "decoding is not a matrix product"


def test_full_fine_tuning_costs_six_operations_a_token_and_parameter():
    """C ≈ 6ND (Kaplan et al. 2020); the embedding is a lookup, without a product."""
    model = costs.MODELS["llama-2-7b"]
    step = costs.flops(model, batch=2, seq=2048)
    assert step.linear.total + step.head.total == 6 * 4096 * (model.block_linear_parameters + model.head.parameters)


@pytest.mark.parametrize(("seq", "block"), [(5, 1), (5, 5), (6, 4), (64, 64), (256, 64)])
def test_causal_scores_are_those_that_a_loop_counts(seq, block):
    seen = [
        min((query // block + 1) * block, seq) for query in range(seq)
    ]  # each query sees the keys up to its block's last query
    assert causal_scores(seq, block) == sum(seen)
    if (seq, block) == (256, 64):
        assert causal_scores(seq, block) == 5 / 8 * seq**2, "the number in the docstring of attention_forward"


# ------------------------------------------------------------------------------------------------------------ a live step

CASES = {
    "full": None,
    "all-linear": LoraConfig(r=3, target_modules="all-linear"),
    "attention": LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
    "LoRA-FA": LoraConfig(r=3, target_modules="all-linear", freeze_A=True),
    "PiSSA": LoraConfig(r=3, target_modules="all-linear", init_lora_weights="pissa"),
    "only o_proj": LoraConfig(r=2, target_modules=["o_proj"]),
    "only the last MLP's down_proj": LoraConfig(target_modules=["model.layers.1.mlp.down_proj"]),
    "only the second block's up_proj": LoraConfig(target_modules=["model.layers.1.mlp.up_proj"]),
    "the head": LoraConfig(target_modules=["lm_head"]),
    "ranks of their own": LoraConfig(
        r=2, target_modules="all-linear", rank_pattern={"down_proj": 5, "1.mlp.up_proj": 1}
    ),
    "DoRA": LoraConfig(r=3, target_modules="all-linear", use_dora=True),
    "DoRA, its true gradient": LoraConfig(r=3, target_modules="all-linear", use_dora=True, dora_norm="true"),
    "DoRA, dropout": LoraConfig(r=3, target_modules="all-linear", use_dora=True, lora_dropout=0.1),
    "DoRA, A frozen": LoraConfig(r=3, target_modules=["v_proj"], use_dora=True, freeze_A=True, dora_norm="true"),
    "DoRA on the head": LoraConfig(r=2, target_modules=["lm_head"], use_dora=True),
    "VeRA": VeraConfig(r=5, target_modules="all-linear", vera_dropout=0.1),
    "VeRA, only v_proj": VeraConfig(r=5, target_modules=["v_proj"]),
    "prefix": PrefixTuningConfig(num_virtual_tokens=5),
    "a prefix longer than the text": PrefixTuningConfig(num_virtual_tokens=48),
    "projected prefix": PrefixTuningConfig(num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=7),
    "Houlsby": BottleneckConfig(bottleneck_size=3),
    "Pfeiffer": BottleneckConfig(bottleneck_size=3, placement="pfeiffer", non_linearity="silu"),
}
CASES |= {method.peft_type: method.example for method in METHODS}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_every_product_of_a_live_step_is_counted(case, tied, make_model, random_batch, double, monkeypatch):
    """The test double of CuPy records each matrix product of the step."""
    model = make_model(np.float32, tie_word_embeddings=tied, max_position_embeddings=128)
    if CASES[case] is not None:
        model = get_peft_model(model, CASES[case])
    model = model.to("cupy")
    computed, multiply = [0], double.ndarray.__matmul__

    def counted(x, y):
        z = multiply(x, y)
        computed[-1] += 2 * prod(z.shape) * x.shape[-1]
        return z

    monkeypatch.setattr(double.ndarray, "__matmul__", counted)
    rows, length = 3, 70  # more than one block of queries
    tokens, targets = random_batch(rows, length)
    _, cache = model.loss(tokens, targets, rng=np.random.default_rng(0))
    computed.append(0)
    model.backward(cache)
    expected = costs.flops(model, batch=rows, seq=length, attention_block=ops.attention.BLOCK)
    assert computed[0] == expected.products.forward
    assert computed[1] == expected.products.dx + expected.products.dW


@pytest.mark.parametrize("case", CASES)
def test_a_live_model_costs_what_its_architecture_costs_on_paper(case, make_model):
    model, config = make_model(hidden_size=16), CASES[case]
    paper = costs.llama("paper", 2, hidden=16, heads=4, kv_heads=2, ffn=20, vocabulary=11)
    live = model if config is None else get_peft_model(model, config)
    assert costs.flops(live, batch=2, seq=6) == costs.flops(paper, config, batch=2, seq=6)
    assert costs.count(live) == costs.count(paper, config)
    there, on_paper = costs.model_structure(live), costs.model_structure(paper, config)
    assert replace(there, name="paper") == on_paper, "the layers of both structures must be equal"


def test_the_table_adds_up():
    step = costs.flops("smollm2-135m", lora(8), batch=2, seq=256)
    *rows, total = [line.split()[-4:] for line in str(step).splitlines()[1:6]]
    for column, number in enumerate(total):
        assert sum(float(row[column]) for row in rows) == pytest.approx(float(number), abs=0.005)


def test_what_makes_no_step_is_an_error():
    for wrong in ({"batch": 0}, {"seq": 0}, {"attention_block": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} 0.*expected at least 1"):
            costs.flops("gpt-2", **{"batch": 1, "seq": 64} | wrong)
    with pytest.raises(TypeError, match=r"missing a required argument: 'seq'; for example costs\.flops\("):
        costs.flops("gpt-2", lora(8), batch=1)
    with pytest.raises(TypeError, match="got int"):
        costs.flops(7, batch=1, seq=64)
    with pytest.raises(TypeError, match="expected a Transformer or a PeftModel, got Linear"):
        costs.flops(Linear(np.zeros((5, 3))), batch=1, seq=64)


def test_a_live_model_takes_no_paper_settings(make_model):
    for settings in ({"config": lora(8)}, {"quantize": "nf4"}):
        with pytest.raises(ValueError, match="without further settings"):
            costs.flops(make_model(), **settings, batch=1, seq=6)


def test_a_factor_that_was_frozen_by_hand_has_no_gradient(make_model):
    model = get_peft_model(make_model(np.float32), LoraConfig(target_modules="all-linear"))
    frozen_A = get_peft_model(make_model(np.float32), LoraConfig(target_modules="all-linear", freeze_A=True))
    for name, p in model.named_parameters():
        if "lora_A" in name:
            p.trainable = False
    assert costs.flops(model, batch=2, seq=6) == costs.flops(frozen_A, batch=2, seq=6)
