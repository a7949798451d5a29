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
# # LoRA from one equation
#
# A pretrained weight matrix $W$ is left alone. Beside it a narrow bypass is trained, and the two are added:
#
# $$y \;=\; x W^\top \;+\; \frac{\alpha}{r}\,(x A^\top)\,B^\top$$
#
# That is all of LoRA ([Hu et al. 2021](https://arxiv.org/abs/2106.09685), section 4.1). This notebook takes the equation apart,
# writes it in NumPy, counts what it saves, and then trains it on a real language model.

# %%
import numpy as np

import lora_np as ln
from lora_np import plots
from lora_np.studies.counting import parameters

plots.bypass_diagram();

# %% [markdown]
# Grey is frozen, cyan is trained: that holds for every picture of this course, and full fine-tuning is coral.
#
# | symbol | shape | what it is |
# |---|---|---|
# | $x$ | (n, k) | n tokens, k features each |
# | $W$ | (d, k) | the pretrained weight, frozen |
# | $A$ | (r, k) | takes k features down to r |
# | $B$ | (d, r) | takes r up to d features |
# | $\alpha/r$ | a number | the scaling, called $s$ |
#
# Put together it is $x\,(W + \Delta W)^\top$ with $\Delta W = s\,BA$: a change of $W$, as large as $W$, made of few numbers. $BA$ has $d \times k$ entries, but its rank is at most $r$, because every row of it is a mixture of the $r$ rows of $A$.
# Hence the name, *Lo*w-*R*ank *A*daptation. Why a change of low rank is enough is notebook 04; what $\alpha$ does and why it is divided by $r$ is notebook 06 (in short: $\alpha$ acts like a part of the learning rate, and the division keeps it from growing with the rank).
#
# **Predict before you go on.** $W$ is 4096 × 4096, as in a 7B model, and r = 8. How many times fewer numbers does LoRA train
# than full fine-tuning: about 10, about 50, or about 250? (In the picture coral is all of $W$, which full fine-tuning changes. The cyan slivers are no part of it:
# $A$ and $B$ are new numbers beside $W$.)

# %%
one_matrix = parameters.one_matrix(4096)
plots.one_matrix_chart(one_matrix);

# %% [markdown]
# ## Where the count comes from
#
# $W$ has $d \cdot k$ numbers. $A$ and $B$ together have $r \cdot k + d \cdot r = r\,(d + k)$. For a square matrix the factor is
# $d^2 / 2dr = d / 2r$: it grows with the width of the model, so the larger the model, the more LoRA saves.

# %%
d = k = 4096
r = 8
full = d * k
lora = r * (d + k)
print(f"full {full:,}   LoRA {lora:,}   {full / lora:.0f} times fewer")

# %% [markdown]
# ## The forward pass, in three lines
#
# Shapes first, and none of them square: a square matrix would forgive a forgotten transposition.

# %%
rng = np.random.default_rng(7)
n, k, d, r, alpha = 5, 6, 4, 2, 8
x = rng.standard_normal((n, k))
W = rng.standard_normal((d, k))
A = rng.uniform(-1 / np.sqrt(k), 1 / np.sqrt(k), (r, k))  # so that xAᵀ is about as large as x, whatever k is (Kaiming He's rule)
B = rng.standard_normal((d, r))  # it starts at zero; here it has trained for a while
s = alpha / r

frozen = x @ W.T  # (n, k) (k, d) → (n, d)
bypass = s * (x @ A.T) @ B.T  # (n, k) (k, r) (r, d) → (n, d)
y = frozen + bypass

y_library, cache = ln.ops.lora_linear_forward(x, W, A, B, s)
print("largest difference from the library:", abs(y - y_library).max())
print(f"BA is {d} × {k} and of rank {np.linalg.matrix_rank(B @ A)}")

# %% [markdown]
# The brackets matter. $(xA^\top)B^\top$ costs $n\,r\,(k + d)$ multiplications; $x\,(BA)^\top$ would first build the $d \times k$
# product and then cost $n\,d\,k$, as much as the frozen layer itself.
#
# ## At the start, nothing has changed
#
# $B$ starts at zero, so $BA = 0$, and the adapted model computes what the base computes. Not nearly: bit for bit. ($A$ starts random: were it zero too, nothing would ever move. That is Try 3.)
#
# The model is "tiny", a language model of a million parameters that has read English prose and writes one byte after the other.

# %%
base = ln.load_model("tiny")
print(ln.costs.count(base))
tokens = ln.data.encode("The import statement combines two operations;")[None]
logits, _ = base.forward(tokens)

config = ln.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")  # the names that PEFT, the usual library, has; all linear layers but the head
model = ln.get_peft_model(base, config)
adapted, _ = model.forward(tokens)
print("equal bit for bit:", np.array_equal(logits, adapted))
model.print_trainable_parameters()

# %% [markdown]
# Nearly a tenth, and not one 256th? The factor is $d / 2r$, and "tiny" is narrow: with $d = 128$ and $r = 8$ it is $128 / 16 = 8$ for a square matrix, and 12 for the
# largest ones, 384 × 128. In a model with $d = 4096$ it is 256.
#
# ## The gradients
#
# For a loss $L$ write $dy = \partial L / \partial y$. The chain rule gives the following, with $h = s \cdot x A^\top$; notebook 03 derives each, index by index:
#
# $$dB = dy^\top h \qquad dh = dy\, B \qquad dA = s \cdot dh^\top x \qquad dx = dy\,W + s \cdot dh\, A$$
#
# There is no $dW$: the frozen weight's gradient, as large as $W$ itself, is never computed.

# %%
dy = rng.standard_normal((n, d))
h = s * x @ A.T  # (n, r)
dB = dy.T @ h  # (d, n) (n, r) → (d, r)
dh = dy @ B  # (n, d) (d, r) → (n, r)
dA = s * dh.T @ x  # (r, n) (n, k) → (r, k)
dx = dy @ W + s * dh @ A  # (n, k)

library = ln.ops.lora_linear_backward(dy, cache)
for name, mine, its in zip(("dx", "dA", "dB"), (dx, dA, dB), library, strict=True):
    print(f"{name}: largest difference from the library {abs(mine - its).max():.1e}")

# %% [markdown]
# Two pieces of code that agree may be wrong together. The proof is independent: a *complex step* differentiates the forward
# pass numerically, exact to rounding. All three must agree with it to 1e-12 (how it works: notebook 03).

# %%
print(
    ln.gradcheck(
        lambda x, A, B: ln.ops.lora_linear_forward(x, W.astype(x.dtype), A, B, s),
        ln.ops.lora_linear_backward,
        {"x": x, "A": A, "B": B},
    )
)

# %% [markdown]
# ## It trains
#
# Now "tiny", which knows English prose, specialises in Python code, with a fraction of its numbers trained. The loss is measured on code that it does not train on. For each byte it is
# $-\ln p$, where $p$ is the probability that the model gave to the byte that really came next; the average over all bytes, in *nats per byte*, is what one reads. ("Nats" because the logarithm is the
# natural one.) A model that knows nothing gives each of the 256 bytes $p = 1/256$, and its loss is $\ln 256 = 5.5$. Sure and right would be 0.
#
# **Predict.** At the start the adapted model is the base: what is then its loss on code, nearer to 5.5 or to 1, for a model that has read English? And how far will sixty steps bring it?

# %%
W_before = base.model.layers[0].self_attn.q_proj.base_layer.weight.value.copy()
history = ln.train(
    model,
    ln.data.Batches(ln.data.corpus("code", "train")),
    ln.AdamW(lr=1e-2, weight_decay=0.0),
    steps=60,
    schedule=ln.WarmupCosine(60, warmup=5),
    heldout=ln.data.heldout_batches(ln.data.corpus("code", "heldout"), windows=64),
)
heldout = history.column("heldout")
print(f"held-out loss {heldout[0]:.3f} → {heldout[-1]:.3f} nats per byte")
p_first, p_last = np.exp(-heldout[0]), np.exp(-heldout[-1])
print(f"p of the right byte, its geometric mean: {p_first:.2f} → {p_last:.2f}")
W_after = base.model.layers[0].self_attn.q_proj.base_layer.weight.value
print("the frozen weight moved:", not np.array_equal(W_before, W_after))

# %% [markdown]
# ## And it can disappear
#
# $x W^\top + s\,(xA^\top)B^\top = x\,(W + s\,BA)^\top$, so after training the bypass can be added into the weight: the model then costs
# exactly what the base costs.

# %%
tokens, _ = ln.data.Batches(ln.data.corpus("code", "heldout"), batch_size=2)[0]
with_bypass, _ = model.forward(tokens)
plain = model.merge_and_unload()
merged, _ = plain.forward(tokens)
print(type(plain).__name__, "with the same parameters as the base:", ln.costs.count(plain).total)
change = abs(merged - with_bypass).max() / abs(with_bypass).max()
print(f"largest relative change of a logit: {change:.1e} (float32)")

# %% [markdown]
# ## Whole models
#
# The same arithmetic over every layer of published models. Each row counts $r\,(d + k)$ for the targeted matrices, exactly as PEFT
# does (the tests compare), as a share of all numbers, the new ones included. Each model has two counts, the two ends of what people choose: $r = 8$ in two matrices of the attention, as in the paper
# (GPT-2 keeps its three projections in one matrix, `c_attn`), and $r = 16$ in all linear layers.

# %%
plots.whole_models_chart(parameters.whole_models());

# %% [markdown]
# ## Try
#
# For each, change the cell under "At the start, nothing has changed", and run it and then the cell under "It trains". The first loads the model anew, so nothing of the last try is left.
#
# 1. Set `lora_alpha=160`. What happens to the loss, and which other knob could take it back?
# 2. `target_modules=["q_proj", "v_proj"]` was the paper's choice. How many parameters does it train here, and how much of the drop
#    in the loss does it keep? (Notebook 05 measures all four attention matrices.)
# 3. Start with *both* $A$ and $B$ at zero. Which gradients are zero then, and does the model ever learn? At the end of the first cell, this reaches every factor, and its gradient:
#
#    ```python
#    factors = [p for name, p in model.named_parameters() if "lora_" in name]  # all A and all B
#    for p in factors:
#        p.value[:] = 0
#
#    loss, cache = model.loss(*ln.data.Batches(ln.data.corpus("code", "train"))[0])
#    model.backward(cache)
#    print("largest gradient:", max(abs(p.grad).max() for p in factors))
#    ```
#
# <details><summary>Hints</summary>
#
# 1. The loss ends *above* where it began. $\alpha$ multiplies what each step adds to $s\,BA$ by ten; with `lr=1e-3` in place of `1e-2` it ends nearly where it did at first.
# 2. `model.print_trainable_parameters()` says how many. The share of the drop is (first − last) of the new run over (first − last) of the old one: about two thirds, with a fifth of the numbers.
# 3. Put $A = 0$ and $B = 0$ into the gradients: $h = s\,xA^\top = 0$, so $dB = 0$; $dh = dy\,B = 0$, so $dA = 0$. Nothing moves, and after the step it is as it was.
#
# </details>
