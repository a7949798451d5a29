"""The bits are bitsandbytes', and a quantised model is the same one in transformers and PEFT.

Its CPU kernels are no oracle everywhere. The 8-bit quantiser of double quantisation looks up a coarse table, so its codes are
compared with the exact rule and only mostly with its own; the AVX512 dequantiser scales wrongly where rows are no whole number
of blocks, so values are dequantised by bitsandbytes' plain PyTorch rule (backends/default) there. And in eval mode its Linear4bit
computes in bfloat16 on such a CPU: models are compared in train mode.
"""

from __future__ import annotations

import numpy as np
import pytest
from on_device import host
from oracle_models import UNTIED, assert_close, largest_difference, peft, torch, transformers
from safetensors.torch import save_file

import lora_np as ln
from lora_np.quantization import QuantizedAbsmax, code_book, dequantize_4bit, dynamic_map, quantize_4bit

bnb = pytest.importorskip("bitsandbytes", reason="the oracles are not installed: run `make test-oracles`")
functional = bnb.functional
rule = pytest.importorskip("bitsandbytes.backends.default.ops")
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

theirs_too = pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
blocks = pytest.mark.parametrize("block_size", [64, 128, 256, 512, 1024, 2048, 4096])


def midpoints_times_absmax(rng, n):
    codes = np.sort(code_book("nf4"))
    middles = np.concatenate([[1.0], (codes[:-1] + codes[1:]) / 2]).astype(np.float32)
    return (np.resize(middles, n) * np.repeat(rng.uniform(0.1, 1, n // 64 + 1), 64)[:n]).astype(np.float32)


INPUTS = {
    "random": lambda rng, n: rng.standard_normal(n),
    "heavy-tailed": lambda rng, n: rng.standard_t(2, n),
    "constant": lambda rng, n: np.full(n, -0.3),
    "all zero": lambda rng, n: np.zeros(n),
    "sparse, with blocks of zeros": lambda rng, n: rng.standard_normal(n) * (rng.random(n) < 0.01),
    "midpoints": midpoints_times_absmax,
    "of all magnitudes": lambda rng, n: rng.standard_normal(n) * 10.0 ** rng.uniform(-30, 30, n),
    "too small for a reciprocal": lambda rng, n: rng.standard_normal(n) * 1e-39,
}


@theirs_too
def test_the_code_books_are_theirs_to_the_bit(quant_type):
    book = functional.get_4bit_type(quant_type, device="cpu").numpy()
    assert np.float32(code_book(quant_type)).tobytes() == book.tobytes()


def test_the_dynamic_map_is_theirs_to_the_last_bit_but_one():
    """It is theirs to the bit where this was written; torch.linspace may round otherwise on another processor."""
    np.testing.assert_allclose(np.float32(dynamic_map()), functional.create_dynamic_map().numpy(), rtol=3e-7, atol=0)


@theirs_too
@blocks
@pytest.mark.parametrize("what", INPUTS)
def test_codes_absmax_and_bytes_are_theirs_to_the_bit(what, block_size, quant_type):
    rng = np.random.default_rng(block_size)
    for n in (1, 2, 63, 64, 65, 4095, 4096, 12_345):
        w = INPUTS[what](rng, n).astype(np.float32)
        packed, state = functional.quantize_4bit(torch.from_numpy(w), blocksize=block_size, quant_type=quant_type)
        mine = quantize_4bit(w, block_size, quant_type)
        assert mine.packed.shape == tuple(packed.shape) and mine.packed.dtype == np.uint8
        np.testing.assert_array_equal(mine.packed, packed.numpy(), err_msg=f"bytes of {n}")
        assert mine.absmax.tobytes() == state.absmax.numpy().tobytes(), f"absmax of {n}"


@theirs_too
@blocks
def test_dequantised_by_their_rule_it_is_the_same_to_the_bit(block_size, quant_type):
    for shape in ((64, 64), (7, 80), (33, 129)):
        w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        mine = quantize_4bit(w, block_size, quant_type)
        code = functional.get_4bit_type(quant_type, device="cpu")
        packed, absmax = torch.from_numpy(mine.packed).reshape(-1), torch.from_numpy(mine.absmax)
        compute = getattr(rule._dequantize_4bit_compute, "__wrapped__", rule._dequantize_4bit_compute)
        expected = compute(packed, absmax, code, block_size, shape, torch.float32)
        np.testing.assert_array_equal(dequantize_4bit(mine), expected.numpy().reshape(shape))


def test_double_quantisation_is_their_rule_and_mostly_their_kernel():
    """Mean to one ulp, scales and codes by the exact rule from it. No code of their kernel's table is nearer than ours."""
    w = np.random.default_rng(0).standard_normal((2000, 64)).astype(np.float32)
    mine = quantize_4bit(w, double_quant=True).absmax
    _, state = functional.quantize_4bit(torch.from_numpy(w), compress_statistics=True, quant_type="nf4")
    offset = state.offset.numpy()
    assert abs(mine.offset - offset) <= np.spacing(offset)
    centred = quantize_4bit(w).absmax - mine.offset
    codes, theirs = functional.quantize_blockwise(torch.from_numpy(centred), blocksize=256)
    np.testing.assert_array_equal(mine.absmax, theirs.absmax.numpy())
    scaled = centred * np.repeat(np.float32(1) / mine.absmax, 256)[: len(centred)]
    book = np.float32(dynamic_map())
    exact = np.abs(scaled[:, None] - book).argmin(axis=1)  # bitsandbytes' own fallback, in backends/cpu/ops.py
    np.testing.assert_array_equal(mine.codes, exact)
    other = codes.numpy() != exact
    print(f"their kernel has another code in {other.mean():.2%}")
    assert other.mean() < 0.02
    assert (np.abs(book[codes.numpy()] - scaled) >= np.abs(book[mine.codes] - scaled)).all()


# ------------------------------------------------------------------------------------------- transformers and PEFT over it

SHAPE = UNTIED | {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4}  # rows of whole blocks of 64
TOKENS = np.random.default_rng(0).integers(0, 37, (2, 9))


def plain(seed=0):
    model = ln.Transformer.random(ln.TransformerConfig(**SHAPE))
    rng = np.random.default_rng(seed)
    for _, p in model.named_parameters():
        noise = rng.standard_normal(p.value.shape).astype(np.float32)
        p.value = 1 + 0.1 * noise if p.value.ndim == 1 else noise / np.float32(np.sqrt(p.value.shape[1]))
    return model


def loaded_there(folder, **settings):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings).train()


def logits_of(theirs):
    return theirs(input_ids=torch.from_numpy(TOKENS)).logits.detach().numpy()


@theirs_too
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("skip_modules", [("lm_head",), ("lm_head", "k_proj")], ids=str)
def test_a_quantised_folder_of_ours_is_the_same_model_in_transformers(quant_type, double_quant, skip_modules, tmp_path):
    ours = ln.quantize_model(plain(), quant_type, 64, double_quant, skip_modules)
    ln.save_model(ours, tmp_path)
    theirs = loaded_there(tmp_path)
    for name, p in ours.named_parameters():
        there = theirs.get_parameter(name)
        if isinstance(there, bnb.nn.Params4bit):
            np.testing.assert_array_equal(there.data.numpy(), p.value.packed, err_msg=name)
            assert there.quant_state.quant_type == quant_type and there.quant_state.nested == double_quant
        else:
            np.testing.assert_array_equal(there.detach().numpy(), p.value, err_msg=name)
    difference = largest_difference(host(ours.forward(TOKENS)[0]), logits_of(theirs))
    print(f"measured {difference:.1e}")
    assert difference < 2e-5, "the same bytes, but another function"


@theirs_too
@pytest.mark.parametrize("double_quant", [False, True])
def test_a_folder_that_bitsandbytes_quantised_is_the_same_model_here(quant_type, double_quant, tmp_path):
    """transformers 5.23 cannot write a model that it read quantised (reverse_op is not there), but its state is the format."""
    ln.save_model(plain(), tmp_path / "plain")
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=double_quant
    )
    theirs = loaded_there(tmp_path / "plain", quantization_config=settings)
    (tmp_path / "quantised").mkdir()
    theirs.config.save_pretrained(tmp_path / "quantised")
    state = {name: x.contiguous() for name, x in theirs.state_dict().items()}
    save_file(state, tmp_path / "quantised" / "model.safetensors", {"format": "pt"})
    ours = ln.load_model(tmp_path / "quantised", device="numpy")
    layers = {n: m for n, m in ours.named_modules() if isinstance(m, ln.QuantizedLinear)}
    assert len(layers) == 14
    for name, layer in layers.items():
        assert isinstance(layer.weight.value.absmax, QuantizedAbsmax) == double_quant
        np.testing.assert_array_equal(layer.weight.value.packed, state[f"{name}.weight"].numpy())
    assert largest_difference(ours.forward(TOKENS)[0], logits_of(theirs)) < 2e-5


def test_qlora_here_is_qlora_in_peft(tmp_path):
    """Counts, loss and every gradient of A and B, over the same quantised folder, in float32."""
    ln.save_model(ln.quantize_model(plain()), tmp_path)
    config = {"r": 3, "lora_alpha": 8, "target_modules": "all-linear"}
    ours = ln.get_peft_model(ln.load_model(tmp_path, device="numpy"), ln.LoraConfig(**config))
    theirs = peft.get_peft_model(loaded_there(tmp_path), peft.LoraConfig(**config))
    assert theirs.get_nb_trainable_parameters() == (ln.costs.count(ours).trainable, ln.costs.count(ours).total)
    trained = {n: p for n, p in ours.named_parameters() if p.trainable}
    rng = np.random.default_rng(1)
    for name, p in trained.items():
        p.value = (rng.standard_normal(p.value.shape) / np.sqrt(p.value.shape[1])).astype(np.float32)
        theirs.get_parameter(name).data.copy_(torch.from_numpy(p.value))
    loss, cache = ours.loss(TOKENS[:, :-1], TOKENS[:, 1:])
    ours.backward(cache)
    logits = theirs(input_ids=torch.from_numpy(TOKENS[:, :-1])).logits
    their_loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(TOKENS[:, 1:]).flatten())
    their_loss.backward()
    assert abs(float(loss) - their_loss.item()) < 1e-5
    others = {name: theirs.get_parameter(name).grad.numpy() for name in trained}
    assert_close({n: p.grad for n, p in trained.items()}, others, 1e-4, "another gradient through the quantised base")


@pytest.mark.parametrize("adapter_dtype", ["float16", "bfloat16"])
def test_an_adapter_saved_in_16_bits_is_the_same_in_peft(adapter_dtype, tmp_path):
    config = ln.LoraConfig(r=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    ours = ln.get_peft_model(plain(), config, adapter_dtype=adapter_dtype)
    ln.save_model(plain(), tmp_path / "base")
    ours.save_pretrained(tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(loaded_there(tmp_path / "base"), tmp_path / "adapter")
    for name, p in ours.named_parameters():
        if ".lora_" in name:
            np.testing.assert_array_equal(theirs.get_parameter(name).detach().numpy(), p.value.astype(np.float32))
    assert largest_difference(ours.forward(TOKENS)[0], logits_of(theirs)) < 2e-5
