"""The calls that the library promises, pasted and run: the functions, a model, training, generation, quantisation, proof."""

from __future__ import annotations

import numpy as np

import lora_np as ln


def test_the_functions():
    rng = np.random.default_rng(0)
    x, W, A, B = (rng.standard_normal(shape) for shape in ((2, 5, 3), (4, 3), (2, 3), (4, 2)))
    scaling = 8.0

    y, cache = ln.ops.lora_linear_forward(x, W, A, B, scaling)
    dy = np.ones_like(y)
    dx, dA, dB = ln.ops.lora_linear_backward(dy, cache)

    assert y.shape == (2, 5, 4)
    assert (dx.shape, dA.shape, dB.shape) == (x.shape, A.shape, B.shape)

    def forward(x, A, B):
        return ln.ops.lora_linear_forward(x, W.astype(x.dtype), A, B, scaling)

    assert ln.gradcheck(forward, ln.ops.lora_linear_backward, {"x": x, "A": A, "B": B}).ok


def test_a_model(tmp_path):
    batches = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=2, seq_len=16)
    tokens, targets = batches[0]

    model = ln.load_model("tiny")
    logits, cache = model.forward(tokens)
    loss, cache = model.loss(tokens, targets)
    model.backward(cache)
    assert logits.shape == model(tokens).shape == (2, 16, 256)
    for name, p in model.named_parameters():
        assert name.startswith("model.") and p.trainable and p.grad.shape == p.value.shape

    optimizer = ln.AdamW(lr=1e-3)
    optimizer.step(model.named_parameters())
    optimizer.zero_grad(model.named_parameters())
    assert float(model.loss(tokens, targets)[0]) < float(loss)

    history = ln.train(model, batches, ln.AdamW(lr=1e-3), steps=2)
    heldout = ln.data.heldout_batches(ln.data.corpus("code", "heldout"), batch_size=2, seq_len=16, windows=4)
    assert len(history) == 2 and 0 < ln.evaluate(model, heldout) < 5

    model.save_pretrained(tmp_path / "model")
    again = ln.Transformer.from_pretrained(tmp_path / "model")
    tokenizer = ln.load_tokenizer("tiny")
    prompts = [tokenizer.encode("def "), tokenizer.encode("import ")]
    new = ln.generate(again, prompts, max_new_tokens=4)
    assert [len(row) for row in new] == [4, 4] and new == ln.generate(model, prompts, max_new_tokens=4)

    ln.quantize_model(model, block_size=64, double_quant=True)
    assert isinstance(model.model.layers[0].self_attn.q_proj, ln.QuantizedLinear)
    assert "5 x Block(" in str(model)
