"""What is printed says what it is: a model its tree, a parameter its shape, batches their sizes; and a call is a forward."""

from __future__ import annotations

import re

import numpy as np
import pytest
from on_device import assert_array_equal, xp

import lora_np as ln
from lora_np.data.conversations import ConversationBatches, Example
from lora_np.nn import Linear, Module, Parameter
from lora_np.transformer import KeyValueCache

TREE = """\
Transformer(
  (model): Decoder(
    (embed_tokens): Embedding(11, 12)
    (layers.0-1): 2 x Block(
      (input_layernorm): RMSNorm(12, eps=1e-06)
      (self_attn): Attention(
        (q_proj): Linear(in_features=12, out_features=16, bias=False)
        (k_proj): Linear(in_features=12, out_features=8, bias=False)
        (v_proj): Linear(in_features=12, out_features=8, bias=False)
        (o_proj): Linear(in_features=16, out_features=12, bias=False)
      )
      (post_attention_layernorm): RMSNorm(12, eps=1e-06)
      (mlp): MLP(
        (gate_proj): Linear(in_features=12, out_features=20, bias=False)
        (up_proj): Linear(in_features=12, out_features=20, bias=False)
        (down_proj): Linear(in_features=20, out_features=12, bias=False)
      )
    )
    (norm): RMSNorm(12, eps=1e-06)
  )
  (lm_head): Linear(in_features=12, out_features=11, bias=False)
)"""


class Net(Module):
    """A module of one's own: a parameter, two equal layers that are no list, a list, and a dict."""

    def __init__(self):
        a, b = (Linear(np.ones((2, 3)), np.ones(2)) for _ in "ab")
        self.scale = Parameter(np.ones((4, 1)))
        self.a, self.b = a, b
        self.list = [a, b, Linear(np.ones((3, 2))), a]
        self.dict = {"x": a, "y": b}


# -------------------------------------------------------------------------------------------------------------- printed


def test_a_model_is_printed_as_its_tree(make_model):
    assert str(make_model()) == TREE


def test_a_tied_head_is_not_missing_from_the_tree(make_model):
    printed = str(make_model(tie_word_embeddings=True))
    assert "(lm_head)" not in printed and "lm_head is tied to model.embed_tokens" in printed


def test_equal_neighbours_are_folded_in_a_list_and_nowhere_else():
    layer = "Linear(in_features=3, out_features=2, bias=True)"
    other = "Linear(in_features=2, out_features=3, bias=False)"
    rows = ["scale=(4, 1)", f"(a): {layer}", f"(b): {layer}", f"(list.0-1): 2 x {layer}", f"(list.2): {other}"]
    rows += [f"(list.3): {layer}", f"(dict.x): {layer}", f"(dict.y): {layer}"]
    assert str(Net()) == "Net(\n  " + "\n  ".join(rows) + "\n)"


def test_the_names_in_the_tree_are_those_of_named_modules(make_model):
    model = make_model()
    names = {name.rpartition(".")[2] for name, _ in model.named_modules() if name}
    printed = re.findall(r"\((?:\w+\.)?([\w-]+)\): ", str(model))
    assert {"0-1", *names} - {"0", "1"} == set(printed)


def test_a_layer_that_adapts_shows_its_base_and_its_parameters(make_model):
    adapted = str(ln.get_peft_model(make_model(), ln.PrefixTuningConfig(num_virtual_tokens=3)))
    assert "(prompt_encoder.default): PrefixEncoder(" in adapted
    adapted = str(ln.get_peft_model(make_model(), ln.LoraConfig(r=3, target_modules=["q_proj"])))
    assert "(base_layer): Linear(in_features=12, out_features=16, bias=False)" in adapted and "(3, 12)" in adapted


def test_a_quantised_layer_says_how(make_model):
    model = ln.quantize_model(make_model(np.float32), "fp4", block_size=32, double_quant=False)
    layer = "QuantizedLinear(in_features=12, out_features=16, bias=False, fp4, block_size=32, double_quant=False)"
    assert f"(q_proj): {layer}" in str(model)
    weight = repr(model.model.layers[0].self_attn.q_proj.weight)
    assert len(weight) < 150 and "fp4" in weight and "frozen" in weight, "not its codes"


def test_a_notebook_folds_the_tree(make_model):
    model = make_model()
    model.model.norm.freeze()
    html, size = model._repr_html_(), sum(p.value.size for _, p in model.named_parameters())
    assert html == (
        f"<details open><summary>Transformer: {size:,} parameters, {size - 12:,} trainable</summary>"
        f"<pre>{TREE}</pre></details>"
    )


def test_what_a_module_says_of_itself_is_text_and_not_html():
    class Bold(Net):
        def extra_repr(self):
            return "<b>"

    assert "<b>" in str(Bold()) and "&lt;b&gt;" in Bold()._repr_html_() and "<b>" not in Bold()._repr_html_()


def test_a_parameter_says_its_shape_and_whether_it_trains():
    p = Parameter(xp.zeros((2, 3), "float32"))
    assert repr(p) == "Parameter(shape=(2, 3), dtype=float32, trainable, no gradient)"
    p.add_grad(xp.ones((2, 3), "float32"))
    assert repr(p) == "Parameter(shape=(2, 3), dtype=float32, trainable, has a gradient)"
    assert repr(Parameter(xp.zeros(4), trainable=False)) == "Parameter(shape=(4,), dtype=float64, frozen, no gradient)"


def test_what_is_handed_around_fits_on_a_line(make_model):
    example = Example(np.arange(4), np.ones(4, bool))
    past = KeyValueCache(make_model().config)
    make_model()(np.ones((3, 5), int), past_key_values=past)
    printed = {
        "Batches(2,000 tokens, batch_size=4, seq_len=8, seed=1)": ln.data.Batches(np.arange(2000), 4, 8, seed=1),
        "ConversationBatches(1 examples, batch_size=2, seed=0)": ConversationBatches([example], batch_size=2),
        "KeyValueCache(2 layers, 3 rows of 5 tokens)": past,
        "ByteTokenizer(vocab_size=256, bos_token_id=0, eos_token_id=0, pad_token_id=0, a chat template)": (
            ln.load_tokenizer("tiny")
        ),
        "AdamW(lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01)": ln.AdamW(),
        "History(no step taken)": ln.History(),
    }
    assert {repr(thing): thing for thing in printed.values()} == printed


# --------------------------------------------------------------------------------------------------------------- called


@pytest.mark.parametrize("adapter", [False, True], ids=["Transformer", "PeftModel"])
def test_a_called_model_returns_its_logits(adapter, make_model, random_batch):
    model, (tokens, _) = make_model(), random_batch()
    if adapter:
        config = ln.LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False)
        model = ln.get_peft_model(model, config, seed=1)
    assert_array_equal(model(tokens), model.forward(tokens)[0])
    mask = np.ones((2, 6), bool)
    mask[0, 0] = False
    assert_array_equal(model(tokens, attention_mask=mask), model.forward(tokens, attention_mask=mask)[0])


def test_a_called_layer_returns_y():
    layer, x = Linear(xp.ones((2, 3)), xp.ones(2)), xp.ones((4, 3))
    assert_array_equal(layer(x), layer.forward(x)[0])
