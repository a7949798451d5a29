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
# What is LoRA? One equation describes LoRA. A program of fewer than 200 lines (without the blank lines) contains a language model with LoRA, its gradients and its training. This notebook shows the equation and the most important of these lines. Then the notebook counts the parameters that LoRA trains.
#
# **You will learn** to
#
# - explain each matrix of LoRA's equation and its shape;
# - compute the number of parameters that LoRA trains;
# - write LoRA's forward pass in NumPy, train an adapter on a language model, and merge the adapter into the weights.
#
# **Before you start:** you know the matrix product. The section about gradients uses the chain rule, but you may skip this section.
#
# *Reading: 45 minutes. Tasks: 30 minutes. Running: about 20 seconds.*

# %%
import inspect

import numpy as np
from IPython.display import Markdown

import lora_np as ln
from lora_np import micro, plots
from lora_np.studies.counting import parameters
from lora_np.studies.harness.table import show

plots.bypass_diagram();

# %% [markdown]
# ## The equation
#
# LoRA leaves a weight matrix $W$ of a trained model unchanged and adds a narrow bypass beside $W$ ([Hu et al. 2021](https://arxiv.org/abs/2106.09685), section 4.1):
#
# $$y \;=\; x W^\top \;+\; s\,(x A^\top)\,B^\top \qquad s = \frac{\alpha}{r}$$
#
# | symbol | shape | meaning |
# |---|---|---|
# | $x$ | (N, in) | N tokens, each with *in* features |
# | $W$ | (out, in) | weight matrix of the base, frozen |
# | $A$ | (r, in) | projects *in* features to *r* features |
# | $B$ | (out, r) | projects *r* features to *out* features |
# | $s$ | number | scaling: `lora_alpha` divided by the rank |
#
# The sum of the two terms of $y$ is $x\,(W + \Delta W)^\top$ with $\Delta W = s\,BA$. The change $\Delta W$ has the shape of $W$, but its rank is at most $r$. The reason is that each row of $BA$ is a weighted sum of the $r$ rows of $A$. This low rank gives LoRA its name: *Lo*w-*R*ank *A*daptation.
#
# Notebook 04 shows why a change $\Delta W$ of low rank is enough for fine-tuning. Notebook 06 shows that a larger $\alpha$ acts like a larger learning rate.
#
# ## LoRA in 200 lines
#
# The file `lora_np/micro.py` contains a complete Llama model with LoRA: forward pass, backward pass, AdamW, training and merging. This file needs only NumPy. If you open this file now, read only the part up to the function `merge`. This part also contains two helper functions. `load` reads the weights from a file. `flat` puts all tokens of a batch into one matrix, with one token per row. The rest of the file uses the gradients of notebook 03b. The next cell shows the source of `linear`, the function for a linear layer:

# %%
def source(function):
    return Markdown(f"```python\n{inspect.getsource(function)}```")


source(micro.linear)

# %% [markdown]
# The last line of the function is LoRA's equation. `AB` holds the two matrices $A$ and $B$ of this layer. If the layer has no adapter, `AB` is `None`. The second return value, the *cache*, holds the arrays that the backward pass needs.
#
# Before training, $A$ is random and $B$ is zero:

# %%
source(micro.init_lora)

# %% [markdown]
# With $B = 0$ the change is $\Delta W = s\,BA = 0$, and the model with the adapter gives exactly the same output as the base. The random numbers in $A$ are between $-1/\sqrt{\text{in}}$ and $1/\sqrt{\text{in}}$. Each number of $h = xA^\top$ is a sum of products with random signs, one product for each input feature. The typical size of this sum is $\sqrt{\text{in}}$ times the size of one product. The bound $1/\sqrt{\text{in}}$ cancels this factor, so the size of $h$ does not depend on the number of input features.
#
# Why is $B$ zero, and not $A$? With $A = 0$ and a random $B$, $\Delta W$ would be zero too, and the adapter would also learn. With $B = 0$ the first training step changes only $B$, and with $A = 0$ the first step would change only $A$. The LoRA paper and PEFT choose $B = 0$. [Hayou et al. (2024)](https://arxiv.org/abs/2406.08447) compared the two choices. On average, $B = 0$ gave better results than $A = 0$. According to their analysis, the reason may be that $B = 0$ allows a larger learning rate.
#
# Now we use `micro.py` to train an adapter. The base is the model tiny, which has a million parameters and was trained on English prose. The adapter learns Python code. The loss is in *nats per byte*. The loss is the mean of $-\ln p$, where $p$ is the
# probability that the model gives to the correct next byte. A model without any knowledge gives $p = 1/256$ to each byte, so its loss is $\ln 256 \approx 5.5$. A perfect model has the loss 0.
#
# **Predict.** The model tiny knows English but not Python. Is the loss of this model on Python code closer to 5.5 or to 1? By how much do forty steps of training reduce this loss?

# %%
config, W = micro.load()
lora = micro.init_lora(W, r=8)
model = micro.Llama(config, W, lora, s=2.0)  # s = α/r with α = 16 and r = 8

text = ln.data.corpus("code", "train").astype("int64")
heldout = micro.batch(ln.data.corpus("code", "heldout").astype("int64"), 0, rows=16)
lines = [{"step": 0, "held-out loss": float(model.loss(*heldout)[0])}]
state = {}  # AdamW's m and v
for step in range(1, 41):
    loss, cache = model.loss(*micro.batch(text, step))
    model.backward(cache)
    micro.adamw(lora, model.grad, state, step, lr=3e-3)
    if step % 10 == 0:
        lines.append({"step": step, "held-out loss": float(model.loss(*heldout)[0])})
show(lines, {"step": "", "held-out loss": ".3f"})

# %% [markdown]
# Before training, the loss is much closer to 1 than to 5.5, because code has many English words, and the model tiny knows how English words are spelled. During training the loss falls. The table shows the loss on *held-out* text, which is not used for training. In this table the held-out text is 16 short pieces of code. Other cells of the course measure the loss on other pieces, so they print a slightly different loss for the same base. Compare two losses only if both are measured on the same pieces.
#
# After training, $s\,BA$ can be added to $W$, because $x W^\top + s\,(xA^\top)B^\top = x\,(W + s\,BA)^\top$. The merged model has no bypass, so it needs as much memory and time as the base. The next cell shows the function `merge`:

# %%
source(micro.merge)

# %%
merged = micro.Llama(config, micro.merge(W, lora, s=2.0))
with_bypass, without = (float(m.loss(*heldout)[0]) for m in (model, merged))
print(f"loss with the bypass {with_bypass:.6f}, merged {without:.6f}")

# %% [markdown]
# The two losses agree in all printed digits. But the outputs of the two models are not exactly equal. The section "LoRA with the library" shows how much the outputs differ, and why.
#
# The functions `linear`, `init_lora` and `merge` are the core of LoRA. The rest of the notebook explains each part in more detail, with the library `lora_np` instead of the file `micro.py`.
#
# ## How many parameters does LoRA train?
#
# **Predict.** $W$ is 4096 × 4096, as in a 7B model, and $r = 8$. Full fine-tuning trains all parameters of $W$, and LoRA trains $A$ and $B$. Divide the number of parameters of $W$ by the number of parameters of $A$ and $B$ together. Is the quotient about 10, about 50 or about 250?

# %%
one_matrix = parameters.one_matrix(4096)
plots.one_matrix_chart(one_matrix);

# %% [markdown]
# The coral square is $W$, which full fine-tuning trains. The cyan strips are $A$ and $B$, which LoRA trains instead of $W$. $A$ and $B$ are separate matrices, not parts of $W$.
#
# $W$ has $\text{out} \cdot \text{in}$ parameters. $A$ and $B$ together have $r \cdot \text{in} + \text{out} \cdot r = r\,(\text{in} + \text{out})$ parameters. For a square matrix with $d$ features the ratio of the two numbers is $d^2 / (2dr) = d / (2r)$. This ratio grows with $d$, so in a larger model LoRA trains a smaller share of the parameters.

# %%
features, r = 4096, 8
full, few = features * features, r * (features + features)
print(f"W: {full:,}   A and B: {few:,}   quotient: {full / few:.0f}")

# %% [markdown]
# ## The forward pass in three lines
#
# No matrix in the next cell is square. With a square matrix, a forgotten transposition would raise no error.

# %%
rng = np.random.default_rng(7)
N, in_, out, r, alpha = 5, 6, 4, 2, 8
x = rng.standard_normal((N, in_))
W = rng.standard_normal((out, in_))
A = rng.uniform(-1, 1, (r, in_)) / np.sqrt(in_)
B = rng.standard_normal((out, r))  # B is random, as after training; before training, B is zero
s = alpha / r

frozen = x @ W.T  # (N, in) (in, out) → (N, out)
bypass = s * (x @ A.T) @ B.T  # (N, in) (in, r) (r, out) → (N, out)
y = frozen + bypass

y_library, cache = ln.ops.lora_linear_forward(x, W, A, B, s)
print(f"largest difference from the library: {abs(y - y_library).max():.1e}")
print(f"BA has shape {(B @ A).shape} and rank {np.linalg.matrix_rank(B @ A)}")

# %% [markdown]
# The number of multiplications depends on the order of the products. The order $(xA^\top)B^\top$ takes $N r\,(\text{in} + \text{out})$ multiplications. The order $x\,(BA)^\top$ first computes the product $BA$ and then takes $N \cdot \text{in} \cdot \text{out}$ multiplications. The product of the frozen layer, $xW^\top$, also takes $N \cdot \text{in} \cdot \text{out}$ multiplications.
#
# ## The gradients
#
# Let $L$ be the loss, and let $dy = \partial L / \partial y$ be the gradient of the loss with respect to $y$. With $h = xA^\top$ the chain rule gives
#
# $$dB = s\,dy^\top h \qquad dh = s\,dy\,B \qquad dA = dh^\top x \qquad dx = dy\,W + dh\,A.$$
#
# Notebook 03 derives these four equations. LoRA never computes $dW$, the gradient of the frozen weight $W$. The gradient $dW$ has as many numbers as $W$.

# %%
dy = rng.standard_normal((N, out))
h = x @ A.T  # (N, r)
dB = s * dy.T @ h  # (out, N) (N, r) → (out, r)
dh = s * dy @ B  # (N, out) (out, r) → (N, r)
dA = dh.T @ x  # (r, N) (N, in) → (r, in)
dx = dy @ W + dh @ A  # (N, in)

library = ln.ops.lora_linear_backward(dy, cache)
for name, mine, theirs in zip(("dx", "dA", "dB"), (dx, dA, dB), library, strict=True):
    print(f"{name}: largest difference from the library {abs(mine - theirs).max():.1e}")

# %% [markdown]
# Two programs that agree can both be wrong, so we also need an independent test. `gradcheck` computes the derivative numerically, with a *complex step*, almost without rounding error (notebook 03 explains the complex step). The relative difference between our gradients and this numerical derivative must be below $10^{-12}$:

# %%
print(
    ln.gradcheck(
        lambda x, A, B: ln.ops.lora_linear_forward(x, W.astype(x.dtype), A, B, s),
        ln.ops.lora_linear_backward,
        {"x": x, "A": A, "B": B},
    )
)

# %% [markdown]
# ## LoRA with the library
#
# `LoraConfig` and `get_peft_model` have the same names in PEFT, the usual LoRA library for PyTorch. `target_modules="all-linear"` means all linear layers except the output head.
#
# **Predict.** For a 4096 × 4096 matrix with $r = 8$, full fine-tuning trains 256 times as many parameters as LoRA. The model tiny has the hidden size $d = 128$. Divide the number of parameters that LoRA trains with $r = 8$ by the number of parameters of the model tiny. How large is the quotient?

# %%
base = ln.load_model("tiny")
config = ln.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
tokens = ln.data.encode("The import statement combines two operations;")[None]
logits, _ = base.forward(tokens)

model = ln.get_peft_model(base, config)  # puts the adapter into `base`
adapted, _ = model.forward(tokens)
print("logits equal the logits of the base, bit for bit:", np.array_equal(logits, adapted))
model.print_trainable_parameters()

# %% [markdown]
# The quotient is almost one tenth. The printed percentage is a little lower than this quotient, because `print_trainable_parameters` divides by the number of all parameters, including the parameters of the adapter. For one matrix, divide the number of parameters of $W$ by the number of parameters of $A$ and $B$ together. The quotient is $d / (2r) = 128 / 16 = 8$ for the square matrices of the model tiny, and 12 for its largest matrices (384 × 128). For square matrices with $d = 4096$ the quotient is 256.
#
# The next cell trains the adapter. The cell also keeps a copy of one frozen weight matrix, to show that training does not change this matrix. In the code, `layers[0]` is the first block, and `self_attn.q_proj` is the linear layer for the queries of this block. `base_layer` is the frozen layer inside the layer with LoRA, and `weight.value` is the array of the weight.

# %%
q_proj = base.model.layers[0].self_attn.q_proj  # with LoRA
W_before = q_proj.base_layer.weight.value.copy()
history = ln.train(
    model,
    ln.data.Batches(ln.data.corpus("code", "train")),
    ln.AdamW(lr=1e-2, weight_decay=0.0),
    steps=60,
    schedule=ln.WarmupCosine(60, warmup=5),
    heldout=ln.data.heldout_batches(ln.data.corpus("code", "heldout"), windows=64),
)
losses = history.column("heldout")
print(f"held-out loss: {losses[0]:.3f} → {losses[-1]:.3f} nats per byte")
typical = np.exp(-losses[0]), np.exp(-losses[-1])
print(f"typical probability of the correct byte: {typical[0]:.2f} → {typical[1]:.2f}")
print("frozen weight unchanged:", np.array_equal(W_before, q_proj.base_layer.weight.value))

# %% [markdown]
# The loss before training differs from the loss at step 0 in the section "LoRA in 200 lines". The reason is that the last cell uses other pieces of the held-out code: 64 pieces instead of 16.
#
# The typical probability is $e^{-L}$, the geometric mean of the probabilities that the model gives to the correct bytes.
#
# `merge_and_unload` adds the adapter to the weights and returns an ordinary model:

# %%
tokens, _ = ln.data.Batches(ln.data.corpus("code", "heldout"), batch_size=2)[0]
with_bypass, _ = model.forward(tokens)
plain = model.merge_and_unload()
merged, _ = plain.forward(tokens)
count = ln.costs.count(plain).total
print(f"{type(plain).__name__} with {count:,} parameters, as many as the base")
change = abs(merged - with_bypass).max() / abs(with_bypass).max()
print(f"largest change of a logit, relative to the largest logit: {change:.1e} (float32)")

# %% [markdown]
# Without rounding, the merged model would give the same logits as the model with the bypass. The printed change is not exactly zero. A float32 number has about seven digits, and each operation rounds its result to these digits. The model with the bypass adds two rounded products, $x W^\top$ and $s\,h B^\top$. The merged model first rounds the sum $W + s\,BA$, and then multiplies $x$ by this sum. So the two models round differently, and their logits differ in about the seventh digit.
# The losses in the section about `micro.py` agreed in all printed digits. A loss is a mean over many bytes, so merging changed the loss too little to change these digits.
#
# ## Whole models
#
# The next picture shows how many parameters LoRA trains in published models. This number is the sum of $r\,(\text{in} + \text{out})$ over all matrices with an adapter. The picture shows two adapters for each model. The first adapter has $r = 8$ on the layers for queries and values, as in the LoRA paper. The second adapter has $r = 16$ on all linear layers. (GPT-2 computes queries, keys and values with one
# matrix, `c_attn`.) The share in the picture is the number of trained parameters, divided by the number of all parameters, including the parameters of the adapter. The method `print_trainable_parameters` of PEFT prints the same share.

# %%
plots.whole_models_chart(parameters.whole_models());

# %% [markdown]
# ## Recap
#
# - LoRA adds $s\,(xA^\top)B^\top$ to the output of a frozen linear layer. Only $A$ and $B$ are trained.
# - Together $A$ and $B$ have $r\,(\text{in} + \text{out})$ parameters, and $W$ has $\text{in} \cdot \text{out}$ parameters. The larger $W$ is, the larger is the difference between these two numbers.
# - $B$ starts at zero, so before training, the model with LoRA gives exactly the same output as the base.
# - LoRA does not compute the gradient of $W$.
# - After training, $s\,BA$ can be added to $W$. The merged model needs as much memory and time as the base.
#
# ## Three questions
#
# 1. $W$ has the shape (300, 100) and $r = 4$. What are the shapes of $A$ and $B$, and how many parameters do $A$ and $B$ have together?
#
# <details><summary>Answer</summary>
#
# $A$ has the shape (4, 100), and $B$ has the shape (300, 4). Together $A$ and $B$ have $4 \cdot (100 + 300) = 1600$ parameters. $W$ has 30,000 parameters.
#
# </details>
#
# 2. Why does training fail if $A$ and $B$ *both* start at zero?
#
# <details><summary>Answer</summary>
#
# With $A = 0$, $h = xA^\top$ is zero, so $dB = s\,dy^\top h$ is zero. With $B = 0$, $dh = s\,dy\,B$ is zero, so $dA = dh^\top x$ is zero. So all gradients are zero in every step, and $A$ and $B$ never change.
#
# </details>
#
# 3. What do you lose if you merge an adapter?
#
# <details><summary>Answer</summary>
#
# You lose the choice between adapters. A separate adapter can be switched off, or replaced by another adapter on the same base (notebook 08). A merged model serves one task only.
#
# </details>
#
# ## Try
#
# For each task, change the first cell under "LoRA with the library" and run this cell. Then run the next cell, which trains the adapter. The first cell loads the model tiny again, so nothing of the earlier adapter is left.
#
# 1. Set `lora_alpha=160`. What happens to the held-out loss? Which other hyperparameter can you change to undo this effect?
#
# <details><summary>Hint</summary>
#
# $\alpha$ multiplies the change of $\Delta W = s\,BA$ in each step.
#
# </details>
#
# <details><summary>Answer</summary>
#
# After training, the held-out loss is *higher* than the loss of the base, because each step changes $s\,BA$ about ten times as much as with `lora_alpha=16`. To undo this effect, divide the learning rate by ten: `ln.AdamW(lr=1e-3, weight_decay=0.0)`. Then the loss is nearly the same as with `lora_alpha=16` and `lr=1e-2`.
#
# </details>
#
# 2. The LoRA paper adapts only queries and values: `target_modules=["q_proj", "v_proj"]`. How many parameters does LoRA train with this setting? Divide the reduction of the held-out loss in this run by the reduction in a run with adapters on all linear layers. How large is the quotient?
#
# <details><summary>Hint</summary>
#
# The reduction is the first held-out loss minus the last held-out loss. You need the reduction of the run with adapters on all linear layers, and the reduction of the run with adapters only on queries and values.
#
# </details>
#
# <details><summary>Answer</summary>
#
# With this setting LoRA trains 17,920 parameters. With adapters on all linear layers, LoRA trains 97,280 parameters, about five times as many. The quotient of the two reductions is about two thirds.
#
# </details>
#
# 3. What does training change if both $A$ and $B$ are zero at the start? Add these lines at the end of the first cell:
#
#    ```python
#    factors = [p for name, p in model.named_parameters() if "lora_" in name]  # all A and B
#    for p in factors:
#        p.value[:] = 0
#
#    loss, cache = model.loss(*ln.data.Batches(ln.data.corpus("code", "train"))[0])
#    model.backward(cache)
#    print("largest gradient:", max(abs(p.grad).max() for p in factors))
#    ```
#
# <details><summary>Hint</summary>
#
# Put $A = 0$ and $B = 0$ into the four equations of "The gradients".
#
# </details>
#
# <details><summary>Answer</summary>
#
# The largest gradient is exactly zero, and the held-out loss does not change. The answer to question 2 above gives the reason.
#
# </details>
#
# Continue with [Gradients by hand](03_gradients_by_hand.ipynb).
