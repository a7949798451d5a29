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
# LoRA freezes $W$. QLoRA ([Dettmers et al. 2023](https://arxiv.org/abs/2305.14314)) stores the frozen $W$ in about four bits per weight. This notebook shows what the rounding to four bits changes: the weights, the gradients, the training, the memory and the merging.
#
# **You will learn** to
#
# - explain how NF4, the four-bit format of QLoRA, chooses its sixteen values, and quantise a block of weights by hand;
# - derive why the gradients of $A$ and $B$ stay exact, without a trick for the rounding;
# - decide how to merge a QLoRA adapter, and compute how much of $\Delta W$ each way of merging keeps.
#
# **Before you start**: the LoRA layer (notebook 02), its gradients (notebook 03), and quantiles of a normal distribution.
#
# *Reading: 65 minutes. Tasks: 30 minutes. Running: about half a minute.*
#
# ## The result first
#
# A QLoRA layer stores a code for each weight. It decodes the matrix for each multiplication and then discards the decoded matrix. The adapter is trained as before:
#
# $$y \;=\; x\,\hat W^\top \;+\; s\,(x A^\top)\,B^\top, \qquad \hat W = \text{decode}(\text{four bits})$$
#
# Each LoRA run of two studies was repeated with a base in four bits. The run with LoRA and the run with QLoRA use the same batches and the same learning rate: the best learning rate of LoRA.
#
# **Predict.** How much higher is the final loss of QLoRA than that of LoRA: not at all, a few percent, or a third?

# %%
import tempfile
from statistics import NormalDist

import ml_dtypes
import numpy as np
from IPython.display import Markdown

import lora_np as ln
from lora_np import plots
from lora_np.quantization.four_bits import code_book, dequantize_4bit, quantize_4bit
from lora_np.report.results import Findings
from lora_np.studies.four_bits import quantization as study
from lora_np.studies.harness.table import Table, show
from lora_np.studies.harness.tiny_task import heldout_batches

findings = Findings("../figures")
runs = {name: Table.load(f"../figures/data/qlora_{name}.json") for name in ("tiny", "smollm2")}
plots.qlora_losses(runs["tiny"], runs["smollm2"]);

# %% [markdown]
# The grey lines are the losses of the two bases before training. The distance between the grey lines is the damage of the rounding. QLoRA's training starts from the rounded model, so it repairs a part of this damage.

# %%
Markdown(findings.say("qlora.tiny.gap", "qlora.smollm2.gap"))

# %% [markdown]
# (Most weights in SmolLM2's file are already rounded to four bits, in another format. NF4 rounds them a second time.)
#
# ## Which sixteen values?
#
# Four bits can distinguish sixteen values. **Predict.** The weights are roughly normally distributed. Should the sixteen values be evenly spaced, or closer together somewhere?
#
# NF4's answer: *on each side of zero, the same share of the weights lies between any two neighbouring values*. Such values are quantiles. $Q(p)$ is the number below which a share $p$ of the normal distribution lies. Zero is one of the sixteen values, so a weight of zero stays zero. Fifteen values remain: eight above zero and seven below zero. There are fewer values below zero, so each share below zero is a little larger.
#
# $Q(1)$ is infinite, so the outermost value needs a probability $p$ below 1. If you cut the distribution into 16 equal shares, the middle of the last share is at $p = 1 - 1/32$. With 15 equal shares it is at $p = 1 - 1/30$. NF4 takes the mean of these two probabilities.

# %%
Q = NormalDist().inv_cdf
outermost = 1 - (1 / 30 + 1 / 32) / 2  # the mean of 1 − 1/30 and 1 − 1/32
above = [Q(p) for p in np.linspace(outermost, 0.5, 9)[:-1]]  # eight values, without Q(0.5) = 0
below = [-Q(p) for p in np.linspace(outermost, 0.5, 8)[:-1]]  # seven values
nf4 = np.array(sorted([*below, 0.0, *above])) / Q(outermost)  # (16,), from −1 to 1
print(nf4.round(4))
for side, n in (("below", 7), ("above", 8)):
    print(f"share between two neighbouring values {side} zero: {(outermost - 0.5) / n:.1%}")
print(f"largest difference from the library's table: {abs(nf4 - code_book('nf4')).max():.1e}")

# %% [markdown]
# (bitsandbytes is the library in which the authors of QLoRA published NF4. It computes the probabilities in float32, and `lora_np` does the same. This explains why the library's table differs a little from the computed values.)
#
# The picture shows these values and how the weights of "tiny" are really distributed. The lower part of the picture also shows the values of two simpler codes, int4 and FP4. Both codes have only fifteen different values: in int4 one of the sixteen codes is not used, and in FP4 two codes mean zero. Three values of FP4 are so close to zero that their marks touch. **Predict.** A block is 64 consecutive weights. Are real weights, divided by the largest magnitude of their block, spread more widely than the normal distribution that NF4 assumes, or less widely?

# %%
distances = study.error_by_magnitude(["N(0, 1)", "tiny"])
plots.nf4_codes(distances);

# %% [markdown]
# Real weights are spread less widely. NF4 assumes that the largest weight of a block is at the outermost quantile. The largest of 64 normal numbers is usually larger than this quantile, so the division moves all other weights closer to zero. (Try 2 asks whether quantiles of the real distribution give a better code.)
#
# ## Quantise a block by hand
#
# NF4's values lie between −1 and 1, but weights do not. So the weights are cut into *blocks* of 64 consecutive weights, and each block stores its largest magnitude, its *absmax* $c$. The code of a weight
# is the index $\hat q$ of the nearest NF4 value (here $v_q$ is the NF4 value with the index $q$):
#
# $$\hat q_i = \arg\min_q \left|\frac{w_i}{c} - v_q\right| \qquad\qquad \hat w_i = c \cdot v_{\hat q_i}$$
#
# Here is one block of eight weights. **Predict.** Which weights will be decoded exactly?

# %%
w = np.array([0.31, -0.08, 0.02, -0.62, 0.17, 0.0, 0.44, -0.29], np.float32)  # (8,)
absmax = abs(w).max()
scaled = w / absmax
codes = abs(scaled[:, None] - nf4).argmin(axis=1)  # (8, 16) → (8,): the nearest value
decoded = nf4[codes] * absmax
packed = codes[::2] * 16 + codes[1::2]  # two codes per byte, the first in the high four bits
show(
    [{"weight": w[i], "code": codes[i], "decoded": decoded[i]} for i in range(len(w))],
    {"weight": ".3f", "code": "", "decoded": ".3f"},
)
library = quantize_4bit(w, block_size=8)
print("\nbytes:", packed)
print("equal to the library's bytes:", np.array_equal(packed, library.packed.ravel()))

# %%
errors = abs(decoded - w)
exact = " and ".join(f"{x:g}".replace("-", "−") for x in w[errors < 1e-7])
worst = errors.argmax()
Markdown(
    f"Exact are {exact}: zero, and the weight with the largest magnitude. Both are always "
    f"exact. The weight {w[worst]:g} has the largest error, {errors[worst]:.3f}."
)

# %% [markdown]
# ## The scales cost bits too: double quantisation
#
# Each absmax is a float32 number of 32 bits. For 64 weights this is half a bit per weight, an eighth of the size of the codes. Double quantisation therefore quantises the absmax values too. It subtracts the mean of the absmax values (which are all positive) and stores the differences in 8 bits. Blocks of 256 absmax values share one float32 scale.

# %%
block, absmax_block = 64, 256
plain = 4 + 32 / block
double = 4 + 8 / block + 32 / (block * absmax_block)
print(f"bits per weight: {plain:.3f}, with double quantisation {double:.3f}")
print(f"double quantisation saves {plain - double:.3f} bits per weight\n")
W = np.random.default_rng(0).standard_normal((4096, 4096), dtype=np.float32)
lines = []
for double_quant in (False, True):
    stored = quantize_4bit(W, double_quant=double_quant)
    error = abs(dequantize_4bit(stored) - W).mean()
    lines.append({
        "double quantisation": double_quant,
        "bits per weight": 8 * stored.nbytes / W.size,
        "mean |error|": error,
    })
show(lines, {"double quantisation": "", "bits per weight": ".3f", "mean |error|": ".5f"})

# %% [markdown]
# ## NF4, int4 and FP4 compared
#
# int4 has evenly spaced values. FP4 is a floating-point number with one sign bit, two exponent bits and one mantissa bit. **Predict** the order of the three formats, from the smallest error to the largest. The order in the QLoRA paper is NF4, FP4, int4.

# %%
plots.quantization_error(Table.load("../figures/data/quantization_error.json"));

# %% [markdown]
# NF4 has the smallest error in the whole picture. In blocks of 64, the usual size, int4 is better than FP4. In large blocks FP4 is better. Why? The next picture shows which weights cause the error of each format:

# %%
plots.error_by_distance(distances, "N(0, 1)");

# %% [markdown]
# FP4 has wide gaps between neighbouring values: from almost zero to 1/6, and from 2/3 to 1. Between 1/6 and 1/3 the values of FP4 are dense, with steps of 1/12 (int4 has steps of 1/7). All weights of a block are divided by the largest weight. In a small block the largest weight is not very large. So the divided weights are spread over the whole range from −1 to 1, including FP4's gaps. In a large block the largest weight is larger, so the other divided weights are closer to zero, where FP4 is dense. So the order of the formats depends on the block size, not only on the formats themselves.
#
# ## The gradients are exact
#
# Rounding is a step function, and its derivative is zero almost everywhere. Training the rounded weights themselves needs a trick: the straight-through estimator, which replaces this derivative by 1. **Predict.** Where does QLoRA need this trick?
#
# Nowhere. $\hat W$ is a constant of the layer, as $W$ is in LoRA, because its codes are chosen once, before training. So the gradients are those of notebook 03 with $\hat W$ in place of $W$, and these gradients are exact. With $x$ of shape (N, in), $h = xA^\top$ of shape (N, r) and $dy$ of shape (N, out):
#
# $$dx = dy\,\hat W + s\,(dy\,B)\,A \qquad dB = s\,dy^\top h \qquad dA = s\,(dy\,B)^\top x$$
#
# The complex step (notebook 03) checks this claim on the whole model. For this check $B$ must not be zero, so `init_lora_weights=False` fills $B$ with random numbers.

# %%
drawn = ln.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
model = ln.get_peft_model(ln.quantize_model(ln.load_model("tiny").astype("float64")), drawn)
tokens, targets = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=1, seq_len=16)[0]
result = ln.gradcheck_model(model, tokens, targets, directions=1)
print(f"dA and dB of all {len(result.errors) // 2} layers against the complex step:")
print(f"largest relative error {max(result.errors.values()):.0e}")

# %% [markdown]
# The gradients are exact for the rounded model. But the rounded model differs from the original model, so the gradients of the two models have different directions. **Predict** the cosine between the gradients of the two models on the same batch. For comparison, predict the cosine between the gradients of one model on two different batches.

# %%
plots.gradient_cosines(Table.load("../figures/data/quantization_gradients.json"));

# %% [markdown]
# Rounding changes the direction of a gradient much less than the choice of the batch does.
#
# ## The memory
#
# `ln.costs.memory` counts the bytes of codes, scales and everything else that a training step holds. For "tiny" its prediction equals the bytes of the arrays exactly (`tests/costs/test_memory.py`).
#
# The adapter has $r = 8$ and $\alpha = 64$, like the runs of "tiny" in the first picture. As in notebook 05, the scaling $s = \alpha/r$ is 8.

# %%
config = ln.LoraConfig(r=8, lora_alpha=64, target_modules="all-linear")
models = {
    "LoRA": ln.get_peft_model(ln.load_model("tiny"), config),
    "QLoRA": ln.get_peft_model(ln.quantize_model(ln.load_model("tiny")), config),
}
lines = []
for name, model in models.items():
    linear = sum(p.value.nbytes for key, p in model.named_parameters() if "base_layer" in key)
    whole = ln.costs.memory(model, batch=8, seq=128).total
    sizes = {"linear weights, MB": linear / 1e6, "training step, MB": whole / 1e6}
    lines.append({"method": name} | sizes)
show(lines, {"method": "", "linear weights, MB": ".2f", "training step, MB": ".0f"})

# %% [markdown]
# In a model of this size the activations need most of the memory. In a large model the weights need most of the memory. **Predict.** Which of full fine-tuning, LoRA and QLoRA can train Llama-65B on one GPU with 48 GB?

# %%
paper = {"config": ln.LoraConfig(r=16, target_modules="all-linear")}
methods = {"full fine-tuning": {}, "LoRA": paper, "QLoRA": paper | {"quantize": "nf4"}}
lines = []
for name, method in methods.items():
    step = {"batch": 1, "seq": 512, "precision": "16-bit", "checkpointing": True}
    memory = ln.costs.memory("llama-65b", **method, **step)
    lines.append({
        "Llama-65B": name,
        "weights, GB": memory.weights / 1e9,
        "all, GB": memory.total / 1e9,
        "fits in 48 GB": memory.fits(48),
    })
show(lines, {"Llama-65B": "", "weights, GB": ".1f", "all, GB": ".1f", "fits in 48 GB": ""})

# %% [markdown]
# In the row "QLoRA" the embedding and the output head stay in 16 bits. Only the matrices of the blocks are in four bits.
#
# This table uses the recipe "16-bit" of notebook 01. Each trained parameter takes 2 bytes for the weight, 2 for the gradient and 4 for each of AdamW's two moments. Notebook 01's own table for Llama-65B uses the recipe "mixed". The recipe "mixed" adds a float32 master copy, which takes 4 more bytes per trained parameter. So the totals in notebook 01 are larger than the totals here, most of all for full fine-tuning.
#
# ## Train both
#
# Both models get the same adapter, the same batches and the same learning rate. The held-out text is the text of the first picture. **Predict** the loss of each model before the first step. Which of the two losses falls faster?

# %%
code = ln.data.Batches(ln.data.corpus("code", "train"))
heldout = heldout_batches()
lines = []
for name, model in models.items():
    optimizer, schedule = ln.AdamW(lr=4e-3, weight_decay=0.0), ln.WarmupCosine(30, warmup=3)
    history = ln.train(
        model, code, optimizer, steps=30, schedule=schedule, max_grad_norm=1.0,
        heldout=heldout, eval_every=15,
    )  # fmt: skip
    evaluated = [row for row in history.rows if "heldout" in row]
    losses = {f"step {row['step']}": row["heldout"] for row in evaluated}
    seconds = history.rows[-1]["seconds"]
    lines.append({"held-out, nats per byte": name} | losses | {"seconds": seconds})
show(lines, dict.fromkeys(lines[0], ".3f") | {"held-out, nats per byte": "", "seconds": ".1f"})

# %% [markdown]
# ## Three ways to merge
#
# To merge LoRA means to compute $W + s\,BA$ (notebook 02). A QLoRA layer stores only codes and no $W$ to which $s\,BA$ could be added, so `merge_adapter` raises an error. Three ways to merge are common:
#
# 1. **Dequantise, then merge**: $\hat W + s\,BA$, usually stored in 16 bits per weight. The merged weights take about four times the memory of the weights in four bits.
# 2. **Merge into the original weights**: $W + s\,BA$, also stored in 16 bits per weight. But the adapter was not trained with these weights.
# 3. **Merge and quantise again**: the merged weights take the same memory as the weights in four bits before the merge. But the rounding now applies to $s\,BA$ too.
#
# In the next cell, ways 1 and 2 keep the merged weights in float32, so that only the rounding to four bits counts.
#
# **Predict.** Which way gives the same outputs as the trained model? Which way gives the lowest loss? The two answers can differ.

# %%
qlora, adapter = models["QLoRA"], tempfile.mkdtemp()
qlora.save_pretrained(adapter)


def trained_over(base):
    return ln.PeftModel.from_pretrained(base, adapter)


def dequantised_and_merged():
    peft_model = trained_over(ln.quantize_model(ln.load_model("tiny")))
    return ln.dequantize_model(peft_model).merge_and_unload()


batch, _ = heldout[0]
before, _ = qlora.forward(batch)
ways = {
    "as trained": qlora,
    "1 dequantised": dequantised_and_merged(),
    "2 original weights": trained_over(ln.load_model("tiny")).merge_and_unload(),
    "3 quantised again": ln.quantize_model(dequantised_and_merged()),
}
lines = []
for name, model in ways.items():
    logits, _ = model.forward(batch)
    change = np.linalg.norm(logits - before) / np.linalg.norm(before)
    loss = ln.evaluate(model, heldout)
    lines.append({"way": name, "held-out": loss, "change of the logits": change})
show(lines, {"way": "", "held-out": ".4f", "change of the logits": ".1e"})

# %% [markdown]
# The picture shows the same comparison after the longer runs of the study, on both models. The right panel shows which share of $\Delta W$ remains in the merged weights.
#
# This share is a projection. Let $D$ be the merged weights minus the weights before the merge. Without rounding $D$ equals $\Delta W$. With rounding, $D$ is a multiple of $\Delta W$ plus noise that is orthogonal to $\Delta W$:
#
# $$D = \kappa\,\Delta W + \text{noise}, \qquad \kappa = \frac{\langle D, \Delta W\rangle}{\lVert\Delta W\rVert^2}$$
#
# $\langle D, \Delta W\rangle$ is the sum of the products of corresponding entries. The share that remains is $\kappa$. This share can be near zero although $D$ is not zero.

# %%
routes = [Table.load(f"../figures/data/merge_routes_{name}.json") for name in runs]
plots.merge_routes_chart(*routes);

# %% jupyter={"source_hidden": true}
# prints the loss, the change of the logits and the share of ΔW that remains
lines = [{"model": table.settings["model"]} | row for table in routes for row in table.rows]
show(lines, {"model": "", "route": "", "heldout": ".4f", "logits": ".1e", "kept": ".0%"})

# %% [markdown]
# Only the first way gives the trained model. The second way gives a *different* model. Here this model is slightly better, because the original weights are more precise than the rounded weights. Do not report the loss of this different model as QLoRA's loss.
#
# The third way raises the loss a little on "tiny" and very much on SmolLM2. The next section explains why.

# %% [markdown]
# Why is QLoRA's final loss on SmolLM2 higher than LoRA's final loss? Use QLoRA's trained adapter with the original weights, without training again. The loss falls, because the rounding of the base is gone. The first sentence below divides the fall of the loss by the difference between QLoRA's final loss and LoRA's final loss. The other two sentences are about the third way.

# %%
names = ("qlora.smollm2.rounding", "merge_routes.tiny.kept", "merge_routes.smollm2.kept")
Markdown(findings.say(*names))

# %% [markdown]
# ## What rounding removes
#
# In the third way every weight starts *on* a value of the code. If the change of a weight is smaller than half the distance to the next value, rounding gives the old code again. On "tiny" $s$ is large, and the adapter changed the weights much. On SmolLM2 the adapter changed the weights little.
#
# Other storage formats also round, for example the 16 or 8 bits of published models. The size below which $\Delta W$ is lost differs between the formats. The next cell adds a random $\Delta W$ of rank 8 to a matrix that is already rounded, and rounds the sum. Then it measures the share of the weights that did not change, and the share $\kappa$ of $\Delta W$ that remains. **Predict.** The format is NF4, and the norm of $\Delta W$ is 1 % of the norm of the weights. How many weights stay unchanged, and how much of $\Delta W$ remains?

# %%
def in_dtype(dtype):
    return lambda x: x.astype(dtype).astype("float32")


formats = {
    "bfloat16": in_dtype(ml_dtypes.bfloat16),
    "float8 (e4m3)": in_dtype(ml_dtypes.float8_e4m3fn),
    "NF4": lambda x: dequantize_4bit(quantize_4bit(x)),
}
W = ln.load_model("tiny").model.layers[2].mlp.up_proj.weight.value  # (out, in)
rng = np.random.default_rng(0)
delta = rng.standard_normal((W.shape[0], 8)) @ rng.standard_normal((8, W.shape[1]))
delta *= np.linalg.norm(W) / np.linalg.norm(delta)  # ‖delta‖ = ‖W‖
lines = []
for name, rounded in formats.items():
    start = rounded(W)
    for size in (0.001, 0.01, 0.1, 1):
        change = (size * delta).astype("float32")
        moved = rounded(start + change) - start
        kept, unchanged = np.vdot(moved, change) / np.vdot(change, change), np.mean(moved == 0)
        line = {"format": name, "‖ΔW‖/‖W‖": size, "unchanged": unchanged, "remains": kept}
        lines.append(line)
show(lines, {"format": "", "‖ΔW‖/‖W‖": ".1%", "unchanged": ".0%", "remains": ".0%"})

# %% [markdown]
# The two shares do not agree.
#
# - **bfloat16, smallest $\Delta W$**: most weights stay unchanged, but more than half of $\Delta W$ remains. The distance between neighbouring numbers of bfloat16 is roughly proportional to their size. So a small change remains in a small weight, but rounding removes the same change from a large weight. The weights that change are mostly small weights or have large changes. Each of these weights moves by whole steps of the format.
# - **NF4, small $\Delta W$**: nearly all weights change, but hardly anything of $\Delta W$ remains.
#
# The second result is surprising. A decoded weight is a scale times a value of the code. **Predict.** With the smallest $\Delta W$, which of the two changes in NF4: the scales of the blocks, the codes, or both? Which weights stay unchanged?

# %%
def scales_and_codes(x):
    stored = quantize_4bit(x)
    packed = stored.packed.ravel()
    return stored.absmax, np.stack([packed >> 4, packed & 15], axis=1)  # (n/64,), (n/2, 2)


start = formats["NF4"](W)
scales, codes = scales_and_codes(start)
lines = []
for size in (0.001, 0.01, 0.04, 0.1):
    change = (size * delta).astype("float32")
    new_scales, new_codes = scales_and_codes(start + change)
    moved = formats["NF4"](start + change) - start
    kept = np.vdot(moved, change) / np.vdot(change, change)
    noise = np.linalg.norm(moved - kept * change) / np.linalg.norm(change)
    line = {"‖ΔW‖/‖W‖": size, "scales changed": np.mean(new_scales != scales)}
    line |= {"codes changed": np.mean(new_codes != codes)}
    lines.append(line | {"remains": kept, "noise / ‖ΔW‖": noise})
columns = {"‖ΔW‖/‖W‖": ".1%", "scales changed": ".0%", "codes changed": ".2%"}
show(lines, columns | {"remains": ".1%", "noise / ‖ΔW‖": ".2f"})
print(f"\nweights that are zero: {np.mean(start == 0):.0%};  one weight of 64: {1 / 64:.1%}")

# %% [markdown]
# With a small $\Delta W$ all scales change and hardly any code changes.
#
# - *Codes*: each change is smaller than half the distance to the next value, so rounding gives the old code.
# - *Scales*: the largest weight of a block is stored as it is, as the scale. So the change of this one weight remains. This weight is one of 64, and about 1/64 of $\Delta W$ remains.
# - *Noise*: the whole block is decoded with its new scale. So every other weight of the block also moves, except the weights that are zero. These moves follow the change of the largest weight, not the entries of $\Delta W$ for the moved weights. So the moves are noise.
#
# With a larger $\Delta W$ the weights with the largest changes reach the next value. These weights contribute most to $\Delta W$, and each moves by a whole step. So most of $\Delta W$ can remain although most codes are unchanged. The number of changed weights does not measure how much of $\Delta W$ remains.
#
# ## Recap
#
# NF4's sixteen values are quantiles of a normal distribution. Each block of 64 weights stores one scale, and double quantisation stores the scales in 8 bits. The gradients of $A$ and $B$ are exact for the
# rounded base, because the codes are constants. The final loss of QLoRA is close to that of LoRA, and most of the difference comes from the damage to the base. The weights need about an eighth of the memory that they need in float32. Merge into the dequantised weights: merging into the original weights gives another model, and quantising again can remove most of $\Delta W$.
#
# ## Three questions
#
# 1. Why is one of NF4's sixteen values exactly zero?
#
# <details><summary>Answer</summary>
#
# A weight of zero then stays exactly zero, and the rounding adds no noise to this weight.
#
# </details>
#
# 2. Why does QLoRA not need a straight-through estimator?
#
# <details><summary>Answer</summary>
#
# Only $A$ and $B$ are trained. $\hat W$ is a constant, so no gradient passes through the rounding.
#
# </details>
#
# 3. A small $\Delta W$ is merged into dequantised NF4 weights, and the sum is quantised again. Why is nearly nothing of $\Delta W$ left?
#
# <details><summary>Answer</summary>
#
# The weights lie on the values of the code. If a change is smaller than half the distance to the next value, the weight keeps its old code. Only the largest weight of each block keeps its change, as the new scale. The new scale also moves the other weights of the block. These moves have nothing to do with the entries of $\Delta W$ for the moved weights.
#
# </details>
#
# ## Try
#
# 1. Quantise "tiny" with `quant_type="int4"` and with `block_size=4096`, and evaluate each model without an adapter. Does the model with the larger mean error always have the higher held-out loss?
#
# <details><summary>Hint</summary>
#
# `ln.quantize_model(ln.load_model("tiny"), quant_type="int4", block_size=64)`, then `ln.evaluate(model, heldout)`. Compare with the picture of the mean errors.
#
# </details>
#
# <details><summary>Answer</summary>
#
# No. With int4 the mean error is larger than with NF4, but the loss is slightly lower (1.559 against 1.561 nats per byte). Blocks of 4096 raise both the error and the loss. The mean error counts all weights
# equally; the loss does not.
#
# </details>
#
# 2. Replace NF4's values by quantiles of the *real* distribution of the scaled weights (the dashed line of the density picture). Does the mean error fall?
#
# <details><summary>Hint</summary>
#
# Collect `W.reshape(-1, 64)` of all linear layers, divide each row by its largest magnitude, and take `np.quantile` at 16 evenly spaced probabilities. Set one value to zero and the two outermost values to −1 and 1.
#
# </details>
#
# <details><summary>Answer</summary>
#
# No, the mean error rises from 0.073 to about 0.08 of the weights' root mean square. The quantiles move most values close to zero, and the few large weights lose precision. So values with equal shares of the weights between them do not give the smallest mean error. A code
# that minimises the mean error directly (k-medians, started from NF4) is hardly better than NF4.
#
# </details>
#
# 3. In the block of eight weights, change one weight to 5. What happens to the codes of the other weights?
#
# <details><summary>Hint</summary>
#
# `w[0] = 5`, and run the cell again.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The absmax becomes 5, so the other weights use only the values near zero. The weights 0.02, −0.08 and 0.17 are all decoded as 0, and −0.29 gets the same code as −0.62. One outlier spoils its whole block. This is why blocks are small.
#
# </details>
#
# 4. In NF4 almost nothing of a $\Delta W$ of 1 % remains. Which share remains if $\Delta W$ is three times, or five times as large? Where is the limit below which only the scales keep anything?
#
# <details><summary>Hint</summary>
#
# Use the last cell of the section "What rounding removes" with the sizes 0.01, 0.02, 0.03 and 0.05.
#
# </details>
#
# <details><summary>Answer</summary>
#
# At 2 % hardly more remains than the scales keep, at 3 % about 7 %, and at 5 % about a third. There is no sharp limit, because the entries of $\Delta W$ differ and the distances between NF4's values differ. Each weight changes its code as soon as its own change is larger than half the distance to the next value.
#
# </details>
#
# Continue with [Merging and serving](08_merging_and_serving.ipynb).
