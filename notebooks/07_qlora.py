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
# LoRA freezes $W$. QLoRA ([Dettmers et al. 2023](https://arxiv.org/abs/2305.14314)) stores the frozen $W$ in about four bits per weight. This notebook shows how the rounding to four bits affects the weights, the gradients, the training, the memory and the merging.
#
# **You will learn** to
#
# - explain how NF4, the four-bit format of QLoRA, chooses its sixteen values, and quantise a block of weights by hand;
# - derive why the gradients of $A$ and $B$ are exact although the weights are rounded;
# - decide how to merge a QLoRA adapter, and compute which share of $\Delta W$ remains after each way of merging.
#
# **Before you start**: the LoRA layer (notebook 02), its gradients (notebook 03), and quantiles of a normal distribution.
#
# *Reading: 65 minutes. Tasks: 30 minutes. Running: about half a minute.*
#
# ## The result first
#
# A QLoRA layer stores a code of four bits for each weight. For each multiplication, the layer decodes the codes to the matrix $\hat W$, multiplies by $\hat W$, and then discards $\hat W$. The adapter is trained as in LoRA:
#
# $$y \;=\; x\,\hat W^\top \;+\; s\,(x A^\top)\,B^\top, \qquad \hat W = \text{decode}(\text{four bits})$$
#
# Two studies compare LoRA with QLoRA, one on the model "tiny" and one on SmolLM2. Each LoRA run was repeated with QLoRA. Both runs use the same batches and the same learning rate, which is the best learning rate of LoRA.
#
# **Predict.** By how much is the final loss of QLoRA higher than the final loss of LoRA: by nothing, by a few percent, or by a third?

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
# The grey lines show the losses before training: one line for the original base, and one line for the rounded base. The distance between the two grey lines shows how much the rounding increases the loss. QLoRA's training starts from the rounded base, so QLoRA starts at the higher loss. After training on "tiny", QLoRA and LoRA have nearly the same loss, so hardly anything of the increase remains. After training on SmolLM2, QLoRA still has a higher loss than LoRA, so some of the increase remains.

# %%
Markdown(findings.say("qlora.tiny.gap", "qlora.smollm2.gap"))

# %% [markdown]
# (In the file of SmolLM2, most weights are already rounded to four bits, in a format other than NF4. QLoRA rounds these weights a second time, to NF4.)
#
# ## Which sixteen values does NF4 use?
#
# Four bits can distinguish sixteen values. **Predict.** The weights are roughly normally distributed. Should the sixteen values be evenly spaced, or should the values be closer together in some places?
#
# NF4 follows this rule: *on each side of zero, the same share of the weights lies between any two neighbouring values*. Values with this property are quantiles. The quantile $Q(p)$ is the number below which a share $p$ of the normal distribution lies. Zero is one of the sixteen values, so a weight of zero stays zero. The fifteen other values are eight values above zero and seven values below zero. There are fewer values below zero, so the share between two neighbouring values is a little larger below zero than above zero.
#
# $Q(1)$ is infinite, so the largest of the sixteen values needs a probability $p$ below 1. If you cut the distribution into 16 equal shares, the middle of the last share is at $p = 1 - 1/32$. If you cut the distribution into 15 equal shares, the middle of the last share is at $p = 1 - 1/30$. NF4 uses the mean of these two probabilities.

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
# (bitsandbytes is the library in which the authors of QLoRA published NF4. Both bitsandbytes and `lora_np` compute the probabilities in float32, and the cell above computes the probabilities in float64. Therefore the table of `lora_np` differs a little from the values in the cell.)
#
# The next picture shows the values of NF4 and the measured distribution of the weights of the model "tiny". The lower part of the picture also shows the values of two simpler formats, int4 and FP4. Both formats have only fifteen different values. The format int4 does not use one of its sixteen codes, and two codes of FP4 mean zero. Three values of FP4 are so close to zero that their marks touch. **Predict.** Suppose that each block of 64 consecutive weights is divided by its largest magnitude. Are the divided weights of "tiny" spread more widely or less widely than the normal distribution that NF4 assumes?

# %%
distances = study.error_by_magnitude(["N(0, 1)", "tiny"])
plots.nf4_codes(distances);

# %% [markdown]
# The divided weights of "tiny" are spread less widely than the normal distribution that NF4 assumes. NF4 uses the largest weight of a block as the quantile $Q(p)$ with $p \approx 0.97$. But the largest of 64 normally distributed numbers is usually larger than this quantile, so the division by the largest number moves all other weights closer to zero. (Task 2 of the section "Try" asks whether quantiles of the real distribution give a smaller error than NF4.)
#
# ## Quantise a block by hand
#
# All values of NF4 lie between −1 and 1, but the range of the weights differs from matrix to matrix. So the weights are cut into *blocks* of 64 consecutive weights. Each block stores its largest magnitude $c$, which is called the *absmax*. Let $v_q$ be the NF4 value with the index $q$. The code of a weight $w_i$
# is the index $\hat q_i$ of the NF4 value that is nearest to $w_i/c$:
#
# $$\hat q_i = \arg\min_q \left|\frac{w_i}{c} - v_q\right| \qquad\qquad \hat w_i = c \cdot v_{\hat q_i}$$
#
# The next cell quantises one block of eight weights. **Predict.** For which of the eight weights does the decoded weight equal the original weight exactly?

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
    f"exact if the absmax is stored in float32. The weight {w[worst]:g} has the largest "
    f"error, {errors[worst]:.3f}."
)

# %% [markdown]
# ## The absmax values need bits too: double quantisation
#
# Each absmax is a float32 number and needs 32 bits. A block has 64 weights, so its absmax needs half a bit per weight. The codes need four bits per weight, which is eight times as many. Double quantisation quantises the absmax values too. All absmax values are positive, so double quantisation first subtracts the mean of the absmax values. Double quantisation then stores each difference in 8 bits. Each block of 256 differences has one float32 scale. Now the absmax values are rounded too, so the decoded largest weight of a block is usually not exact. A weight of zero is still exact. The function `quantize_model` uses double quantisation by default, and the function `quantize_4bit` does not.

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
# int4 has evenly spaced values. FP4 is a floating-point format with one sign bit, two exponent bits and one mantissa bit. **Predict** the order of the three formats, from the smallest rounding error to the largest rounding error. In the QLoRA paper, NF4 is the best format, FP4 is the second best and int4 is the worst.

# %%
plots.quantization_error(Table.load("../figures/data/quantization_error.json"));

# %% [markdown]
# NF4 has the smallest error at every block size in the picture. In blocks of 64 weights, the usual block size, int4 has a smaller error than FP4. In large blocks FP4 has a smaller error than int4. Why does the order of int4 and FP4 depend on the block size? The next picture shows which weights cause the error of each format:

# %%
plots.error_by_distance(distances, "N(0, 1)");

# %% [markdown]
# FP4 has wide gaps between neighbouring values: from almost zero to 1/6, and from 2/3 to 1. Between 1/6 and 1/3, neighbouring values of FP4 have a distance of only 1/12. Neighbouring values of int4 always have a distance of 1/7. All weights of a block are divided by the largest magnitude of the block. In a small block the largest magnitude is not very large. So the divided weights are spread over the whole range from −1 to 1. Some of these weights lie in the widest gap of FP4, from 2/3 to 1. In a large block the largest magnitude is larger, so hardly any weights lie between 2/3 and 1. More weights lie between 1/6 and 1/3, where FP4 has a smaller error than int4. More weights also lie in the gap from almost zero to 1/6, but in this gap FP4 is only a little worse than int4. Therefore the order of the formats depends not only on the formats themselves but also on the block size.
#
# ## The gradients are exact
#
# Rounding is a step function, and the derivative of a step function is zero almost everywhere. To train rounded weights, you need the straight-through estimator, a trick that replaces this derivative by 1. **Predict.** In which part of the training does QLoRA need the straight-through estimator?
#
# QLoRA does not need the straight-through estimator anywhere. The codes of $\hat W$ are computed once, before training, so $\hat W$ is a constant like $W$ in LoRA. The gradients have the formulas of notebook 03 with $\hat W$ in place of $W$, and these gradients are exact. With $x$ of shape (N, in), $h = xA^\top$ of shape (N, r) and $dy$ of shape (N, out):
#
# $$dx = dy\,\hat W + s\,(dy\,B)\,A \qquad dB = s\,dy^\top h \qquad dA = s\,(dy\,B)^\top x$$
#
# The next cell checks with the complex step (notebook 03) that the gradients of the whole model are exact. For this check $B$ must not be zero, so `init_lora_weights=False` fills $B$ with random numbers.

# %%
drawn = ln.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
model = ln.get_peft_model(ln.quantize_model(ln.load_model("tiny").astype("float64")), drawn)
tokens, targets = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=1, seq_len=16)[0]
result = ln.gradcheck_model(model, tokens, targets, directions=1)
print(f"dA and dB of all {len(result.errors) // 2} layers against the complex step:")
print(f"largest relative error {max(result.errors.values()):.0e}")

# %% [markdown]
# The gradients are exact for the rounded model. But the rounded model differs from the original model, so the gradients of the two models have different directions. The next picture compares these gradients on "tiny". Both models have the same adapter, which was trained on the original weights for 60 steps. So $B$ is not zero, and $dA$ is not zero either. **Predict** the cosine between the gradient of the rounded model and the gradient of the original model on the same batch. Predict also the cosine between two gradients of the original model on two different batches.

# %%
plots.gradient_cosines(Table.load("../figures/data/quantization_gradients.json"));

# %% [markdown]
# The rounding of the weights changes the direction of the gradient much less than a change of the batch does.
#
# ## The memory of a training step
#
# The function `ln.costs.memory` predicts the bytes of all arrays that a training step holds, including the codes and the absmax values. For "tiny" this prediction equals the bytes of the arrays exactly (`tests/costs/test_memory.py`).
#
# The adapters in the next cell have $r = 8$ and $\alpha = 64$, like the adapters of "tiny" in the first picture. So the scale $s = \alpha/r$ is 8, as in notebook 05.

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
# In a model as small as "tiny", the activations need most of the memory of a training step. In a large model, the weights need most of this memory. **Predict.** Which of the three methods (full fine-tuning, LoRA and QLoRA) can train the model Llama-65B on one GPU with 48 GB of memory?

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
# In the row "QLoRA" the embedding and the output head are stored in 16 bits per weight. Only the linear layers of the transformer blocks are stored in four bits per weight.
#
# The table above uses the recipe "16-bit" of notebook 01. With this recipe, each trained parameter needs 2 bytes for the weight, 2 bytes for the gradient and 4 bytes for each of AdamW's two moments. The table for Llama-65B in notebook 01 uses the recipe "mixed". The recipe "mixed" also stores a float32 copy of each trained parameter, which needs 4 more bytes. So the totals in notebook 01 are larger than the totals in the table above. The difference is largest for full fine-tuning.
#
# ## Train with LoRA and with QLoRA
#
# The next cell trains "tiny" with LoRA and with QLoRA. Both models have the same adapter, the same batches and the same learning rate. The losses are measured on the held-out text that the first picture uses. **Predict** the held-out loss of each model before the first step. Does the loss of LoRA or the loss of QLoRA fall faster?

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
# Before the first step, $B$ is zero, so each model has the loss of its base. The loss of QLoRA starts higher than the loss of LoRA, and the loss of QLoRA falls a little more in the same number of steps. After the last step, the loss of QLoRA is still a little higher than the loss of LoRA.
#
# ## Three ways to merge
#
# To merge LoRA means to compute $W + s\,BA$ (notebook 02). A QLoRA layer stores only codes. It has no $W$ to which $s\,BA$ could be added, so the method `merge_adapter` raises an error. There are three common ways to merge a QLoRA adapter:
#
# 1. **Dequantise, then merge**: $\hat W + s\,BA$, usually stored in 16 bits per weight. The merged weights take about four times the memory of the weights in four bits.
# 2. **Merge into the original weights**: $W + s\,BA$, also stored in 16 bits per weight. But the adapter was trained with $\hat W$ and not with $W$.
# 3. **Merge and quantise again**: $\hat W + s\,BA$, rounded to four bits. The merged weights take the same memory as the four-bit weights before the merge. But the second rounding also rounds $s\,BA$.
#
# In the next cell, ways 1 and 2 store the merged weights in float32, so the only rounding that matters is the rounding to four bits.
#
# **Predict.** Which of the three ways gives the same outputs as the trained model before the merge? Which of the three ways gives the lowest held-out loss? The answers to the two questions can differ.

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
# The next picture compares the three ways to merge on "tiny" and on SmolLM2, after longer training than in the cell above. The right panel shows which share of $\Delta W$ remains in the merged weights.
#
# The remaining share is computed by a projection. Let $D$ be the merged weights minus the weights before the merge. Without rounding, $D$ equals $\Delta W$. With rounding, $D$ is a multiple of $\Delta W$ plus noise that is orthogonal to $\Delta W$:
#
# $$D = \kappa\,\Delta W + \text{noise}, \qquad \kappa = \frac{\langle D, \Delta W\rangle}{\lVert\Delta W\rVert^2}$$
#
# $\langle D, \Delta W\rangle$ is the sum of the products of corresponding entries of $D$ and $\Delta W$. The share of $\Delta W$ that remains is $\kappa$. The share $\kappa$ can be near zero although $D$ is not near zero.

# %%
routes = [Table.load(f"../figures/data/merge_routes_{name}.json") for name in runs]
plots.merge_routes_chart(*routes);

# %% jupyter={"source_hidden": true}
# prints the loss, the change of the logits and the share of ΔW that remains
lines = [{"model": table.settings["model"]} | row for table in routes for row in table.rows]
show(lines, {"model": "", "route": "", "heldout": ".4f", "logits": ".1e", "kept": ".0%"})

# %% [markdown]
# The rows "as trained" show one run with one seed. The losses at the beginning of this notebook are means over three seeds, so they differ a little from the losses in these rows.
#
# Only the first way to merge gives the same outputs as the trained model. The second way gives a *different* model. In these runs, this different model has a slightly lower loss than the trained model, because the original weights are more precise than the rounded weights. Do not report the loss of this different model as the loss of QLoRA.
#
# The third way, merging and quantising again, raises the loss of "tiny" a little and the loss of SmolLM2 very much. The next section explains why.

# %% [markdown]
# Why is QLoRA's final loss on SmolLM2 higher than LoRA's final loss? To find out, move the adapter of the QLoRA run to the original weights, and do not train again. The loss falls, because the base is no longer rounded. The next cell prints three sentences. The first sentence divides this fall of the loss by the difference between the final losses of QLoRA and LoRA. The other two sentences report which share of $\Delta W$ remains after the third way to merge.

# %%
names = ("qlora.smollm2.rounding", "merge_routes.tiny.kept", "merge_routes.smollm2.kept")
Markdown(findings.say(*names))

# %% [markdown]
# ## What rounding removes
#
# In the third way to merge, every weight of $\hat W$ equals a value of NF4 times the absmax of the block. Suppose that the merge changes a weight by less than half the distance to the next number that NF4 can store in this block. Then the rounding gives the old code of the weight again. On "tiny" the scale $s$ is large, and the adapter changes the weights much. On SmolLM2 the adapter changes the weights only a little.
#
# Other storage formats also round, for example the formats with 16 or 8 bits in which models are published. Whether a small $\Delta W$ is lost depends on its size and on the format. The next cell adds a random $\Delta W$ of rank 8 to a matrix that is already rounded, and rounds the sum. Then the cell measures two shares: the share of the weights that did not change, and the share $\kappa$ of $\Delta W$ that remains. **Predict.** The format is NF4, and the norm of $\Delta W$ is 1 % of the norm of the weights. Which share of the weights does not change, and which share of $\Delta W$ remains?

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
# The share of unchanged weights does not tell you which share of $\Delta W$ remains.
#
# - **bfloat16, smallest $\Delta W$**: most weights stay unchanged, but more than half of $\Delta W$ remains. In bfloat16, the distance between two neighbouring numbers is roughly proportional to the size of the numbers. So a small change of a small weight remains, but rounding removes the same change from a large weight. A weight changes only if the weight is small or if its entry of $\Delta W$ is large. Each changed weight moves to another number of the format, and this step can be larger than its entry of $\Delta W$.
# - **NF4, small $\Delta W$**: nearly all weights change, but hardly anything of $\Delta W$ remains.
#
# The result for NF4 is surprising. A decoded weight is the absmax of the block, the *scale*, times one of the sixteen NF4 values. **Predict.** What does the smallest $\Delta W$ change in NF4: the scales of the blocks, the codes of the weights, or both? Which weights do not change?

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
# A small $\Delta W$ changes all scales of the blocks and hardly any code of a weight.
#
# - *Codes*: nearly every weight changes by less than half the distance to the next value, so rounding gives the old code.
# - *Scales*: the magnitude of the largest weight of a block is the scale of the block. The cell stores the scales in float32, without double quantisation, so the scales are hardly rounded. So the change of the largest weight remains. The largest weight is one of 64 weights of the block, so about 1/64 of $\Delta W$ remains.
# - *Noise*: all weights of a block are decoded with the new scale. So all other weights of the block also change, except the weights that are zero. These changes depend on the change of the largest weight and not on the entries of $\Delta W$ for the other weights. So these changes are noise.
#
# If $\Delta W$ is larger, the weights with the largest entries of $\Delta W$ get the code of the next value. These entries contribute most to the norm of $\Delta W$, and each of these weights changes by the whole distance to the next value. So most of $\Delta W$ can remain although most codes do not change. The number of changed weights does not tell you which share of $\Delta W$ remains.
#
# The cell above does not use double quantisation, but the study of the three ways to merge uses it. **Predict.** With double quantisation, does a larger share, a smaller share or the same share of $\Delta W$ remain?

# %%
lines = []
for size in (0.001, 0.01, 0.017, 0.04):  # on SmolLM2, the size of the trained ΔW is 1.7 %
    change = (size * delta).astype("float32")
    line = {"‖ΔW‖/‖W‖": size}
    for name, double_quant in (("float32 scales", False), ("8-bit scales", True)):
        start = dequantize_4bit(quantize_4bit(W, double_quant=double_quant))
        stored = quantize_4bit(start + change, double_quant=double_quant)
        moved = dequantize_4bit(stored) - start
        line[name] = np.vdot(moved, change) / np.vdot(change, change)
    lines.append(line)
show(lines, {"‖ΔW‖/‖W‖": ".1%", "float32 scales": ".1%", "8-bit scales": ".1%"})

# %% [markdown]
# If $\Delta W$ is very small, less of $\Delta W$ remains with double quantisation, because many scales are rounded back to their old 8-bit values. If $\Delta W$ is as large as on SmolLM2, about the same share remains with and without double quantisation: a little more than 1/64. In the study of SmolLM2, a larger share remained, so the scales alone do not explain this share. A possible reason is that the entries of a trained $\Delta W$ are more unequal than the entries of the random $\Delta W$ in the cells. Then some weights get a new code. This notebook does not test this reason.
#
# ## Recap
#
# NF4's sixteen values are quantiles of a normal distribution. Each block of 64 weights stores one scale, and double quantisation stores the scales in 8 bits. The gradients of $A$ and $B$ are exact for the
# rounded base, because the codes are constants. On "tiny", QLoRA and LoRA have nearly the same final loss. On SmolLM2 the final loss of QLoRA is a little higher than the final loss of LoRA, and most of the difference comes from the rounding of the base. The rounded weights need about an eighth of the memory that the same weights need in float32. Merge a QLoRA adapter into the dequantised weights. Merging into the original weights gives a different model, and quantising again after the merge can remove most of $\Delta W$.
#
# ## Three questions
#
# 1. Why is one of NF4's sixteen values exactly zero?
#
# <details><summary>Answer</summary>
#
# If one of the values is exactly zero, a weight of zero stays exactly zero. The rounding then adds no noise to this weight.
#
# </details>
#
# 2. Why does QLoRA not need a straight-through estimator?
#
# <details><summary>Answer</summary>
#
# QLoRA trains only $A$ and $B$. The rounded $\hat W$ is a constant, so no gradient passes through the rounding.
#
# </details>
#
# 3. A small $\Delta W$ is merged into dequantised NF4 weights, and the sum is quantised again. Why does hardly anything of $\Delta W$ remain?
#
# <details><summary>Answer</summary>
#
# Before the merge, each weight is exactly one of the numbers that NF4 can store. If the merge changes a weight by less than half the distance to the next such number, the weight keeps its old code. Without double quantisation, only the largest weight of each block keeps its change, because its magnitude is the new scale of the block. With double quantisation, the new scale is rounded too. The new scale also changes the other weights of the block. These changes do not depend on the entries of $\Delta W$ for the other weights.
#
# </details>
#
# ## Try
#
# 1. Quantise "tiny" once with `quant_type="int4"` and once with `block_size=4096`. Evaluate each quantised model without an adapter. Does a larger mean rounding error always lead to a higher held-out loss?
#
# <details><summary>Hint</summary>
#
# Call `model = ln.quantize_model(ln.load_model("tiny"), quant_type="int4", block_size=64)`, then `ln.evaluate(model, heldout)`. Compare the losses with the errors in the picture of the section "NF4, int4 and FP4 compared".
#
# </details>
#
# <details><summary>Answer</summary>
#
# No. With int4 the mean error is larger than with NF4. But the loss with int4 is 1.559 nats per byte, and the loss with NF4 is 1.561. Blocks of 4096 weights have a larger error and a higher loss than blocks of 64 weights. The mean error counts all weights
# equally, but some weights affect the loss more than others.
#
# </details>
#
# 2. Replace NF4's values by quantiles of the *real* distribution of the scaled weights (the dashed line in the picture of the values of NF4). Is the mean error then smaller than with NF4?
#
# <details><summary>Hint</summary>
#
# Collect `W.reshape(-1, 64)` of all linear layers, divide each row by its largest magnitude, and take `np.quantile` at 16 evenly spaced probabilities. Replace one of the 16 quantiles by zero, and replace the two outermost quantiles by −1 and 1.
#
# </details>
#
# <details><summary>Answer</summary>
#
# No. With NF4 the mean error is 0.073 times the root mean square of the weights. With the quantiles of the real distribution, the mean error is about 0.08 times this root mean square. Most of these quantiles are close to zero, so the few large weights are rounded more coarsely. Therefore values with equal shares of the weights between them do not give the smallest mean error. You can also
# choose sixteen values that minimise the mean error directly, with the algorithm k-medians started from NF4. The mean error of these values is hardly smaller than the mean error of NF4.
#
# </details>
#
# 3. In the block of eight weights, change one weight to 5. What happens to the codes of the other weights?
#
# <details><summary>Hint</summary>
#
# Add the line `w[0] = 5` after the first line of the cell, and run the cell again.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The absmax of the block becomes 5, so after the division by 5 all other weights are close to zero. The weights 0.02, −0.08 and 0.17 are all decoded as 0, and the weight −0.29 gets the same code as the weight −0.62. One very large weight makes the rounding of its whole block coarse. With small blocks, one very large weight affects only a few other weights.
#
# </details>
#
# 4. If the norm of $\Delta W$ is 1 % of the norm of $W$, hardly anything of $\Delta W$ remains in NF4. Which share of $\Delta W$ remains if the norm of $\Delta W$ is 3 % or 5 % of the norm of $W$? Is there a sharp limit below which only the changes of the scales remain?
#
# <details><summary>Hint</summary>
#
# In the section "What rounding removes", run the cell that prints the column "codes changed" with the sizes 0.01, 0.02, 0.03 and 0.05.
#
# </details>
#
# <details><summary>Answer</summary>
#
# If the norm of $\Delta W$ is 2 % of the norm of $W$, hardly anything remains except the changes of the scales. At 3 %, about 7 % of $\Delta W$ remains, and at 5 %, about a third of $\Delta W$ remains. There is no sharp limit, because the entries of $\Delta W$ have different sizes and the distances between the values of NF4 differ too. Each weight gets a new code as soon as its change is larger than half the distance to the next value.
#
# </details>
#
# Continue with [Merging and serving](08_merging_and_serving.ipynb).
