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
# # Gradients by hand
#
# How does LoRA compute the gradients of $A$ and $B$, and how can one prove that a gradient is right? This notebook answers both questions for one linear layer.
# The next notebook, [03b](03b_gradients_of_the_whole_model.ipynb), answers both questions for all other layers of a Transformer.
#
# **You will learn to**
#
# - derive the gradients with respect to $A$, $B$ and $x$ with one rule,
# - prove with the complex step that a gradient is right, and choose inputs that do not hide a mistake,
# - compute the cost of a LoRA step, and compare this cost with the cost of a full fine-tuning step.
#
# **Before you start:** you have read [notebook 02](02_lora_from_one_equation.ipynb), and you know the chain rule for functions of several variables.
#
# *Reading: 65 minutes. Tasks: 45 minutes. Running: about 10 seconds.*
#
# ## The result
#
# A linear layer computes $y = x W^\top$ with a weight matrix $W$ of shape (out, in). LoRA freezes $W$ and adds a bypass with two trained matrices (*factors*), $A$ of shape (r, in) and $B$ of shape (out, r):
#
# $$y = x W^\top + s\,(x A^\top) B^\top$$
#
# So the layer gives the same output as a linear layer with one matrix, the sum $W + s\,BA$. In this notebook, $dW$ is the gradient of the loss with respect to this sum. Full fine-tuning computes $dW$. LoRA never computes $dW$, but the gradient of each factor equals $dW$, multiplied by the other factor and by $s$:
#
# $$dA \;=\; s\,B^\top dW \qquad\qquad dB \;=\; s\,dW A^\top$$
#
# The next three cells compute both sides of these equations in the model tiny, a language model with a million parameters. The model reads Python code. We look at one layer whose $W$ has the shape (128, 384), with $r = 8$.
#
# **Predict.** What are the shapes of $dA$ and $dB$?

# %%
from copy import deepcopy

import numpy as np

import lora_np as ln
from lora_np import plots

config = ln.LoraConfig(
    r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False
)
model = ln.get_peft_model(ln.load_model("tiny").astype("float64"), config)

batches = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=4, seq_len=64)
tokens, targets = batches[0]  # both (b, t) = (4, 64); targets: the next bytes

# %% [markdown]
# `init_lora_weights=False` makes $B$ random instead of zero. This random $B$ stands for a trained $B$, which is not zero. The model computes in float64, because the comparison below needs the 16 digits of float64.
#
# **LoRA.** One backward pass gives the gradients of all $A$ and $B$. We select the two gradients of our layer by the names of the parameters.

# %%
loss, cache = model.loss(tokens, targets)
model.backward(cache)

layer = "model.layers.3.mlp.down_proj"
parameters = dict(model.named_parameters())
lora_A = parameters[f"base_model.model.{layer}.lora_A.default.weight"]
lora_B = parameters[f"base_model.model.{layer}.lora_B.default.weight"]
print("dA", lora_A.grad.shape, "  dB", lora_B.grad.shape)

# %% [markdown]
# **Full fine-tuning.** We copy the model and merge the adapter of the copy, so each layer of the copy has one weight $W + s\,BA$. Then we unfreeze the copy, so all its parameters are trainable. The backward pass of this copy gives $dW$.

# %%
merged = deepcopy(model).merge_and_unload().unfreeze()
merged_loss, cache = merged.loss(tokens, targets)
merged.backward(cache)

dW = dict(merged.named_parameters())[f"{layer}.weight"].grad  # (out, in) = (128, 384)
s = config.lora_alpha / config.r
print("same loss:   ", np.isclose(loss, merged_loss))
print("dA = s Bᵀ dW:", np.allclose(lora_A.grad, s * lora_B.value.T @ dW))
print("dB = s dW Aᵀ:", np.allclose(lora_B.grad, s * dW @ lora_A.value.T))

# %% [markdown]
# The last two lines of the output end with `True`, so the equations for $dA$ and $dB$ hold. The next picture shows the three gradients $dW$, $dA$ and $dB$. Each entry of a gradient is one small square. The larger the absolute value of the entry, the darker is the square. $dW$ is coral, and LoRA's gradients $dA$ and $dB$ are cyan.
#
# **Predict.** $dW$ has some dark columns. These columns belong to input features that are large for this text. Do dark columns appear at the same places in $dA$ or in $dB$?

# %%
plots.gradient_shadows(dW, lora_A.grad, lora_B.grad, layer);

# %% [markdown]
# The dark columns of $dW$ appear again in $dA$. The product $B^\top dW$ mixes the rows of $dW$ and leaves each column in its place. The product $dW A^\top$ mixes the columns of $dW$ and leaves each row in its place, so dark rows of $dW$ appear again in $dB$.
# The picture shows only the darkest columns clearly. So the next cell compares the lengths (norms) of all columns of $dW$ and $dA$, and of all rows of $dW$ and $dB$:

# %%
def correlation(axis, gradient):
    lengths = np.linalg.norm(dW, axis=axis), np.linalg.norm(gradient, axis=axis)
    return np.corrcoef(*lengths)[0, 1]


print(f"lengths of the columns of dW and dA: correlation {correlation(0, lora_A.grad):.2f}")
print(f"lengths of the rows of dW and dB:    correlation {correlation(1, lora_B.grad):.2f}")

# %% [markdown]
# Columns that are long in $dW$ are mostly long in $dA$ too, and rows that are long in $dW$ are mostly long in $dB$. The correlations are below 1, because a mixture of rows or columns does not preserve all lengths.

# %% [markdown]
# ## One rule for all gradients
#
# Let $L$ be the loss, a single number. For any array $X$, $dX$ means $\partial L / \partial X$. The array $dX$ has the shape of $X$. Each entry of $dX$ is the derivative of $L$ with respect to the entry of $X$ at the same place.
# The backward pass of a layer receives $dy$, the gradient with respect to the output of the layer. The backward pass returns the gradient with respect to each input of the layer.
#
# Write the forward pass with three indices: $n$ counts the tokens, $j$ counts the input features, and $i$ counts the output features. The batch has $N = b \cdot t$ tokens.
#
# $$y_{ni} = \sum_j W_{ij}\, x_{nj}$$
#
# **The rule: the gradient of a number is a sum over all outputs that depend on this number. Each term of the sum is the gradient of one output, multiplied by the derivative of this output with respect to the number.**
#
# This rule is the chain rule: it adds up all paths from the number to the loss. For example, the weight $W_{ij}$ is used in $y_{ni}$ for every token $n$, each time with the factor $x_{nj}$:
#
# $$dW_{ij} = \sum_n dy_{ni}\, x_{nj}$$
#
# For matrix products, the rule has a short form: *the index that appears in both factors is summed, and the other indices give the shape of the result.* In $dy_{ni}\,x_{nj}$ the index $n$ appears in both factors and is summed. The indices $i$ and $j$ are left, so $dW$ has the shape (out, in). The short form holds only for matrix products. For other layers, use the rule itself.
#
# A matrix product sums over one index, which must be the *last* index of the left factor and the *first* index of the right factor. In $dy_{ni}\,x_{nj}$ the index $n$ is the first index of $dy$, so $dy$ must be transposed: $(i,n)\,(n,j) \to (i,j)$, and $dW = dy^\top x$.
#
# `np.einsum` computes a sum directly from its indices, so it can check each matrix product. In the next cell the four sizes $N$, in, out and $r$ differ, so the shapes of a wrong product do not fit, and NumPy raises an error.

# %%
rng = np.random.default_rng(7)
N, in_, out, r, alpha = 5, 6, 4, 2, 8
s = alpha / r
x = rng.standard_normal((N, in_))
W = rng.standard_normal((out, in_))
A = rng.standard_normal((r, in_))
B = rng.standard_normal((out, r))
dy = rng.standard_normal((N, out))

dW = dy.T @ x  # (out, N) (N, in) → (out, in)
print("dW:", np.allclose(dW, np.einsum("ni,nj->ij", dy, x)))

# %% [markdown]
# ## dB and dA
#
# LoRA adds the bypass to the output $y$. The index $l$ counts the features of $h$, from 1 to $r$:
#
# $$y_{ni} = \sum_j W_{ij}\, x_{nj} + s \sum_l B_{il}\, h_{nl} \qquad\text{with}\qquad h_{nl} = \sum_j A_{lj}\, x_{nj}$$
#
# **dB.** $B_{il}$ is used in $y_{ni}$ for every token $n$, with the factor $s\,h_{nl}$. The index $n$ is summed:
#
# $$dB_{il} = s \sum_n dy_{ni}\, h_{nl} \qquad\Rightarrow\qquad dB = s\,dy^\top h$$
#
# **dh.** $A$ changes $y$ only through $h$, so we need $dh$ first. The feature $h_{nl}$ is used in every output feature $i$ of the same token $n$, with the factor $s\,B_{il}$. The index $i$ is summed:
#
# $$dh_{nl} = s \sum_i dy_{ni}\, B_{il} \qquad\Rightarrow\qquad dh = s\,dy\,B$$
#
# **dA.** $A_{lj}$ is used in $h_{nl}$ for every token $n$, with the factor $x_{nj}$. The index $n$ is summed:
#
# $$dA_{lj} = \sum_n dh_{nl}\, x_{nj} \qquad\Rightarrow\qquad dA = dh^\top x$$

# %%
h = x @ A.T  # (N, in) (in, r) → (N, r)
dB = s * dy.T @ h  # (out, N) (N, r) → (out, r)
dh = s * dy @ B  # (N, out) (out, r) → (N, r)
dA = dh.T @ x  # (r, N) (N, in) → (r, in)

print("dB:", np.allclose(dB, s * np.einsum("ni,lj,nj->il", dy, A, x)))
print("dA:", np.allclose(dA, s * np.einsum("ni,il,nj->lj", dy, B, x)))

# %% [markdown]
# Now insert $dh = s\,dy\,B$ into the equation for $dA$, insert $h = xA^\top$ into the equation for $dB$, and move the brackets:
#
# $$dA = s\,(dy\,B)^\top x = s\,B^\top (dy^\top x) \qquad\qquad dB = s\,dy^\top (x A^\top) = s\,(dy^\top x)\,A^\top$$
#
# The bracket $(dy^\top x)$ is $dW$. So the right-hand sides are $s\,B^\top dW$ and $s\,dW A^\top$, as in the section "The result". LoRA computes $(dy\,B)^\top x$ and $dy^\top (x A^\top)$, so it never computes $dW$.
#
# ## dx: the gradients of two paths are added
#
# In the forward pass $x_{nj}$ is used twice: with $W$ and in the bypass. If a quantity is used twice, its gradient is the *sum* of the gradients of both uses:
#
# $$dx_{nj} = \sum_i dy_{ni} W_{ij} + \sum_l dh_{nl} A_{lj} \qquad\Rightarrow\qquad dx = dy\,W + dh\,A$$
#
# A residual connection, $y = x + f(x)$, uses $x$ twice too, so its backward pass also adds two gradients. An attention layer uses its input $x$ in three projections, so its backward pass adds three gradients.
#
# The next cell defines a function for the forward pass of the layer and a function for its backward pass. Then the cell compares the gradients from these functions with the gradients that the library computes.

# %%
def lora_forward(x, A, B):
    h = x @ A.T  # (N, in) (in, r) → (N, r)
    y = x @ W.T + s * h @ B.T  # (N, in) (in, out) + (N, r) (r, out) → (N, out)
    return y, (x, A, B, h)


def lora_backward(dy, cache):
    x, A, B, h = cache
    dh = s * dy @ B  # (N, out) (out, r) → (N, r)
    dx = dy @ W + dh @ A  # (N, out) (out, in) + (N, r) (r, in) → (N, in)
    return dx, dh.T @ x, s * dy.T @ h  # (N, in), (r, in), (out, r)


y, cache = lora_forward(x, A, B)
_, library_cache = ln.ops.lora_linear_forward(x, W, A, B, s)
library = ln.ops.lora_linear_backward(dy, library_cache)
ours = lora_backward(dy, cache)
for name, mine, theirs in zip(("dx", "dA", "dB"), ours, library, strict=True):
    print(f"{name}: largest difference from the library {abs(mine - theirs).max():.0e}")

# %% [markdown]
# ## A derivative without a derivation: the complex step
#
# Our code and the library could contain the same mistake. So a proof needs a derivative that is computed in another way. In this section and the next section, $h$ is a small number, the step, and $i$ is the imaginary unit ($i^2 = -1$), not an index.
#
# The best-known way to compute a derivative numerically is a difference, $(f(x+h) - f(x))/h$. A difference has two errors. The first
# error comes from the terms of the Taylor series that the difference leaves out. The smaller $h$ is, the smaller is this error. The
# second error is the rounding error, which is large because two nearly equal numbers are subtracted. The smaller $h$ is, the more
# digits are lost.
#
# The *complex step* ([Squire and Trapp 1998](https://doi.org/10.1137/S003614459631241X)) moves $x$ in the imaginary direction:
#
# $$f(x + ih) = f(x) + ih\,f'(x) - \tfrac{h^2}{2} f''(x) - \tfrac{ih^3}{6} f'''(x) + \dots \qquad\Rightarrow\qquad f'(x) = \frac{\operatorname{Im} f(x + ih)}{h} + O(h^2)$$
#
# The terms $f(x)$ and $h^2 f''(x)$ are real, so the imaginary part does not contain them. Nothing is subtracted, so $h$ may be as small as $10^{-30}$.
#
# **Predict.** Take $f(x) = x / (1 + e^{-x})$ in float64, with 16 digits. Choose the best $h$ for each method. How many digits of $f'$ are right in the forward difference, $(f(x+h) - f(x))/h$? How many digits are right in the central difference, $(f(x+h) - f(x-h))/2h$?

# %%
def silu(x):
    return x / (1 + np.exp(-x))


def silu_slope(x):
    sigmoid = 1 / (1 + np.exp(-x))
    return sigmoid * (1 + x * (1 - sigmoid))


points = rng.uniform(0.5, 3, 20)
steps = np.logspace(-20, 0, 61)
derivatives = {
    "forward difference": lambda x, h: (silu(x + h) - silu(x)) / h,
    "central difference": lambda x, h: (silu(x + h) - silu(x - h)) / (2 * h),
    "complex step": lambda x, h: silu(x + 1j * h).imag / h,
}
step_errors = {
    method: [abs(derivative(points, h) / silu_slope(points) - 1).max() for h in steps]
    for method, derivative in derivatives.items()
}
subtitle = "derivative of x / (1 + exp(−x)) in float64, the worst of 20 points"
plots.step_sizes(steps, step_errors, subtitle);

# %% [markdown]
# Read the picture from right to left.
#
# - **Right side: the terms of the Taylor series that are left out.** The error of the forward difference is proportional to $h$. The errors of the central difference and of the complex step are proportional to $h^2$, and their curves coincide.
# - **Left side: rounding.** When $h$ becomes smaller, the errors of the forward and the central difference grow like $\varepsilon/h$. In this formula, $\varepsilon \approx 2 \cdot 10^{-16}$ is the spacing of float64 numbers at 1. For the smallest $h$, $x + h$ is rounded to $x$. Then the computed difference is 0, and its relative error is 1.
# - **The best $h$** makes the error of the left-out terms about equal to the rounding error. For the forward difference, $\varepsilon/h = h$ gives $h = \sqrt\varepsilon \approx 10^{-8}$. Then the error is also $\sqrt\varepsilon$, so half of the digits are right.
#   For the central difference, $\varepsilon/h = h^2$ gives $h = \varepsilon^{1/3}$. Then the error is $\varepsilon^{2/3}$, so two thirds of the digits are right.
# - **The complex step** has no rounding error that grows when $h$ becomes smaller. If $h$ is small enough, the derivative is exact up to rounding. We use $h = 10^{-30}$.
#
# ## From one number to a matrix
#
# A layer has many inputs and many outputs, but the complex step gives the derivative of one number with respect to one number. Two ideas reduce the check of a layer to a derivative of this kind.
#
# - **Output.** Draw a random $dy$ and use the loss $L = \sum dy \circ y$. The sign $\circ$ means multiplication entry by entry, and the sum is over all entries. The gradient of this $L$ with respect to $y$ is $dy$. So a backward pass that receives $dy$ must return the gradients of this $L$.
# - **Input.** Draw a random direction $V$ with the shape of the input $X$. A complex step in the direction $V$ gives the number $\operatorname{Im} L(X + ihV)/h$. If $dX$ is right, this number equals $\sum dX \circ V$.
#
# So one forward pass tests all entries of $dX$ together. A wrong entry changes the sum, unless the error of $dX$ is orthogonal to $V$. For a random $V$ this case has probability zero. But $V$ can be *nearly*
# orthogonal to the error, and then a large mistake looks small. So we draw five directions and take the largest of the five errors.

# %%
def errors_of(forward, backward, **inputs):
    """Return the relative error of each gradient against the complex step."""
    y, cache = forward(*inputs.values())
    dy = rng.standard_normal(y.shape)
    h, errors = 1e-30, {}
    for (name, X), dX in zip(inputs.items(), backward(dy, cache), strict=True):
        errors[name] = 0.0
        for _ in range(5):
            V = rng.standard_normal(X.shape)
            stepped = inputs | {name: X + 1j * h * V}
            stepped_y, _ = forward(*stepped.values())
            derivative = (dy * stepped_y).sum().imag / h  # Im L(X + ihV) / h, L = Σ dy ∘ y
            size = max(np.linalg.norm(dX), abs(derivative)) or 1  # 1 if both are zero
            errors[name] = max(errors[name], abs(derivative - (dX * V).sum()) / size)
    return errors


def report(what, errors):
    cells = [f"d{x} {e:.0e} {'right' if e < 1e-12 else 'WRONG'}" for x, e in errors.items()]
    print(f"{what:24} {'   '.join(cells)}")


report("the LoRA layer", errors_of(lora_forward, lora_backward, x=x, A=A, B=B))

# %% [markdown]
# If the relative error is below $10^{-12}$, the gradient counts as right. The error of a correct gradient is mostly between $10^{-17}$ and $10^{-15}$. The relative error of a wrong formula is mostly near 1, because its absolute error is about as large as the gradient.
#
# The library has the same check: `ln.gradcheck(forward, backward, {"x": x, …})`.
#
# ## A check that cannot fail
#
# The next cell makes a mistake on purpose. The backward pass in this cell forgets the factor $s$ of $dA$. LoRA starts with $B = 0$, so many programmers first check the gradient at $B = 0$.
#
# **Predict.** Does the check find the mistake at $B = 0$? Does the check find the mistake at a random $B$?

# %%
def forgot_s(dy, cache):
    dx, dA, dB = lora_backward(dy, cache)
    return dx, dA / s, dB


report("at B = 0", errors_of(lora_forward, forgot_s, x=x, A=A, B=np.zeros_like(B)))
report("at a random B", errors_of(lora_forward, forgot_s, x=x, A=A, B=B))

# %% [markdown]
# The check finds the mistake only at a random $B$. At $B = 0$ the correct gradient is $dA = s\,B^\top dW = 0$. The wrong gradient without the factor $s$ is also zero, because it has the factor $B$. So the check at $B = 0$ compared 0 with 0.
#
# Square matrices can hide a mistake too. In the next cell the backward pass of a linear layer has one transposition too many, $dx = dy\,W^\top$:

# %%
def linear_forward(x, W):
    return x @ W.T, (x, W)


def transposed(dy, cache):
    x, W = cache
    return dy @ W.T, dy.T @ x


square = rng.standard_normal((in_, in_))
report("W 6 × 6", errors_of(linear_forward, transposed, x=x, W=square))
report("W 6 × 6, the identity", errors_of(linear_forward, transposed, x=x, W=np.eye(in_)))
try:
    errors_of(linear_forward, transposed, x=x, W=W)
except ValueError as error:
    print(f"{'W 4 × 6':24}", str(error).partition(",")[0])

# %% [markdown]
# - If $W$ is not square, the shapes of $dy$ and $W^\top$ do not fit, and NumPy raises an error.
# - If $W$ is square, NumPy computes the product $dy\,W^\top$ without an error. Then only the check finds the mistake.
# - If $W$ is symmetric, like the identity, the wrong formula gives the right numbers. With a symmetric $W$ no check can find the mistake.
#
# **Check a gradient with general inputs: without zeros, without equal numbers, and without square or symmetric matrices.**
#
# ## The first step of LoRA
#
# The examples above had a random $B$. In practice LoRA starts with $B = 0$ and a random $A$.
#
# **Predict.** At the start, is $dA$ zero, is $dB$ zero, or are both zero? After one training step, is $dA$ or $dB$ still zero?

# %%
config = ln.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
fresh = ln.get_peft_model(ln.load_model("tiny"), config)


def print_largest_gradients(when):
    fresh.zero_grad()
    _, cache = fresh.loss(tokens, targets)
    fresh.backward(cache)
    largest = {"lora_A": 0.0, "lora_B": 0.0}
    for name, parameter in fresh.named_parameters():
        for factor in largest:
            if factor in name:
                largest[factor] = max(largest[factor], abs(parameter.grad).max())
    print(f"{when:15} |dA| ≤ {largest['lora_A']:.1e}   |dB| ≤ {largest['lora_B']:.1e}")


print_largest_gradients("at the start")
ln.train(fresh, [(tokens, targets)], ln.AdamW(lr=1e-2, weight_decay=0.0), steps=1)
print_largest_gradients("after one step")

# %% [markdown]
# At the start $dA = s\,B^\top dW$ is exactly zero, because $B$ is zero. So the first training step changes only $B$. From the second training step on, both $A$ and $B$ change.
#
# ## The cost of a step
#
# The product of a matrix of shape $(a, b)$ with a matrix of shape $(b, c)$ costs $2abc$ operations (FLOPs): one multiplication and one addition per term. The table lists the products of one layer for $N$ tokens:
#
# | product | shapes | full fine-tuning | LoRA |
# |---|---|---|---|
# | $x W^\top$ | (N, in) (in, out) | $2N \cdot in \cdot out$ | $2N \cdot in \cdot out$ |
# | $dy\,W$ | (N, out) (out, in) | $2N \cdot in \cdot out$ | $2N \cdot in \cdot out$ |
# | $dW = dy^\top x$ | (out, N) (N, in) | $2N \cdot in \cdot out$ | not computed |
# | $xA^\top$, $\;dh^\top x$, $\;dh\,A$ | sizes N, in and r | | $6N \cdot in \cdot r$ |
# | $hB^\top$, $\;dy^\top h$, $\;dy\,B$ | sizes N, out and r | | $6N \cdot out \cdot r$ |
#
# The sums of the last two columns are $6N \cdot in \cdot out$ for full fine-tuning and $4N \cdot in \cdot out + 6Nr\,(in + out)$ for LoRA. The next cell adds up the operations of all linear layers of the model tiny, and compares the results with the results of
# `ln.costs.flops`. This function counts the operations of every product of a training step. The tests of the library compare this count with the products that a real step computes.

# %%
N, r = 256, 8
linear = [p for name, p in merged.named_parameters() if "_proj" in name]
shapes = [p.value.shape for p in linear]  # (out, in)
full = sum(6 * N * in_ * out for out, in_ in shapes)
lora = sum(4 * N * in_ * out + 6 * N * r * (in_ + out) for out, in_ in shapes)
full_step = ln.costs.flops(ln.load_model("tiny"), batch=4, seq=64).linear.total
lora_step = ln.costs.flops(model, batch=4, seq=64)
lora_step = (lora_step.linear + lora_step.adapter).total

print(f"full fine-tuning: by hand {full:13,}   ln.costs {full_step:13,}")
print(f"LoRA:             by hand {lora:13,}   ln.costs {lora_step:13,}")

first_three = shapes[:3]  # q_proj, k_proj and v_proj of the first block
not_needed = sum(2 * N * in_ * (out + r) for out, in_ in first_three)  # their dy W and dh A
print(f"dx of the first three layers:                      {not_needed:13,}")

# %% [markdown]
# For full fine-tuning, the count by hand equals the count of the library. For LoRA, the count of the library is smaller than the count by hand. The difference is the cost of $dx$ in the first three linear layers. The last line of the output shows this cost. With LoRA, no parameter before these three layers is trained, so LoRA does not need the $dx$ of these layers.
#
# Now compare the cost of LoRA with the cost of full fine-tuning, for a square layer with $in = out = d$:
#
# $$\frac{\text{LoRA}}{\text{full fine-tuning}} = \frac{4d^2 + 12dr}{6d^2} = \frac23 + 2\,\frac rd$$
#
# ([Schulman et al. 2025](https://thinkingmachines.ai/blog/lora/) also count the operations of these products.)
#
# **Predict.** From which rank on does LoRA need *more* operations than full fine-tuning? Answer for $d = 4096$, as in a 7B model, and for $d = 128$, as in the model tiny.

# %%
ranks, widths = [2**n for n in range(11)], (4096, 128)
ratios = {d: [(4 * d**2 + 12 * d * r) / (6 * d**2) for r in ranks] for d in widths}
plots.step_flops(ranks, ratios, 2 / 3);

# %%
for d in widths:
    ratio = 2 / 3 + 2 * 8 / d
    print(f"d = {d:5,}: r = 8 costs {ratio:.3f} of a full step; equal cost at r = {d / 6:.0f}")

# %% [markdown]
# So in a square layer, LoRA takes at least two thirds of the operations that full fine-tuning takes. The main advantage of LoRA is the saved memory: LoRA needs no gradients and no optimizer state for the frozen weights.
#
# Two thirds is a ratio of operations, not a ratio of times. The operations are counted only for the products of the linear layers. This count leaves out attention, norms and the loss, which cost the same for LoRA and for full fine-tuning. The count also leaves out the optimizer, which updates all parameters in full fine-tuning, and only $A$ and $B$ in LoRA.
# So the time of a LoRA step, divided by the time of a full fine-tuning step, can be higher or lower than two thirds. Notebooks 05 and 10 measure the times of both steps.
#
# ## Recap
#
# The gradient of each array follows from one rule: the gradient of a number is a sum over all outputs that depend on this number. For matrix products, this sum runs over the index that appears in both factors. LoRA's gradients are $dA = s\,B^\top dW$ and $dB = s\,dW A^\top$, but LoRA computes them without
# computing $dW$. The complex step computes a derivative without subtraction, so it can confirm a gradient to about 15 digits. The check is reliable only with general inputs. At $B = 0$ or with symmetric matrices a mistake
# can stay hidden. In a square layer, a LoRA step takes $2/3 + 2r/d$ of the operations of a full fine-tuning step: $2/3$ for the products with $W$, and $2r/d$ for the bypass.
#
# ## Three questions
#
# 1. Full fine-tuning keeps the input $x$ (N, in) of each linear layer for the backward pass. Which arrays of each linear layer does LoRA keep for the backward pass?
#
# <details><summary>Answer</summary>
#
# LoRA keeps $x$ for $dA$, and $h$ (N, r) for $dB$. So the activations of a linear layer take slightly more memory with LoRA than with full fine-tuning. But LoRA needs no memory for $dW$ and no memory for the optimizer state of $W$. LoRA-FA, a variant of LoRA, also freezes $A$. LoRA-FA does not compute $dA$, so it does not need $x$.
#
# </details>
#
# 2. A colleague initialises *both* factors, $A$ and $B$, with zero. What happens in training?
#
# <details><summary>Answer</summary>
#
# $dA = s\,B^\top dW = 0$ and $dB = s\,dW A^\top = 0$. Both gradients stay zero in every step, so the adapter never learns.
#
# </details>
#
# 3. Why can the complex step use $h = 10^{-30}$, while a central difference cannot use this $h$?
#
# <details><summary>Answer</summary>
#
# A difference computes $f(x + h)$, and in float64 $x + 10^{-30}$ equals $x$ for any ordinary $x$. The complex step puts the step into the imaginary part. The step is not added to the real number $x$, so the step keeps all its digits.
#
# </details>
#
# ## Try
#
# 1. Add a trained bias to the layer, $y_{ni} = \dots + b_i$. Derive $db$, write the forward and the backward function, and check the gradients with `errors_of`.
#
# <details><summary>Hint</summary>
#
# $b_i$ is used in $y_{ni}$ for every token $n$, with the factor 1. Pass the bias as a fourth input: `errors_of(…, x=x, A=A, B=B, b=b)`.
#
# </details>
#
# <details><summary>Answer</summary>
#
# For every token $n$ the output $y_{ni}$ depends on $b_i$, so the sum runs over $n$: $db_i = \sum_n dy_{ni}$. In NumPy, this sum is `dy.sum(axis=0)`. The gradients $dx$, $dA$ and $dB$ do not change.
#
# </details>
#
# 2. *Dropout* sets each entry of an array to 0 with the probability $p$, and divides the other entries by $1 - p$. In the code, dropout is a product with a random *mask*, whose entries are 0 or $1/(1-p)$. Add dropout in front of the bypass: `forward` draws a mask with `rng` and computes $h = (x \circ mask) A^\top$. Write the correct `backward` for this mask. Why does `errors_of` nevertheless report a wrong gradient?
#
# <details><summary>Hint</summary>
#
# `mask = (rng.random(x.shape) > p) / (1 - p)`. Each call of `forward` draws a new mask. What does the complex step assume about the function `forward`?
#
# </details>
#
# <details><summary>Answer</summary>
#
# With a new mask, `forward` is a new function. So the check compares the gradient of one function with the derivative of another function. If you draw the mask once, outside `forward`, the check passes. To check a whole model with dropout, pass
# `dropout_seed` to `ln.gradcheck_model`.
#
# </details>
#
# 3. LoRA starts with $B = 0$. One step of gradient descent with learning rate $\eta$ then changes the weight by $\Delta W = -\eta\,s^2\,dW A^\top\!A$. One step of full fine-tuning changes the weight by $-\eta\,dW$.
#    Compute the cosine of the angle between these two changes, for a random $A$ of shape (r, 384) with $r = 1, 8, 64, 384$. Use the gradient $dW$ that this notebook computed for the model tiny:
#    `dW = dict(merged.named_parameters())[f"{layer}.weight"].grad`.
#
# <details><summary>Hint</summary>
#
# Let $U = dW A^\top\!A$. The cosine is `(U * dW).sum()` divided by the product of the norms of $U$ and $dW$.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The cosine is close to $\sqrt{r / (r + 384)}$. At $r = 1$ the two changes are almost orthogonal. At $r = 384$ the angle between the two changes is still about 45°, because a random $A^\top\!A$ is not a multiple of the identity.
#
# The formula follows from two mean values. Suppose that the entries of $A$ are independent normal numbers with mean 0 and variance 1. Then the mean of $A^\top\!A$ is $r$ times the identity, and the mean of $(A^\top\!A)^2$ is $r\,(r + 385)$ times the identity. So the sum of `U * dW` is about $r \lVert dW \rVert^2$, and $\lVert U \rVert$ is about $\sqrt{r\,(r + 385)}\,\lVert dW \rVert$. The cosine is the quotient of these numbers, about $\sqrt{r/(r + 385)}$.
#
# </details>
#
# 4. Exercise 3 asks for $dA$ and $dB$. Run `make exercises` in a terminal to get your copy of the exercises. **Close this notebook**, and then derive both gradients with the rule of this notebook.
#
# <details><summary>Hint</summary>
#
# Start with the forward pass, written with all indices. If your function is wrong, `check` names the mistake.
#
# </details>
#
# Continue with [Gradients of the whole model](03b_gradients_of_the_whole_model.ipynb).
