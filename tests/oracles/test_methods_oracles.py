"""Prefix tuning against PEFT, and bottlenecks against PyTorch's autograd: the same numbers in, the same gradients out.

"measured" beside a bound is the worst seen when this was written (torch 2.13, transformers 5.23, peft 0.21.2);
`pytest tests/oracles/test_methods_oracles.py -rP` shows it again.
"""

from __future__ import annotations

import numpy as np
import pytest
from oracle_models import (
    SHAPES,
    UNTIED,
    DoubleTorch,
    base_pair,
    largest_difference,
    modeling_llama,
    peft,
    random_batch,
    relative_error,
    their_loss,
    torch,
)

import lora_np as ln

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
]

TOKENS, TARGETS = random_batch(seed=3)
MASK = np.ones(TOKENS.shape, int)
MASK[0, :4] = MASK[1, :1] = 0  # padding on the left
WAYS = {
    "plain": {"num_virtual_tokens": 5},
    "projected": {"num_virtual_tokens": 5, "prefix_projection": True, "encoder_hidden_size": 7},
}
ways = pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS.keys())
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


@pytest.fixture
def precise(monkeypatch):
    """In float64, transformers' Llama without its three detours through float32: see oracle_models."""
    monkeypatch.setattr(modeling_llama, "torch", DoubleTorch("torch"))


def prefixed_pair(shape, settings, dtype=np.float64):
    """(ours, theirs) with a prefix of the same numbers."""
    ours, theirs = base_pair(shape, dtype)
    ours = ln.get_peft_model(ours, ln.PrefixTuningConfig(**settings))
    theirs = peft.get_peft_model(theirs, peft.PrefixTuningConfig(task_type="CAUSAL_LM", **settings))
    theirs.prompt_encoder.to(theirs.dtype)
    others = dict(theirs.named_parameters())
    mine = {name: p for name, p in ours.named_parameters() if p.trainable}
    assert mine.keys() == {name for name, p in others.items() if p.requires_grad}
    rng = np.random.default_rng(1)
    for name, p in mine.items():
        p.value = rng.standard_normal(p.value.shape).astype(dtype) / (1 if "embedding" in name else 2)
        others[name].data.copy_(torch.from_numpy(p.value))
    return ours, theirs


def close(ours, theirs, bound, what=""):
    error = largest_difference(ours, theirs)
    print(f"{what} measured {error:.1e}; bound {bound:.0e}")
    assert error <= bound


# --------------------------------------------------------------------------------------------------------------- prefix


@shapes
@ways
def test_loss_and_gradients_of_a_prefix_are_those_of_peft(shape, settings, precise):
    """In float64 to 1e-10, measured 3e-15. Grouped heads, one head, heads wider than the stream among the shapes."""
    ours, theirs = prefixed_pair(shape, settings)
    loss, cache = ours.loss(TOKENS, TARGETS)
    ours.backward(cache)
    expected = their_loss(theirs, TOKENS, TARGETS)
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    others, worst = dict(theirs.named_parameters()), 0.0
    for name, p in ours.named_parameters():
        assert (p.grad is not None) == (others[name].grad is not None if p.trainable else False), name
        if p.trainable:
            worst = max(worst, relative_error(p.grad, others[name].grad.numpy()))
    print(f"measured {worst:.1e}; bound 1e-10")
    assert worst <= 1e-10


@ways
def test_with_a_mask_the_logits_are_those_of_peft(settings, precise):
    """Where a token is; a position is counted by column, in both. Measured 7e-15."""
    ours, theirs = prefixed_pair(UNTIED, settings)
    logits, _ = ours.forward(TOKENS, attention_mask=MASK.astype(bool))
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(TOKENS), attention_mask=torch.from_numpy(MASK)).logits.numpy()
    seen = MASK.astype(bool)
    close(logits[seen], expected[seen], 1e-10)


@ways
def test_it_generates_what_peft_says_token_by_token(settings, precise):
    """Greedy, prompts of several lengths in one batch here; each alone, and read again for every token, in PEFT.

    Not against PEFT's own generate: with transformers 5.24 PEFT 0.21.2 loses the prefix there (two prefixes continue alike, and
    not as its forward does); with 5.23 it agreed.
    """
    ours, theirs = prefixed_pair(UNTIED, settings)
    prompts = [row[mask == 1].tolist() for row, mask in zip(TOKENS, MASK, strict=True)]
    expected = []
    for prompt in prompts:
        tokens = list(prompt)
        for _ in range(12):
            with torch.no_grad():
                tokens.append(int(theirs.eval()(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        expected.append(tokens[len(prompt) :])
    assert ln.generate(ours, prompts, max_new_tokens=12) == expected


@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 1e-4), (np.float64, 1e-10)], ids=["float32", "float64"])
@ways
def test_a_prefix_saved_here_answers_the_same_in_peft(settings, dtype, bound, tmp_path, request):
    """Measured 3e-6 and 7e-15."""
    if dtype == np.float64:
        request.getfixturevalue("precise")
    ours, _ = prefixed_pair(UNTIED, settings, dtype)
    ours.save_pretrained(tmp_path)
    _, base = base_pair(UNTIED, dtype)
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path), autocast_adapter_dtype=False).eval()
    theirs.prompt_encoder.to(theirs.dtype)
    if dtype == np.float64:  # PEFT makes its table in float32 and copies into it: the file's own numbers
        stored, _ = ln.files.load_arrays(tmp_path / "adapter_model.safetensors")
        theirs.prompt_encoder["default"].embedding.weight.data.copy_(torch.from_numpy(stored["prompt_embeddings"]))
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(TOKENS)).logits.numpy()
    close(ours.forward(TOKENS)[0], expected, bound)


@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 1e-4), (np.float64, 1e-10)], ids=["float32", "float64"])
@ways
def test_a_prefix_saved_by_peft_answers_the_same_here(settings, dtype, bound, tmp_path, request):
    """Measured 3e-6 and 7e-15."""
    if dtype == np.float64:
        request.getfixturevalue("precise")
    _, theirs = prefixed_pair(UNTIED, settings, dtype)
    theirs.save_pretrained(str(tmp_path))
    base, _ = base_pair(UNTIED, dtype)
    ours = ln.PeftModel.from_pretrained(base, tmp_path)
    with torch.no_grad():
        expected = theirs.eval()(input_ids=torch.from_numpy(TOKENS)).logits.numpy()
    close(ours.forward(TOKENS)[0], expected, bound)


def test_the_configuration_is_pefts_key_for_key(tmp_path):
    ours, theirs = prefixed_pair(UNTIED, WAYS["projected"], np.float32)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(str(tmp_path / "theirs"))
    mine, others = (ln.peft.files.read_adapter(tmp_path / who)[0] for who in ("ours", "theirs"))
    assert {k: v for k, v in others.items() if mine.get(k) != v} == {}


def test_llama_2_7b_has_the_parameters_that_peft_counts():
    """5,242,880 of 20 virtual tokens, on PyTorch's meta device; of Llama-3-8B, with 8 key/value heads, a quarter."""
    from oracle_models import transformers

    for kv_heads, expected in ((32, 5_242_880), (8, 1_310_720)):
        sizes = {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": kv_heads,
        }
        with torch.device("meta"):
            base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=8, intermediate_size=8))
            theirs = peft.get_peft_model(base, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20))
        assert theirs.get_nb_trainable_parameters()[0] == expected == ln.costs.prefix_parameters(20, 32, kv_heads, 128)


# ----------------------------------------------------------------------------------------------------------- bottleneck


def transcribed(theirs, ours, non_linearity):
    """PyTorch's layers after o_proj and down_proj, as Houlsby et al. draw them, with our numbers. → name → tensor."""
    activation = {"gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"), "silu": torch.nn.functional.silu}
    mine, made = {name: p for name, p in ours.named_parameters() if p.trainable}, {}
    for p in theirs.parameters():
        p.requires_grad_(False)

    def hook(prefix):
        keys = [f"{prefix}.bottleneck_{side}.default.{part}" for side in ("down", "up") for part in ("weight", "bias")]
        tensors = [torch.from_numpy(mine[key].value.copy()).requires_grad_() for key in keys]
        made.update(zip(keys, tensors, strict=True))
        W_down, b_down, W_up, b_up = tensors

        def after(module, inputs, y):
            h = torch.nn.functional.linear(y, W_down, b_down)
            return y + torch.nn.functional.linear(activation[non_linearity](h), W_up, b_up)

        return after

    for name, module in theirs.named_modules():
        key = f"base_model.model.{name}"
        if any(other.startswith(f"{key}.bottleneck_") for other in mine):
            module.register_forward_hook(hook(key))
    assert made.keys() == mine.keys()
    return made


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize("non_linearity", ["gelu", "silu"])
@shapes
def test_loss_and_gradients_of_bottlenecks_are_those_of_autograd(shape, placement, non_linearity, precise):
    """In float64 to 1e-10, measured 3e-15."""
    ours, theirs = base_pair(shape)
    ours = ln.get_peft_model(
        ours,
        ln.BottleneckConfig(
            bottleneck_size=7, reduction_factor=16, non_linearity=non_linearity, placement=placement, init_weights=False
        ),
        seed=2,
    )
    tensors = transcribed(theirs, ours, non_linearity)
    loss, cache = ours.loss(TOKENS, TARGETS)
    ours.backward(cache)
    expected = their_loss(theirs, TOKENS, TARGETS)
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    worst = max(relative_error(p.grad, tensors[n].grad.numpy()) for n, p in ours.named_parameters() if p.trainable)
    print(f"measured {worst:.1e}; bound 1e-10")
    assert worst <= 1e-10
