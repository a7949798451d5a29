# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # QLoRA: the frozen weights in four bits
#
# LoRA freezes $W$. What never changes need not be kept precisely: QLoRA ([Dettmers et al. 2023](https://arxiv.org/abs/2305.14314)) stores
# each of its numbers in about four bits, decodes a matrix when it is multiplied with, and throws the decoded one away again. The adapter beside it is trained as before:
#
# $$y \;=\; x\,\hat W^\top \;+\; s\,(x A^\top)\,B^\top, \qquad \hat W = \text{decode}(\text{four bits})$$
#
# What it costs, on two models, each LoRA run repeated over a base of four bits:

# %%
import tempfile
from statistics import NormalDist

import numpy as np

import lora_np as ln
from lora_np import plots
from lora_np.quantization.four_bits import code_book, dequantize_4bit, quantize_4bit
from lora_np.studies.four_bits import quantization as study
from lora_np.studies.four_bits.qlora import means
from lora_np.studies.harness.table import Table, show

runs = {name: Table.load(f"../figures/data/qlora_{name}.json") for name in ("tiny", "smollm2")}
plots.qlora_losses(runs["tiny"], runs["smollm2"]);

# %% [markdown]
# Dashed means over four bits, in all of these pictures. Both lines of a panel have the same learning rate, the one that was best for LoRA, and the
# same batches. The grey lines, the bases before any training, lie apart too: that is what rounding took. Training wins some of it back, because it sees
# the rounded model, and not all. (SmolLM2's file rounds most of its weights to four bits already, in another way; NF4 rounds the rounded ones again.)

# %%
for table in runs.values():
    found, settings = means(table), table.settings
    base, rounded = settings["base_loss"], settings["quantized_loss"]["nf4"]
    print(f"{settings['base']:13} base {base:.3f}, in NF4 {rounded:.3f} ({rounded - base:+.3f})   "
          f"LoRA {found[None]:.3f}, QLoRA {found['nf4']:.3f} ({found['nf4'] - found[None]:+.3f}, {found['nf4'] / found[None] - 1:+.1%})")

# %% [markdown]
# ## Sixteen values: which?
#
# Four bits name sixteen values. **Predict** before you go on: if the weights are normally distributed, where should the sixteen lie? Evenly from
# end to end, or closer together somewhere?
#
# NF4's answer: so that *as many weights fall between any two neighbours*. Such values are quantiles. $Q(p)$ is the number that a share $p$ of the
# normal distribution lies below; eight values go up from the middle, seven down, evenly spaced in probability, and zero is one of them,
# so that a weight of zero stays zero. $Q(1)$ would be infinite, so the outermost is a little inside:

# %%
Q = NormalDist().inv_cdf
outermost = 1 - (1 / 30 + 1 / 32) / 2  # halfway between the last of 15 steps and the last of 16
above = [Q(p) for p in np.linspace(outermost, 0.5, 9)[:-1]]  # eight, without the middle
below = [-Q(p) for p in np.linspace(outermost, 0.5, 8)[:-1]]  # seven
nf4 = np.array(sorted([*below, 0.0, *above])) / Q(outermost)  # divided by the largest: −1 … 1
print(nf4.round(4))
print(f"largest difference from the library's table: {abs(nf4 - code_book('nf4')).max():.1e}")

# %% [markdown]
# (The library and bitsandbytes take the probabilities in float32, which is the difference.) The strips below hold equal shares on each side. The dashed
# line is where the weights of "tiny" really lie.

# %%
distances = study.where_it_arises(["N(0, 1)", "tiny"])
plots.nf4_codes(distances);

# %% [markdown]
# The real ones are narrower. NF4 assumes that the largest of a block is where the normal distribution has its outermost quantile; the largest of 64 normal numbers
# lies further out than that, and after the division all the others lie further in. It is a good code all the same, and not the best one can do.
#
# ## A block, by hand
#
# Weights are not between −1 and 1. So they are cut into *blocks*, 64 in a row, and each keeps its largest magnitude, its *absmax*:
#
# $$q_i = \arg\min_q \left|\frac{w_i}{\text{absmax}} - c_q\right| \qquad\qquad \hat w_i = c_{q_i} \cdot \text{absmax}$$
#
# On eight weights one can follow it:

# %%
w = np.array([0.31, -0.08, 0.02, -0.62, 0.17, 0.0, 0.44, -0.29], np.float32)
absmax = abs(w).max()
scaled = w / absmax
codes = abs(scaled[:, None] - nf4).argmin(axis=1)  # (8, 16) → (8,): the nearest
decoded = nf4[codes] * absmax
print("weight ", "".join(f"{x:8.3f}" for x in w), f"   absmax {absmax:.2f}")
print("code   ", "".join(f"{q:8d}" for q in codes))
print("decoded", "".join(f"{x:8.3f}" for x in decoded))

packed = codes[::2] * 16 + codes[1::2]  # two codes a byte, the first in the high four bits
print("bytes  ", "".join(f"{b:>16}" for b in packed))
library = quantize_4bit(w, block_size=8)
print("the library's bytes are the same:", np.array_equal(packed, library.packed.ravel()))

# %% [markdown]
# Which weight came back exactly, besides zero? And which one lost most?
#
# ## What the scales cost, and double quantisation
#
# An absmax is a float32, 32 bits for 64 weights. Half a bit a weight does not sound like much; it is an eighth of the codes. So the absmax
# are quantised too: their mean is subtracted (they are all positive), and what is left is stored in 8 bits, in blocks of 256 that share one float32.

# %%
block, absmax_block = 64, 256
plain = 4 + 32 / block
double = 4 + 8 / block + 32 / (block * absmax_block)
print(f"bits a weight: {plain:.3f}, with double quantisation {double:.3f}: {plain - double:.3f} fewer")
W = np.random.default_rng(0).standard_normal((4096, 4096), dtype=np.float32)
for double_quant in (False, True):
    quantized = quantize_4bit(W, double_quant=double_quant)
    error = abs(dequantize_4bit(quantized) - W).mean()
    print(f"stored: {8 * quantized.nbytes / W.size:.3f} bits a weight, mean |error| {error:.5f}")

# %% [markdown]
# ## NF4, int4, FP4
#
# int4 has its values evenly spaced; FP4 is a floating-point number with a sign, two bits of exponent and one of mantissa. **Predict** their order, from the
# nearest to the furthest. The paper's is NF4, FP4, int4.

# %%
errors = Table.load("../figures/data/quantization_error.json")
plots.quantization_error(errors);

# %% [markdown]
# NF4 is nearest everywhere. But in blocks of 64, the usual size, int4 comes before FP4. Why does that turn round in large blocks? Look at which weights a code gets wrong:

# %%
plots.error_by_distance(distances, "N(0, 1)");

# %% [markdown]
# FP4 has wide gaps, nothing between almost zero and a sixth and nothing between two thirds and one. It is dense from a sixth to a third, with steps of a twelfth where int4
# has a seventh. In a small block the largest of a few weights is not very large; the others, divided by it, spread over all of −1 … 1, gaps included. The
# larger the block, the larger its largest weight, and the closer to zero lie all others: there FP4's dense part begins to pay. The order is a matter of the block, not of the code alone.
#
# ## The gradient: nothing passes through the rounding
#
# Rounding is a staircase: its derivative is zero almost everywhere. Training *through* a rounding, of weights that are to be rounded again and again, needs a trick
# (the straight-through estimator, which pretends that the staircase is a slope). **Predict:** where does QLoRA need it?
#
# Nowhere. Write down what the loss depends on. $\hat W$ is a constant of the layer, as $W$ was in LoRA; its codes are chosen once, before the training. The gradients are
# those of notebook 03 with $\hat W$ in the place of $W$, and exact:
#
# $$dx = dy\,\hat W + s\,(dy\,B)\,A \qquad dB = dy^\top h \qquad dA = s\,(dy\,B)^\top x$$

# %%
config = ln.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)  # False: B is random, not zero
model = ln.get_peft_model(ln.quantize_model(ln.load_model("tiny").astype("float64")), config)
tokens, targets = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=1, seq_len=16)[0]
result = ln.gradcheck_model(model, tokens, targets, directions=1)
print(f"dA and dB of all {len(result.errors) // 2} layers against the complex step, worst relative error: {max(result.errors.values()):.0e}")

# %% [markdown]
# They are exact for the rounded model. That is another model than the one before, and its gradients point elsewhere. How far? **Predict** the cosine between the two,
# and beside it that of two different batches over the same weights.

# %%
plots.gradient_cosines(Table.load("../figures/data/quantization_gradients.json"));

# %% [markdown]
# ## The memory
#
# `ln.costs` counts a model as it is: codes, scales, and all that a training step holds. What it predicts for "tiny" is what its arrays take, to the byte (`tests/costs/test_memory.py`).

# %%
config = ln.LoraConfig(r=8, lora_alpha=64, target_modules="all-linear")
lora = ln.get_peft_model(ln.load_model("tiny"), config)
qlora = ln.get_peft_model(ln.quantize_model(ln.load_model("tiny")), config)
for name, model in {"LoRA": lora, "QLoRA": qlora}.items():
    memory = ln.costs.memory(model, batch=8, seq=128)
    linear = sum(p.value.nbytes for key, p in model.named_parameters() if "base_layer" in key)
    print(f"{name:6} linear weights {linear / 1e6:.2f} MB, a whole training step {memory.total / 1e6:.0f} MB")

# %% [markdown]
# Of a model this small the activations are nearly everything. Of a large one the weights are:

# %%
paper = {"config": ln.LoraConfig(r=16, target_modules="all-linear")}
for name, method in {"full fine-tuning": {}, "LoRA": paper, "QLoRA": paper | {"quantize": "nf4"}}.items():
    memory = ln.costs.memory("llama-65b", **method, batch=1, seq=512, checkpointing=True)
    print(f"Llama-65B, {name:17} weights {memory.weights / 1e9:6.1f} GB, all {memory.total / 1e9:6.1f} GB   "
          f"{'fits' if memory.fits(48) else 'does not fit'} a card of 48 GB")

# %% [markdown]
# ## Train both
#
# The same adapter, batches and learning rate; only the base differs. **Predict** the loss of each before the first step, and which falls faster.

# %%
code = ln.data.Batches(ln.data.corpus("code", "train"))
heldout = ln.data.heldout_batches(ln.data.corpus("code", "heldout"), windows=64)
histories = {}
for name, model in {"LoRA": lora, "QLoRA": qlora}.items():
    schedule = ln.WarmupCosine(30, warmup=3)
    histories[name] = ln.train(
        model, code, ln.AdamW(lr=4e-3, weight_decay=0.0), steps=30, schedule=schedule, max_grad_norm=1.0, heldout=heldout, eval_every=10
    )
    losses = " → ".join(f"{row['heldout']:.3f}" for row in histories[name].rows if "heldout" in row)
    print(f"{name:6} held-out {losses} nats a byte   {histories[name].rows[-1]['seconds']:.0f} s")

# %% [markdown]
# ## Merging, and which route lies
#
# LoRA's last act, $W + s\,BA$, has a difficulty here: there is no $W$ to add to, only codes. `merge_adapter` refuses. Three ways are common:
#
# 1. **Dequantise, then merge**: $\hat W + s\,BA$, kept in 16 bits. Four times as large as before.
# 2. **Merge into the original weights**: $W + s\,BA$. As large, and made of weights that the adapter never saw in training.
# 3. **Merge and quantise again**: as small as before; $s\,BA$ goes through the rounding.
#
# **Predict** which of them computes what was trained, and which has the lowest loss. They need not be the same.

# %%
adapter = tempfile.mkdtemp()
qlora.save_pretrained(adapter)
batch, _ = heldout[0]
trained, _ = qlora.forward(batch)
loss = ln.evaluate(qlora, heldout)

first = ln.dequantize_model(qlora).merge_and_unload()
second = ln.PeftModel.from_pretrained(ln.load_model("tiny"), adapter).merge_and_unload()
third = ln.dequantize_model(ln.PeftModel.from_pretrained(ln.quantize_model(ln.load_model("tiny")), adapter))
third = ln.quantize_model(third.merge_and_unload())

print(f"{'as trained':28} held-out {loss:.4f}")
for name, merged in {"1 dequantised": first, "2 original": second, "3 quantised again": third}.items():
    logits, _ = merged.forward(batch)
    change = np.linalg.norm(logits - trained) / np.linalg.norm(trained)
    print(f"{name:28} held-out {ln.evaluate(merged, heldout):.4f}   logits changed by {change:.1e}")

# %% [markdown]
# The same after the longer runs of the study, on both models:

# %%
routes = [Table.load(f"../figures/data/merge_routes_{name}.json") for name in ("tiny", "smollm2")]
plots.merge_routes_chart(*routes);

# %%
lines = [
    {"model": table.settings["model"], "held-out": row["heldout"], "of ΔW": row.get("kept")} | row
    for table in routes
    for row in table.rows
]
show(lines, {"model": "", "route": "", "held-out": ".4f", "logits": ".1e", "of ΔW": ".0%"})
for table in routes:
    print(f"{table.settings['model']}: ΔW is {table.where(route='as trained')[0]['size']:.1%} of the weights' norm")

# %% [markdown]
# Only the first is the model that was trained. The second is a *different* model, here a better one: the original weights are more precise than those that
# the adapter learned to correct. Whoever reports its loss as QLoRA's reports another model's.
#
# The third is harmless on "tiny" and ruinous on SmolLM2, where hardly anything of $\Delta W$ arrives. Why? The weights that it starts from lie exactly *on* the codes. A change of a weight that is
# smaller than half the way to the next code is not made smaller by the rounding; it is taken away. "tiny" was trained with a large $s$ and far from where it began, SmolLM2 a little.
# Take a matrix off the codes by a $\Delta W$ of rank 8, as large as you like, and look how much of it is left:

# %%
codes = dequantize_4bit(quantize_4bit(ln.load_model("tiny").model.layers[2].mlp.up_proj.weight.value))
rng = np.random.default_rng(0)
delta = rng.standard_normal((codes.shape[0], 8)) @ rng.standard_normal((8, codes.shape[1]))
delta *= np.linalg.norm(codes) / np.linalg.norm(delta)
for size in (0.003, 0.01, 0.03, 0.1, 0.3, 1):
    change = (size * delta).astype("float32")
    again = dequantize_4bit(quantize_4bit(codes + change))
    kept = np.vdot(again - codes, change) / np.vdot(change, change)
    print(f"ΔW of {size:>6.1%} of the weights' norm: {kept:>7.1%} of it arrives")

# %% [markdown]
# ## Try
#
# 1. Quantise the model with `quant_type="int4"` and with `block_size=4096`, and evaluate each without an adapter. Does the held-out loss follow the mean error?
# 2. A code that fits the dashed line better: take quantiles of the *real* distribution of the scaled weights instead of the normal's. By how much does the mean error fall?
# 3. Change one weight of the block to 5. What happens to the codes of the others? That is what *outliers* do, and why blocks are small.
# 4. In the third route, multiply $\Delta W$ by 4 before merging (`lora_alpha`). Does a larger or a smaller share of it arrive?
