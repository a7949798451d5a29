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
# What is LoRA? It is one equation, and about 200 lines of code are enough for a language model with LoRA, its training and its gradients. This notebook reads these lines beside the equation, and then counts what LoRA saves.
#
# **You will learn** to
#
# - explain each matrix of LoRA's equation and its shape;
# - compute the number of parameters that LoRA trains;
# - write LoRA's forward pass in NumPy, train an adapter on a language model, and merge it into the weights.
#
# **Before you start:** the matrix product. The section about gradients uses the chain rule; you may skip it.
#
# *Reading: 40 minutes. Running: about 20 seconds.*

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
# LoRA leaves a trained weight matrix $W$ unchanged and adds a narrow bypass beside it ([Hu et al. 2021](https://arxiv.org/abs/2106.09685), section 4.1):
#
# $$y \;=\; x W^\top \;+\; s\,(x A^\top)\,B^\top \qquad s = \frac{\alpha}{r}$$
#
# | symbol | shape | meaning |
# |---|---|---|
# | $x$ | (N, in) | N tokens with in features each |
# | $W$ | (out, in) | weight matrix of the base, frozen |
# | $A$ | (r, in) | projects in features to r features |
# | $B$ | (out, r) | projects r features to out features |
# | $s$ | number | scaling: `lora_alpha` divided by the rank |
#
# Both terms together are $x\,(W + \Delta W)^\top$ with $\Delta W = s\,BA$. The change $\Delta W$ is as large as $W$, but its rank is at most $r$: each row of $BA$ is a sum of the $r$ rows of $A$ with different factors. The name says it: *Lo*w-*R*ank *A*daptation.
#
# Notebook 04 shows why a change of low rank is enough. Notebook 06 shows what $\alpha$ does. In short: $\alpha$ acts like a part of the learning rate.
#
# ## LoRA in 200 lines
#
# The file `lora_np/micro.py` contains a complete Llama model with LoRA: forward pass, backward pass, AdamW, training and merging. It needs only NumPy. This is its function for a linear layer; the cell shows the source:

# %%
def source(function):
    return Markdown(f"```python\n{inspect.getsource(function)}```")


source(micro.linear)

# %% [markdown]
# The last line of the function is the equation. `AB` holds the two matrices of this layer; without an adapter it is `None`. The second result, the cache, holds the arrays that the backward pass needs.
#
# At the start $A$ is random and $B$ is zero:

# %%
source(micro.init_lora)

# %% [markdown]
# So $\Delta W = s\,BA = 0$, and the model with the adapter computes exactly what the base computes. The random numbers in $A$ are between $-1/\sqrt{\text{in}}$ and $1/\sqrt{\text{in}}$, so the size of $h = xA^\top$ does not depend on the number of features.
#
# Now we use this file to train an adapter. The base is tiny, a model with a million parameters that was trained on English prose. The text is Python code. The loss is in *nats per byte*: the mean of $-\ln p$, where $p$ is the
# probability that the model gives to the correct next byte. A model without any knowledge gives $p = 1/256$ to each byte; its loss is $\ln 256 \approx 5.5$. A perfect model would have the loss 0.
#
# **Predict.** tiny knows English but not Python. Is its loss on Python code closer to 5.5 or to 1? How far do forty steps of training reduce it?

# %%
config, W = micro.load()
lora = micro.init_lora(W, r=8)
model = micro.Llama(config, W, lora, s=2.0)

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
# At the start the loss is much closer to 1 than to 5.5: code has many English words, and tiny knows the letters of English. Then the loss falls. *Held-out* text is text that is not used for training.
#
# After training, the two matrices can be added to the weight, because $x W^\top + s\,(xA^\top)B^\top = x\,(W + s\,BA)^\top$. The merged model has no bypass and costs no more than the base:

# %%
source(micro.merge)

# %%
merged = micro.Llama(config, micro.merge(W, lora, s=2.0))
with_bypass, without = (float(m.loss(*heldout)[0]) for m in (model, merged))
print(f"loss with the bypass {with_bypass:.6f}, merged {without:.6f}")

# %% [markdown]
# That is all of LoRA. The rest of the notebook looks at each part more closely, with the library `lora_np` in place of the one file.
#
# ## How many parameters does LoRA train?
#
# **Predict.** $W$ is 4096 × 4096, as in a 7B model, and $r = 8$. How many times fewer parameters does LoRA train than full fine-tuning: about 10, about 50, or about 250?

# %%
one_matrix = parameters.one_matrix(4096)
plots.one_matrix_chart(one_matrix);

# %% [markdown]
# Coral is $W$, which full fine-tuning trains. The cyan strips are $A$ and $B$, which LoRA trains instead. They are not a part of $W$.
#
# $W$ has $\text{out} \cdot \text{in}$ parameters. $A$ and $B$ have $r \cdot \text{in} + \text{out} \cdot r = r\,(\text{in} + \text{out})$. For a square matrix with $d$ features the ratio is $d^2 / (2dr) = d / (2r)$. It grows with $d$: the larger the model, the more LoRA saves.

# %%
features, r = 4096, 8
full, few = features * features, r * (features + features)
print(f"W: {full:,}   A and B: {few:,}   {full / few:.0f} times fewer")

# %% [markdown]
# ## The forward pass in three lines
#
# None of these matrices is square. With a square matrix you would not notice a forgotten transposition.

# %%
rng = np.random.default_rng(7)
N, in_, out, r, alpha = 5, 6, 4, 2, 8
x = rng.standard_normal((N, in_))
W = rng.standard_normal((out, in_))
A = rng.uniform(-1, 1, (r, in_)) / np.sqrt(in_)
B = rng.standard_normal((out, r))  # as after some training; at the start B is zero
s = alpha / r

frozen = x @ W.T  # (N, in) (in, out) → (N, out)
bypass = s * (x @ A.T) @ B.T  # (N, in) (in, r) (r, out) → (N, out)
y = frozen + bypass

y_library, cache = ln.ops.lora_linear_forward(x, W, A, B, s)
print(f"largest difference from the library: {abs(y - y_library).max():.1e}")
print(f"BA has shape {(B @ A).shape} and rank {np.linalg.matrix_rank(B @ A)}")

# %% [markdown]
# The brackets matter. $(xA^\top)B^\top$ takes $N r\,(\text{in} + \text{out})$ multiplications. $x\,(BA)^\top$ would first compute the product $BA$ and then take $N \cdot \text{in} \cdot \text{out}$ multiplications, as many as the frozen layer.
#
# ## The gradients
#
# For the loss $L$ write $dy = \partial L / \partial y$. With $h = xA^\top$ the chain rule gives
#
# $$dB = s\,dy^\top h \qquad dh = s\,dy\,B \qquad dA = dh^\top x \qquad dx = dy\,W + dh\,A.$$
#
# Notebook 03 derives these four equations. There is no $dW$: the gradient of the frozen weight, as large as $W$, is never computed.

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
# Two programs that agree can both be wrong. An independent test is needed. `gradcheck` computes the derivative numerically, with a *complex step*, almost without rounding error (notebook 03 explains it). The gradients must agree with it to $10^{-12}$:

# %%
print(
    ln.gradcheck(
        lambda x, A, B: ln.ops.lora_linear_forward(x, W.astype(x.dtype), A, B, s),
        ln.ops.lora_linear_backward,
        {"x": x, "A": A, "B": B},
    )
)

# %% [markdown]
# ## The same in the library
#
# `LoraConfig` and `get_peft_model` have the names of PEFT, the usual library for PyTorch. `target_modules="all-linear"` means all linear layers except the output head.
#
# **Predict.** For a 4096 × 4096 matrix LoRA trains 256 times fewer parameters. tiny has $d = 128$. What share of its parameters does LoRA train with $r = 8$?

# %%
base = ln.load_model("tiny")
config = ln.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
tokens = ln.data.encode("The import statement combines two operations;")[None]
logits, _ = base.forward(tokens)

model = ln.get_peft_model(base, config)  # puts the adapter into `base`
adapted, _ = model.forward(tokens)
print("logits equal to those of the base, bit for bit:", np.array_equal(logits, adapted))
model.print_trainable_parameters()

# %% [markdown]
# Almost a tenth. The ratio is $d / (2r) = 128 / 16 = 8$ for tiny's square matrices, and 12 for its largest matrices, 384 × 128. In a model with $d = 4096$ it is 256.
#
# The next cell trains the adapter. It also keeps a copy of one frozen weight matrix. The path to this matrix: `layers[0]` is the first block, `self_attn.q_proj` the linear layer for the queries, `base_layer` the frozen layer inside the layer with LoRA, and `weight.value` its array.

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
# The typical probability is $e^{-L}$, the geometric mean over all bytes.
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
# ## Whole models
#
# This picture counts $r\,(\text{in} + \text{out})$ for all adapted matrices of published models. There are two choices per model: $r = 8$ on queries and values, as in the paper, and $r = 16$ on all linear layers. (GPT-2 computes queries, keys and values with one
# matrix, `c_attn`.) The share is the trained parameters divided by all parameters, those of the adapter included, as in PEFT.

# %%
plots.whole_models_chart(parameters.whole_models());

# %% [markdown]
# ## Recap
#
# - LoRA adds $s\,(xA^\top)B^\top$ to the output of a frozen linear layer. Only $A$ and $B$ are trained.
# - $A$ and $B$ have $r\,(\text{in} + \text{out})$ parameters, $W$ has $\text{in} \cdot \text{out}$. The saving grows with the size of the matrix.
# - $B$ starts at zero, so the model starts exactly as the base.
# - No gradient of $W$ is computed.
# - After training, $s\,BA$ can be added to $W$. The merged model costs as much as the base.
#
# ## Three questions
#
# 1. $W$ has the shape (300, 100) and $r = 4$. What are the shapes of $A$ and $B$, and how many parameters do they have?
#
# <details><summary>Answer</summary>
#
# $A$ is (4, 100), $B$ is (300, 4). Together they have $4 \cdot (100 + 300) = 1600$ parameters; $W$ has 30,000.
#
# </details>
#
# 2. Why may $A$ and $B$ not *both* start at zero?
#
# <details><summary>Answer</summary>
#
# Then $h = xA^\top = 0$ gives $dB = s\,dy^\top h = 0$, and $B = 0$ gives $dh = 0$ and $dA = 0$. No gradient would differ from zero, and nothing would ever change.
#
# </details>
#
# 3. What do you lose if you merge an adapter?
#
# <details><summary>Answer</summary>
#
# The choice. With a separate adapter you can switch it off or use another one on the same base (notebook 08). After merging there is one model for one task.
#
# </details>
#
# ## Try
#
# For each task, change the first cell under "The same in the library" and run it. Then run the cell that trains. The first cell loads tiny anew, so nothing of the last adapter is left.
#
# 1. Set `lora_alpha=160`. What happens to the loss? Which other hyperparameter can undo the effect?
#
# <details><summary>Hint</summary>
#
# $\alpha$ multiplies the change of $\Delta W = s\,BA$ in each step.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The held-out loss ends *above* the loss of the base. Each step now changes $s\,BA$ ten times as much. A ten times smaller learning rate, `ln.AdamW(lr=1e-3, weight_decay=0.0)`, brings the loss back to nearly the first result.
#
# </details>
#
# 2. `target_modules=["q_proj", "v_proj"]` was the choice of the paper. How many parameters does it train here? What share of the reduction of the loss does it keep?
#
# <details><summary>Hint</summary>
#
# The reduction is the first held-out loss minus the last one. Divide the reduction of the new run by that of the old run.
#
# </details>
#
# <details><summary>Answer</summary>
#
# It trains 17,920 parameters, about a fifth of 97,280. It keeps about two thirds of the reduction.
#
# </details>
#
# 3. Set both $A$ and $B$ to zero at the start. Add these lines at the end of the first cell:
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
# The largest gradient is exactly zero, and the held-out loss stays where it was. Question 2 above gives the reason.
#
# </details>
#
# Continue with [Gradients by hand](03_gradients_by_hand.ipynb).
